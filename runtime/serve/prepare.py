"""From a checked request to what a lane decodes: the prompt's tokens, and what tools and reasoning ask of the answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..decoder import Decoder
from ..errors import ParameterError
from ..sampling_params import Constraint, SamplingParams
from ..text.tokenizer import Chat
from ..tool_calls.choose import AnswerFormat
from ..tool_calls.constraint import answer_constraint
from ..tool_calls.prompt import chat
from .errors import ApiError, invalid, logged
from .openai.answer import OpenAnswer
from .openai.constraint_fields import renamed
from .openai.requests import GenerationRequest

_END = 16  # tokens of a prompt's end that may have a mark


@dataclass(frozen=True)
class Prepared:
    """A request that can be decoded. ``prompt``: its token ids. ``form``: of its answers, None for plain text. ``opened``: whether the
    prompt has begun the reasoning."""

    prompt: list[int]
    generation: GenerationRequest
    form: AnswerFormat | None
    opened: bool

    def answer(self, decoder: Decoder) -> OpenAnswer:
        """A new answer to it."""
        return OpenAnswer(decoder, self.prompt, self.form, self.generation.tools, self.opened)


def prepare(decoder: Decoder, form: AnswerFormat, generation: GenerationRequest) -> Prepared:
    """Encodes and checks a request. Raises ApiError. For any thread; compiles what constrains the answer."""
    try:
        if generation.prompt_field == "prompt":
            decoder.check(generation.params)
            return Prepared(decoder.encode(generation.prompt), generation, None, False)
        return _prepared_chat(decoder, form, generation)
    except BaseException as error:  # a panic of the tokenizer is not an Exception
        raise renamed(logged(error, generation.prompt_field), generation.constraint_field) from None


def _prepared_chat(decoder: Decoder, form: AnswerFormat, generation: GenerationRequest) -> Prepared:
    tools, asked = generation.tools, generation.params
    prompt = decoder.encode(_prompt(form, generation))
    opened = form.opens_reasoning(b"".join(decoder.token_bytes(each, special=True) for each in prompt[-_END:]).decode("utf-8", "replace"))
    try:
        constraint = answer_constraint(form, tools, asked.constraint, opened)
    except ValueError as error:
        raise invalid(str(error).replace("constraint: the answer", "tools: the grammar of all calls", 1), "tools") from None
    params = replace(asked, constraint=constraint, shown=form.shown(tools))
    try:
        decoder.check(params)
    except ParameterError as error:
        if error.field != "constraint" or constraint is asked.constraint:
            raise
        raise _of_its_field(decoder, generation, error) from None
    field = generation.constraint_field or ("tools" if constraint else None)
    return Prepared(prompt, replace(generation, params=params, constraint_field=field), form, opened)


def _prompt(form: AnswerFormat, generation: GenerationRequest) -> Chat:
    assert isinstance(generation.prompt, list)
    messages = [each for each in generation.prompt if not isinstance(each, int)]
    return chat(form, messages, generation.tools, generation.template_values)


def _of_its_field(decoder: Decoder, generation: GenerationRequest, error: ParameterError) -> ApiError:
    """The error of a constraint of several parts, by the field of the part that cannot be compiled."""
    parts: list[tuple[str, Constraint]] = []
    if generation.constraint_field is not None and generation.params.constraint is not None:
        parts.append((generation.constraint_field, generation.params.constraint))
    parts += [(each.field, Constraint.json_schema(each.schema)) for each in (generation.tools.callable if generation.tools else ())]
    for field, part in parts:
        try:
            decoder.check(SamplingParams(constraint=part))
        except ParameterError as found:
            return renamed(logged(found), field)
    return renamed(logged(error), "tools")
