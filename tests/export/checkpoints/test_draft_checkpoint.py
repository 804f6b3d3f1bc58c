"""Reading drafts: captured layers, vocabulary, and what resps-export says about a draft that cannot be right."""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.checkpoints.draft_checkpoint import open_draft
from export.checkpoints.fetch import open_checkpoint
from export.cli import command
from export.graphs.layers import PRECISIONS
from runtime.console import run_command
from runtime.decoding.tree import Tree
from runtime.manifest.load import load_manifest
from tests.support.ended import Ended
from tests.support.tiny import VOCAB, reference, write_checkpoint
from tests.support.tiny_drafts import DRAFT_VOCAB, FAMILIES, TinyDraft, write_draft

LAYERS = 10
PROMPT = [5, 17, 301, 44, 9]


@dataclass(frozen=True)
class Place:
    """Where a test's target, draft and engines lie."""

    target: Path
    model: Any
    draft: Path
    engines: Path

    def write(self, family: str = "specforge", **switches: Any) -> TinyDraft:
        return write_draft(self.draft, family, self.model, **switches)

    def tokens(self) -> list[int]:
        """Of the draft's vocabulary, as read."""
        return list(open_draft(self.draft, open_checkpoint(self.target)).tokens)


Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A target of ten layers: the usual captured ones are then distinct in every convention."""
    path = tmp_path_factory.mktemp("target") / "tiny"
    return path, write_checkpoint(path, num_hidden_layers=LAYERS)


@pytest.fixture
def place(shared: tuple[Path, Any], tmp_path: Path) -> Place:
    return Place(*shared, tmp_path / "draft", tmp_path / "engines")


@pytest.fixture
def run(place: Place, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command on the target and the draft in this process; further arguments may override these."""

    def run(*arguments: str, draft: bool = True) -> Ended:
        capfd.readouterr()
        base = ["--weights", str(place.target), "--out", str(place.engines), "--max-context", "64"]
        base += ["--draft-weights", str(place.draft)] if draft else []
        code = run_command(command, "resps-export", [*base, *arguments])
        return Ended(code, *capfd.readouterr())

    return run


def expect_refused(place: Place, ended: Ended, says: str) -> None:
    """One line, exit code 1, and nothing left behind."""
    assert ended.code == 1, ended
    assert says in ended.complaint
    assert not place.engines.exists() or not list(place.engines.iterdir())


# Captured layers, in our convention, for what the config says: (at the top?, ids).
CAPTURED: Mapping[str, tuple[bool, Sequence[int] | None, tuple[int, ...]]] = {
    "none": (False, None, (2, 5, 7)),
    "usual-leaving": (False, [1, 4, 6], (2, 5, 7)),
    "usual-entering-nested": (False, [2, 5, 7], (2, 5, 7)),
    "usual-entering": (True, [2, 5, 7], (2, 5, 7)),
    "usual-leaving-at-top": (True, [1, 4, 6], (2, 5, 7)),
    "unsorted": (False, [6, 1, 4], (2, 5, 7)),
    "leaving": (False, [0, 3, 8], (1, 4, 9)),
    "entering": (True, [0, 3, 8], (0, 3, 8)),
    "two": (True, [1, 8], (1, 8)),
    "last-leaving": (False, [1, 4, 9], (2, 5, 10)),
    "last-entering": (True, [3, 10], (3, 10)),
}


@pytest.mark.parametrize("name", CAPTURED)
def test_target_hands_out_the_layers_that_the_draft_reads(place: Place, run: Run, name: str) -> None:
    at_top, ids, captured = CAPTURED[name]
    place.write("speculators" if at_top else "specforge", ids=ids, ids_at_top=at_top)
    assert run().code == 0
    manifest = load_manifest(place.engines / "tiny")
    assert manifest.shape.captured_layers == captured
    assert manifest.graphs["target"].outputs["features"].shape == (1, "n", 64 * len(captured))
    features = target_features(place.engines / "tiny")
    last: list[torch.Tensor] = []  # transformers norms the stream that leaves the last layer
    with torch.no_grad():
        hook = place.model.model.layers[-1].register_forward_hook(lambda *each: last.append(each[2]))
        streams = reference(place.model, PROMPT)[1]
        hook.remove()
    streams[LAYERS] = last[0][0].numpy()
    np.testing.assert_allclose(features, np.concatenate([streams[layer] for layer in captured], axis=-1), rtol=0, atol=1e-4)


def target_features(directory: Path) -> np.ndarray:
    """[n, F] of PROMPT."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(str(directory / "target.onnx"), options, providers=["CPUExecutionProvider"])
    tree = Tree.chain(PROMPT)
    feeds: dict[str, np.ndarray] = {"tokens": tree.tokens[None], "depth": tree.depth[None], "tree_mask": tree.mask}
    feeds |= {"past": np.zeros(1, np.int64), "slots": np.arange(16), "rows": np.arange(1)}
    feeds |= {each.name: np.zeros((1, 2, 16, 16), np.float32) for each in session.get_inputs() if each.name.startswith("past.")}
    return np.asarray(session.run(["features"], feeds)[0][0])


def members(tokens: torch.Tensor, size: int = VOCAB) -> torch.Tensor:
    """A t2d."""
    return torch.zeros(size, dtype=torch.bool).index_fill(0, tokens, True)


EVEN = torch.arange(0, 2 * DRAFT_VOCAB, 2)  # as offsets these are every third token


@pytest.mark.parametrize("family", FAMILIES)
def test_offsets_and_ids_are_the_same_vocabulary(place: Place, family: str) -> None:
    tokens = place.write(family).tokens
    assert place.tokens() == tokens.tolist()
    place.write(family, stored={"d2t": tokens, "t2d": None})
    assert place.tokens() == tokens.tolist()
    place.write(family, stored={"d2t": tokens.int(), "t2d": members(tokens)})
    assert place.tokens() == tokens.tolist()
    backwards = tokens.flip(0)
    place.write(family, stored={"d2t": backwards})
    assert place.tokens() == backwards.tolist()


@pytest.mark.parametrize("expected", [EVEN, EVEN + torch.arange(DRAFT_VOCAB)], ids=["ids", "offsets"])
def test_membership_decides_where_both_readings_are_possible(place: Place, expected: torch.Tensor) -> None:
    place.write(stored={"d2t": EVEN, "t2d": members(expected)})
    assert place.tokens() == expected.tolist()


@pytest.mark.parametrize("stored", [{"d2t": None, "t2d": None}, {}])
def test_full_vocabulary_needs_no_map(place: Place, stored: Mapping[str, torch.Tensor | None]) -> None:
    place.write(vocab=VOCAB, stored=stored, config={"draft_vocab_size": None})
    assert place.tokens() == list(range(VOCAB))


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ({"d2t": None, "t2d": None}, "no d2t"),
        ({"d2t": EVEN, "t2d": None}, "offsets and as ids"),
        ({"d2t": EVEN + VOCAB}, "no 96 distinct tokens"),
        ({"d2t": -1 - torch.arange(DRAFT_VOCAB), "t2d": None}, "no 96 distinct tokens"),
        ({"d2t": -(torch.arange(DRAFT_VOCAB) // 2), "t2d": None}, "no 96 distinct tokens"),
        ({"d2t": EVEN, "t2d": members(EVEN + 1)}, "no 96 distinct tokens"),
        ({"d2t": EVEN, "t2d": torch.ones(VOCAB, dtype=torch.bool)}, "no 96 distinct tokens"),
        ({"d2t": EVEN, "t2d": members(EVEN, VOCAB - 1)}, "no 96 distinct tokens"),
        ({"d2t": EVEN[:-1]}, "95 entries"),
        ({"d2t": EVEN.repeat(2)}, "192 entries"),
    ],
)
def test_vocabulary_that_cannot_be_right(place: Place, run: Run, stored: Mapping[str, torch.Tensor | None], says: str) -> None:
    place.write(stored=stored)
    expect_refused(place, run(), says)


def eagle_1() -> dict[str, torch.Tensor | None]:
    """What an EAGLE-1 draft has and lacks: one feature beside the embedding, and a plain layer."""
    gone = dict.fromkeys(("midlayer.hidden_norm.weight", "midlayer.input_layernorm.weight", "norm.weight", "lm_head.weight", "d2t", "t2d"))
    return {**gone, "fc.weight": torch.zeros(64, 128), "fc.bias": torch.zeros(64)}


@pytest.mark.parametrize(
    ("switches", "says"),
    [
        ({"config": {"vocab_size": 2 * VOCAB}}, "vocabulary of 640 tokens, the target has 320"),
        ({"config": {"target_hidden_size": 128}}, "features of 128 numbers, the target's have 64"),
        ({"hidden": 32, "config": {"target_hidden_size": None}}, "features of 32 numbers"),
        ({"stored": {"fc.weight": torch.zeros(64, 3 * 128)}}, "fc has shape [64, 384]"),
        ({"captured": 2}, "fc has shape [64, 128]"),
        ({"stored": eagle_1()}, "no EAGLE-3 draft"),
        ({"stored": {"midlayer.mlp.up_proj.weight": None}}, "lacks model.layers.0.mlp.up_proj.weight"),
        ({"stored": {"norm.weight": None}}, "lacks model.norm.weight"),
        ({"stored": {"lm_head.bias": torch.zeros(DRAFT_VOCAB)}}, "does not use: lm_head.bias"),
        ({"stored": {"midlayer.self_attn.q_norm.weight": torch.ones(16)}}, "does not use: model.layers.0.self_attn.q_norm.weight"),
        ({"stored": {"lm_head.weight": torch.zeros(DRAFT_VOCAB - 1, 64)}}, "config and weights differ"),
        ({"stored": {"midlayer.hidden_norm.weight": torch.ones(32)}}, "config and weights differ"),
        ({"config": {"intermediate_size": 128}}, "config and weights differ"),
        ({"config": {"num_hidden_layers": 2}}, "lacks model.layers.1."),
        ({"config": {"fc_norm": True}}, "contradictory: fc_norm is true"),
        ({"norm_before_fc": True, "config": {"norm_before_fc": False}}, "contradictory: norm_before_fc is false"),
        ({"fc_norm": True, "stored": {"fc_norm.2.weight": None}}, "lacks model.fc_norm.2.weight"),
        ({"config": {"eagle_config": {"use_mtp_layernorm": True}}}, "use_mtp_layernorm = True"),
        ({"config": {"eagle_config": {"use_aux_hidden_state": False}}}, "use_aux_hidden_state = False"),
        ({"config": {"eagle_config": [1]}}, "holds a value that cannot be used"),
        ({"config": {"draft_vocab_size": "many"}}, "holds a value that cannot be used"),
        ({"config": {"draft_vocab_size": 95}}, "d2t has 96 entries, the config says 95"),
        ({"config": {"transformer_layer_config": "llama"}}, "holds a value that cannot be used"),
        ({"config": {"speculators_model_type": "eagle"}}, "speculator of type 'eagle'"),
        ({"config": {"model_type": "gpt_oss"}}, "'gpt_oss' is not supported"),
        ({"config": {"hidden_size": None}}, "lacks 'hidden_size'"),
        ({"hidden": 32}, "lacks model.embed_tokens.weight"),
        ({"hidden": 32, "embedding": "own", "own_head": False}, "has no lm_head"),
        ({"config": {"embed_requires_grad": True}}, "lacks model.embed_tokens.weight"),
        ({"ids": [1, 4, 10]}, "reads layers [1, 4, 10], the target has 10"),
        ({"ids": [-2, 4, 7]}, "reads layers [-2, 4, 7]"),
        ({"ids": [2, 5, 11], "ids_at_top": True}, "reads layers [2, 5, 11]"),
        ({"ids": ["low", "middle", "high"]}, "must be a list of whole numbers"),
        ({"config": {"eagle_config": {"eagle_aux_hidden_state_layer_ids": []}}}, "must be a list of whole numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_draft(place: Place, run: Run, switches: Mapping[str, Any], says: str) -> None:
    place.write(**switches)
    expect_refused(place, run(), says)


@pytest.mark.parametrize("family", FAMILIES)
def test_truncated_file(place: Place, run: Run, family: str) -> None:
    place.write(family)
    (file,) = (file for file in place.draft.iterdir() if file.suffix in (".bin", ".safetensors"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    expect_refused(place, run(), f"cannot read {file}")


def test_pickle_that_holds_more_than_tensors(place: Place, run: Run) -> None:
    place.write("eagle")
    file = place.draft / "pytorch_model.bin"
    torch.save({**torch.load(file, weights_only=True), "made": datetime.date(2025, 1, 1)}, file)
    expect_refused(place, run(), "holds more than tensors")


def test_draft_that_is_not_there(place: Place, run: Run) -> None:
    expect_refused(place, run(), f"there is no draft at {place.draft}")
    expect_refused(place, run("--dry-run"), f"there is no draft at {place.draft}")
    place.draft.write_text("{}")
    expect_refused(place, run(), f"there is no draft at {place.draft}")
    place.draft.unlink()
    place.draft.mkdir()
    expect_refused(place, run(), "config.json is missing")
    expect_refused(place, run("--dry-run"), "config.json is missing")
    place.write()
    (place.draft / "model.safetensors").unlink()
    expect_refused(place, run(), "holds no weights")


def test_weights_beyond_the_draft_precision(place: Place, run: Run) -> None:
    place.write(stored={"fc.weight": torch.full((64, 192), 1e6, dtype=torch.bfloat16)})
    expect_refused(place, run("--draft-precision", "fp16"), "choose another --draft-precision")


def test_contradictory_options_are_usage_errors(place: Place, run: Run) -> None:
    place.write()
    for arguments, draft, says in (
        (["--draft-precision", "fp16"], False, "--draft-precision needs a draft"),
        (["--draft-precision", "fp16", "--dry-run"], False, "--draft-precision needs a draft"),
        (["--no-draft"], True, "--no-draft goes with none of"),
        (["--no-draft", "--draft-precision", "fp16"], False, "--no-draft goes with none of"),
        (["--draft-precision", "fp8"], True, "fp8"),
    ):
        ended = run(*arguments, draft=draft)
        assert ended.code == 2
        assert says in ended.complaint
    assert not place.engines.exists()


def test_dry_run_shows_the_draft(place: Place, run: Run) -> None:
    place.write("eagle", config={"num_hidden_layers": 40})
    ended = run("--dry-run")
    assert ended.code == 0
    assert "draft.onnx, draft.data" in ended.out
    assert "of draft in int8" in ended.out
    plan = json.loads(run("--dry-run", "--json").out)
    assert (plan["draft"], plan["draft_precision"]) == ("draft", "int8")
    assert json.loads(run("--dry-run", "--json", "--precision", "bf16").out)["draft_precision"] == "bf16"
    alone = json.loads(run("--dry-run", "--json", "--no-draft", draft=False).out)
    assert (alone["draft"], alone["draft_precision"], alone["draft_bytes"]) == (None, None, 0)
    assert alone["disk_bytes"] == plan["disk_bytes"] - plan["draft_bytes"]
    assert not place.engines.exists()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("switches", [{}, {"hidden": 32, "embedding": "own", "captured": 3, "vocab": 64}], ids=["shared", "narrower"])
def test_manifest_and_size_of_the_draft(place: Place, run: Run, switches: Mapping[str, Any], precision: str) -> None:
    draft = place.write("eagle", **switches)
    assert run("--draft-precision", precision).code == 0
    directory = place.engines / "tiny"
    manifest = load_manifest(directory)
    described = manifest.draft
    assert described is not None
    assert (described.name, described.precision, described.layers) == ("draft", precision, 1)
    assert (described.hidden, described.vocab, described.trained_length) == (draft.head.shape[1], len(draft.tokens), 2048)
    assert (described.check.rows, described.capacity % 64) == (8, 0)
    assert {"fuse.onnx", "draft.onnx", "draft.data", "expand.onnx", "tree.onnx"} <= manifest.files.keys()
    stored = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for name in ("fuse", "draft")
        for tensor in onnx.load(directory / f"{name}.onnx", load_external_data=False).graph.initializer
        if tensor.external_data
    }
    assert {name for name, entry in stored.items() if entry["location"] == "target.data"} == (
        set() if switches else {"model.embed_tokens.weight"}
    )
    plan = json.loads(run("--draft-precision", precision, "--dry-run", "--json").out)
    assert plan["draft_bytes"] == (directory / "draft.data").stat().st_size


def change_weights(place: Place) -> None:
    place.write(seed=1)


def change_config(place: Place) -> None:
    place.write(config={"rope_theta": 1e6})


@pytest.mark.parametrize("change", [change_weights, change_config])
def test_changed_draft_is_exported_again(place: Place, run: Run, change: Callable[[Place], None]) -> None:
    place.write()
    assert "is ready" in run().out
    before = load_manifest(place.engines / "tiny")
    assert "up to date" in run().out
    change(place)
    assert "is ready" in run().out
    after = load_manifest(place.engines / "tiny")
    assert after.files["draft.data"] != before.files["draft.data"]
    assert after.files["target.data"] == before.files["target.data"]
    assert "up to date" in run().out


def test_draft_options_decide_what_is_up_to_date_and_rebuild_repeats_them(place: Place, run: Run) -> None:
    place.write()
    directory = place.engines / "tiny"
    assert "is ready" in run("--draft-precision", "fp32").out
    first = load_manifest(directory)
    assert shlex.split(first.rebuild)[:7] == [
        *("resps-export", "--weights", str(place.target), "--draft-weights", str(place.draft), "--draft-precision", "fp32")
    ]
    assert run_command(command, "resps-export", shlex.split(first.rebuild)[1:]) == 0
    assert load_manifest(directory) == first
    assert "is ready" in run().out
    assert "draft-precision" not in load_manifest(directory).rebuild
    assert "is ready" in run("--no-draft", draft=False).out
    alone = load_manifest(directory)
    assert alone.draft is None
    assert "--no-draft" in alone.rebuild
    assert not {"draft", "fuse", "expand", "tree"} & alone.graphs.keys()
    assert "draft.data" not in alone.files
    assert "up to date" in run(draft=False).out
