"""Fields of bodies that ask for a form of the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime import Constraint
from runtime.serve.errors import ApiError
from runtime.serve.openai.body import parse_body
from runtime.serve.openai.requests import ChatBody, CompletionBody, GenerationRequest, chat_request, completion_request


def chat(**fields: Any) -> GenerationRequest:
    return chat_request(parse_body(ChatBody, json.dumps({"messages": [{"role": "user", "content": "Hi"}], **fields}).encode()), 4)


def completion(**fields: Any) -> GenerationRequest:
    return completion_request(parse_body(CompletionBody, json.dumps({"prompt": "Hi", **fields}).encode()))


@pytest.mark.parametrize(
    ("fields", "constraint", "field"),
    [
        ({"response_format": {"type": "json_object"}}, Constraint.json_object(), "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "null"}, "strict": True}}},
            Constraint.json_schema({"type": "null"}),
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"json": {"type": "null"}}}, Constraint.json_schema('{"type": "null"}'), "structured_outputs.json"),
        ({"structured_outputs": {"choice": ["a", "b"], "regex": None}}, Constraint.choice(["a", "b"]), "structured_outputs.choice"),
        ({"structured_outputs": {"json_object": True}}, Constraint.json_object(), "structured_outputs.json_object"),
        ({"guided_json": '{"type": "null"}'}, Constraint.json_schema({"type": "null"}), "guided_json"),
        ({"guided_regex": "a+"}, Constraint.regex("a+"), "guided_regex"),
        ({"guided_choice": ["a"]}, Constraint.choice(["a"]), "guided_choice"),
        ({"guided_grammar": "start: A"}, Constraint.grammar("start: A"), "guided_grammar"),
        ({"grammar": 'root ::= "a"'}, Constraint.grammar('root ::= "a"'), "grammar"),
        ({"json_schema": {"type": "null"}}, Constraint.json_schema({"type": "null"}), "json_schema"),
    ],
    ids=str,
)
def test_the_form_of_an_answer_in_openai_s_vllm_s_and_llama_cpp_s_names(fields: dict[str, Any], constraint: Constraint, field: str) -> None:
    for request in (chat(**fields), completion(**fields)):
        assert (request.params.constraint, request.constraint_field) == (constraint, field)
    assert chat(response_format={"type": "text"}, **fields if "response_format" not in fields else {}).params.constraint in (
        None,
        constraint,
    )
    assert chat(**dict.fromkeys(fields)) == chat()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_object", "extra": 1}}, "response_format.extra"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 5}}}, "response_format.json_schema.schema"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[1]"}, "guided_json"),
        ({"guided_regex": 5}, "guided_regex"),
        ({"guided_choice": [""]}, "guided_choice"),
        ({"grammar": "(" * 65}, "grammar"),
        ({"json_schema": {"description": "x" * 70_000}}, "json_schema"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
    ],
    ids=str,
)
def test_what_is_no_form_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        chat(**fields)
    error = refused.value.body["error"]
    assert (refused.value.status, error["param"]) == (400, param)
    assert error["message"].startswith(f"{param}: ") or error["message"].startswith(f"unknown parameter {param} ")
