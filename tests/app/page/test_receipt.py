"""Receipts in words."""

from __future__ import annotations

from dataclasses import replace

from app.page import receipt
from sessions.types import MissReason, Receipt, Tier

WARM = Receipt(
    fed_tokens=46,
    delta_tokens=46,
    reused_tokens=1812,
    sampled_tokens=311,
    tier_before=Tier.DEVICE,
    ttft_s=0.21,
    waited_s=0.0,
    prefill_s=0.19,
    decode_s=10.0,
    saved_s=8.2,
)


def test_a_warm_turn() -> None:
    assert receipt.line(WARM) == "1,812 reused / 46 new · first token 0.21 s · 31 tok/s"
    details = dict(receipt.details(WARM))
    assert details["Reused"] == "1,812 tokens, from ● device"
    assert details["Read now"] == "46 tokens in 0.19 s"
    assert details["Saved"] == "about 8.2 s compared with reading everything again"
    assert "Waited in the queue" not in details


def test_a_miss_says_why() -> None:
    missed = replace(
        WARM,
        fed_tokens=5020,
        reused_tokens=0,
        tier_before=Tier.NONE,
        waited_s=2.0,
        miss_reason=MissReason.MODEL_CHANGED,
        miss_detail="The model was changed, so this conversation was read again.",
    )
    assert receipt.line(missed).startswith("5,020 read again · ")
    details = dict(receipt.details(missed))
    assert details["Read now"] == "5,020 tokens in 0.19 s (this turn added 46)"
    assert details["Waited in the queue"] == "2.0 s"
    assert details["Why it was read"] == "The model was changed, so this conversation was read again."


def test_other_rotary_frequencies_before_the_answer_and_within_it() -> None:
    before = replace(WARM, fed_tokens=5020, reused_tokens=0, miss_reason=MissReason.ROPE_CHANGED, miss_detail="So.")
    assert receipt.line(before).startswith("5,020 read again · ")
    assert dict(receipt.details(before))["Reused"] == "nothing: what is kept was computed for another length"
    within = replace(WARM, fed_tokens=WARM.delta_tokens, miss_reason=MissReason.ROPE_CHANGED, miss_detail="So.")
    assert receipt.line(within).startswith("1,812 reused / 46 new · ")
    assert dict(receipt.details(within))["Why it was read"] == "So."


def test_guesses_that_were_right() -> None:
    assert "Guessed from the conversation" not in dict(receipt.details(WARM))
    guessed = dict(receipt.details(replace(WARM, drafted_tokens=1200, accepted_tokens=180)))
    assert guessed["Guessed from the conversation"] == "180 of 1,200 tokens were right"


def test_an_answer_without_a_token() -> None:
    stopped = replace(WARM, ttft_s=None, sampled_tokens=0, decode_s=0.0, saved_s=0.0)
    assert receipt.line(stopped) == "1,812 reused / 46 new"
    assert {"First token", "Saved"}.isdisjoint(dict(receipt.details(stopped)))
