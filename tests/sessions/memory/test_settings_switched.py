"""One start with another flag, then back: saved memory stays and is used again, and none of another model is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from transformers import LlamaConfig, LlamaForCausalLM

import model_runtime.interface.segments
import model_runtime.kv.segment
import sessions.memory.moves.restore
from model_runtime.engine.engine import LocalEngine
from model_runtime.interface.config import EngineConfig, ModelConfig
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model, unload
from model_runtime.text.chat_template import ChatTemplate
from sessions.config import SessionConfig
from sessions.manager import SessionManager
from sessions.memory.saved.speed import RestoreChoice
from sessions.store.store import Store
from sessions.types import ConversationSettings, MissReason, Receipt, Tier
from tests.conftest import TinyDir
from tests.model_runtime.tiny_gguf import write_gguf
from tests.model_runtime.tiny_models import VOCABULARY_TOKENS, _save, _token_ids
from tests.sessions.session_harness import ADA, finish

MIB = 1024 * 1024
GREEDY = ConversationSettings(SamplingParams(temperature=0, max_new_tokens=12))
TEXTS = ("Tell me about the harbour in the morning, and the boats.", "And in the evening?")


@dataclass(frozen=True)
class Flags:
    """The settings that a server is started with."""

    model: str = "a.gguf"
    quantization: str = "none"
    kv_dtype: str = "auto"
    cold_kv_dtype: str = "exact"
    disk_bytes: int = 64 * MIB
    format_version: int = 1


class Server:
    """One run of a server."""

    def __init__(self, data_dir: Path, loaded: LoadedModel, flags: Flags) -> None:
        config = EngineConfig(
            prefill_chunk_tokens=32,
            kv_dtype=flags.kv_dtype,  # type: ignore[arg-type]
            cold_kv_dtype=flags.cold_kv_dtype,  # type: ignore[arg-type]
            prompt_lookup="off",
        )
        self.said: list[str] = []
        self.store, self.engine = Store(data_dir), LocalEngine(loaded, config, 512)
        sessions_config = SessionConfig(
            8 * MIB,
            disk_kv_budget_bytes=flags.disk_bytes,
            disk_free_floor_bytes=0,
            read_ahead=False,
            model_titles=False,
        )
        template = ChatTemplate(loaded.tokenizer, set(loaded.stop_token_ids))
        self.manager = SessionManager(self.store, self.engine, template, sessions_config)
        self.manager.start(self.said.append)

    def conversation(self) -> str:
        return self.manager.create_conversation(ADA, GREEDY).conversation_id

    def say(self, conversation_id: str, text: str) -> tuple[str, Receipt]:
        message = finish(self.manager.send(ADA, conversation_id, text), timeout_s=60)
        assert message.receipt is not None, message.note
        return message.text, message.receipt

    def close(self) -> None:
        self.manager.close()
        self.engine.close()
        self.store.close()


Serve = Callable[[Flags], AbstractContextManager[Server]]


@pytest.fixture(scope="module")
def gguf_dir(tiny_dir: TinyDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints with the same tokenizer. Heads of 32, so that our own CPU kernels run the one with 4 bits."""
    folder = tmp_path_factory.mktemp("switched")
    config = LlamaConfig(
        vocab_size=VOCABULARY_TOKENS,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        **_token_ids(),
    )
    write_gguf(_save(LlamaForCausalLM, config, folder / "wide"), folder / "a.gguf", GGMLQuantizationType.Q4_1)
    write_gguf(tiny_dir("llama"), folder / "b.gguf", GGMLQuantizationType.Q8_0)
    return folder


@pytest.fixture(scope="module")
def loaded(gguf_dir: Path) -> Iterator[Callable[[Flags], LoadedModel]]:
    """Loads each model once: a server's engine is closed, its weights are used by the next one."""
    models: dict[tuple[str, str], LoadedModel] = {}

    def load(flags: Flags) -> LoadedModel:
        key = (flags.model, flags.quantization)
        if key not in models:
            path = str(gguf_dir / flags.model)
            config = ModelConfig(model=path, quantization=flags.quantization, cache_dir=gguf_dir / "cache")  # type: ignore[arg-type]
            models[key] = load_model(config, lambda sentence: None)
        return models[key]

    yield load
    for model in models.values():
        unload(model)


@pytest.fixture
def serving(tmp_path: Path, loaded: Callable[[Flags], LoadedModel], monkeypatch: pytest.MonkeyPatch) -> Serve:
    # Reading 100 tokens with a model of 3 layers takes no longer than opening a file.
    monkeypatch.setattr(sessions.memory.moves.restore, "choose", lambda *args: RestoreChoice(True, "For the test."))

    @contextmanager
    def serve(flags: Flags) -> Iterator[Server]:
        for module in (model_runtime.interface.segments, model_runtime.kv.segment):
            monkeypatch.setattr(module, "FORMAT_VERSION", flags.format_version)
        server = Server(tmp_path / "data", loaded(flags), flags)
        try:
            yield server
        finally:
            server.close()

    return serve


A = Flags()
SWITCHES = {
    "--kv-dtype": (Flags(quantization="shipped", kv_dtype="float16"), {"kv_dtype": "float32"}, "precision of keys"),
    "--model": (A, {"model": "b.gguf"}, "model was changed"),
    "--quantization": (A, {"quantization": "shipped"}, "uantization was changed"),
    "--cold-kv-dtype": (A, {"cold_kv_dtype": "int8"}, "precision of saved memory"),
    "another version": (A, {"format_version": 2}, "upgraded to another format"),
}

# The rest compile kernels or load more models; test_other_models.py has every switch without a model.
IN_CI = ("--model", "another version")


@pytest.mark.parametrize("switch", [s if s in IN_CI else pytest.param(s, marks=pytest.mark.long) for s in SWITCHES])
def test_switched_and_back(serving: Serve, tmp_path: Path, switch: str) -> None:
    a, changes, why = SWITCHES[switch]
    b = replace(a, **changes)  # type: ignore[arg-type]
    with serving(a) as server:
        gone_on, left = server.conversation(), ""
        server.say(gone_on, TEXTS[0])
        server.say(gone_on, TEXTS[1])
        left = server.conversation()
        server.say(left, TEXTS[1])
    of_a = sorted((tmp_path / "data" / "kv").rglob("*.kv"))
    with serving(b) as server:
        memory = server.manager.memory_view(ADA)
        assert memory.disk_other_bytes == memory.disk_used_bytes > 0
        assert any("belong to other models or settings. They stay" in sentence for sentence in server.said)
        assert {row.tier for row in memory.rows} == {Tier.NONE}
        _, receipt = server.say(gone_on, "Go on with the others.")
        expected = MissReason.UPGRADED if switch == "another version" else MissReason.MODEL_CHANGED
        assert (receipt.tier_before, receipt.miss_reason, receipt.reused_tokens) == (Tier.NONE, expected, 0)
        assert why in receipt.miss_detail
        _, receipt = server.say(gone_on, "And again.")
        assert receipt.miss_reason is None
    assert set(of_a) <= set((tmp_path / "data" / "kv").rglob("*.kv"))
    with serving(b) as server:
        _, receipt = server.say(gone_on, "Once more.")
        assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, None)
    with serving(a) as server:
        text, receipt = server.say(left, "Still there?")
        assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, None)
        assert receipt.fed_tokens == receipt.delta_tokens
        server.manager.drop_kv(ADA, left)
        assert finish(server.manager.regenerate(ADA, left)).text == text
        text, receipt = server.say(gone_on, "Back again.")
        assert receipt.tier_before is Tier.DISK, "its own beginning was on disk"
        assert receipt.reused_tokens > len(TEXTS[0])
        assert receipt.miss_reason is expected
        server.manager.drop_kv(ADA, gone_on)
        assert finish(server.manager.regenerate(ADA, gone_on)).text == text


def test_a_disk_budget_of_0_once(serving: Serve, tmp_path: Path) -> None:
    """Nothing is written, read or deleted."""
    with serving(A) as server:
        c = server.conversation()
        server.say(c, TEXTS[0])
    files = {path: path.read_bytes() for path in (tmp_path / "data" / "kv").rglob("*.kv")}
    assert files
    with serving(replace(A, disk_bytes=0)) as server:
        assert any("neither read nor deleted" in sentence for sentence in server.said)
        memory = server.manager.memory_view(ADA)
        assert memory.disk_used_bytes > 0
        assert memory.disk_budget_bytes == 0
        assert memory.rows[0].tier is Tier.NONE
        _, receipt = server.say(c, TEXTS[1])
        assert (receipt.tier_before, receipt.miss_reason) == (Tier.NONE, MissReason.DISK_OFF)
        assert "is not read while the server runs with --disk-kv-budget 0" in receipt.miss_detail
    assert {path: path.read_bytes() for path in (tmp_path / "data" / "kv").rglob("*.kv")} == files
    with serving(A) as server:
        _, receipt = server.say(c, "And now?")
        assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, MissReason.DISK_OFF)
        assert receipt.reused_tokens > 10
        assert "was not saved, because the server ran with --disk-kv-budget 0" in receipt.miss_detail
        _, receipt = server.say(c, "And then?")
        assert receipt.miss_reason is None
