"""The unrolled training graph equals a naive one and the exported one; the loss and its gradients are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from export.checkpoints.draft_checkpoint import open_draft
from export.checkpoints.hugging_face import HuggingFaceCheckpoint
from export.graphs.precision import PRECISIONS
from export.parity.draft import reference_fuse, reference_pass
from export.training.draft import TorchDraft
from export.training.losses import CHUNK, TOP_K, CrossEntropy, wanted_distributions
from export.training.names import ACCEPTANCE, LOSSES
from export.training.unroll import DECAY, Batch, StepScore, Unroller, weighted_loss
from export.training.words.segments import ANSWER
from tests.support.training import Computed, batch_of, packed, random_conversation, random_draft

STEPS = 4


def unroller_of(draft: TorchDraft, target: HuggingFaceCheckpoint, steps: int = STEPS) -> Unroller:
    cos, sin = (torch.from_numpy(table) for table in target.arch.rope.tables(target.arch.head_dim, 128))
    embedding, head = (torch.from_numpy(target.read(name)) for name in ("model.embed_tokens.weight", "lm_head.weight"))
    return Unroller(draft, embedding, head, cos, sin, steps)


def unrolled(unroller: Unroller, batch: Batch) -> tuple[list[StepScore], list[Tensor]]:
    """The scores, and the logits of every step, [B, R, Vd]."""
    normed: list[Tensor] = []
    hook = unroller.draft.norm.register_forward_hook(lambda _module, _inputs, output: normed.append(output.detach()))
    scores = unroller(batch)
    hook.remove()
    return scores, [unroller.draft.lm_head(each).detach() for each in normed]


def rows_of(each: Computed) -> list[int]:
    """Rows whose first predicted token, two positions later, belongs to an answer."""
    return [row for row in range(len(each) - 2) if each.kinds[row + 2] == ANSWER]


def naive(draft: TorchDraft, target: HuggingFaceCheckpoint, each: Computed, row: int, steps: int) -> np.ndarray:
    """Logits of all steps of one row, in float64, one vector at a time: step 0 of the rows before it, then its chain."""
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


def test_rows_and_steps_pair_features_tokens_and_positions_as_a_chain_does(target: HuggingFaceCheckpoint) -> None:
    draft = random_draft(target.arch)
    each = random_conversation(20, 1, [slice(5, 12), slice(15, 20)], target)
    scores, logits = unrolled(unroller_of(draft, target), batch_of([each]))
    rows = rows_of(each)
    assert rows == [*range(3, 10), *range(13, 18)]
    assert len(scores) == STEPS
    for place, row in enumerate(rows):
        steps = min(STEPS, len(each) - 2 - row)  # those that guess a token which is there
        expected = naive(draft, target, each, row, steps)
        actual = torch.stack([step[0, place] for step in logits[:steps]]).numpy()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("form", "norms"), [("specforge", False), ("speculators", False), ("speculators", True)])
def test_training_graph_is_the_inference_graph(tmp_path: Path, target: HuggingFaceCheckpoint, form: str, norms: bool) -> None:
    """Compared with the packed draft in numpy: committed rows, and below one of them a chain over its own features."""
    draft = random_draft(target.arch, norms=norms)
    opened = open_draft(packed(draft, tmp_path, form), target)
    each = random_conversation(16, 2, [slice(4, 16)], target)
    _, logits = unrolled(unroller_of(draft, target), batch_of([each]))
    tokens, base = each.tokens, reference_fuse(opened, each.captures.numpy())
    for place, row in enumerate(rows_of(each)):
        hidden, steps = base[: row + 1], min(STEPS, len(each) - 2 - row)
        for step in range(steps):
            seen = row + 1 + step
            following, expected = reference_pass(
                opened, tokens[1 : 1 + seen], hidden, np.arange(seen), np.tri(seen, dtype=bool), PRECISIONS["fp32"]
            )
            actual = logits[step][0, place].log_softmax(-1).numpy()
            np.testing.assert_allclose(actual, expected[-1], rtol=0, atol=1e-4)
            hidden = np.concatenate([hidden, following[-1:]])


def expected_scores(unroller: Unroller, each: Computed, logits: list[Tensor]) -> list[tuple[float, int, int, int, int]]:
    """Loss, rows, asked, top1 and top3 of every step, from the definition; ``logits`` [R, Vd] of each step."""
    tokens, head, scores = unroller.draft.tokens.tolist(), unroller.head, []
    for step, guesses in enumerate(logits):
        loss, rows, asked, first, third = 0.0, 0, 0, 0, 0
        for place, row in enumerate(rows_of(each)):
            guessed = row + 2 + step
            if guessed >= len(each) or each.kinds[guessed] != ANSWER:
                continue
            truth = head @ each.final[guessed - 1]
            preferred, asked = int(truth.argmax()), asked + 1
            if preferred not in tokens:
                continue
            loss -= float(truth[tokens].softmax(-1) @ guesses[place].log_softmax(-1))
            best = guesses[place].topk(3).indices.tolist()
            index = tokens.index(preferred)
            rows, first, third = rows + 1, first + (index == best[0]), third + (index in best)
        scores.append((loss, rows, asked, first, third))
    return scores


def test_padding_and_other_conversations_change_nothing(target: HuggingFaceCheckpoint) -> None:
    """With short and long conversations and early and late answers. Padding rows must not count in any step."""
    unroller = unroller_of(random_draft(target.arch, 200), target)
    with torch.no_grad():  # guesses like the target's, so that some are right
        unroller.draft.lm_head.weight[:40] *= 3
    every = [
        random_conversation(12, 3, [slice(4, 12)], target),
        random_conversation(30, 15, [slice(0, 30)], target),
        random_conversation(30, 5, [slice(8, 10), slice(14, 17)], target),
        random_conversation(9, 6, [], target),
    ]
    together, logits = unrolled(unroller, batch_of(every))
    sums = np.zeros((STEPS, 5))
    for index, each in enumerate(every):
        alone, its_logits = unrolled(unroller, batch_of([each]))
        rows = len(rows_of(each))
        for step in range(STEPS):
            real = [place for place, row in enumerate(rows_of(each)) if row + 2 + step < len(each)]
            torch.testing.assert_close(logits[step][index, real], its_logits[step][0, real], rtol=0, atol=1e-4)
        expected = expected_scores(unroller, each, [step[0, :rows] for step in its_logits])
        for score, (loss, *counts) in zip(alone, expected, strict=True):
            assert [score.rows, score.asked, score.top1, score.top3] == counts
            assert float(score.loss.detach()) == pytest.approx(loss, rel=1e-4, abs=1e-4)
        sums += expected
    assert sums[:, 1].min() > 10
    assert (sums[:, 2] > sums[:, 1]).all()  # some of the target's tokens are not in the draft's vocabulary
    assert sums[:, 4].sum() > sums[:, 3].sum() > 0
    for score, (loss, *counts) in zip(together, sums, strict=True):
        assert [score.rows, score.asked, score.top1, score.top3] == counts
        assert float(score.loss.detach()) == pytest.approx(loss, rel=1e-4)
    losses = [loss / rows * DECAY**step for step, (loss, rows, *_) in enumerate(sums)]
    assert float(weighted_loss(together).detach()) == pytest.approx(sum(losses), rel=1e-4)


def gradients(unroller: Unroller, each: Computed) -> list[Tensor]:
    unroller.draft.zero_grad()
    weighted_loss(unroller(batch_of([each]))).backward()
    return [parameter.grad.clone() for parameter in unroller.draft.parameters() if parameter.grad is not None]


def test_what_does_not_count_moves_nothing(target: HuggingFaceCheckpoint) -> None:
    """Labels of tokens outside answers and everything after the last predicted token have no influence."""
    unroller = unroller_of(random_draft(target.arch, 200), target)
    each = random_conversation(30, 7, [slice(6, 14), slice(19, 24)], target)
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


@pytest.mark.parametrize("loss", LOSSES)
def test_wanted_distributions(loss: str) -> None:
    logits = torch.randn(30, 50, generator=torch.Generator().manual_seed(0)) * 3
    best = logits.argmax(-1)
    wanted = wanted_distributions(loss, logits, best).float()
    torch.testing.assert_close(wanted.sum(-1), torch.ones(30))
    assert torch.equal(wanted.argmax(-1), best)
    expected = logits.softmax(-1)
    if loss == "hard":
        assert torch.equal(wanted.max(-1).values, torch.ones(30))
    else:
        kept = wanted > 0
        assert (kept.sum(-1) == (TOP_K if loss == "top-k" else 50)).all()
        torch.testing.assert_close(wanted[kept], (expected * kept / (expected * kept).sum(-1, keepdim=True))[kept])


def test_acceptance_weighs_rows_by_how_probably_a_chain_gets_there(target: HuggingFaceCheckpoint) -> None:
    """Expected from the logits of the steps: the product of sum(min(target, draft)) over the steps before."""
    each = random_conversation(20, 1, [slice(5, 20)], target)
    unroller = unroller_of(random_draft(target.arch, 200), target)
    unroller.loss = ACCEPTANCE
    scores, logits = unrolled(unroller, batch_of([each]))
    reached = dict.fromkeys(rows_of(each), 1.0)
    for step, guesses in enumerate(logits):
        loss = 0.0
        for place, row in enumerate(reached):
            if row + 2 + step < len(each) and (unroller.head @ each.final[row + 1 + step]).argmax() in unroller.draft.tokens:
                truth = (unroller.draft_head @ each.final[row + 1 + step]).softmax(-1)
                loss -= reached[row] * float(truth @ guesses[0, place].log_softmax(-1))
                reached[row] *= float(torch.minimum(truth, guesses[0, place].softmax(-1)).sum())
        assert float(scores[step].loss.detach()) == pytest.approx(loss, rel=1e-3)
    assert min(reached.values()) < 0.5
    assert float(weighted_loss(scores, ACCEPTANCE).detach()) == pytest.approx(
        sum(float(s.loss.detach()) / s.rows for s in scores), rel=1e-4
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 60])
def test_loss_and_its_gradients_equal_autograd(rows: int, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    weights = torch.rand(rows, generator=generator) if weighted else None
    feature, weight, wanted = (torch.randn(*shape, generator=generator) for shape in ((rows, 24), (50, 24), (40, 50)))
    wanted, best = (3 * wanted).softmax(-1), wanted.argmax(-1)
    label = torch.randint(40, (rows,), generator=generator)
    results = []
    for fused in (True, False):
        inputs = feature.clone().requires_grad_(), weight.clone().requires_grad_()
        if fused:
            loss, ranks = CrossEntropy.apply(*inputs, wanted, label, best, weights)[:2]
        else:
            logits = inputs[0] @ inputs[1].T
            losses, ranks = -(wanted[label] * logits.log_softmax(-1)).sum(-1), (logits > logits.gather(1, best[label, None])).sum(-1)
            loss = (losses if weights is None else losses * weights).sum()
        (0.3 * loss).backward()
        results.append((loss.detach(), *(each.grad for each in inputs), ranks))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()) if rows else 0)
