"""Statistics in an answer's body, in the forms of vLLM and llama.cpp."""

from __future__ import annotations

from typing import Any

from ...decoding.stats import Stats


def speculative_decoding(stats: Stats) -> dict[str, Any]:
    """vLLM's ``metrics.speculative_decoding``. Steps are rounds that drafted. ``num_spec_tokens`` is left out: a policy changes it."""
    per_position = stats.num_accepted_tokens_per_pos
    at_least = (stats.drafts, *per_position, 0)
    return {
        "mean_acceptance_length": 1 + stats.accepted / stats.drafts if stats.drafts else 1.0,
        "draft_acceptance_rate": stats.accepted / stats.drafted if stats.drafted else 0.0,
        "acceptance_histogram": [at_least[at] - at_least[at + 1] for at in range(len(per_position) + 1)],
        "num_spec_steps": stats.drafts,
        "num_accepted_draft_tokens": stats.accepted,
        "num_draft_tokens": stats.drafted,
    }


def timings(stats: Stats) -> dict[str, Any]:
    """llama.cpp's ``timings``: milliseconds, and tokens a second."""
    read = stats.prompt_tokens - stats.cached_prompt_tokens
    prompt_ms, predicted_ms = 1000 * stats.prefill_seconds, 1000 * stats.decode_seconds
    return {
        "cache_n": stats.cached_prompt_tokens,
        "prompt_n": read,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / max(1, read),
        "prompt_per_second": 1000 * read / prompt_ms if prompt_ms else 0.0,
        "predicted_n": stats.new_tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / max(1, stats.new_tokens),
        "predicted_per_second": stats.tokens_per_second,
        "draft_n": stats.drafted,
        "draft_n_accepted": stats.accepted,
    }


def statistics(answers: list[Stats], with_metrics: bool, with_timings: bool) -> dict[str, Any]:
    """The fields ``metrics`` and ``timings`` of a body, if they are asked for. Only one answer has them, as in vLLM."""
    if len(answers) != 1:
        return {}
    metrics = {"metrics": {"speculative_decoding": speculative_decoding(answers[0])}} if with_metrics else {}
    return metrics | ({"timings": timings(answers[0])} if with_timings else {})
