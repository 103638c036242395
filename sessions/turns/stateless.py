"""Requests that bring their whole history, as OpenAI's API has them: which conversation each belongs to, and its turn.

A request with a key belongs to the conversation of that key; a changed message becomes a sibling there. Without one the
owner's conversation with the longest known beginning is continued in place, as long as that costs it next to nothing;
else the beginning is copied into a conversation of its own (a fork), so that a side request, or an edit far above,
never takes the KV that its parent's next turn needs. What is known nowhere is imported: its answers are tokenised once,
and from the next request on the history is warm.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model_runtime.interface.chat import ChatMessage, TurnTemplate
from model_runtime.interface.protocol import Engine
from model_runtime.interface.sampling_params import SamplingParams
from sessions.config import SessionConfig
from sessions.errors import ConversationBusy, ConversationNotFound, SessionError
from sessions.ledger import history_hash, resent_history
from sessions.ledger.ledger import common_prefix, fold, new_answer, user_turn
from sessions.ledger.resent_history import Exchange, ResentHistory
from sessions.store.records import Conversation, Node, NodeIds
from sessions.store.store import Store
from sessions.store.tables.history_hashes import Found
from sessions.turns.run import Run, RunTable
from sessions.turns.turn import NewTurn, Turns
from sessions.types import ConversationSettings, MessageStatus

MOST_DISPLACED_TOKENS = 256  # of a conversation's end that may be cropped for a request that continues further up
MOST_CANDIDATES = 8
ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """`tools` are JSON texts, a function each. `key` is the client's name for the conversation."""

    messages: tuple[ChatMessage, ...]
    sampling: SamplingParams
    tools: tuple[str, ...] = ()
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request goes. `known` of its history hashes lead to the end of `path`, which is copied when `is_fork`.
    `conversation` None: into a new one."""

    conversation: Conversation | None
    path: tuple[Node, ...]
    known: int
    is_fork: bool = False


NO_PLACEMENT = Placement(None, (), 0)


class StatelessTurns:
    """Any thread."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        template: TurnTemplate,
        config: SessionConfig,
        runs: RunTable,
        turns: Turns,
    ) -> None:
        self._store = store
        self._engine = engine
        self._template = template
        self._config = config
        self._limits = turns.limits
        self._runs = runs
        self._turns = turns
        self.matches_prefixes = True  # benchmarks.api turns it off

    def begin(self, owner_id: str, request: ChatRequest) -> Run:
        """Commits what is new and starts the answer. Nothing is stored when a `SessionError` or `TemplateRefused` is
        raised. `ConversationBusy`: only for a request with a key."""
        history = resent_history.read(request.messages, request.tools, self._config.max_message_bytes)
        self._turns.store_kept()
        self._limits.refuse_hopeless(history.system_prompt)
        for exchange in history.exchanges:
            for message in (*exchange.asked, *((exchange.answer,) if exchange.answer else ())):
                self._limits.refuse_hopeless(message.text)
        for attempt in range(ATTEMPTS):
            placement = self._find(owner_id, history, request.key)
            conversation_id = placement.conversation.conversation_id if placement.conversation else uuid.uuid4().hex
            try:
                with self._runs.claim(conversation_id):
                    if not self._is_as_it_was(placement):
                        continue
                    return self._begin(owner_id, conversation_id, request, history, placement)
            except ConversationBusy:
                # Another request was quicker. With a key the client is told; else the next attempt finds another place.
                if request.key is not None or attempt == ATTEMPTS - 1:
                    raise
        raise ConversationBusy("This conversation is being changed by other requests. Try again in a moment.")

    @property
    def takes_tools(self) -> bool:
        return self._template.takes_tools

    def shown(self, run: Run, text: str) -> str:
        """The part of a growing answer that is content, whatever follows."""
        return text[: self._template.content_chars(text)] if run.plan.reads_calls else text

    def message(self, run: Run, text: str) -> ChatMessage:
        """The finished answer as its client gets it."""
        return history_hash.answer_message(text, run.plan.reads_calls, run.message_id, self._template)

    def _find(self, owner_id: str, history: ResentHistory, key: str | None) -> Placement:
        """What another tokenizer wrote is ignored, however deep: its ids mean something else, and the request brings
        all the texts. So after a change of models and back, this model's own part of the history is found again."""
        backwards, tokenizer = history.hashes[::-1], self._engine.info.tokenizer_fingerprint
        named_id = self._store.with_key(owner_id, key) if key is not None else None
        if named_id is not None:
            named = self._store.conversation(owner_id, named_id)
            place, found = self._store.history_hashes.deepest(owner_id, backwards, named_id, tokenizer)
            path = self._store.messages.path(found[0].message_id) if found else ()
            return Placement(named, path, len(backwards) - place if path else 0)
        if not self.matches_prefixes:
            return NO_PLACEMENT
        place, found = self._store.history_hashes.deepest(owner_id, backwards, tokenizer=tokenizer)
        return self._among(owner_id, found[:MOST_CANDIDATES], len(backwards) - place, key is None)

    def _among(self, owner_id: str, found: Sequence[Found], known: int, may_stay: bool) -> Placement:
        """In place in the first conversation that loses next to nothing by it, else on a fork of the newest one."""
        fork = NO_PLACEMENT
        for one in found:
            path = self._store.messages.path(one.message_id)
            if not path:  # deleted meanwhile
                continue
            conversation = self._store.conversation(owner_id, one.conversation_id)
            if may_stay and conversation.key is None and self._costs_nothing(conversation, path):
                return Placement(conversation, path, known)
            if not fork.path:
                fork = Placement(None, path, known, is_fork=True)
        return fork

    def _costs_nothing(self, conversation: Conversation, path: tuple[Node, ...]) -> bool:
        """Whether the conversation can go on after `path` without losing more KV than is read again in a moment: its
        own next turn might want it."""
        if self._runs.is_busy(conversation.conversation_id):
            return False
        held = fold(self._store.messages.path(conversation.leaf_id))
        return len(held) - common_prefix(held, fold(path)) <= MOST_DISPLACED_TOKENS

    def _is_as_it_was(self, placement: Placement) -> bool:
        """Asked inside the claim: another request may have continued or deleted it since it was found."""
        if placement.conversation is None:
            return True
        try:
            now = self._store.conversation(placement.conversation.owner_id, placement.conversation.conversation_id)
        except ConversationNotFound:
            return False
        return now.leaf_id == placement.conversation.leaf_id

    def _begin(
        self, owner_id: str, conversation_id: str, request: ChatRequest, history: ResentHistory, placement: Placement
    ) -> Run:
        imported = self._imported(request, history, placement)
        above = (*placement.path, *imported)
        current: tuple[int, ...] = fold(placement.path)
        if placement.conversation is not None:
            current = fold(self._store.messages.path(placement.conversation.leaf_id))
        last, is_asked_again = history.exchanges[-1], placement.known == len(history.hashes)
        fingerprint = self._engine.info.tokenizer_fingerprint
        if is_asked_again:
            turn = new_answer(above, current, history.system_prompt, self._template, fingerprint, request.tools)
        else:
            turn = user_turn(
                above, last.input, current, history.system_prompt, self._template, fingerprint, request.tools
            )
        text = None if is_asked_again else last.text
        self._limits.promise_bytes(turn, request.sampling.max_new_tokens, text)
        conversation = self._conversation(owner_id, conversation_id, request, history, placement)
        try:
            return self._turns.begin(
                NewTurn(
                    conversation=conversation,
                    path=() if placement.is_fork else placement.path,
                    turn=turn,
                    sampling=request.sampling,
                    user_text=text,
                    history=above if placement.is_fork else imported,
                    user_parts=last.parts,
                    history_hash=history.hashes[-1],
                    reads_calls=bool(request.tools),
                    is_fork=placement.is_fork,
                    is_by_person=False,
                )
            )
        except SessionError:  # a pin leaves no room, or the file failed
            if placement.conversation is None:
                self._store.delete(conversation_id)
            raise

    def _conversation(
        self, owner_id: str, conversation_id: str, request: ChatRequest, history: ResentHistory, placement: Placement
    ) -> Conversation:
        """A new one, or the one that was found; the page shows the system prompt that holds now."""
        if placement.conversation is None:
            # What a client asks for one answer is no limit of the answers that a person asks for later.
            defaults = self._engine.info.default_sampling
            sampling = replace(
                request.sampling,
                max_new_tokens=defaults.max_new_tokens,
                stop_strings=defaults.stop_strings,
                top_logprobs=None,
            )
            settings = ConversationSettings(sampling, history.system_prompt)
            if not self._store.add_conversation(owner_id, conversation_id, settings, request.key):
                raise ConversationBusy("Another request has just begun the conversation of this key. Try again.")
        elif placement.conversation.settings.system_prompt != history.system_prompt:
            settings = ConversationSettings(placement.conversation.settings.sampling, history.system_prompt)
            self._store.set_settings(conversation_id, settings)
        return self._store.conversation(owner_id, conversation_id)

    def _imported(self, request: ChatRequest, history: ResentHistory, placement: Placement) -> tuple[Node, ...]:
        """Nodes for what the client knows and the database does not, up to the last question. Raises `ContextFull` as
        soon as they are too many."""
        nodes: list[Node] = []
        ledger_tokens = len(fold(placement.path))
        for place in range(placement.known, len(history.hashes) - 1):
            exchange, above = history.exchanges[place // 2], nodes[-1] if nodes else None
            above = above or (placement.path[-1] if placement.path else None)
            is_answer = bool(place % 2)
            if is_answer:
                ids = self._template.answer(self._answer_text(exchange), history.system_prompt, request.tools)
            else:
                ids = self._asked_ids(request, history, exchange, above)
            root_prompt = history.system_prompt if above is None else None
            nodes.append(
                Node(
                    message_id=0,
                    parent_id=None,
                    role="assistant" if is_answer else "user",
                    text=self._answer_text(exchange) if is_answer else exchange.text,
                    status=MessageStatus.COMPLETE,
                    finish_reason=None,
                    ids=NodeIds(ledger_tokens, ids, system_prompt=root_prompt),
                    tokenizer_fingerprint=self._engine.info.tokenizer_fingerprint,
                    model_name=self._engine.info.name,
                    history_hash=history.hashes[place],
                    parts="" if is_answer else exchange.parts,
                )
            )
            ledger_tokens += len(ids)
            self._limits.check_history(ledger_tokens)
        return tuple(nodes)

    def _asked_ids(
        self, request: ChatRequest, history: ResentHistory, exchange: Exchange, above: Node | None
    ) -> tuple[int, ...]:
        if above is None:
            return self._template.first_turn(history.system_prompt, exchange.input, request.tools)
        return self._template.next_turn(
            above.ended_with_stop_token, exchange.input, history.system_prompt, request.tools
        )

    def _answer_text(self, exchange: Exchange) -> str:
        assert exchange.answer is not None, "only the last exchange has no answer"
        return self._template.with_calls(exchange.answer.text, exchange.answer.tool_calls)
