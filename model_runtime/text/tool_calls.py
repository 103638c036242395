"""How a model writes tool calls. The format is found by rendering one with its chat template; answers are then parsed
in that format."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jinja2.exceptions import TemplateError

from model_runtime.interface.chat import ToolCall
from model_runtime.interface.grammar import closed

DEEPEST = 200  # far below where Python's JSON gives up, and far above what a function's arguments are
_BRACKETS = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*+"?', re.DOTALL)  # possessive, never failing: one pass over any text

Render = Callable[..., str]  # (messages, tools=..., add_generation_prompt=...) -> the template's text

_HOW = "x-guidance"  # llguidance's word for how a schema is held to, which a client does not decide
_LENIENT = {"lenient": True, "coerce_one_of": True}
_WITHOUT_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}  # where nothing is said of any
_OTHER_KEYS = ("arguments", "parameters")  # which models also write, whatever their template shows

_NAME, _KEY, _VALUE = "kwname", "kwkey", "kwvalue"
_PROBE_CALL = {
    "id": "kwcall001",  # nine letters and digits, which some templates insist on
    "type": "function",
    "function": {"name": _NAME, "arguments": {_KEY: _VALUE}},
}
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "kwtool",
        "description": "kwtool",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A call is a JSON object with "name" and `arguments_key`, between `begin` and `end`. If `begin` is empty, the call
    (or a list of calls) is the whole answer."""

    begin: str
    end: str
    arguments_key: str

    def read(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """(content, calls) of an answer; the whole text and no calls if any part of it cannot be parsed as a call."""
        if not self.begin:
            calls = self._calls(_json(text.strip()))
            return ("", calls) if calls else (text, ())
        content, *rest = text.split(self.begin)
        found: list[ToolCall] = []
        for piece in rest:
            body = piece.rpartition(self.end)[0] if self.end and self.end in piece else piece
            calls = self._calls(_json(body.strip()))
            if not calls:
                return text, ()
            found += calls
        return (content, tuple(found)) if found else (text, ())

    def content_chars(self, text: str) -> int:
        """How many characters of an unfinished answer are content, whatever follows."""
        if not self.begin:
            return 0 if text.lstrip()[:1] in ("", "{", "[") else len(text)
        place = text.find(self.begin)
        if place >= 0:
            return place
        most = min(len(text), len(self.begin) - 1)
        return len(text) - next((n for n in range(most, 0, -1) if self.begin.startswith(text[-n:])), 0)

    def first_call_chars(self, text: str) -> int:
        """How many characters of an answer lead to the end of its first call; all if there is no other one."""
        second = text.find(self.begin, text.find(self.begin) + len(self.begin)) if self.begin in text else -1
        if not self.begin or second < 0:
            return len(text)
        end = text.rfind(self.end, 0, second) if self.end else -1
        return end + len(self.end) if end >= 0 else len(text[:second].rstrip())

    def write(self, text: str, calls: Sequence[ToolCall]) -> str:
        """The answer that `read` parses into this text and these calls."""
        bodies = [json.dumps({"name": c.name, self.arguments_key: _arguments(c)}, ensure_ascii=False) for c in calls]
        if not self.begin:
            return bodies[0] if len(bodies) == 1 else f"[{', '.join(bodies)}]"
        return text + "\n".join(f"{self.begin}\n{body}\n{self.end}" for body in bodies)

    def grammar(self, tools: Sequence[str], lenient: Collection[str] = (), or_text: bool = False) -> str:
        """A grammar, in llguidance's notation, of answers that call one of these tools: JSON texts of definitions.
        `or_text`: of those that say anything, and then call some of them or none. Of tools that are `lenient`, keywords
        that it does not know are left out."""
        rules = []
        for number, definition in enumerate(tools):
            function = json.loads(definition)["function"]
            head = f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "{self.arguments_key}": '
            said = {name: value for name, value in (function.get("parameters") or {}).items() if name != _HOW}
            parameters = closed(said) or _NO_PARAMETERS
            how = {**(_LENIENT if definition in lenient else {}), **_WITHOUT_SPACES}
            schema = {"type": "object", **parameters, _HOW: how}
            rules.append(f'call{number}: {json.dumps(head)} arguments{number} "}}"')
            rules.append(f"arguments{number}: %json {json.dumps(schema)}")
        calls = " | ".join(f"call{number}" for number in range(len(tools)))
        marks = [json.dumps(mark) for mark in ((f"{self.begin}\n", f"\n{self.end}") if self.begin else ("", ""))]
        start = " ".join(part for part in (marks[0], f"({calls})", marks[1]) if part != '""')
        if or_text:
            return "\n".join([*self._said_or(calls, start), *rules])
        return "\n".join([f"start: {start}", *rules])

    def _said_or(self, calls: str, call: str) -> tuple[str, ...]:
        """Rules of an answer that is text, or such a call, or where calls have marks text before several of them. What
        `read` takes for a call is one of these."""
        if not self.begin:
            return f"start: KWTEXT | {call}", r"KWTEXT: /\s*([^\s{\[](?s:.*))?/"
        mark = re.escape(self.begin).replace("/", r"\/")
        end = json.dumps(f"\n{self.end}")
        return (
            f'start: KWTEXT | kwcall "\\n" ({calls}) {end} (/\\s*/ {call})*',
            rf"kwcall[lazy]: /(?s:.*){mark}/",
            rf"KWTEXT: /(?s:.*)/ & ~/(?s:.*){mark}(?s:.*)/",
        )

    def _calls(self, found: Any) -> tuple[ToolCall, ...]:
        objects = found if isinstance(found, list) else [found]
        calls = [self._call(one) for one in objects]
        return tuple(call for call in calls if call) if all(calls) else ()

    def _call(self, found: Any) -> ToolCall | None:
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            return None
        key = next((one for one in (self.arguments_key, *_OTHER_KEYS) if one in found), None)
        if key is None and any(isinstance(value, dict) for value in found.values()):
            return None  # arguments under a name that is not known: calling without them would be another call
        arguments = found[key] if key is not None else {}
        if isinstance(arguments, str):
            parsed = _json(arguments)
            if _is_nested_too_deeply(arguments):
                return None
            if not isinstance(parsed, dict):
                return ToolCall("", found["name"], arguments)
            arguments = parsed
        if not isinstance(arguments, dict):
            return None
        return ToolCall("", found["name"], json.dumps(arguments, ensure_ascii=False))


def _arguments(call: ToolCall) -> Any:
    """The arguments as a call contains them: JSON, or the text as it came if it is no JSON, or nested too deeply."""
    found = _json(call.arguments)
    return call.arguments if found is None else found


def probe_tool_format(render: Render, is_hidden: Callable[[str], bool]) -> ToolFormat | None:
    """The format that the template writes; None when it does not show tools or does not write calls as JSON.
    `is_hidden`: whether a text is a control token, which is not shown in answers."""
    user = {"role": "user", "content": "u"}
    try:
        if "kwtool" not in render([user], tools=[_PROBE_TOOL]):
            return None
        before = render([user], tools=[_PROBE_TOOL])
        call = {"role": "assistant", "content": "", "tool_calls": [_PROBE_CALL]}
        written = render([user, call], tools=[_PROBE_TOOL], add_generation_prompt=False)
        ending = render([user, {"role": "assistant", "content": "kwtext"}], add_generation_prompt=False)
    except (TemplateError, TypeError, ValueError, KeyError, RecursionError):
        return None
    closing = ending.rpartition("kwtext")[2]
    shared = next((n for n, (a, b) in enumerate(zip(before, written, strict=False)) if a != b), len(before))
    answer = written[shared:].removesuffix(closing)
    for start in (n for n, letter in enumerate(answer) if letter in "{["):
        found, end = _json_at(answer, start)
        first = found[0] if isinstance(found, list) and found else found
        if isinstance(first, Mapping) and first.get("name") == _NAME:
            key = next((k for k, value in first.items() if isinstance(value, Mapping) and _KEY in value), None)
            if key is None:
                return None
            begin = _mark(answer[:start], -1, is_hidden)
            return ToolFormat(begin, _mark(answer[end:], 0, is_hidden) if begin else "", key)
    return None


def _mark(text: str, which: int, is_hidden: Callable[[str], bool]) -> str:
    words = text.split()
    return "" if not words or is_hidden(words[which]) else words[which]


def _json(text: str) -> Any:
    """Parses JSON. None for invalid JSON and for deeper nesting than any real call has: Python's own limit depends on
    the stack of the caller."""
    if _is_nested_too_deeply(text):
        return None
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    found = float(number)
    return found if math.isfinite(found) else _refuse(number)


def _json_at(text: str, start: int) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start


def _is_nested_too_deeply(text: str) -> bool:
    """Whether more than `DEEPEST` brackets are open at once, brackets within strings not counted."""
    depth = 0
    for piece in _BRACKETS.finditer(text) if len(text) > DEEPEST else ():
        mark = text[piece.start()]
        if mark in "[{":
            depth += 1
            if depth > DEEPEST:
                return True
        elif mark in "]}":
            depth -= 1
    return False
