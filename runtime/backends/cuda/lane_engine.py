"""A graph with lanes in TensorRT. Every pass is filled up to one of a few sizes: a row costs nothing on a GPU, a new shape does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from ...manifest.graphs import Graph, Tensor
from ..base import DeviceOutputs
from ..lane_cache import LaneRows, head_rows, row_axis, shares
from .bindings import LazyOutputs
from .lane_pages import DevicePages
from .tensorrt import TrtEngine, no_profile

Range = tuple[int, int, int]


@dataclass(frozen=True)
class Block:
    """Consecutive pages of a pass."""

    first: int
    count: int


class DeviceLanesEngine:
    """Runs a plan with lanes over its pages. ``spans``: numbers of slots that a pass may read. For one thread at a time.

    A pass that no optimization profile admits is divided between its lanes. All pages between those of its lanes take part in it: what it
    writes there lies in their last slots, which no text reaches (`manifest/check.py`).
    """

    takes_chunks = False

    def __init__(self, name: str, engine: TrtEngine, graph: Graph, pages: DevicePages, spans: Sequence[int]) -> None:
        self._name, self._engine, self._pages, self._spans = name, engine, pages, spans
        self._profiles = sorted(graph.profiles, key=lambda profile: profile["N"][2])
        self._outputs = {name: tensor for name, tensor in graph.outputs.items() if not name.startswith("present.")}
        self._names = [pages.names(first) for first in range(pages.pool.count)]

    def run(
        self, lanes: Sequence[LaneRows], hidden: np.ndarray | None = None, width: int = 0, chunk_last: bool = False
    ) -> Sequence[Mapping[str, np.ndarray]]:
        assert not chunk_last
        block = self._block([lane.cache.pages[0] for lane in lanes])
        sizes = self._sizes(lanes, block, width)
        if sizes is None:
            return self._divided(lanes, hidden, width)
        call = self._engine.prepare(self._names[block.first], **sizes)
        self._fill(call.inputs, lanes, block)
        if hidden is not None:
            call.inputs["hidden"][0, : len(hidden)] = hidden
        call.run()
        outputs, read, parts = call.outputs, dict[str, np.ndarray](), shares(lanes)
        assert isinstance(outputs, LazyOutputs)
        counts = {dim: part.stop for dim, part in parts[-1].items()}
        return [LaneOutputs(outputs, self._outputs, own, counts, read) for own in parts]

    def _divided(self, lanes: Sequence[LaneRows], hidden: np.ndarray | None, width: int) -> list[dict[str, np.ndarray]]:
        """Several passes. What the first ones gave is read before the next one overwrites it."""
        if len(lanes) == 1:
            raise no_profile(self._name, {"n": len(lanes[0])})
        half, found = len(lanes) // 2, []
        rows = sum(map(len, lanes[:half]))
        for part, own in ((lanes[:half], slice(rows)), (lanes[half:], slice(rows, None))):
            found += [dict(each) for each in self.run(part, None if hidden is None else hidden[own], width)]
        return found

    def _block(self, pages: Sequence[int]) -> Block:
        """The pages of a pass: a power of two of them, at a multiple of it, or all pages; so that few blocks exist."""
        count = 1
        while count < self._pages.pool.count:
            first = min(min(pages) // count * count, self._pages.pool.count - count)
            if max(pages) < first + count:
                return Block(first, count)
            count *= 2
        return Block(0, self._pages.pool.count)

    def _sizes(self, lanes: Sequence[LaneRows], block: Block, width: int) -> dict[str, int] | None:
        """Sizes of the call, by the smallest profile that admits the pass. None if there is none."""
        rows, heads = sum(map(len, lanes)), sum(len(lane.heads) for lane in lanes)
        needed = {"N": rows, "B": block.count, "n": max(map(len, lanes)), "r": heads}
        needed["span"] = next(span for span in self._spans if span >= max(lane.start + len(lane) for lane in lanes))
        if width:
            needed |= {"w": max(lane.mask.shape[1] for lane in lanes), "k": width}
        for profile in self._profiles:
            if all(needed[dim] <= most for dim, (_, _, most) in profile.items()):
                return {dim: _filled(dim, size, profile[dim]) for dim, size in needed.items()}
        return None

    def _fill(self, inputs: Mapping[str, np.ndarray], lanes: Sequence[LaneRows], block: Block) -> None:
        """Write the inputs that say where rows lie and what they attend to."""
        pad, tree_mask, flat, past = (inputs[name] for name in ("pad", "tree_mask", "flat", "past"))
        write = inputs.get("write", past)  # the target writes behind what is committed
        columns, start = np.arange(pad.shape[1]), 0
        pad[:], tree_mask[:] = 0, False
        past[:] = write[:] = self._pages.page_slots - len(columns)
        for lane in lanes:
            page, own = lane.cache.pages[0] - block.first, np.minimum(columns, len(lane) - 1)
            pad[page], past[page], write[page] = start + own, lane.past, lane.start
            tree_mask[page, :, : lane.mask.shape[1]] = lane.mask[own]
            rows = slice(start, start + len(lane))
            inputs["tokens"][0, rows], inputs["positions"][0, rows] = lane.tokens, lane.positions
            flat[rows] = page * len(columns) + columns[: len(lane)]
            start = rows.stop
        heads = head_rows(lanes)
        inputs["tokens"][0, start:], inputs["positions"][0, start:], flat[start:] = 0, 0, flat[0]
        inputs["rows"][: len(heads)], inputs["rows"][len(heads) :] = heads, heads[0]

    def warm_up(self) -> None:
        """Run passes of every number of rows over the first lanes, with equally long trees, so that their kernels are there before the
        first request. Others are prepared when they first occur. The cache is empty afterwards."""
        counts = sorted({*(1 << power for power in range(self._pages.pool.count.bit_length())), self._pages.pool.count})
        for profile, count in product(self._profiles, [each for each in counts if each <= self._pages.pool.count]):
            rows = profile["N"][1]
            columns = -(-rows // count)
            if count > min(rows, profile["B"][2]) or columns > profile["n"][2]:
                continue
            fixed = {"N": rows, "B": count, "n": _filled("n", columns, profile["n"]), "r": profile["r"][1]}
            fixed |= {"k": profile["k"][2]} if "k" in profile else {}
            for span, masked in product(self._spans, sorted({*profile.get("w", (0,))[1:]} or {0})):
                call = self._engine.prepare(self._names[0], **fixed, span=span, **({"w": masked} if "w" in profile else {}))
                call.run()
        self._pages.clear(range(self._pages.pool.count))


def _filled(dim: str, size: int, sizes: Range) -> int:
    """The size of a call in which ``size`` are needed: of columns the next power of two, of pages and slots just these, of candidates the
    most, and else what the profile is optimal for, or its most."""
    least, usual, most = sizes
    if dim in ("B", "span"):
        return size
    if dim == "n":
        return max(least, min(1 << (size - 1).bit_length(), most))
    return most if dim == "k" or size > usual else usual


@dataclass
class LaneOutputs(DeviceOutputs):
    """One lane's outputs of a pass, copied to the host when they are used. What is small is copied once for all lanes.

    ``own``, ``counts``: the lane's part of the pass's rows, and how many there are, by the names of `row_axis`. ``read``: what was copied.
    """

    outputs: LazyOutputs
    tensors: Mapping[str, Tensor]
    own: Mapping[str, slice]
    counts: Mapping[str, int]
    read: dict[str, np.ndarray]
    _logits: np.ndarray | None = field(default=None, init=False)

    def __getitem__(self, name: str) -> np.ndarray:
        axis, dim = row_axis(self.tensors[name])
        if name == "logits":
            if self._logits is None:
                self._logits = self.outputs.rows(name, axis, self.own[dim])
            return self._logits
        if name not in self.read:
            self.read[name] = self.outputs.rows(name, axis, slice(0, self.counts[dim]))
        found = self.read[name]
        return found[:, self.own[dim]] if axis else found[self.own[dim]]

    def element(self, name: str, row: int, column: int) -> float:
        if self._logits is not None:
            return float(self._logits[0, row, column])
        _, dim = row_axis(self.tensors[name])
        return self.outputs.element(name, self.own[dim].start + row, column)

    def row(self, name: str, row: int) -> np.ndarray:
        return np.asarray(self[name][0, row])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
