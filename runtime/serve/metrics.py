"""What /metrics tells Prometheus. Names follow vLLM's, under our prefix."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .pool import Pool

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
BETWEEN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """One server's figures, in a registry of their own. Times are seconds."""

    def __init__(self, pool: Pool) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("resps:requests", "Requests by how they ended", ["outcome"], registry=self.registry)
        self.queue_seconds = self._histogram("request_queue_time_seconds", "From arrival to an engine", SECONDS)
        self.first_seconds = self._histogram("time_to_first_token_seconds", "From arrival to the first token", SECONDS)
        self.between_seconds = self._histogram("inter_token_latency_seconds", "A round's time over its tokens, once a token", BETWEEN)
        self.request_seconds = self._histogram("e2e_request_latency_seconds", "From arrival to the end of the answer", SECONDS)
        self.registry.register(PoolFigures(pool))

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"resps:{name}", what, buckets=buckets, registry=self.registry)

    def text(self) -> bytes:
        """The page, in Prometheus' text format."""
        return generate_latest(self.registry)


class PoolFigures(Collector):
    """Read when they are asked for: the queue, the replicas' health, and their Decoders' totals."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        pool = self._pool
        yield GaugeMetricFamily("resps:num_requests_running", "Requests on an engine", value=pool.running)
        yield GaugeMetricFamily("resps:num_requests_waiting", "Requests in the queue", value=pool.waiting)
        healthy = GaugeMetricFamily("resps:replica_healthy", "1, or 0 once it was given up", labels=["replica"])
        for at, replica in enumerate(pool.replicas):
            healthy.add_metric([str(at)], float(replica.healthy))
        yield healthy
        yield from self._totals()

    def _totals(self) -> Iterator[Metric]:
        totals = [(str(at), replica.decoder.totals) for at, replica in enumerate(self._pool.replicas)]
        for name, field, what in (
            ("prompt_tokens", "prompt_tokens", "Prompt tokens"),
            ("prompt_tokens_cached", "cached_prompt_tokens", "Prompt tokens that were in the cache"),
            ("generation_tokens", "generation_tokens", "Tokens of answers"),
            ("spec_decode_num_drafts", "num_drafts", "Drafts verified"),
            ("spec_decode_num_draft_tokens", "num_draft_tokens", "Draft tokens verified, roots not counted"),
            ("spec_decode_num_accepted_tokens", "num_accepted_tokens", "Draft tokens accepted"),
            ("prefill_seconds", "prefill_seconds", "Time in prefill"),
            ("draft_seconds", "draft_seconds", "Time in the draft"),
            ("verify_seconds", "verify_seconds", "Time in verification"),
            ("decode_seconds", "decode_seconds", "Time in rounds"),
        ):
            family = CounterMetricFamily(f"resps:{name}", what, labels=["replica"])
            for replica, total in totals:
                family.add_metric([replica], float(getattr(total, field)))
            yield family
        positions = CounterMetricFamily(
            "resps:spec_decode_num_accepted_tokens_per_pos", "Draft tokens accepted, by depth from 0", labels=["replica", "position"]
        )
        actions = CounterMetricFamily("resps:policy_actions", "Rounds by the tree that was asked for", labels=["replica", "tree"])
        guard = GaugeMetricFamily("resps:policy_watchdog", "1 for what the watchdog lets decide", labels=["replica", "state"])
        for replica, total in totals:
            for position, accepted in enumerate(total.num_accepted_tokens_per_pos):
                positions.add_metric([replica, str(position)], accepted)
            for tree, rounds in total.actions.items():
                actions.add_metric([replica, tree], rounds)
            guard.add_metric([replica, total.guard], 1.0)
        yield from (positions, actions, guard)
