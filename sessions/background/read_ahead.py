"""What is read, or said to oneself, ahead of a person: drafts, the glue of the next turn, a title on a throw-away fork.

All of it is appended to the conversation's own KV behind what the ledger holds, under a lease that no run waits for.
Nothing of it is in the ledger, so nothing of it is ever saved: the next turn keeps the rows that turn out to be its own
and crops the rest.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass

from model_runtime.interface.chat import TurnTemplate
from model_runtime.interface.events import Event, Finished, FinishReason, Listener, TokenDelta
from model_runtime.interface.protocol import KV, Engine, Generation, GenerationRequest, ReadRequest
from sessions.background.idle_worker import IdleJob, Kind, Outcome, Preemption
from sessions.background.titles import TITLE_QUESTION, TITLE_SAMPLING, usable_title
from sessions.errors import ConversationNotFound
from sessions.ledger.ledger import Turn, common_prefix, fold, user_turn
from sessions.memory.memory import Memory
from sessions.memory.memory_records import Lease
from sessions.store.records import Conversation, Node
from sessions.store.store import Store
from sessions.turns.limits import TurnLimits
from sessions.turns.run import RunTable
from sessions.types import MessageStatus, MissReason, Origin

Submit = Callable[[KV, Listener], Generation]


@dataclass(frozen=True, slots=True)
class _Plan:
    """`ids` go into the KV; it may hold `final_tokens` before the work ends. `ledger` is the conversation's own."""

    ledger: tuple[int, ...]
    ids: tuple[int, ...]
    final_tokens: int


class ReadAhead:
    """`perform` runs on the idle thread and raises `SessionError` when the conversation is gone."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        template: TurnTemplate,
        memory: Memory,
        runs: RunTable,
        limits: TurnLimits,
    ) -> None:
        self._store = store
        self._engine = engine
        self._template = template
        self._leases = memory.leases
        self._prefetcher = memory.prefetcher
        self._shared_prefixes = memory.shared_prefixes
        self._runs = runs
        self._limits = limits

    def perform(self, errand: IdleJob, way: Preemption) -> Outcome:
        if self._runs.active(errand.conversation_id) is not None:
            return Outcome.REFUSED  # its end is being stored
        conversation = self._store.conversation(errand.owner_id, errand.conversation_id)
        path = self._store.messages.path(conversation.leaf_id)
        if path and path[-1].status is MessageStatus.RUNNING:
            return (
                Outcome.DONE
            )  # the answer is kept in memory until the disk takes it: its ids are not there to build on
        if errand.kind is Kind.TITLE:
            return self._find_title(conversation, path, errand, way)
        return self._read(conversation, path, errand, way)

    def _read(self, conversation: Conversation, path: tuple[Node, ...], errand: IdleJob, way: Preemption) -> Outcome:
        """Reads the draft but for its unstable end; of "" that leaves what stands in front of every next message."""
        ledger, turn = self._turn(conversation, path, errand.text)
        stable_tokens = max(0, len(turn.ledger) - self._template.unstable_tokens(errand.text))
        ids = turn.ledger[:stable_tokens]
        if errand.kind is Kind.GLUE and _is_anew(turn):
            return Outcome.DONE
        if errand.kind is Kind.WHOLE:
            ids = turn.ledger[:-1]  # the engine feeds the last id in any case
            if self._is_early(errand, stable_tokens, len(ids)):
                return Outcome.REFUSED
        plan = _Plan(ledger, ids, len(ids))
        outcome, _ = self._work(errand, plan, way, lambda kv, heard: self._engine.read(ReadRequest(ids, kv), heard))
        return outcome

    def _is_early(self, errand: IdleJob, start_tokens: int, end_tokens: int) -> bool:
        """Whether the draft has been quiet for less time than these tokens take to read. Whoever has paused for so long
        may pause for as long again; whoever types on has cost at most as much computing as they took for typing."""
        quiet_s = time.monotonic() - errand.asked_at
        return quiet_s < self._engine.estimate_read_s(start_tokens, end_tokens)

    def _find_title(
        self, conversation: Conversation, path: tuple[Node, ...], errand: IdleJob, way: Preemption
    ) -> Outcome:
        is_wanted = conversation.has_first_title and conversation.origin is not Origin.ONE_OFF
        if not is_wanted or conversation.leaf_id is None:
            return Outcome.DONE
        ledger, turn = self._turn(conversation, path, TITLE_QUESTION)
        ids = turn.ledger
        if _is_anew(turn):
            return Outcome.DONE
        plan = _Plan(ledger, ids, len(ids) + TITLE_SAMPLING.max_new_tokens)

        def submit(kv: KV, heard: Listener) -> Generation:
            return self._engine.submit(GenerationRequest(ids, kv, TITLE_SAMPLING, is_idle=True), heard)

        outcome, events = self._work(errand, plan, way, submit)
        if outcome is Outcome.DONE and events:
            ended = events[-1]
            text = "".join(event.text for event in events if isinstance(event, TokenDelta))
            whole = isinstance(ended, Finished) and ended.reason in (FinishReason.STOP, FinishReason.STOP_STRING)
            said = " ".join(node.text for node in self._store.messages.path(conversation.leaf_id))
            self._store.take_model_title(errand.conversation_id, usable_title(text, said) if whole else "")
        return outcome

    def _turn(self, conversation: Conversation, path: tuple[Node, ...], text: str) -> tuple[tuple[int, ...], Turn]:
        """The ledger as it is, and the turn that this message would make."""
        ledger = fold(path)
        fingerprint = self._engine.info.tokenizer_fingerprint
        turn = user_turn(path, text, ledger, conversation.settings.system_prompt, self._template, fingerprint)
        return ledger, turn

    def _work(self, errand: IdleJob, plan: _Plan, way: Preemption, submit: Submit) -> tuple[Outcome, list[Event]]:
        owner_id, conversation_id = errand.owner_id, errand.conversation_id
        if not self._limits.holds(plan.final_tokens):
            return Outcome.DONE, []
        if errand.refusals < 2 and self._prefetcher.warm(owner_id, conversation_id, plan.ledger):
            return Outcome.REFUSED, []  # what is saved comes back first
        promised_bytes = self._engine.kv_bytes(plan.final_tokens)
        lease = self._leases.reserve(conversation_id, owner_id, promised_bytes, way.make)
        if lease is None:
            return Outcome.REFUSED, []
        is_typed = errand.kind in (Kind.DRAFT, Kind.WHOLE)
        if not is_typed and common_prefix(lease.held_ids, plan.ledger) < len(plan.ledger) - 1:
            self._give_back(lease, plan, None)  # the chat is not read again for this
            return Outcome.DONE, []
        events: list[Event] = []
        try:
            # Deleting frees the KV once more after the row is gone, so who still finds the row leaves nothing behind.
            self._store.conversation(owner_id, conversation_id)
            if errand.kind is Kind.DRAFT:
                known_tokens = common_prefix(lease.held_ids, plan.ids)
                self._shared_prefixes.copy(owner_id, conversation_id, lease.kv, plan.ids, known_tokens)
            events = _heard_to_the_end(lease.kv, submit, way)
        except ConversationNotFound:
            self._give_back(lease, plan, None)
            self._leases.forget(conversation_id)
            raise
        except BaseException:
            self._give_back(lease, plan, None)
            raise
        ended = events[-1]
        assert isinstance(ended, Finished)
        self._give_back(lease, plan, ended)
        made_way = ended.reason in (FinishReason.PREEMPTED, FinishReason.ABORTED)
        return (Outcome.MADE_WAY if made_way else Outcome.DONE), events

    def _give_back(self, lease: Lease, plan: _Plan, ended: Finished | None) -> None:
        held_ids, ahead_from = lease.held_ids, lease.ahead_from
        length_tokens = lease.kv.length_tokens
        if ended is not None and (ended.reused_tokens or ended.fed_tokens or length_tokens != lease.held_tokens):
            held_ids = plan.ids[: common_prefix(plan.ids[:length_tokens], plan.ledger)]
            ahead_from = min(ended.reused_tokens, length_tokens if ahead_from is None else ahead_from)
        self._leases.settle(lease, held_ids, ahead_from=ahead_from)


def _is_anew(turn: Turn) -> bool:
    """Whether the whole chat would be read again: its system prompt or its model was changed."""
    return turn.rewrite is not None and turn.rewrite.reason is not MissReason.TEMPLATE_REWROTE_HISTORY


def _heard_to_the_end(kv: KV, submit: Submit, way: Preemption) -> list[Event]:
    """All events of a request, the last one `Finished`."""
    heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
    way.take(submit(kv, heard.put))
    events = [heard.get()]
    while not isinstance(events[-1], Finished):
        events.append(heard.get())
    return events
