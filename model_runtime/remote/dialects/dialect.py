"""What every dialect has: facts about the server, the body of a request, and events as pieces of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.remote.connection import NO_ACCESS, Clock, Connection, encoded, no_room
from model_runtime.remote.trouble import EngineTrouble, Full, Garbage, Kind

NO_SUCH_QUESTION = (404, 405, 501)


class NotSpoken(Exception):
    """The server does not speak this dialect; a clause says why."""


class End(Enum):
    """Why the server ended an answer."""

    STOP = auto()  # at a token that ends answers
    LENGTH = auto()  # at the number of tokens that it was asked for, or at its context's
    CUT = auto()  # for another reason: it was told to, or has no room


@dataclass(frozen=True, slots=True)
class Wanted:
    """Up to `new_tokens` ids after `ledger`. `ends` are all ids that end this answer: the model's own, as its chat
    template needs them, unless they are ignored, and those that were asked for; `own_ends` are the former. What one
    `salt` put into the server's cache must not be used for another."""

    ledger: tuple[int, ...]
    sampling: SamplingParams
    new_tokens: int
    ends: tuple[int, ...] = ()
    own_ends: tuple[int, ...] = ()
    salt: str = ""
    slot: int | None = None  # of a server with numbered slots; None: it chooses
    is_streamed: bool = True  # False only after ids were left out

    @property
    def least_tokens(self) -> int:
        """Before so many ids no end may be drawn; with `ignore_eos` it never may."""
        return self.new_tokens if self.sampling.ignore_eos else self.sampling.min_new_tokens

    @property
    def masked_ends(self) -> list[int]:
        """The ends that may not be drawn before `least_tokens`."""
        return sorted({*self.ends, *(self.own_ends if self.sampling.ignore_eos else ())})


@dataclass(frozen=True, slots=True)
class Seat:
    """A slot of a server, taken for one answer. `restored_tokens` came from its disk for that."""

    slot: int
    restored_tokens: int = 0
    restored_bytes: int = 0
    restore_s: float = 0.0

    def note(self, ledger_tokens: int, reused_tokens: int) -> str:
        """What came from the disk, and whether that was of use: servers have reported success and then read everything
        again."""
        note = f"The engine restored {self.restored_tokens:,} tokens of this conversation from its disk"
        if reused_tokens < min(self.restored_tokens, ledger_tokens - 1):
            note += f", but reused {reused_tokens:,} of all that it had" if reused_tokens else ", and used none of them"
        return f"{note}."


class Slots(Protocol):
    """Numbered slots of a server that can save them."""

    def has(self, affinity: str) -> bool:
        """Whether a slot can be taken now without a move."""

    async def take(self, affinity: str, ledger_tokens: int) -> Seat | None:
        """A slot for an answer; None when the server should choose. Raises `EngineTrouble`."""

    def give_back(self, seat: Seat, tokens: int) -> None:
        """The answer ended; the slot has rows of so many tokens."""

    async def save_all(self) -> None:
        """Saves what the slots have. Raises `EngineTrouble`."""


@dataclass(frozen=True, slots=True)
class IdLogprobs:
    """Natural log-probabilities by id: of the token that was chosen, and of the most likely ones."""

    chosen: tuple[int, float]
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event says. `logprobs` has an entry for each of `token_ids`, or none. `reused_tokens` of the prompt came
    from the server's cache, `read_tokens` were computed so far. The server counts `prompt_tokens` in the prompt. It
    left `left_out_tokens` ids out before `token_ids`; `text` is that of all."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[IdLogprobs | None, ...] = ()
    reused_tokens: int | None = None
    read_tokens: int | None = None
    end: End | None = None
    prompt_tokens: int | None = None
    left_out_tokens: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of itself. `identity` changes when it serves another model, or with another context;
    `weights` are equal for servers of the same model. None: it does not say."""

    model: str
    identity: str
    weights: str
    context_tokens: int | None
    vocabulary_tokens: int | None
    concurrent: int
    notes: tuple[str, ...] = ()


class Dialect(Protocol):
    """One server, as it was found to be."""

    @property
    def name(self) -> str:
        """How the dialect is called in messages."""

    @property
    def facts(self) -> Facts: ...

    @property
    def path(self) -> str:
        """Where answers are asked for."""

    def refusal(self, sampling: SamplingParams) -> str:
        """Which settings the server lacks, as a clause after "The engine"; "" for none."""

    def body(self, request: Wanted) -> dict[str, Any]:
        """The request for ids, in a stream or in one event."""

    def piece(self, event: dict[str, Any], so_far: Sequence[int] | None) -> Piece:
        """What an event says after the ids `so_far`; None: the answer has ended, and no ids are wanted. Raises
        `Garbage`, or `Full`."""

    def slots(self, connection: Connection) -> Slots | None:
        """New slots, of which nothing is known yet; None where they cannot be saved."""

    async def identity(self, connection: Connection) -> str:
        """`facts.identity` as it is now. Raises `EngineTrouble`."""

    async def ids_of(self, connection: Connection, text: str, are_controls: bool) -> list[int] | None:
        """The server's ids of a text, whose control tokens are such or plain text; None if it has no such question."""

    async def text_of(self, connection: Connection, ids: list[int]) -> str | None:
        """The server's text of ids, control tokens included; None if it has no such question."""


def are_ids(value: object) -> bool:
    """Whether it is a list of whole numbers from 0 on."""
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def ids_in(event: dict[str, Any], name: str) -> tuple[int, ...]:
    """The ids under `name`, () if it is missing. Raises `Garbage`."""
    found = event.get(name)
    if found is None:
        return ()
    if not are_ids(found):
        raise Garbage(f"its {name} are no token ids")
    return tuple(found)


def count_in(value: object) -> int | None:
    """A number of tokens, None for anything else."""
    return value if type(value) is int and value >= 0 else None


async def ask(connection: Connection, path: str, body: dict[str, Any], name: str) -> object:
    """What a server answers under `name`; None if it has no such question. Raises `EngineTrouble`."""
    try:
        return (await connection.post(path, body)).get(name)
    except EngineTrouble as trouble:
        if trouble.status in NO_SUCH_QUESTION:
            return None
        raise


async def get_or_not_spoken(connection: Connection, path: str) -> dict[str, Any]:
    """What is at a path that every server of a dialect has. Raises `NotSpoken`, or `EngineTrouble` for a server that
    does not answer, or does not let us in."""
    try:
        return await connection.get(path)
    except EngineTrouble as trouble:
        if is_no_answer(trouble):
            raise
        raise NotSpoken(f"it has no {path}") from trouble


async def try_out(
    dialect: Dialect, connection: Connection, sample: tuple[int, ...], sampling: SamplingParams
) -> tuple[list[Piece], dict[str, Any]]:
    """Lets a server write one token after `sample`; returns the pieces and the last event. Raises `NotSpoken` unless
    its id comes back, or `EngineTrouble`."""
    ids: list[int] = []
    pieces: list[Piece] = []
    last: dict[str, Any] = {}
    try:
        body = encoded(dialect.body(Wanted(sample, sampling, 1)))
        async with connection.stream(dialect.path, body, Clock()) as events:
            async for last in events:
                pieces.append(dialect.piece(last, ids))
                ids += pieces[-1].token_ids
    except Full as full:
        raise no_room(connection.address, str(full)) from full
    except Garbage as garbage:
        raise NotSpoken(f"{dialect.path} was tried, but {garbage}") from garbage
    except EngineTrouble as trouble:
        if trouble.kind is not Kind.REFUSED or is_no_answer(trouble):
            raise
        raise NotSpoken(f"its {dialect.path} takes no ids") from trouble
    if len(ids) != 1:
        raise NotSpoken(f"its {dialect.path} returns no token ids: it is too old")
    return pieces, last


def is_no_answer(trouble: EngineTrouble) -> bool:
    """Whether nothing was learnt about what the server speaks."""
    return trouble.kind not in (Kind.REFUSED, Kind.FAILED, Kind.GARBAGE) or trouble.status in NO_ACCESS
