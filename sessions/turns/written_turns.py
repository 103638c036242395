"""Turns of a conversation's current path: what a person writes, writes again, or wants answered again or further."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from model_runtime.interface.chat import ChatMessage, TurnTemplate
from model_runtime.interface.protocol import Engine
from sessions.config import SessionConfig
from sessions.errors import MessageRefused
from sessions.ledger.ledger import Turn, continued_answer, fold, new_answer, user_turn
from sessions.ledger.resent_history import edited
from sessions.store.records import Conversation, Node
from sessions.store.store import Store
from sessions.text import clean_message
from sessions.turns.run import Run
from sessions.turns.turn import NewTurn, Turns


class WrittenTurns:
    """Every method names the owner first and raises `ConversationNotFound` for another owner's id before it looks at
    anything else. `forget_draft` is called with the id of a conversation whose draft became a message."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        template: TurnTemplate,
        config: SessionConfig,
        turns: Turns,
        forget_draft: Callable[[str], None],
    ) -> None:
        self._store = store
        self._engine = engine
        self._template = template
        self._config = config
        self._turns = turns
        self._forget_draft = forget_draft

    def send(self, owner_id: str, conversation_id: str, text: str) -> Run:
        """Commits the user's message and starts its answer. Nothing is stored when a `SessionError` is raised.

        The ids come from `ledger.user_turn`; `Turns.begin` shows the rest in order.
        """
        text = self._checked(owner_id, conversation_id, text)
        with self._claim(owner_id, conversation_id) as conversation:
            path = self._store.messages.path(conversation.leaf_id)
            run = self._begin_user_turn(conversation, path, path, text)
            self._forget_draft(conversation_id)
            return run

    def edit(self, owner_id: str, conversation_id: str, message_id: int, text: str) -> Run:
        """Another version of any user message, beside it, with a new answer below. What a program said there as the
        system stays."""
        text = self._checked(owner_id, conversation_id, text)
        with self._claim(owner_id, conversation_id) as conversation:
            self._store.messages.parent_of(conversation_id, message_id, "user")
            *path, replaced = self._store.messages.path(message_id)
            current = self._store.messages.path(conversation.leaf_id)
            return self._begin_user_turn(conversation, path, current, text, replaced.messages)

    def regenerate(self, owner_id: str, conversation_id: str) -> Run:
        """Another answer to the last message, beside the old one."""
        with self._claim(owner_id, conversation_id) as conversation:
            path = self._store.messages.path(conversation.leaf_id)
            if not path:
                raise MessageRefused("There is no answer to regenerate yet. Write a message first.")
            turn = new_answer(
                path[:-1],
                fold(path),
                conversation.settings.system_prompt,
                self._template_of(conversation),
                self._engine.info.tokenizer_fingerprint,
            )
            return self._begin(conversation, path[:-1], turn)

    def continue_answer(self, owner_id: str, conversation_id: str) -> Run:
        """Goes on from a stopped, interrupted or length-limited answer. Its ids are kept as they are: the new
        node begins with them, and takes the place of the old one among the versions."""
        with self._claim(owner_id, conversation_id) as conversation:
            path = self._store.messages.path(conversation.leaf_id)
            if not path or not path[-1].can_continue:
                raise MessageRefused("The last answer is complete; there is nothing to continue.")
            template = self._template_of(conversation)
            turn = continued_answer(path, fold(path), template, self._engine.info.tokenizer_fingerprint)
            prefix = turn.ledger[len(turn.ledger) - turn.answer_prefix_tokens :]
            # Half a character at the end is not shown: the engine gives it out whole with its next token.
            prefix_text = self._template.plain(prefix).rstrip("\ufffd")
            return self._begin(conversation, path[:-1], turn, prefix_text=prefix_text, continued_id=path[-1].message_id)

    def switch_sibling(self, owner_id: str, conversation_id: str, message_id: int, step: int) -> None:
        """Shows the previous (-1) or next (+1) version of a message; below it what was used last."""
        with self._claim(owner_id, conversation_id):
            self._store.messages.switch(conversation_id, message_id, step)

    def _checked(self, owner_id: str, conversation_id: str, text: str) -> str:
        """Before the claim: what can be refused by itself waits for nobody."""
        self._store.conversation(owner_id, conversation_id)
        text = clean_message(text, self._config.max_message_bytes)
        self._turns.limits.refuse_hopeless(text)
        return text

    @contextlib.contextmanager
    def _claim(self, owner_id: str, conversation_id: str) -> Iterator[Conversation]:
        """The conversation, whose path a person changes, as it is once nobody else changes it. Raises `MessageRefused`
        where messages wait at its end, which such a change would come in front of."""
        self._store.conversation(owner_id, conversation_id)
        with self._turns.claim(conversation_id):
            if self._store.added_items.has_any(conversation_id):
                raise MessageRefused(
                    "A program added messages here that have no answer yet, so only a program can go on. Begin a new "
                    "conversation, or ask the program to."
                )
            yield self._store.conversation(owner_id, conversation_id)

    def _begin_user_turn(
        self,
        conversation: Conversation,
        path: Sequence[Node],
        current: Sequence[Node],
        text: str,
        replaced: Sequence[ChatMessage] = (),
    ) -> Run:
        asked = edited(replaced, text)
        turn = user_turn(
            path,
            asked.input,
            fold(current),
            conversation.settings.system_prompt,
            self._template_of(conversation),
            self._engine.info.tokenizer_fingerprint,
        )
        return self._begin(conversation, path, turn, asked.text, user_parts=asked.parts)

    def _begin(
        self,
        conversation: Conversation,
        path: Sequence[Node],
        turn: Turn,
        user_text: str | None = None,
        prefix_text: str = "",
        continued_id: int | None = None,
        user_parts: str = "",
    ) -> Run:
        settings = conversation.settings
        new = NewTurn(
            conversation,
            path,
            turn,
            settings.sampling,
            user_text,
            prefix_text,
            is_thought_open=self._template_of(conversation).opens_thought(settings.system_prompt),
            continued_id=continued_id,
            user_parts=user_parts,
        )
        return self._turns.begin(new)

    def _template_of(self, conversation: Conversation) -> TurnTemplate:
        return self._template.with_variables(conversation.settings.template_variables)
