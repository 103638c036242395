"""The types that `app` sees: frozen views, made fresh on every call."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from model_runtime.interface.findings import Int8Drift
from model_runtime.interface.sampling_params import SamplingParams


class MessageStatus(StrEnum):
    """State of one message. A user's message is always COMPLETE."""

    RUNNING = "running"
    COMPLETE = "complete"
    STOPPED = "stopped"  # somebody pressed stop; the text so far is kept
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # was running when the server ended


class Origin(StrEnum):
    """Whose a conversation is: what nobody but a program knows is not kept for ever."""

    PAGE = "page"  # a person has written in it
    PROGRAM = "program"  # named by an API client, or gone on with
    ONE_OFF = "one off"  # of a single nameless request so far: a title, a tag, or a conversation's first turn


class Tier(StrEnum):
    """Where a conversation's KV is. `NONE`: nowhere, it would be read again from the ledger."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    NONE = "cold"


class MissReason(StrEnum):
    """Why a turn fed more than its delta."""

    EVICTED = "evicted"
    RESTARTED = "restarted"
    BRANCH_SWITCHED = "branch_switched"
    TEMPLATE_REWROTE_HISTORY = "template_rewrote_history"
    SYSTEM_PROMPT_CHANGED = "system_prompt_changed"
    MODEL_CHANGED = "model_changed"
    EARLIER_FAILURE = "earlier_failure"
    SNAPSHOT_REFUSED = "snapshot_refused"
    REREAD_CHEAPER = "reread_cheaper"
    FORKED = "forked"
    # What it saved on disk is not there:
    UNSAVED = "unsaved"  # the server ended before it was written
    NOT_SAVED = "not_saved"  # it could not be written
    DISK_FULL = "disk_full"
    DISK_OFF = "disk_off"  # the disk budget is 0, or was
    DISK_BUDGET = "disk_budget"  # deleted for room
    CLOCK = "clock"  # deleted for room after the clock had jumped
    FILES_MISSING = "files_missing"  # somebody deleted the files
    CLEARED = "cleared"  # `keepwarm cache clear`
    UPGRADED = "upgraded"  # another version of Keepwarm wrote it


@dataclass(frozen=True, slots=True)
class ConversationSettings:
    """What a person may set for one conversation."""

    sampling: SamplingParams
    system_prompt: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a turn cost. `fed_tokens` were computed before the first new token, `delta_tokens` is what the turn added,
    `reused_tokens` came from the KV. Without a miss `fed_tokens == delta_tokens`, or less where some of it was read
    ahead, or the KV happened to hold more of this ledger than the path that was current before (after a switch of
    branches, or a stop)."""

    fed_tokens: int
    delta_tokens: int
    reused_tokens: int
    sampled_tokens: int
    tier_before: Tier
    ttft_s: float | None  # a restore included
    waited_s: float  # in line, before the engine started on it
    prefill_s: float
    decode_s: float
    saved_s: float  # estimated seconds a full read would have cost more
    miss_reason: MissReason | None = None
    miss_detail: str = ""  # a sentence for a person, "" without a miss
    restored_bytes: int = 0  # came from disk for this turn
    restore_s: float = 0.0  # what that took
    choice: str = ""  # a sentence: what restoring and reading were expected to take; "" when there was no choice
    drafted_tokens: int = 0  # guessed by prompt lookup
    accepted_tokens: int = 0  # of these, what the model said
    shared_tokens: int = 0  # of the reused: copied from another conversation of the same owner, `shared_from`
    shared_from: str = ""
    shared_title: str = ""  # its title now, "" when it was deleted; not stored
    ahead_tokens: int = 0  # of the reused: read while the message was typed, or while nobody waited

    @property
    def tokens_per_s(self) -> float | None:
        """Decode speed; None for fewer than two tokens."""
        if self.sampled_tokens < 2 or self.decode_s <= 0:
            return None
        return (self.sampled_tokens - 1) / self.decode_s


@dataclass(frozen=True, slots=True)
class MessageView:
    """One message on the current path. Siblings are numbered from 1. `note` is a sentence a person should see with it
    (why it stopped, what failed, what to do next), "" mostly. `is_stored` is False while it is kept in memory alone."""

    message_id: int
    role: str  # "user" | "assistant"
    text: str
    status: MessageStatus
    sibling_number: int
    sibling_count: int
    receipt: Receipt | None = None
    note: str = ""
    can_continue: bool = False
    is_stored: bool = True


@dataclass(frozen=True, slots=True)
class ConversationSummary:
    """One row of the conversation list."""

    conversation_id: str
    title: str
    updated_at: float  # seconds since the epoch
    tier: Tier
    is_running: bool
    kv_bytes: int
    disk_bytes: int = 0
    is_pinned: bool = False
    host_bytes: int = 0
    origin: Origin = Origin.PAGE


@dataclass(frozen=True, slots=True)
class ConversationView:
    """All a page needs to draw one conversation."""

    summary: ConversationSummary
    settings: ConversationSettings
    messages: tuple[MessageView, ...]
    ledger_tokens: int
    context_limit_tokens: int


class RunPhase(StrEnum):
    """Where a run is."""

    WAITING = "waiting"  # in line for room or for the engine
    READING = "reading"  # prefill
    ANSWERING = "answering"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run at one moment. `version` grows with every change, so a subscriber can wait for the next one."""

    version: int
    phase: RunPhase
    text: str
    queue_position: int = 0  # 1 = next, 0 = not waiting
    fed_tokens: int = 0
    total_tokens: int = 0  # to be read in this turn
    sampled_tokens: int = 0
    message: MessageView | None = None  # set when DONE: the committed answer


@dataclass(frozen=True, slots=True)
class CheckView:
    """What verifying a conversation's memory said, or how far it is. `sentence` begins small, to follow a title;
    `agrees` is None where nothing was found out."""

    is_running: bool
    agrees: bool | None
    sentence: str
    at: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """What one conversation's KV costs. `next_ttft_s` expects a 32-token message; `cold_ttft_s` is what the same turn
    would cost without the cache."""

    conversation_id: str
    title: str
    tier: Tier
    ledger_tokens: int
    kv_tokens: int
    used_bytes: int
    reserved_bytes: int
    next_ttft_s: float
    cold_ttft_s: float
    last_used_at: float
    is_running: bool
    disk_tokens: int = 0  # how far its longest saved branch reaches
    disk_bytes: int = 0  # of all its branches; a file that two conversations share counts in both
    is_pinned: bool = False  # its KV is never evicted from the device
    host_tokens: int = 0  # held in host memory
    host_bytes: int = 0
    check: CheckView | None = None  # the newest verification since the server started


@dataclass(frozen=True, slots=True)
class MemoryEvent:
    """One line of the memory log, a sentence: "Dropped the KV of B to make room: 84.0 MiB"."""

    at: float
    text: str
    conversation_id: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes that each tier held at one moment, all users' together."""

    at: float  # seconds since the epoch
    device_bytes: int
    host_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryView:
    """The memory panel. Rows and events are the owner's; the totals are the machine's."""

    rows: tuple[MemoryRow, ...]
    device_used_bytes: int
    device_reserved_bytes: int
    device_budget_bytes: int
    saved_s_total: float  # over all the owner's receipts
    reused_tokens_total: int
    events: tuple[MemoryEvent, ...] = field(default=())
    disk_used_bytes: int = 0
    disk_budget_bytes: int = 0  # 0: nothing is saved, and what was saved before is not read
    disk_other_bytes: int = 0  # of the used: saved by other models and settings
    host_used_bytes: int = 0
    host_reserved_bytes: int = 0  # promised to KVs that are being moved there
    host_budget_bytes: int = 0  # 0: there is no host tier
    pinned_bytes: int = 0  # on the device, or to be there
    pin_limit_bytes: int = 0
    int8_drift: Int8Drift | None = None  # what host and disk keep is not exact, and this is what it costs
    history: tuple[Usage, ...] = field(default=())  # the last half hour, the oldest first
