"""Exported drafts of every published family in ONNX Runtime equal torch, on committed rows and on trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from export.checkpoints.draft_checkpoint import open_draft
from export.checkpoints.fetch import open_checkpoint
from export.draft_build import write_draft as export_draft
from export.graphs.builder import BFLOAT16, FLOAT, FLOAT16
from export.graphs.embedding import Embedding
from export.graphs.precision import NUMPY_TYPES, PRECISIONS
from export.graphs.weights import WeightFile
from tests.support.tiny import VOCAB, write_checkpoint
from tests.support.tiny_drafts import FAMILIES, TinyDraft, write_draft

EMBEDDING = "model.embed_tokens.weight"
HIDDEN, SLOTS, BEAMS, LEVELS = 64, 64, 4, 4
PARENTS = ((0, 0, 2, 3), (3, 1, 1, 0), (2, 0, 2, 1))  # of the beams of levels 2, 3 and 4, among those of the level before
RANKS = (0, 1, 0, 2)  # which of its parent's candidates a beam is


@dataclass
class Exported:
    """The two graphs of an exported draft in ONNX Runtime, and their cache."""

    directory: Path
    caches: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fuse, self.draft = (session(self.directory / f"{name}.onnx") for name in ("fuse", "draft"))
        for each in self.draft.get_inputs():
            if each.name.startswith("past."):
                kind = np.float16 if each.type == "tensor(float16)" else np.float32
                self.caches[each.name] = np.zeros((1, each.shape[1], SLOTS, each.shape[3]), kind)

    def fused(self, features: np.ndarray) -> np.ndarray:
        kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[self.fuse.get_inputs()[0].type]
        (hidden,) = self.fuse.run(None, {"features": features[None].astype(kind), "rows": np.arange(len(features))})
        return np.asarray(hidden)

    def run(
        self,
        tokens: np.ndarray,
        hidden: np.ndarray,
        depth: np.ndarray,
        mask: np.ndarray,
        past: int,
        write: int,
        rows: Sequence[int],
        k: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """next_hidden [1, m, H], log_probs and candidates [r, k]."""
        numbers = {"past": [past], "write": [write], "slots": range(SLOTS), "rows": rows, "beam": range(k)}
        feeds = {name: np.array(value, np.int64) for name, value in numbers.items()}
        feeds |= {"tokens": tokens[None], "hidden": hidden, "depth": depth[None], "tree_mask": mask}
        outputs = self.draft.run(None, {**feeds, **self.caches})
        self.caches = dict(zip(self.caches, outputs[3:], strict=True))
        return outputs[0], outputs[1], outputs[2]


def session(file: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # it warns that the cache is not shared between input and output, which is intended here
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


@dataclass
class Compared:
    """Feeds rows to the exported draft and to the reference, which computes all rows at once, and collects pairs (computed, expected).

    The reference of a drafted row reads the exported feature of the level before, so rounding does not accumulate over levels.
    """

    draft: TinyDraft
    exported: Exported
    window: int = SLOTS
    tokens: list[int] = field(default_factory=list)
    hidden: list[torch.Tensor] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    seen: list[list[int]] = field(default_factory=list)  # rows that each row attends to, itself included
    features: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    log_probs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, tokens: Sequence[int], hidden: Sequence[torch.Tensor], positions: Sequence[int], seen: list[list[int]]) -> None:
        self.tokens += tokens
        self.hidden += hidden
        self.positions += positions
        self.seen += seen

    def expect(self, following: np.ndarray, log_probs: np.ndarray, candidates: np.ndarray, rows: Sequence[int]) -> None:
        """Compare outputs of the rows added last. ``rows``: those with log_probs, whose candidates are the whole vocabulary."""
        mask = torch.zeros(len(self.seen), len(self.seen), dtype=torch.bool)
        for row, seen in enumerate(self.seen):
            mask[row, seen] = True
        hidden, expected = self.draft.forward(torch.tensor(self.tokens), torch.stack(self.hidden), torch.tensor(self.positions), mask)
        count = following.shape[1]
        self.features.append((following[0], hidden[-count:].numpy()))
        assert (np.sort(candidates) == np.sort(self.draft.tokens)).all()
        assert (np.diff(log_probs) <= 0).all()
        place = torch.full((VOCAB,), -1).index_put((self.draft.tokens,), torch.arange(len(self.draft.tokens)))
        of_draft = place[torch.from_numpy(candidates)]
        self.log_probs.append((log_probs, expected[-count:][list(rows)].gather(1, of_draft).numpy()))

    def extend(self, tokens: Sequence[int], features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Add committed rows, which overwrite drafted ones. Returns the last next_hidden and its candidates."""
        past, count = len(self.tokens), len(tokens)
        fused, exact = self.exported.fused(features), self.draft.fuse(torch.from_numpy(features))
        self.features.append((fused[0], exact.numpy()))
        rows = [count - 1, *range(count - 1)]  # in no particular order
        following, log_probs, candidates = self.exported.run(
            np.array(tokens), fused, np.arange(count), np.tri(count, dtype=bool), past, past, rows, len(self.draft.tokens)
        )
        first = max(0, past - self.window)
        self.add(tokens, list(exact), range(past, past + count), [list(range(first, row + 1)) for row in range(past, past + count)])
        self.expect(following, log_probs, candidates, rows)
        return following[:, -1:], candidates[0]

    def tree(self, last: np.ndarray, candidates: np.ndarray) -> None:
        """Add levels of BEAMS beams below the last committed row. Later rows overwrite their slots."""
        past, size = len(self.tokens), len(self.draft.tokens)
        saved = [list(each) for each in (self.tokens, self.hidden, self.positions, self.seen)]
        tokens, inputs, mask = candidates[:BEAMS], np.repeat(last, BEAMS, 1), np.eye(BEAMS, dtype=bool)
        for level in range(LEVELS):
            place = (np.full(BEAMS, level), mask, past, past + level * BEAMS)
            following, log_probs, found = self.exported.run(tokens, inputs, *place, range(BEAMS), size)
            _, fewer, best = self.exported.run(tokens, inputs, *place, [BEAMS - 1], BEAMS)
            assert (best == found[-1:, :BEAMS]).all()
            np.testing.assert_allclose(fewer, log_probs[-1:, :BEAMS], rtol=0, atol=1e-5)
            seen = [[*range(max(0, past - self.window), past), *(past + np.flatnonzero(row))] for row in mask]
            self.add(tokens.tolist(), list(torch.from_numpy(inputs[0]).float()), [past + level] * BEAMS, seen)
            self.expect(following, log_probs, found, range(BEAMS))
            if level < len(PARENTS):
                parents = list(PARENTS[level])
                tokens, inputs = found[parents, list(RANKS)], following[:, parents]
                mask = np.concatenate([mask[parents], np.eye(BEAMS, dtype=bool)], axis=1)
        self.tokens, self.hidden, self.positions, self.seen = saved

    @property
    def difference(self) -> float:
        return max(float(np.abs(actual - expected).max()) for actual, expected in self.features + self.log_probs)

    @property
    def kl(self) -> float:
        return float(np.mean([(np.exp(expected) * (expected - actual)).sum(-1).mean() for actual, expected in self.log_probs]))


def compared(draft: TinyDraft, directory: Path, captured: int = 3, window: int = SLOTS) -> Compared:
    """Compare two chunks of committed rows, a tree, more committed rows in the slots of the tree, and another tree."""
    random = np.random.default_rng(2)
    result = Compared(draft, Exported(directory), window)
    for count, drafted in ((5, False), (4, True), (3, True)):
        last, candidates = result.extend(
            random.integers(0, VOCAB, count).tolist(), random.standard_normal((count, captured * HIDDEN), np.float32)
        )
        if drafted:
            result.tree(last, candidates)
    return result


@dataclass(frozen=True)
class TargetOnDisk:
    path: Path
    model: Any


@pytest.fixture(scope="module", params=["tied"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TargetOnDisk:
    """A tiny llama on disk. It has ten layers, so that EAGLE-3's usual captured layers are distinct."""
    path = tmp_path_factory.mktemp("target") / "target"
    return TargetOnDisk(path, write_checkpoint(path, tied=request.param == "tied", num_hidden_layers=10))


def exported(scratch: Path, target: TargetOnDisk, draft: Path, precision: str = "fp32", kind: int = FLOAT) -> Path:
    """Export the draft's graphs only. ``kind``: ONNX type of the target's embedding and features."""
    checkpoint = open_checkpoint(target.path)
    with WeightFile(scratch / "target.data") as weights:
        table = checkpoint.read(EMBEDDING)
        embedding = weights.add(EMBEDDING, kind, table.shape, [table.astype(NUMPY_TYPES[kind])])
    precisions = {FLOAT: "fp32", FLOAT16: "fp16", BFLOAT16: "bf16"}
    export_draft(scratch, open_draft(draft, checkpoint), precision, PRECISIONS[precisions[kind]], 128, Embedding(embedding))
    return scratch


SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "norm_before_residual": {"norm_before_residual": True},
    "not-norm_before_residual": {"norm_before_residual": False},
    "norm_output": {"norm_output": True},
    "norm_before_fc": {"norm_before_fc": True},
    "fc_norm": {"fc_norm": True},
    "both-norms": {"fc_norm": True, "norm_before_fc": True},
    "shared-head": {"own_head": False},
    "stale-embedding": {"embedding": "stale"},
    "bias": {"bias": True},
    "qk-norm": {"qk_norm": True},
    "full-vocabulary": {"vocab": VOCAB},
    "two-layers-captured": {"ids": [2, 7], "fc_norm": True},
}
CASES = [
    *((family, name) for family in FAMILIES for name in ("plain", "norm_output", "shared-head", "stale-embedding")),
    *((family, name) for family in ("specforge", "speculators") for name in SWITCHES),
]


@pytest.mark.parametrize(("family", "switches"), sorted(set(CASES)))
def test_committed_rows_and_trees_equal_torch(tmp_path: Path, target: TargetOnDisk, family: str, switches: str) -> None:
    chosen = SWITCHES[switches]
    draft = write_draft(tmp_path / "draft", family, target.model, **chosen)
    directory = exported(tmp_path, target, tmp_path / "draft")
    assert compared(draft, directory, len(chosen.get("ids", range(3)))).difference < 1e-4


@pytest.mark.parametrize("norm_before_residual", [None, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_narrower_draft_has_its_own_embedding(tmp_path: Path, target: TargetOnDisk, layers: int, norm_before_residual: bool | None) -> None:
    """EAGLE's draft of the 70B target, and the speculators format. Of several layers only the first reads the embedding."""
    family = "speculators" if layers > 1 else "eagle"
    switches = {"hidden": 32, "layers": layers, "norm_before_residual": norm_before_residual}
    draft = write_draft(tmp_path / "draft", family, target.model, embedding="own", **switches)
    assert compared(draft, exported(tmp_path, target, tmp_path / "draft")).difference < 1e-4


def test_trained_embedding_is_used(tmp_path: Path, target: TargetOnDisk) -> None:
    draft = write_draft(tmp_path / "draft", "speculators", target.model, embedding="own")
    assert compared(draft, exported(tmp_path, target, tmp_path / "draft")).difference < 1e-4


@pytest.mark.parametrize("target", ["untied"], indirect=True)
def test_shared_head_of_an_untied_target(tmp_path: Path, target: TargetOnDisk) -> None:
    """Also if the draft's config says that its head is tied to its embedding, which is never meant."""
    draft = write_draft(tmp_path / "draft", "eagle", target.model, own_head=False, config={"tie_word_embeddings": True})
    assert compared(draft, exported(tmp_path, target, tmp_path / "draft")).difference < 1e-4


@pytest.mark.parametrize("norm_output", [False, True])
@pytest.mark.parametrize(
    "short", [{"max_position_embeddings": 6}, {"use_sliding_window": True, "sliding_window": 6}], ids=["end", "window"]
)
def test_draft_sees_no_further_back_than_it_was_trained_for(
    tmp_path: Path, target: TargetOnDisk, norm_output: bool, short: dict[str, int]
) -> None:
    draft = write_draft(tmp_path / "draft", "eagle", target.model, norm_output=norm_output, config=short)
    directory = exported(tmp_path, target, tmp_path / "draft")
    assert compared(draft, directory, window=6).difference < 1e-4
    assert compared(draft, directory).difference > 1e-2


@pytest.mark.parametrize("count", [1, 40])
def test_layer_count_of_eagles_own_config_is_the_targets(tmp_path: Path, target: TargetOnDisk, count: int) -> None:
    """EAGLE's code builds one layer whatever the config says (40 in yuhuili/EAGLE3-Vicuna1.3-13B)."""
    draft = write_draft(tmp_path / "draft", "eagle", target.model, vocab=VOCAB, config={"num_hidden_layers": count})
    assert compared(draft, exported(tmp_path, target, tmp_path / "draft")).difference < 1e-4


@pytest.mark.parametrize("kind", [FLOAT, FLOAT16, BFLOAT16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 1e-5), ("bf16", 1e-5), ("int8", 1e-3), ("int4", 0.05)])
def test_every_precision_stays_close(tmp_path: Path, target: TargetOnDisk, precision: str, limit: float, kind: int) -> None:
    """``kind``: ONNX type of the target's embedding and features."""
    draft = write_draft(tmp_path / "draft", "specforge", target.model, fc_norm=True)
    directory = exported(tmp_path, target, tmp_path / "draft", precision, kind)
    assert compared(draft, directory).kl < limit
