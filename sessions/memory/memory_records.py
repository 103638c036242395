"""What the parts of the memory tell each other and the turns: leases, losses, restores, checks. Frozen values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from model_runtime.interface.protocol import KV
from sessions.types import Tier

PLACES = {Tier.HOST: "host memory", Tier.DISK: "disk"}


class Loss(Enum):
    """Why a KV that could have been used is gone."""

    FOR_ROOM = auto()
    BY_HAND = auto()
    DISAGREED = auto()  # with a re-read
    ENGINE = auto()  # the engine hung or died and was rebuilt


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one run to use its conversation's KV.

    `held_tokens` is what the KV had when the lease was granted, `held_ids` which ids those were, as far as the last
    holder knew (the engine compares and knows better). `is_new`: the KV was made for this lease; `loss` then says how
    an earlier one went, None when this process never had one. Rows from `ahead_from` on were read ahead of a message:
    they may go beyond `held_ids`."""

    conversation_id: str
    kv: KV
    held_tokens: int
    is_new: bool
    loss: Loss | None
    held_ids: tuple[int, ...] = ()
    promised_bytes: int = 0
    ahead_from: int | None = None


@dataclass(frozen=True, slots=True)
class Holding:
    """What one conversation's KV costs now."""

    tokens: int
    used_bytes: int
    reserved_bytes: int
    last_used_at: float


@dataclass(frozen=True, slots=True)
class Dropped:
    """A KV that was freed to make room. `kept_on`: where its rows are now; NONE when they would be read again.
    `lost_tokens`: how many of its tokens no tier has. `is_copy`: another KV has them, and no room was needed."""

    conversation_id: str
    owner_id: str
    freed_bytes: int
    kept_on: Tier = Tier.NONE
    seconds: float = 0.0
    lost_tokens: int = 0
    is_copy: bool = False


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Rows `start_tokens..end_tokens` of a KV were copied from that conversation's."""

    conversation_id: str
    start_tokens: int
    end_tokens: int


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """Fill `kv` with as much of `ledger` as is saved.

    The KV already holds `useful_tokens` of it, which a restore has to beat, because it begins with an empty KV; and it
    may not grow beyond `promised_bytes`. The first `shared_tokens` can be copied from another KV on the device."""

    owner_id: str
    conversation_id: str
    kv: KV
    ledger: tuple[int, ...]
    useful_tokens: int
    promised_bytes: int
    must_stop: Callable[[], bool]
    shared_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back for a turn. `refusal`: why a file was not trusted. `choice`: a sentence with both expectations."""

    tokens: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    choice: str = ""
    refusal: str = ""
    is_gone: bool = False  # it was refused because its file was not there any more
    is_reread_cheaper: bool = False
    tier: Tier = Tier.NONE  # where it came from; DISK when some of it did
    lender_id: str = ""  # the other conversation whose beginning this is; "" if it is its own
    shared: SharedPrefix | None = None  # what was copied from another conversation
    is_rope_changed: bool = False  # what earlier turns kept has the rotary frequencies of another length


NOT_RESTORED = Restored()


@dataclass(frozen=True, slots=True)
class Check:
    """What verifying a conversation's memory found. `sentence` is for a person.

    `agrees` is None where nothing was found out. `tokens` were read again; `logit_difference` is the largest, `nll_gap`
    in nats a token. `device_is_bad`: the KV must not be used any more."""

    at: float
    sentence: str
    agrees: bool | None = None
    tokens: int = 0
    logit_difference: float = 0.0
    nll_gap: float = 0.0
    device_is_bad: bool = False
