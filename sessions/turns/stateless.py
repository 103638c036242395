"""Requests that bring their whole history, as OpenAI's API has them: which conversation each belongs to, and its turn.

Where it goes is decided in `placement`. What is known nowhere is imported: its answers are tokenised once, and from the
next request on the history is warm.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

from model_runtime.interface.chat import ChatMessage, TurnTemplate
from model_runtime.interface.grammar import Grammar
from model_runtime.interface.protocol import Engine
from model_runtime.interface.sampling_params import SamplingParams
from sessions.config import SessionConfig
from sessions.errors import ConversationBusy, MessageRefused, SessionError, ShuttingDown
from sessions.ledger import history_hash, resent_history
from sessions.ledger.ledger import (
    changed_variables,
    fold,
    new_answer,
    user_turn,
    variables_of,
    with_beginning,
)
from sessions.ledger.resent_history import Exchange, ResentHistory
from sessions.store.records import Conversation, Node, NodeIds
from sessions.store.store import Store
from sessions.turns.placement import Placement, Placements
from sessions.turns.run import Run, RunTable
from sessions.turns.turn import NewTurn, Turns
from sessions.types import ConversationSettings, MessageStatus

ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """`tools` are JSON texts, a function each. `key` is the client's name for the conversation. An answer that
    `has_no_limit` may fill the context, whatever `sampling.max_new_tokens` says. `template_variables` are values of the
    chat template's own variables: a JSON object, "" for none. A last message from the assistant is what the answer
    begins with."""

    messages: tuple[ChatMessage, ...]
    sampling: SamplingParams
    tools: tuple[str, ...] = ()
    key: str | None = None
    has_no_limit: bool = False
    template_variables: str = ""


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
        self.placements = Placements(store, runs, engine.info.tokenizer_fingerprint)

    def begin(self, owner_id: str, request: ChatRequest) -> Run:
        """Commits what is new and starts the answer. Nothing is stored when a `SessionError` or `TemplateRefused` is
        raised."""
        template = self._template.with_variables(request.template_variables)
        history = resent_history.read(request.messages, request.tools, self._config.max_message_bytes, template)
        self._turns.store_kept()
        self._limits.refuse_hopeless(history.system_prompt)
        for exchange in history.exchanges:
            for message in (*exchange.asked, *((exchange.answer,) if exchange.answer else ())):
                self._limits.refuse_hopeless(message.text)
        for attempt in range(1, ATTEMPTS + 1):
            placement = self.placements.find(owner_id, history, request.key, may_stay=attempt < ATTEMPTS)
            conversation_id = placement.conversation.conversation_id if placement.conversation else uuid.uuid4().hex
            try:
                with self._runs.claim(conversation_id):
                    if self.placements.is_as_it_was(placement):
                        return self._begin(owner_id, conversation_id, request, history, placement, template)
            except ShuttingDown:
                raise
            except ConversationBusy:  # another request was quicker: the next attempt finds another place
                continue
        raise ConversationBusy("This conversation is being changed by other requests. Try again in a moment.")

    @property
    def template(self) -> TurnTemplate:
        """What can be asked of the model's chat template."""
        return self._template

    def grammar_refusal(self, grammar: Grammar) -> str:
        """Why answers cannot keep to a grammar, as a sentence; "" if they can."""
        return self._engine.grammar_refusal(grammar)

    def shown(self, run: Run, text: str) -> tuple[str, str]:
        """(thoughts, content) of a growing answer, as far as they stay, without what it began with."""
        plan = run.plan
        thoughts, said = self._template.growing_thoughts_in(text, plan.is_thought_open)
        if plan.reads_calls:
            said = said[: self._template.content_chars(said)]
        return self._new_part(run, thoughts, said)

    def message(self, run: Run, text: str) -> ChatMessage:
        """The finished answer as its client gets it, without what it began with."""
        plan = run.plan
        found = history_hash.answer_message(
            text, plan.reads_calls, run.message_id, self._template, plan.is_thought_open
        )
        thoughts, said = self._new_part(run, found.thoughts, found.text)
        return replace(found, thoughts=thoughts, text=said)

    def _new_part(self, run: Run, thoughts: str, said: str) -> tuple[str, str]:
        plan = run.plan
        if not plan.text:
            return thoughts, said
        before = self._template.growing_thoughts_in(plan.text, plan.is_thought_open)
        return thoughts[len(before[0]) :], said[len(before[1]) :]

    def _begin(
        self,
        owner_id: str,
        conversation_id: str,
        request: ChatRequest,
        history: ResentHistory,
        placement: Placement,
        template: TurnTemplate,
    ) -> Run:
        placement = _asked_anew(placement, history, template)
        imported = self._imported(request, history, placement, template)
        above = (*placement.path, *imported)
        current: tuple[int, ...] = fold(placement.path)
        if placement.conversation is not None:
            current = fold(self._store.messages.path(placement.conversation.leaf_id))
        last, is_asked_again = history.exchanges[-1], placement.known == len(history.hashes)
        fingerprint, prompt = self._engine.info.tokenizer_fingerprint, history.system_prompt
        if is_asked_again:
            turn = new_answer(above, current, prompt, template, fingerprint, request.tools)
        else:
            turn = user_turn(above, last.input, current, prompt, template, fingerprint, request.tools)
        is_open, prefix_text = template.opens_thought(prompt, request.tools), ""
        _refuse_format(request, history, is_open)
        if history.beginning is not None:
            begun, beginning = placement.begun, history.beginning
            prefix_text = begun.text if begun else template.begun_answer(beginning.thoughts, beginning.text, is_open)
            ids = _answer_ids(begun) if begun else template.answer(prefix_text, prompt, request.tools)
            turn = with_beginning(turn, ids, current)
        text = None if is_asked_again else last.text
        if request.has_no_limit:
            most = self._turns.most_new_tokens(owner_id, conversation_id, turn)
            request = replace(request, sampling=replace(request.sampling, max_new_tokens=most))
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
                    prefix_text=prefix_text,
                    history=above if placement.is_fork else imported,
                    user_parts=last.parts,
                    history_hash=history.hashes[-1],
                    reads_calls=bool(request.tools),
                    is_thought_open=is_open,
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
            sampling = replace(request.sampling, grammar=None)  # of this answer only
            settings = ConversationSettings(sampling, history.system_prompt, request.template_variables)
            root_id = placement.root_id
            if not self._store.add_conversation(owner_id, conversation_id, settings, placement.key, root_id):
                raise ConversationBusy("Another request has just begun the conversation of this key. Try again.")
        else:
            settings = replace(
                placement.conversation.settings,
                system_prompt=history.system_prompt,
                template_variables=request.template_variables,
            )
            if settings != placement.conversation.settings:
                self._store.set_settings(conversation_id, settings)
        return self._store.conversation(owner_id, conversation_id)

    def _imported(
        self, request: ChatRequest, history: ResentHistory, placement: Placement, template: TurnTemplate
    ) -> tuple[Node, ...]:
        """Nodes for what the client knows and the database does not, up to the last question. Raises `ContextFull` as
        soon as they are too many."""
        nodes: list[Node] = []
        ledger_tokens = len(fold(placement.path))
        for place in range(placement.known, len(history.hashes) - 1):
            exchange, above = history.exchanges[place // 2], nodes[-1] if nodes else None
            above = above or (placement.path[-1] if placement.path else None)
            is_answer = bool(place % 2)
            if is_answer:
                ids = template.answer(_answer_text(exchange, template), history.system_prompt, request.tools)
            else:
                ids = _asked_ids(request, history, exchange, above, template)
            root_prompt = history.system_prompt if above is None else None
            variables = changed_variables((*placement.path, *nodes), template)
            nodes.append(
                Node(
                    message_id=0,
                    parent_id=None,
                    role="assistant" if is_answer else "user",
                    text=_answer_text(exchange, template) if is_answer else exchange.text,
                    status=MessageStatus.COMPLETE,
                    finish_reason=None,
                    ids=NodeIds(ledger_tokens, ids, system_prompt=root_prompt, template_variables=variables),
                    tokenizer_fingerprint=self._engine.info.tokenizer_fingerprint,
                    model_name=self._engine.info.name,
                    history_hash=history.hashes[place],
                    parts="" if is_answer else exchange.parts,
                )
            )
            ledger_tokens += len(ids)
            self._limits.check_history(ledger_tokens)
        return tuple(nodes)


def _refuse_format(request: ChatRequest, history: ResentHistory, is_thought_open: bool) -> None:
    """Raises `MessageRefused` where an answer in a format could not begin with it."""
    if request.sampling.grammar is None:
        return
    if is_thought_open:
        raise MessageRefused(
            "This model begins every answer with a thought, which a format excludes. Send enable_thinking: false, or "
            "leave the format out."
        )
    if history.beginning is not None:
        raise MessageRefused("An answer that is gone on with cannot keep to a format. Leave one of the two out.")


def _asked_anew(placement: Placement, history: ResentHistory, template: TurnTemplate) -> Placement:
    """A question that was rendered with other values of the template's variables is asked once more beside itself: its
    ids end with their generation prompt."""
    path = placement.path
    is_asked_again = path and placement.known == len(history.hashes)
    if not is_asked_again or variables_of(path) == template.bound:
        return placement
    return replace(placement, path=path[:-1], known=placement.known - 1, begun=None)


def _asked_ids(
    request: ChatRequest, history: ResentHistory, exchange: Exchange, above: Node | None, template: TurnTemplate
) -> tuple[int, ...]:
    prompt = history.system_prompt
    if above is None:
        return template.first_turn(prompt, exchange.input, request.tools)
    return template.next_turn(above.ended_with_stop_token, exchange.input, prompt, request.tools)


def _answer_text(exchange: Exchange, template: TurnTemplate) -> str:
    answer = exchange.answer
    assert answer is not None, "only the last exchange has no answer"
    return template.with_thoughts(answer.thoughts, template.with_calls(answer.text, answer.tool_calls))


def _answer_ids(node: Node) -> tuple[int, ...]:
    """The ids of a stored answer, without what ended it."""
    return node.answer_ids[:-1] if node.ended_with_stop_token else node.answer_ids
