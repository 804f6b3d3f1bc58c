"""The Prometheus metrics of /metrics. Names follow vLLM's, with the prefix ``resps:``; those that vLLM has too come again as ``vllm:``."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..decoding.stats import Stats
from .admission.pool import Pool
from .observation.vllm_names import VllmNames
from .replica import Replica

REQUEST_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
TOKEN_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """The metrics of one server, in a registry of its own. Times are seconds. ``model``: its name, for vLLM's label."""

    def __init__(self, pool: Pool, model: str) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("resps:requests", "Requests by how they ended", ["outcome"], registry=self.registry)
        self.queue_seconds = self._histogram("request_queue_time_seconds", "From arrival to a lane", REQUEST_SECONDS)
        self.first_seconds = self._histogram("time_to_first_token_seconds", "From arrival to the first token", REQUEST_SECONDS)
        self.between_seconds = self._histogram(
            "inter_token_latency_seconds", "A round's time divided by its tokens, once per token", TOKEN_SECONDS
        )
        self.request_seconds = self._histogram("e2e_request_latency_seconds", "From arrival to the end of the answer", REQUEST_SECONDS)
        self._prefill_seconds = self._histogram("request_prefill_time_seconds", "Reading a request's prompt", REQUEST_SECONDS)
        self._decode_seconds = self._histogram("request_decode_time_seconds", "A request's rounds after that", REQUEST_SECONDS)
        self._prompt_tokens = self._histogram("request_prompt_tokens", "Prompt tokens of a request", TOKENS)
        self._generation_tokens = self._histogram("request_generation_tokens", "Tokens of an answer", TOKENS)
        self.registry.register(PoolCollector(pool))
        self._vllm = CollectorRegistry()
        self._vllm.register(VllmNames(self.registry, model))

    def _histogram(self, name: str, description: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"resps:{name}", description, buckets=buckets, registry=self.registry)

    def text(self) -> bytes:
        """The page in Prometheus' text format."""
        return generate_latest(self.registry) + generate_latest(self._vllm)

    def count_answer(self, stats: Stats) -> None:
        """An answer was finished."""
        self._prefill_seconds.observe(stats.prefill_seconds)
        self._decode_seconds.observe(stats.decode_seconds)
        self._prompt_tokens.observe(stats.prompt_tokens)
        self._generation_tokens.observe(stats.new_tokens)


class PoolCollector(Collector):
    """The queue, the replicas' health and their Decoders' totals, read at each scrape."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        pool = self._pool
        yield GaugeMetricFamily("resps:num_requests_running", "Requests that are being decoded", value=pool.running)
        yield GaugeMetricFamily("resps:num_requests_waiting", "Requests in the queue", value=pool.waiting.total())
        waiting = GaugeMetricFamily("resps:num_requests_waiting_by_priority", "Those of one priority", labels=["priority"])
        for priority, count in sorted(pool.waiting.items()):
            waiting.add_metric([str(priority)], count)
        yield waiting
        for name, description, value in (
            ("num_lanes", "Requests that can be decoded at once", lambda replica: replica.lanes),
            ("num_lanes_running", "Those that are being decoded", lambda replica: len(replica.running)),
            ("kv_cache_usage_ratio", "Share of all lanes' cache that running requests hold", _cache_use),
            ("replica_healthy", "1, or 0 after the replica was given up", lambda replica: float(replica.healthy)),
        ):
            family = GaugeMetricFamily(f"resps:{name}", description, labels=["replica"])
            for at, replica in enumerate(pool.replicas):
                family.add_metric([str(at)], value(replica))
            yield family
        yield from self._totals()

    def _totals(self) -> Iterator[Metric]:
        totals = [(str(at), replica.decoder.totals) for at, replica in enumerate(self._pool.replicas)]
        for name, field, description in (
            ("prompt_tokens", "prompt_tokens", "Prompt tokens"),
            ("prompt_tokens_cached", "cached_prompt_tokens", "Prompt tokens found in the KV cache"),
            ("generation_tokens", "generation_tokens", "Generated tokens"),
            ("spec_decode_num_drafts", "num_drafts", "Verified draft trees"),
            ("spec_decode_num_draft_tokens", "num_draft_tokens", "Verified draft tokens, without the roots"),
            ("spec_decode_num_accepted_tokens", "num_accepted_tokens", "Accepted draft tokens"),
            ("passes", "passes", "Verification passes, each of which may serve several requests"),
            ("rows", "rows", "Rows verified in them, roots included"),
            ("prefill_seconds", "prefill_seconds", "Time in prefill"),
            ("draft_seconds", "draft_seconds", "Time in drafting"),
            ("verify_seconds", "verify_seconds", "Time in verification"),
            ("decode_seconds", "decode_seconds", "Time in rounds after prefill"),
        ):
            family = CounterMetricFamily(f"resps:{name}", description, labels=["replica"])
            for replica, total in totals:
                family.add_metric([replica], float(getattr(total, field)))
            yield family
        rows = GaugeMetricFamily("resps:rows_per_pass", "Mean since the start", labels=["replica"])
        positions = CounterMetricFamily(
            "resps:spec_decode_num_accepted_tokens_per_pos", "Accepted draft tokens by depth, from 0", labels=["replica", "position"]
        )
        actions = CounterMetricFamily("resps:policy_actions", "Rounds by the tree that the policy chose", labels=["replica", "tree"])
        watchdog = GaugeMetricFamily("resps:policy_watchdog", "1 for the watchdog's current state", labels=["replica", "state"])
        for replica, total in totals:
            for position, accepted in enumerate(total.num_accepted_tokens_per_pos):
                positions.add_metric([replica, str(position)], accepted)
            for tree, rounds in total.actions.items():
                actions.add_metric([replica, tree], rounds)
            watchdog.add_metric([replica, total.guard], 1.0)
            rows.add_metric([replica], total.rows / max(1, total.passes))
        yield from (rows, positions, actions, watchdog)


def _cache_use(replica: Replica) -> float:
    held = sum(len(request.prompt) + len(request.tokens) for request in replica.running)
    return held / (replica.lanes * replica.decoder.manifest.limits.context)
