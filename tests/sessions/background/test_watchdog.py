"""A hanging or dead engine is noticed and rebuilt (tested with the real engine): its runs fail with a sentence, and the
next turn of every conversation works, from the ledger and from saved memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import sessions.background.watchdog
import sessions.memory.moves.restore
from model_runtime.engine.inbox import GIVEN_UP
from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.protocol import Pulse
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.text.chat_template import ChatTemplate
from sessions.awake import Starvation
from sessions.background.watchdog import Silence
from sessions.config import SessionConfig
from sessions.manager import SessionManager
from sessions.memory.saved.speed import RestoreChoice
from sessions.store.store import Store
from sessions.types import ConversationSettings, MessageStatus, MissReason, RunPhase, Tier
from tests.model_runtime.harness import WatchedEngine, loaded_tiny
from tests.model_runtime.tiny_models import tiny_llama
from tests.sessions.conftest import MakeHarness
from tests.sessions.session_harness import ADA, finish, until

MIB = 1024 * 1024
GREEDY = ConversationSettings(SamplingParams(temperature=0, max_new_tokens=16))


@dataclass
class Site:
    manager: SessionManager
    watched: WatchedEngine

    def conversation(self, first: str) -> str:
        c = self.manager.create_conversation(ADA, GREEDY).conversation_id
        self.say(c, first)
        return c

    def say(self, c: str, text: str) -> str:
        message = finish(self.manager.send(ADA, c, text), timeout_s=30)
        assert message.status is MessageStatus.COMPLETE, message.note
        return message.text

    def hang_once(self) -> tuple[threading.Event, threading.Event]:
        """The next forward sets the first event and blocks until the second is set."""
        reached, gate = threading.Event(), threading.Event()
        run = self.watched.engine._forward.run  # noqa: SLF001 - a forward that hangs

        def blocked(feeds: Sequence[Feed], abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
            reached.set()
            gate.wait(60)
            return run(feeds)

        self.watched.engine._forward.run = blocked  # type: ignore[method-assign]  # noqa: SLF001 - a forward that hangs
        return reached, gate


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(sessions.background.watchdog, "_LOOK_EVERY_S", 0.05)
    # Reading 100 tokens with a model of 3 layers takes no longer than opening a file.
    monkeypatch.setattr(sessions.memory.moves.restore, "choose", lambda *args: RestoreChoice(True, "For the test."))
    loaded = loaded_tiny(tiny_llama(tmp_path / "llama"))
    watched = WatchedEngine(loaded)
    store = Store(tmp_path / "data")
    config = SessionConfig(
        8 * MIB, disk_kv_budget_bytes=64 * MIB, hang_after_s=1.0, read_ahead=False, model_titles=False
    )
    manager = SessionManager(store, watched.engine, ChatTemplate(loaded.tokenizer, {0}), config)
    manager.start()
    yield Site(manager, watched)
    manager.close()
    watched.close()
    store.close()


def saved(site: Site, c: str) -> None:
    rows = {row.conversation_id: row for row in site.manager.memory_view(ADA).rows}
    until(
        lambda: {r.conversation_id: r for r in site.manager.memory_view(ADA).rows}[c].disk_tokens >= rows[c].kv_tokens
    )


def test_a_hanging_step_fails_its_run_and_the_next_turn_works(site: Site) -> None:
    expected = site.conversation("Where does the river begin?")
    wanted = site.say(expected, "And where does it end?")
    c, other = site.conversation("Where does the river begin?"), site.conversation("Tell me about boats.")
    for each in (c, other):
        saved(site, each)

    reached, gate = site.hang_once()
    run = site.manager.send(ADA, c, "And where does it end?")
    assert reached.wait(10)
    failed = finish(run)
    assert (failed.status, failed.note) == (MessageStatus.FAILED, GIVEN_UP)
    until(lambda: site.manager.is_well)
    assert {row.tier for row in site.manager.memory_view(ADA).rows} == {Tier.DISK}
    assert any("was restarted" in event.text for event in site.manager.memory_view(ADA).events)

    gate.set()  # the abandoned thread wakes up
    again = finish(site.manager.regenerate(ADA, c))
    assert (again.status, again.text) == (MessageStatus.COMPLETE, wanted)
    assert again.receipt is not None
    assert again.receipt.tier_before is Tier.DISK
    site.say(other, "Go on.")
    assert site.manager.view(ADA, c).messages[-1].text == wanted


def test_a_queued_run_is_answered_afterwards(site: Site) -> None:
    first, second = site.conversation("One."), site.conversation("Two.")
    promised_bytes = site.watched.engine.kv_bytes(100)
    site.manager.memory.held.budget_bytes = promised_bytes  # room for one of the two
    reached, gate = site.hang_once()
    stuck = site.manager.send(ADA, first, "Go on.")
    assert reached.wait(10)
    waiting = site.manager.send(ADA, second, "Go on.")
    assert waiting.snapshot().phase is RunPhase.WAITING
    assert finish(stuck).status is MessageStatus.FAILED
    assert finish(waiting).status is MessageStatus.COMPLETE
    gate.set()


def test_a_dead_engine_thread_is_replaced(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    c = site.conversation("Where does the river begin?")

    def broken(*arguments: object) -> None:
        monkeypatch.undo()
        raise MemoryError("no memory for a plan")

    monkeypatch.setattr(site.watched.engine._scheduler, "plan", broken)  # noqa: SLF001 - a thread that dies in a step
    failed = finish(site.manager.send(ADA, c, "And where does it end?"))
    assert (failed.status, failed.note) == (MessageStatus.FAILED, GIVEN_UP)
    until(lambda: site.manager.is_well)
    assert finish(site.manager.regenerate(ADA, c)).status is MessageStatus.COMPLETE


def test_an_engine_that_cannot_be_rebuilt_is_reported(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions.background.watchdog, "_LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(sessions.background.watchdog, "_TRY_AGAIN_AFTER_S", 0.02)
    harness = make_harness()
    c = harness.conversation()
    harness.say(c, "Hello")
    assert harness.manager.is_well
    harness.engine.shown_pulse = Pulse(False, 0.0, 0.0)
    assert not harness.manager.is_well
    until(lambda: harness.manager.memory.held.is_suspended)
    harness.engine.shown_pulse = Pulse(True, 0.0, 0.0)
    assert not harness.manager.is_well  # its KVs are gone, and no other engine has replaced it


def test_a_slow_step_is_not_a_hang(make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions.background.watchdog, "_LOOK_EVERY_S", 0.01)
    harness = make_harness(hang_after_s=1.0)
    harness.engine.shown_pulse = Pulse(True, busy_s=50.0, expected_s=5.0)  # a large model on a small machine
    assert harness.manager.is_well
    c = harness.conversation()
    harness.say(c, "Hello")
    answer = harness.say(c, "Go on")
    assert answer.receipt is not None
    assert answer.receipt.miss_reason is not MissReason.EARLIER_FAILURE
    harness.engine.shown_pulse = Pulse(True, busy_s=52.0, expected_s=0.01)
    assert harness.manager.is_well  # the watchdog was not awake for 52 seconds of silence
    until(lambda: not harness.manager.is_well)


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Hunger(Starvation):
    """The same number of seconds at each look."""

    seconds = 0.0

    def look(self) -> float:
        return self.seconds


def watch(silence: Silence, clock: Clock, busy_s: float, for_s: float, held_up_s: float = 0.0) -> float:
    """Looks as often as `silence` asks for, each time `held_up_s` too late, while the engine stays at the same step.
    Returns how long that step has lasted then."""
    ends_at = clock.now + for_s
    while clock.now < ends_at:
        step_s = silence.look(Pulse(True, busy_s, 0.0)) + held_up_s
        clock.now += step_s
        busy_s += step_s
    return busy_s


def test_only_silence_that_the_watchdog_was_awake_for_counts() -> None:
    clock = Clock()
    silence = Silence(clock, Hunger())
    busy_s = watch(silence, clock, 0.0, 20.0)
    assert silence.of(Pulse(True, busy_s, 0.0)) == pytest.approx(busy_s, abs=1.1)
    clock.now += 4000.0  # stopped
    busy_s += 4000.0
    assert silence.of(Pulse(True, busy_s, 0.0)) < 22.0
    busy_s = watch(silence, clock, busy_s, 30.0)  # it really hangs, which is noticed as soon as usual
    assert 48.0 < silence.of(Pulse(True, busy_s, 0.0)) < 52.0
    assert silence.of(Pulse(True, 0.25, 0.0)) == 0.25  # it continues


def test_when_stopped_repeatedly_only_the_time_it_runs_counts() -> None:
    clock = Clock()
    silence = Silence(clock, Hunger())
    busy_s = watch(silence, clock, 2.0, 600.0, held_up_s=2.0)  # 0.05 of 2.05 seconds
    assert silence.of(Pulse(True, busy_s, 0.0)) < 40.0


def test_time_without_a_processor_does_not_count() -> None:
    clock, starvation = Clock(), Hunger()
    silence = Silence(clock, starvation)
    starvation.seconds = 0.049  # of every 0.05
    busy_s = watch(silence, clock, 2.0, 600.0)
    assert silence.of(Pulse(True, busy_s, 0.0)) < 20.0
    starvation.seconds = 0.0
    busy_s = watch(silence, clock, busy_s, 60.0)
    assert silence.of(Pulse(True, busy_s, 0.0)) > 60.0


def test_the_kernel_says_how_long_threads_waited(tmp_path: Path) -> None:
    for task, waited_ns in (("1", 1_000), ("2", 5_000_000_000)):
        (tmp_path / task).mkdir()
        (tmp_path / task / "schedstat").write_text(f"7 {waited_ns} 3\n")
    starvation = Starvation(str(tmp_path))
    assert starvation.look() == 0.0
    (tmp_path / "2" / "schedstat").write_text("8 5500000000 4\n")
    (tmp_path / "3").mkdir()  # a thread that has just begun or ended
    assert starvation.look() == 0.5
    assert starvation.look() == 0.0
    assert Starvation(str(tmp_path / "nowhere")).look() == 0.0
    assert Starvation().look() == 0.0
