"""The two graphs that grow a draft tree without copies to the host (EAGLE-2's algorithm): `expand` adds a level, `tree` selects the nodes.

expand   inputs   log_probs[b,k] float32 · candidates[b,k] int64 · next_hidden[1,m,H] · rows[b] int64 · beam[k] int64 (0, 1, ..., k - 1)
                  scores[b] float32 · ids[b] int64 · mask[b,w] bool · pool_scores[p] float32 · pool_tokens[p] pool_parents[p] int64
         outputs  tokens[1,k] · hidden[1,k,H] · next_scores[k] · next_ids[k] · next_mask[k,v] with v = w + k
                  next_pool_scores / _tokens / _parents [q] with q = p + b * k
tree     inputs   pool_scores[p] · pool_tokens[p] · pool_parents[p] · nodes[n] (only its length counts)
         outputs  tokens[n] parent[n] depth[n] int64 · tree_mask[n,n] bool

The pool holds the root (entry 0, score 0, parent -1) and all candidates of all levels. ``ids`` are the pool entries of the beams,
``scores`` their summed log-probabilities. A candidate's score is its parent's score plus its own log-probability minus LEVEL_PENALTY.
Log-probabilities are at least LEAST, and NaN becomes LEAST: otherwise NaN could rank before the root, and a tree without its root changes
answers.
"""

from __future__ import annotations

import numpy as np
import onnx

from .builder import BOOL, FLOAT, INT64, GraphBuilder

# Makes every child score lower than its parent, even if its probability rounds to one, so the best entries of the pool form a tree. (EAGLE
# relies on TopK's order of ties for that, which may fail: SGLang issue 7477.)
LEVEL_PENALTY = 1e-5
LEAST = -1e4
MAX_DEPTH = 16
_SQUARINGS = 4  # 2**4 = MAX_DEPTH levels of ancestors


def build_expand(hidden: int, kind: int) -> onnx.ModelProto:
    """Build `expand`. ``hidden``: size of the draft's hidden states. ``kind``: their ONNX type."""
    g = GraphBuilder("expand")
    log_probs, candidates = g.input("log_probs", FLOAT, ["b", "k"]), g.input("candidates", INT64, ["b", "k"])
    next_hidden = g.input("next_hidden", kind, [1, "m", hidden])
    rows, beam = g.input("rows", INT64, ["b"]), g.input("beam", INT64, ["k"])
    scores, ids, mask = g.input("scores", FLOAT, ["b"]), g.input("ids", INT64, ["b"]), g.input("mask", BOOL, ["b", "w"])
    pool = {name: g.input(f"pool_{name}", FLOAT if name == "scores" else INT64, ["p"]) for name in ("scores", "tokens", "parents")}
    last, flat = g.const([1]), g.const([-1])

    own = g.op("Sub", log_probs, g.const(LEVEL_PENALTY, np.float32))
    least = g.const(LEAST, np.float32)
    own = g.op("Where", g.op("Greater", own, least), own, least)  # NaN is not greater
    summed = g.op("Reshape", g.op("Add", g.op("Unsqueeze", scores, last), own), flat)
    tokens = g.op("Reshape", candidates, flat)
    parents = g.op("Reshape", g.op("Expand", g.op("Unsqueeze", ids, last), g.op("Shape", log_probs)), flat)
    for name, new in (("scores", summed), ("tokens", tokens), ("parents", parents)):
        g.op("Concat", pool[name], new, out=f"next_pool_{name}", axis=0)

    _, chosen = g.ops("TopK", summed, g.op("Shape", beam), outs=("next_scores", None), axis=0)
    source = g.op("Div", chosen, g.op("Shape", beam))
    g.op("Unsqueeze", g.op("Gather", tokens, chosen), g.const([0]), out="tokens")
    g.op("Gather", next_hidden, g.op("Gather", rows, source), out="hidden", axis=1)
    g.op("Add", chosen, g.op("Shape", pool["scores"]), out="next_ids")
    itself = g.op("Equal", g.op("Unsqueeze", beam, last), g.op("Unsqueeze", beam, g.const([0])))
    g.op("Concat", g.op("Gather", mask, source), itself, out="next_mask", axis=1)

    g.output("tokens", INT64, [1, "k"])
    g.output("hidden", kind, [1, "k", hidden])
    g.output("next_scores", FLOAT, ["k"])
    g.output("next_ids", INT64, ["k"])
    g.output("next_mask", BOOL, ["k", "v"])
    for name in pool:
        g.output(f"next_pool_{name}", FLOAT if name == "scores" else INT64, ["q"])
    return g.model("resps-export")


def build_tree() -> onnx.ModelProto:
    """Build `tree` (EAGLE-2's reranking): the root and the best n - 1 candidates, in pool order, so that parents precede their children."""
    g = GraphBuilder("tree")
    scores, tokens, parents = (
        g.input("pool_scores", FLOAT, ["p"]),
        g.input("pool_tokens", INT64, ["p"]),
        g.input("pool_parents", INT64, ["p"]),
    )
    count = g.op("Shape", g.input("nodes", INT64, ["n"]))
    row, column = g.const([0]), g.const([1])

    _, best = g.ops("TopK", scores, count, outs=(None, None), axis=0)
    ordered, _ = g.ops("TopK", g.op("Cast", best, to=FLOAT), count, outs=(None, None), axis=0, largest=0)  # exact below 2**24
    chosen = g.op("Cast", ordered, to=INT64)
    g.op("Gather", tokens, chosen, out="tokens")
    above = g.op("Gather", parents, chosen)
    is_parent = g.op("Cast", g.op("Equal", g.op("Unsqueeze", above, column), g.op("Unsqueeze", chosen, row)), to=FLOAT)
    place = g.op("ArgMax", is_parent, axis=1, keepdims=0)
    g.op("Where", g.op("Less", above, g.const([0])), g.const([-1]), place, out="parent")

    itself = g.op("Cast", g.op("Equal", g.op("Unsqueeze", chosen, column), g.op("Unsqueeze", chosen, row)), to=FLOAT)
    ancestors = g.op("Add", itself, is_parent)
    for _ in range(_SQUARINGS):
        ancestors = g.op("Min", g.op("MatMul", ancestors, ancestors), g.const(1.0, np.float32))
    g.op("Greater", ancestors, g.const(0.5, np.float32), out="tree_mask")
    g.op("Cast", g.op("Sub", g.op("ReduceSum", ancestors, column, keepdims=0), g.const(1.0, np.float32)), out="depth", to=INT64)
    for name in ("tokens", "parent", "depth"):
        g.output(name, INT64, ["n"])
    g.output("tree_mask", BOOL, ["n", "n"])
    return g.model("resps-export")
