"""Checks that all layers of a graph are wired alike, so that what holds for the layers that were run holds for all."""

from __future__ import annotations

import re
from itertools import pairwise

import onnx

from ..errors import ParityError
from ..graphs.target import stream


def check_wiring(model: onnx.ModelProto, layers: int) -> None:
    """Every layer behind the first must have the nodes of the last, in the same order, with its own tensors. (The first may hold what all
    layers share.) Raises ParityError."""
    made_at = {name: index for index, node in enumerate(model.graph.node) for name in node.output}
    ends = [made_at[stream(layer)] for layer in range(layers + 1)]
    pieces = [list(model.graph.node[start + 1 : end + 1]) for start, end in pairwise(ends)]
    shapes = {each.name: (each.data_type, tuple(each.dims)) for each in model.graph.initializer}
    last = _canonical(pieces[-1], layers - 1, shapes)
    for layer in range(1, layers - 1):
        if _canonical(pieces[layer], layer, shapes) != last:
            raise ParityError(
                f"layer {layer} of the exported graph is not wired like the others — please report the model and the precision"
            )


def _canonical(nodes: list[onnx.NodeProto], layer: int, shapes: dict[str, tuple[int, tuple[int, ...]]]) -> list[bytes]:
    """The nodes of a layer, without what tells it from another: the names of results, and the layer's number in other names."""
    local: dict[str, str] = {}
    numbered = re.compile(rf"(^|\.)(layers|past|present)\.{layer}\.")

    def renamed(name: str) -> str:
        if name in local:
            return local[name]
        if name == stream(layer):
            return "in"
        return numbered.sub(r"\1\2.#.", name) + str(shapes.get(name, ""))

    found = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = ""
        copy.input[:] = [renamed(name) for name in node.input]
        for name in node.output:
            local[name] = "out" if name == stream(layer + 1) else renamed(name) if numbered.search(name) else f"%{len(local)}"
        copy.output[:] = [local[name] for name in node.output]
        found.append(copy.SerializeToString(deterministic=True))
    return found
