"""Optimization profiles: the sizes for which TensorRT chooses a plan's kernels. The runtime takes the first profile that admits a call.

A profile is {size: (smallest, optimal, largest)}. Sizes are named as in the graphs' inputs (design.md, section 4); those of `expand`
include its outputs. No profile allows exactly one row only, because TensorRT would then store every matrix a second time in another layout.
A range from one row to two, optimal for one, does not cause that (measured: 290 MB, as with an optimum of 8; SmolLM2-135M in fp16). Nor
does a single row of the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime.drafters.eagle import max_draft_rows, max_pool_size
from runtime.manifest.schema import Draft, Limits

Range = tuple[int, int, int]
Profile = Mapping[str, Range]
WIDTHS = (1, 2, 4, 8, 16)
SPAN = 512  # cache slots for which attention is optimized; a usual conversation


def all_profiles(limits: Limits, tree_sizes: Sequence[int], draft: Draft | None) -> dict[str, tuple[Profile, ...]]:
    """The profiles of every graph of an engine directory, by graph name."""
    profiles = {"target": target_profiles(limits, tree_sizes), "sample": sample_profiles(limits)}
    if draft:
        profiles |= {
            "fuse": fuse_profiles(limits, draft),
            "draft": draft_profiles(limits, draft),
            "expand": expand_profiles(limits, draft),
            "tree": ({"p": _up_to(max_pool_size(draft), 128), "n": _up_to(limits.tree_nodes, 32)},),
        }
    return profiles


def target_profiles(limits: Limits, tree_sizes: Sequence[int]) -> tuple[Profile, ...]:
    """One profile for each tree size, then one for chunks of the prompt."""
    span = _up_to(limits.capacity, SPAN)
    # r = 1 keeps trees of two nodes out of the profile for one.
    verify = [{"n": _rows(size), "r": _all(size), "span": span} for size in sorted(tree_sizes)]
    return (*verify, {"n": _rows(limits.prefill_rows), "r": _all(1), "span": span})


def fuse_profiles(limits: Limits, draft: Draft) -> tuple[Profile, ...]:
    """One profile for the rows that a round commits, then one for a chunk of the prompt. ``n`` is only the number of rows to gather
    from."""
    scored = _all(max(limits.tree_nodes, limits.prefill_rows))
    return ({"n": scored, "m": _up_to(draft.max_depth + 1, 4)}, {"n": scored, "m": _rows(max_draft_rows(limits, draft))})


def draft_profiles(limits: Limits, draft: Draft) -> tuple[Profile, ...]:
    """One profile for each level width, then one for many committed rows at once."""
    span, most = _up_to(draft.capacity, SPAN), max_draft_rows(limits, draft)
    widths = sorted({*(width for width in WIDTHS if width < draft.max_width), draft.max_width})
    levels = [
        {
            "m": _rows(width),
            "w": _up_to(1 + width * draft.max_depth, 1 + width * 3),
            "span": span,
            "r": _all(width),
            "k": _all(width),
        }
        for width in widths
    ]
    chunk = {"m": _rows(most), "w": _rows(most), "span": span, "r": _all(1), "k": _up_to(draft.max_width, 8)}
    return (*levels, chunk)


def expand_profiles(limits: Limits, draft: Draft) -> tuple[Profile, ...]:
    """One profile for the first level, then one for the others."""
    width, pool, rows = draft.max_width, max_pool_size(draft), _all(max_draft_rows(limits, draft))
    columns, usual = 1 + width * draft.max_depth, min(8, width)
    one, beams, first = _all(1), _up_to(width, usual), _up_to(1 + width, 1 + usual)
    root = {"b": one, "k": beams, "m": rows, "w": one, "p": one, "v": first, "q": first}
    widest = 1 + usual * 3
    level = {"b": beams, "k": beams, "m": rows, "w": _up_to(columns, widest), "p": _up_to(pool, 128)}
    return (root, {**level, "v": _up_to(columns, widest + usual), "q": _up_to(pool, 128 + usual**2)})


def sample_profiles(limits: Limits) -> tuple[Profile, ...]:
    """One profile for a single row, then one for a whole tree. Both take a uniform for every slot."""
    positions = (limits.capacity,) * 3
    return ({"n": _all(1), "p": positions}, {"n": _all(limits.tree_nodes), "p": positions})


def _all(most: int) -> Range:
    """From 1 to ``most``, optimal for ``most``."""
    return 1, most, most


def _up_to(most: int, usual: int) -> Range:
    """From 1 to ``most``, optimal for ``usual``."""
    return 1, min(usual, most), most


def _rows(most: int) -> Range:
    """Rows of a matrix product: as `_all`, but two rows are always allowed (see the module's docstring)."""
    return 1, most, max(most, 2)
