"""Policy networks: the numpy form and the ONNX graph compute the same function."""

from __future__ import annotations

import numpy as np
import pytest

from export.tuning.learning.nets import Mlp, mlp_graph
from tests.support.toy_answers import random_net


@pytest.mark.parametrize(("activation", "normalise"), [("tanh", True), ("tanh", False), ("relu", True), ("relu", False)])
def test_graph_equals_numpy(activation: str, normalise: bool) -> None:
    import onnx
    import onnxruntime

    net = random_net((24, 32, 16, 5), activation, normalise)
    model = mlp_graph(net)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [(value.name, value.shape, value.type) for value in session.get_inputs()] == [("x", [1, 24], "tensor(float)")]
    for seed in range(3):
        x = 3 * np.random.default_rng(seed).standard_normal((1, 24)).astype(np.float32)
        (logits,) = session.run(["logits"], {"x": x})
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, net(x), atol=1e-5)


def test_graph_of_a_single_layer() -> None:
    model = mlp_graph(random_net((4, 3), "tanh"))
    assert [node.op_type for node in model.graph.node] == ["Gemm"]


def test_normalised_network_ignores_the_scale_of_its_input() -> None:
    net = random_net((8, 4, 3), "tanh", normalise=True)
    x = np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32)
    np.testing.assert_allclose(net(x), net(1000 * x), atol=1e-5)
    assert np.isfinite(net(np.zeros((1, 8), np.float32))).all()


def test_layers_must_fit() -> None:
    a, b = random_net((4, 3), "tanh").layers[0], random_net((4, 2), "tanh").layers[0]
    for layers, activation, message in [((a, b), "tanh", "does not fit"), ((), "tanh", "needs a layer"), ((a,), "gelu", "tanh or relu")]:
        with pytest.raises(ValueError, match=message):
            Mlp(layers, activation)  # type: ignore[arg-type]
