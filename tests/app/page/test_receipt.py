"""Receipts in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app import units
from app.page import receipt
from app.page.thread import run_state
from sessions.types import MissReason, Parting, Receipt, RunPhase, RunSnapshot, Section, Tier

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
HARD_WORDS = ("KV", "tier", "cold", "device", "reserved", "NLL", "prefill", "decode", "token)", "ledger")


def values(one: Receipt, place: units.TierWords = units.CPU_WORDS) -> dict[str, str]:
    return {name: value for name, value, _ in receipt.details(one, place)}


def test_a_warm_turn() -> None:
    assert receipt.line(WARM) == "0.21 s · 46 new, 1,812 kept"
    details = values(WARM)
    assert details["Kept"] == "1,812 tokens, ● in memory"
    assert details["New"] == "46 tokens in 0.19 s"
    assert details["Saved"] == "about 8.2 s"
    assert details["Written"] == "311 tokens in 10 s, 31 a second"
    assert "Waited" not in details
    assert values(WARM, units.tier_words("cuda:0"))["Kept"] == "1,812 tokens, ● in GPU memory"


def test_new_and_kept_are_all_that_the_answer_was_written_for() -> None:
    ahead = replace(WARM, fed_tokens=1, reused_tokens=12_480, ahead_tokens=38, shared_tokens=300, ttft_s=0.03)
    assert receipt.line(ahead) == "0.03 s · 1 new, 12,480 kept"
    details = values(ahead)
    assert details["Kept"] == "12,480 tokens, ● in memory"
    assert details["of these, read before sending"] == "38 tokens"
    assert (
        details["of these, copied"]
        == "300 tokens, from a conversation that was deleted, which begins with the same text"
    )
    assert details["New"] == "1 token in 0.19 s (this message added 46)"


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
    assert receipt.line(missed) == "0.21 s · 5,020 read again"
    details = values(missed)
    assert details["Kept"] == "nothing of this conversation was kept"
    assert details["New"] == "5,020 tokens in 0.19 s (this message added 46)"
    assert details["Waited"] == "2.0 s"
    assert details["Why it was read again"] == "The model was changed, so this conversation was read again."


def test_other_rotary_frequencies_before_the_answer_and_within_it() -> None:
    before = replace(WARM, fed_tokens=5020, reused_tokens=0, miss_reason=MissReason.ROPE_CHANGED, miss_detail="So.")
    assert receipt.line(before) == "0.21 s · 5,020 read again"
    assert values(before)["Kept"] == "nothing: what is kept was computed for another length"
    within = replace(WARM, fed_tokens=WARM.delta_tokens, miss_reason=MissReason.ROPE_CHANGED, miss_detail="So.")
    assert receipt.line(within) == "0.21 s · 46 new, 1,812 kept"
    assert values(within)["Why it was read again"] == "So."


def test_where_a_history_differs() -> None:
    place = Parting(13, 12_480, Section.SYSTEM, "2026-11-28", "2026-11-29", is_date=True, again_tokens=4974)
    said = "token 14 of 12,480, in the system text: `2026-11-28` / `2026-11-29`, a date"
    missed = replace(WARM, fed_tokens=5020, reused_tokens=0, tier_before=Tier.NONE, parting=place)
    by_client = values(replace(missed, miss_reason=MissReason.HISTORY_CHANGED, miss_detail=f"It differs at {said}."))
    assert by_client["Kept"] == "nothing: its beginning differs from what is kept"
    assert by_client["Why it was read again"] == f"It differs at {said}."
    on_page = values(replace(missed, miss_reason=MissReason.SYSTEM_PROMPT_CHANGED, miss_detail="It was changed."))
    assert on_page["Where it differs"] == f"T{said[1:]}"


@pytest.mark.parametrize(
    ("parting", "place"),
    [
        (Parting(4, 9, Section.TOOLS, "a", "b", name="map"), "the definition of the tool `map`: `a` / `b`"),
        (Parting(4, 9, Section.TOOLS, "", "map"), "the tools: nothing / `map`"),
        (Parting(4, 9, Section.MESSAGE, "a", "b", number=3, role="user"), "message 3 (user): `a` / `b`"),
        (Parting(4, 9, Section.TEMPLATE), "what the chat template writes"),
    ],
)
def test_each_section_has_its_words(parting: Parting, place: str) -> None:
    assert parting.place == f"token 5 of 9, in {place}"


def test_a_wait_for_the_same_text() -> None:
    waited = values(replace(WARM, waited_s=3.0, shared_wait_s=2.0))
    assert waited["Waited"] == "3.0 s, of these 2.0 s while another answer had the same text read"
    state = run_state(RunSnapshot(1, RunPhase.WAITING, "", is_sharing=True))
    assert state["label"] == "waiting for another answer that reads the same text"


def test_guesses_that_were_right() -> None:
    assert "Guessed from the conversation" not in values(WARM)
    guessed = values(replace(WARM, drafted_tokens=1200, accepted_tokens=180))
    assert guessed["Guessed from the conversation"] == "180 of 1,200 tokens were right"


def test_an_answer_without_a_token() -> None:
    stopped = replace(WARM, ttft_s=None, sampled_tokens=0, decode_s=0.0, saved_s=0.0)
    assert receipt.line(stopped) == "46 new, 1,812 kept"
    assert {"First word", "Saved"}.isdisjoint(values(stopped))


def test_words_are_plain_and_their_terms_are_behind_them() -> None:
    everything = replace(
        WARM, waited_s=1.0, restored_bytes=10**8, restore_s=0.1, ahead_tokens=3, shared_tokens=4, drafted_tokens=5
    )
    for name, value, hint in receipt.details(everything):
        assert hint.endswith(".")
        assert not [word for word in HARD_WORDS if word in name + value]


def test_what_a_remote_engine_reports_and_does_not_report() -> None:
    reported = replace(WARM, tier_before=Tier.ENGINE)
    assert values(reported)["Kept"] == "1,812 tokens, ◇ in the engine"
    missed = replace(
        reported, fed_tokens=1858, reused_tokens=0, tier_before=Tier.NONE, miss_reason=MissReason.ENGINE_HELD_LESS
    )
    assert values(missed)["Kept"] == "nothing: the engine had none of it"
    silent = replace(WARM, fed_tokens=0, reused_tokens=0, tier_before=Tier.NONE, is_reuse_reported=False, saved_s=0.0)
    assert receipt.line(silent) == "0.21 s · reuse not reported"
    assert values(silent)["Kept"] == "not reported by the engine"
    assert values(silent)["New"].startswith("not reported")
