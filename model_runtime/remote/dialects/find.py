"""Finds out what a server speaks by asking it, whatever it calls itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from model_runtime.interface.errors import ModelLoadError
from model_runtime.remote.connection import Connection
from model_runtime.remote.dialects.dialect import Dialect, NotSpoken
from model_runtime.remote.dialects.llama_cpp import find_llama_cpp
from model_runtime.remote.dialects.sglang import find_sglang
from model_runtime.remote.dialects.vllm import find_vllm

_FINDERS: tuple[tuple[str, Callable[[Connection, str, tuple[int, ...]], Awaitable[Dialect]]], ...] = (
    ("llama.cpp", find_llama_cpp),
    ("SGLang", find_sglang),
    ("vLLM", find_vllm),
)


async def find_dialect(connection: Connection, model: str, sample: tuple[int, ...]) -> Dialect:
    """The first dialect in which the server takes ids and returns ids; it is asked for a token after `sample`. Raises
    `EngineTrouble`, or `ModelLoadError` with what each lacked."""
    reasons = []
    for name, find in _FINDERS:
        try:
            return await find(connection, model, sample)
        except NotSpoken as reason:
            reasons.append(f"not {name}'s ({reason})")
    raise ModelLoadError(
        f"The server at {connection.address} speaks no dialect in which token ids are sent and returned: "
        f"{', '.join(reasons)}."
    )
