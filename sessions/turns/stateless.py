"""Requests that bring their whole history, as OpenAI's API has them: which conversation each belongs to, and its turn.

Where it goes is decided in `placement`. What is known nowhere is imported: its answers are tokenised once, and from the
next request on the history is warm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from model_runtime.interface.chat import ChatMessage, TurnTemplate
from model_runtime.interface.grammar import Grammar
from model_runtime.interface.protocol import Engine
from sessions.config import SessionConfig
from sessions.errors import ConversationBusy
from sessions.ledger import history_hash, resent_history
from sessions.ledger.resent_history import ResentHistory
from sessions.store.records import Conversation
from sessions.store.store import Store
from sessions.turns.placement import Placement, Placements
from sessions.turns.planned_turn import ChatRequest, Planner, parting_of, tools_json, with_kept_prompt
from sessions.turns.run import Run, RunTable
from sessions.turns.turn import NewTurn, Turns
from sessions.types import ConversationSettings


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
        self._turns = turns
        self._planner = Planner(store, engine, turns.limits)
        self.placements = Placements(store, runs, engine.info.tokenizer_fingerprint)

    def begin(self, owner_id: str, request: ChatRequest) -> Run:
        """Commits what is new and starts the answer. Nothing is stored when a `SessionError` or `TemplateRefused` is
        raised."""
        template, history = self._read(request)
        self._turns.store_kept()
        for text in (history.system_prompt, *_texts(history)):
            self._limits.refuse_hopeless(text)
        return self.placements.begin(
            lambda may_stay: self._place(owner_id, request, history, may_stay),
            lambda conversation_id, placement: self._begin(
                owner_id, conversation_id, request, history, placement, template
            ),
            bool(request.conversation_id),
        )

    def prompt_ids(self, owner_id: str, request: ChatRequest) -> tuple[int, ...]:
        """The ids that the model would be asked with, generation prompt included. Nothing is stored."""
        template, history = self._read(request)
        placement = self._place(owner_id, request, history, may_stay=True)
        history = with_kept_prompt(history, placement.path)
        return self._planner.plan(request, history, placement, template, must_fit=False).turn.ledger

    def _place(self, owner_id: str, request: ChatRequest, history: ResentHistory, may_stay: bool) -> Placement:
        if request.conversation_id:
            return self.placements.in_conversation(owner_id, history, request.conversation_id)
        return self.placements.find(owner_id, history, request.key, may_stay)

    def _read(self, request: ChatRequest) -> tuple[TurnTemplate, ResentHistory]:
        template = self._template.with_variables(request.template_variables)
        most_bytes, trims = self._config.max_message_bytes, self._turns.trims
        return template, resent_history.read(request.messages, request.tools, most_bytes, template, trims)

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
        if plan.raw is not None:
            return "", text
        thoughts, said = self._template.growing_thoughts_in(text, plan.is_thought_open)
        if plan.reads_calls:
            said = said[: self._template.content_chars(said)]
        return self._new_part(run, thoughts, said)

    def message(self, run: Run, text: str) -> ChatMessage:
        """The finished answer as its client gets it, without what it began with."""
        plan = run.plan
        if plan.raw is not None:
            return ChatMessage("assistant", text)
        found = history_hash.answer_message(text, plan.reads_calls, run.call_seed, self._template, plan.is_thought_open)
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
        if request.conversation_id and placement.conversation is not None:
            _refuse_grown(placement.conversation, request)
        history = with_kept_prompt(history, placement.path)
        planned = self._planner.plan(request, history, placement, template)
        kept = self.placements.nearest(owner_id, history, placement, template)
        parting = parting_of(planned, request, history, kept, template) if kept is not None else None
        placement, turn = planned.placement, planned.turn
        if request.has_no_limit:
            most = self._turns.most_new_tokens(owner_id, conversation_id, turn)
            request = replace(request, sampling=replace(request.sampling, max_new_tokens=most))
        self._limits.promise_bytes(turn, request.sampling.max_new_tokens, planned.text)
        conversation = self._conversation(owner_id, conversation_id, request, history, placement)
        sets_items = bool(request.conversation_id) or not conversation.system_items
        try:
            return self._turns.begin(
                NewTurn(
                    conversation=conversation,
                    path=() if placement.is_fork else placement.path,
                    turn=turn,
                    sampling=request.sampling,
                    user_text=planned.text,
                    prefix_text=planned.prefix_text,
                    history=planned.above if placement.is_fork else planned.imported,
                    user_parts=history.exchanges[-1].parts,
                    user_tools=None if planned.above else tools_json(request.tools),
                    parting=parting,
                    is_resent=len(history.hashes) > 1,
                    notes=_notes(history.altered_in(placement.path)),
                    history_hash=history.hashes[-1],
                    reads_calls=bool(request.tools),
                    has_one_call=request.has_one_call and bool(request.tools),
                    is_thought_open=planned.is_thought_open,
                    is_fork=placement.is_fork,
                    is_by_person=False,
                    taken_in=request.taken_in,
                    name=request.name,
                    system_items=request.system_items if sets_items else None,
                    is_set_anew=placement.conversation is not None
                    and conversation.settings != placement.conversation.settings,
                )
            )
        except Exception:  # a pin leaves no room, or the file failed
            if placement.conversation is None and self._store.conversation(owner_id, conversation_id).leaf_id is None:
                self._store.delete(conversation_id)
            raise

    def _conversation(
        self, owner_id: str, conversation_id: str, request: ChatRequest, history: ResentHistory, placement: Placement
    ) -> Conversation:
        """A new one, or the one that was found; the page shows the system prompt that holds now."""
        if placement.conversation is None:
            sampling = request.sampling.lasting(self._engine.info.default_sampling)
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
            return replace(placement.conversation, settings=settings)  # stored with the turn
        return self._store.conversation(owner_id, conversation_id)


def _refuse_grown(conversation: Conversation, request: ChatRequest) -> None:
    """Inside the claim. Raises `ConversationBusy` where another request went on with the conversation that this one
    names: its branch would hide that one's."""
    if conversation.leaf_id != request.leaf_id:
        raise ConversationBusy(
            "Another request went on with this conversation while this one was being read. Send it again to follow it."
        )


def _notes(altered: tuple[int, ...]) -> tuple[str, ...]:
    if not altered:
        return ()
    which = f"Message {altered[0]:,} was" if len(altered) == 1 else f"Messages {', '.join(map(str, altered[:8]))} were"
    more = "" if len(altered) <= 8 else f" (and {len(altered) - 8:,} more)"
    return (f"{which} sent back with other white space or markup than written{more}; what was written counts.",)


def _texts(history: ResentHistory) -> Iterator[str]:
    for exchange in history.exchanges:
        for message in (*exchange.asked, *((exchange.answer,) if exchange.answer else ())):
            yield message.text
