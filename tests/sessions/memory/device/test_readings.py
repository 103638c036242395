"""A beginning that is being read for one turn is waited for and copied by others of its owner."""

from __future__ import annotations

import random
import threading
import time

import pytest

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.errors import DeviceOutOfMemory
from model_runtime.interface.protocol import Generation, GenerationRequest, Listener
from model_runtime.interface.sampling_params import SamplingParams
from sessions.ledger.ledger import common_prefix
from sessions.memory.device.readings import Reading, Readings
from sessions.turns.planned_turn import ChatRequest
from sessions.turns.run import Run
from sessions.types import MessageStatus, RunPhase
from tests.sessions.conftest import MakeHarness
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

GREEDY = SamplingParams(temperature=0, max_new_tokens=100)
MANUAL = "The pump is primed before it is started. " * 20
HEAD = len(MANUAL) + 1  # its bytes behind the mark of the user's message


def ask(harness: SessionHarness, text: str, owner: str = ADA) -> Run:
    return harness.manager.completions.begin(owner, ChatRequest((ChatMessage("user", text),), GREEDY))


def fed(harness: SessionHarness) -> int:
    return sum(count for _, count, _ in harness.engine.counts)


def right(harness: SessionHarness, run: Run, owner: str = ADA) -> None:
    assert finish(run).text == harness.expected_text(run.conversation_id, owner)


def slow(make_harness: MakeHarness, **settings: object) -> SessionHarness:
    return make_harness(engine=ScriptedEngine(fed_token_delay_s=0.0001), **settings)


def test_four_at_once_read_one_beginning(make_harness: MakeHarness) -> None:
    harness = slow(make_harness)
    texts = [f"{MANUAL}{n}?" for n in range(4)]
    runs = [ask(harness, text) for text in texts]
    waiting = [run.snapshot() for run in runs[1:]]
    assert all(one.phase is RunPhase.WAITING and one.is_sharing for one in waiting)
    for run in runs:
        right(harness, run)
    assert fed(harness) == HEAD + 4 * len("0?" + "..")  # two marks end each prompt
    first, *others = [harness.receipt(finish(run)) for run in runs]
    assert (first.shared_tokens, first.shared_wait_s) == (0, 0.0)
    for receipt in others:
        assert (receipt.shared_tokens, receipt.shared_from) == (HEAD, runs[0].conversation_id)
        assert 0 < receipt.shared_wait_s <= receipt.waited_s
        assert receipt.miss_reason is None


def test_the_same_request_four_times(make_harness: MakeHarness) -> None:
    harness = slow(make_harness)
    runs = [ask(harness, f"{MANUAL}Well?") for _ in range(4)]
    for run in runs:
        right(harness, run)
    assert fed(harness) == HEAD + len("Well?..") + 3
    assert len({run.conversation_id for run in runs}) == 4


def test_a_beginning_is_copied_from_a_conversation_that_is_answering(make_harness: MakeHarness) -> None:
    has_copied = threading.Event()
    harness = make_harness()
    harness.engine.on_step = lambda: None if has_copied.is_set() else time.sleep(0.005)
    first = ask(harness, f"{MANUAL}One?")
    until(lambda: first.snapshot().phase is RunPhase.ANSWERING)
    second = ask(harness, f"{MANUAL}Two?")
    assert not second.snapshot().is_sharing
    until(lambda: second.restored.shared is not None)
    assert first.snapshot().phase is RunPhase.ANSWERING
    has_copied.set()
    right(harness, second)
    right(harness, first)
    receipt = harness.receipt(finish(second))
    assert (receipt.shared_tokens, receipt.shared_from) == (HEAD, first.conversation_id)


def test_a_turn_waits_only_for_what_it_needs(make_harness: MakeHarness) -> None:
    """The first reads a long document behind the manual; the second needs the manual alone."""
    harness = make_harness(engine=ScriptedEngine(fed_token_delay_s=0.0002))
    first = ask(harness, MANUAL + "And more. " * 150)
    second = ask(harness, f"{MANUAL}Two?")
    until(lambda: second.lease is not None)
    assert first.snapshot().phase is RunPhase.READING
    right(harness, second)
    right(harness, first)
    assert harness.receipt(finish(second)).shared_tokens == HEAD


def test_nothing_is_waited_for_across_owners(make_harness: MakeHarness) -> None:
    harness = slow(make_harness)
    first, other = ask(harness, f"{MANUAL}One?"), ask(harness, f"{MANUAL}One?", "eve")
    assert not other.snapshot().is_sharing
    right(harness, other, "eve")
    right(harness, first)
    receipt = harness.receipt(finish(other))
    assert (receipt.fed_tokens, receipt.shared_tokens, receipt.shared_wait_s) == (HEAD + len("One?.."), 0, 0.0)


@pytest.mark.parametrize("end", ["stopped", "failed"])
def test_the_reader_ends_early_and_the_next_one_reads(make_harness: MakeHarness, end: str) -> None:
    """What was read until then is copied, where it is still there."""
    harness = slow(make_harness)
    first = ask(harness, f"{MANUAL}One?")
    others = [ask(harness, f"{MANUAL}{n}?") for n in (2, 3)]
    until(lambda: first.snapshot().fed_tokens >= 128)
    if end == "stopped":
        harness.manager.stop(ADA, first.conversation_id)
    else:
        harness.engine.fail = lambda g: "It broke." if g.request.ledger == first.plan.turn.ledger else None
    assert finish(first).status is (MessageStatus.STOPPED if end == "stopped" else MessageStatus.FAILED)
    for run in others:
        right(harness, run)
    second, third = (harness.receipt(finish(run)) for run in others)
    read = first.lease.kv.length_tokens if first.lease else 0
    assert second.fed_tokens == HEAD + len("2?..") - second.shared_tokens
    assert second.shared_tokens == (read if read >= 64 else 0)
    assert (third.shared_tokens, third.shared_from) == (HEAD, others[0].conversation_id)
    assert third.fed_tokens == len("3?..")


def test_a_waiter_is_stopped_at_once(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=ScriptedEngine(fed_token_delay_s=0.002))
    first, second = ask(harness, f"{MANUAL}One?"), ask(harness, f"{MANUAL}Two?")
    until(lambda: first.snapshot().phase is RunPhase.READING)
    asked = time.monotonic()
    harness.manager.stop_run(second)
    assert finish(second).status is MessageStatus.STOPPED
    assert time.monotonic() - asked < 0.5
    assert second.lease is None
    harness.manager.stop_run(first)
    finish(first)


def test_a_waiter_holds_no_room(make_harness: MakeHarness) -> None:
    """A budget for one KV: the waiters come after the reader, one after the other."""
    room = HEAD + 4 + GREEDY.max_new_tokens + 32
    harness = slow(make_harness, budget_bytes=room * 1024)
    runs = [ask(harness, f"{MANUAL}{n}?") for n in range(3)]
    held = harness.manager.memory.holdings()
    assert set(held) <= {runs[0].conversation_id}
    for run in runs:
        right(harness, run)
    assert harness.engine.peak_bytes <= room * 1024


def test_the_reader_is_refused_and_the_waiter_reads(make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = slow(make_harness)

    def broken(*arguments: object) -> tuple[int, int]:
        raise DeviceOutOfMemory("No.")

    monkeypatch.setattr(harness.engine, "copy_beginning", broken)
    runs = [ask(harness, f"{MANUAL}{n}?") for n in range(2)]
    for run in runs:
        right(harness, run)
    assert [harness.receipt(finish(run)).shared_tokens for run in runs] == [0, 0]


def test_the_server_closes_while_turns_wait(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=ScriptedEngine(fed_token_delay_s=0.002))
    runs = [ask(harness, f"{MANUAL}{n}?") for n in range(3)]
    started = time.monotonic()
    harness.close()
    assert time.monotonic() - started < 3
    assert all(finish(run).status is MessageStatus.INTERRUPTED for run in runs)


@pytest.mark.parametrize("seed", range(4))
def test_any_requests_at_once_are_answered_as_alone(make_harness: MakeHarness, seed: int) -> None:
    """Random requests that share random beginnings, some stopped, some failing, little room: every answer that ends is
    the one of a full read, and no more is fed than each alone would take."""
    dice = random.Random(seed)
    harness = make_harness(
        engine=ScriptedEngine(fed_token_delay_s=0.00003, max_concurrent=dice.choice([1, 2, 4])),
        budget_bytes=dice.choice([700, 1500, 8000]) * 1024,
    )
    runs: list[tuple[Run, str]] = []
    for _ in range(8):
        owner = dice.choice([ADA, ADA, "eve"])
        text = "".join(word * dice.choice([8, 20]) for word in ("Kettles. ", dice.choice(["Lids. ", "Pots. "])))
        runs.append((ask(harness, f"{text}{dice.choice('abc')}", owner), owner))
        if dice.random() < 0.2:
            harness.manager.stop_run(dice.choice(runs)[0])
        if dice.random() < 0.3:
            time.sleep(0.005)
    for run, owner in runs:
        message = finish(run)
        if message.status is MessageStatus.COMPLETE:
            assert message.text == harness.expected_text(run.conversation_id, owner)
            receipt = harness.receipt(message)
            assert receipt.fed_tokens + receipt.reused_tokens == len(run.plan.turn.ledger)
        else:
            assert message.status is MessageStatus.STOPPED


def test_a_kv_lends_no_more_than_it_is_known_to_have(harness: SessionHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the grant and the engine's first step a KV has the rows of its old branch, as many as the new one's."""
    c = harness.conversation()
    harness.say(c, f"{MANUAL}{'One. ' * 200}")
    asked = harness.manager.view(ADA, c).messages[0].message_id
    held, submit, lent = harness.ledger(c), harness.engine.submit, list[int]()

    def watched(request: GenerationRequest, listener: Listener) -> Generation:
        lent.append(harness.manager.memory.shared_prefixes.held_tokens(ADA, "another", request.ledger, False))
        assert lent[0] == common_prefix(held, request.ledger)
        return submit(request, listener)

    monkeypatch.setattr(harness.engine, "submit", watched)
    message = finish(harness.manager.edit(ADA, c, asked, f"{MANUAL}{'Two. ' * 100}"))
    assert message.text == harness.expected_text(c)
    assert lent == [HEAD]


def test_turns_are_numbered_in_the_order_in_which_they_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that is held up at its number does not stand behind the next one's."""
    first_asked = threading.Event()

    def slow(number: int) -> int:
        if number == 0:
            first_asked.set()
            time.sleep(0.1)
        return number

    class Numbers:
        """Unlike a generator, it may be asked by two threads at once, as `itertools.count` may."""

        def __init__(self) -> None:
            self._left = [1, 0]

        def __next__(self) -> int:
            return slow(self._left.pop())

    monkeypatch.setattr("sessions.memory.device.readings.itertools.count", Numbers)
    readings, ids = Readings(is_on=True), (1,) * 80
    found: list[Reading] = []
    thread = threading.Thread(target=lambda: found.append(readings.announce(ADA, "a", ids, False)))
    thread.start()
    assert first_asked.wait(5)
    second = readings.announce(ADA, "b", ids, False)
    thread.join()
    assert [reading.number for reading in (*found, second)] == [0, 1]
    assert readings.must_wait(second, 0)


def test_turns_wait_only_for_earlier_ones() -> None:
    """Whatever is announced, in whatever order it ends: no two turns wait for each other, and all get through."""
    for seed in range(200):
        dice, readings = random.Random(seed), Readings(is_on=True)
        open_ones: list[Reading] = []
        for _ in range(dice.randint(2, 7)):
            beginning = (1,) * 80 + (dice.randint(2, 3),) * 80
            ids = (*beginning[: dice.choice([80, 120, 160])], *(dice.randint(4, 6) for _ in range(5)))
            open_ones.append(readings.announce(dice.choice("ab"), str(len(open_ones)), ids, dice.random() < 0.1))
        while open_ones:
            free = [one for one in open_ones if not readings.must_wait(one, 0)]
            assert open_ones[0] in free
            chosen = dice.choice(free)
            if dice.random() < 0.7:
                readings.read(chosen, dice.randint(1, len(chosen.ids)))
            if chosen.read_tokens == 0 or dice.random() < 0.6:
                readings.ended(chosen)
            if chosen.is_over:
                open_ones.remove(chosen)
