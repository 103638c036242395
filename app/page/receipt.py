"""A receipt in words: one line under the answer, and the details it opens into."""

from __future__ import annotations

from app import units
from sessions.types import MissReason, Receipt, Tier


def line(receipt: Receipt) -> str:
    """ "1,812 reused / 38 read ahead / 8 new · first token 0.05 s · 31 tok/s"."""
    if _is_missed(receipt) and receipt.reused_tokens == 0:
        parts = [f"{units.tokens(receipt.fed_tokens)} read again"]
    else:
        ahead = f"{units.tokens(receipt.ahead_tokens)} read ahead / " if receipt.ahead_tokens else ""
        shared = f"{units.tokens(receipt.shared_tokens)} copied / " if receipt.shared_tokens else ""
        kept = units.tokens(_kept_tokens(receipt))
        parts = [f"{kept} reused / {shared}{ahead}{units.tokens(receipt.fed_tokens)} new"]
    if receipt.ttft_s is not None:
        parts.append(f"first token {units.seconds(receipt.ttft_s)}")
    if receipt.tokens_per_s is not None:
        parts.append(f"{receipt.tokens_per_s:.0f} tok/s")
    return " · ".join(parts)


def details(receipt: Receipt) -> list[tuple[str, str]]:
    """(name, value) pairs, in reading order."""
    rows = [
        ("Reused", _reused(receipt)),
        ("Read now", _read(receipt)),
    ]
    if receipt.shared_tokens:
        rows.insert(1, ("Copied", f"{units.tokens(receipt.shared_tokens)} tokens, from {_other(receipt)}"))
    if receipt.ahead_tokens:
        rows.insert(1, ("Read ahead", f"{units.tokens(receipt.ahead_tokens)} tokens, before the message was sent"))
    if receipt.waited_s >= 0.05:
        rows.append(("Waited in the queue", units.seconds(receipt.waited_s)))
    if receipt.ttft_s is not None:
        rows.append(("First token", f"after {units.seconds(receipt.ttft_s)}"))
    rows.append(("Written", _written(receipt)))
    if receipt.drafted_tokens:
        rows.append(("Guessed from the conversation", _guessed(receipt)))
    if receipt.saved_s >= 0.005:
        rows.append(("Saved", f"about {units.seconds(receipt.saved_s)} compared with reading everything again"))
    if receipt.restored_bytes:
        restored = f"{units.size(receipt.restored_bytes)} in {units.seconds(receipt.restore_s)}"
        rows.append(("Brought back from disk", restored))
    if receipt.choice:
        rows.append(("Why", receipt.choice))
    if receipt.miss_detail:
        rows.append(("Why it was read", receipt.miss_detail))
    return rows


def _reused(receipt: Receipt) -> str:
    kept_tokens = _kept_tokens(receipt)
    if kept_tokens == 0:
        if not _is_missed(receipt):
            return "nothing: this is the first turn"
        if receipt.miss_reason is MissReason.ROPE_CHANGED:
            return "nothing: what is kept was computed for another length"
        return "nothing: no cache held this conversation"
    tier = "" if receipt.tier_before is Tier.NONE else f", from {_tier(receipt.tier_before)}"
    return f"{units.tokens(kept_tokens)} tokens{tier}"


def _is_missed(receipt: Receipt) -> bool:
    """Whether it was fed more than it added before the answer began."""
    return receipt.miss_reason is not None and receipt.fed_tokens > receipt.delta_tokens


def _kept_tokens(receipt: Receipt) -> int:
    """Tokens that this conversation's own memory held from earlier turns."""
    return receipt.reused_tokens - receipt.ahead_tokens - receipt.shared_tokens


def _other(receipt: Receipt) -> str:
    name = f"“{receipt.shared_title}”" if receipt.shared_title else "a conversation that was deleted"
    return f"{name}, which begins with the same text"


def _read(receipt: Receipt) -> str:
    text = f"{units.tokens(receipt.fed_tokens)} tokens in {units.seconds(receipt.prefill_s)}"
    if receipt.fed_tokens != receipt.delta_tokens:
        text += f" (this turn added {units.tokens(receipt.delta_tokens)})"
    return text


def _written(receipt: Receipt) -> str:
    return f"{units.tokens(receipt.sampled_tokens)} tokens in {units.seconds(receipt.decode_s)}"


def _guessed(receipt: Receipt) -> str:
    return f"{units.tokens(receipt.accepted_tokens)} of {units.tokens(receipt.drafted_tokens)} tokens were right"


def _tier(tier: Tier) -> str:
    return f"{units.TIER_MARK[tier]} {tier.value}"
