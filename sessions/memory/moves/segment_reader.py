"""The segments of a chain as they come: a few threads read and verify files while the engine copies earlier ones.

One reader leaves a disk idle while it checks and the engine copies; several keep it busy. What is read and not yet
copied is bounded in bytes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from model_runtime.interface.protocol import Segment
from model_runtime.interface.segments import SegmentIdentity
from sessions.config import MIB

READERS = 3
AHEAD_BYTES = 128 * MIB  # of rows as the device holds them, in memory at once on their way


class SegmentReader:
    """Inside `with`, `take` gives the segments in their order. `load` is called on threads of its own."""

    def __init__(
        self, identities: Sequence[SegmentIdentity], load: Callable[[SegmentIdentity], Segment], bytes_per_token: int
    ) -> None:
        self._identities = identities
        self._load = load
        self._bytes_per_token = bytes_per_token
        self._changed = threading.Condition()
        self._arrived: dict[int, Segment | Exception] = {}
        self._begun = self._taken = self._done_with = 0  # how many are being read, were taken, are copied
        self._reading = 0
        self._reading_since = 0.0
        self._read_s = 0.0
        self._ended = False

    @property
    def reading_s(self) -> float:
        """How long at least one file was being read."""
        with self._changed:
            return self._read_s + (time.perf_counter() - self._reading_since if self._reading else 0.0)

    def __enter__(self) -> SegmentReader:
        for _ in range(min(READERS, len(self._identities))):
            threading.Thread(target=self._read, name="keepwarm-reader", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._changed:
            self._ended = True
            self._arrived.clear()
            self._changed.notify_all()

    def take(self) -> list[Segment]:
        """The next one, waited for, and those behind it that have come too; [] at the end. The ones taken before are
        done with. Raises what `load` raised for the next one."""
        with self._changed:
            self._done_with = self._taken
            self._changed.notify_all()
            if self._taken == len(self._identities):
                return []
            self._changed.wait_for(lambda: self._taken in self._arrived)
            segments: list[Segment] = []
            while not isinstance(came := self._arrived.get(self._taken), Exception) and came is not None:
                segments.append(came)
                del self._arrived[self._taken]
                self._taken += 1
            if not segments:
                assert isinstance(came, Exception)
                raise came
            return segments

    def _read(self) -> None:
        while (number := self._next()) is not None:
            arrived: Segment | Exception
            try:
                arrived = self._load(self._identities[number])
            except Exception as error:  # raised by the `take` that reaches it
                arrived = error
            with self._changed:
                self._count(-1)
                if not self._ended:
                    self._arrived[number] = arrived
                self._changed.notify_all()

    def _next(self) -> int | None:
        with self._changed:
            self._changed.wait_for(self._may_go_on)
            if self._ended or self._begun == len(self._identities):
                return None
            self._begun += 1
            self._count(1)
            return self._begun - 1

    def _may_go_on(self) -> bool:
        if self._ended or self._begun == len(self._identities) or self._begun == self._done_with:
            return True
        last, first = self._identities[self._begun], self._identities[self._done_with]
        return (last.end_tokens - first.start_tokens) * self._bytes_per_token <= AHEAD_BYTES

    def _count(self, change: int) -> None:
        now = time.perf_counter()
        if self._reading:
            self._read_s += now - self._reading_since
        self._reading += change
        self._reading_since = now
