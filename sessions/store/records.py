"""The database's rows as frozen records, which the rest of `sessions` works on."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from model_runtime.interface.chat import ChatMessage, UserInput
from model_runtime.interface.events import FinishReason
from sessions.store import message_json
from sessions.text_search import Excerpt
from sessions.types import ConversationSettings, MessageStatus, Origin


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row of `conversations`. `ledger_tokens` is the length of its current path's ledger as last stored."""

    conversation_id: str
    owner_id: str
    title: str  # "" until a person or the first message gives one
    created_at: float
    updated_at: float
    leaf_id: int | None
    settings: ConversationSettings
    ledger_tokens: int
    is_pinned: bool = False  # its KV stays on the device
    key: str | None = None  # the name that an API client gave it
    has_first_title: bool = False  # the first message's words, which a title from the model may replace
    origin: Origin = Origin.PAGE
    numerics: str = ""  # the engine's fingerprint at its last turn, "" if unknown
    found: Excerpt | None = None  # of a search: its place in the messages
    root_id: str = ""  # of a fork: the conversation that its beginning came from at first, which may be deleted
    metadata: str = ""  # what an API client keeps with it: a JSON object, "" for none
    system_items: str = ""  # what its clients said as the system: `SystemItems` as JSON, "" where none did

    @property
    def affinity(self) -> str:
        """For a remote engine with several servers: the same for every turn of a conversation, also after a restart,
        and for all that was forked from it, since what they have in common is in one place. No id can be found from
        it: it is sent to engines and routers as a header."""
        root_id = self.root_id or self.conversation_id
        return blake2b(root_id.encode(), digest_size=12, person=b"affinity").hexdigest()


@dataclass(frozen=True, slots=True)
class NodeIds:
    """What one node contributes to the ledger: `ledger[:ledger_start] + token_ids`.

    An answer's first `preamble_tokens` ids render the history again (when an answer is regenerated after the system
    prompt or the tokenizer changed); the answer's own ids follow. `system_prompt` is the one that the ledger holds from
    this node on, None if it is the same as above this node; so are `template_variables`, with which it was rendered.
    """

    ledger_start: int
    token_ids: tuple[int, ...]
    preamble_tokens: int = 0
    system_prompt: str | None = None
    template_variables: str | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One message on a path, with its ids; or several messages between two answers, which are in `parts`; so is
    an answer with calls that came from elsewhere, for their ids. `history_hash` covers the history up to here, "" if
    unknown. `message_id` is 0 for a node that is not stored yet. `tools` are those that were
    offered at the beginning, as a JSON list of JSON texts, "" for none; None where that is not known, and for every
    node but the first."""

    message_id: int
    parent_id: int | None
    role: str
    text: str
    status: MessageStatus
    finish_reason: FinishReason | None
    ids: NodeIds
    tokenizer_fingerprint: str
    model_name: str
    history_hash: str = ""
    parts: str = ""
    tools: str | None = None

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        return message_json.load(self.parts) if self.parts else (ChatMessage(self.role, self.text),)

    @property
    def input(self) -> UserInput:
        """What the chat template renders for a node that is not an answer."""
        return message_json.load(self.parts) if self.parts else self.text

    @property
    def ended_with_stop_token(self) -> bool:
        return self.finish_reason is FinishReason.STOP

    @property
    def can_continue(self) -> bool:
        """RUNNING counts too: the end of that answer could not be stored, and its run is gone (otherwise the
        conversation could not have been claimed)."""
        unfinished = (MessageStatus.STOPPED, MessageStatus.INTERRUPTED, MessageStatus.RUNNING)
        return self.status in unfinished or self.finish_reason is FinishReason.LENGTH

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """An answer's own ids, without a preamble."""
        return self.ids.token_ids[self.ids.preamble_tokens :]


@dataclass(frozen=True, slots=True)
class NewMessages:
    """What a turn stores before the model runs: `history` below `parent_id`, one node below the other, then the user's
    message, then the answer that is about to run. `user` and `answer` are a text and its ids; `user` is None when the
    turn only adds an answer. `user_parts` are the messages that the user's node stands for, "" for a single message of
    its own. `numerics` is the engine's fingerprint. `first_title` becomes the title of a conversation that has none.
    The answer goes on from the one with `continued_id`. `taken_in` are the ids of all added items, which
    become messages with it. `response` is a name of the answer, and what is kept with it.
    The conversation has these `settings` and `system_items` from now on, None: those that it has."""

    conversation_id: str
    parent_id: int | None
    user: tuple[str, NodeIds] | None
    answer: tuple[str, NodeIds]
    tokenizer_fingerprint: str
    model_name: str
    numerics: str
    first_title: str
    history: Sequence[Node] = ()
    user_history_hash: str = ""
    user_parts: str = ""
    user_tools: str | None = None  # as in `Node`
    is_by_person: bool = True
    continued_id: int | None = None
    taken_in: Sequence[str] = ()
    response: tuple[str, str] | None = None
    settings: ConversationSettings | None = None
    system_items: str | None = None  # as in `Conversation`


@dataclass(frozen=True, slots=True)
class Totals:
    """What the KV cache saved one owner, deleted conversations included."""

    saved_s: float
    reused_tokens: int


def pack(token_ids: Sequence[int]) -> bytes:
    """Ids as little-endian int32, as the database stores them."""
    packed = array("i", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack(blob: bytes) -> tuple[int, ...]:
    """The inverse of `pack`."""
    unpacked = array("i", blob)
    if sys.byteorder == "big":
        unpacked.byteswap()
    return tuple(unpacked)
