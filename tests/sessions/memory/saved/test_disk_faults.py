"""Torn, swapped and missing files, files of another model, and full, slow or small disks: the text is never wrong."""

from __future__ import annotations

import logging
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model_runtime.interface.segments import SegmentIdentity
from sessions.types import MissReason, Receipt, Tier
from tests.sessions.conftest import MakeHarness
from tests.sessions.memory.test_memory import LONG
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

MIB = 1024 * 1024
Damage = Callable[[list[Path]], None]


def flip_a_bit(files: list[Path]) -> None:
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 4
    files[0].write_bytes(content)


def cut_off(files: list[Path]) -> None:
    files[0].write_bytes(files[0].read_bytes()[:-7])


def swap(files: list[Path]) -> None:
    first, second = files[0].read_bytes(), files[1].read_bytes()
    files[0].write_bytes(second)
    files[1].write_bytes(first)


def remove(files: list[Path]) -> None:
    files[0].unlink()


def make_unreadable(files: list[Path]) -> None:
    files[0].unlink()
    files[0].mkdir()


@pytest.fixture
def saved_harness(make_harness: MakeHarness) -> tuple[SessionHarness, str]:
    """Two turns are saved, and none is on the device."""
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation()
    harness.say(c, LONG)
    harness.say(c, "Second " + LONG)
    harness.manager.park(ADA, c)
    return harness, c


def say(harness: SessionHarness, c: str, text: str = "And now?") -> Receipt:
    message = harness.say(c, text)
    assert message.text == harness.expected_text(c)
    return harness.receipt(message)


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off, swap, remove, make_unreadable])
def test_a_damaged_file_is_refused_and_the_turn_read_again(
    saved_harness: tuple[SessionHarness, str], damage: Damage
) -> None:
    harness, c = saved_harness
    root = next(s for s in harness.store.segments.of_conversation(c) if s.start_tokens == 0)
    path = harness.manager.memory.saved_kvs.disk.path_of(root.key)
    damage([path, *(other for other in harness.files() if other != path)])
    receipt = say(harness, c)
    if damage is remove:
        assert receipt.miss_reason is MissReason.FILES_MISSING
        assert receipt.miss_detail.startswith("The files of its saved memory were deleted by another program, so ")
    else:
        assert receipt.miss_reason is MissReason.SNAPSHOT_REFUSED
        assert receipt.miss_detail.startswith("Its memory on disk was refused (the saved memory ")
    assert receipt.reused_tokens == receipt.restored_bytes == 0
    assert any("Refused what was saved of" in event.text for event in harness.manager.memory_view(ADA).events)
    if damage is make_unreadable:
        return
    harness.saved(c)  # the damaged file was replaced
    harness.manager.park(ADA, c)
    receipt = say(harness, c, "Once more")
    assert (receipt.tier_before, receipt.fed_tokens) == (Tier.DISK, receipt.delta_tokens)


def test_a_damaged_tail_costs_only_the_tail(saved_harness: tuple[SessionHarness, str]) -> None:
    harness, c = saved_harness
    last = max(harness.store.segments.of_conversation(c), key=lambda segment: segment.start_tokens)
    cut_off([harness.manager.memory.saved_kvs.disk.path_of(last.key)])
    receipt = say(harness, c)
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, MissReason.SNAPSHOT_REFUSED)
    assert receipt.reused_tokens == last.start_tokens


def test_files_and_rows_that_do_not_match_are_deleted(
    saved_harness: tuple[SessionHarness, str], make_harness: MakeHarness
) -> None:
    harness, c = saved_harness
    root = next(s for s in harness.store.segments.of_conversation(c) if s.start_tokens == 0)
    path = harness.manager.memory.saved_kvs.disk.path_of(root.key)
    path.unlink()
    harness.close()
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    assert harness.files() == []
    assert harness.manager.memory_view(ADA).disk_used_bytes == 0
    receipt = say(harness, c)
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.NONE, MissReason.FILES_MISSING)


def test_another_models_files_stay(saved_harness: tuple[SessionHarness, str], make_harness: MakeHarness) -> None:
    harness, c = saved_harness
    files = harness.files()
    harness.close()
    harness = make_harness(engine=ScriptedEngine(name="Other-1B"), disk_kv_budget_bytes=64 * MIB)
    assert harness.files() == files
    assert harness.manager.view(ADA, c).summary.tier is Tier.NONE
    assert say(harness, c).miss_reason is MissReason.MODEL_CHANGED


def test_another_quantization_is_named_as_the_reason(
    saved_harness: tuple[SessionHarness, str], make_harness: MakeHarness, caplog: pytest.LogCaptureFixture
) -> None:
    harness, c = saved_harness
    harness.close()
    with caplog.at_level(logging.INFO):
        harness = make_harness(engine=ScriptedEngine(quantization="nf4"), disk_kv_budget_bytes=64 * MIB)
    assert "kv_of_others why=the quantization was changed from none to nf4" in caplog.text
    harness.close()
    harness = make_harness(engine=ScriptedEngine(quantization="nf4"), disk_kv_budget_bytes=64 * MIB)
    receipt = say(harness, c)
    assert receipt.miss_reason is MissReason.MODEL_CHANGED
    assert receipt.miss_detail.startswith("The quantization was changed from none to nf4, so ")
    assert say(harness, c).miss_reason is None


def test_a_refused_file_is_in_the_log(
    saved_harness: tuple[SessionHarness, str], caplog: pytest.LogCaptureFixture
) -> None:
    harness, c = saved_harness
    flip_a_bit(harness.files())
    with caplog.at_level(logging.WARNING):
        say(harness, c)
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("kv_refused")]
    assert f"conversation={c}" in line
    assert "why=the saved memory is damaged" in line


@pytest.mark.parametrize("evicted_first", [False, True])
def test_evicting_an_unsaved_kv_is_logged(make_harness: MakeHarness, evicted_first: bool) -> None:
    """The disk is full: the beginning is saved, the rest is not, and the KV is evicted, either after the failed save or
    while the rest is being written."""
    harness = make_harness(disk_kv_budget_bytes=64 * MIB, budget_bytes=800 * 1024)
    c = harness.conversation(max_new_tokens=100)
    harness.say(c, "First")
    harness.saved(c)
    saved_tokens = len(harness.ledger(c)) - 1
    may_fail = threading.Event()

    def full_disk(identity: SegmentIdentity) -> str:
        may_fail.wait(10)
        return "This conversation's memory could not be saved: No space left on device."

    def is_said(*parts: str) -> bool:
        return any(all(part in event.text for part in parts) for event in harness.manager.memory_view(ADA).events)

    harness.engine.fail_save = full_disk
    harness.say(c, "Second")
    unsaved_tokens = len(harness.ledger(c)) - 1 - saved_tokens
    if not evicted_first:
        may_fail.set()
        until(lambda: is_said("First", "could not be saved"))
    harness.say(harness.conversation(max_new_tokens=100), LONG * 2)
    until(lambda: harness.manager.view(ADA, c).summary.tier is Tier.DISK)
    may_fail.set()
    how = "First left the memory" if evicted_first else "Moved First"
    until(lambda: is_said(how, f"its last {unsaved_tokens} tokens were not saved and are read again next time"))
    harness.engine.fail_save = lambda identity: None
    receipt = say(harness, c)
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, MissReason.DISK_FULL)
    assert receipt.fed_tokens - receipt.delta_tokens == unsaved_tokens


def test_the_disk_keeps_each_users_guaranteed_share(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=2 * MIB)
    theirs = harness.conversation("eve")
    harness.say(theirs, "Mine stays", "eve")
    harness.saved(theirs, "eve")
    for number in range(8):
        c = harness.conversation()
        harness.say(c, f"{number} {LONG}")
        harness.saved(c)
    assert theirs in harness.manager.memory.saved("eve")


def test_a_file_that_was_planted_under_the_right_name_is_refused(saved_harness: tuple[SessionHarness, str]) -> None:
    """A complete and correct file of another owner, in the place of the conversation's own file."""
    harness, c = saved_harness
    theirs = harness.conversation("eve")
    harness.say(theirs, LONG, "eve")
    harness.saved(theirs, "eve")
    paths = [
        harness.manager.memory.saved_kvs.disk.path_of(segment.key)
        for conversation in (theirs, c)
        for segment in harness.store.segments.of_conversation(conversation)
        if segment.start_tokens == 0
    ]
    shutil.copyfile(*paths)
    assert say(harness, c).miss_reason is MissReason.SNAPSHOT_REFUSED


def test_the_disk_budget_holds_at_every_moment(make_harness: MakeHarness) -> None:
    budget_bytes = MIB
    harness = make_harness(disk_kv_budget_bytes=budget_bytes)
    broken: list[int] = []

    def look() -> None:
        held = sum(path.stat().st_size for path in harness.files())
        if held > budget_bytes:
            broken.append(held)

    save = harness.engine.save

    def watched(segment: object, path: Path) -> int:
        size = save(segment, path)  # type: ignore[arg-type]
        look()
        return size

    harness.engine.save = watched  # type: ignore[method-assign, assignment]
    conversations = [harness.conversation() for _ in range(1)]
    for number in range(8):
        harness.say(conversations[-1], f"{number} {LONG}")
        harness.saved(conversations[-1])
        conversations.append(harness.conversation())
    memory = harness.manager.memory_view(ADA)
    assert broken == []
    assert memory.disk_used_bytes == sum(path.stat().st_size for path in harness.files()) <= budget_bytes
    assert memory.disk_budget_bytes == budget_bytes
    on_disk = {row.conversation_id for row in memory.rows if row.disk_bytes}
    assert conversations[7] in on_disk
    assert conversations[0] not in on_disk  # the least recently used


def test_a_kv_that_can_never_fit_is_not_saved_and_nothing_is_deleted_for_it(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=600 * 1024)
    small = harness.conversation()
    harness.say(small, "Small")
    harness.saved(small)
    large = harness.conversation()
    harness.say(large, LONG * 3)
    until(
        lambda: any("do not fit the disk budget of 0.6 MiB" in e.text for e in harness.manager.memory_view(ADA).events)
    )
    assert set(harness.manager.memory.saved(ADA)) == {small}


def test_a_lower_budget_is_kept_from_the_start(
    saved_harness: tuple[SessionHarness, str], make_harness: MakeHarness
) -> None:
    harness, c = saved_harness
    used_bytes = harness.manager.memory_view(ADA).disk_used_bytes
    harness.close()
    harness = make_harness(disk_kv_budget_bytes=used_bytes - 1)
    assert 0 < harness.manager.memory_view(ADA).disk_used_bytes < used_bytes
    assert say(harness, c).tier_before is Tier.DISK  # the beginning stayed


def test_a_full_disk_is_logged_and_is_never_an_error(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    harness.engine.fail_save = lambda identity: (
        "This conversation's memory could not be saved: No space left on device."
    )
    c = harness.conversation()
    assert say(harness, c, LONG).miss_reason is None
    until(lambda: any("No space left on device" in event.text for event in harness.manager.memory_view(ADA).events))
    harness.engine.fail_save = lambda identity: None
    assert say(harness, c).fed_tokens < 20
    harness.saved(c)  # the next turn saves all of it


def test_the_free_disk_is_respected(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB, disk_free_floor_bytes=2**60)
    c = harness.conversation()
    say(harness, c, LONG)
    until(lambda: any("the disk has only" in event.text for event in harness.manager.memory_view(ADA).events))
    assert harness.files() == []


@pytest.mark.alone
def test_a_slow_disk_delays_no_run(make_harness: MakeHarness) -> None:
    """A file takes two seconds; a run waits for an unsaved KV, but not for ever."""
    harness = make_harness(
        disk_kv_budget_bytes=64 * MIB, budget_bytes=640 * 1024, save_patience_s=0.3, flush_timeout_s=0.2
    )
    harness.engine.save_delay_s = 2.0
    started = [harness.conversation(max_new_tokens=100)]
    for number in range(3):
        receipt = say(harness, started[-1], f"{number} {LONG}")
        assert receipt.waited_s < 1.5
        started.append(harness.conversation(max_new_tokens=100))
    harness.close()


def test_a_ledger_rewritten_while_its_old_rows_wait_to_be_saved(make_harness: MakeHarness) -> None:
    """The same message at the same position after another system prompt of the same length has other rows."""
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    c, other = harness.conversation(system_prompt="Prompt 1"), ""
    harness.say(c, "Hello")
    harness.saved(c)
    other = harness.conversation()
    harness.engine.save_delay_s = 0.2
    harness.say(other, LONG)  # the writer is busy
    harness.say(c, LONG)
    settings = harness.manager.view(ADA, c).settings
    harness.manager.update_settings(ADA, c, replace(settings, system_prompt="Prompt 2"))
    last = finish(harness.manager.regenerate(ADA, c))
    harness.saved(c)
    harness.manager.update_settings(ADA, c, settings)
    harness.manager.switch_sibling(ADA, c, last.message_id, -1)
    harness.manager.park(ADA, c)
    say(harness, c)


def test_flipped_bits_at_random(saved_harness: tuple[SessionHarness, str]) -> None:
    harness, c = saved_harness
    dice = random.Random(11)
    for number in range(15):
        path = dice.choice(harness.files())
        content = bytearray(path.read_bytes())
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
        assert say(harness, c, f"Question {number}").miss_reason is MissReason.SNAPSHOT_REFUSED
        harness.manager.park(ADA, c)


@pytest.mark.parametrize(
    ("floor_bytes", "budget_bytes", "is_said"), [(2**60, MIB, True), (2**60, 0, False), (0, MIB, False)]
)
def test_a_disk_on_which_nothing_will_be_saved_is_told_at_the_start(
    make_harness: MakeHarness, floor_bytes: int, budget_bytes: int, is_said: bool
) -> None:
    """A disk of 6 MiB announced a budget, and saved nothing."""
    harness = make_harness(disk_kv_budget_bytes=budget_bytes, disk_free_floor_bytes=floor_bytes)
    said = [sentence for sentence in harness.said if "nothing more is saved to" in sentence]
    assert len(said) == is_said
    assert all("The disk has only " in sentence for sentence in said)
