"""Owners take turns; no ticket overtakes the head; a few places are kept for owners who have none."""

from __future__ import annotations

import random

from sessions.memory.device.fair_queue import FairQueue
from sessions.memory.device.slots import Ticket


class Queue:
    def __init__(self) -> None:
        self.line = FairQueue()
        self.places: dict[str, int] = {}
        self.tickets: dict[str, Ticket] = {}

    def enter(self, *names: str) -> None:
        """ "a1" is a ticket of owner "a"."""
        for name in names:

            def moved(place: int, name: str = name) -> None:
                self.places[name] = place

            self.tickets[name] = Ticket(name, name[0], 1, moved)
            self.line.enter(self.tickets[name])

    def serve(self) -> str:
        ticket = self.line.first([], 8)
        assert ticket is not None
        self.line.leave(ticket)
        return ticket.conversation_id

    def serve_all(self) -> list[str]:
        return [self.serve() for _ in range(len(self.line.owners))]


def test_one_owner_is_served_in_order() -> None:
    queue = Queue()
    queue.enter("a1", "a2", "a3")
    assert queue.serve_all() == ["a1", "a2", "a3"]
    assert not queue.line


def test_owners_take_turns_and_see_their_places() -> None:
    queue = Queue()
    queue.enter("a1", "a2", "a3", "b1", "c1", "b2")
    assert [queue.places[name] for name in ("a1", "b1", "c1", "a2", "b2", "a3")] == [1, 2, 3, 4, 5, 6]
    assert queue.serve_all() == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_who_was_just_served_does_not_go_first_again() -> None:
    queue = Queue()
    queue.enter("a1", "b1", "b2")
    assert queue.serve() == "a1"
    queue.enter("a2")
    assert queue.serve_all() == ["b1", "b2", "a2"]
    queue.enter("a3", "b3")
    assert queue.serve_all() == ["a3", "b3"]


def test_no_ticket_overtakes_the_head() -> None:
    """Tickets arrive without end: the first stays first, and every waiting ticket gets its turn."""
    queue = Queue()
    queue.enter("a1", "a2", "a3")
    queue.serve()
    for newcomer in "bcdefghij":
        queue.enter(f"{newcomer}1")
        assert queue.places["a2"] == 1
    assert queue.serve() == "a2"
    served = []
    for newcomer in "klmnopqrst":
        queue.enter(f"{newcomer}1")
        served.append(queue.serve())
    assert served[:9] == [f"{name}1" for name in "bcdefghij"]
    assert "a3" in queue.serve_all()


def test_leaving_closes_the_gap() -> None:
    queue = Queue()
    queue.enter("a1", "a2", "b1")
    assert queue.line.leave(queue.tickets["a1"])
    assert not queue.line.leave(queue.tickets["a1"])
    assert queue.places["b1"] <= 2
    assert sorted(queue.serve_all()) == ["a2", "b1"]


def test_places_are_kept_for_owners_who_have_none() -> None:
    queue = Queue()
    queue.enter("a9", "b1")
    assert queue.line.first(["a"] * 7, 10) is queue.tickets["a9"]
    assert queue.line.first(["a"] * 8, 10) is queue.tickets["b1"]
    assert queue.line.first([*"aaaaaaaa", "b"], 10) is None
    assert queue.line.first(["a"] * 3, 4) is queue.tickets["a9"]  # too few places to keep any
    assert queue.line.first(["a"] * 4, 4) is None


def test_an_owner_waits_for_at_most_one_ticket_of_every_other() -> None:
    randomness = random.Random(4)
    queue = Queue()
    waiting_since: dict[str, list[str]] = {}
    entered = 0
    for _ in range(2000):
        if randomness.random() < 0.55 or not queue.line:
            owner = randomness.choice("aaaaaabc")
            is_first = owner not in queue.line.owners
            entered += 1
            name = f"{owner}{entered}"
            queue.enter(name)
            if is_first:
                waiting_since[name] = []
            continue
        served = queue.serve()
        for others in waiting_since.values():
            others.append(served[0])
        if (before := waiting_since.pop(served, None)) is not None:
            assert all(before.count(other) <= 3 for other in set(before) - {served[0]}), before
