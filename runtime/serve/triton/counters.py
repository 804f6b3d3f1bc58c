"""Request and token counters in Triton's metrics."""

from __future__ import annotations

from threading import Lock
from typing import Any


class Counters:
    """``resps:requests_total{outcome}`` and ``resps:generation_tokens_total``. Does nothing if Triton's metrics are disabled."""

    def __init__(self, backend: Any) -> None:
        """``backend``: the module triton_python_backend_utils."""
        self._lock = Lock()  # Triton's counters are not thread-safe
        self._requests: dict[str, Any] = {}
        try:
            kinds = backend.MetricFamily
            self._families = [  # kept, because a family's metrics end with it
                kinds(name="resps:requests_total", description="Requests by how they ended", kind=kinds.COUNTER),
                kinds(name="resps:generation_tokens_total", description="Generated tokens", kind=kinds.COUNTER),
            ]
            self._tokens = self._families[1].Metric(labels={})
        except backend.TritonModelException:  # --allow-metrics=false
            self._families = []

    def count(self, outcome: str, tokens: int) -> None:
        """Count a finished request and its generated tokens."""
        if not self._families:
            return
        with self._lock:
            if outcome not in self._requests:
                self._requests[outcome] = self._families[0].Metric(labels={"outcome": outcome})
            self._requests[outcome].increment(1)
            if tokens:
                self._tokens.increment(tokens)
