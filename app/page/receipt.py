"""A receipt in words: one line under the answer, and the details it opens into. Each detail has a name in plain words,
its value, and a sentence with the exact terms, which the page shows on hover and focus."""

from __future__ import annotations

from app import units
from sessions.types import MissReason, Receipt, Tier

Detail = tuple[str, str, str]


def line(receipt: Receipt) -> str:
    """ "0.03 s · 1 new, 12,480 kept". New and kept tokens together are all that the answer was written for."""
    first_word = [] if receipt.ttft_s is None else [units.seconds(receipt.ttft_s)]
    if not receipt.is_reuse_reported:
        return " · ".join([*first_word, "reuse not reported"])
    if _is_missed(receipt) and receipt.reused_tokens == 0:
        return " · ".join([*first_word, f"{units.tokens(receipt.fed_tokens)} read again"])
    count = f"{units.tokens(receipt.fed_tokens)} new, {units.tokens(receipt.reused_tokens)} kept"
    return " · ".join([*first_word, count])


def details(receipt: Receipt, place: units.TierWords = units.CPU_WORDS) -> list[Detail]:
    """(name, value, exact terms), in reading order. `place` are the words for the tiers."""
    rows = [
        ("Kept", _kept(receipt, place), "Tokens whose keys and values (KV) were in memory when the message was sent."),
    ]
    if receipt.ahead_tokens:
        hint = "Read ahead: what was typed, and the beginning of every message, is read while no answer is written."
        rows.append(("of these, read before sending", _tokens(receipt.ahead_tokens), hint))
    if receipt.shared_tokens:
        value = f"{_tokens(receipt.shared_tokens)}, from {_other(receipt)}"
        rows.append(("of these, copied", value, "A shared prefix: both conversations begin with the same tokens."))
    rows.append(("New", _read(receipt), "Tokens fed to the model for this answer (prefill)."))
    if receipt.waited_s >= 0.05:
        rows.append(("Waited", _waited(receipt), "In the queue, for room in memory or for the model."))
    if receipt.ttft_s is not None:
        value = f"after {units.seconds(receipt.ttft_s)}"
        rows.append(("First word", value, "Time to first token, with everything that was brought back for it."))
    rows.append(("Written", _written(receipt), "Tokens sampled (decode), and how fast."))
    if receipt.drafted_tokens:
        hint = "Prompt lookup: words that stand in the conversation are tried as the next ones, several at a time."
        rows.append(("Guessed from the conversation", _guessed(receipt), hint))
    if receipt.saved_s >= 0.005:
        value = f"about {units.seconds(receipt.saved_s)}"
        rows.append(("Saved", value, "Compared with reading the whole conversation again."))
    if receipt.restored_bytes:
        value = f"{units.size(receipt.restored_bytes)} in {units.seconds(receipt.restore_s)}"
        rows.append(("Brought back", value, "Saved keys and values, restored before the answer began."))
    if receipt.choice:
        rows.append(("Why", receipt.choice, "The expected times of restoring and of reading again."))
    if receipt.miss_detail:
        rows.append(("Why it was read again", receipt.miss_detail, "What kept the saved memory from being used."))
    if receipt.parting is not None and receipt.miss_reason is not MissReason.HISTORY_CHANGED:  # that says it already
        hint = "The first place at which the tokens differ from those that are kept. What comes later is read again."
        rows.append(("Where it differs", _capitalised(receipt.parting.place), hint))
    return rows


def _capitalised(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _kept(receipt: Receipt, place: units.TierWords) -> str:
    if not receipt.is_reuse_reported:
        return "not reported by the engine"
    if receipt.reused_tokens == 0:
        if not _is_missed(receipt):
            return "nothing: this is the first message"
        if receipt.miss_reason is MissReason.ROPE_CHANGED:
            return "nothing: what is kept was computed for another length"
        if receipt.miss_reason is MissReason.HISTORY_CHANGED:
            return "nothing: its beginning differs from what is kept"
        if receipt.miss_reason is MissReason.ENGINE_HELD_LESS:
            return "nothing: the engine had none of it"
        return "nothing of this conversation was kept"
    where = "" if receipt.tier_before is Tier.NONE else f", {units.TIER_MARK[receipt.tier_before]} "
    return _tokens(receipt.reused_tokens) + (f"{where}{place[receipt.tier_before]}" if where else "")


def _is_missed(receipt: Receipt) -> bool:
    """Whether it was fed more than it added before the answer began."""
    return receipt.miss_reason is not None and receipt.fed_tokens > receipt.delta_tokens


def _other(receipt: Receipt) -> str:
    name = f"“{receipt.shared_title}”" if receipt.shared_title else "a conversation that was deleted"
    return f"{name}, which begins with the same text"


def _read(receipt: Receipt) -> str:
    if not receipt.is_reuse_reported:
        return f"not reported; the first token took {units.seconds(receipt.prefill_s)}"
    text = f"{_tokens(receipt.fed_tokens)} in {units.seconds(receipt.prefill_s)}"
    if receipt.fed_tokens != receipt.delta_tokens:
        text += f" (this message added {units.tokens(receipt.delta_tokens)})"
    return text


def _waited(receipt: Receipt) -> str:
    waited = units.seconds(receipt.waited_s)
    if receipt.shared_wait_s < 0.05:
        return waited
    return f"{waited}, of these {units.seconds(receipt.shared_wait_s)} while another answer had the same text read"


def _written(receipt: Receipt) -> str:
    text = f"{_tokens(receipt.sampled_tokens)} in {units.seconds(receipt.decode_s)}"
    return text if receipt.tokens_per_s is None else f"{text}, {receipt.tokens_per_s:.0f} a second"


def _guessed(receipt: Receipt) -> str:
    return f"{units.tokens(receipt.accepted_tokens)} of {units.tokens(receipt.drafted_tokens)} tokens were right"


def _tokens(count: int) -> str:
    return f"{units.tokens(count)} {'token' if count == 1 else 'tokens'}"
