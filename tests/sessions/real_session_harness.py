"""A session manager with the real engine and a tiny model, for tests that start and close many of them."""

from __future__ import annotations

from pathlib import Path

from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.text.chat_template import ChatTemplate
from sessions.config import SessionConfig
from sessions.manager import SessionManager
from sessions.store.store import Store
from sessions.types import ConversationSettings
from tests.model_runtime.harness import WatchedEngine, loaded_tiny

MIB = 1024 * 1024
GREEDY = ConversationSettings(SamplingParams(temperature=0, max_new_tokens=12))


def load(model_dir: Path) -> LoadedModel:
    return loaded_tiny(model_dir)


def manager_of(store: Store, engine: WatchedEngine, loaded: LoadedModel, **config: object) -> SessionManager:
    """Not started yet. Nothing is read ahead, so that every forward is a turn's."""
    settings = {
        "device_kv_budget_bytes": 8 * MIB,
        "disk_kv_budget_bytes": 64 * MIB,
        "disk_free_floor_bytes": 0,
        "read_ahead": False,
        "model_titles": False,
        **config,
    }
    template = ChatTemplate(loaded.tokenizer, {0})
    return SessionManager(store, engine.engine, template, SessionConfig(**settings))  # type: ignore[arg-type]
