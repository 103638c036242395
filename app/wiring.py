"""Builds the long-lived objects, in order, and ends them in reverse. The only place that knows all packages."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import formatting, sizes
from app.access.auth import Owners
from app.access.callers import Callers
from app.access.cookie_key import load_secret
from app.access.guard import cookies_of
from app.access.public_link import Share
from app.access.visitors import Visitors
from app.cli.surroundings import own_temporary_files
from app.process_memory import HeapTrimmer, ProcessMeter
from sessions.config import KEEP_UNNAMED_S, SessionConfig, default_disk_kv_budget_bytes
from sessions.errors import ConversationNotFound
from sessions.manager import SessionManager
from sessions.store.store import Store

if TYPE_CHECKING:
    from model_runtime.interface.chat import TurnTemplate
    from model_runtime.interface.config import KvDtype, ModelConfig, PromptLookup, SavedKvDtype
    from model_runtime.interface.protocol import Engine

COOKIE_KEY_NAME = "cookie.key"
STAGED_BYTES = 256 * 1024**2  # page-locked host memory for rows on their way to a file
MOST_PINNED_BYTES = 16 * 1024**3  # page-locking more would take many seconds of every start
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Services:
    """What the pages need of the rest."""

    manager: SessionManager
    owners: Owners
    share: Share
    callers: Callers
    process: ProcessMeter = field(default_factory=ProcessMeter)

    def owner_of(self, request: Any) -> str | None:
        """The owner a Gradio or Starlette request comes from, None before the login. Reads the signed cookie alone."""
        return self.owners.owner_of(cookies_of(getattr(request, "request", request).headers))

    def required_owner_of(self, request: Any) -> str:
        """Like `owner_of`; a stranger finds nothing."""
        owner_id = self.owner_of(request)
        if owner_id is None:
            raise ConversationNotFound("Please log in again.")
        return owner_id


@dataclass(frozen=True, slots=True)
class Budgets:
    """Sizes as they were typed; None: chosen from the machine. `kv_dtype` is how the device keeps KVs, `cold_kv_dtype`
    how host and disk do."""

    device: str | None
    disk: str | None
    host: str | None = None
    kv_dtype: KvDtype = "auto"
    cold_kv_dtype: SavedKvDtype = "exact"


@dataclass(frozen=True, slots=True)
class IdleFeatures:
    """What the model may do while nobody waits."""

    read_ahead: bool = True
    titles: bool = True


@dataclass(frozen=True, slots=True)
class Access:
    """Who is answered beside those who know the password."""

    visitors: Visitors = field(default_factory=Visitors)
    require_key: bool = False


@dataclass(frozen=True, slots=True)
class _Memory:
    """What KVs may take of the device's memory and, once they have left it, of the host's."""

    device_bytes: int
    host_bytes: int


@contextlib.contextmanager
def open_services(
    data_dir: Path,
    model: ModelConfig,
    prompt_lookup: PromptLookup,
    budgets: Budgets,
    password: str | None,
    say: Say,
    idle_work: IdleFeatures = IdleFeatures(),
    keep_unnamed_s: float = KEEP_UNNAMED_S,
    access: Access = Access(),
    import_page: Callable[[], None] = lambda: None,
) -> Iterator[Services]:
    """Everything a server needs, until the block ends. `import_page` is called before the model is loaded, which is
    what takes long. Raises `StoreError`, `ModelLoadError` or `ValueError`, and what `import_page` raises."""
    with contextlib.ExitStack() as stack:
        # The data directory first: a second process is told so before it spends minutes on a model.
        store = Store(data_dir)
        stack.callback(store.close)
        owners = Owners(load_secret(data_dir / COOKIE_KEY_NAME, say), password, store.logins)
        stack.enter_context(own_temporary_files(data_dir))
        import_page()
        _import_model_code()
        process = ProcessMeter()
        engine, template, memory = _load(model, prompt_lookup, budgets, say, stack)
        config = SessionConfig(
            device_kv_budget_bytes=memory.device_bytes,
            host_kv_budget_bytes=memory.host_bytes,
            disk_kv_budget_bytes=_disk_budget_bytes(budgets.disk, data_dir, store.segments.used_bytes(), say),
            read_ahead=idle_work.read_ahead,
            model_titles=idle_work.titles,
            keep_unnamed_s=keep_unnamed_s,
        )
        manager = SessionManager(store, engine, template, config)
        manager.start(say)
        stack.callback(manager.close)
        share = Share()
        stack.callback(share.close)
        tidier = HeapTrimmer(process)
        stack.callback(tidier.close)
        callers = Callers(store.keys, owners, access.visitors, access.require_key)
        yield Services(manager, owners, share, callers, process)


def _import_model_code() -> None:
    """Torch and what runs models: seconds, which is why the flags are checked before."""
    import model_runtime.engine.engine
    import model_runtime.loading.loading
    import model_runtime.text.chat_template  # noqa: F401


def _load(
    config: ModelConfig, prompt_lookup: PromptLookup, budgets: Budgets, say: Say, stack: contextlib.ExitStack
) -> tuple[Engine, TurnTemplate, _Memory]:
    """The engine, its template and what its KVs may take. Torch is imported here, not before the flags are
    checked: it costs seconds."""
    from model_runtime.engine.engine import LocalEngine
    from model_runtime.engine.passing_thread import in_passing_thread
    from model_runtime.interface.config import EngineConfig
    from model_runtime.loading.loading import context_limit_tokens, load_model, unload
    from model_runtime.text.chat_template import ChatTemplate

    loaded = in_passing_thread(lambda: load_model(config, say))
    stack.callback(unload, loaded)
    template = ChatTemplate(loaded.tokenizer, loaded.stop_token_ids)
    device = str(loaded.model.device)
    budget_bytes = _budget_bytes(budgets.device, device, say)
    memory = _Memory(budget_bytes, _host_budget_bytes(budgets.host, device, budget_bytes, say))
    engine_config = EngineConfig(
        prompt_lookup=prompt_lookup, kv_dtype=budgets.kv_dtype, cold_kv_dtype=budgets.cold_kv_dtype
    )
    if device.startswith("cuda"):
        # A GPU's KVs lie in one arena, which is taken as a whole; a CPU's take memory as they grow.
        pinned_bytes = min(memory.host_bytes, MOST_PINNED_BYTES) + STAGED_BYTES
        engine_config = replace(engine_config, kv_arena_bytes=budget_bytes, pinned_host_bytes=pinned_bytes)
    limit_tokens = context_limit_tokens(loaded, config.context_limit_tokens)
    engine = in_passing_thread(lambda: LocalEngine(loaded, engine_config, limit_tokens))
    stack.callback(engine.close)
    info = engine.info
    say(f"Model {info.name}, {info.quantization}, on {info.device} with {info.kernel}.")
    drift = info.int8_drift.sentence if info.int8_drift else ""
    for note in (*info.notes, drift, template.rewrites_history):
        if note:
            say(note)
    return engine, template, memory


def _budget_bytes(budget: str | None, device: str, say: Say) -> int:
    """Measured after the model was loaded: its weights are not free any more."""
    from model_runtime.forward.device_memory import default_arena_bytes, free_device_bytes

    on_gpu = free_device_bytes(device)
    free_bytes = sizes.free_memory_bytes() if on_gpu is None else on_gpu
    if budget is None:
        chosen = int(free_bytes * sizes.DEFAULT_BUDGET_SHARE) if on_gpu is None else default_arena_bytes(on_gpu)
        share = f"{chosen / max(1, free_bytes):.0%} of the {formatting.size(free_bytes)} free"
        why = f"{share} on {device}; choose with --device-kv-budget"
    else:
        chosen = sizes.parse_budget(budget, free_bytes)
        why = f"as asked for, with {formatting.size(free_bytes)} free on {device}"
    say(f"KV budget {formatting.size(chosen)} ({why}).")
    return chosen


def _host_budget_bytes(budget: str | None, device: str, device_budget_bytes: int, say: Say) -> int:
    """On a CPU the device is the host's memory: what the KV budget may take is not free for a second copy."""
    on_cpu = device == "cpu"
    free_bytes = max(0, sizes.free_memory_bytes() - (device_budget_bytes if on_cpu else 0))
    if budget is None:
        chosen = 0 if on_cpu else int(free_bytes * sizes.DEFAULT_BUDGET_SHARE)
        why = "the device is this machine's memory" if on_cpu else "half of the memory that is free"
    else:
        chosen = 0 if budget.strip() == "0" else sizes.parse_budget(budget, free_bytes)
        why = f"as asked for, with {formatting.size(free_bytes)} free"
    if chosen > free_bytes:
        raise ValueError(
            f"A host KV budget of {formatting.size(chosen)} does not fit: {formatting.size(free_bytes)} of memory are "
            "free beside the model and the device's KV budget. Choose less with --host-kv-budget."
        )
    what = f"Host budget {formatting.size(chosen)}" if chosen else "No host tier"
    say(f"{what} ({why}; choose with --host-kv-budget).")
    return chosen


def _disk_budget_bytes(budget: str | None, data_dir: Path, saved_bytes: int, say: Say) -> int:
    """What is saved already counts as free: else every start would choose less than the one before."""
    free_bytes = shutil.disk_usage(data_dir).free + saved_bytes
    if budget is None:
        chosen = default_disk_kv_budget_bytes(free_bytes)
    else:
        chosen = 0 if budget.strip() == "0" else sizes.parse_budget(budget, free_bytes)
    if chosen:
        say(f"Disk budget {formatting.size(chosen)} of {formatting.size(free_bytes)} free (0 saves none).")
    else:
        say("No KV is saved to disk: after a restart every conversation is read again.")
    return chosen
