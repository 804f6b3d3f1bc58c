"""Throws what strangers may send at everything that reads it: files, prompts, wishes, tree shapes.

    python -m tests.stress.fuzz --engine-dir DIR --cases 100000

Whatever comes, the answer must be a result or one clear line: RespsError, ValueError or TypeError; never another exception, a wrong result,
or a hang (a case that takes a minute ends the run with a traceback). Prints JSON: cases and how they ended, target by target. hypothesis
shrinks what fails.
"""

from __future__ import annotations

import faulthandler
import json
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from export.checkpoints.gguf import GgufCheckpoint
from export.checkpoints.safetensors import SafetensorsFiles
from policy import FixedPolicy, TreeSpec
from runtime import Decoder, RespsError, SamplingParams
from runtime.errors import EngineDirError
from runtime.manifest.graphs import FILE_NAME
from runtime.manifest.load import load_manifest
from runtime.manifest.onnx_files import external_files
from runtime.manifest.typed_json import Malformed
from runtime.text.detokenizer import Detokenizer, StopStrings

EXPECTED = (RespsError, ValueError, TypeError)
HANGS = 60  # seconds
TOKENS = 3


@dataclass(frozen=True)
class Target:
    """``share`` of all cases; ``check`` may raise what is EXPECTED and nothing else."""

    name: str
    share: float
    cases: st.SearchStrategy[Any]
    check: Callable[[Any], object]


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([-1, 0, 1, 2**31, 2**63, 2**64, 10**30])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6
)
any_text = st.text(st.characters(exclude_categories=()), max_size=60)  # lone surrogates among them
special = st.sampled_from(
    ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "</s>", "{{ x }}", "{% raw %}", "\0", "\ufffd", "\u200d", "e\u0301"]
)
texts = st.lists(any_text | special, max_size=6).map("".join)


def _changed(data: Any, steps: list[int], action: int, value: Any) -> Any:
    """``data`` with one place of it, found by ``steps``, replaced, removed, doubled or added to."""
    if isinstance(data, (dict, list)) and data and steps:
        keys: Any = list(data) if isinstance(data, dict) else range(len(data))
        key = keys[steps[0] % len(keys)]
        copy = data.copy()
        if len(steps) == 1 and action == 0:
            del copy[key]
        elif len(steps) == 1 and action == 1 and isinstance(copy, dict):
            copy[f"{key}x"] = value
        else:
            copy[key] = _changed(data[key], steps[1:], action, value)
        return copy
    return -data if action == 2 and isinstance(data, int) else data * 1000 if action == 3 and isinstance(data, int) else value


def _cut(data: bytes, edits: list[tuple[int, bytes, int]]) -> bytes:
    """``data`` with pieces written over it, put in, or cut off after."""
    for place, piece, kind in edits:
        at = place % (len(data) + 1)
        data = data[:at] + piece + data[at + len(piece) * (kind == 0) :] if kind < 2 else data[:at]
    return data


numbers = st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1])
pieces = (
    st.binary(max_size=9) | numbers.map(lambda number: struct.pack("<Q", number)) | st.sampled_from([struct.pack("<I", 9), b"\xff" * 4])
)
edits = st.lists(st.tuples(st.integers(0, 1 << 12), pieces, st.sampled_from([0, 0, 0, 1, 1, 2])), min_size=1, max_size=4)


def manifests(directory: Path) -> tuple[st.SearchStrategy[str], Callable[[str], object]]:
    """Manifests that are nearly right, beside the true files."""
    true = (directory / FILE_NAME).read_text(encoding="utf-8")
    data = json.loads(true)
    steps = st.lists(st.integers(0, 30), min_size=1, max_size=6)
    changes = st.lists(st.tuples(steps, st.integers(0, 5), values), min_size=1, max_size=3)

    def mutated(made: list[tuple[list[int], int, Any]]) -> str:
        result = data
        for step, action, value in made:
            result = _changed(result, step, action, value)
        return json.dumps(result)

    raw = edits.map(lambda made: _cut(true.encode(), made).decode("utf-8", "replace"))

    def check(text: str) -> None:
        (directory / FILE_NAME).write_text(text, encoding="utf-8")
        load_manifest(directory, verify=False)

    return changes.map(mutated) | raw, check


def decoders(directory: Path) -> tuple[st.SearchStrategy[str], Callable[[str], object]]:
    """The same, loaded and asked where the manifest is believed: sizes that do not fit the graphs must not get past the engine."""
    cases, check = manifests(directory)

    def load(text: str) -> None:
        check(text)
        with Decoder(directory, threads=1, verify=False) as decoder:
            decoder.generate("the cat", SamplingParams(max_new_tokens=TOKENS))

    return cases, load


def check_text(decoder: Decoder) -> Callable[[Any], object]:
    def check(prompt: Any) -> None:
        ids = decoder.encode(prompt)
        detokenizer = Detokenizer(decoder._tokenizer)
        pieces = [detokenizer.push(token) for token in ids]
        expect("".join(pieces) + detokenizer.flush() == decoder._tokenizer.decode(ids), "pieces are not the whole")

    return check


messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]) | texts, "content": texts})
    | st.dictionaries(st.sampled_from(["role", "content", "name"]), values, max_size=3),
    max_size=4,
)
prompts = (
    texts | texts.map(lambda text: text * 500) | messages | st.lists(st.integers(-2, 400), max_size=8) | values | st.binary(max_size=6)
)


def check_stops(case: tuple[list[str], list[str]]) -> None:
    stops, came = case
    cutter, shown, whole = StopStrings(tuple(stops)), "", "".join(came)
    for piece in came:
        shown += cutter.push(piece)
        if cutter.found:
            expect(whole.startswith(shown), "what is shown is not the text")
            expect(any(whole[len(shown) :].startswith(stop) for stop in stops), "cut where no stop string is")
            break
    else:
        expect(shown + cutter.flush() == whole, "text was lost")
    expect(not any(stop in shown for stop in stops), "a stop string was shown")


def check_tree(case: tuple[int, int, int, int]) -> None:
    """Any shape through the loop, on a target that any mistake changes."""
    from runtime.decoding.loop import begin, prefill, rounds
    from runtime.decoding.sampling import greedy
    from runtime.drafters.ngram import NgramDrafter
    from tests.support.fakes import LIMITS, VOCAB, toy_logits, toy_target
    from tests.support.planted import PlantedDrafter

    nodes, depth, width, number = case
    spec = TreeSpec(nodes, depth, width)
    prompt, answer = [3, 1, 4, 1, 5], list[int]()
    while len(answer) < 8:
        answer.append(int(toy_logits([*prompt, *answer]).argmax()))
    drafters: list[Any] = [NgramDrafter()]
    if spec.depth and spec.width and spec.nodes <= min(LIMITS.tree_nodes, 1 + 4 * spec.depth):
        drafters.append(PlantedDrafter(len(prompt), answer, VOCAB, number))
    for drafter in drafters:
        target = toy_target()
        begin(target, drafter, prompt)
        root = next(prefill(target, drafter, greedy, prompt))
        assert root is not None
        came = [root.token, *(token for each in rounds(target, drafter, FixedPolicy(spec), greedy, root, 7) for token in each.tokens)]
        expect(came == answer, f"{came} is not {answer}")


def a_gguf(directory: Path) -> bytes:
    """A small model's header with every kind of value."""
    from gguf import GGUFWriter

    writer = GGUFWriter(directory / "true.gguf", "llama")
    for key, value in {"embedding_length": 64, "feed_forward_length": 96, "block_count": 1, "attention.head_count": 4}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.context_length", 128)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
    for part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        part()
    writer.close()
    return (directory / "true.gguf").read_bytes()


def a_safetensors(directory: Path) -> bytes:
    from safetensors.numpy import save_file

    save_file({"w": np.zeros((2, 3), np.float32), "v": np.zeros(4, np.float16)}, directory / "true.safetensors")
    data = (directory / "true.safetensors").read_bytes()
    (directory / "true.safetensors").unlink()
    return data


def files(
    name: str, true: bytes, directory: Path, read: Callable[[Path], object]
) -> tuple[st.SearchStrategy[bytes], Callable[[bytes], object]]:
    def check(data: bytes) -> None:
        (directory / name).write_bytes(data)
        read(directory / name)

    return edits.map(lambda made: _cut(true, made)) | st.binary(max_size=64), check


def check_graph(data: bytes) -> None:
    try:
        external_files(data)
    except Malformed as problem:
        raise EngineDirError(f"no graph: {problem} — export again") from None


wishes = st.fixed_dictionaries(
    {},
    optional={
        "max_new_tokens": st.integers(-1, TOKENS) | values,
        "stop": st.lists(texts, max_size=3) | values,
        "logprobs": st.integers(-1, 22) | values,
        "deadline": st.floats() | values,
        "policy": st.sampled_from(["none", "fixed", "ltd", "nonsense"]) | values,
        **dict.fromkeys(("temperature", "top_k", "top_p", "seed"), scalars),
    },
)


def check_request(decoder: Decoder) -> Callable[[Any], object]:
    def check(case: tuple[Any, dict[str, Any]]) -> None:
        prompt, options = case
        policy = options.pop("policy", None)
        with decoder.stream(prompt, SamplingParams(**options), policy=policy) as stream:
            for _ in range(TOKENS):
                next(stream, None)

    return check


def expect(truth: bool, otherwise: str) -> None:
    if not truth:
        raise AssertionError(otherwise)


@contextmanager
def targets(engine_dir: Path) -> Iterator[list[Target]]:
    """All there is to be fuzzed. ``engine_dir``: a small engine directory; it is copied by links."""
    with tempfile.TemporaryDirectory() as name, Decoder(engine_dir, threads=1) as decoder:
        work = Path(name)
        for part in ("manifest", "decoder"):
            (work / part).mkdir()
            for file in engine_dir.iterdir():
                (work / part / file.name).write_bytes(file.read_bytes())
        for part in ("gguf", "safetensors"):
            (work / part).mkdir()
        graph = (engine_dir / "target.onnx").read_bytes()
        stops = st.tuples(st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.lists(st.text("ab\n", max_size=4), max_size=12))
        shapes = st.tuples(st.integers(-1, 80), st.integers(-1, 12), st.integers(-1, 12), st.integers(0, 99))
        yield [
            Target("manifest", 0.25, *manifests(work / "manifest")),
            Target("decoder", 0.005, *decoders(work / "decoder")),
            Target("prompt", 0.2, prompts, check_text(decoder)),
            Target("stop strings", 0.2, stops, check_stops),
            Target("tree shapes", 0.045, shapes, check_tree),
            Target("gguf", 0.1, *files("model.gguf", a_gguf(work), work / "gguf", GgufCheckpoint)),
            Target("safetensors", 0.1, *files("model.safetensors", a_safetensors(work), work / "safetensors",
                                              lambda file: SafetensorsFiles(file.parent))),
            Target("graph", 0.05, edits.map(lambda made: _cut(graph[:4096], made)) | st.binary(max_size=64), check_graph),
            Target("request", 0.05, st.tuples(prompts, wishes), check_request(decoder)),
        ]  # fmt: skip


def run(target: Target, cases: int, first_seed: int) -> Counter[str]:
    """How the cases ended, by the class of what was raised. Raises what was not expected, shrunk."""
    ended: Counter[str] = Counter()

    @seed(first_seed)
    @settings(
        max_examples=cases, database=None, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink]
    )
    @given(target.cases)
    def fuzz(case: Any) -> None:
        faulthandler.dump_traceback_later(HANGS, exit=True)
        try:
            target.check(case)
            ended["fine"] += 1
        except EXPECTED as error:
            ended[type(error).__name__] += 1
            if isinstance(error, RespsError):
                expect("\n" not in str(error), f"more than a line: {error}")
        finally:
            faulthandler.cancel_dump_traceback_later()

    fuzz()
    return ended


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--cases", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--seed", "first_seed", type=int, default=0, show_default=True)
@click.option("--target", "names", multiple=True, help="Only this one; may be repeated [default: all].")
def main(engine_dir: Path, cases: int, first_seed: int, names: tuple[str, ...]) -> None:
    """Fuzz everything that reads what strangers send."""
    report = {}
    with targets(engine_dir) as found:
        if unknown := set(names) - {target.name for target in found}:
            raise click.UsageError(f"--target knows {', '.join(target.name for target in found)}, not {', '.join(sorted(unknown))}")
        for target in found:
            if not names or target.name in names:
                report[target.name] = dict(run(target, max(10, int(cases * target.share)), first_seed))
                click.echo(f"{target.name} {report[target.name]}")
    click.echo(json.dumps({"cases": sum(sum(each.values()) for each in report.values()), "ended": report}))


if __name__ == "__main__":
    main()
