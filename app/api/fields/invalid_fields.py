"""What is wrong with a request's fields, in sentences of our own: pydantic's speak of inputs, tags and validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

LONGEST_SENTENCE_CHARS = 300  # a sentence may quote what was sent
MEDIA = {"image": "pictures", "audio": "sound", "video": "videos", "file": "files", "document": "documents"}
_TYPES = {
    "string_type": "text",
    "list_type": "a list",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
}
_SENTENCES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda limits: "is missing",
    "too_long": lambda limits: (
        f"has more than {limits['max_length']:,} {_parts(limits)}, which is the most that is allowed"
    ),
    "too_short": lambda limits: f"needs at least {_counted(limits['min_length'], 'entry', 'entries')}",
    "string_too_long": lambda limits: f"has more than {limits['max_length']:,} characters",
    "string_too_short": lambda limits: f"needs at least {_counted(limits['min_length'], 'character', 'characters')}",
    "string_pattern_mismatch": lambda limits: "may hold no spaces, quotes, backslashes, angle brackets and braces",
    "less_than_equal": lambda limits: f"must be at most {_number(limits['le'])}",
    "less_than": lambda limits: f"must be less than {_number(limits['lt'])}",
    "greater_than_equal": lambda limits: f"must be at least {_number(limits['ge'])}",
    "literal_error": lambda limits: f"must be {limits['expected']}",
    "union_tag_not_found": lambda limits: "needs a type: 'text'",
}


def place_and_sentence(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Where the first error is ("" for the whole body), and a sentence about it. `errors` are pydantic's, with their
    context."""
    first = _place(errors[0]["loc"])
    alike = [error for error in errors if _place(error["loc"])[: len(first)] == first]
    # Where several types are allowed, each of them has an error: the one farthest inside is about what was meant.
    chosen = max(alike, key=lambda error: (len(_place(error["loc"])), error["type"] not in _TYPES))
    place = _place(chosen["loc"])
    types = [_TYPES[error["type"]] for error in alike if _place(error["loc"]) == place and error["type"] in _TYPES]
    name = ".".join(place) or "The request"
    if chosen["type"] == "union_tag_invalid":
        return ".".join(place), _of_part(name, str(chosen["ctx"]["tag"]))
    if types and chosen["type"] in _TYPES:
        return ".".join(place), f"{name} must be {' or '.join(dict.fromkeys(types))}."
    write = _SENTENCES.get(chosen["type"])
    said = f"{name} {write(chosen.get('ctx', {}))}." if write else f"{name} cannot be read: {chosen['msg']}."
    return ".".join(place), said if len(said) <= LONGEST_SENTENCE_CHARS else said[:LONGEST_SENTENCE_CHARS] + "…"


def _place(steps: Sequence[str | int]) -> tuple[str, ...]:
    """The steps from the body to a field, without those with which pydantic names one of several allowed types."""
    place: list[str] = []
    is_tag_next = False
    for step in steps:
        if isinstance(step, str) and (step == "str" or "[" in step):
            is_tag_next = "tagged-union" in step
        elif isinstance(step, str) and is_tag_next:
            is_tag_next = False
        else:
            place.append(str(step))
    return tuple(place)


def media_of(kind: str) -> str | None:
    """What a message's part of that type is, as a word: "pictures". None if it is nothing known."""
    return next((word for part, word in MEDIA.items() if part in kind), None)


def _of_part(name: str, kind: str) -> str:
    if what := media_of(kind):
        return f"{name}: This model reads no {what}. Send parts of type 'text'."
    return f"{name}: Parts of type {kind[:40]!r} are not supported. Send parts of type 'text'."


def _parts(limits: Mapping[str, Any]) -> str:
    return "characters" if limits.get("field_type") == "Value" else "entries"  # pydantic's word for a text


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else str(value)
