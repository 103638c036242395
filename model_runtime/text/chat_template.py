"""Turns text into token ids with the model's own chat template, one turn at a time.

A first turn has the ids that the tokenizer gives the template's rendering; a later turn has those that follow the last
answer in it. So a later turn never depends on earlier text. What people and tools write never becomes a control token.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from model_runtime.interface.chat import ChatMessage, ToolCall, UserInput
from model_runtime.interface.errors import ModelLoadError, TemplateRefused
from model_runtime.text import thoughts
from model_runtime.text.encoding import ShortestEncoding, TokenizerFailed, ids_of, text_of
from model_runtime.text.plain_text import control_contents, exact_copy, hidden_tokens
from model_runtime.text.raw_text import RawText
from model_runtime.text.template_check import check_template, string_constants
from model_runtime.text.template_variables import readable_variables
from model_runtime.text.thoughts import ThoughtsApart
from model_runtime.text.tool_calls import probe_tool_format
from model_runtime.text.turn_ids.frame import ANSWER, HISTORY, REWRITES, Frame, frame_of, reads_earlier_texts
from model_runtime.text.turn_ids.rendering import Rendered, Renderer, Span, parsed_tools, written_tools
from model_runtime.text.turn_ids.turn_encoder import TurnEncoder

TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
_ROLES = ("system", "user", "assistant")
_LONGEST_WORD_CHARS = 32
_WINDOW_CHARS = 128  # more than what the ids of a last word depend on
_KEPT_BINDINGS = 16  # of the template's variables that were used last
_KEPT_FRAMES = 64  # of the system prompts and tools that were used last
_SAMPLE_TEXTS = (
    "It is 12:30, isn't it?\n",
    "الساعة 下午一点",
    "e\u0301 \u1100\u1161\u11a8 👩\u200d🚀",
    "  \t\n ",
    "\0\x7f",
)
_LAST_WORD = re.compile(r"\s+\S*$")  # includes the white space before it


class ChatTemplate(ThoughtsApart):
    """Implements `model_runtime.interface.chat.TurnTemplate`. Immutable after construction, hence thread-safe.

    Raises `ModelLoadError` when the tokenizer has no chat template or the template cannot be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop_token_ids: Iterable[int]) -> None:
        if not tokenizer.chat_template:
            raise ModelLoadError("This model has no chat template; choose an instruction-tuned one.")
        self._template = _template_text(tokenizer)
        check_template(self._template)
        self._stop_token_ids = frozenset(stop_token_ids)
        self.variables = readable_variables(tokenizer)
        try:
            self._probe(tokenizer)
        except TEMPLATE_ERRORS as error:
            raise ModelLoadError(f"This model's chat template or tokenizer cannot be used: {error}.") from error
        except TokenizerFailed as error:
            raise ModelLoadError(f"This model cannot be used: {error}") from error

    def _probe(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Finds out what the template and the tokenizer do, by using them."""
        self._tokenizer = exact_copy(tokenizer.backend_tokenizer, self._template)
        self._special_tokens = tuple(str(token) for token in tokenizer.all_special_tokens)
        controls = control_contents(self._tokenizer, self._template) | set(self._special_tokens)
        self._control_tokens = tuple(sorted(c for c in controls if c in self._special_tokens or c in self._template))
        self.raw = RawText(self._tokenizer, tokenizer.backend_tokenizer)
        hidden = hidden_tokens(self._tokenizer, controls)
        self._text = hidden.tokenizer
        self._absorbs = any(
            (token.lstrip or token.rstrip) and token.content in controls
            for token in self._tokenizer.get_added_tokens_decoder().values()
        )
        self._shortest = ShortestEncoding(self._text, hidden.names.values())
        self._encoder = TurnEncoder(self._tokenizer, controls, hidden)
        self._renderer = Renderer(tokenizer, self._encoder.spelled)
        self.has_thoughts = thoughts.END in self._template and not self._is_hidden(thoughts.END)
        self.bound = ""
        self._with = lru_cache(_KEPT_BINDINGS)(self._rendered_with)
        self._has_system = self._renderer.renders([("system", "kwsystem"), ("user", "kwuser")])
        if not self._renderer.renders([("user", "kwuser")]):
            raise ModelLoadError("This model's chat template refuses, drops or rewrites what a user says.")
        self._find_frames()
        frame = self._frame
        frames = "".join((frame.opening, frame.second_prompt, frame.glue, *self._other_frames()))
        # An answer may contain control tokens that no turn starts or ends with (calls), but not those of the next
        # speaker; and those of thoughts, which some templates write before an answer that has none.
        own = (c for c in controls if c not in frames or c in (thoughts.BEGIN, thoughts.END))
        self._encoder.allow_in_answers(c for c in own if c not in self._special_tokens)
        self._tool_format = probe_tool_format(self._renderer.render, self._is_hidden)
        for text in _SAMPLE_TEXTS:
            self.plain(self.first_turn("", text))
            self.next_turn(False, text)

    def _find_frames(self) -> None:
        self._trims = {role: self._is_trimmed(role) for role in _ROLES}
        self._frame_of = lru_cache(_KEPT_FRAMES)(self._find_frame)
        self._reads_texts = reads_earlier_texts(self._renderer, string_constants(self._template))
        self._frame = self._first_frame()

    def with_variables(self, values: str) -> ChatTemplate:
        """See `TurnTemplate`."""
        return self if values == self.bound else self._with(values)

    def _rendered_with(self, values: str) -> ChatTemplate:
        self._refuse_control_tokens([values])
        other = copy.copy(self)
        other.bound = values
        other._renderer = self._renderer.with_variables(json.loads(values) if values else {})
        try:
            other._find_frames()
        except (*TEMPLATE_ERRORS, ModelLoadError, TokenizerFailed) as error:
            raise TemplateRefused(
                f"This model's chat template cannot be rendered with these variables: {error}."
            ) from error
        return other

    def history_frame(self, system_prompt: str = "", tools: Sequence[str] = ()) -> tuple[str, ...]:
        """See `TurnTemplate`."""
        frame = self._frame_for(system_prompt, tools)
        return frame.opening, frame.second_prompt, frame.glue

    def opens_thought(self, system_prompt: str = "", tools: Sequence[str] = ()) -> bool:
        """See `TurnTemplate`."""
        return self.has_thoughts and thoughts.opens_thought(self._frame_for(system_prompt, tools).prompt)

    @property
    def tools_are_generic(self) -> bool:
        """See `TurnTemplate`."""
        return False

    @property
    def takes_tools(self) -> bool:
        """Whether the template shows tools and its calls can be parsed."""
        return self._tool_format is not None

    def first_turn(self, system_prompt: str, user: UserInput, tools: Sequence[str] = ()) -> tuple[int, ...]:
        """Ids of system prompt, first input and generation prompt: those of the tokenizer's own
        `apply_chat_template`."""
        messages = self._with_calls_written(user)
        if system_prompt and self._has_system:
            messages.insert(0, ChatMessage("system", system_prompt))
        elif system_prompt:
            messages[0] = replace(messages[0], text=f"{system_prompt}\n\n{messages[0].text}")
        definitions = self._definitions(tools)
        self._refuse_control_tokens([written_tools(definitions), *(f"{m.tool_call_id} {m.name}" for m in messages)])
        return self._encoder.ids(self._renderer.rendered(messages, definitions))

    def rewrites_history(self, system_prompt: str = "", tools: Sequence[str] = ()) -> str | None:
        """None when a later turn only appends, else a sentence that says why not. Raises `TemplateRefused`."""
        return self._frame_for(system_prompt, tools).rewrites

    def next_turn(
        self,
        answer_ended_with_stop_token: bool,
        user: UserInput,
        system_prompt: str = "",
        tools: Sequence[str] = (),
    ) -> tuple[int, ...]:
        """Ids that a later turn adds: closing markup, input, generation prompt. System prompt and tools are those of
        the conversation, which a template may read in every turn."""
        ids = self._encoder.ids_after(self._later(user, system_prompt, tools))
        if not answer_ended_with_stop_token:
            return ids
        # The answer has its stop token already, and where the template writes white space before it, the model did not.
        place = next((n for n, token_id in enumerate(ids) if self._encoder.is_control(token_id)), None)
        if place is None or ids[place] not in self._stop_token_ids or (place and self.plain(ids[:place]).strip()):
            return ids
        return ids[place + 1 :]

    def unstable_tokens(self, user_text: str) -> int:
        """How many ids at the end of a turn with `user_text` may change as the user types on.

        Tokenizers split at white space before they merge, so everything before the last word is stable. Text without
        white space for long (Chinese, a link) counts a few characters as the word. The last word may begin in the
        template's own text. One more id, because a piece of the text may be read differently from the whole.
        """
        text = user_text.strip() if self._trims["user"] else user_text
        return max(
            self._unstable_tokens(opening, text, closing)
            for opening, closing in (
                (self._frame.opening, self._frame.prompt),
                (self._frame.glue, self._frame.closing),
            )
        )

    def answer(self, text: str, system_prompt: str = "", tools: Sequence[str] = ()) -> tuple[int, ...]:
        """Ids of an answer's text without a stop token, behind the generation prompt of its conversation."""
        core = text.strip() if self._trims["assistant"] else text
        if not core:
            return ()
        frame = self._frame_for(system_prompt, tools)
        lead = frame.before_answer
        spans = (Span(len(lead), len(lead) + len(core), "assistant"),)
        return self._encoder.ids_after(Rendered(lead + core, spans), frame.prompt)

    def calls_in(self, answer_text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """(content, calls) of a finished answer."""
        return self._tool_format.read(answer_text) if self._tool_format else (answer_text, ())

    def content_chars(self, growing_text: str) -> int:
        """How many characters of an unfinished answer are content, whatever follows."""
        return self._tool_format.content_chars(growing_text) if self._tool_format else len(growing_text)

    @property
    def parts_calls(self) -> bool:
        """See `TurnTemplate`."""
        return self._tool_format is not None and bool(self._tool_format.begin)

    def first_call_chars(self, answer_text: str) -> int:
        """See `TurnTemplate`."""
        return self._tool_format.first_call_chars(answer_text) if self._tool_format else len(answer_text)

    def with_calls(self, text: str, calls: Sequence[ToolCall]) -> str:
        """The text of an answer that makes these calls."""
        if not calls:
            return text
        if self._tool_format is None:
            raise TemplateRefused("This model's chat template does not support tool calls.")
        return self._tool_format.write(text, calls)

    def call_grammar(self, tools: Sequence[str], lenient: Collection[str] = (), or_text: bool = False) -> str:
        """See `TurnTemplate`. Raises `TemplateRefused` where the template takes no tools."""
        if self._tool_format is None:
            raise TemplateRefused("This model's chat template does not support tool calls.")
        return self._tool_format.grammar(tools, lenient, or_text)

    def whole(self, system_prompt: str, turns: Sequence[ChatMessage], tools: Sequence[str] = ()) -> tuple[int, ...]:
        """Ids of a whole conversation with generation prompt. The last of `turns` is not the assistant's."""
        return self.first_turn(system_prompt, tuple(turns), tools)

    def count(self, text: str) -> int:
        """How many tokens a text has on its own."""
        return len(ids_of(self._text, text))

    def least_tokens(self, text: str) -> int:
        """A cheap lower bound of `count`."""
        may_lose_space = self._absorbs or any(self._trims.values())
        return self._shortest.least_tokens(text.strip() if may_lose_space else text)

    def plain(self, token_ids: Sequence[int]) -> str:
        """The displayable text of ids, without control tokens."""
        return text_of(self._tokenizer, token_ids)

    def _definitions(self, tools: Sequence[str]) -> list[Any]:
        if tools and not self.takes_tools:
            raise TemplateRefused("This model's chat template does not support tools. Send the request without them.")
        return parsed_tools(tools)

    def _with_calls_written(self, user: UserInput) -> list[ChatMessage]:
        """The messages; an assistant's calls are part of its text."""
        messages = [ChatMessage("user", user)] if isinstance(user, str) else list(user)
        return [
            replace(m, text=self.with_calls(m.text, m.tool_calls), tool_calls=()) if m.tool_calls else m
            for m in messages
        ]

    def _later(self, user: UserInput, system_prompt: str, tools: Sequence[str]) -> Rendered:
        """What the template writes behind an answer."""
        before = [*(_system(system_prompt) if self._has_system else ()), *HISTORY]
        definitions = self._definitions(tools)
        if isinstance(user, str):
            frame = self._frame_for(system_prompt, tools)
            text = user.strip() if self._trims["user"] else user
            rest = self._renderer.written([*before, ChatMessage("user", user)], definitions).partition(ANSWER)[2]
            # Where it differs, a later turn holds something of the beginning: a text that may spell control tokens.
            is_plain = (frame.glue, frame.closing) == (self._frame.glue, self._frame.closing)
            if is_plain and rest == f"{frame.glue}{text}{frame.closing}":
                return Rendered(rest, (Span(len(frame.glue), len(frame.glue) + len(text), "user"),))
        messages = self._with_calls_written(user)
        self._refuse_control_tokens([f"{m.tool_call_id} {m.name}" for m in messages])
        whole = self._renderer.rendered([*before, *messages], definitions)
        return whole.after(whole.text.index(ANSWER) + len(ANSWER))

    def _unstable_tokens(self, opening: str, text: str, closing: str) -> int:
        """Those of the turn `opening` + `text` + `closing`."""
        start = (opening + text)[-_WINDOW_CHARS:]
        word = _LAST_WORD.search(start[-_LONGEST_WORD_CHARS:])
        is_whole = bool(word) or len(start) <= _LONGEST_WORD_CHARS
        word_chars = len(word.group()) if word else min(len(start), _LONGEST_WORD_CHARS)
        return self._encoder.count_behind(start + closing, len(start) - word_chars) + (not is_whole)

    def _refuse_control_tokens(self, pieces: Sequence[str]) -> None:
        """The template writes these as its own."""
        if any(token in piece for token in self._control_tokens for piece in pieces):
            raise TemplateRefused("A tool's definition, a name or an id contains one of this model's control tokens.")

    def _is_hidden(self, text: str) -> bool:
        """Whether the text contains a token that is not shown in answers."""
        return any(token in text for token in self._special_tokens)

    def _is_trimmed(self, role: str) -> bool:
        """Whether the template strips white space around that role's text."""
        if role == "system" and not self._has_system:
            return False
        before = {"system": [], "user": [], "assistant": [("user", "u")]}[role]
        after = [("user", "u")] if role != "user" else []
        return " \n s \n " not in self._renderer.render_texts(*before, (role, " \n s \n "), *after)

    def _first_frame(self) -> Frame:
        """Without system prompt and tools."""
        try:
            return self._frame_of("", ())
        except TemplateRefused as error:
            raise ModelLoadError("This model's chat template leaves messages out or repeats them.") from error

    def _frame_for(self, system_prompt: str, tools: Sequence[str]) -> Frame:
        """Where the template takes no system prompt, the first question holds it."""
        return self._frame_of(system_prompt if self._has_system else "", tuple(tools))

    def _find_frame(self, system_prompt: str, tools: tuple[str, ...]) -> Frame:
        has_thoughts, definitions = "</think>" in self._template, self._definitions(tools)
        try:
            frame = frame_of(self._renderer, _system(system_prompt), definitions, has_thoughts)
            return replace(frame, rewrites=frame.rewrites or self._reads_texts)
        except TemplateRefused:
            if not system_prompt and not tools:
                raise
            return replace(self._frame, rewrites=REWRITES)  # the whole conversation decides whether it can be written

    def _other_frames(self) -> list[str]:
        """What the template writes around a system prompt and a tool's result, if it supports them."""
        found: list[str] = []
        for messages in (
            [ChatMessage("system", ""), ChatMessage("user", "")],
            [ChatMessage("user", ""), ChatMessage("assistant", ""), ChatMessage("tool", "", tool_call_id="kwcall001")],
        ):
            with contextlib.suppress(TemplateRefused):
                found += self._renderer.parts(messages)[:-1]
        return found


def _system(system_prompt: str) -> list[ChatMessage]:
    return [ChatMessage("system", system_prompt)] if system_prompt else []


def _template_text(tokenizer: PreTrainedTokenizerFast) -> str:
    template = tokenizer.chat_template
    return "\n".join(map(str, template.values())) if isinstance(template, dict) else str(template)
