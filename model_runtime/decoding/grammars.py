"""Answers that keep to a grammar: the logits of all tokens that would leave it become minus infinity.

llguidance (Microsoft, MIT) parses what was written and says which tokens may follow. It works on the CPU: for a GPU's
logits a mask of one bit a token is copied, and nothing waits.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark
from tokenizers import Tokenizer

from model_runtime.interface.errors import GrammarFailed
from model_runtime.interface.grammar import Grammar

# Without a bound, a small model may write spaces until its answer ends.
_JSON_OPTIONS: Any = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,16}"}
_LONGEST_REASON_CHARS = 200


class Grammars:
    """The grammars of one model. Any thread. `stop_token_ids` are the model's own; `vocabulary_tokens` is the width of
    its logits. The tokenizer's table is built for the first grammar, which takes seconds."""

    def __init__(self, tokenizer: Tokenizer, stop_token_ids: Collection[int], vocabulary_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._stop_token_ids = sorted(stop_token_ids)
        self._vocabulary_tokens = vocabulary_tokens
        self._table: LLTokenizer | None = None
        self._lock = threading.Lock()

    def refusal_of(self, grammar: Grammar) -> str:
        """Why a grammar cannot be kept to, as a sentence; "" if it can."""
        if not self._stop_token_ids:
            return "This model has no token that ends an answer, so it cannot keep to a format."
        try:
            reason = LLMatcher.validate_grammar(_compiled(grammar), self._tokens())
        except (ValueError, RecursionError) as error:
            reason = str(error)
        is_warning = reason.startswith("WARNING")
        return "" if not reason or is_warning else f"It cannot be kept to: {_first_line(reason)}."

    def constraint(self, grammar: Grammar, device: torch.device) -> Constraint:
        """For one answer. Raises `GrammarFailed`."""
        try:
            matcher = LLMatcher(self._tokens(), _compiled(grammar), log_level=0)
        except (ValueError, RecursionError) as error:
            raise GrammarFailed(_first_line(str(error))) from error
        if matcher.is_error():
            raise GrammarFailed(_first_line(matcher.get_error()))
        return Constraint(matcher, self._vocabulary_tokens, device)

    def _tokens(self) -> LLTokenizer:
        with self._lock:
            if self._table is None:
                plain = Tokenizer.from_str(self._tokenizer.to_str())
                plain.no_padding()
                plain.no_truncation()
                width = max(self._vocabulary_tokens, plain.get_vocab_size())
                self._table = LLTokenizer(plain.to_str(), n_vocab=width, eos_token=self._stop_token_ids)
            return self._table


class Constraint:
    """What one answer may go on with. Engine thread only."""

    def __init__(self, matcher: LLMatcher, vocabulary_tokens: int, device: torch.device) -> None:
        self._matcher = matcher
        self._vocabulary_tokens = vocabulary_tokens
        self._bits = torch.arange(8, dtype=torch.uint8, device=device)

    def mask(self, logits: torch.Tensor) -> None:
        """Forbids in float32 `logits (vocabulary,)` what would leave the grammar."""
        packed = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        if logits.device.type == "cuda":
            packed = packed.pin_memory().to(logits.device, non_blocking=True)
        allowed = (packed[:, None] >> self._bits & 1).view(-1)[: self._vocabulary_tokens]
        logits.masked_fill_(allowed == 0, -torch.inf)

    def took(self, token_id: int) -> None:
        """Raises `GrammarFailed` for a token that leaves the grammar, and when the grammar is too complex."""
        if not self._matcher.consume_token(token_id):
            raise GrammarFailed(_first_line(self._matcher.get_error()))


def _compiled(grammar: Grammar) -> str:
    """llguidance's notation. Raises `ValueError`."""
    match grammar.kind:
        case "json_schema":
            schema = json.loads(grammar.text)
            if not isinstance(schema, dict):
                raise ValueError("a schema must be an object")
            return str(LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS))
        case "regex":
            return str(LLMatcher.grammar_from_regex(grammar.text))
        case "gbnf":
            try:
                return str(LLMatcher.grammar_from_lark(any_to_lark(grammar.text)))
            except GbnfToLarkError as error:
                raise ValueError(str(error)) from error
        case "lark":
            return str(LLMatcher.grammar_from_lark(grammar.text))


def _first_line(reason: str) -> str:
    lines = reason.strip().splitlines() or ["its parser gives no reason"]
    return lines[0].rstrip(".")[:_LONGEST_REASON_CHARS]
