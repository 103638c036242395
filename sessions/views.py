"""What the page and the API show: the database, the runs and the memory, seen at one moment. Changes nothing."""

from __future__ import annotations

from dataclasses import replace

from model_runtime.interface.protocol import Engine
from sessions.config import SessionConfig
from sessions.ledger.ledger import fold
from sessions.memory.memory import Memory
from sessions.memory.memory_records import Holding
from sessions.store.records import Conversation
from sessions.store.store import Store
from sessions.store.tables.messages import INTERRUPTED_NOTE
from sessions.store.tables.segments import Saved
from sessions.text import UNTITLED
from sessions.turns.run import Run, RunTable
from sessions.types import (
    CheckView,
    ConversationSummary,
    ConversationView,
    MemoryRow,
    MemoryView,
    MessageStatus,
    MessageView,
    Tier,
)
from sessions.verify.verifier import Verifier

EXPECTED_MESSAGE_TOKENS = 32
SHOWN_WAITING = 30
_NOTHING = Holding(tokens=0, used_bytes=0, reserved_bytes=0, last_used_at=0.0)
_NOT_SAVED = Saved(tokens=0, size_bytes=0, all_tokens=0)


class Views:
    """Every method takes the owner first and shows only that owner's rows. Safe from any thread."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        memory: Memory,
        verifier: Verifier,
        runs: RunTable,
        config: SessionConfig,
    ) -> None:
        self._store = store
        self._engine = engine
        self._memory = memory
        self._verifier = verifier
        self._runs = runs
        self._config = config

    def summaries(self, owner_id: str, search: str, most: int | None = None) -> list[ConversationSummary]:
        holdings, running = self._memory.holdings(), self._runs.active_by_conversation()
        saved, in_host = self._memory.saved(owner_id), self._memory.host.by_conversation()
        return [
            _summary(
                conversation,
                holdings.get(conversation.conversation_id, _NOTHING),
                in_host.get(conversation.conversation_id, _NOT_SAVED),
                saved.get(conversation.conversation_id, _NOT_SAVED),
                conversation.conversation_id in running,
                self._engine.info.keeps_kv,
            )
            for conversation in self._store.conversations(owner_id, search, most)
        ]

    def list_version(self) -> int:
        """Changes whenever `summaries` may, for any owner. Cheap."""
        held = frozenset((one, holding.tokens > 0) for one, holding in self._memory.holdings().items())
        running, in_host = frozenset(self._runs.active_by_conversation()), frozenset(self._memory.host.conversations())
        return hash((self._store.database.writes, held, running, in_host))

    def conversation(self, owner_id: str, conversation_id: str) -> ConversationView:
        conversation = self._store.conversation(owner_id, conversation_id)
        messages = self._store.messages.views(conversation.leaf_id)
        if messages:
            messages = (
                *(replace(m, can_continue=False) for m in messages[:-1]),
                self._last(conversation, messages[-1]),
            )
        holding = self._memory.holdings().get(conversation_id, _NOTHING)
        in_host, saved = self._memory.saved_of(conversation_id)
        run = self._runs.active(conversation_id)
        return ConversationView(
            summary=_summary(conversation, holding, in_host, saved, run is not None, self._engine.info.keeps_kv),
            settings=conversation.settings,
            messages=messages,
            ledger_tokens=_ledger_tokens(conversation, run),
            context_limit_tokens=self._engine.info.context_limit_tokens,
            waiting=tuple(item.said for item in self._store.added_items.last(conversation_id, SHOWN_WAITING)),
            waiting_count=self._store.added_items.count(conversation_id),
        )

    def memory(self, owner_id: str, most_rows: int | None = None) -> MemoryView:
        """With the memory of the `most_rows` conversations used last (None: of all)."""
        holdings, running = self._memory.holdings(), self._runs.active_by_conversation()
        totals, saved = self._store.totals(owner_id), self._memory.saved(owner_id)
        host, in_host, checks = self._memory.host, self._memory.host.by_conversation(), self._verifier.views()
        return MemoryView(
            rows=tuple(
                self._row(
                    conversation,
                    holdings.get(conversation.conversation_id, _NOTHING),
                    in_host.get(conversation.conversation_id, _NOT_SAVED),
                    saved.get(conversation.conversation_id, _NOT_SAVED),
                    running.get(conversation.conversation_id),
                    checks.get(conversation.conversation_id),
                )
                for conversation in (self._store.conversations(owner_id, most=most_rows) if most_rows != 0 else ())
            ),
            device_used_bytes=sum(holding.used_bytes for holding in holdings.values()),
            device_reserved_bytes=sum(holding.reserved_bytes for holding in holdings.values()),
            device_budget_bytes=self._config.device_kv_budget_bytes,
            saved_s_total=totals.saved_s,
            reused_tokens_total=totals.reused_tokens,
            events=self._memory.events.of(owner_id),
            disk_used_bytes=self._memory.disk_used_bytes,
            disk_budget_bytes=self._memory.disk_budget_bytes,
            disk_other_bytes=self._memory.disk_other_bytes,
            host_used_bytes=host.used_bytes,
            host_reserved_bytes=host.reserved_bytes,
            host_budget_bytes=host.budget_bytes,
            pinned_bytes=self._memory.pins.total_bytes,
            pin_limit_bytes=self._memory.pins.limit_bytes,
            int8_drift=self._engine.info.int8_drift,
            keeps_kv=self._engine.info.keeps_kv,
            history=self._memory.usage.samples(),
        )

    def memory_row(self, owner_id: str, conversation_id: str) -> MemoryRow:
        """The memory of one conversation, with that of its current branch. Raises `ConversationNotFound`."""
        conversation = self._store.conversation(owner_id, conversation_id)
        row = self._row(
            conversation,
            self._memory.holdings().get(conversation_id, _NOTHING),
            *self._memory.saved_of(conversation_id),
            self._runs.active(conversation_id),
            self._verifier.views().get(conversation_id),
        )
        return self.with_branch(owner_id, row)

    def with_branch(self, owner_id: str, row: MemoryRow) -> MemoryRow:
        """The row with the memory of the current branch apart, and the forecast that follows from it. While an answer
        is being written, all that the device holds is of its branch."""
        conversation = self._store.conversation(owner_id, row.conversation_id)
        ids = fold(self._store.messages.path(conversation.leaf_id))[:-1]
        branch = self._memory.of_branch(owner_id, row.conversation_id, ids)
        if row.is_running:
            branch = replace(branch, device_tokens=row.kv_tokens, device_bytes=row.used_bytes)
        if not self._engine.info.keeps_kv:  # nothing is known of branches there
            return replace(row, branch=branch)
        held_tokens = min(branch.device_tokens, row.ledger_tokens)
        saved_tokens = branch.host_tokens if row.tier is Tier.HOST else branch.disk_tokens
        return replace(row, branch=branch, next_ttft_s=self._next_ttft_s(row, held_tokens, saved_tokens))

    def _next_ttft_s(self, row: MemoryRow, held_tokens: int, saved_tokens: int) -> float:
        """The expected seconds to the first token of a turn of 32 tokens, if `held_tokens` of it are on the device and
        `saved_tokens` in the row's tier."""
        expected_tokens = row.ledger_tokens + EXPECTED_MESSAGE_TOKENS
        read_s = self._engine.estimate_read_s(held_tokens, expected_tokens)
        if row.tier in (Tier.HOST, Tier.DISK):
            kept_tokens = min(saved_tokens, row.ledger_tokens)
            return min(read_s, self._memory.restored_ttft_s(kept_tokens, expected_tokens, row.tier))
        return read_s

    def _row(
        self,
        conversation: Conversation,
        holding: Holding,
        in_host: Saved,
        saved: Saved,
        run: Run | None,
        check: CheckView | None,
    ) -> MemoryRow:
        ledger_tokens = _ledger_tokens(conversation, run)
        tier = _tier(holding, in_host, saved, self._engine.info.keeps_kv)
        row = MemoryRow(
            conversation_id=conversation.conversation_id,
            title=conversation.title or UNTITLED,
            tier=tier,
            ledger_tokens=ledger_tokens,
            kv_tokens=holding.tokens if self._engine.info.keeps_kv else 0,
            engine_tokens=0 if self._engine.info.keeps_kv else holding.tokens,
            engine_hit=self._memory.engine_hits.of(conversation.conversation_id),
            used_bytes=holding.used_bytes,
            reserved_bytes=holding.reserved_bytes,
            next_ttft_s=0.0,
            cold_ttft_s=self._engine.estimate_read_s(0, ledger_tokens + EXPECTED_MESSAGE_TOKENS),
            last_used_at=holding.last_used_at or conversation.updated_at,
            is_running=run is not None,
            disk_tokens=saved.all_tokens,
            disk_bytes=saved.size_bytes,
            is_pinned=conversation.is_pinned,
            host_tokens=in_host.all_tokens,
            host_bytes=in_host.size_bytes,
            check=check,
            updated_at=conversation.updated_at,
        )
        saved_tokens = (in_host if tier is Tier.HOST else saved).tokens
        return replace(row, next_ttft_s=self._next_ttft_s(row, min(holding.tokens, ledger_tokens), saved_tokens))

    def _last(self, conversation: Conversation, message: MessageView) -> MessageView:
        """The leaf: the only message that can be running, or be continued."""
        if message.status is MessageStatus.RUNNING:
            run = self._runs.find(conversation.conversation_id, message.message_id)
            if run is not None:
                snapshot = run.snapshot()
                return snapshot.message or replace(message, text=snapshot.text)
            if self._runs.is_claimed(conversation.conversation_id):  # committed a moment ago, its run comes next
                return message
            # Its end could not be stored. Now that the run is forgotten, it is what a restart would make of it.
            message = replace(message, status=MessageStatus.INTERRUPTED, note=INTERRUPTED_NOTE, can_continue=True)
        limit = self._engine.info.context_limit_tokens
        has_room = conversation.ledger_tokens + self._config.min_answer_tokens <= limit
        return replace(message, can_continue=message.can_continue and has_room)


def _tier(holding: Holding, in_host: Saved, saved: Saved, keeps_kv: bool) -> Tier:
    """Its owning tier. What is left of other branches in host memory does not hide a longer copy on disk. What this
    machine saved is of no use to a remote engine."""
    if not keeps_kv:
        return Tier.ENGINE if holding.tokens else Tier.NONE
    if holding.tokens:
        return Tier.DEVICE
    if in_host.tokens and in_host.tokens >= saved.tokens:
        return Tier.HOST
    return Tier.DISK if saved.tokens else Tier.NONE


def _summary(
    conversation: Conversation, holding: Holding, in_host: Saved, saved: Saved, is_running: bool, keeps_kv: bool
) -> ConversationSummary:
    return ConversationSummary(
        conversation_id=conversation.conversation_id,
        title=conversation.title or UNTITLED,
        updated_at=conversation.updated_at,
        tier=_tier(holding, in_host, saved, keeps_kv),
        is_running=is_running,
        kv_bytes=holding.used_bytes,
        disk_bytes=saved.size_bytes,
        is_pinned=conversation.is_pinned,
        host_bytes=in_host.size_bytes,
        origin=conversation.origin,
        found=conversation.found,
    )


def _ledger_tokens(conversation: Conversation, run: Run | None) -> int:
    """A running answer's ids reach the database once a second; the run knows better."""
    if run is None or run.message_id != conversation.leaf_id:
        return conversation.ledger_tokens
    return len(run.plan.turn.ledger) + run.snapshot().sampled_tokens
