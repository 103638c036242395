"""Hands out a limited amount of something (bytes, turns) to callers in rotation, so that a caller with many requests
does not keep the others waiting."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class _Claim:
    amount: int
    granted: asyncio.Future[None]


class FairShare:
    """Hands out `total` units. A caller that already holds some gets no more than half of them in all, so that there is
    always room for another caller. On one event loop only."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[_Claim]] = OrderedDict()

    @property
    def held(self) -> int:
        """How many units are handed out now."""
        return self._held.total()

    @contextlib.asynccontextmanager
    async def hold(self, caller: str, amount: int, patience_s: float | None = None) -> AsyncIterator[None]:
        """Waits for `amount` units and holds them until the block ends. Raises `TimeoutError` after `patience_s`."""
        claim = _Claim(min(amount, self._total), asyncio.get_running_loop().create_future())
        self._waiting.setdefault(caller, deque()).append(claim)
        self._grant()
        try:
            async with asyncio.timeout(patience_s):
                await claim.granted
            yield
        finally:
            self._give_back(caller, claim)

    def _give_back(self, caller: str, claim: _Claim) -> None:
        if claim.granted.done() and not claim.granted.cancelled():
            self._held[caller] -= claim.amount
            if not self._held[caller]:
                del self._held[caller]
        else:
            queue = self._waiting.get(caller, deque())
            with contextlib.suppress(ValueError):
                queue.remove(claim)
            if not queue:
                self._waiting.pop(caller, None)
        self._grant()

    def _grant(self) -> None:
        """Grants the first claim of each caller in turn, until a whole round grants none."""
        is_moving = True
        while is_moving:
            is_moving = False
            for caller in list(self._waiting):
                claim = self._waiting[caller][0]
                if claim.granted.cancelled() or self._fits(caller, claim.amount):
                    self._take(caller, claim)
                    is_moving = True

    def _fits(self, caller: str, amount: int) -> bool:
        own = self._held.get(caller, 0)
        return self.held + amount <= self._total and (own == 0 or own + amount <= self._total // 2)

    def _take(self, caller: str, claim: _Claim) -> None:
        queue = self._waiting[caller]
        queue.popleft()
        if queue:
            self._waiting.move_to_end(caller)
        else:
            del self._waiting[caller]
        if not claim.granted.cancelled():
            self._held[caller] += claim.amount
            claim.granted.set_result(None)
