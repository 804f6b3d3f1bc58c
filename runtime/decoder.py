"""``Decoder``: the object a service embeds. Loads whole or fails whole, streams one request at a time, can be cancelled from any thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import cast

import numpy as np

from policy import FixedPolicy, Policy, Repeats, TreeSpec, rough_surface

from .backend import expect_tree_size, load_models, open_backend
from .cpu import physical_cores
from .drafter import Drafter, NoDrafter
from .eagle import EagleDrafter
from .encoder import load_encoder
from .errors import DecoderBusy, DecoderClosed, EngineDirError, PromptError
from .manifest import BACKENDS, Manifest, find_engine_dir, load_manifest
from .nets import load_net
from .repeats import RepeatsDrafter
from .request import Request
from .sampling import Sampling
from .stream import Result, Run, Stream
from .text import Message, StopStrings, Text
from .tuned import POLICIES, default_tree, make_policy, trees_of, tuned_here

DRAFTERS = ("eagle+ngram", "eagle", "ngram", "none")
DEVICES = ("cpu", "cuda")
Prompt = str | Sequence[int] | Sequence[Message]


class Decoder:
    """The draft-verify loop over one engine directory.

    ``policy`` chooses the trees: an object or a name of POLICIES (default: what resps-tune found for this machine, else a fixed tree).
    ``draft`` names the drafter: "eagle+ngram" (EAGLE-3 with bets on repeated text, on the CPU; the default there), "eagle" (the default on
    a GPU), "ngram" (the default where the directory has no draft) or "none". ``backend`` (onnxruntime or tensorrt) and
    ``device`` (cpu or cuda) default to what the directory was made for, ``threads`` to the physical cores this process may use; ``verify``
    checks every file's hash. One request at a time: a second ``stream`` raises DecoderBusy.
    Raises EngineDirError when the directory is missing, unfinished, changed or made for something else.
    """

    def __init__(
        self,
        engine_dir: str | Path,
        *,
        policy: Policy | str | None = None,
        draft: str | None = None,
        backend: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        verify: bool = True,
    ) -> None:
        for what, value, choices in (("drafter", draft, DRAFTERS), ("backend", backend, BACKENDS), ("device", device, DEVICES)):
            _expect(what, value, choices)
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be 1 or more, not {threads}")
        directory = find_engine_dir(Path(engine_dir))
        self.manifest: Manifest = load_manifest(directory, verify=verify, backend=backend)
        self.backend, self.device = backend or self.manifest.backend, device or ("cpu" if self.manifest.tensorrt is None else "cuda")
        with_bets = "eagle" if self.device == "cuda" else "eagle+ngram"
        self.draft = draft or (with_bets if self.manifest.draft else "ngram")
        eagle = self.draft.startswith("eagle")
        if eagle and self.manifest.draft is None:
            raise EngineDirError(f"{directory} holds no EAGLE-3 draft — export with --draft-weights, or choose --draft ngram")
        if self.draft == "eagle+ngram" and self.device == "cuda":
            raise ValueError("eagle+ngram works on the CPU only — choose eagle or ngram")
        threads = threads or physical_cores()
        self._tuning = tuned_here(self.manifest, threads) if eagle else None
        if isinstance(policy, FixedPolicy):
            expect_tree_size(self.manifest, policy.spec)  # before anything is loaded
        elif isinstance(policy, str):
            self._expect_policy(policy)
        self._text = Text(directory, self.manifest.tokens)
        self._lock = threading.Lock()
        self._run: Run | None = None
        self._closed = False
        with ExitStack() as cleanup:
            opened = open_backend(directory, self.manifest, self.backend, self.device, threads)
            cleanup.callback(opened.close)
            self._load, self._reader = partial(load_net, opened), partial(load_encoder, opened, self._tuning)
            self._named: dict[str | None, Policy] = {}
            self._policy = self.policy(policy)
            trees = trees_of(self._policy) or [default_tree(self.draft, self.manifest)]
            models = load_models(opened, self.manifest, "eagle" if eagle else self.draft, trees, self._repeats())
            self._target, self._drafter, self._pick = models.target, models.drafter, models.picker
            self.models = models
            self._resources = cleanup.pop_all()

    def policy(self, policy: Policy | str | None = None) -> Policy:
        """The policy of that name [default: as tuned], made when it is first asked for and then kept. Raises ValueError for a name that
        there is not, EngineDirError for a policy that has not been tuned, or a fixed tree of a size that the engines were not built for."""
        if policy is None or isinstance(policy, str):
            if policy not in self._named:
                self._expect_policy(policy)
                sizes = self.manifest.tree_sizes if self.manifest.tensorrt else None
                made = make_policy(policy, self._tuning, default_tree(self.draft, self.manifest), sizes, self._load, self._reader)
                self._named[policy] = made
            policy = self._named[policy]
        if isinstance(policy, FixedPolicy):
            expect_tree_size(self.manifest, policy.spec)
        return policy

    def _repeats(self) -> Repeats | None:
        """How bets are decided, where the drafter makes any: by what was measured here, or by what rounds cost elsewhere."""
        if self.draft != "eagle+ngram":
            return None
        surface = self._tuning.surface if self._tuning else rough_surface(self.manifest.precision in ("int8", "int4"))
        static = TreeSpec(*self._tuning.static) if self._tuning else default_tree(self.draft, self.manifest)
        return Repeats(surface, static)

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of those that can be had here: plain decoding, a fixed tree, and what was tuned."""
        tuning = self._tuning
        return ("none", "fixed", *(("cost-model",) if tuning and tuning.cost_model else ()), *(tuning.learned if tuning else ()))

    def _expect_policy(self, name: str | None) -> None:
        _expect("policy", name, tuple(dict.fromkeys((*POLICIES, *self.policies))))

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 512,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        policy: Policy | str | None = None,
    ) -> Stream:
        """Start a request; iterate over the returned Stream for its Chunks.

        ``prompt``: text as it stands, chat messages (rendered by the model's template), or token ids. Raises PromptError, ValueError,
        EngineDirError (a policy that has not been tuned), DecoderBusy or DecoderClosed here, not at the first chunk.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
        if isinstance(stop, str) or not all(isinstance(each, str) and each for each in stop):
            raise ValueError("stop must be a sequence of non-empty strings")
        ids = self.encode(prompt)
        with self._lock:
            if self._closed:
                raise DecoderClosed("this Decoder was closed — make a new one")
            if self._run is not None and not self._run.over:
                raise DecoderBusy("a Stream of this Decoder is still open — finish it, close() it, or use a second Decoder")
            chosen = self._policy if policy is None else self.policy(policy)
            request = Request(
                prompt=ids,
                max_new_tokens=max_new_tokens,
                pick=self._pick(sampling or Sampling()),
                policy=chosen,
                stops=StopStrings(tuple(stop)),
                stop_tokens=frozenset(self.manifest.tokens.stop),
            )
            self._run = Run(request)
            return Stream(self._run, request.run(self._target, self._drafter_for(request.policy), self._text))

    def _drafter_for(self, policy: Policy) -> Drafter:
        """Where nothing is drafted, plain decoding does not pay for keeping an EAGLE-3 draft up to date; each request begins it anew."""
        plain = isinstance(policy, FixedPolicy) and policy.spec.nodes == 1
        return NoDrafter() if plain and isinstance(self._drafter, (EagleDrafter, RepeatsDrafter)) else self._drafter

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 512,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        policy: Policy | str | None = None,
    ) -> Result:
        """The whole answer at once: ``stream`` with the same arguments, joined."""
        with self.stream(prompt, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, policy=policy) as stream:
            return stream.result()

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of any form of prompt, checked against vocabulary and context."""
        if isinstance(prompt, str):
            ids = self._text.encode(prompt)
        else:
            items = list(prompt)
            if items and isinstance(items[0], Mapping):
                ids = self._text.encode(cast(Sequence[Message], items))
            else:
                ids = _checked_ids(cast(Iterable[int], items), self.manifest.shape.vocab)
        if not ids:
            raise PromptError("the prompt is empty — give at least one token")
        if len(ids) >= self.manifest.limits.context:
            raise PromptError(
                f"the prompt has {len(ids)} tokens, the context holds {self.manifest.limits.context} — shorten it, or export with a "
                "larger --max-context"
            )
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids as text, without special tokens."""
        return self._text.decode(tokens)

    def close(self) -> None:
        """Cancel what runs, wait for its round to end, free everything. May be repeated, from any thread."""
        with self._lock:
            self._closed = True
            run, self._run = self._run, None
        if run is not None:
            run.request.cancelled = True
            with run.working:
                run.over = True
        self._resources.close()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _expect(what: str, value: str | None, choices: Sequence[str]) -> None:
    if value not in (None, *choices):
        raise ValueError(f"unknown {what} {value!r} — choose from {', '.join(choices)}")


def _checked_ids(items: Iterable[int], vocab: int) -> list[int]:
    ids = []
    for item in items:
        if isinstance(item, bool) or not isinstance(item, (int, np.integer)) or not 0 <= item < vocab:
            raise PromptError(f"{item!r} is no token id — ids are whole numbers from 0 to {vocab - 1}")
        ids.append(int(item))
    return ids
