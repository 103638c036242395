"""Performs the idle jobs: reads drafts and the start of the next turn ahead of time, and asks the model for titles.

All of it is appended to the conversation's own KV, behind the ledger, under a lease that no run waits for. None of it
is in the ledger, so none of it is ever saved: the next turn keeps the rows that turn out to be its own and crops the
rest."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass

from model_runtime.interface.chat import TurnTemplate
from model_runtime.interface.events import Event, Finished, FinishReason, Listener, TokenDelta
from model_runtime.interface.protocol import KV, Engine, Generation, GenerationRequest, ReadRequest
from sessions.background.idle_worker import IdleJob, JobKind, Outcome, Preemption
from sessions.background.titles import TITLE_QUESTION, TITLE_SAMPLING, usable_title
from sessions.errors import ConversationNotFound
from sessions.ledger.ledger import Turn, common_prefix, fold, user_turn
from sessions.ledger.thoughts import prompt_end, split
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
    """`ids` are read into the KV, which may hold `final_tokens` before the job ends. `ledger` is the conversation's,
    and `turn_tokens` the length of the one that they are read for."""

    ledger: tuple[int, ...]
    ids: tuple[int, ...]
    final_tokens: int
    turn_tokens: int


class ReadAhead:
    """`perform` runs on the idle worker's thread and raises `SessionError` when the conversation was deleted."""

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
        self._held = memory.held
        self._leases = memory.leases
        self._prefetcher = memory.prefetcher
        self._shared_prefixes = memory.shared_prefixes
        self._runs = runs
        self._limits = limits

    def perform(self, job: IdleJob, preemption: Preemption) -> Outcome:
        if self._runs.active(job.conversation_id) is not None:
            return Outcome.REFUSED  # the end of its answer is being stored
        conversation = self._store.conversation(job.owner_id, job.conversation_id)
        path = self._store.messages.path(conversation.leaf_id)
        if path and path[-1].status is MessageStatus.RUNNING:
            # The answer is in memory until the database can store it, so there are no stored ids to build on.
            return Outcome.DONE
        if job.kind is JobKind.TITLE:
            return self._find_title(conversation, path, job, preemption)
        return self._read(conversation, path, job, preemption)

    def _read(
        self, conversation: Conversation, path: tuple[Node, ...], job: IdleJob, preemption: Preemption
    ) -> Outcome:
        """Reads the draft without its unstable end; for "" that is what every next message begins with."""
        ledger, turn = self._turn(conversation, path, job.text)
        stable_tokens = max(0, len(turn.ledger) - self._template.unstable_tokens(job.text))
        ids = turn.ledger[:stable_tokens]
        if job.kind is JobKind.TURN_START and _reads_everything(turn):
            return Outcome.DONE
        if job.kind is JobKind.WHOLE:
            ids = turn.ledger[:-1]  # the engine feeds the last id in any case
            if self._is_early(job, stable_tokens, len(ids)):
                return Outcome.REFUSED
        plan = _Plan(ledger, ids, len(ids), len(turn.ledger))

        def submit(kv: KV, listener: Listener) -> Generation:
            return self._engine.read(ReadRequest(ids, kv, plan.turn_tokens), listener)

        outcome, _ = self._work(job, plan, preemption, submit)
        return outcome

    def _is_early(self, job: IdleJob, start_tokens: int, end_tokens: int) -> bool:
        """Whether the draft has been unchanged for less time than these tokens take to read. A person who has paused
        for that long may well pause for as long again; a person who types on costs at most as much computing time as
        they spent typing."""
        quiet_s = time.monotonic() - job.asked_at
        return quiet_s < self._engine.estimate_read_s(start_tokens, end_tokens)

    def _find_title(
        self, conversation: Conversation, path: tuple[Node, ...], job: IdleJob, preemption: Preemption
    ) -> Outcome:
        is_wanted = conversation.has_first_title and conversation.origin is not Origin.ONE_OFF
        if not is_wanted or conversation.leaf_id is None:
            return Outcome.DONE
        ledger, turn = self._turn(conversation, path, TITLE_QUESTION)
        ids = turn.ledger
        if _reads_everything(turn):
            return Outcome.DONE
        plan = _Plan(ledger, ids, len(ids) + TITLE_SAMPLING.max_new_tokens, len(ids))

        def submit(kv: KV, listener: Listener) -> Generation:
            affinity = conversation.affinity
            owner_id = job.owner_id
            request = GenerationRequest(ids, kv, TITLE_SAMPLING, 0, True, fairness_key=owner_id, affinity=affinity)
            return self._engine.submit(request, listener)

        outcome, events = self._work(job, plan, preemption, submit)
        if outcome is Outcome.DONE and events:
            ended = events[-1]
            text = "".join(event.text for event in events if isinstance(event, TokenDelta))
            whole = isinstance(ended, Finished) and ended.reason in (FinishReason.STOP, FinishReason.STOP_STRING)
            path = self._store.messages.path(conversation.leaf_id)
            said = " ".join(split(node.text).answer if node.role == "assistant" else node.text for node in path)
            thought = split(text, prompt_end(self._template))
            is_title = whole and not (thought.is_open or thought.thoughts)
            self._store.take_model_title(job.conversation_id, usable_title(text, said) if is_title else "")
        return outcome

    def _turn(self, conversation: Conversation, path: tuple[Node, ...], text: str) -> tuple[tuple[int, ...], Turn]:
        """The current ledger, and the turn that this message would make."""
        ledger = fold(path)
        fingerprint = self._engine.info.tokenizer_fingerprint
        template = self._template.with_variables(conversation.settings.template_variables)
        turn = user_turn(path, text, ledger, conversation.settings.system_prompt, template, fingerprint)
        return ledger, turn

    def _work(self, job: IdleJob, plan: _Plan, preemption: Preemption, submit: Submit) -> tuple[Outcome, list[Event]]:
        owner_id, conversation_id = job.owner_id, job.conversation_id
        if not self._limits.holds(plan.final_tokens):
            return Outcome.DONE, []
        if job.refusals < 2 and self._prefetcher.warm(owner_id, conversation_id, plan.ledger):
            return Outcome.REFUSED, []  # the saved KV is restored first
        promised_bytes = self._engine.kv_bytes(plan.final_tokens)
        lease = self._held.reserve(conversation_id, owner_id, promised_bytes, preemption.request)
        if lease is None:
            return Outcome.REFUSED, []
        is_typed = job.kind in (JobKind.DRAFT, JobKind.WHOLE)
        if not is_typed and not self._holds_all(lease, plan):
            self._give_back(lease, plan, None)  # not worth reading the whole chat again
            return Outcome.DONE, []
        events: list[Event] = []
        try:
            # `delete` frees the KV a second time after the row is gone, so a job that still finds the row leaves
            # nothing.
            self._store.conversation(owner_id, conversation_id)
            if job.kind is JobKind.DRAFT:
                is_long = self._engine.info.is_long_rope(plan.turn_tokens)
                known_tokens = common_prefix(lease.held_ids, plan.ids) if lease.kv.is_long_rope is is_long else 0
                self._shared_prefixes.copy(owner_id, conversation_id, lease.kv, plan.ids, known_tokens, is_long)
            events = _events_of(lease.kv, submit, preemption)
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
        was_preempted = ended.reason in (FinishReason.PREEMPTED, FinishReason.ABORTED)
        return (Outcome.PREEMPTED if was_preempted else Outcome.DONE), events

    def _holds_all(self, lease: Lease, plan: _Plan) -> bool:
        """Whether the KV has all of the ledger, and keeps it until the job ends: with other rotary frequencies it would
        be read again."""
        is_long = {self._engine.info.is_long_rope(tokens) for tokens in (plan.turn_tokens, plan.final_tokens)}
        held_tokens = common_prefix(lease.held_ids, plan.ledger)
        if not self._engine.info.keeps_kv:
            held_tokens = lease.held_tokens  # as far as it is known
        return is_long == {lease.kv.is_long_rope} and held_tokens >= len(plan.ledger) - 1

    def _give_back(self, lease: Lease, plan: _Plan, ended: Finished | None) -> None:
        held_ids, ahead_from = lease.held_ids, lease.ahead_from
        length_tokens = lease.kv.length_tokens
        if ended is not None and (ended.reused_tokens or ended.fed_tokens or length_tokens != lease.held_tokens):
            held_ids = plan.ids[: common_prefix(plan.ids[:length_tokens], plan.ledger)]
            ahead_from = min(ended.reused_tokens, length_tokens if ahead_from is None else ahead_from)
        self._held.settle(lease, held_ids, ahead_from=ahead_from)


def _reads_everything(turn: Turn) -> bool:
    """Whether the turn would read the whole chat again, because its system prompt or its model was changed."""
    return turn.rewrite is not None and turn.rewrite.reason is not MissReason.TEMPLATE_REWROTE_HISTORY


def _events_of(kv: KV, submit: Submit, preemption: Preemption) -> list[Event]:
    """Waits for all events of a request; the last one is `Finished`."""
    queued: queue.SimpleQueue[Event] = queue.SimpleQueue()
    preemption.attach(submit(kv, queued.put))
    events = [queued.get()]
    while not isinstance(events[-1], Finished):
        events.append(queued.get())
    return events
