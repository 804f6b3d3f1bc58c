"""``Decoder``: the object a service embeds. Loads whole or fails whole, streams one request at a time, can be cancelled from any thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from types import TracebackType

from policy import PLAIN, FixedPolicy, Policy, TreeSpec, trees_of

from .decoding.totals import Ledger, Totals
from .drafters.base import Drafter, NoDrafter
from .engine import EngineChoice, LoadedEngine, choose_engine, expect_one_of, load_engine
from .errors import DecoderBusy, DecoderClosed, enough_memory
from .manifest.schema import Manifest
from .models import expect_tree_size, load_models
from .policies.load import Policies
from .policies.registry import main_policies
from .request import Request
from .sampling_params import SamplingParams
from .stream import Result, Run, Stream
from .text.prompt import Prompt as Prompt
from .text.prompt import encode

WARM_UP_TOKENS = 8


class Decoder:
    """The draft-verify loop over one engine directory.

    ``policy`` chooses the trees: an object or a name of POLICIES [default: what resps-tune found for this machine, else a fixed tree].
    ``draft`` names the drafter, one of DRAFTERS [default: "eagle+ngram" on the CPU and "eagle" on a GPU, "ngram" where the directory has
    no draft]. ``backend`` (onnxruntime or tensorrt) and ``device`` (cpu or cuda) default to what the directory was made for, ``threads``
    to the physical cores this process may use; ``verify`` checks every file's hash. One request at a time: a second ``stream`` raises
    DecoderBusy; ``fork`` makes another Decoder over the same weights, from a LoadedEngine in place of the directory.
    Raises EngineDirError when the directory is missing, unfinished, changed or made for something else.
    """

    def __init__(
        self,
        engine_dir: str | Path | LoadedEngine,
        *,
        policy: Policy | str | None = None,
        draft: str | None = None,
        backend: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        verify: bool = True,
    ) -> None:
        if isinstance(engine_dir, LoadedEngine):
            loaded = engine_dir
        else:
            choice = choose_engine(Path(engine_dir), draft=draft, backend=backend, device=device, threads=threads, verify=verify)
            _expect_possible(policy, choice)  # before anything is loaded
            loaded = load_engine(choice)
        choice = loaded.choice
        self.manifest: Manifest = choice.manifest
        self.backend, self.device, self.draft = choice.backend, choice.device, choice.drafter.name
        self._engine, self._asked, self._text = loaded, policy, loaded.text
        self._lock = threading.RLock()  # a signal handler may call close() while it is held
        self._run: Run | None = None
        self._closed = False
        self._ledger = Ledger()
        with ExitStack() as cleanup, enough_memory():
            cleanup.callback(loaded.opened.close)
            self._policies = Policies(loaded.policy_setting)
            self._policy = self.policy(policy)
            self.models = load_models(loaded.opened, self.manifest, choice.drafter, self._trees, choice.latency, choice.fixed_tree)
            self._target, self._drafter, self._pick = self.models.target, self.models.drafter, self.models.picker
            self._resources = cleanup.pop_all()

    def fork(self) -> Decoder:
        """Another Decoder over the same weights in memory, with its own cache, buffers and policies (one given as an object is copied):
        both run at the same time, in different threads. Closing one leaves the others alive; the last one frees the weights.

        Raises DecoderClosed, and GpuMemoryError where a GPU has no room for another cache.
        """
        with self._lock:
            self._expect_open()
            policy = self._asked if self._asked is None or isinstance(self._asked, str) else deepcopy(self._asked)
            return Decoder(self._engine.fork(), policy=policy)

    def warmup(self) -> None:
        """Decode a little with each tree that the policy is known to ask for, the first time after two whole chunks of a prompt: the first
        request is then as fast as all others. Nothing of it is counted or kept. Raises DecoderBusy, DecoderClosed and EngineFailure."""
        limits = self.manifest.limits
        long = [1 % self.manifest.shape.vocab] * min(2 * limits.prefill_rows, max(1, limits.context - WARM_UP_TOKENS))
        if self.manifest.tokens.chat_template:
            self._text.encode([{"role": "user", "content": "Say something."}])
        params = SamplingParams(max_new_tokens=WARM_UP_TOKENS)
        trees = dict.fromkeys((*self._trees, *(() if self.manifest.tensorrt else (PLAIN,))))
        for prompt, spec in ((long, next(iter(trees))), *((long[:8], spec) for spec in trees)):
            request = Request(prompt, params, self._pick(params), FixedPolicy(spec), frozenset())
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
    def default_tree(self) -> TreeSpec:
        """The tree that is grown when nothing was tuned and nothing else is asked for."""
        return self._engine.choice.default_tree

    @property
    def _trees(self) -> tuple[TreeSpec, ...]:
        """The largest that the policy will ask for, as far as one can know."""
        return trees_of(self._policy) or (self.default_tree,)

    def policy(self, policy: Policy | str | None = None) -> Policy:
        """The policy of that name [default: as tuned], made when it is first asked for and then kept. Raises ValueError for a name that
        there is not, EngineDirError for a policy that has not been tuned, or a fixed tree of a size that the engines were not built for."""
        if policy is None or isinstance(policy, str):
            expect_one_of("policy", policy, tuple(dict.fromkeys((*main_policies(), *self.policies))))
            policy = self._policies.get(policy)
        if isinstance(policy, FixedPolicy):
            expect_tree_size(self.manifest, policy.spec)
        return policy

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of those that can be had here: plain decoding, a fixed tree, and what was tuned."""
        return self._policies.names

    @property
    def totals(self) -> Totals:
        """What all requests that are over came to, since this Decoder was loaded or forked."""
        return self._ledger.totals(self._policy)

    def _expect_open(self) -> None:
        if self._closed:
            raise DecoderClosed("this Decoder was closed — make a new one")

    def stream(self, prompt: Prompt, params: SamplingParams = SamplingParams(), *, policy: Policy | str | None = None) -> Stream:
        """Start a request; iterate over the returned Stream for its Chunks.

        ``prompt``: text as it stands, chat messages (rendered by the model's template), or token ids. ``params``: how to sample and when
        to stop (greedy by default). ``policy``: an object or a name, instead of the Decoder's own.
        Raises PromptError, ValueError, TypeError, EngineDirError (a policy that has not been tuned), DecoderBusy or DecoderClosed here,
        not at the first chunk; the chunks may raise EngineFailure.
        """
        _expect_kinds(params, policy)
        deadline = None if params.deadline is None else perf_counter() + params.deadline
        ids = self.encode(prompt)
        with self._lock:
            self._expect_open()
            self._expect_free()
            request = Request(
                prompt=ids,
                params=params,
                pick=self._pick(params),
                policy=self._policy if policy is None else self.policy(policy),
                stop_tokens=frozenset(self.manifest.tokens.stop),
                deadline=deadline,
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

    def generate(self, prompt: Prompt, params: SamplingParams = SamplingParams(), *, policy: Policy | str | None = None) -> Result:
        """The whole answer at once: ``stream`` with the same arguments, joined."""
        with self.stream(prompt, params, policy=policy) as stream:
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


def _expect_kinds(params: object, policy: object) -> None:
    """Raises TypeError."""
    if not isinstance(params, SamplingParams):
        raise TypeError(f"params must be SamplingParams, not {type(params).__name__}")
    verbs = ("begin", "choose", "observe")
    is_policy = not isinstance(policy, type) and all(callable(getattr(policy, verb, None)) for verb in verbs)
    if not (policy is None or isinstance(policy, str) or is_policy):
        raise TypeError(f"policy must be a name or a Policy, not {type(policy).__name__}")


def _expect_possible(policy: Policy | str | None, choice: EngineChoice) -> None:
    """Raises ValueError for a policy that there is not, EngineDirError for a tree without a profile."""
    if isinstance(policy, FixedPolicy):
        expect_tree_size(choice.manifest, policy.spec)
    elif isinstance(policy, str):
        learned = choice.tuning.learned if choice.tuning else ()
        expect_one_of("policy", policy, tuple(dict.fromkeys((*main_policies(), *learned))))
