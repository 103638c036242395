"""What can go wrong with a server of a remote engine, as one exception with a sentence."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What went wrong: it decides what is tried next."""

    AWAY = "away"  # it cannot be reached
    BROKEN = "broken"  # it broke the connection: perhaps only one that it had kept open for too long
    BUSY = "busy"  # it says that it has no room now, or is still loading its model
    SLOW = "slow"  # it has sent nothing for too long
    GARBAGE = "garbage"  # what it sent makes no sense
    FAILED = "failed"  # it says that it failed
    REFUSED = "refused"  # it says that the request is wrong: another try would end the same way
    CHANGED = "changed"  # it serves another model than at the start


class EngineTrouble(Exception):
    """`sentence` names the server and may be shown to the user. `status` is an HTTP status, None without a response."""

    def __init__(
        self, kind: Kind, sentence: str, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(sentence)
        self.kind = kind
        self.sentence = sentence
        self.status = status
        self.retry_after_s = retry_after_s


class Garbage(ValueError):
    """An event that makes no sense: a clause that says what is wrong with it."""


class Full(Garbage):
    """An event instead of an answer, by which the server says that it has no room now."""


class LeftOut(Garbage):
    """An event before which so many ids are missing that no one can tell; with its own they are `tokens`."""

    def __init__(self, clause: str, tokens: int) -> None:
        super().__init__(clause)
        self.tokens = tokens
