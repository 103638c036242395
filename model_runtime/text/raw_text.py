"""Texts that are no messages: no chat template is written around them, and control tokens in them are these tokens."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from model_runtime.text.encoding import ids_of, text_of


class RawText:
    """Implements `model_runtime.interface.chat.RawCodec`. `exact` gives a text's own ids; `original` also adds what the
    model was trained to see first."""

    def __init__(self, exact: Tokenizer, original: Tokenizer) -> None:
        self._tokenizer = exact
        self._beginning = _beginning(original)

    def ids(self, text: str, is_beginning: bool) -> tuple[int, ...]:
        """See `RawCodec`."""
        own = tuple(ids_of(self._tokenizer, text))
        if not is_beginning or own[: len(self._beginning)] == self._beginning:
            return own
        return (*self._beginning, *own)

    def text(self, token_ids: Sequence[int]) -> str:
        """See `RawCodec`."""
        return text_of(self._tokenizer, token_ids, skip_special_tokens=False)

    def pieces(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """See `RawCodec`."""
        return tuple(self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids)


def _beginning(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The special tokens that the tokenizer itself writes before a text."""
    found = tokenizer.encode("a", add_special_tokens=True)
    marks = found.special_tokens_mask
    count = next((n for n, mark in enumerate(marks) if not mark), 0)
    return tuple(found.ids[:count])
