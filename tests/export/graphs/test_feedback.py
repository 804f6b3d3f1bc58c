"""Rounding with error feedback: nearest integers where inputs do not vary together, a smaller error of the outputs where they do."""

from __future__ import annotations

import numpy as np

from export.graphs.int8.feedback import inverse_root, round_with_feedback
from export.graphs.weights import quantize_outputs

OUTPUTS, INPUTS = 40, 300  # more than one block of inputs


def weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((OUTPUTS, INPUTS)).astype(np.float32)


def test_inputs_that_vary_alone_are_rounded_to_the_nearest() -> None:
    values, scale = round_with_feedback(weight(), inverse_root(np.diag(np.random.default_rng(1).uniform(0.5, 2, INPUTS))))
    expected, expected_scale = quantize_outputs(weight())
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(scale, expected_scale)


def test_inverse_root() -> None:
    inputs = np.random.default_rng(2).standard_normal((2 * INPUTS, INPUTS))
    moment = inputs.T @ inputs
    root = inverse_root(moment).astype(np.float64)
    damped = moment + 0.01 * np.diagonal(moment).mean() * np.eye(INPUTS)
    assert (np.tril(root, -1) == 0).all()
    np.testing.assert_allclose(root.T @ root @ damped, np.eye(INPUTS), atol=1e-4)


def test_the_outputs_of_inputs_that_vary_together_have_a_smaller_error() -> None:
    random = np.random.default_rng(3)
    inputs = random.standard_normal((1000, 20)) @ random.standard_normal((20, INPUTS)) + 0.1 * random.standard_normal((1000, INPUTS))

    def error(rounded: tuple[np.ndarray, np.ndarray]) -> float:
        values, scale = rounded
        assert np.abs(values.astype(int)).max() <= 127
        return float(np.square(inputs @ (weight() - values * scale[:, None]).T).sum())

    nearest = error(quantize_outputs(weight()))
    assert error(round_with_feedback(weight(), inverse_root(inputs.T @ inputs))) < 0.3 * nearest


def test_inputs_that_were_never_seen_and_rows_of_zeros() -> None:
    rows = weight()
    rows[3] = 0
    values, scale = round_with_feedback(rows, inverse_root(np.zeros((INPUTS, INPUTS))))
    expected, expected_scale = quantize_outputs(rows)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(scale, expected_scale)
