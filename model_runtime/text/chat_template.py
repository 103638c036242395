"""Turns text into token ids with the model's own chat template, one turn at a time.

The template is rendered with sentinels in place of the texts. The parts between them are the template's own, and
control tokens are parsed there; texts are tokenised alone, with control tokens treated as ordinary characters. So a
turn's ids never depend on earlier text, and a user cannot inject control tokens through a message.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from model_runtime.interface.chat import ChatMessage, ToolCall, UserInput
from model_runtime.interface.errors import ModelLoadError, TemplateRefused
from model_runtime.text.encoding import ShortestEncoding, TokenizerFailed, ids_of, text_of
from model_runtime.text.plain_text import control_contents, exact_copy, without_tokens
from model_runtime.text.template_check import check_template
from model_runtime.text.tool_calls import probe_tool_format

_SENTINEL = "kw{}sentinel"
_SENTINEL_PATTERN = re.compile(r"kw(\d+)sentinel")
_ROLES = ("system", "user", "assistant")
_LONGEST_WORD_CHARS = 32
_SAMPLE_TEXTS = (
    "It is 12:30, isn't it?\n",
    "الساعة 下午一点",
    "e\u0301 \u1100\u1161\u11a8 👩\u200d🚀",
    "  \t\n ",
    "\0\x7f",
)
_LAST_WORD = re.compile(r"\s+\S*$")  # includes the white space before it


class ChatTemplate:
    """Implements `model_runtime.interface.chat.TurnTemplate`. Immutable after construction, hence thread-safe.

    Raises `ModelLoadError` when the tokenizer has no chat template or the template cannot be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop_token_ids: Iterable[int]) -> None:
        if not tokenizer.chat_template:
            raise ModelLoadError("This model has no chat template; choose an instruction-tuned one.")
        check_template(_template_text(tokenizer))
        self._tokenizer = tokenizer
        self._stop_token_ids = frozenset(stop_token_ids)
        try:
            self._probe()
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise ModelLoadError(f"This model's chat template or tokenizer cannot be used: {error}.") from error
        except TokenizerFailed as error:
            raise ModelLoadError(f"This model cannot be used: {error}") from error

    def _probe(self) -> None:
        """Finds out what the template and the tokenizer do, by using them."""
        tokenizer = self._tokenizer
        self._markup = exact_copy(tokenizer.backend_tokenizer)
        self._special_tokens = tuple(str(token) for token in tokenizer.all_special_tokens)
        template = _template_text(tokenizer)
        controls = control_contents(self._markup, template) | set(self._special_tokens)
        self._control_tokens = tuple(sorted(c for c in controls if c in self._special_tokens or c in template))
        self._text = without_tokens(self._markup, controls)
        self._answers = self._text
        self._shortest = ShortestEncoding(self._text)
        self._has_system = self._renders([("system", "kwsystem"), ("user", "kwuser")])
        if not self._renders([("user", "kwuser")]):
            raise ModelLoadError("This model's chat template cannot render a user's message.")
        self._trims = {role: self._is_trimmed(role) for role in _ROLES}
        turn = self._turns(2)
        self._glue, self._closing = turn[2], turn[3]
        frame = "".join((*turn[:3], *self._other_frames()))
        # An answer may contain control tokens that no turn starts or ends with (thoughts, calls), but not those of the
        # next speaker.
        said = {c for c in controls if c not in self._special_tokens and c not in frame}
        if said:
            self._answers = without_tokens(self._markup, controls - said)
        self._history = self._probe_history(turn)
        self._tool_format = probe_tool_format(self._render_any, self._is_hidden)
        for text in _SAMPLE_TEXTS:
            self.plain(self.first_turn("", text))
            self.next_turn(False, text)

    @property
    def rewrites_history(self) -> str | None:
        """None when a later turn only appends, else a sentence that says why not."""
        return self._history

    @property
    def takes_tools(self) -> bool:
        """Whether the template shows tools and its calls can be parsed."""
        return self._tool_format is not None

    def first_turn(self, system_prompt: str, user: UserInput, tools: Sequence[str] = ()) -> tuple[int, ...]:
        """Ids of system prompt, first input and generation prompt."""
        messages = _messages(user)
        if system_prompt and self._has_system:
            messages.insert(0, ChatMessage("system", system_prompt))
        elif system_prompt:
            first = messages[0]
            messages[0] = ChatMessage(first.role, f"{system_prompt}\n\n{first.text}", first.tool_calls)
        if tools and not self.takes_tools:
            raise TemplateRefused("This model's chat template does not support tools. Send the request without them.")
        return self._ids(self._parts(messages, tools), messages)

    def next_turn(self, answer_ended_with_stop_token: bool, user: UserInput) -> tuple[int, ...]:
        """Ids that a later turn adds: closing markup, input, generation prompt."""
        messages, parts = _messages(user), [self._glue, self._closing]
        if len(messages) != 1 or messages[0].role != "user":
            parts = self._parts([ChatMessage("user", ""), ChatMessage("assistant", ""), *messages])[2:]
        closing = self._encode_markup(parts[0])
        if answer_ended_with_stop_token and closing and closing[0] in self._stop_token_ids:
            closing = closing[1:]
        return (*closing, *self._ids(["", *parts[1:]], messages))

    def unstable_tokens(self, user_text: str) -> int:
        """How many ids at the end of a turn with `user_text` may change as the user types on.

        Tokenizers split at white space before they merge, so everything before the last word is stable. Text without
        white space for long (Chinese, a link) counts a few characters as the word. One more id for tokenizers that add
        a space at the start of a text.
        """
        end = user_text[-_LONGEST_WORD_CHARS:]
        last_word = _LAST_WORD.search(end)
        tail = last_word.group() if last_word else end
        closing = max(len(self._encode_markup(part)) for part in (self._closing, self._turns(1)[-1]))
        return closing + (self.count(tail) + 1 if tail else 0)

    def answer(self, text: str) -> tuple[int, ...]:
        """Ids of an answer's text without a stop token."""
        return self._encode_text("assistant", text)

    def calls_in(self, answer_text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """(content, calls) of a finished answer."""
        return self._tool_format.read(answer_text) if self._tool_format else (answer_text, ())

    def content_chars(self, growing_text: str) -> int:
        """How many characters of an unfinished answer are content, whatever follows."""
        return self._tool_format.content_chars(growing_text) if self._tool_format else len(growing_text)

    def with_calls(self, text: str, calls: Sequence[ToolCall]) -> str:
        """The text of an answer that makes these calls."""
        if not calls:
            return text
        if self._tool_format is None:
            raise TemplateRefused("This model's chat template does not support tool calls.")
        return self._tool_format.write(text, calls)

    def whole(self, system_prompt: str, turns: Sequence[tuple[str, str]], tools: Sequence[str] = ()) -> tuple[int, ...]:
        """Ids of a whole conversation with generation prompt. `turns` are (role, text) pairs; the last role is not the
        assistant."""
        return self.first_turn(system_prompt, tuple(ChatMessage(role, text) for role, text in turns), tools)

    def count(self, text: str) -> int:
        """How many tokens a text has on its own."""
        return len(ids_of(self._text, text))

    def least_tokens(self, text: str) -> int:
        """A cheap lower bound of `count`."""
        return self._shortest.least_tokens(text.strip() if any(self._trims.values()) else text)

    def plain(self, token_ids: Sequence[int]) -> str:
        """The displayable text of ids, without control tokens."""
        return text_of(self._markup, token_ids)

    def _encode_markup(self, text: str) -> tuple[int, ...]:
        return tuple(ids_of(self._markup, text))

    def _encode_text(self, role: str, text: str) -> tuple[int, ...]:
        if self._trims.get(role):
            text = text.strip()
        return tuple(ids_of(self._answers if role == "assistant" else self._text, text))

    def _ids(self, parts: Sequence[str], messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Ids of messages and the template's `parts` around them, one more than `messages`."""
        ids = list(self._encode_markup(parts[0]))
        for message, part in zip(messages, parts[1:], strict=True):
            ids.extend(self._encode_text(message.role, self.with_calls(message.text, message.tool_calls)))
            ids.extend(self._encode_markup(part))
        return tuple(ids)

    def _has_control_token(self, text: str) -> bool:
        return any(token in text for token in self._control_tokens)

    def _is_hidden(self, text: str) -> bool:
        """Whether the text contains a token that is not shown in answers."""
        return any(token in text for token in self._special_tokens)

    def _render_any(self, messages: list[dict[str, Any]], **options: Any) -> str:
        options = {"add_generation_prompt": True, **options}
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def _render(self, messages: Sequence[tuple[str, str]]) -> str:
        return self._render_any([{"role": role, "content": text} for role, text in messages])

    def _renders(self, messages: Sequence[tuple[str, str]]) -> bool:
        try:
            rendered = self._render(messages)
        except (TemplateError, TypeError, ValueError, KeyError, RecursionError):
            return False
        return all(text in rendered for _, text in messages)

    def _parts(self, messages: Sequence[ChatMessage], tools: Sequence[str] = ()) -> list[str]:
        """The template's own text around the messages: one part more than messages, the generation prompt last. Raises
        `TemplateRefused`."""
        roles = ", ".join(dict.fromkeys(message.role for message in messages))
        try:
            definitions = [json.loads(tool) for tool in tools]
            markup = [json.dumps(definitions, ensure_ascii=False), *(f"{m.tool_call_id} {m.name}" for m in messages)]
        except RecursionError:
            raise TemplateRefused("A tool's definition is nested too deeply.") from None
        if any(self._has_control_token(piece) for piece in markup):
            raise TemplateRefused("A tool's definition, a name or an id contains one of this model's control tokens.")
        try:
            rendered = self._render_any(
                [_as_template_sees(message, _SENTINEL.format(n)) for n, message in enumerate(messages)],
                **({"tools": definitions} if definitions else {}),
            )
        except RecursionError:
            raise TemplateRefused(
                "A tool's definition or a message is nested too deeply for this model's template."
            ) from None
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise TemplateRefused(f"This model's chat template refuses these messages ({roles}): {error}.") from error
        if [int(n) for n in _SENTINEL_PATTERN.findall(rendered)] != list(range(len(messages))):
            raise TemplateRefused(f"This model's chat template leaves out some of these messages ({roles}).")
        return _SENTINEL_PATTERN.split(rendered)[::2]

    def _is_trimmed(self, role: str) -> bool:
        """Whether the template strips white space around that role's text."""
        if role == "system" and not self._has_system:
            return False
        before = {"system": [], "user": [], "assistant": [("user", "u")]}[role]
        after = [("user", "u")] if role != "user" else []
        return " \n s \n " not in self._render([*before, (role, " \n s \n "), *after])

    def _turns(self, count: int) -> list[str]:
        """The template's parts around `count` user messages with answers between them."""
        messages = [ChatMessage(("user", "assistant")[n % 2], "") for n in range(2 * count - 1)]
        try:
            return self._parts(messages)
        except TemplateRefused as error:
            raise ModelLoadError("This model's chat template leaves messages out or repeats them.") from error

    def _other_frames(self) -> list[str]:
        """What the template writes around a system prompt and a tool's result, if it supports them."""
        found: list[str] = []
        for messages in (
            [ChatMessage("system", ""), ChatMessage("user", "")],
            [ChatMessage("user", ""), ChatMessage("assistant", ""), ChatMessage("tool", "", tool_call_id="kwcall001")],
        ):
            with contextlib.suppress(TemplateRefused):
                found += self._parts(messages)[:-1]
        return found

    def _probe_history(self, turn: list[str]) -> str | None:
        first, longer = self._turns(1), self._turns(3)
        if first[0] != turn[0] or first[1] != turn[1] or longer[:3] != turn[:3] or longer[3] != turn[3]:
            return "This model's chat template writes earlier turns differently once later ones follow."
        if longer[4] != self._glue or longer[5] != self._closing:
            return "This model's chat template writes later turns differently from the second one."
        if "</think>" in str(self._tokenizer.chat_template):
            thought = [("user", "u"), ("assistant", "<think>\nkept?\n</think>\n\na"), ("user", "v")]
            if "kept?" not in self._render(thought):
                return "This model's chat template removes the reasoning from earlier answers."
        return None


def _template_text(tokenizer: PreTrainedTokenizerFast) -> str:
    template = tokenizer.chat_template
    return "\n".join(map(str, template.values())) if isinstance(template, dict) else str(template)


def _messages(user: UserInput) -> list[ChatMessage]:
    return [ChatMessage("user", user)] if isinstance(user, str) else list(user)


def _as_template_sees(message: ChatMessage, text: str) -> dict[str, Any]:
    """A message with a sentinel for its text. An assistant's calls are part of its text, because their JSON is data
    too."""
    seen = {"role": "system" if message.role == "developer" else message.role, "content": text}
    if message.tool_call_id:
        seen["tool_call_id"] = message.tool_call_id
    if message.name:
        seen["name"] = message.name
    return seen
