"""What cold KVs of fewer bits cost, in numbers; `model_runtime.engine.int8_drift` measures it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Int8Drift:
    """What keeping KVs in fewer bits below the device costs, measured at the start: mean negative log-likelihood and
    the share of equal best tokens over `probe_tokens`, behind `history_tokens` that went down and came back."""

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
            f"KVs below the device are kept as {self.dtype}, {self.times_smaller:.1f} times smaller and not exact: "
            f"behind {self.history_tokens} tokens that came back, the mean NLL of {self.probe_tokens} more is "
            f"{self.nll:.4f} instead of {self.exact_nll:.4f}, and the best token is the same for "
            f"{self.top1_agreement:.1%} of them."
        )
