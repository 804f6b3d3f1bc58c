"""The sampling graph: temperature, top-k, top-p and inverse CDF, in standard operators.

inputs   logits[1,n,V] float32 · temperature[1] float32 > 0 · top_k[1] int64 (0 = off) · top_p[1] float32 (1 = off)
         uniforms[p] float32, one per position of the sequence · depth[1,n] past[1] int64: row j samples position past + depth[j] + 1
output   token[1,n] int64

A token is determined by the uniform of its position, so the same seed gives the same text for every tree. Top-k and top-p use a threshold
found by bisection, not a sort: sorting a vocabulary takes milliseconds per row, and TensorRT's TopK is limited to 3840. Entries within
BISECTION_RANGE / 2**BISECTIONS (in log-probability) of the threshold are kept, so ties are kept together.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from .builder import BOOL, FLOAT, INT32, INT64, GraphBuilder

BISECTION_RANGE = 104.0  # exp(-104) is 0 in float32, so entries below have no probability
BISECTIONS = 26  # leaves 1.5e-6, about the spacing of float32 there


def build_sample(vocab: int) -> onnx.ModelProto:
    """Build the graph for a vocabulary of ``vocab`` tokens."""
    g = GraphBuilder("sample")
    logits = g.input("logits", FLOAT, [1, "n", vocab])
    temperature = g.input("temperature", FLOAT, [1])
    top_k = g.input("top_k", INT64, [1])
    top_p = g.input("top_p", FLOAT, [1])
    uniforms = g.input("uniforms", FLOAT, ["p"])
    depth, past = g.input("depth", INT64, [1, "n"]), g.input("past", INT64, [1])
    last = g.const([-1])

    scaled = g.op("Div", logits, temperature)
    log_weight = g.op("Sub", scaled, g.op("ReduceMax", scaled, last))  # the largest becomes 0
    weight = g.op("Exp", log_weight)
    one = g.op("ReduceMax", weight, last)  # 1.0, in the shape [1,n,1] of all per-row values

    wanted_k = g.op("Cast", top_k, to=FLOAT)
    unit = g.op("Cast", g.op("GreaterOrEqual", log_weight, g.const(-BISECTION_RANGE, np.float32)), to=FLOAT)
    by_count = _threshold(g, log_weight, unit, wanted_k, g.op("Greater", top_k, g.const([0])), one)
    kept = g.op("Where", g.op("GreaterOrEqual", log_weight, by_count), weight, g.const(0.0, np.float32))
    wanted_mass = g.op("Mul", g.op("ReduceSum", kept, last), top_p)
    by_mass = _threshold(g, log_weight, kept, wanted_mass, g.op("Less", top_p, g.const([1.0], np.float32)), one)
    kept = g.op("Where", g.op("GreaterOrEqual", log_weight, by_mass), kept, g.const(0.0, np.float32))

    cumulative = g.op("CumSum", kept, g.const(2))
    total = g.op("Slice", cumulative, last, g.const([np.iinfo(np.int64).max]), g.const([2]))
    following = g.op("Add", g.op("Add", depth, past), g.const([1]))
    goal = g.op("Mul", total, g.op("Unsqueeze", g.op("Gather", uniforms, following), g.const([2])))
    reached = g.op("Cast", g.op("Greater", cumulative, goal), to=INT32)
    g.op("ArgMax", reached, out="token", axis=-1, keepdims=0)  # the first that exceeds the goal
    g.output("token", INT64, [1, "n"])
    return g.model("resps-export")


def _threshold(g: GraphBuilder, log_weight: str, amount: str, wanted: str, enabled: str, one: str) -> str:
    """[1,n,1]: the largest t with sum(amount where log_weight >= t) >= wanted; -BISECTION_RANGE, which keeps everything, if not enabled."""
    body = GraphBuilder(f"{g.name}_bisection_{len(g)}")
    body.input("step", INT64, [])
    body.input("go", BOOL, [])
    low, high = body.input("low", FLOAT, [1, "n", 1]), body.input("high", FLOAT, [1, "n", 1])
    middle = body.op("Mul", body.op("Add", low, high), body.const(0.5, np.float32))
    above = body.op("Where", body.op("GreaterOrEqual", log_weight, middle), amount, body.const(0.0, np.float32))
    enough = body.op("GreaterOrEqual", body.op("ReduceSum", above, body.const([-1])), wanted)
    body.op("Identity", "go", out="go_on")
    body.op("Where", enough, middle, low, out="next_low")
    body.op("Where", enough, high, middle, out="next_high")
    body.output("go_on", BOOL, [])
    body.output("next_low", FLOAT, [1, "n", 1])
    body.output("next_high", FLOAT, [1, "n", 1])

    trips = g.op("Where", enabled, g.const([BISECTIONS]), g.const([0]))
    lowest = g.op("Mul", one, g.const(-BISECTION_RANGE, np.float32))
    highest = g.op("Mul", one, g.const(1e-3, np.float32))
    true = g.initializer(helper.make_tensor("true", BOOL, [], [True]))
    return g.ops("Loop", g.op("Squeeze", trips, g.const([0])), true, lowest, highest, outs=(None, None), body=body.graph())[0]
