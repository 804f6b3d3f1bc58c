"""This project. Options: engine_dir; policy: none, default (the default tree) or tuned (the Decoder's choice)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from policy import FixedPolicy
from runtime import Decoder, SamplingParams
from runtime.drafters.registry import DRAFTERS
from runtime.policies.load import default_tree
from scripts.peers.protocol import PeerAnswer, PeerJob, Stopwatch

ROWS = 32


class RespsEngine:
    def __init__(self, job: PeerJob) -> None:
        which, engine_dir = job.options["policy"], Path(job.options["engine_dir"])
        if which == "none":
            self._decoder = Decoder(engine_dir, policy="none", draft="none", threads=job.threads)
        elif which == "default":
            from runtime.manifest.load import find_engine_dir, load_manifest

            manifest = load_manifest(find_engine_dir(engine_dir), verify=False)
            tree = default_tree(DRAFTERS["eagle" if manifest.draft else "ngram"], manifest)
            self._decoder = Decoder(engine_dir, policy=FixedPolicy(tree), threads=job.threads)
        else:
            self._decoder = Decoder(engine_dir, threads=job.threads)
        self._stop = job.stop

    def answer(self, prompt: list[int], new_tokens: int) -> PeerAnswer:
        self._decoder.forget()  # the other engines compute every prompt too
        stopwatch = Stopwatch()
        with self._decoder.stream(prompt, SamplingParams(max_new_tokens=new_tokens)) as stream:
            for chunk in stream:
                stopwatch.saw(list(chunk.tokens))
        return stopwatch.answer(self._stop)

    def logits(self, tokens: list[int], start: int) -> np.ndarray:
        return logits_of(self._decoder, tokens, start)


def logits_of(decoder: Decoder, tokens: list[int], start: int) -> np.ndarray:
    """Logits after each token from ``start`` on, float32 [len(tokens) - start, V]; computed in passes of at most ROWS rows."""
    decoder.forget()
    target, rows = decoder.models.target, []
    step = min(ROWS, target.limits.tree_nodes)
    target.cache.truncate(0)
    for _ in target.prefill(tokens[:start]):
        pass
    for at in range(start, len(tokens), step):
        chain = tokens[at : at + step]
        rows.append(target.verify_chain(chain).logits.copy())
        target.commit(range(len(chain)))
    return np.concatenate(rows)


def open_engine(job: PeerJob) -> RespsEngine:
    return RespsEngine(job)
