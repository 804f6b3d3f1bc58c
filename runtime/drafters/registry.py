"""The registry of drafters, from which every ``--draft`` option takes its choices. To add a drafter, write a module with ``make(parts)``
and add one entry here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DrafterKind:
    """One drafter. Plain values only, so that ``--help`` loads nothing heavy.

    ``module``: the module of this package whose ``make(parts: DrafterParts)`` builds it. ``tree``: its default fixed tree, (nodes, depth,
    width). ``quantized_tree``: the same beside an int8 or int4 target, where each row costs more. ``device_shape``: depth and width on a
    GPU, where a row costs little. ``lookup_rows``: the lengths of its lookup chains; the runtime prepares for them. ``uses_draft_model``:
    whether it needs a draft model in the engine directory. ``looks_up``: whether it copies earlier text, past answers included.
    """

    name: str
    summary: str
    module: str
    tree: tuple[int, int, int]
    quantized_tree: tuple[int, int, int]
    device_shape: tuple[int, int] = (0, 0)
    lookup_rows: tuple[int, ...] = ()
    uses_draft_model: bool = False
    looks_up: bool = False


_KINDS = (
    DrafterKind(
        "eagle+ngram",
        "draft model (EAGLE-3, P-EAGLE, DFlash), and lookup where text repeats itself",
        "suffix",
        tree=(5, 3, 2),
        quantized_tree=(3, 2, 2),
        device_shape=(7, 8),
        lookup_rows=(3, 5, 8, 12),
        uses_draft_model=True,
        looks_up=True,
    ),
    DrafterKind("eagle", "draft model (EAGLE-3, P-EAGLE, DFlash)", "eagle", (5, 3, 2), (3, 2, 2), (7, 8), uses_draft_model=True),
    DrafterKind("ngram", "lookup of repeated text, no draft model", "ngram", (6, 5, 2), (6, 5, 2), (5, 2), looks_up=True),
    DrafterKind("none", "plain decoding", "none", (1, 0, 0), (1, 0, 0)),
)
PAST_MIB = 16
"""A server's memory for past answers if nothing else is asked for, in MiB."""
DRAFTERS = {kind.name: kind for kind in _KINDS}


def default_drafter(has_draft_model: bool, device: str) -> DrafterKind:
    """The drafter for ``device`` (cpu or cuda) if none is named."""
    if not has_draft_model:
        return DRAFTERS["ngram"]
    return DRAFTERS["eagle" if device == "cuda" else "eagle+ngram"]
