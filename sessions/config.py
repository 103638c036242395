"""The settings of a `SessionManager`. Frozen, and checked on creation."""

from __future__ import annotations

from dataclasses import dataclass

from model_runtime.interface.require import require

MIB = 1024 * 1024
DAY_S = 24 * 3600.0
KEEP_UNNAMED_S = 30 * DAY_S
DISK_SHARE = 0.2  # of the free disk, for saved KVs, unless a budget is given
MAX_DEFAULT_DISK_BYTES = 8 * 1024 * MIB


def default_disk_kv_budget_bytes(free_disk_bytes: int) -> int:
    """A fifth of the free disk, at most 8 GiB."""
    return min(MAX_DEFAULT_DISK_BYTES, int(free_disk_bytes * DISK_SHARE))


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Raises `ValueError` with a sentence for a person when a value is out of range."""

    device_kv_budget_bytes: int
    checkpoint_interval_s: float = 1.0  # a crash loses at most this much of a running answer
    finished_run_keep_s: float = 60.0  # how long `RunTable.find` still finds a finished run
    event_log_length: int = 50  # lines of the memory log kept per owner
    max_message_bytes: int = 4 * MIB  # refused before tokenising
    min_answer_tokens: int = 16  # a turn that leaves less room than this is refused
    close_timeout_s: float = 2.0  # how long `close` waits for the engine to end running answers
    disk_kv_budget_bytes: int | None = None  # None: chosen from the free disk at start-up; 0: nothing is saved
    host_kv_budget_bytes: int = 0  # 0: no host tier; on a CPU the device already is host memory
    disk_free_floor_bytes: int = 512 * MIB  # nothing is saved if less of the disk would stay free
    save_patience_s: float = 2.0  # how long a KV that is not saved yet is kept when room is needed
    usage_interval_s: float = 5.0  # between two points of the memory panel's plot
    flush_timeout_s: float = 5.0  # how long `close` waits for KVs that are not saved yet
    hang_after_s: float = 60.0  # a step that takes this much longer than ten times its expected time is a hang
    read_ahead: bool = True  # reads drafts, and what every next message begins with, while no run waits
    draft_quiet_s: float = 0.12  # a draft that was unchanged for this long is read to its end, as if it were sent
    keep_unnamed_s: float = KEEP_UNNAMED_S  # for conversations without a key, after their last turn; 0: for ever
    model_titles: bool = True  # the model finds a title after the first answer, while no run waits

    def __post_init__(self) -> None:
        require(
            self.device_kv_budget_bytes > 0,
            f"The device KV budget must be a positive number of bytes, not {self.device_kv_budget_bytes}.",
        )
        require(self.checkpoint_interval_s > 0, "The checkpoint interval must be longer than 0 seconds.")
        require(self.finished_run_keep_s >= 0, "Finished runs cannot be kept for less than 0 seconds.")
        require(self.event_log_length >= 0, "The event log cannot be shorter than 0 lines.")
        require(self.max_message_bytes > 0, "The largest message must be a positive number of bytes.")
        require(self.min_answer_tokens >= 1, "At least 1 token must be left for an answer.")
        require(self.close_timeout_s >= 0, "The time to close cannot be less than 0 seconds.")
        require(
            self.disk_kv_budget_bytes is None or self.disk_kv_budget_bytes >= 0,
            f"The disk KV budget must be 0 (nothing is saved) or more bytes, not {self.disk_kv_budget_bytes}.",
        )
        require(
            self.host_kv_budget_bytes >= 0,
            f"The host KV budget must be 0 (no host tier) or more bytes, not {self.host_kv_budget_bytes}.",
        )
        require(self.disk_free_floor_bytes >= 0, "The disk space to keep free cannot be less than 0 bytes.")
        require(self.save_patience_s >= 0, "The time to wait for a save cannot be less than 0 seconds.")
        require(self.usage_interval_s > 0, "The plot's points must be more than 0 seconds apart.")
        require(
            self.hang_after_s > 0, "The time after which the model counts as hanging must be longer than 0 seconds."
        )
        require(self.draft_quiet_s >= 0, "The time a draft must be unchanged cannot be less than 0 seconds.")
        require(self.keep_unnamed_s >= 0, "Conversations cannot be kept for less than 0 days.")
        require(self.flush_timeout_s >= 0, "The time to save at shutdown cannot be less than 0 seconds.")
