"""Chat templates: Jinja programs of the model's authors, compiled and rendered in the environment that transformers gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of a message's reasoning; templates read the first two


class TemplateFault(ValueError):
    """A chat template that cannot be compiled, or that refuses what it was given. Its text is the reason."""


class ChatTemplate:
    """A compiled template. Raises TemplateFault."""

    def __init__(self, source: str) -> None:
        self.source = source
        try:
            self._compiled = _environment().from_string(source)
        except Exception as error:  # the template is a program from the model's authors; compiling it may raise anything
            raise TemplateFault(_one_line(error)) from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        special: Mapping[str, str],
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        values: Mapping[str, Any] = MappingProxyType({}),
        null_content: bool = False,
    ) -> str:
        """The text of a chat, up to where the model's answer begins. ``special``: texts of special tokens, such as bos_token. ``values``:
        further variables that the template may read.

        Keys of a message whose value is None count as absent; its content only without ``null_content``. Raises TemplateFault.
        """
        try:
            chat = [
                _reasoning(
                    {key: plain(value) for key, value in message.items() if value is not None or (key == "content" and null_content)}
                )
                for message in messages
            ]
            given = {"messages": chat, "tools": plain(tools), "documents": plain(documents), "add_generation_prompt": True}
            return str(self._compiled.render({**plain(values), **special, **given}))
        except Exception as error:
            raise TemplateFault(_one_line(error)) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def plain(value: Any) -> Any:
    """``value`` made of JSON's types only: methods of richer objects are not for a template. Others become the names of their types."""
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, str):  # a subclass may have methods of its own
        return str.__str__(value)
    if isinstance(value, (int, float)):
        return int.__int__(value) if isinstance(value, int) else float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return [plain(item) for item in value] if isinstance(value, Sequence) else f"<{type(value).__name__}>"


def _reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message's reasoning under every name that templates read."""
    found = next((message[name] for name in _REASONING if name in message), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}


def _environment() -> Any:
    """The sandbox, with the filters, functions and the ``{% generation %}`` block of transformers' apply_chat_template."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):  # type: ignore[misc]
        """Marks the model's own text for training. When rendering, its body stands as it is."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own form

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> str:
            return str(caller())

    class Namespace(jinja2.utils.Namespace):  # type: ignore[misc]
        """Jinja's namespace without names that begin with an underscore, which reach into Python."""

        def __init__(*args: Any, **names: Any) -> None:
            self, *values = args
            found = dict(*values, **names)
            for name in found:
                _check_name(name)
            jinja2.utils.Namespace.__init__(self, found)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now, "dict": _Dict(), "namespace": Namespace}
    return environment


class _Dict:
    """Python's dict for templates: the call and ``fromkeys``, nothing else of the type."""

    def __call__(self, *args: Any, **names: Any) -> dict[Any, Any]:
        return dict(*args, **names)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _check_name(name: Any) -> None:
    from jinja2.exceptions import SecurityError

    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace of a chat template cannot hold {name!r}, which begins with an underscore")


def _raise(message: Any) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    """Jinja's own filter escapes HTML and takes fewer arguments."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
