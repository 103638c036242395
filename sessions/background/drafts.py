"""A message before it is sent, and what can be done for the next one: counted, read ahead, never stored."""

from __future__ import annotations

from model_runtime.interface.chat import TurnTemplate
from sessions.background.idle_worker import IdleJob, IdleWorker, Kind
from sessions.config import SessionConfig
from sessions.store.store import Store
from sessions.text import clean, refuse_if_huge
from sessions.turns.limits import TurnLimits
from sessions.turns.run import Run


class Drafts:
    """Methods that take an owner raise `ConversationNotFound` for a stranger's id. Any thread."""

    def __init__(
        self, store: Store, template: TurnTemplate, limits: TurnLimits, idle: IdleWorker, config: SessionConfig
    ) -> None:
        self._store = store
        self._template = template
        self._limits = limits
        self._idle_worker = idle
        self._config = config

    def count_tokens(self, owner_id: str, conversation_id: str, draft: str) -> tuple[int, int]:
        """Tokens of a draft, and how many tokens a message may have here at most. Raises `MessageRefused` when huge."""
        conversation = self._store.conversation(owner_id, conversation_id)
        draft = clean(draft)
        refuse_if_huge(draft, self._config.max_message_bytes)
        if conversation.leaf_id is None:
            frame_tokens = len(self._template.first_turn(conversation.settings.system_prompt, ""))
        else:
            frame_tokens = conversation.ledger_tokens + len(self._template.next_turn(False, ""))
        return self._template.count(draft) if draft else 0, self._limits.message_tokens(frame_tokens)

    def read_ahead(self, owner_id: str, conversation_id: str, draft: str) -> None:
        """Has the model read what will not change of it, once nobody waits, and the rest once it has been quiet for a
        moment. "" forgets an earlier draft. Raises `MessageRefused` when huge."""
        self._store.conversation(owner_id, conversation_id)
        draft = clean(draft)
        refuse_if_huge(draft, self._config.max_message_bytes)
        if self._config.read_ahead:
            self._idle_worker.put(IdleJob(Kind.DRAFT, owner_id, conversation_id, draft))

    def after_answer(self, run: Run) -> None:
        """What the next turn begins with is read, and a first title looked for, in the next gap."""
        if self._config.read_ahead:
            self._idle_worker.put(IdleJob(Kind.GLUE, run.plan.owner_id, run.conversation_id))
        if self._config.model_titles:
            self._idle_worker.put(IdleJob(Kind.TITLE, run.plan.owner_id, run.conversation_id))

    def forget(self, conversation_id: str) -> None:
        """It was sent, or the conversation goes."""
        self._idle_worker.forget(conversation_id)
