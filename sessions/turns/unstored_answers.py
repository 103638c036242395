"""Ends of answers that could not be stored, for example because the disk is full: kept in memory and stored as soon as
possible, with their ids and receipts unchanged.

No turn begins while one is kept (`store_all` is asked first), so there are never more of them than there were answers
at work, and no turn builds on a ledger that is not in the database.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from model_runtime.interface.events import FinishReason
from sessions.errors import StoreError
from sessions.store.tables.losses import Cause
from sessions.store.tables.messages import MessageTable
from sessions.turns.run import Run
from sessions.types import MessageStatus, MessageView, Receipt

log = logging.getLogger(__name__)

TRY_EVERY_S = 0.5
PATIENCE_S = 1.0  # for another program that has the database locked


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """All that is stored when an answer ends. `token_ids` are all of its node's; `unsaved_cause` says why its rows are
    not on disk yet."""

    text: str
    token_ids: tuple[int, ...]
    status: MessageStatus
    reason: FinishReason
    note: str
    receipt: Receipt | None
    history_hash: str = ""
    unsaved_cause: Cause = Cause.UNSAVED


class UnstoredAnswers:
    """Any thread."""

    def __init__(self, messages: MessageTable, clock: Callable[[], float] = time.monotonic) -> None:
        self._messages = messages
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[int, tuple[Run, AnswerEnd]] = {}  # by message
        self._tried_at = -TRY_EVERY_S
        self._trouble = ""

    @property
    def count(self) -> int:
        return len(self._kept)

    def store(self, run: Run, end: AnswerEnd) -> MessageView:
        """The answer as the run ends with it: stored, or kept for later and saying so."""
        try:
            self._write(run, end)
        except StoreError as error:
            log.error("answer_kept message=%d", run.message_id)
            with self._lock:
                self._trouble = str(error)
                self._tried_at = self._clock()
                self._kept[run.message_id] = (run, end)
                run.is_kept = True
            note = f"{end.note} Not stored yet: it is kept in memory until it can be. {error}".strip()
            return replace(
                self._view(run, end),
                text=end.text,
                status=end.status,
                note=note,
                receipt=end.receipt,
                can_continue=False,
                is_stored=False,
            )
        return self._view(run, end)

    def end_of(self, message_id: int) -> AnswerEnd | None:
        """None for an answer that is not kept here: it is stored, or being written."""
        with self._lock:
            _, end = self._kept.get(message_id, (None, None))
            return end

    def store_all(self, at_once: bool = False) -> None:
        """Tries it again, at most every `TRY_EVERY_S`. Raises `StoreError` when something is still kept."""
        if not self._kept:
            return
        with self._lock:
            if not at_once and self._clock() - self._tried_at < TRY_EVERY_S:
                raise StoreError(self._trouble)
            try:
                for message_id, (run, end) in list(self._kept.items()):
                    self._write(run, end)
                    del self._kept[message_id]
                    run.is_kept = False
                    log.warning("kept_answer_stored message=%d", message_id)
            except StoreError as error:
                self._trouble = str(error)
                raise
            finally:
                self._tried_at = self._clock()

    def forget(self, conversation_id: str) -> None:
        """It was deleted."""
        with self._lock:
            for message_id, (run, _) in list(self._kept.items()):
                if run.conversation_id == conversation_id:
                    del self._kept[message_id]
                    run.is_kept = False

    def _write(self, run: Run, end: AnswerEnd) -> None:
        self._messages.finish_answer(
            run.message_id,
            end.text,
            end.token_ids,
            end.status,
            end.reason,
            end.note,
            end.receipt,
            end.history_hash,
            end.unsaved_cause,
            patience_s=PATIENCE_S,
        )

    def _view(self, run: Run, end: AnswerEnd) -> MessageView:
        """As the database has it, where that can be read. Raises `ConversationNotFound` when it was deleted."""
        try:
            return self._messages.view(run.message_id)
        except StoreError:
            log.warning("message_not_read message=%d", run.message_id)
            return MessageView(run.message_id, "assistant", end.text, end.status, 1, 1, end.receipt, end.note)
