"""The steps of a turn, in order: limits, commit, lease, restore, submit, record. The same for the page and the API."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from model_runtime.interface.chat import ChatMessage, TurnTemplate
from model_runtime.interface.errors import ModelRuntimeError
from model_runtime.interface.numerics import difference, is_upgrade
from model_runtime.interface.protocol import Engine, GenerationRequest
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.interface.segments import with_format
from sessions.config import SessionConfig
from sessions.errors import SessionError, SettingRefused
from sessions.ledger import history_hash
from sessions.ledger.ledger import Turn
from sessions.ledger.partings import outline, rewritten
from sessions.ledger.raw_prompt import RawPrompt
from sessions.ledger.response_name import ResponseName
from sessions.ledger.system_items import SystemItems
from sessions.memory.memory import Memory
from sessions.store import message_json
from sessions.store.records import Conversation, NewMessages, Node
from sessions.store.store import Store
from sessions.text import first_title
from sessions.turns.limits import TurnLimits
from sessions.turns.recorder import Recorder
from sessions.turns.run import Run, RunPlan, RunTable, aborted, failed
from sessions.types import MissReason, Parting

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewTurn:
    """`turn` below `history` (new nodes, which are committed with it) below `path` (stored ones). `user_text` goes with
    `turn.user`, `user_parts` with a node of several messages; `prefix_text` is what a continued answer says already.
    `history_hash` is that of the history that is answered, None: computed here. `raw` is a prompt that is no chat.
    `user_tools` as in `Node.tools`. `parting` is where a client's history parts from the one that is kept; `notes`
    are sentences about how it was taken. It `is_resent` where the client brings earlier answers. The answer goes on
    from the one with `continued_id`. `taken_in` as in `NewMessages`. The answer gets the `name`,
    and the conversation the `system_items` (None: it keeps those that it has).
    A conversation that `is_set_anew` has other settings than are stored."""

    conversation: Conversation
    path: Sequence[Node]
    turn: Turn
    sampling: SamplingParams
    user_text: str | None = None
    prefix_text: str = ""
    history: Sequence[Node] = ()
    user_parts: str = ""
    user_tools: str | None = None
    history_hash: str | None = None
    reads_calls: bool = False
    is_thought_open: bool = False
    is_fork: bool = False
    is_by_person: bool = True
    raw: RawPrompt | None = None
    has_one_call: bool = False
    parting: Parting | None = None
    is_resent: bool = False
    notes: tuple[str, ...] = ()
    continued_id: int | None = None
    taken_in: tuple[str, ...] = ()
    name: ResponseName | None = None
    system_items: SystemItems | None = None
    is_set_anew: bool = False


class Turns:
    """Begins and stops runs. Any thread.

    A turn is `begin`, on the caller's thread, and `_answer`, on a thread of its own until the engine has the request;
    from there the recorder writes down what the engine says."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        template: TurnTemplate,
        config: SessionConfig,
        runs: RunTable,
        memory: Memory,
    ) -> None:
        self._store = store
        self._engine = engine
        self._template = template
        self.runs = runs
        self._memory = memory
        self.limits = TurnLimits(engine, template, config)
        self.recorder = Recorder(store, engine, template, runs, memory, config.checkpoint_interval_s)

    @cached_property
    def trims(self) -> bool:
        """Whether the template leaves out white space at the ends of what is asked."""
        return history_hash.trims_ends(self._template)

    @contextlib.contextmanager
    def claim(self, conversation_id: str) -> Iterator[None]:
        """Like `RunTable.claim`, for a turn: what could not be stored is stored first, or `StoreError` is raised."""
        with self.runs.claim(conversation_id):
            self.store_kept()
            yield

    def store_kept(self) -> None:
        """Nothing goes on from an answer that is not in the database. Raises `StoreError`."""
        self.recorder.kept.store_all()

    def most_new_tokens(self, owner_id: str, conversation_id: str, turn: Turn) -> int:
        """The longest answer that the context has room for, and now the memory that this turn may be promised."""
        return self.limits.most_new_tokens(len(turn.ledger), self._memory.room_bytes(owner_id, conversation_id))

    def begin(self, new: NewTurn) -> Run:
        """Commits the turn, joins the queue for the conversation's KV, and starts the rest. Inside the conversation's
        claim. Nothing is stored when it raises."""
        conversation, turn = new.conversation, new.turn
        if refusal := self._engine.sampling_refusal(new.sampling):
            raise SettingRefused(refusal)
        promised_bytes = self.limits.promise_bytes(turn, new.sampling.max_new_tokens, new.user_text)
        self._memory.admit(conversation.owner_id, conversation.conversation_id, promised_bytes)
        run = Run(self._commit(new), promised_bytes)
        self.runs.add(run)
        run.reading = self._memory.announce(run.plan.owner_id, run.conversation_id, turn)
        waits = self._memory.must_wait(run.reading)
        if not waits:
            self._memory.enter(run.ticket)
        try:
            threading.Thread(target=self._answer, args=(run, waits), name="keepwarm-turn", daemon=True).start()
        except RuntimeError:  # the machine gives this process no more threads
            self._memory.leave(run.ticket)
            self.recorder.put(run, failed("The server is out of threads. Try again in a moment."))
        return run

    def _commit(self, new: NewTurn) -> RunPlan:
        """The user's message and the running answer, in the database; last of all, because what comes before may
        raise."""
        conversation, above, asked_hash = new.conversation, (*new.path, *new.history), _history_hash(new, self.trims)
        info, loss = self._engine.info, self._memory.loss(conversation.conversation_id)  # before the turn is marked
        numerics = with_format(info.fingerprint)
        user = None
        if new.user_text is not None and new.turn.user is not None:
            user = (new.user_text, new.turn.user)
        plan = RunPlan(
            conversation_id=conversation.conversation_id,
            owner_id=conversation.owner_id,
            message_id=0,  # until it is stored
            turn=new.turn,
            sampling=new.sampling,
            text=new.prefix_text,
            change=_change(conversation, above, info.name, numerics),
            is_upgrade=is_upgrade(conversation.numerics, numerics),
            loss=loss,
            history_hash=asked_hash,
            reads_calls=new.reads_calls,
            is_thought_open=new.is_thought_open,
            is_fork=new.is_fork,
            raw=new.raw,
            has_one_call=new.has_one_call,
            affinity=conversation.affinity,
            parting=new.parting or rewritten(above, new.turn, conversation.settings.system_prompt, self._template),
            outline=outline(above),
            is_resent=new.is_resent,
            notes=new.notes,
        )
        message_id = self._store.messages.begin_turn(
            NewMessages(
                conversation_id=conversation.conversation_id,
                parent_id=new.path[-1].message_id if new.path else None,
                user=user,
                answer=(new.prefix_text, new.turn.answer),
                tokenizer_fingerprint=info.tokenizer_fingerprint,
                model_name=info.name,
                numerics=numerics,
                first_title="" if conversation.title else first_title(above[0].text if above else new.user_text or ""),
                history=new.history,
                user_history_hash=asked_hash,
                user_parts=new.user_parts,
                user_tools=new.user_tools,
                is_by_person=new.is_by_person,
                continued_id=new.continued_id,
                taken_in=new.taken_in,
                response=_named(new, self._template),
                settings=conversation.settings if new.is_set_anew else None,
                system_items=new.system_items.dump() if new.system_items is not None else None,
            ),
            self._memory.unsaved_cause,
        )
        return replace(plan, message_id=message_id)

    def _answer(self, run: Run, waits: bool) -> None:
        """Lease, restore, submit: on the run's own thread, first of all for what another turn `waits` to be read. Never
        raises: the run ends with a sentence."""
        plan = run.plan
        try:
            if waits:
                self._wait_for_beginning(run)
            lease = run.ticket.wait()
            if lease is None:  # stopped while it waited
                self.recorder.put(run, aborted())
                return
            run.leased(lease)
            run.restored = self._memory.restore(lease, plan.owner_id, plan.turn, lambda: run.stop_asked)
            if run.stop_asked:
                self.recorder.put(run, aborted())
                return
            request = GenerationRequest(
                plan.turn.ledger,
                lease.kv,
                plan.sampling,
                plan.turn.answer_prefix_tokens,
                fairness_key=plan.owner_id,
                affinity=plan.affinity,
            )
            run.started(self._engine.submit(request, partial(self.recorder.put, run)))
        except (ModelRuntimeError, SessionError) as error:
            self.recorder.put(run, failed(str(error)))
        except Exception:
            log.exception("turn_not_started message=%d", run.message_id)
            self.recorder.put(run, failed("The model could not start on this answer. Regenerate it to try again."))

    def _wait_for_beginning(self, run: Run) -> None:
        """Waits while another turn of the owner reads what this one begins with, then joins the queue."""
        assert run.reading is not None
        run.shares()
        run.shared_wait_s = self._memory.wait_for_beginning(run.reading, lambda: run.stop_asked)
        self._memory.enter(run.ticket)
        if run.stop_asked:  # perhaps before the ticket was in the queue
            self._memory.leave(run.ticket)

    def stop(self, run: Run) -> None:
        """It ends within one step, or leaves the queue."""
        run.ask_to_stop()
        self._memory.leave(run.ticket)
        self._memory.readings.look_again()

    def interrupt(self, runs: Iterable[Run]) -> None:
        """Like `stop`, because the server ends."""
        for run in runs:
            if not run.interrupted:
                run.interrupted = True
                self.stop(run)


def _named(new: NewTurn, template: TurnTemplate) -> tuple[str, str] | None:
    """The name of the answer, and what is kept with it."""
    if new.name is None:
        return None
    return new.name.row(new.prefix_text, new.is_thought_open, len(new.turn.ledger), template)


def _history_hash(new: NewTurn, trims: bool) -> str:
    """The hash of the history that is answered; "" where it is not known, or where the ledger was rewritten under
    another system prompt."""
    if new.history_hash is not None:
        return new.history_hash
    rewrite = new.turn.rewrite
    if rewrite is not None and rewrite.reason is MissReason.SYSTEM_PROMPT_CHANGED:
        return ""
    if new.user_text is None:
        return new.path[-1].history_hash
    before = new.path[-1].history_hash if new.path else history_hash.page_root(new.conversation.settings.system_prompt)
    asked = message_json.load(new.user_parts) if new.user_parts else (ChatMessage("user", new.user_text),)
    return history_hash.after(before, asked, trims=trims) if before else ""


def _change(conversation: Conversation, above: Sequence[Node], model_name: str, numerics: str) -> str:
    """What was changed since the last turn that makes its KV useless, as a clause; "" when nothing was."""
    if above and above[-1].model_name != model_name:
        return "the model was changed"
    return difference(conversation.numerics, numerics)
