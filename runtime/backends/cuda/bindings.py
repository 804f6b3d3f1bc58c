"""Binds a graph's tensors to device memory. Both GPU engines, TensorRT and ONNX Runtime, use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from ...manifest.graphs import Graph, Tensor
from ..base import DeviceOutputs, dtype_of
from .memory import DeviceBuffer, DeviceMemory, aligned


@dataclass(frozen=True)
class DeviceTensor:
    """The front of a device buffer in one shape."""

    buffer: DeviceBuffer
    shape: tuple[int, ...]


class LazyOutputs(DeviceOutputs):
    """Outputs of a call that are copied to the host on access."""

    def __init__(self, memory: DeviceMemory, tensors: Mapping[str, DeviceTensor]) -> None:
        self._memory, self._tensors = memory, tensors

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        return self._memory.read(tensor.buffer, tensor.shape)

    def rows(self, name: str, axis: int, rows: slice) -> np.ndarray:
        """A part of an output whose dimensions before ``axis`` are 1; a copy."""
        tensor = self._tensors[name]
        width, count = prod(tensor.shape[axis + 1 :]), rows.stop - rows.start
        start = tensor.buffer.address + rows.start * width * tensor.buffer.dtype.itemsize
        shape = (*tensor.shape[:axis], count, *tensor.shape[axis + 1 :])
        return self._memory.read(DeviceBuffer(start, count * width, tensor.buffer.dtype), shape)

    def row(self, name: str, row: int) -> np.ndarray:
        return np.asarray(self.rows(name, 1, slice(row, row + 1))[0, 0])

    def element(self, name: str, row: int, column: int) -> float:
        tensor = self._tensors[name]
        address = tensor.buffer.address + (row * tensor.shape[-1] + column) * tensor.buffer.dtype.itemsize
        return float(self._memory.read(DeviceBuffer(address, 1, tensor.buffer.dtype), (1,))[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True)
class Bindings:
    """The tensors of one call.

    ``inputs``: arrays for the host to fill; views into ``host_block``, uint8, which is uploaded to ``block_address`` in one copy.
    ``outputs``: the call's outputs for the host. ``device_inputs``, ``device_outputs``: all tensors on the device.
    """

    inputs: Mapping[str, np.ndarray]
    outputs: LazyOutputs
    device_inputs: Mapping[str, DeviceTensor]
    device_outputs: Mapping[str, DeviceTensor]
    host_block: np.ndarray
    block_address: int


@dataclass(eq=False)
class DeviceCall:
    """The base of both engines' calls: inputs and outputs from its bindings."""

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
    """Bind every tensor of ``graph`` for a call of these ``sizes``. ``names``: as in Engine.prepare.

    An input without a buffer is written by the host. An output without a buffer gets a new one in ``buffers``, with the sizes in
    ``limits``.
    """
    host_written = {name: tensor for name, tensor in graph.inputs.items() if names.get(name, name) not in buffers}
    lengths = {name: aligned(prod(_shape(tensor, sizes)) * dtype_of(tensor.dtype).itemsize) for name, tensor in host_written.items()}
    host_block = np.zeros(sum(lengths.values()), np.uint8)
    device_block = memory.zeros(host_block.size, "uint8")
    device_inputs, views, start = {}, {}, 0
    for name, tensor in graph.inputs.items():
        shape, dtype = _shape(tensor, sizes), dtype_of(tensor.dtype)
        if name in host_written:
            views[name] = host_block[start : start + prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
            device_inputs[name] = DeviceTensor(DeviceBuffer(device_block.address + start, prod(shape), dtype), shape)
            start += lengths[name]
        else:
            device_inputs[name] = DeviceTensor(buffers[names.get(name, name)], shape)
    device_outputs = {}
    for name, tensor in graph.outputs.items():
        buffer = names.get(name, name)
        if buffer not in buffers:
            buffers[buffer] = memory.zeros(prod(_shape(tensor, limits)), tensor.dtype)
        device_outputs[name] = DeviceTensor(buffers[buffer], _shape(tensor, sizes))
    return Bindings(views, LazyOutputs(memory, device_outputs), device_inputs, device_outputs, host_block, device_block.address)


def _shape(tensor: Tensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape)
