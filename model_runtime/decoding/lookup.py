"""Prompt-lookup decoding: drafts an answer's next tokens from text that is already in the conversation.

An answer that quotes, corrects or summarises repeats runs of earlier text. If the last ids occurred before, what
followed them there is a draft, and one forward checks all of it (Saxena 2023, "Prompt Lookup Decoding"). Every token is
still drawn by the sampler from the model's own logits, so a draft decides only how many rows a forward has, never what
is written. (Leviathan et al. 2023, arXiv:2211.17192, accept a draft with a probability instead; for a deterministic
draft both accept equally often.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from model_runtime.decoding.step_cost import MOST_ROWS, StepCost
from model_runtime.forward.runtime import Forward, KVPlace
from model_runtime.interface.config import PromptLookup

LONGEST_DRAFT_TOKENS = 7  # with the pending token 8 rows, two tiles of the packed 4-bit kernel

# The n-gram lengths that are looked up, longest first, and the initial acceptance probability of such a draft.
_TRUST = {3: 0.6, 2: 0.3}
_LEARNING_RATE = 0.2
_MEASURED_AFTER_TOKENS = 2048


class NgramIndex:
    """Finds where the last few ids of a ledger occurred before. A new token costs one dictionary entry per n-gram
    length and no scan."""

    def __init__(self, ledger: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}
        for token_id in ledger:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        """Adds an id to the ledger and records it as the continuation of the n-grams before it."""
        place = len(self._ids)
        for length in _TRUST:
            if place >= length:
                self._follows[tuple(self._ids[place - length :])] = place
        self._ids.append(token_id)

    def find(self, most_tokens: int) -> tuple[int, list[int]]:
        """The length of the n-gram that was found again (0 if none), and the `most_tokens` ids that followed its last
        occurrence. Where those reach the ledger's end, the draft continues from its own ids, as in a loop."""
        for length in _TRUST:
            place = self._follows.get(tuple(self._ids[-length:]))
            if place is not None:
                draft = self._ids[place : place + most_tokens]
                while len(draft) < most_tokens:
                    draft.append(draft[len(draft) - (len(self._ids) - place)])
                return length, draft
        return 0, []


class StepWorth:
    """Weighs drafts against the time their rows take. The step has `rows` rows so far and yields `tokens` tokens over
    all streams; `step_s(rows)` returns the expected seconds of its forward."""

    def __init__(self, rows: int, tokens: int, step_s: Callable[[int], float]) -> None:
        self._rows = rows
        self._tokens = float(tokens)
        self._step_s = step_s

    def take(self, most_tokens: int, trust: float) -> int:
        """Chooses the draft length that gives all streams together the most tokens per second, possibly 0, and adds its
        rows to the step. Each id of a draft is accepted with probability `trust`, and only after accepted ones."""
        best, best_tokens, best_rate = 0, self._tokens, self._tokens / self._step_s(self._rows)
        tokens, reached = self._tokens, 1.0
        for length in range(1, most_tokens + 1):
            reached *= trust
            tokens += reached
            rate = tokens / self._step_s(self._rows + length)
            if rate > best_rate:
                best, best_tokens, best_rate = length, tokens, rate
        self._rows, self._tokens = self._rows + best, best_tokens
        return best


class Drafter:
    """One generation's drafts and their acceptance rate. Engine thread only.

    Drafts that were not worth feeding are compared with the sampled tokens too, so that trust can recover at no cost.
    """

    def __init__(self, ledger: Sequence[int]) -> None:
        self._index = NgramIndex(ledger)
        self._trust = dict(_TRUST)
        self._length = 0
        self._found: list[int] = []

    def draft(self, most_tokens: int, worth: StepWorth | None) -> list[int]:
        """At most `most_tokens` ids to feed after the pending token. `worth` None means all that were found."""
        self._length, self._found = self._index.find(LONGEST_DRAFT_TOKENS)
        most_tokens = max(0, min(most_tokens, len(self._found)))
        if worth is not None and most_tokens:
            most_tokens = worth.take(most_tokens, self._trust[self._length])
        return self._found[:most_tokens]

    def sampled(self, token_ids: Sequence[int]) -> None:
        """Takes the ids that the model sampled after the last draft (or without one)."""
        for token_id in token_ids:
            self._index.append(token_id)
        for found, token_id in zip(self._found, token_ids, strict=False):
            self._trust[self._length] += _LEARNING_RATE * ((found == token_id) - self._trust[self._length])
            if found != token_id:
                break
        self._found = []


class Drafting(Protocol):
    """What lookup needs from a decoding generation."""

    def draft(self, context_limit_tokens: int, worth: StepWorth | None) -> None:
        """Chooses the draft that its next step checks."""


class Lookup:
    """Prompt lookup for the engine: "auto" weighs every draft, "on" feeds all drafts, "off" none."""

    def __init__(self, mode: PromptLookup) -> None:
        self.mode = mode
        self._cost = StepCost()
        self._is_for_one = False

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the start-up lines."""
        if self.mode == "off":
            return ()
        where = "where that saves time" if self.mode == "auto" else "also where that may cost time"
        return (f"Prompt lookup guesses answers that repeat the conversation, {where}.",)

    def measure(self, forward: Forward, place: KVPlace, limit_tokens: int) -> None:
        """Measures what additional rows cost on this machine, for contexts of up to `limit_tokens`. Call again when the
        forward changes. With slabs, history makes every row slower by about the same factor. With an arena, a single
        row has a kernel of its own and several rows do not, which shows only after a history; and drafts in several
        streams cost still more, so "auto" then drafts nothing."""
        self._is_for_one = place.capacity_tokens is not None
        if self.mode == "auto":
            most_tokens = min(limit_tokens, place.capacity_tokens or 0) // 2 - MOST_ROWS
            self._cost.measure_on(forward, place, max(0, min(_MEASURED_AFTER_TOKENS, most_tokens)))

    def add_drafts(self, decoding: Sequence[Drafting], rows: int, context_limit_tokens: int) -> None:
        """Adds drafts to the decode steps of a forward of `rows` rows."""
        if self.mode == "off" or (self.mode == "auto" and self._is_for_one and len(decoding) > 1):
            return
        worth = StepWorth(rows, len(decoding), self._cost.seconds) if self.mode == "auto" else None
        for generation in decoding:
            generation.draft(context_limit_tokens, worth)
