"""What a comparison found, as plain records. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """How a comparison ended. `EXACT`: equal ids, logits within the rounding of float32. `AGREES`: equal ids, logits
    within the rounding of the fewer bits that run."""

    EXACT = "exact"
    AGREES = "agrees"
    DIFFERS = "differs"
    REFUSED = "refused"
    NOT_COMPARED = "not_compared"  # Keepwarm runs the model, transformers alone does not


@dataclass(frozen=True, slots=True)
class IdsFinding:
    """The token ids of one turn. `transformers` are the tokenizer's own for the same messages."""

    what: str
    keepwarm: tuple[int, ...]
    transformers: tuple[int, ...]

    @property
    def agrees(self) -> bool:
        return self.keepwarm == self.transformers

    @property
    def first_difference(self) -> int:
        """The place of the first id that differs; the shorter length when one is the other's beginning."""
        pairs = zip(self.keepwarm, self.transformers, strict=False)
        shorter = min(len(self.keepwarm), len(self.transformers))
        return next((n for n, (ours, theirs) in enumerate(pairs) if ours != theirs), shorter)


@dataclass(frozen=True, slots=True)
class ReadingFinding:
    """The logits of one answer at each of its tokens, in standard deviations of the reference's logits, and the greedy
    tokens that they lead to. `measure` says which statistic `gap_std` is. `error` is Keepwarm's own sentence when it
    gave no answer."""

    what: str
    ledger_tokens: int
    gap_std: float
    allowed_std: float
    measure: str
    keepwarm_tokens: tuple[str, ...]
    transformers_tokens: tuple[str, ...]
    error: str | None = None

    @property
    def agrees(self) -> bool:
        return self.error is None and self.gap_std <= self.allowed_std


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """One model, run twice. `keepwarm` and `transformers` say in words how each of them ran it; `refusal` is
    Keepwarm's sentence when it did not."""

    model: str
    verdict: Verdict
    sentence: str
    keepwarm: str = ""
    transformers: str = ""
    refusal: str | None = None
    ids: tuple[IdsFinding, ...] = ()
    readings: tuple[ReadingFinding, ...] = ()
    notes: tuple[str, ...] = ()  # what the reference was given, and what was not compared

    def as_json(self) -> dict[str, Any]:
        """A JSON object. A gap that is not a number is null."""
        found = asdict(self)
        for row, ids in zip(found["ids"], self.ids, strict=True):
            row["agrees"] = ids.agrees
        for row, reading in zip(found["readings"], self.readings, strict=True):
            row["agrees"] = reading.agrees
            row["gap_std"] = reading.gap_std if reading.gap_std == reading.gap_std < float("inf") else None
        return found
