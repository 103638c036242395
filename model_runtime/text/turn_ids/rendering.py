"""Renders messages with the model's chat template, and knows which part of the result was written by whom.

The result is always the template's own rendering of the real texts. A second rendering, with marks around each text,
shows where the texts stand in it. The marks stand inside the white space around a text, so a template that trims treats
both alike.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.errors import TemplateRefused
from model_runtime.text.turn_ids.provenance import traced

_NONCE = secrets.token_hex(6)  # people cannot type the marks
SENTINEL = "kw{}sentinel" + _NONCE
_SENTINEL_PATTERN = re.compile(rf"kw(\d+)sentinel{_NONCE}")
_MARK_PATTERN = re.compile(rf"kwm{_NONCE}([oc])(\d+)k")
_RENDER_ERRORS = (TemplateError, TypeError, ValueError, KeyError)
_PROBES = {"system": [], "user": [], "assistant": [("user", "kwbefore")]}

Found = Sequence[tuple[int, int]]  # (start, end) in characters


@dataclass(frozen=True, slots=True)
class Span:
    """Where a message's text stands in a rendering, in characters."""

    start: int
    end: int
    role: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """What the template wrote. What is outside the spans is the template's own, or white space."""

    text: str
    spans: tuple[Span, ...]

    def after(self, place: int) -> Rendered:
        """The rest from a character on."""
        spans = tuple(Span(s.start - place, s.end - place, s.role) for s in self.spans if s.start >= place)
        return Rendered(self.text[place:], spans)


class Renderer:
    """`spelled` finds the control tokens in a text of a role. Immutable after construction, hence thread-safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, spelled: Callable[[str, str], Found]) -> None:
        self._tokenizer = tokenizer
        self._spelled = spelled
        self._variables: dict[str, Any] = {}
        self._typed_roles: frozenset[str] = frozenset()
        self._typed_roles = frozenset(role for role in _PROBES if self._wants_parts(role))

    def with_variables(self, variables: dict[str, Any]) -> Renderer:
        """The same, with these values of the template's own variables."""
        other = copy.copy(self)
        other._variables = variables
        return other

    def render(self, messages: Sequence[dict[str, Any]], **options: Any) -> str:
        """The template's text. Raises what the template raises."""
        seen = [self._typed(message) for message in messages]
        options = {**self._variables, "add_generation_prompt": True, **options}
        return str(self._tokenizer.apply_chat_template(seen, tokenize=False, **options))

    def render_texts(self, *messages: tuple[str, str]) -> str:
        """The template's text for (role, text) pairs. Raises what the template raises."""
        return self.render([{"role": role, "content": text} for role, text in messages])

    def renders(self, messages: Sequence[tuple[str, str]]) -> bool:
        """Whether the template accepts these (role, text) pairs and writes all the texts."""
        try:
            rendered = self.render_texts(*messages)
        except (*_RENDER_ERRORS, RecursionError):
            return False
        return all(text in rendered for _, text in messages)

    def written(self, messages: Sequence[ChatMessage], tools: Sequence[Any] = ()) -> str:
        """The template's text for these messages. Raises `TemplateRefused`."""
        return self._render_all(messages, [message.text for message in messages], tools)

    def parts(
        self, messages: Sequence[ChatMessage], tools: Sequence[Any] = (), beginning: Sequence[ChatMessage] = ()
    ) -> list[str]:
        """The template's own text around any messages of these roles: one part more than messages, the generation
        prompt last. `beginning` are messages before them, whose texts belong to the template's. Raises
        `TemplateRefused`."""
        order, parts = self._sentinels(messages, tools, beginning)
        if order != list(range(len(messages))):
            raise TemplateRefused(f"This model's chat template repeats or moves messages ({_roles(messages)}).")
        return parts

    def _sentinels(
        self, messages: Sequence[ChatMessage], tools: Sequence[Any], beginning: Sequence[ChatMessage] = ()
    ) -> tuple[list[int], list[str]]:
        """The order in which the template writes messages of these roles, and its own text around them."""
        texts = [*(m.text for m in beginning), *(SENTINEL.format(n) for n in range(len(messages)))]
        rendered = self._render_all([*beginning, *messages], texts, tools)
        order = [int(n) for n in _SENTINEL_PATTERN.findall(rendered)]
        if set(order) != set(range(len(messages))):
            raise TemplateRefused(f"This model's chat template leaves out some of these messages ({_roles(messages)}).")
        return order, _SENTINEL_PATTERN.split(rendered)[::2]

    def rendered(self, messages: Sequence[ChatMessage], tools: Sequence[Any] = ()) -> Rendered:
        """The template's rendering of the messages. Raises `TemplateRefused`."""
        texts = [message.text for message in messages]
        real = self._render_all(messages, texts, tools)
        try:
            marked = self._render_all(messages, [_marked(n, text) for n, text in enumerate(texts)], tools)
        except TemplateRefused:
            marked = ""
        found = _unmarked(marked, messages)
        if found is not None and found.text == real:
            return found
        return self._rendered_by_content(messages, real, tools)

    def _rendered_by_content(self, messages: Sequence[ChatMessage], real: str, tools: Sequence[Any]) -> Rendered:
        """For a template that looks into the texts (it removes thoughts, obeys "/no_think", or counts letters)."""
        self._sentinels(messages, tools)  # raises when it leaves some out

        def render(texts: Sequence[str]) -> str | None:
            try:
                return self._render_all(messages, texts, tools)
            except TemplateRefused:
                return None

        spelled = [self._spelled(message.role, message.text) for message in messages]
        found = traced(render, real, [message.text for message in messages], spelled)
        if found is not None:
            return Rendered(found.text, tuple(Span(start, end, messages[n].role) for n, start, end in found.passages))
        if any(spelled):
            raise TemplateRefused(
                "A message spells one of this model's control tokens, and its chat template makes something else of "
                "the message. Leave the token out."
            )
        return Rendered(real, ())

    def _render_all(self, messages: Sequence[ChatMessage], texts: Sequence[str], tools: Sequence[Any]) -> str:
        try:
            return self.render(
                [_as_template_sees(message, text) for message, text in zip(messages, texts, strict=True)],
                **({"tools": list(tools)} if tools else {}),
            )
        except RecursionError:
            raise TemplateRefused(
                "A tool's definition or a message is nested too deeply for this model's template."
            ) from None
        except _RENDER_ERRORS as error:
            raise TemplateRefused(
                f"This model's chat template refuses these messages ({_roles(messages)}): {error}."
            ) from error

    def _typed(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] not in self._typed_roles or not isinstance(message.get("content"), str):
            return message
        return {**message, "content": [{"type": "text", "text": message["content"]}]}

    def _wants_parts(self, role: str) -> bool:
        """Whether the template drops that role's text unless it is given as a list of parts."""
        messages = [*_PROBES[role], (role, "kwtyped"), *([("user", "kwafter")] if role != "user" else [])]

        def is_written(content: Any) -> bool:
            seen = [self._typed({"role": r, "content": content if text == "kwtyped" else text}) for r, text in messages]
            try:
                written = str(self._tokenizer.apply_chat_template(seen, tokenize=False, add_generation_prompt=True))
            except (*_RENDER_ERRORS, RecursionError):
                return False
            return "kwtyped" in written and "'kwtyped'" not in written

        return not is_written("kwtyped") and is_written([{"type": "text", "text": "kwtyped"}])


def parsed_tools(tools: Sequence[str]) -> list[Any]:
    """The definitions, from JSON texts. Raises `TemplateRefused` when one is nested too deeply."""
    try:
        return [json.loads(tool) for tool in tools]
    except RecursionError:
        raise TemplateRefused("A tool's definition is nested too deeply.") from None


def written_tools(definitions: Sequence[Any]) -> str:
    """The definitions as a template may write them. Raises `TemplateRefused` when one is nested too deeply."""
    try:
        return json.dumps(definitions, ensure_ascii=False)
    except RecursionError:
        raise TemplateRefused("A tool's definition is nested too deeply.") from None


def _marked(number: int, text: str) -> str:
    core = text.strip()
    if not core:
        return text
    start = len(text) - len(text.lstrip())
    opening, closing = (f"kwm{_NONCE}{which}{number}k" for which in "oc")
    return f"{text[:start]}{opening}{core}{closing}{text[start + len(core) :]}"


def _unmarked(marked: str, messages: Sequence[ChatMessage]) -> Rendered | None:
    """What stands there without the marks. None unless each text stands there, and always whole."""
    expected = {n for n, message in enumerate(messages) if message.text.strip()}
    pieces, spans, place, end, start = [], [], 0, 0, 0
    seen: list[tuple[int, str]] = []
    for mark in _MARK_PATTERN.finditer(marked):
        seen.append((int(mark.group(2)), mark.group(1)))
        pieces.append(marked[end : mark.start()])
        place, end = place + len(pieces[-1]), mark.end()
        if seen[-1][1] == "o":
            start = place
        elif seen[-1][0] < len(messages):
            spans.append(Span(start, place, messages[seen[-1][0]].role))
    in_pairs = [(n, which) for n, _ in seen[::2] for which in "oc"]
    if {n for n, _ in seen} != expected or seen != in_pairs:
        return None
    return Rendered("".join([*pieces, marked[end:]]), tuple(spans))


def _roles(messages: Sequence[ChatMessage]) -> str:
    return ", ".join(dict.fromkeys(message.role for message in messages))


def _as_template_sees(message: ChatMessage, text: str) -> dict[str, Any]:
    """A message as the template gets it. An assistant's calls are part of its text, because their JSON is data too."""
    seen = {"role": "system" if message.role == "developer" else message.role, "content": text}
    if message.tool_call_id:
        seen["tool_call_id"] = message.tool_call_id
    if message.name:
        seen["name"] = message.name
    return seen
