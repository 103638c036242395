"""Converts texts to token ids and back without blocking other threads.

`Tokenizer.encode` and `decode` hold the GIL until they are done: 5.1 s for 3 MB of Chinese, during which no other
thread runs. The batch calls release it; the longest pause is then 0.2 s, to build the list of a million ids.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from tokenizers import Encoding, Tokenizer

from model_runtime.interface.errors import ModelRuntimeError

SHORT_CHARS = 2048  # takes a few milliseconds; a batch call would cost more than it gains
_SHORT_TOKENS = 1024
_PRINTED = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_NOT_PRINTED = [byte for byte in range(256) if byte not in _PRINTED]
_NFC_FACTOR = 4  # composing characters never shortens a text to less than a quarter of its bytes


class TokenizerFailed(ModelRuntimeError):
    """The tokenizers library failed on a text: the model's tokenizer is damaged."""


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text's own ids, without special tokens. Any thread. Raises `TokenizerFailed`."""
    with _panics_are_errors():
        if len(text) <= SHORT_CHARS:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        else:
            ids = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids


def encoding_of(tokenizer: Tokenizer, text: str) -> Encoding:
    """The text's own ids, with the characters that each one stands for. Any thread. Raises `TokenizerFailed`."""
    with _panics_are_errors():
        if len(text) <= SHORT_CHARS:
            return tokenizer.encode(text, add_special_tokens=False)
        return tokenizer.encode_batch([text], add_special_tokens=False)[0]


def text_of(tokenizer: Tokenizer, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
    """The displayable text of ids, without control tokens. Any thread. Raises `TokenizerFailed`."""
    with _panics_are_errors():
        if len(token_ids) <= _SHORT_TOKENS:
            return str(tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))
        return str(tokenizer.decode_batch([list(token_ids)], skip_special_tokens=skip_special_tokens)[0])


def beginning_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The special tokens that the tokenizer itself writes before a text. Raises `TokenizerFailed`."""
    with _panics_are_errors():
        found = tokenizer.encode("a", add_special_tokens=True)
    marks = found.special_tokens_mask
    return tuple(found.ids[: next((n for n, mark in enumerate(marks) if not mark), 0)])


@contextlib.contextmanager
def _panics_are_errors() -> Iterator[None]:
    """A panic of the library's Rust code is a `BaseException`, which would end a thread or a request without a word."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerFailed("its tokenizer is damaged.") from error


class ShortestEncoding:
    """A lower bound of a text's token count without tokenising it: its bytes divided by those of the longest token.
    Works for tokenizers that drop nothing but bytes without a token; 0, which means no bound, for all others."""

    def __init__(self, tokenizer: Tokenizer, not_in_text: Collection[str] = ()) -> None:
        """`not_in_text` are the added tokens that no text contains."""
        description = json.loads(tokenizer.to_str())
        description["added_tokens"] = [t for t in description["added_tokens"] if t["content"] not in not_in_text]
        self._dropped_bytes = _dropped_bytes(description)
        self._bytes_a_token = _most_bytes_a_token(description)

    def least_tokens(self, text: str) -> int:
        """The least number of tokens that any encoding of the text can have."""
        if self._dropped_bytes is None:
            return 0
        return len(text.encode("utf-8", "replace").translate(None, self._dropped_bytes)) // self._bytes_a_token


def _dropped_bytes(description: dict[str, Any]) -> bytes | None:
    """The bytes that have no token (a byte-level tokenizer drops them); None if more may be dropped."""
    model = description["model"]
    steps = [*_steps(description.get("normalizer")), *_steps(description.get("pre_tokenizer"))]
    if model["type"] != "BPE" or not all(_keeps(step) for step in steps):
        return None
    if any(token["lstrip"] or token["rstrip"] for token in description["added_tokens"]):
        return None  # they absorb any number of spaces beside them
    if any(step["type"] == "ByteLevel" for step in steps):
        return bytes(byte for byte in range(256) if _byte_level_letter(byte) not in model["vocab"])
    has_all = model.get("byte_fallback") and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
    return b"" if has_all else None


def _byte_level_letter(byte: int) -> str:
    """The character that stands for a byte in a byte-level vocabulary (GPT-2's `bytes_to_unicode`)."""
    return chr(byte) if byte in _PRINTED else chr(256 + _NOT_PRINTED.index(byte))


def _keeps(step: dict[str, Any]) -> bool:
    kind = step["type"]
    if kind == "Split":
        return step.get("behavior") != "Removed"
    if kind == "Replace":  # "▁" for a space
        found = step.get("pattern", {}).get("String", "")
        return 0 < len(found.encode()) <= len(str(step.get("content", "")).encode())
    return kind in ("ByteLevel", "Digits", "Metaspace", "Prepend", "NFC")


def _most_bytes_a_token(description: dict[str, Any]) -> int:
    steps = [*_steps(description.get("normalizer")), *_steps(description.get("pre_tokenizer"))]
    # A Unigram model lists its pieces with their scores.
    pieces = (piece if isinstance(piece, str) else piece[0] for piece in description["model"]["vocab"])
    vocabulary = [*pieces, *(token["content"] for token in description["added_tokens"])]
    # Byte-level vocabularies write a byte as a character of one or two bytes: never fewer bytes than it stands for.
    longest = max((len(token.encode()) for token in vocabulary), default=1)
    return longest * (_NFC_FACTOR if any(step["type"] == "NFC" for step in steps) else 1)


def _steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    if step is None:
        return []
    parts = step.get("normalizers") or step.get("pretokenizers")
    return [inner for part in parts for inner in _steps(part)] if parts else [step]
