"""The steps of a turn: the commit, a place in line for the KV, the engine. The same for the page and for the API."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.errors import ModelRuntimeError
from model_runtime.interface.numerics import difference, is_upgrade
from model_runtime.interface.protocol import Engine, GenerationRequest
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.interface.segments import with_format
from sessions.ledger import history_hash
from sessions.ledger.ledger import Turn, common_prefix
from sessions.memory.device.leases import Lease, Leases, Ticket
from sessions.memory.device.pins import Pins
from sessions.memory.device.shared_prefixes import SharedPrefix, SharedPrefixes
from sessions.memory.memory import Memory
from sessions.store.records import Conversation, NewMessages, Node
from sessions.store.store import Store
from sessions.text import first_title
from sessions.turns.limits import TurnLimits
from sessions.turns.recorder import Recorder
from sessions.turns.run import Run, RunPlan, RunTable, aborted, failed
from sessions.types import MissReason


@dataclass(frozen=True, slots=True)
class NewTurn:
    """`turn` below `history` (new nodes, which are committed with it) below `path` (stored ones). `user_text` goes with
    `turn.user`, `user_parts` with a node of several messages; `prefix_text` is what a continued answer says already.
    `link` stands for the history that is answered, None: worked out here."""

    conversation: Conversation
    path: Sequence[Node]
    turn: Turn
    sampling: SamplingParams
    user_text: str | None = None
    prefix_text: str = ""
    history: Sequence[Node] = ()
    user_parts: str = ""
    link: str | None = None
    reads_calls: bool = False
    is_fork: bool = False
    is_by_person: bool = True


class Turns:
    """Begins and stops runs. Any thread."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        limits: TurnLimits,
        pins: Pins,
        runs: RunTable,
        leases: Leases,
        memory: Memory,
        recorder: Recorder,
        shared_prefixes: SharedPrefixes,
    ) -> None:
        self._store = store
        self._engine = engine
        self._limits = limits
        self._pins = pins
        self._runs = runs
        self._leases = leases
        self._memory = memory
        self._recorder = recorder
        self._shared_prefixes = shared_prefixes

    @contextlib.contextmanager
    def claim(self, conversation_id: str) -> Iterator[None]:
        """Like `RunTable.claim`, for a turn: what could not be stored is stored first, or `StoreError` is raised."""
        with self._runs.claim(conversation_id):
            self.store_kept()
            yield

    def store_kept(self) -> None:
        """Nothing goes on from an answer that is not in the database. Raises `StoreError`."""
        self._recorder.kept.store_all()

    def begin(self, new: NewTurn) -> Run:
        """Commits the turn and gets in line. Inside the conversation's claim. Nothing is stored when it raises."""
        conversation, turn = new.conversation, new.turn
        promised_bytes = self._limits.promise_bytes(turn, new.sampling.max_new_tokens, new.user_text)
        self._leases.refuse_hopeless(conversation.owner_id, conversation.conversation_id, promised_bytes)
        self._pins.admit(conversation.conversation_id, promised_bytes)
        above, link = (*new.path, *new.history), _link(new)
        info, loss = self._engine.info, self._memory.loss(conversation.conversation_id)  # before the turn is marked
        numerics = with_format(info.fingerprint)
        message_id = self._store.messages.begin_turn(
            NewMessages(
                conversation_id=conversation.conversation_id,
                parent_id=new.path[-1].message_id if new.path else None,
                user=(new.user_text, turn.user) if new.user_text is not None and turn.user is not None else None,
                answer=(new.prefix_text, turn.answer),
                tokenizer_fingerprint=info.tokenizer_fingerprint,
                model_name=info.name,
                numerics=numerics,
                first_title=first_title(above[0].text if above else new.user_text or ""),
                history=new.history,
                user_link=link,
                user_parts=new.user_parts,
                is_by_person=new.is_by_person,
            )
        )
        run = Run(
            RunPlan(
                conversation_id=conversation.conversation_id,
                owner_id=conversation.owner_id,
                message_id=message_id,
                turn=turn,
                sampling=new.sampling,
                text=new.prefix_text,
                change=_change(conversation, above, info.name, numerics),
                is_upgrade=is_upgrade(conversation.numerics, numerics),
                loss=loss,
                link=link,
                reads_calls=new.reads_calls,
                is_fork=new.is_fork,
            )
        )
        run.ticket = Ticket(
            conversation.conversation_id,
            conversation.owner_id,
            promised_bytes,
            partial(self._enter, run),
            run.moved,
            lambda sentence: self._recorder.put(run, failed(sentence)),
        )
        self._runs.add(run)
        self._leases.enter(run.ticket)
        return run

    def stop(self, run: Run) -> None:
        """It ends within one step, or leaves the line."""
        run.ask_to_stop()
        if run.ticket is not None and self._leases.leave(run.ticket):
            self._recorder.put(run, aborted())

    def interrupt(self, runs: Iterable[Run]) -> None:
        """Like `stop`, because the server ends."""
        for run in runs:
            if not run.interrupted:
                run.interrupted = True
                self.stop(run)

    def _enter(self, run: Run, lease: Lease) -> None:
        """Room was granted. On the leases' thread, which does not wait for the disk."""
        run.leased(lease)
        owner_id, conversation_id, ids = run.plan.owner_id, run.conversation_id, run.plan.turn.ledger[:-1]
        shared_tokens = self._shared_prefixes.held_tokens(owner_id, conversation_id, ids)
        feed, give_up = partial(self._submit, run, lease), partial(self._recorder.put, run, aborted())
        self._memory.before_run(run, shared_tokens, feed, give_up)

    def _submit(self, run: Run, lease: Lease) -> None:
        """The KV holds the best it can. On the leases' thread, or on the restorer's."""
        plan = run.plan
        request = GenerationRequest(
            plan.turn.ledger, lease.kv, plan.sampling, plan.turn.answer_prefix_tokens, fairness_key=plan.owner_id
        )
        known_tokens = run.restored.tokens or common_prefix(lease.held_ids, run.plan.turn.ledger)
        owner_id, conversation_id, ids = run.plan.owner_id, run.conversation_id, run.plan.turn.ledger[:-1]
        self._shared_prefixes.copy(owner_id, conversation_id, lease.kv, ids, known_tokens)
        run.shared = self._shared_prefixes.taken(conversation_id, lease.kv)
        if run.shared is None and run.restored.lender_id:
            run.shared = SharedPrefix(run.restored.lender_id, 0, run.restored.tokens)
        try:
            run.started(self._engine.submit(request, partial(self._recorder.put, run)))
        except ModelRuntimeError as error:
            self._recorder.put(run, failed(str(error)))
        except Exception:
            self._recorder.put(run, failed("The model could not start on this answer. Regenerate it to try again."))
            raise


def _link(new: NewTurn) -> str:
    """What stands for the history that is answered; "" where it is not known, or where the ledger was written anew
    under another system prompt."""
    if new.link is not None:
        return new.link
    rewrite = new.turn.rewrite
    if rewrite is not None and rewrite.reason is MissReason.SYSTEM_PROMPT_CHANGED:
        return ""
    if new.user_text is None:
        return new.path[-1].link
    before = new.path[-1].link if new.path else history_hash.page_root(new.conversation.settings.system_prompt)
    return history_hash.after(before, [ChatMessage("user", new.user_text)]) if before else ""


def _change(conversation: Conversation, above: Sequence[Node], model_name: str, numerics: str) -> str:
    """What was changed since the last turn that makes its KV useless, as a clause; "" when nothing was."""
    if above and above[-1].model_name != model_name:
        return "the model was changed"
    return difference(conversation.numerics, numerics)
