"""The queue for leases. Owners take turns, so that no owner waits behind everything that another one asks for."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from sessions.memory.device.slots import Ticket

# One place in this many is kept for owners who have no running answer yet.
_PLACES_FOR_ONE_KEPT = 5


class FairQueue:
    """Not thread-safe: under the leases' lock.

    Every ticket belongs to a round, and an owner has one in each: start-time fair queueing with equal weights (Goyal et
    al. 1996). A new ticket joins the round that is being served or, if its owner had a turn in it, the owner's next
    one; nothing is ever placed before the head of the queue, so the head cannot starve.
    """

    def __init__(self) -> None:
        self._tickets: list[tuple[int, Ticket]] = []  # by round, then by arrival
        self._last_round: dict[str, int] = {}  # by owner, while any ticket waits

    def __bool__(self) -> bool:
        return bool(self._tickets)

    @property
    def tickets(self) -> list[Ticket]:
        """All that wait, the next one first."""
        return [ticket for _, ticket in self._tickets]

    @property
    def owners(self) -> list[str]:
        """The owners of all waiting tickets, with repetitions."""
        return [ticket.owner_id for _, ticket in self._tickets]

    def enter(self, ticket: Ticket) -> None:
        """Gives the ticket its place and tells every ticket its own."""
        served = self._tickets[0][0] if self._tickets else 0
        own = max(served, self._last_round.get(ticket.owner_id, -1) + 1)
        self._last_round[ticket.owner_id] = own
        bisect.insort_right(self._tickets, (own, ticket), key=lambda entry: entry[0])
        self._tell_places()

    def leave(self, ticket: Ticket) -> bool:
        """Takes it out, served or not. False when it was not in the queue."""
        before = len(self._tickets)
        self._tickets = [entry for entry in self._tickets if entry[1] is not ticket]
        if not self._tickets:
            self._last_round.clear()
        self._tell_places()
        return len(self._tickets) < before

    def first(self, running: Sequence[str], places: int) -> Ticket | None:
        """Who is next while these owners' answers run, of at most `places`; None while all have to wait. With many
        places a few stay free for owners who have none, whatever one owner asks for."""
        free = places - len(running)
        kept = places // _PLACES_FOR_ONE_KEPT
        for _, ticket in self._tickets:
            if free > (kept if ticket.owner_id in running else 0):
                return ticket
        return None

    def _tell_places(self) -> None:
        for place, (_, ticket) in enumerate(self._tickets, start=1):
            ticket.moved(place)
