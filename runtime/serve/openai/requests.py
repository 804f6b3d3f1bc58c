"""Request bodies of /v1/chat/completions and /v1/completions: checked, then converted to one GenerationRequest.

A parameter that would change the answer and is not supported is refused by name, never ignored. neutral.py lists what is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, StringConstraints

from ...sampling_params import MAX_ANSWERS, MAX_LISTED, MAX_LOGPROBS, SamplingParams
from ...tool_calls.functions import Tools
from ..errors import ApiError, invalid
from .body import Body
from .constraint_fields import FIELDS, constraint_of
from .messages import ChatMessage, template_messages
from .tool_fields import MAX_TOOLS, ToolBody, template_values, tools_of

Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
BadWord = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"\S")]
TokenKey = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1, le=1 << 30)]
MAX_PRIORITY = 1000
SAME_NAMES = (
    "top_p",
    "min_p",
    "typical_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "bad_words",
    "rounds",
)
"""Fields of the bodies that SamplingParams has too, with the same meaning and default."""


class StreamOptions(Body):
    """``include_usage``: send a last event with the usage and no choice."""

    kind: ClassVar[str] = "stream_options"
    include_usage: bool | None = None


class SamplingBody(Body):
    """The fields of both bodies. ``policy``, ``speculation``, ``deadline`` (seconds), ``typical_p``, ``rounds`` and ``spec_decode_metrics``
    are our additions; ``grammar``, ``json_schema`` and ``timings_per_token`` are llama.cpp's; ``top_k``, ``priority``,
    ``repetition_penalty``, ``min_p``, and the others from ``min_tokens`` on but ``response_format``, are vLLM's (extra_body in OpenAI's
    client)."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 30)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    max_tokens: Count | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    policy: Annotated[str, StringConstraints(max_length=64)] | None = None
    speculation: bool | None = None
    user: str | None = None
    store: bool | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    deadline: Annotated[float, Field(gt=0, le=86400)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    logit_bias: Annotated[dict[TokenKey, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_LISTED)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=1 << 30)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(max_length=MAX_LISTED)] | None = None
    bad_words: Annotated[list[BadWord], Field(max_length=MAX_LISTED)] | None = None
    rounds: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | str | None = None
    timings_per_token: bool | None = None
    spec_decode_metrics: bool | None = None


class ChatBody(SamplingBody):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    tools: Annotated[list[ToolBody], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None


class CompletionBody(SamplingBody):
    """The body of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS), BeforeValidator(lambda value: None if value is False else value)] = None


@dataclass(frozen=True)
class GenerationRequest:
    """A checked request in the Decoder's terms. ``model`` None: the server's model. ``policy`` None: the server's policy. ``user``: for
    whom it is sent, if the client says so. ``priority``: the lowest number goes first. ``deadline``: seconds in which the whole answer must
    come, if the client says so. ``count``: of answers. ``constraint_field``: the body's field that held the form of the answer.
    ``tools``: that a chat's model may call. ``template_values``: further variables of the chat template. ``messages_field``: the body's
    field that held a chat. ``spec_metrics``, ``timings``: whether the body gets what vLLM and llama.cpp tell of speed. ``tenant``,
    ``store``: as in `Decoder.stream`; what came with the body does not say for whom."""

    prompt: str | list[int] | list[dict[str, Any]]
    model: str | None
    params: SamplingParams
    policy: str | None
    stream: bool
    include_usage: bool
    user: str | None = None
    priority: int = 0
    deadline: float | None = None
    count: int = 1
    constraint_field: str | None = None
    tools: Tools | None = None
    template_values: Mapping[str, Any] = field(default_factory=dict)
    messages_field: str = "messages"
    spec_metrics: bool = False
    timings: bool = False
    tenant: str | None = None
    store: bool = True

    @property
    def prompt_field(self) -> str:
        """The body's field that held the prompt."""
        is_chat = not isinstance(self.prompt, str) and any(isinstance(each, Mapping) for each in self.prompt)
        return self.messages_field if is_chat else "prompt"


def expect_policy(request: GenerationRequest, policies: Sequence[str]) -> None:
    """Raises ApiError if the request's policy is not one of ``policies``."""
    if request.policy is not None and request.policy not in policies:
        raise invalid(f"unknown policy {request.policy!r} — choose from {', '.join(policies)}", "policy")


def expect_model(name: str | None, served: str) -> None:
    """Raises ApiError if a request names another model than the one that is ``served``."""
    if name not in (None, served):
        raise ApiError(404, f"there is no model {name[:80]!r} here — this server has {served!r}", code="model_not_found", param="model")


def chat_request(body: ChatBody, max_messages: int) -> GenerationRequest:
    """Convert the body of a chat request. Raises ApiError."""
    if len(body.messages) > max_messages:
        raise invalid(f"{len(body.messages)} messages, at most {max_messages} are accepted — shorten the conversation", "messages")
    if body.top_logprobs and not body.logprobs:
        raise invalid('top_logprobs needs "logprobs": true', "top_logprobs")
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise invalid("max_tokens and max_completion_tokens mean the same — give one of them", "max_tokens")
    request = generation_request(
        body,
        template_messages(body.messages),
        body.max_completion_tokens or body.max_tokens,
        (body.top_logprobs or 0) if body.logprobs else None,
    )
    tools = tools_of(body.tools, body.tool_choice, body.parallel_tool_calls)
    if tools is not None and body.ignore_eos:
        raise invalid("ignore_eos: a model with tools says where its answer ends — leave one of them out", "ignore_eos")
    return replace(request, tools=tools, template_values=template_values(body.chat_template_kwargs))


def completion_request(body: CompletionBody) -> GenerationRequest:
    """Convert the body of a completion request. It asks for 16 tokens by default, as OpenAI's API does. Raises ApiError."""
    prompt = body.prompt
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise invalid(f"{len(prompt)} prompts, one is accepted — send them one by one", "prompt", "unsupported_value")
        prompt = prompt[0]
    return generation_request(body, prompt, body.max_tokens or 16, body.logprobs)  # type: ignore[arg-type]  # no list of prompts any more


def generation_request(
    body: SamplingBody, prompt: str | list[int] | list[dict[str, Any]], max_tokens: int | None, logprobs: int | None
) -> GenerationRequest:
    """The request of what all bodies have. Raises ApiError."""
    if body.stream_options is not None and body.stream_options.include_usage and not body.stream:
        raise invalid('stream_options needs "stream": true', "stream_options")
    if body.speculation is False and body.policy not in (None, "none"):
        raise invalid("policy: speculation is false, so there is nothing for a policy to decide — leave one of them out", "policy")
    if max_tokens is not None and (body.min_tokens or 0) > max_tokens:
        raise invalid(f"min_tokens: {body.min_tokens} is more than the {max_tokens} that the answer may have", "min_tokens")
    form = constraint_of({name: value for name in FIELDS if (value := getattr(body, name)) is not None})
    if form is not None and body.ignore_eos:
        raise invalid(f"ignore_eos: {form[0]} says where the answer ends — leave one of them out", "ignore_eos")
    params = SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=max(0, body.top_k or 0),
        seed=None if body.seed is None else body.seed % 2**64,
        max_new_tokens=max_tokens,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        logprobs=logprobs,
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
        constraint=form[1] if form else None,
        **{name: value for name in SAME_NAMES if (value := getattr(body, name)) is not None},
    )
    return GenerationRequest(
        prompt=prompt,
        model=body.model,
        params=params,
        policy="none" if body.speculation is False else body.policy,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        user=body.user,
        priority=body.priority or 0,
        deadline=body.deadline,
        count=body.n or 1,
        constraint_field=form[0] if form else None,
        spec_metrics=bool(body.spec_decode_metrics),
        timings=bool(body.timings_per_token),
        store=body.store is not False,
    )
