"""Fuzzes what a caller passes to a Decoder: prompts, stop strings, tree shapes, sampling parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from policy import FixedPolicy, TreeSpec
from runtime import Decoder, SamplingParams
from runtime.decoding.loop import begin, prefill, rounds
from runtime.decoding.sampling import greedy
from runtime.drafters.ngram import NgramDrafter
from runtime.text.detokenizer import Detokenizer, StopStrings
from tests.stress.fuzz_values import scalars, texts, values
from tests.support.fakes import LIMITS, VOCAB, toy_logits, toy_target
from tests.support.planted import PlantedDrafter

TOKENS = 3


def expect(truth: bool, otherwise: str) -> None:
    if not truth:
        raise AssertionError(otherwise)


def check_text(decoder: Decoder) -> Callable[[Any], object]:
    def check(prompt: Any) -> None:
        ids = decoder.encode(prompt)
        detokenizer = Detokenizer(decoder.tokenizer)
        pieces = [detokenizer.push(token) for token in ids]
        expect("".join(pieces) + detokenizer.flush() == decoder.decode(ids), "pieces are not the whole")

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
    """Decode with any tree shape on a toy target whose logits depend on every row and position."""
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


parameters = st.fixed_dictionaries(
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
