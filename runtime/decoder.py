"""``Decoder``: the object a service embeds. Loads whole or fails whole, streams one request at a time, can be cancelled from any thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from pathlib import Path
from time import perf_counter
from types import TracebackType

from policy import PLAIN, FixedPolicy, LookupGate, Policy, TreeSpec, rough_latency

from .backends.base import Backend
from .backends.cpu.processor import physical_cores
from .backends.open import open_backend
from .decoding.sampling import Sampling
from .decoding.totals import Ledger, Totals
from .drafters.base import Drafter, NoDrafter
from .errors import DecoderBusy, DecoderClosed, EngineDirError, enough_memory
from .manifest.load import find_engine_dir, load_manifest
from .manifest.schema import BACKENDS, Manifest
from .models import expect_tree_size, load_models
from .policies.load import POLICIES, default_tree, load_net, make_policy, trees_of, tuned_here
from .request import Request
from .sampling_params import check_wishes
from .stream import Result, Run, Stream
from .text.detokenizer import StopStrings
from .text.prompt import Prompt as Prompt
from .text.prompt import encode
from .text.tokenizer import Text

DRAFTERS = ("eagle+ngram", "eagle", "ngram", "none")
DEVICES = ("cpu", "cuda")
WARM_UP_TOKENS = 8


class Decoder:
    """The draft-verify loop over one engine directory.

    ``policy`` chooses the trees: an object or a name of POLICIES (default: what resps-tune found for this machine, else a fixed tree).
    ``draft`` names the drafter: "eagle+ngram" (EAGLE-3 with bets on repeated text, on the CPU; the default there), "eagle" (the default on
    a GPU), "ngram" (the default where the directory has no draft) or "none". ``backend`` (onnxruntime or tensorrt) and
    ``device`` (cpu or cuda) default to what the directory was made for, ``threads`` to the physical cores this process may use; ``verify``
    checks every file's hash. One request at a time: a second ``stream`` raises DecoderBusy; ``fork`` makes another over the same weights.
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
        self._open(open_backend(directory, self.manifest, self.backend, self.device, threads), policy)

    def _open(self, opened: Backend, policy: Policy | str | None) -> None:
        """Everything that belongs to this Decoder alone."""
        self._lock = threading.RLock()  # a signal handler may call close() while it is held
        self._run: Run | None = None
        self._closed = False
        self._ledger = Ledger()
        with ExitStack() as cleanup, enough_memory():
            cleanup.callback(opened.close)
            self._opened, self._asked = opened, policy
            self._load = partial(load_net, opened)
            self._named: dict[str | None, Policy] = {}
            self._policy = self.policy(policy)
            self.models = load_models(opened, self.manifest, self.draft, self._trees, self._lookup_gate())
            self._target, self._drafter, self._pick = self.models.target, self.models.drafter, self.models.picker
            self._resources = cleanup.pop_all()

    def fork(self) -> Decoder:
        """Another Decoder over the same weights in memory, with its own cache, buffers and policies (one given as an object is copied):
        both run at the same time, in different threads. Closing one leaves the others alive; the last one frees the weights.

        Raises DecoderClosed, and GpuMemoryError where a GPU has no room for another cache.
        """
        with self._lock:
            self._expect_open()
            twin = object.__new__(type(self))
            for name in ("manifest", "backend", "device", "draft", "_tuning", "_text"):
                setattr(twin, name, getattr(self, name))
            policy = self._asked if self._asked is None or isinstance(self._asked, str) else deepcopy(self._asked)
            twin._open(self._opened.fork(), policy)
            return twin

    def warmup(self) -> None:
        """Decode a little with each tree that the policy is known to ask for, the first time after two whole chunks of a prompt: the first
        request is then as fast as all others. Nothing of it is counted or kept. Raises DecoderBusy, DecoderClosed and EngineFailure."""
        limits = self.manifest.limits
        long = [1 % self.manifest.shape.vocab] * min(2 * limits.prefill_rows, max(1, limits.context - WARM_UP_TOKENS))
        if self.manifest.tokens.chat_template:
            self._text.encode([{"role": "user", "content": "Say something."}])
        trees = dict.fromkeys((*self._trees, *(() if self.manifest.tensorrt else (PLAIN,))))
        for prompt, spec in ((long, next(iter(trees))), *((long[:8], spec) for spec in trees)):
            request = Request(prompt, WARM_UP_TOKENS, self._pick(Sampling()), FixedPolicy(spec), StopStrings(()), frozenset())
            for _ in self._start(request, Ledger()):
                pass
            self.forget()

    def forget(self) -> None:
        """The next request computes its whole prompt: nothing of the last one is used again. For measuring, and between strangers. Raises
        DecoderBusy and DecoderClosed."""
        with self._lock:
            self._expect_open()
            self._expect_free()
            self._target.cache_valid = False

    @property
    def _trees(self) -> list[TreeSpec]:
        """The largest that the policy will ask for, as far as one can know."""
        return trees_of(self._policy) or [default_tree(self.draft, self.manifest)]

    def policy(self, policy: Policy | str | None = None) -> Policy:
        """The policy of that name [default: as tuned], made when it is first asked for and then kept. Raises ValueError for a name that
        there is not, EngineDirError for a policy that has not been tuned, or a fixed tree of a size that the engines were not built for."""
        if policy is None or isinstance(policy, str):
            if policy not in self._named:
                self._expect_policy(policy)
                sizes = self.manifest.tree_sizes if self.manifest.tensorrt else None
                made = make_policy(policy, self._tuning, default_tree(self.draft, self.manifest), sizes, self._load)
                self._named[policy] = made
            policy = self._named[policy]
        if isinstance(policy, FixedPolicy):
            expect_tree_size(self.manifest, policy.spec)
        return policy

    def _lookup_gate(self) -> LookupGate | None:
        """How bets are decided, where the drafter makes any: by what was measured here, or by what rounds cost elsewhere."""
        if self.draft != "eagle+ngram":
            return None
        latency = self._tuning.latency if self._tuning else rough_latency(self.manifest.precision in ("int8", "int4"))
        static = TreeSpec(*self._tuning.static) if self._tuning else default_tree(self.draft, self.manifest)
        return LookupGate(latency, static)

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of those that can be had here: plain decoding, a fixed tree, and what was tuned."""
        tuning = self._tuning
        return ("none", "fixed", *(("cost-model",) if tuning and tuning.cost_model else ()), *(tuning.learned if tuning else ()))

    @property
    def totals(self) -> Totals:
        """What all requests that are over came to, since this Decoder was loaded or forked."""
        return self._ledger.totals(self._policy)

    def _expect_policy(self, name: str | None) -> None:
        _expect("policy", name, tuple(dict.fromkeys((*POLICIES, *self.policies))))

    def _expect_open(self) -> None:
        if self._closed:
            raise DecoderClosed("this Decoder was closed — make a new one")

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 512,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        policy: Policy | str | None = None,
        logprobs: int | None = None,
        deadline: float | None = None,
    ) -> Stream:
        """Start a request; iterate over the returned Stream for its Chunks.

        ``prompt``: text as it stands, chat messages (rendered by the model's template), or token ids. ``logprobs``: each token's
        log-probability before temperature and cuts, and those of this many likeliest tokens (0 to 20). ``deadline``: seconds from now; then
        the answer ends with the running round, or without a token while the prompt is still being read.
        Raises PromptError, ValueError, EngineDirError (a policy that has not been tuned), DecoderBusy or DecoderClosed here, not at the
        first chunk; the chunks may raise EngineFailure.
        """
        check_wishes(max_new_tokens, sampling, stop, policy, logprobs, deadline)
        ends = None if deadline is None else perf_counter() + deadline
        ids = self.encode(prompt)
        with self._lock:
            self._expect_open()
            self._expect_free()
            request = Request(
                prompt=ids,
                max_new_tokens=max_new_tokens,
                pick=self._pick(sampling or Sampling()),
                policy=self._policy if policy is None else self.policy(policy),
                stops=StopStrings(tuple(stop)),
                stop_tokens=frozenset(self.manifest.tokens.stop),
                logprobs=logprobs,
                deadline=ends,
            )
            return self._start(request, self._ledger)

    def _expect_free(self) -> None:
        if self._run is not None and not self._run.over:
            raise DecoderBusy("a Stream of this Decoder is still open — finish it, close() it, or use a second Decoder")

    def _start(self, request: Request, ledger: Ledger) -> Stream:
        with self._lock:
            self._expect_free()
            self._run = run = Run(request, ledger)
            self._expect_open()  # after the run is known to close()
            return Stream(run, request.run(self._target, self._drafter_for(request.policy), self._text))

    def _drafter_for(self, policy: Policy) -> Drafter:
        """Where nothing is drafted, plain decoding does not pay for keeping an EAGLE-3 draft up to date; each request begins it anew."""
        plain = isinstance(policy, FixedPolicy) and policy.spec.nodes == 1
        return NoDrafter() if plain and self.models.eagle is not None else self._drafter

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 512,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        policy: Policy | str | None = None,
        logprobs: int | None = None,
        deadline: float | None = None,
    ) -> Result:
        """The whole answer at once: ``stream`` with the same arguments, joined."""
        asked = self.stream(
            prompt, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, policy=policy, logprobs=logprobs, deadline=deadline
        )
        with asked as stream:
            return stream.result()

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of any form of prompt, checked against vocabulary and context. Raises PromptError."""
        return encode(prompt, self._text, self.manifest.shape.vocab, self.manifest.limits.context)

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids as text, without special tokens. Raises ValueError for one outside of the vocabulary."""
        for token in tokens:
            self._expect_token(token)
        return self._text.decode(tokens)

    def token_bytes(self, token: int, *, first: bool = False, special: bool = False) -> bytes:
        """What one token adds to a text: bytes, because a character may need several tokens. Joined bytes of tokens are ``decode`` of them.

        ``first``: the token begins the text; there SentencePiece's tokenizers leave one space out. ``special``: special tokens give their
        names; else, as in ``decode``, nothing. Ids of the vocabulary that no token has give b"". Raises ValueError outside of it.
        """
        self._expect_token(token)
        return self._text.token_bytes(token, first=first, special=special)

    def _expect_token(self, token: int) -> None:
        if not 0 <= token < self.manifest.shape.vocab:
            raise ValueError(f"{token} is no token id — ids are whole numbers from 0 to {self.manifest.shape.vocab - 1}")

    def close(self) -> None:
        """Cancel what runs, wait for its round to end, free everything. May be repeated, from any thread; inside a round of its own thread,
        as in a signal handler, it frees when the round has ended."""
        with self._lock:
            self._closed = True
            run = self._run
        if run is not None:
            run.request.cancelled = True
            with run.working:
                if run.inside:  # in this very thread: nobody else can be here
                    run.afterwards = self._free
                    return
                run.end()
        self._free()

    def _free(self) -> None:
        with self._lock:
            self._resources.close()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _expect(what: str, value: str | None, choices: Sequence[str]) -> None:
    if value not in (None, *choices):
        raise ValueError(f"unknown {what} {value!r} — choose from {', '.join(choices)}")
