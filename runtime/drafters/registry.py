"""The drafters by name. A new one is a module with ``make(parts)`` and one entry here: every ``--draft`` takes its choices from here."""

from __future__ import annotations

from dataclasses import dataclass

Tree = tuple[int, int, int]
"""(nodes, depth, width), as in TreeSpec."""


@dataclass(frozen=True)
class DrafterKind:
    """One drafter. Plain values only, so that ``--help`` loads nothing heavy.

    ``module``: the module of this package whose ``make(parts: DrafterParts)`` makes one. ``tree``: its fixed tree before anything is tuned;
    ``quantized_tree``: the same beside an int8 or int4 target, where a row costs more; ``device_shape``: depth and width on a GPU, where
    a row costs little. ``lookup_rows``: lengths of the chains it verifies without drafting, to be prepared for.
    """

    name: str
    summary: str
    module: str
    tree: Tree
    quantized_tree: Tree
    device_shape: tuple[int, int] = (0, 0)
    lookup_rows: tuple[int, ...] = ()
    uses_draft_model: bool = False
    host_only: bool = False


_KINDS = (
    DrafterKind(
        "eagle+ngram",
        "EAGLE-3 draft model, and lookup where the text repeats itself (CPU only)",
        "suffix",
        tree=(5, 3, 2),
        quantized_tree=(3, 2, 2),
        lookup_rows=(3, 5, 8, 12),
        uses_draft_model=True,
        host_only=True,
    ),
    DrafterKind("eagle", "EAGLE-3 draft model", "eagle", (5, 3, 2), (3, 2, 2), (7, 8), uses_draft_model=True),
    DrafterKind("ngram", "lookup of repeated text, no draft model", "ngram", (6, 5, 2), (6, 5, 2), (5, 2)),
    DrafterKind("none", "plain decoding", "base", (1, 0, 0), (1, 0, 0)),
)
DRAFTERS = {kind.name: kind for kind in _KINDS}


def default_drafter(has_draft_model: bool, device: str) -> DrafterKind:
    """What drafts when nobody says otherwise."""
    if not has_draft_model:
        return DRAFTERS["ngram"]
    return DRAFTERS["eagle" if device == "cuda" else "eagle+ngram"]
