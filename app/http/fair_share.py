"""Something of which there is only so much (bytes, turns), handed out by caller in rotation, so that nobody who asks
often keeps the others waiting."""

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
    """`total` units. One caller holds at most half of them while it holds any, so that there is always room for another
    one. On one event loop alone."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[_Claim]] = OrderedDict()

    @property
    def held(self) -> int:
        """What is handed out now."""
        return self._held.total()

    @contextlib.asynccontextmanager
    async def hold(self, caller: str, amount: int, patience_s: float | None = None) -> AsyncIterator[None]:
        """`amount` units until the block ends, waited for. Raises `TimeoutError` after `patience_s`."""
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
        """Looks at the first claim of every caller, until a whole round grants none."""
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
