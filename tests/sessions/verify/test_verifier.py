"""Verifying on request: correct memory stays, wrong memory is dropped, budgets hold, and no run waits for it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from sessions.types import CheckView, MissReason, Tier
from tests import polling
from tests.sessions.conftest import MakeHarness
from tests.sessions.memory.test_memory import LONG
from tests.sessions.scripted_engine import ScriptedEngine, ScriptedKV
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

MIB = 1024 * 1024


def verified(harness: SessionHarness, c: str) -> CheckView:
    assert harness.manager.verify(ADA, c).wait(10) is not None
    return shown(harness, c)


def shown(harness: SessionHarness, c: str) -> CheckView:
    check = next(row for row in harness.manager.memory_view(ADA).rows if row.conversation_id == c).check
    assert check is not None
    return check


def kv_of(harness: SessionHarness, c: str) -> ScriptedKV:
    kv = harness.manager.memory.held.slots[c].kv
    assert isinstance(kv, ScriptedKV)
    return kv


@pytest.fixture
def saved_harness(make_harness: MakeHarness) -> tuple[SessionHarness, str]:
    """Two turns, on the device and on disk."""
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation()
    harness.say(c, LONG)
    harness.say(c, "Second " + LONG)
    harness.saved(c)
    return harness, c


def test_correct_memory_stays_where_it_is(saved_harness: tuple[SessionHarness, str]) -> None:
    harness, c = saved_harness
    before = harness.manager.memory_view(ADA).rows[0]
    check = verified(harness, c)
    assert (check.is_running, check.agrees) == (False, True)
    assert check.sentence.startswith(
        f"its memory is correct ({len(harness.ledger(c)) - 1:,} tokens read again, largest logit"
    )
    row = harness.manager.memory_view(ADA).rows[0]
    assert (row.tier, row.kv_tokens, row.disk_bytes) == (Tier.DEVICE, before.kv_tokens, before.disk_bytes)
    assert harness.manager.memory_view(ADA).events[0].text.startswith("Checked A long message that is")
    assert harness.engine.allocated_bytes == row.used_bytes  # the throw-away KV is gone
    receipt = harness.receipt(harness.say(c, "And?"))
    assert receipt.fed_tokens == receipt.delta_tokens


def test_a_kv_that_disagrees_is_dropped_and_its_saved_copy_serves(saved_harness: tuple[SessionHarness, str]) -> None:
    harness, c = saved_harness
    kv_of(harness, c).marks[30] ^= 1
    check = verified(harness, c)
    assert check.agrees is False
    assert "its memory on the device was wrong from token 31 on and was dropped" in check.sentence
    row = harness.manager.memory_view(ADA).rows[0]
    assert (row.tier, row.used_bytes) == (Tier.DISK, 0)
    message = harness.say(c, "And?")
    assert message.text == harness.expected_text(c)
    assert harness.receipt(message).tier_before is Tier.DISK


def test_a_dropped_kv_without_a_copy_is_read_again_with_the_reason(harness: SessionHarness) -> None:
    c = harness.conversation()
    harness.say(c, LONG)
    kv_of(harness, c).marks[30] ^= 1
    assert verified(harness, c).agrees is False
    message = harness.say(c, "And?")
    assert message.text == harness.expected_text(c)
    receipt = harness.receipt(message)
    assert (receipt.miss_reason, receipt.reused_tokens) == (MissReason.EVICTED, 0)
    assert receipt.miss_detail.startswith("Its memory disagreed when it was verified, so ")


def test_a_saved_copy_alone_is_verified_from_disk(saved_harness: tuple[SessionHarness, str]) -> None:
    harness, c = saved_harness
    harness.manager.park(ADA, c)
    assert verified(harness, c).agrees is True
    assert harness.manager.memory_view(ADA).device_used_bytes == 0
    receipt = harness.receipt(harness.say(c, "And?"))
    assert (receipt.tier_before, receipt.fed_tokens) == (Tier.DISK, receipt.delta_tokens)


def test_a_damaged_file_is_refused_and_deleted(saved_harness: tuple[SessionHarness, str]) -> None:
    harness, c = saved_harness
    harness.manager.park(ADA, c)
    last = max(harness.store.segments.of_conversation(c), key=lambda segment: segment.start_tokens)
    path = harness.manager.memory.saved_kvs.disk.path_of(last.key)
    path.write_bytes(path.read_bytes()[:-1])
    check = verified(harness, c)
    assert check.agrees is False
    assert check.sentence.startswith("its copy on disk was refused and deleted: the saved memory is damaged")
    assert not path.exists()
    assert verified(harness, c).agrees is True  # what comes before it is good
    receipt = harness.receipt(harness.say(c, "And?"))
    assert (receipt.tier_before, receipt.reused_tokens) == (Tier.DISK, last.start_tokens)


def test_a_saved_copy_that_was_wrong_when_it_was_written_is_deleted(make_harness: MakeHarness) -> None:
    """The file is complete and its checksum correct, but its rows are not those of the ledger."""
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation()
    harness.engine.save_delay_s = 0.2
    run = harness.manager.send(ADA, c, LONG)
    polling.until(lambda: run.snapshot().sampled_tokens >= 1, every_s=0.001)
    kv_of(harness, c).marks[30] ^= 1
    finish(run)
    harness.saved(c)
    check = verified(harness, c)
    assert check.sentence.startswith(
        "its memory on the device was wrong from token 31 on and was dropped; "
        "its copy on disk was wrong from token 1 on and was deleted ("
    )
    row = harness.manager.memory_view(ADA).rows[0]
    assert (row.tier, row.disk_bytes, row.used_bytes) == (Tier.NONE, 0, 0)
    assert harness.files() == []


def test_without_memory_there_is_nothing_to_verify(harness: SessionHarness) -> None:
    c = harness.conversation()
    harness.say(c, LONG)
    harness.manager.drop_kv(ADA, c)
    check = verified(harness, c)
    assert (check.agrees, check.sentence) == (None, "there is nothing to verify, on the device or on disk")


def test_it_keeps_to_the_budget_or_says_that_it_cannot(make_harness: MakeHarness) -> None:
    harness = make_harness(budget_bytes=500 * 1024)
    c = harness.conversation(max_new_tokens=100)
    harness.say(c, LONG)
    check = verified(harness, c)
    assert check.agrees is None
    assert "the device budget is 0.5 MiB. Park it first" in check.sentence
    assert harness.engine.peak_bytes <= 500 * 1024
    assert harness.manager.memory_view(ADA).rows[0].tier is Tier.DEVICE


def test_idle_kvs_are_evicted_for_it(make_harness: MakeHarness) -> None:
    harness = make_harness(budget_bytes=900 * 1024, disk_kv_budget_bytes=64 * MIB)
    other, c = harness.conversation(max_new_tokens=100), ""
    harness.say(other, LONG)
    c = harness.conversation(max_new_tokens=100)
    harness.say(c, LONG)
    harness.saved(other)
    harness.saved(c)
    assert verified(harness, c).agrees is True
    assert harness.engine.peak_bytes <= 900 * 1024
    assert {row.conversation_id: row.tier for row in harness.manager.memory_view(ADA).rows} == {
        c: Tier.DEVICE,
        other: Tier.DISK,
    }


@pytest.mark.alone
def test_it_gives_way_to_a_message_and_starts_again(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=ScriptedEngine(fed_token_delay_s=0.002))
    c = harness.conversation()
    harness.say(c, LONG)
    asked = harness.manager.verify(ADA, c)
    assert harness.manager.verify(ADA, c) is asked  # one at a time
    until(lambda: "reading" in shown(harness, c).sentence)
    assert f"of {len(harness.ledger(c)) - 1:,} tokens again" in shown(harness, c).sentence
    message = harness.say(c, "And now?")
    receipt = harness.receipt(message)
    assert message.text == harness.expected_text(c)
    assert receipt.waited_s < 0.4  # a chunk of 64 tokens takes 0.13 s
    assert receipt.fed_tokens == receipt.delta_tokens
    result = asked.wait(10)
    assert result is not None
    assert (result.agrees, result.tokens) == (True, len(harness.ledger(c)) - 1)


def test_it_ends_with_the_server(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=ScriptedEngine(fed_token_delay_s=0.002))
    c = harness.conversation()
    harness.say(c, LONG)
    asked = harness.manager.verify(ADA, c)
    until(lambda: "reading" in shown(harness, c).sentence)
    began = time.monotonic()
    harness.close()
    assert time.monotonic() - began < 1.5
    result = asked.wait(1)
    assert result is not None
    assert result.agrees is None


def test_a_deleted_conversation_leaves_no_result(harness: SessionHarness) -> None:
    c = harness.conversation()
    harness.say(c, LONG)
    verified(harness, c)
    harness.manager.delete(ADA, c)
    assert harness.manager.background.verifier.views() == {}


def test_host_memory_is_verified_too(make_harness: MakeHarness) -> None:
    harness = make_harness(host_kv_budget_bytes=64 * MIB, disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation()
    harness.say(c, LONG)
    harness.saved(c)
    harness.manager.park(ADA, c, Tier.HOST)
    check = verified(harness, c)
    assert (check.agrees, harness.manager.memory_view(ADA).rows[0].tier) == (True, Tier.HOST)
    entry = next(iter(harness.manager.memory.host._entries.values()))  # noqa: SLF001 - damage is planted in the copy itself
    marks = list(entry.segment.marks)  # type: ignore[attr-defined]
    marks[5] ^= 1
    entry.segment = replace(entry.segment, marks=tuple(marks))  # type: ignore[type-var]
    check = verified(harness, c)
    assert check.agrees is False
    assert check.sentence.startswith("its copy in host memory was wrong from token 1 on and was deleted (")
    row = harness.manager.memory_view(ADA).rows[0]
    assert (row.tier, row.host_bytes) == (Tier.DISK, 0)
    assert harness.receipt(harness.say(c, "And?")).tier_before is Tier.DISK
