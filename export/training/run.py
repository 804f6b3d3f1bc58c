"""One training run: its data, optimizer, checkpoints, log and, in the end, the packed draft."""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoints.safetensors import Checkpoint
from .draft import Recipe, TorchDraft
from .shards import Entry, batches, entries, read
from .train import StepScore, Unroller, chain_length, collate, total
from .words import ANSWER

HELD_OUT = 50  # every so many conversations one is never trained on
CHECKPOINT_SECONDS, REPORT_SECONDS = 120, 300
REPORTED = 60  # held-out conversations that a report measures
WARM_UP = 0.02  # share of the run over which the rate rises
LAST_RATE = 0.03  # of the peak
# What the config of a packed draft says. Conversations are shorter, but other engines read it as a limit (docs/lab/drafts.md).
TRAINED_LENGTH = 2048


@dataclass(frozen=True)
class TrainingSettings:
    """Choices of a run. ``minutes``: its length, over which the learning rate follows a cosine."""

    steps: int
    vocab: int
    rate: float
    batch_tokens: int
    minutes: float
    seed: int


class Training:
    """Loads or begins the run in ``out`` and carries it on."""

    def __init__(self, target: Checkpoint, data: Path, out: Path, settings: TrainingSettings, device: torch.device) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.data, self.settings, self.device = out, data, settings, device
        arch = target.arch
        saved = torch.load(out / "state.pt", weights_only=True) if (out / "state.pt").exists() else None
        tokens = saved["tokens"] if saved else frequent_tokens(data, settings.vocab, arch.vocab)
        torch.manual_seed(settings.seed)
        self.draft = TorchDraft(Recipe.like(arch), tokens)
        if saved:
            self.draft.load_state_dict(saved["draft"])
        else:
            self.draft.start_from(target)
        self.draft.to(device)
        # Nesterov-free AdamW with EAGLE-3's betas; gradients are clipped at 0.5 as there.
        self.optimizer = torch.optim.AdamW(self.draft.parameters(), lr=settings.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.elapsed, self.updates, self.seen = 0.0, 0, 0
        if saved:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.elapsed, self.updates, self.seen = saved["elapsed"], saved["updates"], saved["seen"]
        embedding = torch.tensor(target.read("model.embed_tokens.weight")).to(device, torch.bfloat16)
        head = embedding if arch.tied_head else torch.tensor(target.read("lm_head.weight")).to(device, torch.bfloat16)
        cos, sin = (torch.from_numpy(table).to(device, torch.bfloat16) for table in arch.rope.tables(arch.head_dim, arch.max_position))
        self.unroller = Unroller(self.draft, embedding, head, cos, sin, settings.steps)
        self.facts = {"settings": asdict(settings), "recipe": recipe_fields(self.draft.recipe), "target": target.path.name}

    def go(self) -> Iterator[str]:
        """Train until the minutes are used up; yields lines for the user."""
        choice = random.Random(self.settings.seed + self.updates)
        saved_at = reported_at = began = time.monotonic()
        before = self.elapsed
        while self.elapsed < 60 * self.settings.minutes:
            training, held_out = split(entries(self.data))  # again for every epoch: more may have been written
            groups = list(batches(training, self.settings.batch_tokens, self.settings.steps + 8, choice))
            if not groups:
                raise ValueError(f"{self.data} has no conversation to train on that is long enough — write more words")
            for group in groups:
                self._update(group)
                self.elapsed = before + time.monotonic() - began
                over = self.elapsed >= 60 * self.settings.minutes
                if over or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    self._save()
                    saved_at = time.monotonic()
                if over or time.monotonic() - reported_at > REPORT_SECONDS:
                    yield self._report(held_out if over else held_out[:REPORTED])
                    reported_at = time.monotonic()
                if over:
                    break

    def _update(self, group: Sequence[Entry]) -> None:
        done = self.elapsed / (60 * self.settings.minutes)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.settings.rate * schedule(done)
        scores = self._scores(group)
        if not scores[0].rows:
            return
        self.optimizer.zero_grad()
        total(scores).backward()
        torch.nn.utils.clip_grad_norm_(self.draft.parameters(), 0.5)
        self.optimizer.step()
        self.updates += 1
        self.seen += sum(map(len, group))

    def _scores(self, group: Sequence[Entry]) -> list[StepScore]:
        with torch.autocast(self.device.type, torch.bfloat16):
            scores: list[StepScore] = self.unroller(collate([read(each) for each in group], self.device))
        return scores

    def _report(self, held_out: Sequence[Entry]) -> str:
        rates = self.agreement(held_out)
        line = {
            "minutes": round(self.elapsed / 60, 1),
            "updates": self.updates,
            "tokens": self.seen,
            "top1": [round(first, 4) for first, _ in rates],
            "top3": [round(third, 4) for _, third in rates],
            "chain": round(chain_length([first for first, _ in rates]), 3),
        }
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        return json.dumps(line)

    @torch.no_grad()
    def agreement(self, conversations: Sequence[Entry]) -> list[tuple[float, float]]:
        """Per unrolled step, how often the target's favourite is the draft's first, and among its first three."""
        sums = torch.zeros(self.settings.steps, 3)
        for group in batches(conversations, self.settings.batch_tokens, self.settings.steps + 8, random.Random(0)):
            sums += torch.tensor([(score.top1, score.top3, score.rows) for score in self._scores(group)])
        return [(float(first / max(1, count)), float(third / max(1, count))) for first, third, count in sums]

    def _save(self) -> None:
        state = {
            "draft": self.draft.state_dict(),
            "tokens": self.draft.tokens,
            "optimizer": self.optimizer.state_dict(),
            "elapsed": self.elapsed,
            "updates": self.updates,
            "seen": self.seen,
        }
        partial = self.out / ".state.pt.partial"
        torch.save(state, partial)
        partial.replace(self.out / "state.pt")
        (self.out / "facts.json").write_text(json.dumps(self.facts, indent=1), encoding="utf-8")


def schedule(done: float) -> float:
    """Share of the peak rate when the share ``done`` of the run is over."""
    if done < WARM_UP:
        return done / WARM_UP
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARM_UP) / (1 - WARM_UP))))


def split(conversations: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """(training, held out). Counted anew for every writer's shards, so that shards of another one that come later move nothing."""
    counts: Counter[str] = Counter()
    training: list[Entry] = []
    held_out: list[Entry] = []
    for entry in conversations:
        writer = entry.file.stem.rpartition("-")[0]
        (training if counts[writer] % HELD_OUT else held_out).append(entry)
        counts[writer] += 1
    return training, held_out


def frequent_tokens(data: Path, count: int, vocab: int) -> Tensor:
    """The ``count`` most frequent tokens of all answers, ascending."""
    counts = torch.zeros(vocab, dtype=torch.long)
    for file in sorted(data.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            answers = shard.get_tensor("tokens").long()[shard.get_tensor("kinds") == ANSWER]
        counts += torch.bincount(answers, minlength=vocab)
    return counts.argsort(descending=True, stable=True)[:count].sort().values


def recipe_fields(recipe: Recipe) -> dict[str, Any]:
    """The draft's config.json: a flat llama config, as SpecForge writes it."""
    scaling = dict(recipe.rope.scaling) if recipe.rope.scaling else None
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.intermediate,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.kv_heads,
        "head_dim": recipe.head_dim,
        "num_hidden_layers": 1,
        "rms_norm_eps": recipe.rms_eps,
        "hidden_act": "silu",
        "rope_theta": recipe.rope.theta,
        "rope_scaling": scaling,
        "max_position_embeddings": TRAINED_LENGTH,
        "vocab_size": recipe.vocab,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def pack_run(run: Path, out: Path, form: str, verifier: str) -> None:
    """config.json and model.safetensors in bfloat16 as other engines read them: d2t as offsets, t2d as membership, no embedding.

    ``form``: "specforge" (flat config, midlayer.*; SGLang, TensorRT-LLM, vLLM) or "speculators" (nested config, layers.0.*; vLLM), which
    names the target, ``verifier``.
    """
    state, facts = torch.load(run / "state.pt", weights_only=True), json.loads((run / "facts.json").read_text(encoding="utf-8"))
    tokens: Tensor = state["tokens"]
    member = torch.zeros(facts["recipe"]["vocab_size"], dtype=torch.bool)
    member[tokens] = True
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in state["draft"].items()}
    tensors |= {"d2t": tokens - torch.arange(len(tokens)), "t2d": member}
    config = {**facts["recipe"], "draft_vocab_size": len(tokens)}
    if form == "speculators":
        tensors = {name.replace("midlayer.", "layers.0."): value for name, value in tensors.items()}
        config = speculators_config(config, verifier)
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def speculators_config(flat: dict[str, Any], verifier: str) -> dict[str, Any]:
    """The same draft in the words of the speculators library."""
    layer = {key: value for key, value in flat.items() if key not in ("architectures", "draft_vocab_size")}
    greedy = {"proposal_type": "greedy", "speculative_tokens": 5, "verifier_accept_k": 1, "accept_tolerance": 0.0}
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "draft_vocab_size": flat["draft_vocab_size"],
        "norm_before_residual": False,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        "embed_requires_grad": False,
        "transformer_layer_config": layer,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [greedy],
            "verifier": {"name_or_path": verifier, "architectures": ["LlamaForCausalLM"]},
        },
        "torch_dtype": "bfloat16",
    }


def finished(run: Path) -> str:
    """The last line of a run's log."""
    return (run / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]
