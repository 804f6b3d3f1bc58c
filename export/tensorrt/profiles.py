"""Optimization profiles: for which sizes a plan's kernels are chosen. The runtime takes the first one that admits a call.

A profile is {size: (least, best, largest)}. Sizes are those of the graphs' inputs (design.md, section 4) and, for `expand`, those of its
outputs too. No profile has a *static* single row: TensorRT would keep a second copy of every matrix, in another layout. From one row to
two with one as the best it does not (measured: 290 MB with either, SmolLM2-135M in fp16), nor for a single row of the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime.drafters.eagle import largest_pool, most_rows
from runtime.manifest.schema import Draft, Limits

Range = tuple[int, int, int]
Profile = Mapping[str, Range]
WIDTHS = (1, 2, 4, 8, 16)
SPAN = 512  # slots of an ordinary conversation, which attention is tuned for


def all_profiles(limits: Limits, tree_sizes: Sequence[int], draft: Draft | None) -> dict[str, tuple[Profile, ...]]:
    """For every graph of an engine directory."""
    profiles = {"target": target_profiles(limits, tree_sizes), "sample": sample_profiles(limits)}
    if draft:
        profiles |= {
            "fuse": fuse_profiles(limits, draft),
            "draft": draft_profiles(limits, draft),
            "expand": expand_profiles(limits, draft),
            "tree": ({"p": _up_to(largest_pool(draft), 128), "n": _up_to(limits.tree_nodes, 32)},),
        }
    return profiles


def target_profiles(limits: Limits, tree_sizes: Sequence[int]) -> tuple[Profile, ...]:
    """One for each tree size, then one for chunks of the prompt."""
    span = _up_to(limits.capacity, SPAN)
    # r = 1 keeps trees of two nodes out of the profile for one.
    verify = [{"n": _rows(size), "r": _all(size), "span": span} for size in sorted(tree_sizes)]
    return (*verify, {"n": _rows(limits.prefill_rows), "r": _all(1), "span": span})


def fuse_profiles(limits: Limits, draft: Draft) -> tuple[Profile, ...]:
    """What one round commits, then a chunk of the prompt. ``n`` only says where rows are taken from."""
    scored = _all(max(limits.tree_nodes, limits.prefill_rows))
    return ({"n": scored, "m": _up_to(draft.max_depth + 1, 4)}, {"n": scored, "m": _rows(most_rows(limits, draft))})


def draft_profiles(limits: Limits, draft: Draft) -> tuple[Profile, ...]:
    """One for each width of a level, then one for many committed rows at once."""
    span, most = _up_to(draft.capacity, SPAN), most_rows(limits, draft)
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
    """Below the root, then below a level."""
    width, pool, rows = draft.max_width, largest_pool(draft), _all(most_rows(limits, draft))
    columns, usual = 1 + width * draft.max_depth, min(8, width)
    one, beams, first = _all(1), _up_to(width, usual), _up_to(1 + width, 1 + usual)
    root = {"b": one, "k": beams, "m": rows, "w": one, "p": one, "v": first, "q": first}
    widest = 1 + usual * 3
    level = {"b": beams, "k": beams, "m": rows, "w": _up_to(columns, widest), "p": _up_to(pool, 128)}
    return (root, {**level, "v": _up_to(columns, widest + usual), "q": _up_to(pool, 128 + usual**2)})


def sample_profiles(limits: Limits) -> tuple[Profile, ...]:
    """One row, then a whole tree; a uniform for every slot."""
    positions = (limits.capacity,) * 3
    return ({"n": _all(1), "p": positions}, {"n": _all(limits.tree_nodes), "p": positions})


def _all(most: int) -> Range:
    """Up to ``most``, which is also the usual value."""
    return 1, most, most


def _up_to(most: int, usual: int) -> Range:
    return 1, min(usual, most), most


def _rows(most: int) -> Range:
    """Rows of a matrix product, of which at least two must be possible."""
    return 1, most, max(most, 2)
