"""One server of a remote engine: what it speaks, whether it can be used, and what it was asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from model_runtime.interface.errors import ModelLoadError
from model_runtime.interface.protocol import RemoteServer
from model_runtime.remote.agreement import compare, refuse_disagreement
from model_runtime.remote.connection import Connection
from model_runtime.remote.dialects.dialect import Dialect, Facts, Slots
from model_runtime.remote.dialects.find import find_dialect
from model_runtime.remote.texts import RemoteTexts
from model_runtime.remote.trouble import EngineTrouble, Kind

QUIET_S = 10.0  # after which a server that neither writes nor says what it serves is in trouble


@dataclass(frozen=True, slots=True)
class MustBe:
    """What every server must have, also one that comes later."""

    weights: str
    context_tokens: int


class Server:
    """Only on the loop's thread; `shown` may be read by any thread.

    A server that was away is greeted again before it is used: it may have come back with another model."""

    def __init__(self, connection: Connection, model: str, texts: RemoteTexts) -> None:
        self.connection = connection
        self.dialect: Dialect | None = None
        self.slots: Slots | None = None
        self.notes: tuple[str, ...] = ()
        self.active = 0  # answers being written
        self.must_be: MustBe | None = None
        self._model = model
        self._texts = texts
        self._identity: str | None = None  # as it was at the first greeting, for good
        self._trouble: EngineTrouble | None = None
        self._requests = 0
        self._heard_at = 0.0
        self._failures = 0
        self._greeting = asyncio.Lock()

    @property
    def address(self) -> str:
        return self.connection.address

    @property
    def is_well(self) -> bool:
        return self.dialect is not None and self._trouble is None

    @property
    def shown(self) -> RemoteServer:
        trouble = self._trouble.sentence if self._trouble else ""
        if not trouble and self.dialect is None:
            trouble = f"The engine at {self.address} has not answered yet."
        return RemoteServer(self.address, trouble, self._requests, self._failures)

    async def greet(self) -> None:
        """Finds out what it speaks and compares it with the tokenizer. Raises `EngineTrouble`, or `ModelLoadError` when
        they do not belong together."""
        sample = tuple(self._texts.tokenizer.backend_tokenizer.encode("Hello", add_special_tokens=False).ids)
        dialect = await find_dialect(self.connection, self._model, sample)
        found = await compare(dialect, self.connection, self._texts)
        refuse_disagreement(self.address, self._texts, found)
        self._refuse_other(dialect.facts)
        self.notes = (*dialect.facts.notes, *found.notes)
        if self._identity is None:
            self._identity = dialect.facts.identity
        self._refuse_change(dialect.facts.identity)
        self.dialect, self._trouble = dialect, None
        self.slots = dialect.slots(self.connection)  # one that was away may have lost what it had

    async def check(self) -> EngineTrouble | None:
        """Asks whether it still serves what it served; returns what is wrong. Never raises."""
        try:
            if self.dialect is None or not self.is_well:
                await self._greet_once()
            else:
                self._refuse_change(await self.dialect.identity(self.connection))
        except ModelLoadError as error:
            return self._unusable(EngineTrouble(Kind.CHANGED, str(error)))
        except EngineTrouble as trouble:
            # One that computes may be slow to say what it serves, as long as its answers come.
            writes = self.active and time.monotonic() - self._heard_at < QUIET_S
            return trouble if trouble.kind is Kind.SLOW and writes else self._unusable(trouble)
        return None

    async def _greet_once(self) -> None:
        """One greeting at a time: each one makes new slots, and those that are in use would be given out again."""
        async with self._greeting:
            if not self.is_well:
                await self.greet()

    @property
    def sure_dialect(self) -> Dialect:
        """Of a server that was greeted."""
        assert self.dialect is not None
        return self.dialect

    async def make_sure(self) -> None:
        """For every answer, because a small model is loaded within a moment. Raises `EngineTrouble` when the server
        cannot be used."""
        trouble = await self.check()
        is_only_slow = trouble is not None and trouble.kind is Kind.SLOW and self.is_well
        if trouble is not None and not is_only_slow:  # one that computes queues what it is asked
            raise trouble

    def failed(self, trouble: EngineTrouble) -> None:
        """An answer ended so."""
        self._failures += 1
        if trouble.kind in (Kind.AWAY, Kind.BROKEN, Kind.CHANGED, Kind.SLOW):
            self._unusable(trouble)

    def _unusable(self, trouble: EngineTrouble) -> EngineTrouble:
        self._trouble = trouble
        return trouble

    def asked(self) -> None:
        """An answer was asked for."""
        self._requests += 1
        self.heard()

    def heard(self) -> None:
        """Something of an answer arrived."""
        self._heard_at = time.monotonic()

    def _refuse_other(self, facts: Facts) -> None:
        wanted = self.must_be
        if wanted is None:
            return
        if facts.weights != wanted.weights:
            said = f"serves another model than the other engines ({facts.weights}; theirs is {wanted.weights})"
        elif facts.context_tokens is not None and facts.context_tokens < wanted.context_tokens:
            said = f"holds only {facts.context_tokens:,} tokens, and {wanted.context_tokens:,} are needed"
        else:
            return
        raise EngineTrouble(Kind.CHANGED, f"The engine at {self.address} {said}.")

    def _refuse_change(self, identity: str) -> None:
        if self._identity is not None and identity != self._identity:
            raise EngineTrouble(
                Kind.CHANGED,
                f"The engine at {self.address} now serves another model or other settings ({identity}; it was "
                f"{self._identity}). Start it as it was, or start Keepwarm again.",
            )


def refuse_different(servers: Sequence[Server]) -> None:
    """Raises `ModelLoadError` unless all servers serve the same model: a conversation may go on at another one."""
    known = [(server.address, server.dialect.facts.weights) for server in servers if server.dialect is not None]
    for address, weights in known[1:]:
        if weights != known[0][1]:
            raise ModelLoadError(
                f"The engines do not serve the same model: {known[0][0]} has {known[0][1]}, {address} has {weights}."
            )
