"""Token ids for a part of a token's text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tokenizers import Tokenizer

from model_runtime.text.encoding import ids_of, text_of

_CONTEXT_TOKENS = 16
_ANCHORS = (".", "a", "1", " ", "\n")


def ids_of_part(
    tokenizer: Tokenizer,
    before: Sequence[int],
    text: str,
    are_wanted: Callable[[tuple[int, ...]], bool] = lambda ids: True,
) -> tuple[int, ...] | None:
    """Wanted ids that add exactly `text` to the text of the ids `before`; None if the vocabulary has none. They are
    checked by decoding them: how a text is tokenised depends on what stands before it. WordPiece writes no white space
    at an end: there it is left out. Raises `TokenizerFailed`."""
    context = list(before[-_CONTEXT_TOKENS:])
    said = text_of(tokenizer, context)
    for part in dict.fromkeys((text, text.rstrip())):
        for ids in _guesses(tokenizer, said, part):
            if are_wanted(ids) and text_of(tokenizer, [*context, *ids]) == said + part:
                return ids
    return None


def _guesses(tokenizer: Tokenizer, said: str, text: str) -> Iterator[tuple[int, ...]]:
    for anchor in (said, "", *_ANCHORS):
        lead, ids = ids_of(tokenizer, anchor), ids_of(tokenizer, anchor + text)
        if text and ids[: len(lead)] == lead:
            yield tuple(ids[len(lead) :])
    yield tuple(token_id for char in text for token_id in _char_ids(tokenizer, char))


def _char_ids(tokenizer: Tokenizer, char: str) -> list[int]:
    own = tokenizer.token_to_id(char)
    return ids_of(tokenizer, char) if own is None else [own]
