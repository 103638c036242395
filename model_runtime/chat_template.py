"""Text to token ids through the model's own chat template, a turn at a time.

The template is rendered with sentinels in place of texts. What lies between them is the template's own (control tokens
are parsed there); texts are tokenised alone, with control tokens taken as ordinary characters. So a turn's ids never
depend on earlier text, and nobody types their way out of their message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from model_runtime.errors import ModelLoadError

_SENTINEL = "kw{}sentinel"
_SENTINEL_PATTERN = re.compile(r"kw(\d+)sentinel")
_ROLES = ("system", "user", "assistant")


class ChatTemplate:
    """Implements `model_runtime.types.TurnTemplate`. Immutable after construction, hence thread-safe.

    Raises `ModelLoadError` when the tokenizer has no chat template or the template cannot be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop_token_ids: Iterable[int]) -> None:
        if not tokenizer.chat_template:
            raise ModelLoadError("This model has no chat template; choose an instruction-tuned one.")
        self._tokenizer = tokenizer
        self._stop_token_ids = frozenset(stop_token_ids)
        self._markup = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._markup.no_truncation()
        self._text = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._text.no_truncation()
        self._text.encode_special_tokens = True
        self._has_system = self._renders([("system", "kwsystem"), ("user", "kwuser")])
        if not self._renders([("user", "kwuser")]):
            raise ModelLoadError("This model's chat template cannot render a user's message.")
        self._trims = {role: self._is_trimmed(role) for role in _ROLES}
        turn = self._parts(["user", "assistant", "user"])
        self._glue, self._closing = turn[2], turn[3]
        self._history = self._probe_history(turn)

    @property
    def rewrites_history(self) -> str | None:
        """None when a later turn only appends; else a sentence why not."""
        return self._history

    def first_turn(self, system_prompt: str, user_text: str) -> tuple[int, ...]:
        """Ids of system prompt, first user message and generation prompt."""
        return self.whole(system_prompt, [("user", user_text)])

    def next_turn(self, answer_ended_with_stop_token: bool, user_text: str) -> tuple[int, ...]:
        """Ids a later turn adds: closing glue, user message, generation prompt."""
        glue = self._encode_markup(self._glue)
        if answer_ended_with_stop_token and glue and glue[0] in self._stop_token_ids:
            glue = glue[1:]
        return (*glue, *self._encode_text("user", user_text), *self._encode_markup(self._closing))

    def answer(self, text: str) -> tuple[int, ...]:
        """Ids of an answer's text without a stop token."""
        return self._encode_text("assistant", text)

    def whole(self, system_prompt: str, turns: Sequence[tuple[str, str]]) -> tuple[int, ...]:
        """Ids of a whole conversation with generation prompt; `turns` are (role, text) pairs ending with the user's."""
        messages = list(turns)
        if system_prompt and self._has_system:
            messages.insert(0, ("system", system_prompt))
        elif system_prompt:
            role, text = messages[0]
            messages[0] = (role, f"{system_prompt}\n\n{text}")
        ids: list[int] = []
        parts = self._parts([role for role, _ in messages])
        for number, part in enumerate(parts):
            ids.extend(self._encode_markup(part))
            if number < len(messages):
                ids.extend(self._encode_text(*messages[number]))
        return tuple(ids)

    def count(self, text: str) -> int:
        """Tokens of a text alone."""
        return len(self._text.encode(text, add_special_tokens=False).ids)

    def plain(self, token_ids: Sequence[int]) -> str:
        """The displayable text of ids, control tokens left out."""
        return str(self._markup.decode(list(token_ids), skip_special_tokens=True))

    def _encode_markup(self, text: str) -> tuple[int, ...]:
        return tuple(self._markup.encode(text, add_special_tokens=False).ids)

    def _encode_text(self, role: str, text: str) -> tuple[int, ...]:
        if self._trims[role]:
            text = text.strip()
        return tuple(self._text.encode(text, add_special_tokens=False).ids)

    def _render(self, messages: Sequence[tuple[str, str]]) -> str:
        rendered = self._tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in messages], tokenize=False, add_generation_prompt=True
        )
        return str(rendered)

    def _renders(self, messages: Sequence[tuple[str, str]]) -> bool:
        try:
            rendered = self._render(messages)
        except (TemplateError, TypeError, ValueError, KeyError):
            return False
        return all(text in rendered for _, text in messages)

    def _parts(self, roles: Sequence[str]) -> list[str]:
        """The template's own text around each of the messages: `len(roles) + 1` pieces, the generation prompt last."""
        rendered = self._render([(role, _SENTINEL.format(n)) for n, role in enumerate(roles)])
        if [int(n) for n in _SENTINEL_PATTERN.findall(rendered)] != list(range(len(roles))):
            raise ModelLoadError("This model's chat template leaves messages out or repeats them.")
        return _SENTINEL_PATTERN.split(rendered)[::2]

    def _is_trimmed(self, role: str) -> bool:
        """Whether the template strips white space around that role's text."""
        if role == "system" and not self._has_system:
            return False
        before = {"system": [], "user": [], "assistant": [("user", "u")]}[role]
        after = [("user", "u")] if role != "user" else []
        return " \n s \n " not in self._render([*before, (role, " \n s \n "), *after])

    def _probe_history(self, turn: list[str]) -> str | None:
        first = self._parts(["user"])
        longer = self._parts(["user", "assistant", "user", "assistant", "user"])
        if first[0] != turn[0] or first[1] != turn[1] or longer[:3] != turn[:3] or longer[3] != turn[3]:
            return "This model's chat template writes earlier turns differently once later ones follow."
        if longer[4] != self._glue or longer[5] != self._closing:
            return "This model's chat template writes later turns differently from the second one."
        if "</think>" in str(self._tokenizer.chat_template):
            thought = [("user", "u"), ("assistant", "<think>\nkept?\n</think>\n\na"), ("user", "v")]
            if "kept?" not in self._render(thought):
                return "This model's chat template takes the reasoning out of earlier answers."
        return None
