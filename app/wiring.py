"""Builds the long-lived objects in order and closes them in reverse. The only module that knows all packages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.access.auth import Owners
from app.access.callers import Callers
from app.access.cookie_key import load_secret
from app.access.public_link import Share
from app.access.visitors import Visitors
from app.budgets import Budgets, Say, asked_bytes, device_budget_bytes, disk_budget_bytes, host_budget_bytes
from app.model_names import ModelNames
from app.process_memory import HeapTrimmer, ProcessMeter
from app.services import Services
from app.temporary_files import own_temporary_files
from sessions.config import KEEP_UNNAMED_S, SessionConfig
from sessions.manager import SessionManager
from sessions.store.store import Store

if TYPE_CHECKING:
    from model_runtime.interface.chat import TurnTemplate
    from model_runtime.interface.config import ModelConfig, PromptLookup, RemoteConfig
    from model_runtime.interface.protocol import Engine

COOKIE_KEY_NAME = "cookie.key"
STAGED_BYTES = 256 * 1024**2  # page-locked host memory for rows on their way to a file
LEAST_FOR_TITLES_BYTES = 1024**3  # of weights: a smaller model's titles are worse than a person's first words
MOST_PINNED_BYTES = 16 * 1024**3  # page-locking more would add many seconds to every start


@dataclass(frozen=True, slots=True)
class IdleFeatures:
    """What the model may do while no request is waiting."""

    read_ahead: bool = True
    titles: bool = True


@dataclass(frozen=True, slots=True)
class Access:
    """Who is served. With a password, browsers must log in; with `require_key`, programs always need an API key. Pages
    of `allowed_origins` may call the API before there is a key."""

    password: str | None = None
    visitors: Visitors = field(default_factory=Visitors)
    require_key: bool = False
    allowed_origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What a server is started with. `keep_unnamed_s` as in `SessionConfig`."""

    data_dir: Path
    model: ModelConfig
    budgets: Budgets
    access: Access = Access()
    prompt_lookup: PromptLookup = "auto"
    idle_work: IdleFeatures = IdleFeatures()
    keep_unnamed_s: float = KEEP_UNNAMED_S
    names: ModelNames = field(default_factory=ModelNames)
    remote: RemoteConfig | None = None  # what computes in place of `model`


@dataclass(frozen=True, slots=True)
class _Memory:
    """What KVs may take of the device's memory and, after eviction, of host memory."""

    device_bytes: int
    host_bytes: int


@contextlib.contextmanager
def open_services(
    settings: ServiceSettings, say: Say, import_page: Callable[[], None] = lambda: None
) -> Iterator[Services]:
    """Everything a server needs, until the block ends. `import_page` is called before the model is loaded, which is
    the slow part. Raises `StoreError`, `ModelLoadError` or `ValueError`, and what `import_page` raises."""
    access, data_dir, budgets = settings.access, settings.data_dir, settings.budgets
    with contextlib.ExitStack() as stack:
        # The data directory first: a second process is refused before it spends minutes on loading a model.
        store = Store(data_dir)
        stack.callback(store.close)
        owners = Owners(load_secret(data_dir / COOKIE_KEY_NAME, say), access.password, store.logins)
        stack.enter_context(own_temporary_files(data_dir))
        if settings.remote is None:
            _refuse_absent_model(settings.model)
        import_page()
        if settings.remote is None:
            _import_model_code()
        process = ProcessMeter()
        remote = settings.remote
        engine, template, memory = _load(settings, say, stack) if remote is None else _connect(remote, say, stack)
        config = SessionConfig(
            device_kv_budget_bytes=memory.device_bytes,
            host_kv_budget_bytes=memory.host_bytes,
            disk_kv_budget_bytes=0
            if remote
            else disk_budget_bytes(budgets.disk, data_dir, store.segments.used_bytes(), say),
            read_ahead=settings.idle_work.read_ahead and remote is None,
            model_titles=settings.idle_work.titles
            and (remote is not None or engine.info.weights_bytes >= LEAST_FOR_TITLES_BYTES),
            keep_unnamed_s=settings.keep_unnamed_s,
        )
        manager = SessionManager(store, engine, template, config)
        manager.start(say)
        stack.callback(manager.close)
        share = Share()
        stack.callback(share.close)
        trimmer = HeapTrimmer(process)
        stack.callback(trimmer.close)
        callers = Callers(store.keys, owners, access.visitors, access.require_key)
        yield Services(manager, owners, share, callers, access.allowed_origins, settings.names, process)


def _refuse_absent_model(config: ModelConfig) -> None:
    """Raises `ModelLoadError` for a model that is nowhere, before imports that take seconds."""
    from model_runtime.loading.hub.downloads import refuse_absent

    refuse_absent(config.model)


def _import_model_code() -> None:
    """Imports torch and the code that runs models. It takes seconds, so the flags are checked first."""
    import model_runtime.engine.engine
    import model_runtime.loading.loading
    import model_runtime.text.chat_template  # noqa: F401


def _load(settings: ServiceSettings, say: Say, stack: contextlib.ExitStack) -> tuple[Engine, TurnTemplate, _Memory]:
    """The engine, its template and what its KVs may take. Torch is imported here and not at the top of the module,
    because that takes seconds and the flags are checked first."""
    from model_runtime.engine.engine import LocalEngine
    from model_runtime.engine.passing_thread import in_passing_thread
    from model_runtime.interface.config import EngineConfig
    from model_runtime.loading.loading import context_limit_tokens, load_model, unload
    from model_runtime.text.chat_template import ChatTemplate
    from model_runtime.text.generic_tools import with_tools

    config, budgets = settings.model, settings.budgets
    loaded = in_passing_thread(lambda: load_model(config, say, asked_bytes(budgets.device)))
    stack.callback(unload, loaded)
    template = with_tools(ChatTemplate(loaded.tokenizer, loaded.stop_token_ids))
    device = str(loaded.model.device)
    budget_bytes = device_budget_bytes(budgets.device, device, say)
    memory = _Memory(budget_bytes, host_budget_bytes(budgets.host, device, budget_bytes, say))
    engine_config = EngineConfig(
        prompt_lookup=settings.prompt_lookup, kv_dtype=budgets.kv_dtype, cold_kv_dtype=budgets.cold_kv_dtype
    )
    if device.startswith("cuda"):
        # A GPU's KVs are in one arena, which is allocated as a whole; a CPU's KVs take memory as they grow.
        pinned_bytes = min(memory.host_bytes, MOST_PINNED_BYTES) + STAGED_BYTES
        engine_config = replace(engine_config, kv_arena_bytes=budget_bytes, pinned_host_bytes=pinned_bytes)
    limit_tokens = context_limit_tokens(loaded, config.context_limit_tokens)
    engine = in_passing_thread(lambda: LocalEngine(loaded, engine_config, limit_tokens))
    stack.callback(engine.close)
    info = engine.info
    say(f"Model {info.name}, {info.quantization}, on {info.device} with {info.kernel}.")
    drift = info.int8_drift.sentence if info.int8_drift else ""
    for note in (*info.notes, drift, _history_note(template)):
        if note:
            say(note)
    return engine, template, memory


def _connect(config: RemoteConfig, say: Say, stack: contextlib.ExitStack) -> tuple[Engine, TurnTemplate, _Memory]:
    """The same for an engine elsewhere. Nothing of a KV is here, so no budget ever fills."""
    from model_runtime.remote.engine import RemoteEngine
    from model_runtime.remote.texts import load_texts
    from model_runtime.text.chat_template import ChatTemplate
    from model_runtime.text.generic_tools import with_tools

    texts = load_texts(config, say)
    template = with_tools(ChatTemplate(texts.tokenizer, texts.stop_token_ids))
    engine = RemoteEngine(config, texts, say)
    stack.callback(engine.close)
    info = engine.info
    say(f"Model {info.name}, at {info.device} ({info.kernel}), {engine.max_concurrent} answers at once.")
    for note in (*info.notes, _history_note(template)):
        if note:
            say(note)
    say("The engine keeps the caches: nothing is pinned, moved or saved here, and receipts say what it reports.")
    return engine, template, _Memory(device_bytes=1, host_bytes=0)


def _history_note(template: TurnTemplate) -> str | None:
    """Some templates move the system prompt to the last question."""
    if note := template.rewrites_history():
        return note
    note = template.rewrites_history("Be brief.")
    return f"With a system prompt, {note[0].lower()}{note[1:]}" if note else None
