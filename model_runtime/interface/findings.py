"""What the engine has measured: the result of a verification, and the cost of saving KVs at 8 bits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Comparison:
    """Stored rows compared with those of a re-read, over `tokens` tokens. `largest_difference` is in units of a layer's
    root mean square; `first_bad_token` is the first position whose rows disagree, None when all agree."""

    tokens: int
    largest_difference: float
    first_bad_token: int | None

    @property
    def agrees(self) -> bool:
        return self.first_bad_token is None


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of reading a ledger again to check a KV. `copies` are in the order given to `verify`. For the last
    copy, `logit_difference` is the largest difference of any logit at any probed position, and `nll_gap` is how much
    worse it predicts the ledger there, in nats per token."""

    tokens: int
    logit_difference: float
    nll_gap: float
    copies: tuple[Comparison, ...]
    logits_agree: bool

    @property
    def agrees(self) -> bool:
        return self.logits_agree and all(copy.agrees for copy in self.copies)


@dataclass(frozen=True, slots=True)
class Int8Drift:
    """What saving KVs at fewer bits costs, measured at start-up: the mean negative log-likelihood and the share of
    equal best tokens over `probe_tokens` tokens, after `history_tokens` tokens that were saved and restored."""

    dtype: str
    times_smaller: float
    history_tokens: int
    probe_tokens: int
    exact_nll: float
    nll: float
    top1_agreement: float

    @property
    def sentence(self) -> str:
        return (
            f"KVs that leave the device are saved as {self.dtype}, {self.times_smaller:.1f} times smaller and not "
            f"exact: after {self.history_tokens} restored tokens, the mean NLL of the next {self.probe_tokens} is "
            f"{self.nll:.4f} instead of {self.exact_nll:.4f}, and the best token is the same for "
            f"{self.top1_agreement:.1%} of them."
        )
