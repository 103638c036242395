"""The front door: everything that the page and the API can ask for goes through `SessionManager`.

Every public method that names a conversation takes the owner first and raises `ConversationNotFound` for another
owner's id, before it looks at anything else. All methods may be called from any thread except the engine's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from model_runtime.interface.chat import TurnTemplate
from model_runtime.interface.protocol import Engine, ModelInfo, RemoteServer
from sessions.awake import AwakeClock
from sessions.background.background import Background
from sessions.background.pruner import Pruner
from sessions.background.storage_check import StorageState
from sessions.config import SessionConfig
from sessions.counters import Counters
from sessions.errors import MessageRefused
from sessions.ledger.thoughts import prompt_end
from sessions.memory.memory import Memory
from sessions.memory_actions import MemoryActions
from sessions.named_responses import NamedResponses
from sessions.store.store import Store
from sessions.store.tables.served_time import SYSTEM_CLOCK, Clock
from sessions.text import clean, clean_title, refuse_if_huge
from sessions.turns.raw_turns import RawTurns
from sessions.turns.run import Run, RunTable, aborted
from sessions.turns.stateless import StatelessTurns
from sessions.turns.turn import Turns
from sessions.turns.written_turns import WrittenTurns
from sessions.types import (
    ConversationSettings,
    ConversationSummary,
    ConversationView,
    MemoryRow,
    MemoryView,
    Tier,
)
from sessions.verify.verifier import Verifying
from sessions.views import Views

DELETE_TIMEOUT_S = 10.0


class SessionManager:
    """Conversations, their runs and their memory. `start` before use, `close` at the end.

    The attributes are its parts, which know no owners: they are for whatever looks after the whole server, such as
    metrics, benchmarks and tests. A request is answered through the methods."""

    def __init__(
        self, store: Store, engine: Engine, template: TurnTemplate, config: SessionConfig, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._store = store
        self._engine = engine
        self._template = template
        self._config = config
        self.runs = RunTable(config.finished_run_keep_s)
        self.memory = Memory(store, engine, config, self.runs)
        self.turns = Turns(store, engine, template, config, self.runs, self.memory)
        self.completions = StatelessTurns(store, engine, template, config, self.runs, self.turns)
        self.raw_completions = RawTurns(store, engine, template, config, self.turns, self.completions.placements)
        self.responses = NamedResponses(store, engine, template, self.runs, self.turns, config.max_message_bytes)
        self._actions = MemoryActions(store, self.runs, self.memory, engine.info)
        self.background = Background(store, engine, template, config, self.memory, self.turns)
        self._written = WrittenTurns(store, engine, template, config, self.turns, self.background.drafts.forget)
        self._views = Views(store, engine, self.memory, self.background.verifier, self.runs, config)
        self.pruner = Pruner(store, self.runs, self._free_memory, config.keep_unnamed_s, clock)

    # Life

    def start(self, say: Callable[[str], None] = lambda sentence: None) -> None:
        """Marks answers that an earlier process left running as interrupted, then takes turns. `say` tells a person
        what becomes of the memory that was saved before."""
        self._store.messages.interrupt_running()
        self.memory.start(say)
        self.turns.recorder.start()
        self.background.start()
        self._actions.load_pins()
        self.pruner.start()

    def close(self) -> None:
        """Stops every run, keeping its text as interrupted, saves their KVs, and ends the threads. Bounded by the
        configured times; the engine and the store stay open. May be called twice."""
        waited = AwakeClock()
        self.drain()
        self.background.stop_work()
        self.pruner.close(timeout_s=1.0)
        while self.runs.all_active() and waited.look() < self._config.close_timeout_s:
            self.interrupt_all()
            time.sleep(0.01)
        for run in self.runs.all_active():  # the engine does not answer
            run.lease = None  # its KV is still the engine's
            self.turns.recorder.put(run, aborted())
        self.turns.recorder.close(timeout_s=1.0)
        self.background.verifier.close(timeout_s=1.0)
        self.memory.close()
        self.background.close()

    def drain(self) -> None:
        """No turn begins any more (`ShuttingDown`); those that run go on."""
        self.runs.close()

    @property
    def is_draining(self) -> bool:
        return self.runs.is_closed

    def open_answers(self) -> tuple[int, int]:
        """(being written, waiting in the queue)."""
        return self.runs.counts()

    def interrupt_all(self) -> None:
        """Stops every run; their texts are kept and marked as interrupted."""
        self.turns.interrupt(self.runs.all_active())

    @property
    def counters(self) -> Counters:
        """What happened since the server started."""
        return self.memory.counters

    @property
    def is_well(self) -> bool:
        """Whether the engine answers. A hanging or dead one is noticed and rebuilt; until then nothing is answered."""
        return self.background.watchdog.is_well and not self.engine_trouble

    @property
    def engine_trouble(self) -> str:
        """Why a remote engine cannot be used now, in sentences; "" while it can, and for a model that runs here."""
        return self._engine.pulse().trouble

    @property
    def servers(self) -> tuple[RemoteServer, ...]:
        """Those of a remote engine; () for a model that runs here."""
        return self._engine.pulse().servers

    @property
    def is_idle(self) -> bool:
        """Whether no background job runs or is due: reading ahead, titles."""
        return self.background.idle_worker.is_idle

    @property
    def storage(self) -> StorageState:
        """Whether what is said can be stored now, and if not, why."""
        return self.background.storage_check.state

    @property
    def info(self) -> ModelInfo:
        return self._engine.info

    @cached_property
    def prompt_end(self) -> str:
        """The last words of every prompt, as text: some chat templates begin the answer's thoughts there."""
        return prompt_end(self._template)

    # A turn

    def send(self, owner_id: str, conversation_id: str, text: str) -> Run:
        """Commits the user's message and starts its answer. Nothing is stored when a `SessionError` is raised."""
        return self._written.send(owner_id, conversation_id, text)

    def edit(self, owner_id: str, conversation_id: str, message_id: int, text: str) -> Run:
        """Another version of any user message, beside it, with a new answer below."""
        return self._written.edit(owner_id, conversation_id, message_id, text)

    def regenerate(self, owner_id: str, conversation_id: str) -> Run:
        """Another answer to the last message, beside the old one."""
        return self._written.regenerate(owner_id, conversation_id)

    def continue_answer(self, owner_id: str, conversation_id: str) -> Run:
        """Goes on from a stopped, interrupted or length-limited answer."""
        return self._written.continue_answer(owner_id, conversation_id)

    def switch_sibling(self, owner_id: str, conversation_id: str, message_id: int, step: int) -> None:
        """Shows the previous (-1) or next (+1) version of a message; below it what was used last."""
        self._written.switch_sibling(owner_id, conversation_id, message_id, step)

    def stop(self, owner_id: str, conversation_id: str) -> None:
        """The answer ends within one step and keeps its text. Nothing happens when there is none."""
        self._store.conversation(owner_id, conversation_id)
        if run := self.runs.active(conversation_id):
            self.turns.stop(run)

    def stop_run(self, run: Run) -> None:
        """Stops this run, for the request that began it."""
        self.turns.stop(run)

    def active_run(self, owner_id: str, conversation_id: str) -> Run | None:
        """The run of this conversation that is not done yet."""
        self._store.conversation(owner_id, conversation_id)
        return self.runs.active(conversation_id)

    # Conversations

    def list_conversations(self, owner_id: str, search: str = "", most: int | None = None) -> list[ConversationSummary]:
        """Newest first, at most `most`; with `search` those whose title or messages contain it."""
        return self._views.summaries(owner_id, clean(search).strip(), most)

    def create_conversation(
        self, owner_id: str, settings: ConversationSettings | None = None, taken: Sequence[str] = ()
    ) -> ConversationSummary:
        """A new one, or one that is still empty, with the settings that it has unless `settings` are given. Those in
        `taken` are not used again."""
        chosen = self._cleaned(settings or ConversationSettings(self.info.default_sampling))
        conversation = self._store.create_conversation(owner_id, chosen, taken)
        if settings is not None and conversation.settings != chosen:
            self._store.set_settings(conversation.conversation_id, chosen)
        return self._views.conversation(owner_id, conversation.conversation_id).summary

    def view(self, owner_id: str, conversation_id: str) -> ConversationView:
        return self._views.conversation(owner_id, conversation_id)

    def rename(self, owner_id: str, conversation_id: str, title: str) -> None:
        """Raises `MessageRefused` when nothing visible is left of the title."""
        self._store.conversation(owner_id, conversation_id)
        title = clean_title(title)
        if not title:
            raise MessageRefused("A title needs at least one visible character.")
        self._store.rename(conversation_id, title)

    def update_settings(self, owner_id: str, conversation_id: str, settings: ConversationSettings) -> None:
        """They hold from the next turn on. Raises `ContextFull` for a system prompt that leaves no room."""
        held = self._store.conversation(owner_id, conversation_id).settings
        cleaned = replace(self._cleaned(settings), template_variables=held.template_variables)
        self._store.set_settings(conversation_id, cleaned)

    def delete(self, owner_id: str, conversation_id: str) -> None:
        """Stops its run, frees its KV, then removes every message."""
        self.stop(owner_id, conversation_id)
        with self.runs.claim(conversation_id, DELETE_TIMEOUT_S):
            self._remove(owner_id, conversation_id)

    # Memory

    def list_version(self) -> int:
        """Changes whenever `list_conversations` may, for any owner. Cheap: a page that is left alone asks often."""
        return self._views.list_version()

    def memory_view(self, owner_id: str, most_rows: int | None = None) -> MemoryView:
        """With rows of the `most_rows` conversations used last (None: of all)."""
        return self._views.memory(owner_id, most_rows)

    def memory_row(self, owner_id: str, conversation_id: str) -> MemoryRow:
        """The memory of one conversation, with that of its current branch apart."""
        return self._views.memory_row(owner_id, conversation_id)

    def drop_kv(self, owner_id: str, conversation_id: str) -> None:
        """Frees the KV and deletes what is saved of it. Raises `ConversationBusy`."""
        self._actions.drop(owner_id, conversation_id)

    def park(self, owner_id: str, conversation_id: str, tier: Tier | str = Tier.DISK) -> None:
        """Moves the KV to the "host" or the "disk" tier. Raises `ConversationBusy`, or `StoreError` when it stays."""
        self._actions.park(owner_id, conversation_id, Tier(tier))

    def pin(self, owner_id: str, conversation_id: str) -> None:
        """Keeps the KV on the device, across restarts. Raises `CacheFull` with the numbers, or `ConversationBusy`."""
        self._actions.pin(owner_id, conversation_id)

    def unpin(self, owner_id: str, conversation_id: str) -> None:
        self._actions.unpin(owner_id, conversation_id)

    def warm(self, owner_id: str, conversation_id: str) -> bool:
        """Begins to restore a saved KV, if there is one and free room for it. The events say when it is done. Raises
        `NotKeptHere`."""
        self._store.conversation(owner_id, conversation_id)
        self._actions.refuse_elsewhere()
        return self._actions.warm(owner_id, conversation_id)

    def verify(self, owner_id: str, conversation_id: str) -> Verifying:
        """Begins to hold the KV, on the device and saved, against a re-read; what disagrees is dropped. Raises
        `NotKeptHere`."""
        self._store.conversation(owner_id, conversation_id)
        self._actions.refuse_elsewhere()
        return self.background.verifier.verify(owner_id, conversation_id)

    def prepare(self, owner_id: str, conversation_id: str) -> bool:
        """For a page that opens a conversation, or sees its first keystroke: `warm`, because a message will follow."""
        return self._actions.warm(owner_id, conversation_id)

    # Before a turn

    @property
    def reads_ahead(self) -> bool:
        """Whether drafts are read before they are sent."""
        return self._config.read_ahead

    @property
    def most_message_bytes(self) -> int:
        """The largest message that is taken."""
        return self._config.max_message_bytes

    def count_tokens(self, owner_id: str, conversation_id: str, draft: str) -> tuple[int, int]:
        """Tokens of a draft, and how many tokens a message may have here at most. Raises `MessageRefused` when huge."""
        return self.background.drafts.count_tokens(owner_id, conversation_id, draft)

    def read_ahead(self, owner_id: str, conversation_id: str, draft: str) -> None:
        """Has the model read a draft while no request waits, so that sending it costs its last words, or one token once
        it has been quiet for a moment. Nothing is stored."""
        self.background.drafts.read_ahead(owner_id, conversation_id, draft)

    def _remove(self, owner_id: str, conversation_id: str) -> None:
        """Inside its claim."""
        self.background.drafts.forget(conversation_id)
        self.memory.leases.forget(conversation_id)
        self._store.delete(conversation_id)
        self.turns.recorder.kept.forget(conversation_id)
        self.memory.leases.forget(conversation_id)  # idle work may have begun between the two
        self.memory.forget(conversation_id)
        self.memory.events.forget(owner_id, conversation_id)
        self.background.verifier.forget(conversation_id)

    def _free_memory(self, owner_id: str, conversation_id: str) -> None:
        """Inside its claim: it is in the bin, and takes no memory there."""
        self.background.drafts.forget(conversation_id)
        self.memory.leases.forget(conversation_id)
        self.memory.drop_saved(conversation_id)
        self.memory.events.forget(owner_id, conversation_id)
        self.background.verifier.forget(conversation_id)

    def _cleaned(self, settings: ConversationSettings) -> ConversationSettings:
        system_prompt = clean(settings.system_prompt).strip()
        refuse_if_huge(system_prompt, self._config.max_message_bytes, "This system prompt")
        if system_prompt:
            self.turns.limits.refuse_hopeless(system_prompt, "This system prompt")
            self.turns.limits.check_system_prompt(system_prompt)
        stop_strings = tuple(cleaned for s in settings.sampling.stop_strings if (cleaned := clean(s)))
        return ConversationSettings(replace(settings.sampling, stop_strings=stop_strings), system_prompt)
