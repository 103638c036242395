"""The types that `app` sees: frozen views, created on every call."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from model_runtime.interface.findings import Int8Drift
from model_runtime.interface.sampling_params import SamplingParams
from sessions.text_search import Excerpt

SYSTEM_ROLES = ("system", "developer")  # of what is said to the model about how it answers


class MessageStatus(StrEnum):
    """State of one message. A user's message is always COMPLETE."""

    RUNNING = "running"
    COMPLETE = "complete"
    STOPPED = "stopped"  # a person or a client stopped it; the text so far is kept
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # it was running when the server stopped


class Origin(StrEnum):
    """How a conversation began and is used. One that only a program knows is not kept for ever."""

    PAGE = "page"  # a person has written in it
    PROGRAM = "program"  # an API client named or continued it
    ONE_OFF = "one off"  # a single request without a key so far: for a title, a tag, or a conversation's first turn


class Tier(StrEnum):
    """Where a conversation's KV is. `NONE` means nowhere: its next turn reads the ledger again."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    ENGINE = "engine"  # in a remote engine, which may drop it at any time
    NONE = "cold"


class MissReason(StrEnum):
    """Why a turn fed more than its delta."""

    EVICTED = "evicted"
    RESTARTED = "restarted"
    BRANCH_SWITCHED = "branch_switched"
    TEMPLATE_REWROTE_HISTORY = "template_rewrote_history"
    SYSTEM_PROMPT_CHANGED = "system_prompt_changed"
    TEMPLATE_VARIABLES_CHANGED = "template_variables_changed"
    MODEL_CHANGED = "model_changed"
    EARLIER_FAILURE = "earlier_failure"
    SNAPSHOT_REFUSED = "snapshot_refused"
    REREAD_CHEAPER = "reread_cheaper"
    FORKED = "forked"
    ENGINE_HELD_LESS = "engine_held_less"  # a remote engine, which does not say why
    ROPE_CHANGED = "rope_changed"  # the model has other rotary frequencies for conversations of this length
    # The saved memory is not on disk:
    UNSAVED = "unsaved"  # the server stopped before it was written
    NOT_SAVED = "not_saved"  # it could not be written
    DISK_FULL = "disk_full"
    DISK_OFF = "disk_off"  # the disk budget is 0, or was
    DISK_BUDGET = "disk_budget"  # deleted to make room
    CLOCK = "clock"  # deleted to make room after the clock had jumped
    FILES_MISSING = "files_missing"  # something other than Keepwarm deleted the files
    CLEARED = "cleared"  # `keepwarm cache clear`
    MOVED = "moved"  # the conversation came from another server without it
    UPGRADED = "upgraded"  # another version of Keepwarm wrote it
    HISTORY_CHANGED = "history_changed"  # a client sent a history that differs from the one that is kept


@dataclass(frozen=True, slots=True)
class ConversationSettings:
    """What a person or a program may set for one conversation. `template_variables` are values of the chat template's
    own variables: a JSON object, "" for none."""

    sampling: SamplingParams
    system_prompt: str = ""
    template_variables: str = ""


class Section(StrEnum):
    """A part of what a prompt consists of, in words for a person."""

    SYSTEM = "system text"
    TOOLS = "tools"
    MESSAGE = "message"
    PROMPT = "prompt"  # one without a chat
    TEMPLATE = "what the chat template writes"


@dataclass(frozen=True, slots=True)
class Parting:
    """The place where a history parts from the one that is kept. The ledgers are equal up to the position `token` of
    `of_tokens`. `name` is a tool's, "" where it concerns several; `number` is a message's, counted from 1 without the
    system text, `role` says whose. `before` and `after` are a few words of the kept text and of the new one, "" for
    nothing. `again_tokens` stand in both, and were read again all the same. `kept_id` is the conversation with the kept
    history, "" for the receipt's own; once that is deleted, `is_kept_gone`, and its words are no longer told."""

    token: int
    of_tokens: int
    section: Section
    before: str = ""
    after: str = ""
    name: str = ""
    number: int = 0
    role: str = ""
    is_date: bool = False
    again_tokens: int = 0
    kept_id: str = ""
    is_kept_gone: bool = False  # not stored

    @property
    def place(self) -> str:
        """ "token 14 of 12,480, in the system text: `2026-11-28` / `2026-11-29`, a date"."""
        what = f"the {self.section.value}" if self.section is not Section.TEMPLATE else self.section.value
        if self.section is Section.MESSAGE:
            what = f"message {self.number:,} ({self.role})"
        elif self.name:
            what = f"the definition of the tool `{self.name}`"
        words = " / ".join(f"`{said}`" if said else "nothing" for said in (self.before, self.after))
        shown = f": {words}" if (self.before or self.after) and not self.is_kept_gone else ""
        date = ", a date" if self.is_date else ""
        return f"token {self.token + 1:,} of {self.of_tokens:,}, in {what}{shown}{date}"

    @property
    def sentence(self) -> str:
        """Why a turn whose client changed the history read something again."""
        again = f"{self.again_tokens:,} token{' was' if self.again_tokens == 1 else 's were'} read again"
        return f"The history differs from the one that is kept at {self.place}, so {again}."


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a turn cost. `fed_tokens` were computed before the first new token, `delta_tokens` is what the turn added,
    `reused_tokens` came from the KV. Without a miss `fed_tokens == delta_tokens`, or less if some of the delta was read
    ahead, or if the KV held more of this ledger than the previously current path (after switching branches, or a
    stop). `is_reuse_reported` is False where a remote engine did not say what it reused: fed and reused are then 0, and
    mean nothing."""

    fed_tokens: int
    delta_tokens: int
    reused_tokens: int
    sampled_tokens: int
    tier_before: Tier
    ttft_s: float | None  # with the time of a restore
    waited_s: float  # before the engine began, in the queue or for another turn's reading
    prefill_s: float
    decode_s: float
    saved_s: float  # estimated seconds that reading everything would have taken longer
    miss_reason: MissReason | None = None
    miss_detail: str = ""  # a sentence for a person, "" without a miss; of a changed history the parting's, not stored
    restored_bytes: int = 0  # restored from a lower tier for this turn
    restore_s: float = 0.0  # the time that took
    choice: str = ""  # a sentence: the expected times of restoring and reading; "" if there was no choice
    drafted_tokens: int = 0  # guessed by prompt lookup
    accepted_tokens: int = 0  # of these, the ones that the model accepted
    shared_tokens: int = 0  # of the reused: copied from `shared_from`, another conversation of the same owner
    shared_from: str = ""
    shared_title: str = ""  # its title now, "" when it was deleted; not stored
    ahead_tokens: int = 0  # of the reused: read while the message was typed, or while no run waited
    is_reuse_reported: bool = True
    shared_wait_s: float = 0.0  # of the wait: while another turn of the owner read what this one begins with
    parting: Parting | None = None  # where the history parts from the one that is kept, if that cost anything

    @property
    def tokens_per_s(self) -> float | None:
        """The decode speed; None for fewer than two tokens."""
        if self.sampled_tokens < 2 or self.decode_s <= 0:
            return None
        return (self.sampled_tokens - 1) / self.decode_s


@dataclass(frozen=True, slots=True)
class MessageView:
    """One message on the current path. Siblings are numbered from 1. `note` is a sentence that a person should see with
    it (why it stopped, what failed, what to do next), usually "". `is_stored` is False while it is only in memory. An
    answer that was gone on from keeps its `first_part_id`, which is its own id if it never was. `system_text` is what a
    program said as the system together with a person's message, whose `text` is without it."""

    message_id: int
    role: str  # "user" | "assistant"
    text: str
    status: MessageStatus
    sibling_number: int
    sibling_count: int
    receipt: Receipt | None = None
    note: str = ""
    can_continue: bool = False
    first_part_id: int = 0
    is_stored: bool = True
    system_text: str = ""


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
    found: Excerpt | None = None  # of a search: its place in the messages


@dataclass(frozen=True, slots=True)
class ConversationView:
    """What a page needs to show one conversation. `waiting` are the last of the messages that a program added behind
    the others and that have no answer yet: (whose it is, its text). There are `waiting_count`."""

    summary: ConversationSummary
    settings: ConversationSettings
    messages: tuple[MessageView, ...]
    ledger_tokens: int
    context_limit_tokens: int
    waiting: tuple[tuple[str, str], ...] = ()
    waiting_count: int = 0


class RunPhase(StrEnum):
    """The phase of a run."""

    WAITING = "waiting"  # for room on the device, or for the engine
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
    is_sharing: bool = False  # waiting while another turn reads what it begins with
    fed_tokens: int = 0
    total_tokens: int = 0  # that this turn has to read
    sampled_tokens: int = 0
    message: MessageView | None = None  # set when DONE: the committed answer


@dataclass(frozen=True, slots=True)
class CheckView:
    """The result of verifying a conversation's memory, or its progress. `sentence` begins in lower case, to follow a
    title. `agrees` is None if nothing could be compared."""

    is_running: bool
    agrees: bool | None
    sentence: str
    at: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class BranchMemory:
    """What each tier holds of a conversation's current branch. A segment of which the branch uses only the beginning
    counts with that part."""

    device_tokens: int
    device_bytes: int
    host_tokens: int = 0
    host_bytes: int = 0
    disk_tokens: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class EngineHit:
    """What a remote engine reported last: of `kept_tokens` that earlier turns had left there it reused so many.
    `is_likely`: whether a turn now would find its rows, None where nothing like it was seen."""

    at: float  # seconds since the epoch
    kept_tokens: int
    reused_tokens: int
    is_likely: bool | None = None


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """What one conversation's KV costs. Tokens and bytes of a tier are those of all its branches together; what two
    branches have in common counts once. `branch` are those of the current branch alone, None where they were not asked
    for. `next_ttft_s` is for a message of 32 tokens; `cold_ttft_s` is for the same turn without a KV."""

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
    disk_tokens: int = 0
    disk_bytes: int = 0  # a file that two conversations share counts for both
    is_pinned: bool = False  # its KV is never evicted from the device
    host_tokens: int = 0
    host_bytes: int = 0
    branch: BranchMemory | None = None
    engine_tokens: int = 0  # that a remote engine had after the last answer, and may have dropped since
    engine_hit: EngineHit | None = None  # what it reported last
    check: CheckView | None = None  # the newest verification since the server started
    updated_at: float = 0.0  # of the conversation, as in its summary


@dataclass(frozen=True, slots=True)
class MemoryEvent:
    """One line of the memory log, a sentence: "Forgot what B kept, to make room: 84.0 MiB"."""

    at: float
    text: str
    conversation_id: str


@dataclass(frozen=True, slots=True)
class Usage:
    """The bytes that each tier held at one moment, for all users together."""

    at: float  # seconds since the epoch
    device_bytes: int
    host_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryView:
    """What the memory panel shows. Rows, events and savings are the owner's; the other totals are the machine's."""

    rows: tuple[MemoryRow, ...]
    device_used_bytes: int
    device_reserved_bytes: int
    device_budget_bytes: int
    saved_s_total: float  # of all the owner's receipts
    reused_tokens_total: int
    events: tuple[MemoryEvent, ...] = field(default=())
    disk_used_bytes: int = 0
    disk_budget_bytes: int = 0  # 0: nothing is saved, and what was saved before is not read
    disk_other_bytes: int = 0  # of the used: saved by other models and settings
    host_used_bytes: int = 0
    host_reserved_bytes: int = 0  # for KVs that are being moved there
    host_budget_bytes: int = 0  # 0: there is no host tier
    pinned_bytes: int = 0  # of pinned KVs, on the device or to be restored there
    pin_limit_bytes: int = 0
    int8_drift: Int8Drift | None = None  # how exact saved KVs are, if they are not exact copies
    keeps_kv: bool = True  # False: a remote engine has the KVs, and there are no tiers here
    history: tuple[Usage, ...] = field(default=())  # the last half hour, the oldest first
