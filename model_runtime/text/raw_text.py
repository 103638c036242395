"""Texts that are no messages: no chat template is written around them, and control tokens in them are these tokens."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from model_runtime.text.encoding import beginning_of, ids_of, text_of


class RawText:
    """Implements `model_runtime.interface.chat.RawCodec`. `exact` gives a text's own ids; `original` also adds what the
    model was trained to see first."""

    def __init__(self, exact: Tokenizer, original: Tokenizer) -> None:
        self._tokenizer = exact
        self._beginning = beginning_of(original)

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
