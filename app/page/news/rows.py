"""A long list whose rows rarely change: the page gets the rows that did, and where they stand now."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

MOST_ROWS = 100_000  # that are remembered for all pages together; about 250 bytes each
WORTH_IT = 0.5  # more changes than this share of a list, and it is sent whole
MOST_OWNERS = 1_000
Row = Mapping[str, Any]


class SentLists:
    """Remembers the lists that pages have, by owner and token. Rows have an "id". Any thread."""

    def __init__(self, most_rows: int = MOST_ROWS) -> None:
        self._most_rows = most_rows
        self._lock = threading.Lock()
        self._sent: OrderedDict[tuple[str, str], dict[str, int]] = OrderedDict()
        self._newest: dict[str, tuple[str, object]] = {}  # by owner: token, and the version that it is of

    def is_newest(self, owner_id: str, known: str, version: object) -> bool:
        """Whether the list with the token `known` is that of this version, so that it need not be made again."""
        with self._lock:
            return self._newest.get(owner_id) == (known, version)

    def news(self, owner_id: str, rows: Sequence[Row], known: str, version: object = None) -> dict[str, Any] | None:
        """What turns the list with the token `known` into this one, None if it is this one. `version` changes whenever
        the list may have.

        Either {"token", "all": rows}, or {"token", "gone": ids, "put": [index, row] pairs}: remove what is gone or put,
        then insert each row at its index, in order.
        """
        # Hashes of this process: after a restart, pages get their lists anew.
        now = {str(row["id"]): hash(tuple(row.values())) for row in rows}
        token = f"{hash(tuple(now.items())) & 0xFFFF_FFFF_FFFF_FFFF:016x}"
        with self._lock:
            self._newest[owner_id] = token, version
            if token == known:
                return None
            before = self._sent.get((owner_id, known))
            self._remember((owner_id, token), now)
        changes = None if before is None else _changes(before, now)
        if changes is None:
            return {"token": token, "all": list(rows)}
        gone, put = changes
        return {"token": token, "gone": gone, "put": [[index, rows[index]] for index in put]}

    def _remember(self, key: tuple[str, str], rows: dict[str, int]) -> None:
        self._sent[key] = rows
        self._sent.move_to_end(key)
        while len(self._sent) > 1 and sum(map(len, self._sent.values())) > self._most_rows:
            self._sent.popitem(last=False)
        while len(self._newest) > MOST_OWNERS:
            del self._newest[next(iter(self._newest))]


def _changes(before: Mapping[str, int], now: Mapping[str, int]) -> tuple[list[str], list[int]] | None:
    """(ids that are gone, indices of rows that are new, changed or moved); None if that is most of the list, or rows
    that stayed changed their order otherwise."""
    gone = [key for key in before if key not in now]
    changed = {key for key, token in now.items() if before.get(key) != token}
    kept_before = [key for key in before if key in now and key not in changed]
    kept_now = [key for key in now if key not in changed]
    if kept_before != kept_now:
        # One row moved: the first at which the orders differ, in one direction or the other.
        at = next(n for n, (one, other) in enumerate(zip(kept_before, kept_now, strict=True)) if one != other)
        for moved in (kept_now[at], kept_before[at]):
            if [key for key in kept_before if key != moved] == [key for key in kept_now if key != moved]:
                changed.add(moved)
                break
        else:
            return None
    if len(changed) > max(1, WORTH_IT * len(now)):
        return None
    return gone, [index for index, key in enumerate(now) if key in changed]
