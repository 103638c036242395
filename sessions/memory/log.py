"""What the memory log says, as sentences with the conversation's title; the numbers go to the counters."""

from __future__ import annotations

from sessions.counters import Counters
from sessions.memory.events import EventLog
from sessions.memory.memory_records import PLACES, Check, Dropped, Restored
from sessions.store.store import Store
from sessions.text import UNTITLED, mib, tokens
from sessions.types import Receipt, Tier


class MemoryLog:
    """Any thread."""

    def __init__(self, store: Store, events: EventLog, counters: Counters) -> None:
        self._store = store
        self._events = events
        self._counters = counters

    def dropped_for_room(self, dropped: Dropped) -> None:
        self._counters.moved(Tier.DEVICE, dropped.kept_on, dropped.freed_bytes, dropped.seconds)
        if dropped.is_copy:  # after every title: no line of the log
            return
        title = self._title(dropped.conversation_id)
        if dropped.kept_on is Tier.NONE:
            sentence = f"Forgot what {title} kept, to make room: {mib(dropped.freed_bytes)}"
        else:
            place = PLACES[dropped.kept_on]
            sentence = f"Moved {title} to {place} to make room: {mib(dropped.freed_bytes)}, {dropped.seconds:.2f} s"
        if unsaved := dropped.lost_tokens:
            sentence += f"; its {'last ' if dropped.kept_on is Tier.DISK else ''}{_unsaved(unsaved)}"
        self._events.add(dropped.owner_id, dropped.conversation_id, sentence)

    def written(self, size_bytes: int, seconds: float) -> None:
        """After every turn: no line of the log."""
        self._counters.written(size_bytes, seconds)

    def dropped(self, owner_id: str, conversation_id: str, freed_bytes: int) -> None:
        self._counters.moved(Tier.DEVICE, Tier.NONE, freed_bytes)
        sentence = f"Forgot what {self._title(conversation_id)} kept: {mib(freed_bytes)}"
        self._events.add(owner_id, conversation_id, sentence)

    def parked(self, owner_id: str, conversation_id: str, freed_bytes: int, tier: Tier) -> None:
        self._counters.moved(Tier.DEVICE, tier, freed_bytes)
        sentence = f"Moved {self._title(conversation_id)} to {PLACES[tier]}: {mib(freed_bytes)}"
        self._events.add(owner_id, conversation_id, sentence)

    def engine_rebuilt(self, owner_id: str, conversation_id: str) -> None:
        sentence = f"The model had stopped answering and was restarted: {self._title(conversation_id)} left the memory"
        self._events.add(owner_id, conversation_id, sentence)

    def pinned(self, owner_id: str, conversation_id: str, is_pinned: bool) -> None:
        verb = "Pinned" if is_pinned else "Unpinned"
        self._events.add(owner_id, conversation_id, f"{verb} {self._title(conversation_id)}")

    def unpinned_for_room(self, owner_id: str, conversation_id: str, limit_bytes: int) -> None:
        title = self._title(conversation_id)
        sentence = f"Unpinned {title}: only {mib(limit_bytes)} may be pinned under this start's budget"
        self._events.add(owner_id, conversation_id, sentence)

    def verified(self, owner_id: str, conversation_id: str, check: Check) -> None:
        said = f"true, {tokens(check.tokens)} read again" if check.agrees else check.sentence
        self._events.add(owner_id, conversation_id, f"Checked {self._title(conversation_id)}: {said}")

    def not_saved(self, owner_id: str, conversation_id: str, why: str) -> None:
        self._events.add(owner_id, conversation_id, f"{self._title(conversation_id)}: {why}")

    def evicted_unsaved(self, owner_id: str, conversation_id: str, lost_tokens: int) -> None:
        """Evicted while it was being saved, which then failed."""
        sentence = f"{self._title(conversation_id)} left the memory, and its last {_unsaved(lost_tokens)}"
        self._events.add(owner_id, conversation_id, sentence)

    def restored(self, owner_id: str, conversation_id: str, restored: Restored) -> None:
        title = self._title(conversation_id)
        lender = self._title(restored.lender_id) if restored.lender_id else ""
        if restored.refusal:
            sentence = f"Refused what was saved of {lender or title}: {restored.refusal}"
            self._events.add(owner_id, conversation_id, sentence)
        if restored.tokens:
            self._counters.moved(restored.tier, Tier.DEVICE, restored.size_bytes, restored.seconds)
            what = f"the beginning of {lender} for {title}" if lender else title
            size = mib(restored.size_bytes)
            sentence = f"Brought {what} back from {PLACES[restored.tier]}: {size}, {restored.seconds:.2f} s"
            self._events.add(owner_id, conversation_id, sentence)

    def receipt(self, owner_id: str, conversation_id: str, receipt: Receipt) -> None:
        self._counters.turn(receipt)
        if receipt.miss_reason is not None:
            again_tokens, title = receipt.fed_tokens - receipt.delta_tokens, self._title(conversation_id)
            what = f"{tokens(again_tokens)} of {title} again" if again_tokens > 0 else f"{title} again within an answer"
            self._events.add(owner_id, conversation_id, f"Read {what}")

    def _title(self, conversation_id: str) -> str:
        return self._store.title(conversation_id) or UNTITLED


def _unsaved(count: int) -> str:
    verb = "was not saved and is" if count == 1 else "were not saved and are"
    return f"{tokens(count)} {verb} read again next time"
