"""The metrics of /metrics once more under vLLM's names and labels, so that dashboards and load generators made for vLLM can read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

OURS, THEIRS = "resps:", "vllm:"
SAME = (
    "num_requests_running",
    "num_requests_waiting",
    "prompt_tokens",
    "generation_tokens",
    "spec_decode_num_drafts",
    "spec_decode_num_draft_tokens",
    "spec_decode_num_accepted_tokens",
    "spec_decode_num_accepted_tokens_per_pos",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
)
NAMES: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in SAME},
    "prompt_tokens": ("prompt_tokens", "prefix_cache_queries"),
    "prompt_tokens_cached": ("prefix_cache_hits",),
    "kv_cache_usage_ratio": ("kv_cache_usage_perc",),
    "requests": ("request_success",),
}
"""vLLM's names by ours, without prefixes and suffixes."""
FINISHED = {"eos": "stop", "stop_string": "stop", "length": "length", "deadline": "length", "disconnected": "abort", "slow_reader": "abort"}
"""vLLM's finished_reason by our outcome. It does not count requests that were refused."""


class VllmNames(Collector):
    """Reads ``registry`` at each scrape. ``model``: the label model_name of every metric; our replica is vLLM's engine."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self._registry, self._model = registry, model

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            name = family.name.removeprefix(OURS)
            for theirs in NAMES.get(name, ()):
                found = Metric(THEIRS + theirs, family.documentation, family.type)
                found.samples = _summed([self._renamed(each, OURS + name, THEIRS + theirs) for each in family.samples if _is_known(each)])
                yield found

    def _renamed(self, sample: Sample, ours: str, theirs: str) -> Sample:
        labels = {"model_name": self._model, "engine": sample.labels.get("replica", "0")}
        labels |= {name: value for name, value in sample.labels.items() if name not in ("replica", "outcome")}
        if "outcome" in sample.labels:
            labels["finished_reason"] = FINISHED[sample.labels["outcome"]]
        return sample._replace(name=sample.name.replace(ours, theirs, 1), labels=labels)


def _is_known(sample: Sample) -> bool:
    return sample.labels.get("outcome", "eos") in FINISHED and not sample.name.endswith("_created")


def _summed(samples: Sequence[Sample]) -> list[Sample]:
    """One sample for each set of labels: several of our outcomes are one reason of vLLM's."""
    sums: dict[tuple[str, frozenset[tuple[str, str]]], Sample] = {}
    for sample in samples:
        key = (sample.name, frozenset(sample.labels.items()))
        sums[key] = sample._replace(value=sample.value + (sums[key].value if key in sums else 0.0))
    return list(sums.values())
