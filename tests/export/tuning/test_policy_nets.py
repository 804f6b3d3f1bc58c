"""Policy networks: the numpy form and the ONNX graph compute the same function."""

from __future__ import annotations

import numpy as np
import pytest

from export.tuning.learning.nets import Mlp, Scaling, mlp_graph
from tests.support.toy_answers import random_net


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_graph_equals_numpy(activation: str) -> None:
    import onnx
    import onnxruntime

    net = random_net((24, 32, 16, 5), activation)
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


def test_every_number_of_an_input_weighs_alike() -> None:
    """As in a target's features: layers of different size, and numbers that are large and hardly change."""
    random = np.random.default_rng(0)
    inputs = (random.standard_normal((200, 6)) * [0.1, 0.1, 10, 10, 1e-5, 0] + [0, 0, 1, 1, 300, 5]).astype(np.float32)
    scaling = Scaling.of(inputs)
    scaled = (inputs - scaling.mean) / scaling.deviation
    np.testing.assert_allclose(scaled[:, :4].std(0), 1, rtol=1e-3)
    assert np.abs(scaled[:, 4:]).max() < 0.1
    net = random_net((6, 4, 3), "tanh")
    np.testing.assert_allclose(Mlp(scaling.into(net.layers), "tanh")(inputs), net(scaled), atol=1e-4)
    assert np.isfinite(Scaling.of(np.ones((3, 2), np.float32)).into(random_net((2, 3), "tanh").layers)[0][0]).all()


def test_layers_must_fit() -> None:
    a, b = random_net((4, 3), "tanh").layers[0], random_net((4, 2), "tanh").layers[0]
    for layers, activation, message in [((a, b), "tanh", "does not fit"), ((), "tanh", "needs a layer"), ((a,), "gelu", "tanh or relu")]:
        with pytest.raises(ValueError, match=message):
            Mlp(layers, activation)  # type: ignore[arg-type]
