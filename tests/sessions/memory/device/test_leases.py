"""The line is first come, first served; the budget holds at every moment; nobody waits holding a KV."""

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
from tests.sessions.house import until
from tests.sessions.scripted_engine import ScriptedEngine, ScriptedKV

KIB = 1024


class DeskTicket(Ticket):
    """A ticket whose answer is written down in the order of the grants."""

    desk: Desk

    def grant(self, lease: Lease) -> None:
        self.desk.held[self.conversation_id] = lease
        self.desk.granted.append(self.conversation_id)
        super().grant(lease)

    def refuse(self, sentence: str) -> None:
        self.desk.refused.append(sentence)
        super().refuse(sentence)


class Desk:
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
        ticket = DeskTicket(name, owner, tokens * KIB, places)
        ticket.desk = self
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
def make_desk() -> Iterator[type[Desk]]:
    desks: list[Desk] = []

    class Made(Desk):
        def __init__(self, *args: int, **settings: int) -> None:
            super().__init__(*args, **settings)
            desks.append(self)

    yield Made
    for desk in desks:
        desk.leases.close(5)
        desk.engine.close()


def test_room_is_reserved_before_it_is_used(make_desk: type[Desk]) -> None:
    desk = make_desk(100)
    desk.take("a", 64, fill=16)
    assert desk.sums == (16, 48)
    desk.give_back("a")
    assert desk.sums == (16, 0)


def test_idle_kvs_make_room_the_least_recently_used_first(make_desk: type[Desk]) -> None:
    desk = make_desk(96)
    for name in ("a", "b"):
        desk.take(name, 32)
        desk.give_back(name)
    desk.take("a", 32, fill=0)
    desk.give_back("a")
    desk.take("c", 64)
    assert [(d.conversation_id, d.owner_id, d.freed_bytes) for d in desk.dropped] == [("b", "ada", 32 * KIB)]
    assert desk.sums == (96, 0)
    lease = desk.take("a", 32, fill=0)
    assert (lease.is_new, lease.loss, lease.held_tokens) == (False, None, 32)


def test_a_leased_kv_is_never_dropped(make_desk: type[Desk]) -> None:
    desk = make_desk(64)
    desk.take("a", 48)
    desk.ask("b", 32)
    assert desk.granted == ["a"]
    with pytest.raises(ConversationBusy):
        desk.leases.drop("a")
    desk.give_back("a")
    until(lambda: "b" in desk.held)
    assert [d.conversation_id for d in desk.dropped] == ["a"]


def test_nothing_is_dropped_in_vain(make_desk: type[Desk]) -> None:
    """All idle KVs together would not be enough while "a" is leased, so they stay."""
    desk = make_desk(96)
    desk.take("idle", 16)
    desk.give_back("idle")
    desk.take("a", 48)
    desk.ask("b", 64)
    assert desk.dropped == []
    assert set(desk.kvs.holdings()) == {"idle", "a"}
    desk.give_back("a")
    until(lambda: "b" in desk.held)


def test_nobody_overtakes_a_large_one(make_desk: type[Desk]) -> None:
    """Small turns keep coming; the large one is next all the same."""
    desk = make_desk(64)
    desk.take("a", 32)
    desk.ask("large", 64)
    for name in ("s1", "s2"):
        desk.ask(name, 16)
    assert desk.places["s2"][-1] == 3
    assert desk.granted == ["a"]
    desk.give_back("a")
    until(lambda: "large" in desk.held)
    assert desk.granted == ["a", "large"]
    assert desk.places["s2"][-1] == 2
    desk.give_back("large")
    until(lambda: "s2" in desk.held)
    assert desk.granted == ["a", "large", "s1", "s2"]


def test_no_more_at_once_than_the_engine_takes(make_desk: type[Desk]) -> None:
    desk = make_desk(1000, max_concurrent=2)
    for name in ("a", "b", "c"):
        desk.ask(name, 16)
    until(lambda: len(desk.held) == 2)
    assert desk.granted == ["a", "b"]
    desk.give_back("a")
    until(lambda: "c" in desk.held)


def test_who_leaves_the_line_is_never_granted(make_desk: type[Desk]) -> None:
    desk = make_desk(32)
    desk.take("a", 32)
    ticket = desk.ask("b", 32)
    desk.ask("c", 32)
    assert desk.leases.leave(ticket)
    assert not desk.leases.leave(ticket)
    desk.give_back("a")
    until(lambda: "c" in desk.held)
    assert desk.granted == ["a", "c"]


def test_dropping_counts_only_when_the_engine_has_freed_it(make_desk: type[Desk]) -> None:
    desk = make_desk(64)
    desk.take("a", 64)
    desk.give_back("a")
    gate = threading.Event()
    release = desk.engine.release

    def slow_release(kv: ScriptedKV) -> None:
        gate.wait(10)
        release(kv)

    desk.engine.release = slow_release  # type: ignore[method-assign, assignment]
    desk.ask("b", 64)
    until(lambda: desk.kvs.is_leaving("a"))
    assert desk.granted == ["a"]
    assert desk.sums == (64, 0)  # views are not held up either
    desk.ask("a", 16)  # and its own next turn waits for the end of it
    gate.set()
    until(lambda: "b" in desk.held)
    desk.give_back("b")
    until(lambda: "a" in desk.held)
    assert (desk.held["a"].is_new, desk.held["a"].loss) == (True, Loss.FOR_ROOM)


def test_two_hands_drop_the_same_kv(make_desk: type[Desk]) -> None:
    desk = make_desk(64)
    desk.take("a", 64)
    desk.give_back("a")
    freed: list[int] = []
    threads = [threading.Thread(target=lambda: freed.append(desk.leases.drop("a"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(freed) == [0, 0, 0, 64 * KIB]


def test_a_deleted_conversation_leaves_no_trace(make_desk: type[Desk]) -> None:
    desk = make_desk(64)
    desk.take("a", 64)
    desk.give_back("a")
    desk.leases.forget("a")
    assert desk.kvs.holdings() == {}
    assert desk.take("a", 16).loss is None


def test_another_owners_ticket_never_gets_the_kv(make_desk: type[Desk]) -> None:
    """It cannot happen while ids are checked; if it ever did, the line would refuse rather than share."""
    desk = make_desk(64)
    desk.take("a", 16)
    desk.give_back("a")
    with pytest.raises(AssertionError):
        desk.leases._grant(Ticket("a", "eve", 16), desk.kvs.slots["a"])  # noqa: SLF001 - what cannot happen through the queue


def test_a_ticket_is_waited_for(make_desk: type[Desk]) -> None:
    desk = make_desk(128)
    assert desk.ask("a", 64).wait(10) is desk.held["a"]
    waiting, withdrawn = desk.ask("b", 128), desk.ask("c", 16)
    assert waiting.wait(0.01) is None
    assert desk.leases.leave(withdrawn)
    assert withdrawn.wait(10) is None
    desk.give_back("a")
    lease = waiting.wait(10)
    assert lease is not None
    assert lease.conversation_id == "b"
    last = desk.ask("d", 128)
    desk.leases.close(5)
    assert last.wait(10) is None  # nothing is granted any more


def test_an_error_in_a_grant_does_not_end_the_line(make_desk: type[Desk]) -> None:
    desk = make_desk(64)

    class BrokenTicket(Ticket):
        def grant(self, lease: Lease) -> None:
            raise RuntimeError("broken")

    desk.leases.enter(BrokenTicket("a", "ada", 16))
    desk.take("b", 16)


def test_an_engine_that_cannot_release_does_not_end_the_line(make_desk: type[Desk]) -> None:
    desk = make_desk(64)
    for name in ("a", "b"):
        desk.take(name, 32)
        desk.give_back(name)

    def broken(kv: ScriptedKV) -> None:
        raise RuntimeError("gone")

    desk.engine.release = broken  # type: ignore[method-assign, assignment]
    desk.take("c", 64)


def test_another_user_does_not_evict_a_guaranteed_share(make_desk: type[Desk]) -> None:
    """Two users of a budget of 128: 32 are guaranteed to each."""
    desk = make_desk(128)
    desk.take("eve's", 32, owner="eve")
    desk.give_back("eve's")
    for name in ("a", "b", "c"):
        desk.take(name, 48)
        desk.give_back(name)
    assert [d.conversation_id for d in desk.dropped] == ["a"]
    desk.take("d", 96)
    assert {d.conversation_id for d in desk.dropped} == {"a", "b", "c"}
    assert "eve's" in desk.kvs.holdings()


def test_who_holds_more_than_the_share_may_lose_it(make_desk: type[Desk]) -> None:
    desk = make_desk(128)
    for name in ("a", "b"):
        desk.take(name, 64)
        desk.give_back(name)
    desk.take("eve's", 64, owner="eve")
    assert [d.conversation_id for d in desk.dropped] == ["a"]


def test_a_turn_that_others_shares_leave_no_room_for_is_refused_with_the_numbers(make_desk: type[Desk]) -> None:
    desk = make_desk(128)
    desk.take("eve's", 32, owner="eve")
    desk.leases.refuse_beyond_shares("ada", "a", 96 * KIB)
    with pytest.raises(
        CacheFull, match=r"may need 0\.1 MiB of memory; of the 0\.1 MiB budget, 0\.1 MiB are not pinned"
    ):
        desk.leases.refuse_beyond_shares("ada", "a", 112 * KIB)
    refused = desk.ask("a", 112)  # let in before eve came: it waits for her turn to end, and is then refused, not stuck
    desk.ask("b", 16)
    assert desk.granted == ["eve's"]
    assert desk.refused == []
    desk.give_back("eve's")
    until(lambda: "b" in desk.held)
    assert len(desk.refused) == 1
    with pytest.raises(CacheFull, match="guaranteed to other users"):
        refused.wait(10)


def test_an_engine_without_memory_gets_the_idle_kvs(make_desk: type[Desk]) -> None:
    desk = make_desk(128)
    for name in ("a", "b", "c"):
        desk.take(name, 32)
    for name in ("a", "b"):
        desk.give_back(name)
    desk.kvs.pins.pin("b", 32, 0)
    kvs = desk.leases.take_idle()
    assert [kv.length_tokens for kv in kvs] == [32]
    assert set(desk.kvs.holdings()) == {"b", "c"}
    until(lambda: [(d.conversation_id, d.kept_on, d.lost_tokens) for d in desk.dropped] == [("a", Tier.NONE, 32)])
    assert desk.take("a", 16).loss is Loss.FOR_ROOM
