"""What the memory of a conversation's current branch is, and what that of all its branches together is."""

from __future__ import annotations

import pytest

from sessions.errors import ConversationNotFound
from sessions.types import BranchMemory, MemoryRow, Tier
from tests.sessions.conftest import MakeHarness
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

MIB = 1024 * 1024
LONG = "A long message that is worth saving, because reading it again takes a while. " * 8


def row_of(harness: SessionHarness, c: str) -> tuple[MemoryRow, BranchMemory]:
    row = harness.manager.memory_row(ADA, c)
    assert row.branch is not None
    return row, row.branch


def test_one_branch_is_all_there_is(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation()
    harness.say(c, LONG)
    harness.say(c, "Go on.")
    harness.saved(c)
    row, branch = row_of(harness, c)
    held = len(harness.ledger(c)) - 1
    assert (row.kv_tokens, row.disk_tokens) == (held, held) == (branch.device_tokens, branch.disk_tokens)
    assert (row.used_bytes, row.disk_bytes) == (branch.device_bytes, branch.disk_bytes)
    assert row in [
        harness.manager.memory_row(ADA, one.conversation_id) for one in harness.manager.memory_view(ADA).rows
    ]


def test_two_branches_count_what_they_share_once(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation(max_new_tokens=200)
    harness.say(c, LONG)
    harness.saved(c)
    first = harness.ledger(c)
    message = harness.manager.view(ADA, c).messages[0]
    finish(harness.manager.edit(ADA, c, message.message_id, LONG + "Or is it something else altogether? " * 4))
    harness.saved(c)
    second = harness.ledger(c)
    row, branch = row_of(harness, c)
    assert branch.device_tokens == branch.disk_tokens == len(second) - 1
    assert len(second) - 1 < row.disk_tokens < len(first) + len(second) - 2
    assert branch.disk_bytes < row.disk_bytes == harness.manager.memory_view(ADA).disk_used_bytes
    harness.manager.switch_sibling(ADA, c, harness.manager.view(ADA, c).messages[0].message_id, -1)
    back, shown = row_of(harness, c)
    assert (back.disk_tokens, back.disk_bytes) == (row.disk_tokens, row.disk_bytes)
    assert shown.disk_tokens == len(first) - 1
    assert 0 < shown.device_tokens < back.kv_tokens  # the device holds the other branch: only the beginning is shared
    assert shown.device_bytes < back.used_bytes


def test_a_forecast_is_that_of_the_shown_branch(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation(max_new_tokens=200)
    harness.say(c, "short")
    message = harness.manager.view(ADA, c).messages[0]
    finish(harness.manager.edit(ADA, c, message.message_id, LONG * 4))
    harness.saved(c)
    harness.manager.park(ADA, c)
    until(lambda: harness.manager.memory_row(ADA, c).tier is Tier.DISK)
    long, _ = row_of(harness, c)
    assert long.next_ttft_s < long.cold_ttft_s
    harness.manager.switch_sibling(ADA, c, message.message_id + 2, -1)
    short, branch = row_of(harness, c)
    assert branch.disk_tokens < short.disk_tokens
    assert short.cold_ttft_s < long.cold_ttft_s


def test_a_stranger_sees_no_row(make_harness: MakeHarness) -> None:
    harness = make_harness()
    c = harness.conversation()
    with pytest.raises(ConversationNotFound):
        harness.manager.memory_row("eve", c)
