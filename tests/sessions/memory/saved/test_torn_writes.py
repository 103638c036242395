"""A conversation changes while its segment is being written: the file is either correct or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sessions.conftest import MakeHarness
from tests.sessions.memory.test_memory import LONG
from tests.sessions.scripted_engine import ScriptedKV
from tests.sessions.scripted_kv import next_mark
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

MIB = 1024 * 1024
Act = Callable[[SessionHarness, str], None]


def crop(harness: SessionHarness, c: str) -> None:
    """Edits the last message: the KV is cropped where it begins."""
    message = harness.manager.view(ADA, c).messages[-2]
    finish(harness.manager.edit(ADA, c, message.message_id, "Entirely different"))


def append(harness: SessionHarness, c: str) -> None:
    harness.say(c, "And one more thing")


def evict(harness: SessionHarness, c: str) -> None:
    """The device runs out of memory: the KV is dropped at once, saved or not."""

    def free() -> None:
        for kv in harness.engine.idle_kvs():
            assert isinstance(kv, ScriptedKV)
            kv.clear()

    harness.engine.between_steps(free)


def park_in_host(harness: SessionHarness, c: str) -> None:
    harness.manager.park(ADA, c, "host")


def drop(harness: SessionHarness, c: str) -> None:
    harness.manager.drop_kv(ADA, c)


def check_files(harness: SessionHarness, c: str) -> None:
    """Every row's file is complete, and every KV row in it is the one that the text before it gives."""
    rows = {s.key: s for s in harness.store.segments.of_conversation(c)}
    disk = harness.manager.memory.saved_kvs.disk
    for row in rows.values():
        before: tuple[int, ...] = ()
        above = rows.get(row.parent_key)
        while above is not None:
            before = (*disk.token_ids(above.key), *before)
            above = rows.get(above.parent_key)
        assert len(before) == row.start_tokens
        mark = 0
        for token in before:
            mark = next_mark(mark, token)
        chain = disk.chain(ADA, c, (*before, *disk.token_ids(row.key)))
        segment = harness.engine.load(chain.identities[-1], disk.path_of(row.key))
        for token, kept in zip(disk.token_ids(row.key), segment.marks, strict=True):
            mark = next_mark(mark, token)
            assert kept == mark


@pytest.mark.parametrize("act", [crop, append, evict, park_in_host, drop])
@pytest.mark.parametrize("when_s", [0.0, 0.05, 0.12])
def test_changed_while_its_segment_is_written(make_harness: MakeHarness, act: Act, when_s: float) -> None:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB, host_kv_budget_bytes=8 * MIB, save_patience_s=0.0)
    c = harness.conversation()
    harness.say(c, LONG)
    harness.saved(c)
    writing = []

    def slowly(identity: object) -> None:
        writing.append(identity)

    harness.engine.fail_save = slowly  # type: ignore[assignment]
    harness.engine.save_delay_s = 0.1
    harness.say(c, "Second " + LONG)
    if when_s:
        until(lambda: writing or harness.manager.memory._writer._queue.empty())  # noqa: SLF001 - every job was taken
    act(harness, c)
    harness.engine.save_delay_s = 0.0
    message = harness.say(c, "What is left?")
    assert message.text == harness.expected_text(c)
    harness.saved(c)
    check_files(harness, c)
    harness.close()
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    message = harness.say(c, "And after the restart?")
    assert message.text == harness.expected_text(c)
    receipt = harness.receipt(message)
    assert receipt.fed_tokens == receipt.delta_tokens
