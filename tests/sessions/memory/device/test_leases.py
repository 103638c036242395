"""The queue's order is kept; the budget holds at every moment; no ticket holds a KV while it waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from sessions.errors import CacheFull, ConversationBusy
from sessions.memory.device.held_kvs import HeldKVs
from sessions.memory.device.leases import Leases
from sessions.memory.device.pins import Pins
from sessions.memory.device.slots import Ticket
from sessions.memory.memory_records import Dropped, Lease, Loss
from sessions.types import Tier
from tests.sessions.scripted_engine import ScriptedEngine, ScriptedKV
from tests.sessions.session_harness import until

KIB = 1024


class HarnessTicket(Ticket):
    """A ticket whose answer is written down in the order of the grants."""

    harness: LeaseHarness

    def grant(self, lease: Lease) -> None:
        self.harness.held[self.conversation_id] = lease
        self.harness.granted.append(self.conversation_id)
        super().grant(lease)

    def refuse(self, sentence: str) -> None:
        self.harness.refused.append(sentence)
        super().refuse(sentence)


class LeaseHarness:
    """Leases over a scripted engine whose KVs are filled by hand."""

    def __init__(self, budget_tokens: int, max_concurrent: int = 4) -> None:
        self.engine = ScriptedEngine(max_concurrent=max_concurrent)
        self.dropped: list[Dropped] = []
        self.granted: list[str] = []
        self.held: dict[str, Lease] = {}
        self.places: dict[str, list[int]] = {}
        self.refused: list[str] = []
        pins = Pins(self.engine, budget_tokens * KIB, lambda conversation_id: False)
        self.kvs = HeldKVs(self.engine, budget_tokens * KIB, pins)
        self.leases = Leases(self.kvs, self.dropped.append)
        self.leases.start()

    def ask(self, name: str, tokens: int, owner: str = "ada") -> Ticket:
        places = self.places.setdefault(name, []).append
        ticket = HarnessTicket(name, owner, tokens * KIB, places)
        ticket.harness = self
        self.leases.enter(ticket)
        return ticket

    def take(self, name: str, tokens: int, fill: int | None = None, owner: str = "ada") -> Lease:
        """Waits for the grant and fills the KV."""
        self.ask(name, tokens, owner)
        until(lambda: name in self.held)
        kv = self.held[name].kv
        assert isinstance(kv, ScriptedKV)
        kv.append([0] * (tokens if fill is None else fill))
        return self.held[name]

    def give_back(self, name: str) -> None:
        self.kvs.settle(self.held.pop(name))

    @property
    def sums(self) -> tuple[int, int]:
        holdings = self.kvs.holdings().values()
        return sum(h.used_bytes for h in holdings) // KIB, sum(h.reserved_bytes for h in holdings) // KIB


@pytest.fixture
def make_lease_harness() -> Iterator[type[LeaseHarness]]:
    harnesses: list[LeaseHarness] = []

    class Made(LeaseHarness):
        def __init__(self, *args: int, **settings: int) -> None:
            super().__init__(*args, **settings)
            harnesses.append(self)

    yield Made
    for harness in harnesses:
        harness.leases.close(5)
        harness.engine.close()


def test_memory_is_reserved_before_it_is_used(make_lease_harness: type[LeaseHarness]) -> None:
    harness = make_lease_harness(100)
    harness.take("a", 64, fill=16)
    assert harness.sums == (16, 48)
    harness.give_back("a")
    assert harness.sums == (16, 0)


def test_idle_kvs_are_evicted_the_least_recently_used_first(make_lease_harness: type[LeaseHarness]) -> None:
    harness = make_lease_harness(96)
    for name in ("a", "b"):
        harness.take(name, 32)
        harness.give_back(name)
    harness.take("a", 32, fill=0)
    harness.give_back("a")
    harness.take("c", 64)
    assert [(d.conversation_id, d.owner_id, d.freed_bytes) for d in harness.dropped] == [("b", "ada", 32 * KIB)]
    assert harness.sums == (96, 0)
    lease = harness.take("a", 32, fill=0)
    assert (lease.is_new, lease.loss, lease.held_tokens) == (False, None, 32)


def test_a_leased_kv_is_never_dropped(make_lease_harness: type[LeaseHarness]) -> None:
    harness = make_lease_harness(64)
    harness.take("a", 48)
    harness.ask("b", 32)
    assert harness.granted == ["a"]
    with pytest.raises(ConversationBusy):
        harness.leases.drop("a")
    harness.give_back("a")
    until(lambda: "b" in harness.held)
    assert [d.conversation_id for d in harness.dropped] == ["a"]


def test_nothing_is_dropped_in_vain(make_lease_harness: type[LeaseHarness]) -> None:
    """All idle KVs together would not be enough while "a" is leased, so they stay."""
    harness = make_lease_harness(96)
    harness.take("idle", 16)
    harness.give_back("idle")
    harness.take("a", 48)
    harness.ask("b", 64)
    assert harness.dropped == []
    assert set(harness.kvs.holdings()) == {"idle", "a"}
    harness.give_back("a")
    until(lambda: "b" in harness.held)


def test_no_ticket_overtakes_a_large_one(make_lease_harness: type[LeaseHarness]) -> None:
    """Small turns keep coming; the large one is next all the same."""
    harness = make_lease_harness(64)
    harness.take("a", 32)
    harness.ask("large", 64)
    for name in ("s1", "s2"):
        harness.ask(name, 16)
    assert harness.places["s2"][-1] == 3
    assert harness.granted == ["a"]
    harness.give_back("a")
    until(lambda: "large" in harness.held)
    assert harness.granted == ["a", "large"]
    assert harness.places["s2"][-1] == 2
    harness.give_back("large")
    until(lambda: "s2" in harness.held)
    assert harness.granted == ["a", "large", "s1", "s2"]


def test_no_more_at_once_than_the_engine_takes(make_lease_harness: type[LeaseHarness]) -> None:
    harness = make_lease_harness(1000, max_concurrent=2)
    for name in ("a", "b", "c"):
        harness.ask(name, 16)
    until(lambda: len(harness.held) == 2)
    assert harness.granted == ["a", "b"]
    harness.give_back("a")
    until(lambda: "c" in harness.held)


def test_a_ticket_that_leaves_the_queue_is_never_granted(make_lease_harness: type[LeaseHarness]) -> None:
    harness = make_lease_harness(32)
    harness.take("a", 32)
    ticket = harness.ask("b", 32)
    harness.ask("c", 32)
    assert harness.leases.leave(ticket)
    assert not harness.leases.leave(ticket)
    harness.give_back("a")
    until(lambda: "c" in harness.held)
    assert harness.granted == ["a", "c"]


def test_dropping_counts_only_when_the_engine_has_freed_it(make_lease_harness: type[LeaseHarness]) -> None:
    harness = make_lease_harness(64)
    harness.take("a", 64)
    harness.give_back("a")
    gate = threading.Event()
    release = harness.engine.release

    def slow_release(kv: ScriptedKV) -> None:
        gate.wait(10)
        release(kv)

    harness.engine.release = slow_release  # type: ignore[method-assign, assignment]
    harness.ask("b", 64)
    until(lambda: harness.kvs.is_leaving("a"))
    assert harness.granted == ["a"]
    assert harness.sums == (64, 0)  # views are not held up either
    harness.ask("a", 16)  # and its own next turn waits for the end of it
    gate.set()
    until(lambda: "b" in harness.held)
    harness.give_back("b")
    until(lambda: "a" in harness.held)
    assert (harness.held["a"].is_new, harness.held["a"].loss) == (True, Loss.FOR_ROOM)


def test_several_threads_drop_the_same_kv(make_lease_harness: type[LeaseHarness]) -> None:
    harness = make_lease_harness(64)
    harness.take("a", 64)
    harness.give_back("a")
    freed: list[int] = []
    threads = [threading.Thread(target=lambda: freed.append(harness.leases.drop("a"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(freed) == [0, 0, 0, 64 * KIB]


def test_a_deleted_conversation_leaves_no_trace(make_lease_harness: type[LeaseHarness]) -> None:
    harness = make_lease_harness(64)
    harness.take("a", 64)
    harness.give_back("a")
    harness.leases.forget("a")
    assert harness.kvs.holdings() == {}
    assert harness.take("a", 16).loss is None


def test_another_owners_ticket_never_gets_the_kv(make_lease_harness: type[LeaseHarness]) -> None:
    """It cannot happen while ids are checked; if it ever did, the line would refuse rather than share."""
    harness = make_lease_harness(64)
    harness.take("a", 16)
    harness.give_back("a")
    with pytest.raises(AssertionError):
        harness.leases._grant(Ticket("a", "eve", 16), harness.kvs.slots["a"])  # noqa: SLF001 - what cannot happen through the queue


def test_a_ticket_is_waited_for(make_lease_harness: type[LeaseHarness]) -> None:
    harness = make_lease_harness(128)
    assert harness.ask("a", 64).wait(10) is harness.held["a"]
    waiting, withdrawn = harness.ask("b", 128), harness.ask("c", 16)
    assert waiting.wait(0.01) is None
    assert harness.leases.leave(withdrawn)
    assert withdrawn.wait(10) is None
    harness.give_back("a")
    lease = waiting.wait(10)
    assert lease is not None
    assert lease.conversation_id == "b"
    last = harness.ask("d", 128)
    harness.leases.close(5)
    assert last.wait(10) is None  # nothing is granted any more


def test_an_error_in_a_grant_does_not_end_the_queue(make_lease_harness: type[LeaseHarness]) -> None:
    harness = make_lease_harness(64)

    class BrokenTicket(Ticket):
        def grant(self, lease: Lease) -> None:
            raise RuntimeError("broken")

    harness.leases.enter(BrokenTicket("a", "ada", 16))
    harness.take("b", 16)


def test_an_engine_that_cannot_release_does_not_end_the_queue(make_lease_harness: type[LeaseHarness]) -> None:
    harness = make_lease_harness(64)
    for name in ("a", "b"):
        harness.take(name, 32)
        harness.give_back(name)

    def broken(kv: ScriptedKV) -> None:
        raise RuntimeError("gone")

    harness.engine.release = broken  # type: ignore[method-assign, assignment]
    harness.take("c", 64)


def test_another_user_does_not_evict_a_guaranteed_share(make_lease_harness: type[LeaseHarness]) -> None:
    """Two users of a budget of 128: 32 are guaranteed to each."""
    harness = make_lease_harness(128)
    harness.take("eve's", 32, owner="eve")
    harness.give_back("eve's")
    for name in ("a", "b", "c"):
        harness.take(name, 48)
        harness.give_back(name)
    assert [d.conversation_id for d in harness.dropped] == ["a"]
    harness.take("d", 96)
    assert {d.conversation_id for d in harness.dropped} == {"a", "b", "c"}
    assert "eve's" in harness.kvs.holdings()


def test_an_owner_above_the_share_may_lose_the_excess(make_lease_harness: type[LeaseHarness]) -> None:
    harness = make_lease_harness(128)
    for name in ("a", "b"):
        harness.take(name, 64)
        harness.give_back(name)
    harness.take("eve's", 64, owner="eve")
    assert [d.conversation_id for d in harness.dropped] == ["a"]


def test_a_turn_that_does_not_fit_beside_others_shares_is_refused_with_the_numbers(
    make_lease_harness: type[LeaseHarness],
) -> None:
    harness = make_lease_harness(128)
    harness.take("eve's", 32, owner="eve")
    harness.leases.refuse_beyond_shares("ada", "a", 96 * KIB)
    with pytest.raises(
        CacheFull, match=r"may need 0\.1 MiB of memory; of the 0\.1 MiB budget, 0\.1 MiB are not pinned"
    ):
        harness.leases.refuse_beyond_shares("ada", "a", 112 * KIB)
    refused = harness.ask(
        "a", 112
    )  # let in before eve came: it waits for her turn to end, and is then refused, not stuck
    harness.ask("b", 16)
    assert harness.granted == ["eve's"]
    assert harness.refused == []
    harness.give_back("eve's")
    until(lambda: "b" in harness.held)
    assert len(harness.refused) == 1
    with pytest.raises(CacheFull, match="guaranteed to other users"):
        refused.wait(10)


def test_an_engine_without_memory_gets_the_idle_kvs(make_lease_harness: type[LeaseHarness]) -> None:
    harness = make_lease_harness(128)
    for name in ("a", "b", "c"):
        harness.take(name, 32)
    for name in ("a", "b"):
        harness.give_back(name)
    harness.kvs.pins.pin("b", 32, 0)
    kvs = harness.leases.take_idle()
    assert [kv.length_tokens for kv in kvs] == [32]
    assert set(harness.kvs.holdings()) == {"b", "c"}
    until(lambda: [(d.conversation_id, d.kept_on, d.lost_tokens) for d in harness.dropped] == [("a", Tier.NONE, 32)])
    assert harness.take("a", 16).loss is Loss.FOR_ROOM
