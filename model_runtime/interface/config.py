"""Settings of the model and the engine. Imports no torch, because the command line builds them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from model_runtime.interface.require import require

Quantization = Literal["auto", "shipped", "nf4", "int8", "none"]
PromptLookup = Literal["auto", "on", "off"]
KvDtype = Literal["auto", "float32", "float16"]
SavedKvDtype = Literal["exact", "int8"]
CpuActivations = Literal["auto", "int8", "int16", "float32"]
ChatPresetName = Literal[
    "question-answer",
    "chatml",
    "llama2",
    "mistral",
    "vicuna",
    "alpaca",
    "zephyr",
    "starchat",
    "tulu",
    "openassistant",
    "user-assistant",
]
CHAT_PRESETS: tuple[ChatPresetName, ...] = get_args(ChatPresetName)
EMBEDDED = "embedded"
SESSION_HEADER = "x-session-id"
_HEADER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/keepwarm`, or `~/.cache/keepwarm`. A relative XDG path is ignored, as the specification says.
    Raises `ValueError` for a user without a home directory."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (root if root.is_absolute() else Path.home() / ".cache") / "keepwarm"
    except RuntimeError as error:
        raise ValueError("This user has no home directory: name a cache directory with XDG_CACHE_HOME.") from error


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model, at which precision, on which device.

    `model` is "embedded", a directory, a `.gguf` file or a hub id. `device` None means the first CUDA device, or the
    CPU if there is none. `context_limit_tokens` None means the model's own limit. `chat_preset` None means the model's
    own chat template. `cpu_activations` is what our own CPU kernels multiply weights by: "int8" is faster and rounds
    activations to bytes with a scale for 32 of them, "int16" to two bytes; "auto" measures what that costs this model.
    Raises `ValueError` with a message for the user.
    """

    model: str = EMBEDDED
    quantization: Quantization = "auto"
    context_limit_tokens: int | None = None
    cache_dir: Path = field(default_factory=default_cache_dir)
    device: str | None = None
    chat_preset: ChatPresetName | None = None
    cpu_activations: CpuActivations = "auto"

    def __post_init__(self) -> None:
        require(bool(self.model.strip()), "Name a model: a directory, a .gguf file, a hub id or 'embedded'.")
        require("\0" not in self.model, "A model's name cannot contain a NUL character.")
        choices = get_args(Quantization)
        require(
            self.quantization in choices,
            f"Quantization must be one of {', '.join(choices)}, not '{self.quantization}'.",
        )
        limit = self.context_limit_tokens
        require(limit is None or limit >= 16, f"The context limit must be at least 16 tokens, not {limit}.")
        device = self.device
        known = device is None or device in ("cpu", "cuda") or (device[:5] == "cuda:" and device[5:].isdecimal())
        require(
            self.chat_preset in (None, *CHAT_PRESETS),
            f"The chat preset must be one of {', '.join(CHAT_PRESETS)}, not '{self.chat_preset}'.",
        )
        kinds = get_args(CpuActivations)
        require(
            self.cpu_activations in kinds,
            f"The activations' precision must be one of {', '.join(kinds)}, not '{self.cpu_activations}'.",
        )
        require(known, f"The device must be 'cpu', 'cuda' or 'cuda:<number>', not '{device}'.")


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """Which remote engine computes, and what its model's text is made of.

    `addresses` are those of its servers, which all serve `model`: a name that they know, or "embedded". `tokenizer` is
    a directory, a `.gguf` file or a hub id; None means that `model` names it. `key` is sent as a bearer token, "" for
    none. A server that sends no token for `silence_s`, and reports no progress with reading, counts as hanging.
    `session_header` carries the same value for requests that have their beginnings in common, so that a router can send
    them to the same server. Raises `ValueError` with a message for the user."""

    addresses: tuple[str, ...]
    model: str = EMBEDDED
    tokenizer: str | None = None
    key: str = field(default="", repr=False)
    context_limit_tokens: int | None = None
    chat_preset: ChatPresetName | None = None
    cache_dir: Path = field(default_factory=default_cache_dir)
    session_header: str = SESSION_HEADER
    silence_s: float = 300.0

    def __post_init__(self) -> None:
        require(bool(self.addresses), "Name an engine's address, such as http://127.0.0.1:8080.")
        require(bool(self.model.strip()), "Name the model that the engine serves.")
        limit = self.context_limit_tokens
        require(limit is None or limit >= 16, f"The context limit must be at least 16 tokens, not {limit}.")
        require(self.silence_s > 0, "An engine must be given more than 0 seconds to answer.")
        require(
            _HEADER_NAME.fullmatch(self.session_header) is not None,
            f"'{self.session_header}' cannot be the name of an HTTP header.",
        )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Engine settings: the longest prefill chunk, how many generations share a step, and the step in which a KV grows.
    Idle reading uses chunks of `idle_chunk_tokens`, because an arriving request may discard the chunk in progress.

    `prompt_lookup` drafts the next tokens from the conversation's own text: "auto" drafts when the measured step costs
    and the acceptance rate so far predict a gain, "on" drafts whenever there is a match.

    `kv_dtype` is the precision in which our own CPU kernels store rows: "auto" is float16, half the bytes of float32,
    if the model tolerates it. Other kernels store rows in the dtype the model computes in and refuse any other.

    `cold_kv_dtype` is the precision of rows in host memory and on disk: "int8" is smaller but not exact.

    `kv_arena_bytes` puts all KVs into one arena of that size, allocated at once (CUDA); None lets each KV grow alone.
    `pinned_host_bytes` are page-locked for copies between an arena and host memory.
    `record_steps` replays an arena's decode steps and short turns as CUDA graphs instead of launching each kernel,
    where that is possible.

    Raises `ValueError` with a message for the user.
    """

    prefill_chunk_tokens: int = 512
    max_concurrent: int = 10
    kv_step_tokens: int = 256
    idle_chunk_tokens: int = 128
    kv_arena_bytes: int | None = None
    record_steps: bool = True
    pinned_host_bytes: int = 0
    prompt_lookup: PromptLookup = "auto"
    kv_dtype: KvDtype = "auto"
    cold_kv_dtype: SavedKvDtype = "exact"

    def __post_init__(self) -> None:
        require(
            1 <= self.prefill_chunk_tokens <= 65_536,
            f"A prefill chunk must have 1 to 65,536 tokens, not {self.prefill_chunk_tokens}.",
        )
        require(
            1 <= self.max_concurrent <= 1_024,
            f"Between 1 and 1,024 answers can be generated at once, not {self.max_concurrent}.",
        )
        require(
            1 <= self.kv_step_tokens <= 65_536,
            f"A KV must grow in steps of 1 to 65,536 tokens, not {self.kv_step_tokens}.",
        )
        require(
            1 <= self.idle_chunk_tokens <= 65_536,
            f"A chunk of idle reading must have 1 to 65,536 tokens, not {self.idle_chunk_tokens}.",
        )
        require(
            self.kv_arena_bytes is None or self.kv_arena_bytes > 0,
            f"A KV arena must have a positive size, not {self.kv_arena_bytes} bytes.",
        )
        require(
            self.pinned_host_bytes >= 0,
            f"The pinned host memory must be 0 or more bytes, not {self.pinned_host_bytes}.",
        )
        choices = get_args(PromptLookup)
        require(
            self.prompt_lookup in choices,
            f"Prompt lookup must be one of {', '.join(choices)}, not '{self.prompt_lookup}'.",
        )
        choices = get_args(KvDtype)
        require(
            self.kv_dtype in choices, f"The KV's precision must be one of {', '.join(choices)}, not '{self.kv_dtype}'."
        )
        choices = get_args(SavedKvDtype)
        require(
            self.cold_kv_dtype in choices,
            f"The precision of saved KVs must be one of {', '.join(choices)}, not '{self.cold_kv_dtype}'.",
        )
