"""Draft training: the unrolled graph against a naive one and against the export's, the loss, and whole runs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from export.checkpoints.arch import Arch
from export.checkpoints.draft_checkpoint import HEAD, open_draft
from export.checkpoints.safetensors import SafetensorsCheckpoint
from export.graphs.layers import PRECISIONS
from export.parity.draft import reference_fuse, reference_pass
from export.training import cli as train_draft
from export.training.draft import Recipe, TorchDraft
from export.training.run import Training, TrainingSettings, finished, pack_run, recipe_fields, split
from export.training.shards import Conversation, Entry, ShardWriter, entries, read
from export.training.target import TorchTarget
from export.training.train import CHUNK, DECAY, Batch, SoftCrossEntropy, StepScore, Unroller, collate, total
from export.training.words import ANSWER, FORCED, PROMPT, Stretch, converse
from tests.support.tiny import VOCAB, write_checkpoint

CPU = torch.device("cpu")
STEPS = 4


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> SafetensorsCheckpoint:
    """A tiny llama whose rotary frequencies are rescaled, with a head of its own."""
    directory = tmp_path_factory.mktemp("target")
    write_checkpoint(directory, "llama-llama3", tied=False)
    return SafetensorsCheckpoint(directory)


def wild_draft(arch: Arch, size: int = 100) -> TorchDraft:
    """Nothing left at its start, matrices wide enough that attention picks single rows, and exactly representable in bfloat16."""
    generator = torch.Generator().manual_seed(3)
    draft = TorchDraft(Recipe.like(arch), torch.randperm(arch.vocab, generator=generator)[:size].sort().values)
    with torch.no_grad():
        for parameter in draft.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_((1 + 0.3 * noise if noise.dim() == 1 else 1.5 * noise * parameter.shape[-1] ** -0.5).bfloat16())
    return draft


def unroller_of(draft: TorchDraft, target: SafetensorsCheckpoint, steps: int = STEPS) -> Unroller:
    cos, sin = (torch.from_numpy(table) for table in target.arch.rope.tables(target.arch.head_dim, 128))
    embedding, head = (torch.from_numpy(target.read(name)) for name in ("model.embed_tokens.weight", "lm_head.weight"))
    return Unroller(draft, embedding, head, cos, sin, steps)


def conversation(length: int, seed: int, answers: Sequence[slice], target: SafetensorsCheckpoint) -> Conversation:
    """Random tokens and states, with clear favourites among the first 60 tokens; what is no answer is a prompt."""
    arch, head = target.arch, torch.from_numpy(target.read(HEAD))
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.full((length,), PROMPT, dtype=torch.uint8)
    for each in answers:
        kinds[each] = ANSWER
    return Conversation(
        torch.randint(arch.vocab, (length,), generator=generator, dtype=torch.int32),
        kinds,
        torch.randn(length, 3 * arch.hidden, generator=generator),
        2 * head[torch.randint(60, (length,), generator=generator)] + 0.3 * torch.randn(length, arch.hidden, generator=generator),
    )


def unrolled(unroller: Unroller, batch: Batch) -> tuple[list[StepScore], list[Tensor]]:
    """Scores, and what every step's logits were, [B, R, Vd]."""
    normed: list[Tensor] = []
    hook = unroller.draft.norm.register_forward_hook(lambda _module, _inputs, output: normed.append(output.detach()))
    scores = unroller(batch)
    hook.remove()
    return scores, [unroller.draft.lm_head(each).detach() for each in normed]


def rows_of(each: Conversation) -> list[int]:
    """Rows whose first guess, two tokens on, belongs to an answer."""
    return [row for row in range(len(each) - 2) if each.kinds[row + 2] == ANSWER]


def naive(draft: TorchDraft, target: SafetensorsCheckpoint, each: Conversation, row: int, steps: int) -> np.ndarray:
    """Logits of one row's steps, in float64 and one vector at a time: step 0 of the rows before it, then the chain that it begins."""
    w = {name: value.detach().double().numpy() for name, value in draft.state_dict().items()}
    arch, embedding, tokens = target.arch, target.read("model.embed_tokens.weight").astype(np.float64), each.tokens.tolist()
    cos, sin = (table.astype(np.float64) for table in arch.rope.tables(arch.head_dim, 128))

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return np.asarray(x / np.sqrt((x * x).mean() + arch.rms_eps) * w[f"{name}.weight"])

    def heads(part: str, x: np.ndarray, position: int) -> np.ndarray:
        vectors = (w[f"midlayer.self_attn.{part}_proj.weight"] @ x).reshape(-1, arch.head_dim)
        if part == "v":
            return np.asarray(vectors)
        first, second = np.split(vectors, 2, axis=-1)
        spun = (first + 1j * second) * (cos[position] + 1j * sin[position])
        return np.concatenate([spun.real, spun.imag], -1)

    def joined(token: int, feature: np.ndarray) -> np.ndarray:
        return np.concatenate([norm(embedding[token], "midlayer.input_layernorm"), norm(feature, "midlayer.hidden_norm")])

    features = each.captures.double().numpy() @ w["fc.weight"].T
    before = [(joined(tokens[at + 1], features[at]), at) for at in range(row)]
    keys, values = ([heads(part, x, at) for x, at in before] for part in "kv")
    feature, logits = features[row], []
    for step in range(steps):
        x = joined(tokens[row + 1 + step], feature)
        query, key, value = (heads(part, x, row + step) for part in "qkv")
        keys.append(key)
        values.append(value)
        context = []
        for head in range(arch.heads):
            shared = head // (arch.heads // arch.kv_heads)
            weights = np.exp([query[head] @ key[shared] / np.sqrt(arch.head_dim) for key in keys])
            context.append(sum(weight * value[shared] for weight, value in zip(weights / weights.sum(), values, strict=True)))
        feature = feature + w["midlayer.self_attn.o_proj.weight"] @ np.concatenate(context)
        y = norm(feature, "midlayer.post_attention_layernorm")
        gate, up = (w[f"midlayer.mlp.{part}_proj.weight"] @ y for part in ("gate", "up"))
        feature = feature + w["midlayer.mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
        logits.append(w["lm_head.weight"] @ norm(feature, "norm"))
    return np.stack(logits)


def test_rows_and_steps_pair_features_tokens_and_positions_as_a_chain_does(target: SafetensorsCheckpoint) -> None:
    draft = wild_draft(target.arch)
    each = conversation(20, 1, [slice(5, 12), slice(15, 20)], target)
    scores, logits = unrolled(unroller_of(draft, target), collate([each], CPU))
    rows = rows_of(each)
    assert rows == [*range(3, 10), *range(13, 18)]
    assert len(scores) == STEPS
    for place, row in enumerate(rows):
        steps = min(STEPS, len(each) - 2 - row)  # those that guess a token which is there
        expected = naive(draft, target, each, row, steps)
        actual = torch.stack([step[0, place] for step in logits[:steps]]).numpy()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def packed(draft: TorchDraft, out: Path, form: str = "specforge") -> Path:
    """``draft`` as a run that pack_run has read."""
    run = out / "run"
    run.mkdir(parents=True)
    torch.save({"draft": draft.state_dict(), "tokens": draft.tokens}, run / "state.pt")
    (run / "facts.json").write_text(json.dumps({"recipe": recipe_fields(draft.recipe)}))
    pack_run(run, out / form, form, "tiny/target")
    return out / form


@pytest.mark.parametrize("form", ["specforge", "speculators"])
def test_training_graph_is_the_inference_graph(tmp_path: Path, target: SafetensorsCheckpoint, form: str) -> None:
    """The packed draft in numpy: committed rows, and below one of them a chain that hands on its own features."""
    draft = wild_draft(target.arch)
    opened = open_draft(packed(draft, tmp_path, form), target)
    each = conversation(16, 2, [slice(4, 16)], target)
    _, logits = unrolled(unroller_of(draft, target), collate([each], CPU))
    tokens, base = each.tokens.numpy(), reference_fuse(opened, each.captures.numpy())
    for place, row in enumerate(rows_of(each)):
        hidden, steps = base[: row + 1], min(STEPS, len(each) - 2 - row)
        for step in range(steps):
            seen = row + 1 + step
            following, expected = reference_pass(
                opened, tokens[1 : 1 + seen], hidden, np.arange(seen), np.tri(seen, dtype=bool), PRECISIONS["fp32"].stored
            )
            actual = logits[step][0, place].log_softmax(-1).numpy()
            np.testing.assert_allclose(actual, expected[-1], rtol=0, atol=1e-4)
            hidden = np.concatenate([hidden, following[-1:]])


def expected_scores(unroller: Unroller, each: Conversation, logits: list[Tensor]) -> list[tuple[float, int, int, int]]:
    """Loss, rows, top1 and top3 of every step, from the definition; ``logits`` [R, Vd] of each step."""
    tokens, head, scores = unroller.draft.tokens.tolist(), unroller.head, []
    for step, guesses in enumerate(logits):
        loss, rows, first, third = 0.0, 0, 0, 0
        for place, row in enumerate(rows_of(each)):
            guessed = row + 2 + step
            if guessed >= len(each) or each.kinds[guessed] != ANSWER:
                continue
            truth = head @ each.final[guessed - 1]
            favourite = int(truth.argmax())
            if favourite not in tokens:
                continue
            loss -= float(truth[tokens].softmax(-1) @ guesses[place].log_softmax(-1))
            best = guesses[place].topk(3).indices.tolist()
            index = tokens.index(favourite)
            rows, first, third = rows + 1, first + (index == best[0]), third + (index in best)
        scores.append((loss, rows, first, third))
    return scores


def test_padding_and_other_conversations_change_nothing(target: SafetensorsCheckpoint) -> None:
    """Short and long, answers early and late: rows that fill up a short one must not count even where a later guess of theirs would."""
    unroller = unroller_of(wild_draft(target.arch, 200), target)
    with torch.no_grad():  # guesses like the target's, so that some are right
        unroller.draft.lm_head.weight[:40] *= 3
    every = [
        conversation(12, 3, [slice(4, 12)], target),
        conversation(30, 15, [slice(0, 30)], target),
        conversation(30, 5, [slice(8, 10), slice(14, 17)], target),
        conversation(9, 6, [], target),
    ]
    together, logits = unrolled(unroller, collate(every, CPU))
    sums = np.zeros((STEPS, 4))
    for index, each in enumerate(every):
        alone, its_logits = unrolled(unroller, collate([each], CPU))
        rows = len(rows_of(each))
        for step in range(STEPS):
            real = [place for place, row in enumerate(rows_of(each)) if row + 2 + step < len(each)]
            torch.testing.assert_close(logits[step][index, real], its_logits[step][0, real], rtol=0, atol=1e-4)
        expected = expected_scores(unroller, each, [step[0, :rows] for step in its_logits])
        for score, (loss, *counts) in zip(alone, expected, strict=True):
            assert [score.rows, score.top1, score.top3] == counts
            assert float(score.loss.detach()) == pytest.approx(loss, rel=1e-4, abs=1e-4)
        sums += expected
    assert sums[:, 1].min() > 10
    assert sums[:, 3].sum() > sums[:, 2].sum() > 0
    for score, (loss, *counts) in zip(together, sums, strict=True):
        assert [score.rows, score.top1, score.top3] == counts
        assert float(score.loss.detach()) == pytest.approx(loss, rel=1e-4)
    losses = [loss / rows * DECAY**step for step, (loss, rows, *_) in enumerate(sums)]
    assert float(total(together).detach()) == pytest.approx(sum(losses), rel=1e-4)


def gradients(unroller: Unroller, each: Conversation) -> list[Tensor]:
    unroller.draft.zero_grad()
    total(unroller(collate([each], CPU))).backward()
    return [parameter.grad.clone() for parameter in unroller.draft.parameters() if parameter.grad is not None]


def test_what_does_not_count_moves_nothing(target: SafetensorsCheckpoint) -> None:
    """Neither labels of other tokens than an answer's, nor anything that lies behind the last guess."""
    unroller = unroller_of(wild_draft(target.arch, 200), target)
    each = conversation(30, 7, [slice(6, 14), slice(19, 24)], target)
    expected = gradients(unroller, each)
    assert len(expected) == len(list(unroller.draft.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in expected)
    unanswered = torch.tensor([at + 1 >= len(each) or each.kinds[at + 1] != ANSWER for at in range(len(each))])
    each.final[unanswered] = torch.randn(int(unanswered.sum()), target.arch.hidden)
    each.tokens[24:] = 0
    each.captures[22:] = 0  # row 21 guesses token 23, the last of an answer
    for actual, gradient in zip(gradients(unroller, each), expected, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=0, atol=1e-5)
    each.captures[4:22] = 0
    assert any((actual - gradient).abs().max() > 1e-3 for actual, gradient in zip(gradients(unroller, each), expected, strict=True))


@pytest.mark.parametrize("rows", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 60])
def test_loss_and_its_gradients_equal_autograd(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    feature, weight, wanted = (torch.randn(*shape, generator=generator) for shape in ((rows, 24), (50, 24), (40, 50)))
    wanted, best = (3 * wanted).softmax(-1), wanted.argmax(-1)
    label = torch.randint(40, (rows,), generator=generator)
    results = []
    for fused in (True, False):
        inputs = feature.clone().requires_grad_(), weight.clone().requires_grad_()
        if fused:
            loss, ranks = SoftCrossEntropy.apply(*inputs, wanted, label, best)
        else:
            logits = inputs[0] @ inputs[1].T
            loss, ranks = -(wanted[label] * logits.log_softmax(-1)).sum(), (logits > logits.gather(1, best[label, None])).sum(-1)
        (0.3 * loss).backward()
        results.append((loss.detach(), *(each.grad for each in inputs), ranks))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()) if rows else 0)


def test_draft_begins_as_the_last_layer_of_the_target(target: SafetensorsCheckpoint) -> None:
    arch, read_from = target.arch, target.read
    torch.manual_seed(0)
    draft = TorchDraft(Recipe.like(arch), torch.tensor([3, 50, 7 * 13]))
    untouched = {name: value.clone() for name, value in draft.state_dict().items()}
    draft.start_from(target)
    state = draft.state_dict()
    stem = f"model.layers.{arch.layers - 1}."
    captures = torch.randn(2, 3 * arch.hidden)
    torch.testing.assert_close(draft.fc(captures), captures[:, 2 * arch.hidden :])
    for part in "qkv":
        name = f"self_attn.{part}_proj.weight"
        of_embedding, of_feature = state[f"midlayer.{name}"].chunk(2, -1)
        assert np.array_equal(of_feature, read_from(stem + name))
        torch.testing.assert_close(of_embedding, 0.1 * untouched[f"midlayer.{name}"].chunk(2, -1)[0])
    same = {name: name for name in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "post_attention_layernorm")}
    for name, source in {**same, "hidden_norm": "input_layernorm"}.items():
        assert np.array_equal(state[f"midlayer.{name}.weight"], read_from(f"{stem}{source}.weight"))
    assert np.array_equal(state["norm.weight"], read_from("model.norm.weight"))
    assert np.array_equal(state["lm_head.weight"], read_from("lm_head.weight")[[3, 50, 91]])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, target: SafetensorsCheckpoint) -> Path:
    """Eight conversations that the target wrote."""
    directory, choice = tmp_path_factory.mktemp("data"), random.Random(0)

    def scripts() -> Iterator[list[Stretch]]:
        while True:
            yield [Stretch(FORCED, [1]), Stretch(PROMPT, choice.choices(range(VOCAB), k=5)), Stretch(ANSWER, limit=26, temperature=1.0)]

    writer = ShardWriter(directory, "words-000")
    for each in islice(converse(TorchTarget(target, 4, 32, CPU, torch.float32), scripts(), 4, frozenset(), 0), 8):
        writer.add(each)
    writer.flush()
    return directory


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock for runs on which every update takes a second, so that they do not depend on the machine's speed."""
    now, update = [0.0], Training._update

    def timed(training: Training, group: Sequence[Entry]) -> None:
        update(training, group)
        now[0] += 1

    monkeypatch.setattr(Training, "_update", timed)
    monkeypatch.setattr("export.training.run.time", SimpleNamespace(monotonic=lambda: now[0]))


def same(first: Any, second: Any) -> bool:
    """Deep equality of states."""
    if isinstance(first, Tensor):
        return bool(torch.equal(first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def test_run_learns_a_few_conversations_by_heart(tmp_path: Path, target: SafetensorsCheckpoint, data: Path, seconds: None) -> None:
    training = Training(target, data, tmp_path, TrainingSettings(steps=3, vocab=256, rate=1e-2, batch_tokens=256, minutes=4, seed=0), CPU)
    learned, held_out = split(entries(data))
    assert (len(learned), len(held_out)) == (7, 1)
    before = training.agreement(learned)
    last = json.loads(list(training.go())[-1])
    assert last["updates"] == training.updates == 240
    assert last["tokens"] == training.seen
    assert max(first for first, _ in before) < 0.2
    assert min(first for first, _ in training.agreement(learned)) > 0.85
    assert max(last["top1"]) < 0.5  # not so what it was not shown: the target's words are noise
    assert finished(tmp_path) == json.dumps(last)


def test_run_that_was_stopped_goes_on_where_it_was_saved(
    tmp_path: Path, target: SafetensorsCheckpoint, data: Path, seconds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for interval in ("CHECKPOINT_SECONDS", "REPORT_SECONDS"):
        monkeypatch.setattr(f"export.training.run.{interval}", 10)
    settings = TrainingSettings(steps=2, vocab=64, rate=1e-3, batch_tokens=128, minutes=0.75, seed=0)
    stopped = Training(target, data, tmp_path, settings, CPU)
    lines = stopped.go()
    reported = [json.loads(next(lines))["updates"] for _ in range(2)]
    lines.close()  # type: ignore[attr-defined]
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert 0 < reported[0] < reported[1] == saved["updates"] < 45  # what was reported is saved
    resumed = Training(target, data, tmp_path, settings, CPU)
    for run in (stopped, resumed):
        assert (run.elapsed, run.updates, run.seen) == (saved["elapsed"], saved["updates"], saved["seen"])
        assert same(run.draft.state_dict(), saved["draft"])
        assert same(run.optimizer.state_dict(), saved["optimizer"])
        assert torch.equal(run.draft.tokens, saved["tokens"])
        assert torch.equal(run.unroller.small_head, run.unroller.head[saved["tokens"]])
    assert json.loads(list(resumed.go())[-1])["updates"] == resumed.updates == 45
    assert not same(resumed.draft.state_dict(), stopped.draft.state_dict())
    again = Training(target, data, tmp_path, settings, CPU)
    assert same(again.draft.state_dict(), resumed.draft.state_dict())
    assert list(again.go()) == []  # its minutes are used up
    assert not list(tmp_path.glob(".*"))


def test_run_without_a_conversation_to_train_on_is_refused(tmp_path: Path, target: SafetensorsCheckpoint, data: Path) -> None:
    settings = TrainingSettings(steps=30, vocab=64, rate=1e-3, batch_tokens=128, minutes=1, seed=0)
    with pytest.raises(ValueError, match="no conversation to train on"):
        next(Training(target, data, tmp_path, settings, CPU).go())


def test_packed_draft_names_its_tokens_and_has_its_weights(tmp_path: Path, target: SafetensorsCheckpoint) -> None:
    from safetensors.torch import load_file

    draft = wild_draft(target.arch)
    out = packed(draft, tmp_path)
    opened, tensors = open_draft(out, target), load_file(out / "model.safetensors")
    assert opened.tokens.tolist() == draft.tokens.tolist() == (tensors["d2t"] + torch.arange(100)).tolist()
    assert tensors["t2d"].nonzero()[:, 0].tolist() == draft.tokens.tolist()
    assert opened.own_head
    assert (opened.arch.layer.rope, opened.arch.captured) == (target.arch.rope, target.arch.captured)
    assert {opened.arch.norm_before_residual, opened.arch.norm_output, opened.arch.own_embedding} == {False}
    assert np.array_equal(opened.read(HEAD), draft.lm_head.weight.detach())
    assert {each.dtype for name, each in tensors.items() if name not in ("d2t", "t2d")} == {torch.bfloat16}


def test_commands_from_words_to_a_packed_draft(tmp_path: Path) -> None:
    """Also conversations from a file, which are fed as they stand: the end of an answer only where it was finished."""
    write_checkpoint(tmp_path / "target")
    talks: list[dict[str, Any]] = [
        {"prompt": "the cat", "answer": "sat on"},
        {"prompt": "a dog", "answer": "on the mat", "finished": False},
    ]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(each) + "\n" for each in talks))
    weights, shards = ["--weights", str(tmp_path / "target")], str(tmp_path / "data")

    def command(*arguments: str) -> str:
        result = CliRunner().invoke(train_draft.main, list(arguments))
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    command("answers", *weights, "--out", shards, "--batch", "3", "--capacity", "96", str(tmp_path / "some.jsonl"))
    raw = train_draft.open_source("smollm2-135m", weights[1]).text.encode_raw
    found = [read(entry) for entry in entries(tmp_path / "data")]
    expected = [
        [*raw("user: "), *raw(each["prompt"]), *raw("\n"), *raw(each["answer"]), *([2] if each.get("finished", True) else [])]
        for each in talks
    ]
    assert sorted(each.tokens.tolist() for each in found) == sorted(expected)
    for each in found:
        answer = each.tokens[each.kinds == ANSWER].tolist()
        assert answer in [[*raw("sat on"), 2], raw("on the mat")]

    command("words", *weights, "--out", shards, "--batch", "4", "--capacity", "64", "--tokens", "600")
    assert len(entries(tmp_path / "data")) > 8
    options = ["--minutes", "0.02", "--steps", "2", "--vocab", "50", "--batch-tokens", "256"]
    printed = command("train", *weights, "--data", shards, "--out", str(tmp_path / "run"), *options)
    assert json.loads(printed.splitlines()[-1])["updates"] > 0
    command("pack", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "draft"))
    assert len(open_draft(tmp_path / "draft", SafetensorsCheckpoint(tmp_path / "target")).tokens) == 50
