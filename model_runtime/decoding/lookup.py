"""Prompt-lookup decoding: guessing an answer's next tokens from what the conversation already says.

An answer that quotes, corrects or summarises repeats runs of the text in front of it. Where the last ids stood before,
what followed them there is a draft, and one forward checks all of it (Saxena 2023, "Prompt Lookup Decoding"). Every
token is still drawn by the sampler from the model's own logits, so a draft decides only how many rows a forward has,
never what is written. (Leviathan et al. 2023, arXiv:2211.17192, accept a draft with a probability instead; for a draft
that is certain of itself both accept equally often.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from model_runtime.decoding.step_cost import MOST_ROWS, StepCost
from model_runtime.forward.runtime import Forward, KVPlace
from model_runtime.interface.config import PromptLookup

LONGEST_DRAFT_TOKENS = 7  # with the pending token 8 rows, two tiles of the packed 4-bit kernel

# How many ids must have stood together before, longest first, and how far such a guess is trusted before it was tried.
_TRUST = {3: 0.6, 2: 0.3}
_LEARNING_RATE = 0.2
_MEASURED_BEHIND_TOKENS = 2048


class NgramIndex:
    """Where the last few ids of a ledger stood before. A new token costs a dictionary entry a length, no scan."""

    def __init__(self, ledger: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}
        for token_id in ledger:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        """The ledger has grown by this id: what stood before it is now known to be followed by it."""
        place = len(self._ids)
        for length in _TRUST:
            if place >= length:
                self._follows[tuple(self._ids[place - length :])] = place
        self._ids.append(token_id)

    def find(self, most_tokens: int) -> tuple[int, list[int]]:
        """How many ids of the ledger's end were found again, and the `most_tokens` ids that follow if it goes on as it
        did there last. Where that place reaches the ledger's end it goes on in the draft itself, as a loop does."""
        for length in _TRUST:
            place = self._follows.get(tuple(self._ids[-length:]))
            if place is not None:
                draft = self._ids[place : place + most_tokens]
                while len(draft) < most_tokens:
                    draft.append(draft[len(draft) - (len(self._ids) - place)])
                return length, draft
        return 0, []


class StepWorth:
    """Weighs drafts against the time their rows take. The step has `rows` rows so far and brings `tokens` tokens to all
    streams together; `step_s(rows)` expects the seconds of its forward."""

    def __init__(self, rows: int, tokens: int, step_s: Callable[[int], float]) -> None:
        self._rows = rows
        self._tokens = float(tokens)
        self._step_s = step_s

    def take(self, most_tokens: int, trust: float) -> int:
        """The draft length that gives all streams together the most tokens a second, 0 when none beats none. The step
        has these rows from now on. A draft's ids each hold with probability `trust`, and only behind those that held.
        """
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
    """One generation's drafts, and how far they are trusted. Engine thread only.

    What was found is compared with what is sampled also where it was not worth feeding, so that trust can come back
    at no cost.
    """

    def __init__(self, ledger: Sequence[int]) -> None:
        self._index = NgramIndex(ledger)
        self._trust = dict(_TRUST)
        self._length = 0
        self._found: list[int] = []

    def draft(self, most_tokens: int, worth: StepWorth | None) -> list[int]:
        """Ids to feed behind the pending token, at most so many. `worth` None means all that was found."""
        self._length, self._found = self._index.find(LONGEST_DRAFT_TOKENS)
        most_tokens = max(0, min(most_tokens, len(self._found)))
        if worth is not None and most_tokens:
            most_tokens = worth.take(most_tokens, self._trust[self._length])
        return self._found[:most_tokens]

    def sampled(self, token_ids: Sequence[int]) -> None:
        """What the model really said behind the last draft (or without one)."""
        for token_id in token_ids:
            self._index.append(token_id)
        for found, token_id in zip(self._found, token_ids, strict=False):
            self._trust[self._length] += _LEARNING_RATE * ((found == token_id) - self._trust[self._length])
            if found != token_id:
                break
        self._found = []


class Drafting(Protocol):
    """What lookup sees of a generation that decodes."""

    def draft(self, context_limit_tokens: int, worth: StepWorth | None) -> None:
        """Chooses what its next step checks."""


class Lookup:
    """Prompt lookup as the engine uses it: "auto" weighs every draft, "on" takes them all, "off" none."""

    def __init__(self, mode: PromptLookup) -> None:
        self.mode = mode
        self._cost = StepCost()
        self._is_for_one = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person is told at the start."""
        if self.mode == "off":
            return ()
        where = "where that saves time" if self.mode == "auto" else "also where that may cost time"
        return (f"Prompt lookup guesses answers that repeat the conversation, {where}.",)

    def measure(self, forward: Forward, place: KVPlace, limit_tokens: int) -> None:
        """What further rows cost on this machine, for contexts of up to `limit_tokens`. Again when the forward has
        become another one. Among slabs history makes every row dearer by about the same factor. Over an arena one row
        has a kernel of its own and several have not, which shows behind a history alone; and several streams with
        guesses cost more still, so that "auto" then guesses nothing."""
        self._is_for_one = place.capacity_tokens is not None
        if self.mode == "auto":
            most_tokens = min(limit_tokens, place.capacity_tokens or 0) // 2 - MOST_ROWS
            self._cost.measure_on(forward, place, max(0, min(_MEASURED_BEHIND_TOKENS, most_tokens)))

    def add_drafts(self, decoding: Sequence[Drafting], rows: int, context_limit_tokens: int) -> None:
        """Gives the decode steps of a forward of `rows` rows their drafts."""
        if self.mode == "off" or (self.mode == "auto" and self._is_for_one and len(decoding) > 1):
            return
        worth = StepWorth(rows, len(decoding), self._cost.seconds) if self.mode == "auto" else None
        for generation in decoding:
            generation.draft(context_limit_tokens, worth)
