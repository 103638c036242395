"""What a verification found. Imports no torch, so that `sessions` may import it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Comparison:
    """Kept rows against those of a re-read, over so many tokens. `largest_difference` is in units of a layer's root
    mean square; `first_bad_token` is the first position whose rows disagree, None when all agree."""

    tokens: int
    largest_difference: float
    first_bad_token: int | None

    @property
    def agrees(self) -> bool:
        return self.first_bad_token is None


@dataclass(frozen=True, slots=True)
class Verification:
    """What reading a ledger again says of a KV. `copies` are in the order in which they were given; of the last one,
    `logit_difference` is the largest of any logit at any probed position, and `nll_gap` how much worse (nats a token)
    it predicts the ledger there."""

    tokens: int
    logit_difference: float
    nll_gap: float
    copies: tuple[Comparison, ...]
    logits_agree: bool

    @property
    def agrees(self) -> bool:
        return self.logits_agree and all(copy.agrees for copy in self.copies)
