"""Optimization profiles: the sizes for which TensorRT chooses a plan's kernels. The runtime takes the first profile that admits a call.

A profile is {size: (smallest, optimal, largest)}. Sizes are named as in the graphs' inputs (design.md, section 4); those of `expand`
include its outputs. No profile allows exactly one row only, because TensorRT would then store every matrix a second time in another layout.
A range from one row to two, optimal for one, does not cause that (measured: 290 MB, as with an optimum of 8; SmolLM2-135M in fp16). Nor
does a single row of the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime.drafters.draft_model import max_draft_rows
from runtime.drafters.eagle import max_pool_size
from runtime.manifest.schema import Draft, Limits

from ..graphs.lanes.writers import DRAFT_LANES, TARGET_LANES

Range = tuple[int, int, int]
Profile = Mapping[str, Range]
WIDTHS = (1, 2, 4, 8, 16)
SPAN = 512  # cache slots for which attention is optimized; a usual conversation
LANE_ROWS = 64  # of a pass over several lanes, unless there are more lanes or a larger tree


def all_profiles(limits: Limits, tree_sizes: Sequence[int], draft: Draft | None, lanes: int) -> dict[str, tuple[Profile, ...]]:
    """The profiles of every graph that an engine directory may have, by graph name."""
    profiles = {
        "target": target_profiles(limits, tree_sizes),
        TARGET_LANES: target_lanes_profiles(limits, tree_sizes, lanes),
        "sample": sample_profiles(limits),
    }
    if draft:
        profiles |= {
            "fuse": fuse_profiles(limits, draft),
            "draft": draft_profiles(limits, draft),
            DRAFT_LANES: draft_lanes_profiles(limits, draft, lanes),
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


def target_lane_rows(tree_sizes: Sequence[int], lanes: int) -> list[int]:
    """Rows of the target's passes over several lanes that have a profile, ascending."""
    largest = max(tree_sizes)
    return sorted({*tree_sizes, *_doubling(max(lanes, largest, min(LANE_ROWS, lanes * largest)))})


def draft_lane_rows(max_width: int, max_depth: int, lanes: int) -> list[int]:
    """Rows of the draft's passes over several lanes that have a profile, ascending."""
    return _doubling(lanes * max(max_width, max_depth + 1))


def lane_columns(prefill_rows: int, max_depth: int) -> int:
    """Rows of one lane for which passes over several lanes have profiles, if no tree is larger. All pages of a pass are written in so many
    slots, so caches need as many behind a full context."""
    return max(prefill_rows, max_depth + 1)


def target_lanes_profiles(limits: Limits, tree_sizes: Sequence[int], lanes: int) -> tuple[Profile, ...]:
    """One profile for each number of rows, in whatever lanes they are, then one for a chunk of one lane's prompt."""
    span = _up_to(limits.capacity, SPAN)
    verify = [{**_in_lanes(rows, lanes, limits.tree_nodes), "r": _all(rows), "span": span} for rows in target_lane_rows(tree_sizes, lanes)]
    return (*verify, {**_in_lanes(limits.prefill_rows, 1, limits.prefill_rows), "r": _all(1), "span": span})


def draft_lanes_profiles(limits: Limits, draft: Draft, lanes: int) -> tuple[Profile, ...]:
    """One profile for each number of rows: of a level of all trees, or of the rows that a round commits. Then one for many committed rows
    of one lane."""
    span, most, width = _up_to(draft.capacity, SPAN), max_draft_rows(limits, draft), draft.max_width
    widest, usual = max(width, draft.max_depth + 1), min(8, width)
    counts = draft_lane_rows(width, draft.max_depth, lanes)
    common = {"span": span, "k": _up_to(width, usual)}
    level = {"w": _up_to(1 + width * draft.max_depth, 1 + usual * 3), **common}
    levels = [{**_in_lanes(rows, lanes, widest), "r": _all(rows), **level} for rows in counts]
    return (*levels, {**_in_lanes(most, 1, most), "r": _all(1), "w": _rows(most), **common})


def _in_lanes(rows: int, lanes: int, most: int) -> dict[str, Range]:
    """Sizes of a pass over ``rows`` rows in up to ``lanes`` lanes, with at most ``most`` in one of them; optimal for as many lanes as
    possible."""
    used = min(rows, lanes)
    return {"N": _rows(rows), "B": (1, used, lanes), "n": (1, -(-rows // used), max(2, min(rows, most)))}


def _doubling(most: int) -> list[int]:
    """1, 2, 4, ... up to the half of ``most``, and ``most``."""
    return [*(1 << power for power in range((most // 2).bit_length())), most]


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
