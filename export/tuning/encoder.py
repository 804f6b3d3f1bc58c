"""A BERT encoder of sentences as a graph (Re-SpS' other state: all-MiniLM-L6-v2), node by node, from its checkpoint.

inputs   tokens[1,n] int64 · mask[1,n] float32, 1 where there is a word piece and 0 where there is padding
outputs  embedding[1,E] float32 of length 1: the mean over the word pieces

Embeddings of word, position and type; layers whose norms come after the sums, with erf-GELU. Float32 throughout: a policy's state needs
no more speed than a graph that is asked every thirtieth round has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

import numpy as np
import onnx

from runtime.manifest.graphs import Graph, Tensor, sha256_of
from runtime.policies.encoder import PIECES

from ..checkpoints.safetensors import SafetensorsFiles, read_json
from ..errors import CheckpointError, UnsupportedModel
from ..graphs.builder import FLOAT, INT64, GraphBuilder
from ..graphs.weights import WeightFile, row_chunks

HIDDEN_MASK = -1e9  # added to the scores of padding
LEAST_LENGTH = 1e-12  # of the mean before it is scaled, as sentence-transformers has it


@dataclass(frozen=True)
class Shape:
    """What config.json says of the encoder."""

    layers: int
    hidden: int
    heads: int
    epsilon: float
    positions: int


@dataclass(frozen=True)
class Written:
    """The files of an encoder in ``folder``, named after their contents: ``graph``'s, its weights ``data`` and the ``tokenizer``.
    ``pieces``: the most word pieces of a pass; ``size``: of the embedding."""

    folder: Path
    graph: Graph
    data: str
    tokenizer: str
    pieces: int
    size: int

    @property
    def files(self) -> tuple[str, str, str]:
        return self.graph.file, self.data, self.tokenizer


def write_encoder(source: Path, folder: Path, prefix: str) -> Written:
    """Turn the checkpoint in ``source`` (config.json, tokenizer.json and safetensors) into files in ``folder`` whose names begin with
    ``prefix``. Raises UnsupportedModel for one that is no plain BERT, CheckpointError for one that is not whole."""
    shape, weights = read_shape(source), SafetensorsFiles(source)
    if not (source / "tokenizer.json").is_file():
        raise CheckpointError(f"{source} lacks tokenizer.json — an encoder of text needs it")
    pieces, raw = min(PIECES, shape.positions), folder / "encoder.data"
    with WeightFile(raw) as file:
        model = _graph(shape, weights, file)
    data = f"{prefix}encoder-{file.sha256[:12]}.data"
    raw.rename(folder / data)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data
    onnx.save(model, folder / "encoder.onnx")
    onnx.checker.check_model(str(folder / "encoder.onnx"))
    names = []
    copyfile(source / "tokenizer.json", folder / "encoder.json")
    for plain in (folder / "encoder.onnx", folder / "encoder.json"):
        names.append(f"{prefix}encoder-{sha256_of(plain)[:12]}{plain.suffix}")
        plain.rename(folder / names[-1])
    inputs = {"tokens": Tensor("int64", (1, "n")), "mask": Tensor("float32", (1, "n"))}
    graph = Graph(names[0], None, (), inputs, {"embedding": Tensor("float32", (1, shape.hidden))})
    return Written(folder, graph, data, names[1], pieces, shape.hidden)


def read_shape(source: Path) -> Shape:
    """Raises UnsupportedModel for what the graph would not compute."""
    config = read_json(source / "config.json")
    found = (config.get("model_type"), config.get("hidden_act"), config.get("position_embedding_type") or "absolute")
    if found != ("bert", "gelu", "absolute"):
        raise UnsupportedModel(f"{source} is a {found[0]} with {found[1]} and {found[2]} positions — an encoder of text is a plain BERT")
    try:
        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "layer_norm_eps", "max_position_embeddings")
        layers, hidden, heads, epsilon, positions = (config[name] for name in names)
        shape = Shape(int(layers), int(hidden), int(heads), float(epsilon), int(positions))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source / 'config.json'} does not say how large the encoder is: {error} — download it again") from None
    if shape.heads < 1 or shape.hidden % shape.heads:
        raise UnsupportedModel(f"{source}: {shape.heads} heads do not divide {shape.hidden} numbers — download it again")
    return shape


class _Weights:
    """Tensors of the checkpoint on their way into the weight file."""

    def __init__(self, g: GraphBuilder, source: SafetensorsFiles, file: WeightFile) -> None:
        self._g, self._source, self._file = g, source, file
        self._prefix = "bert." if any(name.startswith("bert.") for name in source.names()) else ""

    def __call__(self, *names: str) -> str:
        """One tensor, or several of equal width one below the other."""
        full = [self._prefix + name for name in names]
        shapes = [self._source.shape(name) for name in full]
        chunks: Iterable[np.ndarray] = (chunk for name in full for chunk in row_chunks(self._source, name))
        rows = sum(shape[0] for shape in shapes)
        return self._g.initializer(self._file.add(names[0], FLOAT, (rows, *shapes[0][1:]), chunks))

    def linear(self, value: str, *layers: str) -> str:
        """[n, inputs] -> [n, outputs], of several layers side by side."""
        weight, bias = (self(*(f"{layer}.{part}" for layer in layers)) for part in ("weight", "bias"))
        return self._g.op("Gemm", value, weight, bias, transB=1)

    def norm(self, value: str, layer: str, epsilon: float) -> str:
        return self._g.op("LayerNormalization", value, self(f"{layer}.weight"), self(f"{layer}.bias"), axis=-1, epsilon=epsilon)


def _graph(shape: Shape, source: SafetensorsFiles, file: WeightFile) -> onnx.ModelProto:
    g = GraphBuilder("encoder")
    tokens, mask = g.input("tokens", INT64, [1, "n"]), g.input("mask", FLOAT, [1, "n"])
    weights = _Weights(g, source, file)
    flat = g.op("Reshape", tokens, g.const([-1]))
    count = g.op("Squeeze", g.op("Shape", flat), g.const([0]))
    places = g.op("Range", g.const(0), count, g.const(1))
    words = g.op("Gather", weights("embeddings.word_embeddings.weight"), flat)
    kinds = g.op("Gather", weights("embeddings.token_type_embeddings.weight"), g.const([0]))
    where = g.op("Gather", weights("embeddings.position_embeddings.weight"), places)
    value = weights.norm(g.op("Add", g.op("Add", words, kinds), where), "embeddings.LayerNorm", shape.epsilon)
    hidden = g.op("Mul", g.op("Sub", g.const(1, np.float32), mask), g.const(HIDDEN_MASK, np.float32))
    for index in range(shape.layers):
        value = _layer(g, weights, shape, f"encoder.layer.{index}", value, hidden)
    mean = g.op("Div", g.op("MatMul", mask, value), g.op("ReduceSum", mask, g.const([1])))
    length = g.op("Max", g.op("ReduceL2", mean, g.const([1])), g.const(LEAST_LENGTH, np.float32))
    g.op("Div", mean, length, out="embedding")
    g.output("embedding", FLOAT, [1, shape.hidden])
    return g.model("resps-export")


def _layer(g: GraphBuilder, weights: _Weights, shape: Shape, name: str, value: str, hidden: str) -> str:
    """[n, H] -> [n, H]; ``hidden`` [1, n] hides padding."""
    size, attention = shape.hidden // shape.heads, f"{name}.attention"
    joined = weights.linear(value, *(f"{attention}.self.{part}" for part in ("query", "key", "value")))
    heads = g.op("Transpose", g.op("Reshape", joined, g.const([-1, 3, shape.heads, size])), perm=[1, 2, 0, 3])
    query, key, content = g.ops("Split", heads, outs=(None, None, None), axis=0, num_outputs=3)
    scores = g.op("MatMul", query, g.op("Transpose", key, perm=[0, 1, 3, 2]))
    scores = g.op("Add", g.op("Mul", scores, g.const(size**-0.5, np.float32)), hidden)
    seen = g.op("MatMul", g.op("Softmax", scores, axis=-1), content)
    seen = g.op("Reshape", g.op("Transpose", seen, perm=[0, 2, 1, 3]), g.const([-1, shape.hidden]))
    value = g.op("Add", weights.linear(seen, f"{attention}.output.dense"), value)
    value = weights.norm(value, f"{attention}.output.LayerNorm", shape.epsilon)
    wide = g.op("Gelu", weights.linear(value, f"{name}.intermediate.dense"))
    value = g.op("Add", weights.linear(wide, f"{name}.output.dense"), value)
    return weights.norm(value, f"{name}.output.LayerNorm", shape.epsilon)
