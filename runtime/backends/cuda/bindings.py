"""What a graph's tensors are bound to on a GPU, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from ...manifest.graphs import Graph, Tensor
from ..base import DeviceOutputs, dtype_of
from .memory import DeviceBuffer, DeviceMemory, aligned


@dataclass(frozen=True)
class Bound:
    """One tensor of a call."""

    buffer: DeviceBuffer
    shape: tuple[int, ...]


class Reading(DeviceOutputs):
    """Outputs that are copied to the host when they are looked at."""

    def __init__(self, memory: DeviceMemory, bound: Mapping[str, Bound]) -> None:
        self._memory, self._bound = memory, bound

    def __getitem__(self, name: str) -> np.ndarray:
        found = self._bound[name]
        return self._memory.read(found.buffer, found.shape)

    def element(self, name: str, row: int, column: int) -> float:
        bound = self._bound[name]
        place = bound.buffer.address + (row * bound.shape[-1] + column) * bound.buffer.dtype.itemsize
        return float(self._memory.read(DeviceBuffer(place, 1, bound.buffer.dtype), (1,))[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._bound)

    def __len__(self) -> int:
        return len(self._bound)


@dataclass(frozen=True)
class Bindings:
    """``block`` mirrors at ``address`` what the host writes: ``inputs`` are views into it, uploaded together."""

    inputs: Mapping[str, np.ndarray]
    outputs: Reading
    bound_inputs: Mapping[str, Bound]
    bound_outputs: Mapping[str, Bound]
    block: np.ndarray
    address: int


@dataclass(eq=False)
class DeviceCall:
    """What calls of every engine have in common: what the host fills and reads."""

    bindings: Bindings

    @property
    def inputs(self) -> Mapping[str, np.ndarray]:
        return self.bindings.inputs

    @property
    def outputs(self) -> Mapping[str, np.ndarray]:
        return self.bindings.outputs


def bind(
    graph: Graph,
    memory: DeviceMemory,
    buffers: dict[str, DeviceBuffer],
    limits: Mapping[str, int],
    names: Mapping[str, str],
    sizes: Mapping[str, int],
) -> Bindings:
    """Inputs lie in the buffer of their name, else the host writes them. Outputs get a buffer where there is none, as large as any
    call needs (``limits``)."""
    written = {name: tensor for name, tensor in graph.inputs.items() if names.get(name, name) not in buffers}
    lengths = {name: aligned(prod(_shape(tensor, sizes)) * dtype_of(tensor.dtype).itemsize) for name, tensor in written.items()}
    block = np.zeros(sum(lengths.values()), np.uint8)
    mirror = memory.zeros(block.size, "uint8")
    bound_inputs, views, start = {}, {}, 0
    for name, tensor in graph.inputs.items():
        shape, kind = _shape(tensor, sizes), dtype_of(tensor.dtype)
        if name in written:
            views[name] = block[start : start + prod(shape) * kind.itemsize].view(kind).reshape(shape)
            bound_inputs[name] = Bound(DeviceBuffer(mirror.address + start, prod(shape), kind), shape)
            start += lengths[name]
        else:
            bound_inputs[name] = Bound(buffers[names.get(name, name)], shape)
    bound_outputs = {}
    for name, tensor in graph.outputs.items():
        place = names.get(name, name)
        if place not in buffers:
            buffers[place] = memory.zeros(prod(_shape(tensor, limits)), tensor.dtype)
        bound_outputs[name] = Bound(buffers[place], _shape(tensor, sizes))
    return Bindings(views, Reading(memory, bound_outputs), bound_inputs, bound_outputs, block, mirror.address)


def _shape(tensor: Tensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape)
