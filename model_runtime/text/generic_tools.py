"""Tools for models whose chat template shows none: they are described in the system prompt, in words and marks that
many models were trained on (those of Nous Research's Hermes models), and calls are read from the answer's text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from model_runtime.interface.chat import ChatMessage, RawCodec, ToolCall, TurnTemplate, UserInput
from model_runtime.text.thoughts import ThoughtsApart
from model_runtime.text.tool_calls import ToolFormat

_FORMAT = ToolFormat("<tool_call>", "</tool_call>", "arguments")
_OFFER = """You can call functions. Their definitions, one JSON object each:
<tools>
{tools}
</tools>

To call a function, end your answer with this, with its own name and arguments:
<tool_call>
{{"name": "function_name", "arguments": {{"argument_name": "value"}}}}
</tool_call>

You then get its result between <tool_response> and </tool_response>. When no function helps, answer without a call."""


class GenericTools(ThoughtsApart):
    """Implements `model_runtime.interface.chat.TurnTemplate` on one that takes no tools. Immutable."""

    def __init__(self, template: TurnTemplate) -> None:
        self._template = template
        self.has_thoughts = template.has_thoughts

    @property
    def takes_tools(self) -> bool:
        return True

    @property
    def tools_are_generic(self) -> bool:
        return True

    @property
    def variables(self) -> tuple[str, ...]:
        return self._template.variables

    @property
    def bound(self) -> str:
        return self._template.bound

    def with_variables(self, values: str) -> GenericTools:
        return GenericTools(self._template.with_variables(values))

    def history_frame(self, system_prompt: str = "", tools: Sequence[str] = ()) -> tuple[str, ...]:
        return self._template.history_frame(_with_offer(system_prompt, tools))

    def opens_thought(self, system_prompt: str = "", tools: Sequence[str] = ()) -> bool:
        return self._template.opens_thought(_with_offer(system_prompt, tools))

    def first_turn(self, system_prompt: str, user: UserInput, tools: Sequence[str] = ()) -> tuple[int, ...]:
        return self._template.first_turn(_with_offer(system_prompt, tools), self._plain(user))

    def next_turn(
        self,
        answer_ended_with_stop_token: bool,
        user: UserInput,
        system_prompt: str = "",
        tools: Sequence[str] = (),
    ) -> tuple[int, ...]:
        prompt = _with_offer(system_prompt, tools)
        return self._template.next_turn(answer_ended_with_stop_token, self._plain(user), prompt)

    def calls_in(self, answer_text: str) -> tuple[str, tuple[ToolCall, ...]]:
        return _FORMAT.read(answer_text)

    def content_chars(self, growing_text: str) -> int:
        return _FORMAT.content_chars(growing_text)

    @property
    def parts_calls(self) -> bool:
        return True

    def first_call_chars(self, answer_text: str) -> int:
        return _FORMAT.first_call_chars(answer_text)

    def with_calls(self, text: str, calls: Sequence[ToolCall]) -> str:
        return _FORMAT.write(text, calls) if calls else text

    def call_grammar(self, tools: Sequence[str], lenient: Collection[str] = (), or_text: bool = False) -> str:
        return _FORMAT.grammar(tools, lenient, or_text)

    def unstable_tokens(self, user_text: str) -> int:
        return self._template.unstable_tokens(user_text)

    def answer(self, text: str, system_prompt: str = "", tools: Sequence[str] = ()) -> tuple[int, ...]:
        return self._template.answer(text, _with_offer(system_prompt, tools))

    def rewrites_history(self, system_prompt: str = "", tools: Sequence[str] = ()) -> str | None:
        return self._template.rewrites_history(_with_offer(system_prompt, tools))

    def whole(self, system_prompt: str, turns: Sequence[ChatMessage], tools: Sequence[str] = ()) -> tuple[int, ...]:
        return self._template.whole(_with_offer(system_prompt, tools), self._written(turns))

    @property
    def raw(self) -> RawCodec:
        return self._template.raw

    def count(self, text: str) -> int:
        return self._template.count(text)

    def least_tokens(self, text: str) -> int:
        return self._template.least_tokens(text)

    def plain(self, token_ids: Sequence[int]) -> str:
        return self._template.plain(token_ids)

    def _plain(self, user: UserInput) -> UserInput:
        return user if isinstance(user, str) else self._written(user)

    def _written(self, messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
        """The messages in the roles that any template knows: calls are part of an assistant's text, and results are a
        user's. Users' messages around a result become one with it, because some templates insist on taking turns."""
        found: list[ChatMessage] = []
        has_result = False  # the last of `found`
        for message in messages:
            is_result, is_user = message.role == "tool", message.role in ("tool", "user")
            text = self.with_calls(message.text, message.tool_calls)
            if is_result:
                text = f"<tool_response>\n{text}\n</tool_response>"
            before = found[-1] if found else None
            if is_user and before is not None and before.role == "user" and (is_result or has_result):
                found[-1], has_result = replace(before, text=f"{before.text}\n{text}"), True
            elif is_result:
                found.append(ChatMessage("user", text))
                has_result = True
            else:
                found.append(replace(message, text=text, tool_calls=()))
                has_result = False
        return tuple(found)


def with_tools(template: TurnTemplate) -> TurnTemplate:
    """The template itself if it takes tools, else one that describes them in its system prompt."""
    return template if template.takes_tools else GenericTools(template)


def _with_offer(system_prompt: str, tools: Sequence[str]) -> str:
    if not tools:
        return system_prompt
    offer = _OFFER.format(tools="\n".join(tools))
    return f"{system_prompt}\n\n{offer}" if system_prompt else offer
