"""What an answer must look like, as data: the engine lets the model choose among the tokens that keep to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GrammarKind = Literal["json_schema", "regex", "gbnf", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """`text` is a JSON schema as JSON, a regular expression, or a grammar in llama.cpp's or llguidance's notation."""

    kind: GrammarKind
    text: str
