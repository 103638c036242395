"""The line for a place on the device. Owners take turns, so nobody waits behind all that somebody else asks for."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from sessions.memory.device.slots import Ticket

# Of so many places for running answers one is kept for owners who have none yet, where there are that many.
_PLACES_FOR_ONE_KEPT = 5


class FairQueue:
    """Not thread-safe: under the leases' lock.

    Every ticket belongs to a round, and an owner has one in each: start-time fair queueing with equal weights (Goyal et
    al. 1996). Whoever comes joins the round that is being served or, having had a turn in it, the next one that is
    theirs; nobody gets in front of the head of the line, so the head cannot starve.
    """

    def __init__(self) -> None:
        self._tickets: list[tuple[int, Ticket]] = []  # by round, then by arrival
        self._last_round: dict[str, int] = {}  # by owner, while anybody waits

    def __bool__(self) -> bool:
        return bool(self._tickets)

    @property
    def tickets(self) -> list[Ticket]:
        """All that wait, the next one first."""
        return [ticket for _, ticket in self._tickets]

    @property
    def owners(self) -> list[str]:
        """Whoever waits, once a ticket."""
        return [ticket.owner_id for _, ticket in self._tickets]

    def enter(self, ticket: Ticket) -> None:
        """Gives it its place, and tells everybody theirs."""
        served = self._tickets[0][0] if self._tickets else 0
        own = max(served, self._last_round.get(ticket.owner_id, -1) + 1)
        self._last_round[ticket.owner_id] = own
        bisect.insort_right(self._tickets, (own, ticket), key=lambda entry: entry[0])
        self._tell_places()

    def leave(self, ticket: Ticket) -> bool:
        """Takes it out, served or not. False when it was not in line."""
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
