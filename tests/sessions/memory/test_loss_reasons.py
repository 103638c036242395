"""Each reason for missing saved memory is recognised, and stated with the flag or budget that caused it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

import pytest

import model_runtime.interface.segments
from sessions.maintenance.cache import clear
from sessions.store.tables.losses import Cause
from sessions.types import MissReason, Receipt, Tier
from tests.sessions.byte_template import said
from tests.sessions.conftest import MakeHarness
from tests.sessions.memory.test_memory import LONG
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import ADA, SessionHarness, until

MIB = 1024 * 1024
DAY_S = 86_400.0
MakeWarm = Callable[..., SessionHarness]


@pytest.fixture
def make_warm(make_harness: MakeHarness) -> MakeWarm:
    return lambda **settings: make_harness(**{"disk_kv_budget_bytes": 64 * MIB, **settings})


def begun(harness: SessionHarness, text: str = LONG, owner: str = ADA) -> str:
    """A saved conversation of one turn."""
    c = harness.conversation(owner)
    harness.say(c, text, owner)
    harness.saved(c, owner)
    return c


def missed(harness: SessionHarness, c: str, reason: MissReason, sentence: str) -> Receipt:
    """Checks that the next turn gives this reason for reading more, and that its text is right."""
    message = harness.say(c, "And now?")
    receipt = harness.receipt(message)
    assert message.text == harness.expected_text(c)
    assert receipt.miss_reason is reason, receipt.miss_detail
    assert sentence in receipt.miss_detail
    assert receipt.fed_tokens > receipt.delta_tokens
    again = receipt.fed_tokens - receipt.delta_tokens
    assert receipt.miss_detail.endswith(f"so {again:,} token{'' if again == 1 else 's'} were read again.")
    if harness.manager.memory.disk_budget_bytes:
        harness.saved(c)
        until(lambda: harness.loss(c) is None)  # what was lost is saved again
    return receipt


def restarted(harness: SessionHarness, make: MakeWarm, **settings: object) -> SessionHarness:
    harness.close()
    return make(**settings)


def test_nothing_is_lost_when_all_of_it_is_saved(make_warm: MakeWarm) -> None:
    harness = make_warm()
    c = begun(harness)
    until(lambda: harness.loss(c) is None)
    harness = restarted(harness, make_warm)
    receipt = harness.receipt(harness.say(c, "And now?"))
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, None)


def test_deleted_for_the_disk_budget(make_warm: MakeWarm) -> None:
    budget = {"disk_kv_budget_bytes": MIB}
    harness = make_warm(**budget)
    c = begun(harness)
    for number in range(3):
        begun(harness, f"{number} {LONG}")
    assert harness.manager.memory.saved_kvs.disk.of_conversation(c) == []
    harness = restarted(harness, make_warm, **budget)
    missed(harness, c, MissReason.DISK_BUDGET, "to stay within the disk budget of 1.0 MiB (--disk-kv-budget)")


def test_deleted_for_the_disk_budget_and_dropped_from_the_device(make_warm: MakeWarm) -> None:
    """Without a restart: dropping the KV from the device would otherwise have cost nothing."""
    harness = make_warm(disk_kv_budget_bytes=MIB, budget_bytes=800 * 1024)
    c = harness.conversation(max_new_tokens=100)
    harness.say(c, LONG)
    harness.saved(c)
    for number in range(3):
        other = harness.conversation(max_new_tokens=100)
        harness.say(other, f"{number} {LONG}")
        harness.saved(other)
    missed(harness, c, MissReason.DISK_BUDGET, "disk budget of 1.0 MiB")


def test_a_smaller_budget_than_what_is_stored(make_warm: MakeWarm) -> None:
    harness = make_warm()
    old, *_, new = (begun(harness, f"{number} {LONG[:160]}") for number in range(4))
    harness = restarted(harness, make_warm, disk_kv_budget_bytes=700 * 1024)
    (sentence,) = harness.said
    assert "and the disk budget is 0.7 MiB: 0.1 MiB are deleted now." in sentence
    assert harness.loss(new) is None
    missed(harness, old, MissReason.DISK_BUDGET, "disk budget of 0.7 MiB")


def test_the_disk_budget_is_0_now(make_warm: MakeWarm) -> None:
    harness = make_warm()
    c = begun(harness)
    harness = restarted(harness, make_warm, disk_kv_budget_bytes=0)
    missed(harness, c, MissReason.DISK_OFF, "is not read while the server runs with --disk-kv-budget 0")


def test_the_disk_budget_is_0_now_and_another_model_served_in_between(make_warm: MakeWarm) -> None:
    harness = make_warm()
    c = begun(harness)
    harness = restarted(harness, make_warm, engine=ScriptedEngine(name="Other-1B"))
    harness.say(c, "And?")
    harness.saved(c)
    harness = restarted(harness, make_warm, disk_kv_budget_bytes=0)
    missed(harness, c, MissReason.DISK_OFF, "is not read while the server runs with --disk-kv-budget 0")


def test_the_disk_budget_was_0_then(make_warm: MakeWarm) -> None:
    harness = make_warm(disk_kv_budget_bytes=0)
    c = harness.conversation()
    harness.say(c, LONG)
    harness = restarted(harness, make_warm)
    missed(harness, c, MissReason.DISK_OFF, "was not saved, because the server ran with --disk-kv-budget 0")


def test_another_model(make_warm: MakeWarm) -> None:
    harness = make_warm()
    c = begun(harness)
    harness = restarted(harness, make_warm, engine=ScriptedEngine(name="Other-1B"))
    missed(harness, c, MissReason.MODEL_CHANGED, "The model was changed")


def test_another_setting(make_warm: MakeWarm) -> None:
    harness = make_warm()
    c = begun(harness)
    harness = restarted(harness, make_warm, engine=ScriptedEngine(quantization="nf4"))
    missed(harness, c, MissReason.MODEL_CHANGED, "The quantization was changed from none to nf4")


def test_an_upgrade(make_warm: MakeWarm, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = make_warm()
    c = begun(harness)
    monkeypatch.setattr(model_runtime.interface.segments, "FORMAT_VERSION", 2)
    harness = restarted(harness, make_warm)
    missed(harness, c, MissReason.UPGRADED, "Keepwarm was upgraded to another format of saved memory")
    monkeypatch.setattr(model_runtime.interface.segments, "FORMAT_VERSION", 1)
    harness = restarted(harness, make_warm)
    receipt = harness.receipt(harness.say(c, "Back again"))
    assert receipt.tier_before is Tier.DISK
    assert receipt.miss_reason is MissReason.UPGRADED  # for the messages in between


def test_the_files_were_deleted(make_warm: MakeWarm) -> None:
    harness = make_warm()
    c = begun(harness)
    harness.close()
    shutil.rmtree(harness.store.kv_dir)
    harness = make_warm()
    missed(harness, c, MissReason.FILES_MISSING, "were deleted by another program")


def test_the_files_are_deleted_while_the_server_runs(make_warm: MakeWarm) -> None:
    harness = make_warm()
    c = begun(harness)
    harness.manager.park(ADA, c)
    for path in harness.files():
        path.unlink()
    missed(harness, c, MissReason.FILES_MISSING, "were deleted by another program")


def test_the_server_was_killed_before_it_was_saved(make_warm: MakeWarm) -> None:
    harness = make_warm(flush_timeout_s=0.0)
    harness.engine.save_delay_s = 0.5
    c = harness.conversation()
    harness.say(c, LONG)
    harness = restarted(harness, make_warm)
    missed(harness, c, MissReason.UNSAVED, "The server ended before its last turn was saved")


def test_only_the_last_turn_was_not_saved(make_warm: MakeWarm) -> None:
    harness = make_warm(flush_timeout_s=0.0)
    c = begun(harness)
    harness.engine.save_delay_s = 0.5
    harness.say(c, "Second " + LONG)
    harness = restarted(harness, make_warm)
    receipt = missed(harness, c, MissReason.UNSAVED, "The server ended before its last turn was saved")
    assert receipt.tier_before is Tier.DISK


def test_the_disk_was_full(make_warm: MakeWarm) -> None:
    harness = make_warm()
    harness.engine.fail_save = lambda identity: (
        "This conversation's memory could not be saved: No space left on device."
    )
    c = harness.conversation()
    harness.say(c, LONG)
    until(lambda: (loss := harness.loss(c)) and loss.cause is Cause.DISK_FULL)
    harness = restarted(harness, make_warm)
    missed(
        harness, c, MissReason.DISK_FULL, "The disk was full when its memory was to be saved (No space left on device)"
    )


def test_too_little_of_the_disk_was_free(make_warm: MakeWarm) -> None:
    harness = make_warm(disk_free_floor_bytes=2**60)
    c = harness.conversation()
    harness.say(c, LONG)
    until(lambda: (loss := harness.loss(c)) and loss.cause is Cause.DISK_FULL)
    harness = restarted(harness, make_warm)
    missed(harness, c, MissReason.DISK_FULL, "The disk was full when its memory was to be saved (the disk has only ")


def test_it_could_not_be_written(make_warm: MakeWarm) -> None:
    harness = make_warm()
    harness.engine.fail_save = lambda identity: "This conversation's memory could not be saved: Read-only file system."
    c = harness.conversation()
    harness.say(c, LONG)
    until(lambda: (loss := harness.loss(c)) and loss.cause is Cause.NOT_SAVED)
    harness = restarted(harness, make_warm)
    missed(harness, c, MissReason.NOT_SAVED, "Its memory could not be saved (Read-only file system)")


def test_it_did_not_fit_the_budget(make_warm: MakeWarm) -> None:
    harness = make_warm(disk_kv_budget_bytes=100 * 1024)
    c = harness.conversation()
    harness.say(c, LONG)
    until(lambda: (loss := harness.loss(c)) and loss.cause is Cause.NOT_SAVED)
    harness = restarted(harness, make_warm)
    missed(harness, c, MissReason.NOT_SAVED, "more do not fit the disk budget of 0.1 MiB beside")


def test_cleared_on_request(make_warm: MakeWarm) -> None:
    harness = make_warm()
    c = begun(harness)
    harness.close()
    clear(harness.store.kv_dir.parent, True, lambda segments, size_bytes: None)
    harness = make_warm()
    missed(harness, c, MissReason.CLEARED, "deleted with `keepwarm cache clear`")


def test_dropped_by_hand_before_the_restart(make_warm: MakeWarm) -> None:
    harness = make_warm()
    c = begun(harness)
    harness.manager.drop_kv(ADA, c)
    harness = restarted(harness, make_warm)
    missed(harness, c, MissReason.EVICTED, "Its memory was dropped by hand")


def test_refused_by_the_doctor(make_warm: MakeWarm) -> None:
    from sessions.maintenance.doctor import Report, verify_everything
    from sessions.store.store import Store

    harness = make_warm()
    c = begun(harness)
    harness.close()
    path = max(harness.files(), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-5] ^= 8
    path.write_bytes(content)
    engine, store = ScriptedEngine(), Store(harness.store.kv_dir.parent)
    verify_everything(store, engine, Report(lambda sentence: None))
    engine.close()
    store.close()
    harness = make_warm()
    missed(harness, c, MissReason.SNAPSHOT_REFUSED, "Its memory on disk was refused (the saved memory is damaged")


def test_a_clock_that_jumped(make_warm: MakeWarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """One start with the clock 40 days ahead, while room is needed; then the clock is right again."""
    budget = {"disk_kv_budget_bytes": MIB}
    harness = make_warm(**budget)
    c = begun(harness)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 40 * DAY_S)
    harness = restarted(harness, make_warm, **budget)
    for number in range(3):
        begun(harness, f"{number} {LONG}")
    monkeypatch.setattr(time, "time", right)
    harness = restarted(harness, make_warm, **budget)
    missed(harness, c, MissReason.CLOCK, "while the server's clock was 40 days ahead of the last use")


def test_a_clock_that_jumped_takes_no_guaranteed_share(make_warm: MakeWarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's guaranteed share is not lost because a wrong clock makes it look unused."""
    budget = {"disk_kv_budget_bytes": 2 * MIB}
    harness = make_warm(**budget)
    theirs = begun(harness, "Mine stays", "eve")
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 40 * DAY_S)
    harness = restarted(harness, make_warm, **budget)
    for number in range(8):
        begun(harness, f"{number} {LONG}")
    assert theirs in harness.manager.memory.saved("eve")


def test_nothing_is_known(make_warm: MakeWarm) -> None:
    """Only then the restart is the reason."""
    harness = make_warm(flush_timeout_s=0.0)
    harness.engine.save_delay_s = 0.5
    c = harness.conversation()
    harness.say(c, LONG)
    harness.forget_loss(c)
    harness = restarted(harness, make_warm)
    missed(harness, c, MissReason.RESTARTED, "The server was restarted")


def test_another_tokenizer_and_back(make_warm: MakeWarm) -> None:
    """The same texts have other ids: neither tokenizer ever uses the other's memory, and each finds its own."""
    from tests.sessions.byte_template import ByteTemplate

    def shifted() -> dict[str, object]:
        engine = ScriptedEngine(name="Shifted-1B", tokenizer_fingerprint="shifted")
        return {"engine": engine, "template": ByteTemplate(shift=1000)}

    harness = make_warm()
    c = begun(harness)
    own_tokens = len(harness.ledger(c))
    harness = restarted(harness, make_warm, **shifted())
    receipt = missed(harness, c, MissReason.MODEL_CHANGED, "The model was changed")
    assert (receipt.reused_tokens, receipt.restored_bytes) == (0, 0)
    harness = restarted(harness, make_warm)
    receipt = missed(harness, c, MissReason.MODEL_CHANGED, "The model was changed")
    assert receipt.tier_before is Tier.DISK
    assert receipt.reused_tokens >= own_tokens - 1
    texts = harness.texts(c)
    assert harness.ledger(c)[:own_tokens] == harness.template.whole("", said(("user", texts[0]))) + tuple(
        harness.ledger(c)[own_tokens - len(harness.path(c)[1].answer_ids) : own_tokens]
    )


def test_a_deleted_conversation_leaves_no_reason_behind(make_warm: MakeWarm) -> None:
    harness = make_warm(disk_kv_budget_bytes=0)
    c = harness.conversation()
    harness.say(c, LONG)
    assert harness.loss(c) is not None
    harness.manager.delete(ADA, c)
    assert harness.loss(c) is None
