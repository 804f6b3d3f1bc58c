"""Requests and tokens on Triton's page of metrics."""

from __future__ import annotations

from threading import Lock
from typing import Any


class Counters:
    """``resps:requests_total{outcome}`` and ``resps:generation_tokens_total``; nothing where Triton keeps no metrics."""

    def __init__(self, backend: Any) -> None:
        """``backend``: the module triton_python_backend_utils."""
        self._turn = Lock()  # Triton's counters are not made for several threads
        self._made: dict[str, Any] = {}
        try:
            kinds = backend.MetricFamily
            self._families = [  # a metric lives as long as its family is kept
                kinds(name="resps:requests_total", description="Requests by how they ended", kind=kinds.COUNTER),
                kinds(name="resps:generation_tokens_total", description="Tokens of answers", kind=kinds.COUNTER),
            ]
            self._tokens = self._families[1].Metric(labels={})
        except backend.TritonModelException:  # --allow-metrics=false
            self._families = []

    def ended(self, outcome: str, tokens: int) -> None:
        """A request is over."""
        if not self._families:
            return
        with self._turn:
            if outcome not in self._made:
                self._made[outcome] = self._families[0].Metric(labels={"outcome": outcome})
            self._made[outcome].increment(1)
            if tokens:
                self._tokens.increment(tokens)
