"""What happens to a message before it is sent: its tokens are counted and it is read ahead. Nothing is stored."""

from __future__ import annotations

from model_runtime.interface.chat import TurnTemplate
from sessions.background.idle_worker import IdleJob, IdleWorker, JobKind
from sessions.config import SessionConfig
from sessions.store.store import Store
from sessions.text import clean, refuse_if_huge
from sessions.turns.limits import TurnLimits
from sessions.turns.run import Run


class Drafts:
    """Methods that take an owner raise `ConversationNotFound` for another owner's conversation. Any thread."""

    def __init__(
        self, store: Store, template: TurnTemplate, limits: TurnLimits, idle_worker: IdleWorker, config: SessionConfig
    ) -> None:
        self._store = store
        self._template = template
        self._limits = limits
        self._idle_worker = idle_worker
        self._config = config

    def count_tokens(self, owner_id: str, conversation_id: str, draft: str) -> tuple[int, int]:
        """The tokens of a draft, and the most tokens that a message may have in this conversation. Raises
        `MessageRefused` for a huge draft."""
        conversation = self._store.conversation(owner_id, conversation_id)
        draft = clean(draft)
        refuse_if_huge(draft, self._config.max_message_bytes)
        system_prompt = conversation.settings.system_prompt
        template = self._template.with_variables(conversation.settings.template_variables)
        if conversation.leaf_id is None:
            frame_tokens = len(template.first_turn(system_prompt, ""))
        else:
            frame_tokens = conversation.ledger_tokens + len(template.next_turn(False, "", system_prompt))
        return self._template.count(draft) if draft else 0, self._limits.message_tokens(frame_tokens)

    def read_ahead(self, owner_id: str, conversation_id: str, draft: str) -> None:
        """Queues a draft for reading while the engine is idle: first what further typing will not change, and the rest
        once the draft has been unchanged for a moment. "" forgets an earlier draft. Raises `MessageRefused` for a huge
        draft."""
        self._store.conversation(owner_id, conversation_id)
        draft = clean(draft)
        refuse_if_huge(draft, self._config.max_message_bytes)
        if self._config.read_ahead:
            self._idle_worker.put(IdleJob(JobKind.DRAFT, owner_id, conversation_id, draft))

    def after_answer(self, run: Run) -> None:
        """Queues reading what the next turn begins with, and asking the model for a first title."""
        if self._config.read_ahead:
            self._idle_worker.put(IdleJob(JobKind.TURN_START, run.plan.owner_id, run.conversation_id))
        if self._config.model_titles:
            self._idle_worker.put(IdleJob(JobKind.TITLE, run.plan.owner_id, run.conversation_id))

    def forget(self, conversation_id: str) -> None:
        """Drops a draft: it was sent, or its conversation is deleted."""
        self._idle_worker.forget(conversation_id)
