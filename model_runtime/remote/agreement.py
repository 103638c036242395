"""Compares a server with the tokenizer that writes for it: what differs would be silently wrong text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from model_runtime.interface.errors import ModelLoadError
from model_runtime.remote.connection import Connection
from model_runtime.remote.dialects.dialect import Dialect
from model_runtime.remote.texts import RemoteTexts

# Matrices are often padded: Qwen's have 271 rows more than its tokenizer has ids, DeepSeek's 465.
MOST_PADDING_IDS = 1024
_MOST_CONTROLS = 64
_SPREAD_IDS = 512
_MOST_NAMED = 3
_UNDECODABLE = "\ufffd"
# Every kind of character: words, digits, code, accents composed and not, other scripts, joined emoji, white space.
EVERY_KIND = (
    "The 3 quick foxes' 1,024.75% of £5 – isn't it?\n\tdef f(x): return x**2  # ok\n\n"
    "Zürich, naïve, e\u0301, Ελλάδα, Москва, שלום, السلام, हिन्दी, ไทย, 한국어, 日本語、中文。 𝔘𝔫𝔦 👩\u200d🚀🇨🇭 ½²≠∞→ ok"
)


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was found. `differences` are clauses: any of them means other text. `notes` are sentences: what could not be
    compared, or differs without a consequence."""

    differences: tuple[str, ...]
    notes: tuple[str, ...] = ()


async def compare(dialect: Dialect, connection: Connection, texts: RemoteTexts) -> Agreement:
    """Compares vocabularies, control tokens and texts. Raises `EngineTrouble`."""
    differences = [*_sizes(dialect, texts)]
    spread = _spread(texts)
    if await dialect.text_of(connection, spread[:1]) is None:
        note = f"The engine at {connection.address} does not say which text its ids stand for: make sure that"
        return Agreement(tuple(differences), (f"{note} {texts.name} is the tokenizer of its model.",))
    differences += await _controls(dialect, connection, texts)
    backend = texts.tokenizer.backend_tokenizer
    own_ids = list(backend.encode(EVERY_KIND, add_special_tokens=False).ids)
    own_text = str(backend.decode(own_ids, skip_special_tokens=False))
    engine_text = await dialect.text_of(connection, own_ids)
    if not _is_same_text(engine_text, own_text):
        differences.append(f"the same {len(own_ids)} ids are other text there ({_where(engine_text or '', own_text)})")
    engine_ids = await dialect.ids_of(connection, EVERY_KIND, False)
    notes: list[str] = []
    if engine_ids is not None and engine_ids != own_ids:
        back = str(backend.decode(engine_ids, skip_special_tokens=False))
        if not _is_same_text(back, own_text):
            differences.append(f"its own ids of a text are other text here ({_where(back, own_text)})")
        else:
            notes.append(
                f"The engine at {connection.address} cuts text into other tokens than {texts.name} does. That has no "
                "effect: it is sent ids, never text."
            )
    engine_spread = await dialect.text_of(connection, spread)
    if not _is_same_text(engine_spread, str(backend.decode(spread, skip_special_tokens=False))):
        differences += [await _different_ids(dialect, connection, texts, spread)]
    return Agreement(tuple(differences), tuple(notes))


def refuse_disagreement(address: str, texts: RemoteTexts, found: Agreement) -> None:
    """Raises `ModelLoadError` with what differs, if anything does."""
    if found.differences:
        raise ModelLoadError(
            f"The engine at {address} and the tokenizer {texts.name} do not belong together: "
            f"{'; '.join(found.differences)}. Name the tokenizer of the engine's model with --tokenizer."
        )


def _sizes(dialect: Dialect, texts: RemoteTexts) -> Iterable[str]:
    theirs, ours = dialect.facts.vocabulary_tokens, len(texts.tokenizer)
    if theirs is not None and (theirs < ours or theirs > ours + MOST_PADDING_IDS):
        yield f"it has {theirs:,} tokens and the tokenizer {ours:,}"


async def _controls(dialect: Dialect, connection: Connection, texts: RemoteTexts) -> list[str]:
    """Control tokens of the chat template, and those that end answers, must have the same ids."""
    template = str(texts.tokenizer.chat_template or "")
    wrong: list[str] = []
    added = sorted(texts.tokenizer.added_tokens_decoder.items())
    wanted = [(id_, str(one.content)) for id_, one in added if id_ in texts.stop_token_ids or one.content in template]
    for id_, content in wanted[:_MOST_CONTROLS]:
        found = await dialect.ids_of(connection, content, True)
        if found is not None and found != [id_]:
            wrong.append(f"{content} is {id_} here and {found[0] if len(found) == 1 else 'no token of its own'} there")
    more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
    return [", ".join(wrong[:_MOST_NAMED]) + more] if wrong else []


def _spread(texts: RemoteTexts) -> list[int]:
    """Ids from all over the vocabulary whose text is whole characters. The first is one of the lowest."""
    backend, added = texts.tokenizer.backend_tokenizer, texts.tokenizer.added_tokens_decoder
    found: list[int] = []
    for id_ in range(0, len(texts.tokenizer), max(1, len(texts.tokenizer) // _SPREAD_IDS)):
        text = backend.decode([id_], skip_special_tokens=False)
        if id_ not in added and text.strip() and _UNDECODABLE not in text:
            found.append(id_)
    return found or [0]


async def _different_ids(dialect: Dialect, connection: Connection, texts: RemoteTexts, spread: list[int]) -> str:
    """Finds the first id with another text, by halves."""
    low, high = 0, len(spread)
    while high - low > 1:
        middle = (low + high) // 2
        own = str(texts.tokenizer.backend_tokenizer.decode(spread[low:middle], skip_special_tokens=False))
        if _is_same_text(await dialect.text_of(connection, spread[low:middle]), own):
            low = middle
        else:
            high = middle
    there = await dialect.text_of(connection, [spread[low]])
    here = str(texts.tokenizer.backend_tokenizer.decode([spread[low]], skip_special_tokens=False))
    return f"the id {spread[low]:,} is {here!r} here and {there!r} there"


def _is_same_text(found: str | None, own: str) -> bool:
    """A space at the beginning does not count: SentencePiece's tokenizers write it there, and decoders drop it."""
    return found is not None and found.lstrip(" ") == own.lstrip(" ")


def _where(found: str, own: str) -> str:
    """Where two texts differ first."""
    found, own = found.lstrip(" "), own.lstrip(" ")
    place = next((n for n, (a, b) in enumerate(zip(found, own, strict=False)) if a != b), min(len(found), len(own)))
    return f"{own[place : place + 8]!r} here, {found[place : place + 8]!r} there"
