"""A chat template over bytes: a token is a byte, plus four control ids. Exact, tiny, and easy to reason about."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Self

from model_runtime.interface.chat import ChatMessage, ToolCall, UserInput
from model_runtime.interface.errors import TemplateRefused
from model_runtime.text.thoughts import ThoughtsApart
from model_runtime.text.tool_calls import ToolFormat

SYSTEM, USER, ASSISTANT, END, TOOL, TOOLS = 256, 257, 258, 259, 260, 261
ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT, "tool": TOOL}
CALLS = ToolFormat("<tool_call>", "</tool_call>", "arguments")


class ByteCodec:
    """Texts over bytes without a template. Nothing stands at the beginning; "<end>" is the control token."""

    def ids(self, text: str, is_beginning: bool) -> tuple[int, ...]:
        pieces = [tuple(piece.encode("utf-8")) for piece in text.split("<end>")]
        return tuple(i for n, piece in enumerate(pieces) for i in (*((END,) if n else ()), *piece))

    def text(self, token_ids: Sequence[int]) -> str:
        return b"".join(b"<end>" if i == END else bytes([i]) for i in token_ids if i < 256 or i == END).decode(
            "utf-8", errors="replace"
        )

    def pieces(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        return tuple("<end>" if i == END else chr(i) for i in token_ids)


class ByteTemplate(ThoughtsApart):
    """A chat template over bytes. `shift` moves every byte's id, which makes another vocabulary. Takes the roles above,
    and tools only if `takes_tools` is set. `variables` are those of these that it reads: "enable_thinking", whose false
    closes a thought in the generation prompt, and "effort", which is written at the beginning. With `opens_thoughts`
    the generation prompt begins one."""

    def __init__(
        self,
        shift: int = 0,
        takes_tools: bool = False,
        variables: tuple[str, ...] = (),
        has_thoughts: bool = False,
        opens_thoughts: bool = False,
    ) -> None:
        self._shift = shift
        self._takes_tools = takes_tools
        self.variables = variables
        self.has_thoughts = has_thoughts or opens_thoughts
        self.bound = ""
        self.tools_are_generic = False
        self._opens_thoughts = opens_thoughts
        self.raw = ByteCodec()

    def with_variables(self, values: str) -> Self:
        other = copy.copy(self)
        other.bound = values
        return other

    def history_frame(self, system_prompt: str = "", tools: Sequence[str] = ()) -> tuple[str, ...]:
        return (str(self._value("effort")),)

    def opens_thought(self, system_prompt: str = "", tools: Sequence[str] = ()) -> bool:
        return self._opens_thoughts and self._value("enable_thinking") is not False

    def _value(self, name: str) -> object:
        return json.loads(self.bound).get(name) if self.bound and name in self.variables else None

    def _prompt(self) -> tuple[int, ...]:
        if self._value("enable_thinking") is False:
            return (ASSISTANT, *self._bytes("<think></think>"))
        return (ASSISTANT, *self._bytes("<think>")) if self._opens_thoughts else (ASSISTANT,)

    def rewrites_history(self, system_prompt: str = "", tools: Sequence[str] = ()) -> str | None:
        return None

    @property
    def takes_tools(self) -> bool:
        return self._takes_tools

    def first_turn(self, system_prompt: str, user: UserInput, tools: Sequence[str] = ()) -> tuple[int, ...]:
        if tools and not self._takes_tools:
            raise TemplateRefused("This template has no place for tools.")
        head = (SYSTEM, *self._bytes(system_prompt), END) if system_prompt else ()
        offer = (TOOLS, *self._bytes(json.dumps([json.loads(tool) for tool in tools])), END) if tools else ()
        effort = self._value("effort")
        head = (SYSTEM, *self._bytes(f"Effort: {effort}"), END, *head) if effort else head
        return (*head, *offer, *self._input(user), *self._prompt())

    def next_turn(
        self,
        answer_ended_with_stop_token: bool,
        user: UserInput,
        system_prompt: str = "",
        tools: Sequence[str] = (),
    ) -> tuple[int, ...]:
        glue = () if answer_ended_with_stop_token else (END,)
        return (*glue, *self._input(user), *self._prompt())

    def calls_in(self, answer_text: str) -> tuple[str, tuple[ToolCall, ...]]:
        return CALLS.read(answer_text)

    def content_chars(self, growing_text: str) -> int:
        return CALLS.content_chars(growing_text)

    @property
    def parts_calls(self) -> bool:
        return True

    def first_call_chars(self, answer_text: str) -> int:
        return CALLS.first_call_chars(answer_text)

    def with_calls(self, text: str, calls: Sequence[ToolCall]) -> str:
        return CALLS.write(text, calls) if calls else text

    def call_grammar(self, tools: Sequence[str], lenient: Collection[str] = (), or_text: bool = False) -> str:
        return CALLS.grammar(tools, lenient, or_text)

    def unstable_tokens(self, user_text: str) -> int:
        """The last word with the space before it, and the generation prompt."""
        return 2 + len(user_text.encode()) - max(0, user_text.encode().rfind(b" "))

    def answer(self, text: str, system_prompt: str = "", tools: Sequence[str] = ()) -> tuple[int, ...]:
        return self._bytes(text)

    def whole(self, system_prompt: str, turns: Sequence[ChatMessage], tools: Sequence[str] = ()) -> tuple[int, ...]:
        assert turns[-1].role != "assistant", "a generation prompt follows a user turn"
        return self.first_turn(system_prompt, tuple(turns), tools)

    def count(self, text: str) -> int:
        return len(self._bytes(text))

    def least_tokens(self, text: str) -> int:
        return len(self._bytes(text))

    def plain(self, token_ids: Sequence[int]) -> str:
        low, high = (0, 256) if not self._shift else (self._shift, self._shift + 256)
        return bytes(i - self._shift for i in token_ids if low <= i < high).decode("utf-8", errors="replace")

    def _input(self, user: UserInput) -> tuple[int, ...]:
        messages = [ChatMessage("user", user)] if isinstance(user, str) else user
        ids: list[int] = []
        for message in messages:
            if message.role not in ROLES:
                raise TemplateRefused(f"This template does not know the role {message.role}.")
            text = self.with_calls(message.text, message.tool_calls)
            ids += [ROLES[message.role], *self._bytes(text), END]
        return tuple(ids)

    def _bytes(self, text: str) -> tuple[int, ...]:
        return tuple(byte + self._shift for byte in text.encode("utf-8"))


class ForgetfulTemplate(ByteTemplate):
    """Strips what earlier answers put between <think> and </think>, as reasoning models' templates do."""

    def rewrites_history(self, system_prompt: str = "", tools: Sequence[str] = ()) -> str | None:
        return "Earlier reasoning is stripped by this model's chat template."

    def whole(self, system_prompt: str, turns: Sequence[ChatMessage], tools: Sequence[str] = ()) -> tuple[int, ...]:
        kept = [replace(m, text=_without_thought(m.text)) if m.role == "assistant" else m for m in turns]
        return super().whole(system_prompt, kept, tools)


class EveryTurnTemplate(ByteTemplate):
    """Writes the system prompt before every question."""

    def next_turn(
        self,
        answer_ended_with_stop_token: bool,
        user: UserInput,
        system_prompt: str = "",
        tools: Sequence[str] = (),
    ) -> tuple[int, ...]:
        glue = () if answer_ended_with_stop_token else (END,)
        return (*glue, *self.first_turn(system_prompt, user, tools))

    def whole(self, system_prompt: str, turns: Sequence[ChatMessage], tools: Sequence[str] = ()) -> tuple[int, ...]:
        ids = self.first_turn(system_prompt, (turns[0],), tools)
        for answer, question in zip(turns[1::2], turns[2::2], strict=True):
            ids += (*self.answer(answer.text), *self.next_turn(False, (question,), system_prompt, tools))
        return ids


class LastTurnTemplate(ByteTemplate):
    """Writes the system prompt and the tools before the last question only, and the id of a call with its result."""

    def rewrites_history(self, system_prompt: str = "", tools: Sequence[str] = ()) -> str | None:
        return "The system prompt is moved by this model's chat template." if system_prompt or tools else None

    def whole(self, system_prompt: str, turns: Sequence[ChatMessage], tools: Sequence[str] = ()) -> tuple[int, ...]:
        earlier, last = self._input(_with_ids(turns[:-1])), self.first_turn(system_prompt, _with_ids(turns[-1:]), tools)
        return earlier + last


def _with_ids(turns: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    return tuple(replace(m, text=f"{m.tool_call_id}{m.text}") for m in turns)


def _without_thought(text: str) -> str:
    return text.rpartition("</think>")[2]


def said(*turns: tuple[str, str]) -> list[ChatMessage]:
    """Of (role, text) pairs."""
    return [ChatMessage(role, text) for role, text in turns]
