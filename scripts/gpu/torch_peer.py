"""The same target in transformers on the same GPU: passes of one token and of a tree's rows, also in CUDA graphs."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

PAST, TIMES, CAPACITY = 512, 50, 1024
ROWS = (1, 8, 16, 32, 64)


def torch_peer(folder: Path) -> dict[str, Any]:
    """Median milliseconds of a pass, by number of rows. ``folder``: written by `random_model`."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "target", dtype=torch.bfloat16).to("cuda").eval()
    report: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    with torch.inference_mode():
        report["eager_ms"] = {str(rows): _time(_step(model, rows)) for rows in ROWS}
        report["cuda_graph_ms"] = {str(rows): _graphed(_step(model, rows)) for rows in ROWS}
        try:
            compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
            report["compiled_ms"] = {str(rows): _time(_step(compiled, rows, model)) for rows in (1, 32)}
        except Exception as error:  # the peer's failure is reported, not raised
            report["compiled_ms"] = {"error": f"{type(error).__name__}: {error}"[:300]}
    return report


def _step(run: Any, rows: int, model: Any = None) -> Any:
    """A function that runs a forward pass of ``rows`` tokens behind PAST cached ones."""
    import torch
    from transformers import StaticCache

    cache = StaticCache(config=(model or run).config, max_cache_len=CAPACITY)
    ids = torch.full((1, PAST), 7, device="cuda")
    (model or run)(ids, past_key_values=cache, cache_position=torch.arange(PAST, device="cuda"), use_cache=True)
    tokens, positions = ids[:, :rows].clone(), torch.arange(PAST, PAST + rows, device="cuda")

    def step() -> Any:
        return run(tokens, past_key_values=cache, cache_position=positions, position_ids=positions[None], use_cache=True).logits

    return step


def _time(step: Any) -> float:
    import torch

    for _ in range(5):
        step()
    times = []
    for _ in range(TIMES):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return round(statistics.median(times), 3)


def _graphed(step: Any) -> float:
    import torch

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return _time(graph.replay)
