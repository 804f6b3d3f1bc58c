"""The orthogonal matrices: orthogonal, flat, the same everywhere, and fast forms of products with them."""

from __future__ import annotations

import numpy as np
import pytest

from export.rotation.orthogonal import rotated, rotated_outputs


@pytest.mark.parametrize("size", [1, 2, 3, 6, 30, 48, 64, 576, 3584])
def test_products_with_an_orthogonal_matrix(size: int) -> None:
    matrix = rotated(np.eye(size))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-13)
    assert np.abs(matrix).max() <= np.sqrt(2.000001 / size)  # a single huge channel is spread over all
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((2, 3, size)), random.standard_normal((size, 5))
    np.testing.assert_allclose(rotated(x), x @ matrix, atol=1e-12)
    np.testing.assert_allclose(rotated_outputs(weight), matrix.T @ weight, atol=1e-12)
    np.testing.assert_allclose(rotated_outputs(weight[:, 0]), matrix.T @ weight[:, 0], atol=1e-12)


def test_it_is_the_same_on_every_machine() -> None:
    """Tunings hold networks that read rotated features."""
    matrix = rotated(np.eye(6))
    np.testing.assert_allclose(matrix[:, 0], np.array([-1, 1, 1, -1, -1, 1]) / np.sqrt(6), atol=1e-12)


def test_the_type_is_kept() -> None:
    assert rotated(np.ones((2, 12), np.float32)).dtype == np.float32
