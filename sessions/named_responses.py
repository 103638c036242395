"""Answers and conversations that clients name by an id instead of resending the history: OpenAI's Responses API.

A name leads to a place in the tree, and the place to the messages that a client would resend for it. So such a request
takes the path of all others: it continues that very place, with the ids that were sampled.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from model_runtime.interface.chat import ChatMessage, TurnTemplate
from model_runtime.interface.events import FinishReason
from model_runtime.interface.protocol import Engine
from sessions.config import MIB
from sessions.errors import ConversationBusy, ConversationNotFound, MessageRefused
from sessions.ledger import system_items
from sessions.ledger.known_history import answer_of, messages_of
from sessions.ledger.system_items import NO_SYSTEM_ITEMS, SystemItems
from sessions.store import message_json
from sessions.store.records import Conversation, Node
from sessions.store.store import Store
from sessions.store.tables.added_items import AddedItem
from sessions.store.tables.responses import StoredResponse
from sessions.text import clean_exactly, mib, refuse_if_huge
from sessions.turns.run import Run, RunTable
from sessions.turns.turn import Turns
from sessions.types import ConversationSettings, MessageView

MOST_ADDED_ITEMS = 20_000  # of a conversation, as many as a request may have
MOST_ADDED_BYTES = 8 * MIB  # of their bodies, as large as a request may be


@dataclass(frozen=True, slots=True)
class KnownHistory:
    """`head` are messages of the system that belong to the history itself; those of each request come before them.
    `leaf_id` is the last message of a conversation that was read: None before its first, and
    where a response was named. `items` are those of the conversation, of which `missed` are on none of its messages."""

    head: tuple[ChatMessage, ...]
    messages: tuple[ChatMessage, ...]
    leaf_id: int | None = None
    items: SystemItems = NO_SYSTEM_ITEMS

    @property
    def missed(self) -> tuple[ChatMessage, ...]:
        return self.items.missing_in(self.messages)


@dataclass(frozen=True, slots=True)
class NamedResponse:
    """`body` is what was kept with it. `message` is the stored answer, `said` how its client got it: without what the
    request began it with. `prompt_tokens` were in front of it."""

    body: dict[str, Any]
    message: MessageView
    said: ChatMessage
    prompt_tokens: int
    finish_reason: FinishReason | None


class NamedResponses:
    """Any thread. Raises `ConversationNotFound` for an unknown name, and for one of another owner."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        template: TurnTemplate,
        runs: RunTable,
        turns: Turns,
        most_message_bytes: int,
    ) -> None:
        self._limits = turns.limits
        self._unstored = turns.recorder.kept
        self._most_message_bytes = most_message_bytes
        self._store = store
        self._engine = engine
        self._template = template
        self._runs = runs

    def history(self, owner_id: str, response_id: str) -> KnownHistory:
        """What was said up to a response, its answer included. Raises `ConversationBusy` while that is written."""
        kept, path, conversation_id = self._path_of(owner_id, response_id)
        run = self._runs.active(conversation_id)
        if run is not None and run.message_id == path[-1].message_id:
            raise ConversationBusy("The response that this one follows is still being written. Wait for its end.")
        return KnownHistory(message_json.load(kept["head"]), messages_of(path, self._template))

    def conversation_history(self, owner_id: str, conversation_id: str, keeps_prompt: bool) -> KnownHistory:
        """What was said in a conversation. `keeps_prompt`: a system prompt that no response brought is part of it.
        Raises `ConversationBusy` while an answer is written in it."""
        conversation = self._store.conversation(owner_id, conversation_id)
        if self._runs.is_busy(conversation_id):
            raise ConversationBusy("An answer is being written in this conversation. Wait for it to end.")
        path = self._as_ended(self._store.messages.path(conversation.leaf_id))
        prompt = conversation.settings.system_prompt if keeps_prompt else ""
        items = SystemItems((ChatMessage("system", prompt),) if prompt else ())
        if conversation.system_items:
            items = system_items.load(conversation.system_items)
        return KnownHistory(items.head, messages_of(path, self._template), conversation.leaf_id, items)

    def find(self, owner_id: str, response_id: str) -> NamedResponse:
        """A response with its answer as it is now."""
        found = self._stored(owner_id, response_id)
        kept, path = json.loads(found.body), self._as_ended(self._store.messages.last_nodes(found.message_id))
        view = self._store.messages.view(path[-1].message_id)
        if end := self._unstored.end_of(view.message_id):
            view = replace(view, status=end.status, note=end.note, receipt=end.receipt)
        said, (thought_chars, text_chars) = answer_of(path, self._template), kept["asked"]["begun_chars"]
        said = replace(said, thoughts=said.thoughts[thought_chars:], text=said.text[text_chars:])
        return NamedResponse(kept["body"], view, said, kept["asked"]["prompt_tokens"], path[-1].finish_reason)

    def input_of(self, owner_id: str, response_id: str) -> tuple[ChatMessage, ...]:
        """All that was said before a response, without what only its own request said as the system. What the request
        began the answer with comes last."""
        kept, path, _ = self._path_of(owner_id, response_id)
        messages = (*message_json.load(kept["head"]), *messages_of(path[:-1], self._template))
        said, (thought_chars, text_chars) = answer_of(path, self._template), kept["asked"]["begun_chars"]
        if not (thought_chars or text_chars):
            return messages
        return (*messages, ChatMessage("assistant", said.text[:text_chars], thoughts=said.thoughts[:thought_chars]))

    def running(self, owner_id: str, response_id: str) -> Run | None:
        """The run that writes this response now."""
        found = self._stored(owner_id, response_id)
        run = self._runs.active(found.conversation_id)
        return run if run is not None and run.message_id == found.message_id else None

    def forget(self, owner_id: str, response_id: str) -> None:
        """The name leads nowhere any more. The conversation stays."""
        self._stored(owner_id, response_id)
        self._store.responses.delete(response_id)

    def new_conversation(self, owner_id: str, metadata: str = "", items: Sequence[AddedItem] = ()) -> Conversation:
        """One without an answer, which only requests that name it continue. Nothing is stored when it raises."""
        conversation_id = uuid.uuid4().hex
        settings = ConversationSettings(self._engine.info.default_sampling)
        key = f"conversation {conversation_id}"
        self._store.add_conversation(owner_id, conversation_id, settings, key, metadata=metadata, items=items)
        return self._store.conversation(owner_id, conversation_id)

    def conversation(self, owner_id: str, conversation_id: str) -> Conversation:
        return self._store.conversation(owner_id, conversation_id)

    def set_metadata(self, owner_id: str, conversation_id: str, metadata: str) -> None:
        """What a client keeps with a conversation: a JSON object, "" for none."""
        self._store.conversation(owner_id, conversation_id)
        self._store.set_metadata(conversation_id, metadata)

    def refuse_unreadable(self, text: str) -> None:
        """Raises `MessageRefused` or `ContextFull` for the text of an item that no response could follow."""
        text = clean_exactly(text)
        refuse_if_huge(text, self._most_message_bytes, "An item")
        self._limits.refuse_hopeless(text, "An item")

    def add_items(self, owner_id: str, conversation_id: str, items: Sequence[AddedItem]) -> None:
        """Adds what was said elsewhere behind all that was said here, without an answer. Nothing is read until a
        response follows. Raises `ConversationBusy` while an answer is written, and `MessageRefused` for too much."""
        self._store.conversation(owner_id, conversation_id)
        with self._runs.claim(conversation_id):
            self._store.conversation(owner_id, conversation_id)  # it may have been deleted meanwhile
            count, size_bytes = self._store.added_items.size(conversation_id)
            size_bytes += sum(len(item.body.encode()) for item in items)
            if count + len(items) > MOST_ADDED_ITEMS or size_bytes > MOST_ADDED_BYTES:
                raise MessageRefused(
                    f"This conversation would have {count + len(items):,} items ({mib(size_bytes)}) without an answer; "
                    f"at most {MOST_ADDED_ITEMS:,} ({mib(MOST_ADDED_BYTES)}) may wait. Ask for a response first, or "
                    "begin another conversation."
                )
            self._store.add_items(conversation_id, items)

    def added_items(self, owner_id: str, conversation_id: str) -> tuple[AddedItem, ...]:
        """Those that no response followed yet."""
        self._store.conversation(owner_id, conversation_id)
        return self._store.added_items.of(conversation_id)

    def delete_added_item(self, owner_id: str, conversation_id: str, item_id: str) -> bool:
        """Whether it was there: one that a response followed is a message like any other, and stays. Raises
        `ConversationBusy` while an answer is written, which may follow it."""
        self._store.conversation(owner_id, conversation_id)
        with self._runs.claim(conversation_id):
            return self._store.added_items.delete(conversation_id, item_id)

    def _stored(self, owner_id: str, response_id: str) -> StoredResponse:
        found = self._store.responses.find(owner_id, response_id)
        if found is None:
            raise ConversationNotFound(
                "This response does not exist. It may have been deleted, or sent with store: false."
            )
        return found

    def _path_of(self, owner_id: str, response_id: str) -> tuple[dict[str, Any], tuple[Node, ...], str]:
        found = self._stored(owner_id, response_id)
        return json.loads(found.body), self._store.messages.path(found.message_id), found.conversation_id

    def _as_ended(self, path: Sequence[Node]) -> tuple[Node, ...]:
        """With an answer that could not be stored yet as it ended: its client has it already."""
        if not path or (end := self._unstored.end_of(path[-1].message_id)) is None:
            return tuple(path)
        last = replace(path[-1], text=end.text, status=end.status, finish_reason=end.reason)
        return (*path[:-1], replace(last, history_hash=end.history_hash))
