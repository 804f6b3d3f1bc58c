"""``Decoder``: the object that a service embeds. It loads an engine directory and streams requests."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import NoReturn, SupportsIndex, Unpack

from policy import PLAIN, FixedPolicy, Policy, TreeSpec, trees_of

from .arguments import Asked, Parts, check_params, check_policy, check_types, new_request
from .decoding.cycle import Listener
from .decoding.totals import Totals, TotalsRecorder
from .engine import LoadedEngine, check_one_of, choose_engine, load_engine
from .errors import DecoderBusy, DecoderClosed, memory_errors
from .lanes.choose import choose_lanes
from .lanes.driver import CLOSED
from .lanes.load import by_budget, load_lanes
from .lanes.pace import Pace
from .models import check_tree_size, load_models
from .native_calls import NATIVE_CALLS, expect_own_process
from .policies.load import Policies
from .policies.registry import main_policies
from .request import Chunk, Request
from .sampling_params import SamplingParams
from .start.first import at_home
from .start.warm_up import warm_up_requests, warm_up_template
from .stream import ActiveRequest, LaneStream, Result, Stream, answers_of, chunks_of
from .text.prompt import Prompt as Prompt
from .text.prompt import check_token, encode, expect_form

_BUSY = "all Streams of this Decoder are still open — finish one, close() it, or use a Decoder with more lanes"


class Decoder:
    """The draft-verify loop over one engine directory.

    ``policy``: an object, or a name in POLICIES [default: with one lane what resps-tune found for this machine, else a fixed tree; with
    several "cost-model", there the row budget, which sizes the trees of all requests together]. ``draft``: a drafter in DRAFTERS [default:
    "eagle+ngram" on the CPU, "eagle" on a GPU, "ngram" if the directory has no draft]. ``backend`` (onnxruntime or tensorrt) and ``device``
    (cpu or cuda): [default: what the directory was exported for]. ``threads``: [default: the physical cores that this process may use, its
    container's CPU quota included]. ``verify``: whether to hash every file [default: those that changed since they were hashed].
    ``engine_dir`` may also be a LoadedEngine, as `fork` passes it. ``lanes``: how many requests run at the same time; one more ``stream``
    raises DecoderBusy. With several, they share each pass, a thread of the Decoder's own runs the passes, and ``stream`` may be called from
    any thread. An answer is the same whoever else is running. ``past_mib``: MiB for past answers, from which later requests draft
    [default: none are kept]. ``fork`` makes another Decoder over the same weights.

    Raises EngineDirError if the directory is missing, incomplete, changed or for another device, GpuMemoryError if the GPU is too small,
    ValueError for an unknown name, and then leaves nothing loaded.
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
        verify: bool | None = None,
        lanes: int = 1,
        past_mib: int = 0,
    ) -> None:
        if lanes < 1:
            raise ValueError(f"lanes must be 1 or more, not {lanes}")
        if isinstance(engine_dir, LoadedEngine):
            loaded = engine_dir
        else:
            choice = choose_engine(Path(engine_dir), draft=draft, backend=backend, device=device, threads=threads, verify=verify)
            check_policy(policy, choice)  # before anything is loaded
            choose_lanes(choice.manifest, lanes, 1, choice.threads, choice.drafter.name, choice.device, choice.backend)
            with NATIVE_CALLS:
                loaded = at_home(load_engine(choice, lanes, past_mib), lanes, partial(Decoder, policy="none", lanes=lanes))
        choice, self.manifest = loaded.choice, loaded.choice.manifest
        self.backend, self.device, self.draft = choice.backend, choice.device, choice.drafter.name
        self._engine, self._policy_argument, self.tokenizer = loaded, policy, loaded.tokenizer
        self._lock = threading.RLock()  # reentrant: a signal handler may call close() in the thread that holds it
        self.lanes, self._running = lanes, list[ActiveRequest]()
        self._closed, self._process, self._totals_recorder = False, os.getpid(), TotalsRecorder()
        with NATIVE_CALLS, ExitStack() as cleanup, memory_errors():
            cleanup.callback(loaded.backend.close)
            self._policies = Policies(context := loaded.policy_context(lanes))
            self._policy = self.policy(None if by_budget(lanes, policy) else policy)
            self._lanes = load_lanes(loaded, lanes, context.costs) if lanes > 1 else None
            self.forest = self._lanes.driver.forest if self._lanes else None
            self.pace = self.forest.pace if self.forest else Pace()  # how long rounds take; zeros with one lane
            if self._lanes is None:
                self.models = load_models(loaded.backend, self.manifest, choice.drafter, self._trees, context.rounds, choice.fixed_tree)
            self._resources = cleanup.pop_all()

    def fork(self, *, reload_tuning: bool = False) -> Decoder:
        """Another Decoder over the same weights, for use in another thread at the same time.

        It has its own cache, buffers and policies; a policy that was given as an object is copied. Closing one Decoder leaves the others
        open, and the last one frees the weights. ``reload_tuning``: with the tuning that the directory has now. Raises DecoderClosed,
        GpuMemoryError if the GPU has no room for another cache, and EngineDirError for a tuning that cannot be used.
        """
        with self._opened():
            policy = deepcopy(self._policy_argument)  # before anything is opened, as it may fail
            loaded = self._engine.fork(reload_tuning)
            return Decoder(at_home(loaded, self.lanes, None) if reload_tuning else loaded, policy=policy, lanes=self.lanes)

    def warmup(self) -> None:
        """Decode a few tokens with each tree of the policy, so that the first request is as fast as later ones. Clears the cache and counts
        nothing. Raises DecoderBusy, DecoderClosed and EngineFailure."""
        warm_up_template(self.manifest, self.tokenizer)
        chosen = self._trees if self._lanes is None else (self.default_tree,)  # nothing is prepared for each tree of a lane
        trees = tuple(dict.fromkeys((*chosen, *(() if self.manifest.tensorrt else (PLAIN,)))))
        make_sampler = (self._lanes or self.models).make_sampler
        for requests in warm_up_requests(self.manifest.limits, self.manifest.shape.vocab, trees, self.lanes, make_sampler):
            for stream in [self._start(request, TotalsRecorder()) for request in requests]:
                stream.result()
            self.forget(past=False)
        with self._lock:
            self._running = [each for each in self._running if not each.ended]

    def forget(self, past: bool = True) -> None:
        """Drop the cached prefix and, with ``past``, all past answers, those of forks included, so that the next request finds nothing. Use
        it to measure, or between users who must not learn from timing what was asked before. Raises DecoderBusy and DecoderClosed."""
        with self._opened():
            if any(not each.ended for each in self._running):
                raise DecoderBusy(_BUSY)
            if past:
                self._engine.forget()
            (self._lanes.driver if self._lanes else self.models).forget()

    @property
    def default_tree(self) -> TreeSpec:
        """The fixed tree of this drafter and precision without a tuning."""
        return self._engine.choice.default_tree

    @property
    def _trees(self) -> tuple[TreeSpec, ...]:
        """The largest trees that the default policy is known to choose, at any temperature."""
        return (*trees_of(self._policy), *trees_of(self.policy(self._policy_argument, 1.0))) or (self.default_tree,)

    def policy(self, policy: Policy | str | None = None, temperature: float = 0.0) -> Policy:
        """The policy with this name [default: the tuned one] for requests of this temperature, built on first use and then kept. Raises
        ValueError for an unknown name, EngineDirError for one that was not tuned, or a fixed tree that the engines were not built for."""
        if policy is None or isinstance(policy, str):
            check_one_of("policy", policy, tuple(dict.fromkeys((*main_policies(), *self.policies))))
            policy = self._policies.get(policy, temperature)
        if isinstance(policy, FixedPolicy):
            check_tree_size(self.manifest, policy.spec)
        return policy

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of the policies available here: plain decoding, a fixed tree, and the tuned ones."""
        return self._policies.names

    @property
    def totals(self) -> Totals:
        """Statistics over all finished requests since this Decoder was loaded or forked."""
        return self._totals_recorder.totals(next((each.request.policy for each in self._running[-1:]), self._policy))

    def listen(self, listener: Listener | None) -> None:
        """Call ``listener`` with the CycleEvent of every cycle from now on, in the thread that decodes; None ends it."""
        self._totals_recorder.listener = listener

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Holds the lock. Raises DecoderClosed."""
        expect_own_process(self._process)  # first: in a forked child the lock may be held for ever
        with self._lock:
            if self._closed:
                raise DecoderClosed(CLOSED)
            yield

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams = SamplingParams(),
        *,
        policy: Policy | str | None = None,
        tenant: str | None = None,
        store: bool = True,
    ) -> Stream:
        """Start a request. Iterate over the returned Stream for its Chunks.

        ``prompt``: plain text, chat messages (rendered by the model's template), or token ids. ``params``: how to sample and when to stop
        (greedy by default). ``policy``: an object or a name, instead of the Decoder's own. ``tenant``: for whom; only prefixes and past
        answers of the same tenant are used. ``store``: whether this answer may be looked up later. Raises PromptError, ParameterError,
        ValueError, TypeError, EngineDirError (a policy that was not tuned), DecoderBusy or DecoderClosed at once, not at the first chunk.
        Iterating may raise EngineFailure.
        """
        check_types(params, policy)
        deadline = None if params.deadline is None else perf_counter() + params.deadline
        ids, parts = self.encode(prompt), self.check(params)
        with self._opened():
            shared = by_budget(self.lanes, self._policy_argument if policy is None else policy)
            chosen = self._policy if shared else self.policy(self._policy_argument if policy is None else policy, params.temperature)
            past, make_sampler = self._engine.past_of(tenant, store), (self._lanes or self.models).make_sampler
            request = new_request(self.manifest, make_sampler, ids, params, parts, chosen, deadline, past, tenant)
            return self._start(request, self._totals_recorder, shared)

    def astream(self, prompt: Prompt, params: SamplingParams = SamplingParams(), **asked: Unpack[Asked]) -> AsyncIterator[Chunk]:
        """The Chunks of ``stream`` with the same arguments, for asyncio. Leaving the loop ends the request."""
        return chunks_of(partial(self.stream, prompt, params, **asked))

    def _start(self, request: Request, recorder: TotalsRecorder, shared: bool = False) -> Stream:
        """``shared``: whether a lane's trees are left to the row budget."""
        expect_own_process(self._process)
        with self._lock:
            self._running = [each for each in self._running if not each.ended]
            if len(self._running) >= self.lanes:
                raise DecoderBusy(_BUSY)
            active = ActiveRequest(request, recorder)
            if self._lanes is not None:
                stream = LaneStream(active, self._lanes.start(active, request, None if shared else request.policy))
                self._running.append(active)
                return stream
            self._running.append(active)
            if self._closed:  # asked only now: close() must find the request
                raise DecoderClosed(CLOSED)
            drafter = self.models.drafter_for(request.policy, request.constraint, request.past)
            return Stream(active, request.run(self.models.target, drafter, self.tokenizer))

    def generate(self, prompt: Prompt, params: SamplingParams = SamplingParams(), **asked: Unpack[Asked]) -> Result:
        """The complete answer: ``stream``, collected."""
        with self.stream(prompt, params, **asked) as stream:
            return stream.result()

    def answers(self, prompt: Prompt, count: int, params: SamplingParams = SamplingParams(), **asked: Unpack[Asked]) -> list[Result]:
        """``count`` answers (1 to 128) to a prompt, which is read once. With a seed they are those of ``params.for_answer(0)``, (1), ..."""
        return answers_of(partial(self.stream, self.encode(prompt), **asked), params, count, self.lanes)

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt in any form, checked against vocabulary and context. Raises PromptError."""
        expect_own_process(self._process)
        expect_form(prompt)
        with NATIVE_CALLS:
            return encode(prompt, self.tokenizer, self.manifest.shape.vocab, self.manifest.limits.context, self.manifest.may_grow)

    def check(self, params: SamplingParams) -> Parts:
        """Raises ParameterError for a parameter that this engine cannot follow, as ``stream`` does. Safe from any thread. What it compiles
        is kept for a while, so that ``stream`` finds it."""
        with NATIVE_CALLS:
            return check_params(self._engine, params)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, without special tokens. Raises ValueError for an id outside the vocabulary."""
        ids = list(tokens)
        for token in ids:
            check_token(token, self.manifest.shape.vocab)
        with NATIVE_CALLS:
            return self.tokenizer.decode([int(token) for token in ids])

    def token_bytes(self, token: int, *, first: bool = False, special: bool = False) -> bytes:
        """The bytes that one token adds to a text. Bytes, because a character may need several tokens; joined, they equal the
        text.

        ``first``: whether the token begins the text, where SentencePiece tokenizers omit one space; in an answer only after a prompt
        without text. ``special``: whether special tokens return their names; otherwise they add nothing, as in ``decode``. Ids in the
        vocabulary without a token return b"". Raises ValueError for an id outside the vocabulary.
        """
        check_token(token, self.manifest.shape.vocab)
        return self.tokenizer.token_bytes(token, first=first, special=special)

    def close(self) -> None:
        """Cancel all requests, wait for the current round, and free everything. May be called repeatedly and from any thread. Called
        inside a round of its own thread, as in a signal handler, it frees after that round. In a forked child it does nothing."""
        if self._process != os.getpid():
            return
        with self._lock:
            self._closed = True
            running = list(self._running)
        for active in running:
            active.request.cancelled = True
        if self._lanes is not None:
            self._lanes.driver.close(self._free)
            return
        for active in running:
            with active.pass_lock:
                if active.in_pass:  # the lock is reentrant, so the pass runs in this thread
                    active.after_pass = self._free
                    return
                active.end()
        self._free()

    def _free(self) -> None:
        with self._lock:
            self._resources.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a Decoder cannot be pickled or copied — load one in every process, or fork() it for another thread")

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
