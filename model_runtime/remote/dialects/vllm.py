"""vLLM's `/v1/completions` with a prompt of ids and `return_token_ids`; whatever else answers in the same way.

Source: vLLM's `vllm/entrypoints/openai/completion/protocol.py` and `serving.py` of 0.32; run against it on a CPU
(`make test-vllm`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from model_runtime.interface.config import EMBEDDED
from model_runtime.interface.errors import ModelLoadError
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.remote.connection import Connection
from model_runtime.remote.dialects.dialect import (
    End,
    Facts,
    IdLogprobs,
    Piece,
    Wanted,
    are_ids,
    ask,
    count_in,
    get_or_not_spoken,
    ids_in,
    try_out,
)
from model_runtime.remote.trouble import Garbage

CONCURRENT = 256  # its own default (`--max-num-seqs`); it queues more by itself
_ID = "token_id:"
_ENDS = {"stop": End.STOP, "length": End.LENGTH}


@dataclass(frozen=True, slots=True)
class Vllm:
    """A server of OpenAI's completions that takes and returns ids."""

    facts: Facts
    name: str = "vLLM /v1/completions"
    path: str = "/v1/completions"

    def refusal(self, sampling: SamplingParams) -> str:
        return ""

    def body(self, request: Wanted) -> dict[str, Any]:
        sampling, wanted = request.sampling, request.sampling.top_logprobs
        return {
            "model": self.facts.model,
            "prompt": request.ledger,
            "max_tokens": request.new_tokens,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "return_token_ids": True,
            "add_special_tokens": False,
            "n": 1,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            # It masks ends before a least number of ids; `ignore_eos` alone would write on behind one.
            "min_tokens": request.least_tokens,
            "ignore_eos": False,
            "stop_token_ids": request.masked_ends,
            **({"cache_salt": request.salt} if request.salt else {}),
            **({"seed": sampling.seed} if sampling.seed is not None else {}),
            **({"logit_bias": {str(id_): bias for id_, bias in sampling.logit_bias}} if sampling.logit_bias else {}),
            **({"logprobs": wanted, "return_tokens_as_token_ids": True} if wanted is not None else {}),
        }

    def piece(self, event: dict[str, Any], so_far: Sequence[int] | None = ()) -> Piece:
        if event.get("model", self.facts.model) != self.facts.model:
            raise Garbage(f"the model {event['model']} wrote it, and not {self.facts.model}")
        usage = event.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        reused, written = _cached(usage), count_in(usage.get("completion_tokens"))
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices:
            return Piece(reused_tokens=reused)
        choice = choices[0]
        if not isinstance(choice, dict):
            raise Garbage("its choice is not an object")
        ids = ids_in(choice, "token_ids")
        if choice.get("text") and not ids:
            raise Garbage("it sent text without token ids")
        if written is not None and so_far is not None and written != len(so_far) + len(ids):
            raise Garbage(f"of its {written:,} tokens the ids of some are missing, or came twice")
        ended = choice.get("finish_reason")
        end = None if ended is None else _ENDS.get(str(ended), End.CUT)
        prompt_tokens = count_in(usage.get("prompt_tokens"))
        return Piece(ids, _logprobs(choice.get("logprobs"), ids), reused, None, end, prompt_tokens)

    def slots(self, connection: Connection) -> None:
        """It finds what it has by itself."""
        return

    async def identity(self, connection: Connection) -> str:
        return _identity(_entry(await connection.get("/v1/models"), self.facts.model) or {})

    async def ids_of(self, connection: Connection, text: str, are_controls: bool) -> list[int] | None:
        body = {"model": self.facts.model, "prompt": text, "add_special_tokens": False}
        found = await ask(connection, "/tokenize", body, "tokens")
        return cast("list[int]", found) if are_ids(found) else None

    async def text_of(self, connection: Connection, ids: list[int]) -> str | None:
        found = await ask(connection, "/detokenize", {"model": self.facts.model, "tokens": ids}, "prompt")
        return found if isinstance(found, str) else None


async def find_vllm(connection: Connection, model: str, sample: tuple[int, ...]) -> Vllm:
    """Asks for its models, and for one token after `sample`. Raises `NotSpoken`, `EngineTrouble`, or `ModelLoadError`
    for a model that it does not serve."""
    listed = await get_or_not_spoken(connection, "/v1/models")
    entry = _entry(listed, model)
    if entry is None:
        names = ", ".join(str(one.get("id")) for one in _entries(listed)) or "none"
        raise ModelLoadError(f"The engine at {connection.address} serves {names}, not {model}: name one with --model.")
    facts = Facts(
        model=str(entry["id"]),
        identity=_identity(entry),
        weights=f"{entry.get('root') or entry['id']}",
        context_tokens=count_in(entry.get("max_model_len")) or None,
        vocabulary_tokens=None,
        concurrent=CONCURRENT,
    )
    found = Vllm(facts)
    pieces, _ = await try_out(found, connection, sample, SamplingParams(temperature=0.0))
    if any(piece.reused_tokens is not None for piece in pieces):
        return found
    note = (
        f"The engine at {connection.address} does not report what it reuses: start vLLM with "
        "--enable-prompt-tokens-details, and receipts will say it."
    )
    return replace(found, facts=replace(facts, notes=(note,)))


def _cached(usage: dict[str, Any]) -> int | None:
    details = usage.get("prompt_tokens_details")
    return count_in(details.get("cached_tokens")) if isinstance(details, dict) else None


def _logprobs(found: object, ids: tuple[int, ...]) -> tuple[IdLogprobs, ...]:
    """Of the model's own logits (`--logprobs-mode raw_logprobs`, its default)."""
    if not isinstance(found, dict):
        return ()
    own, top = found.get("token_logprobs"), found.get("top_logprobs")
    if not isinstance(own, list) or len(own) != len(ids):
        return ()
    others = top if isinstance(top, list) and len(top) == len(ids) else [None] * len(ids)
    return tuple(
        IdLogprobs((id_, _number(value)), _best(other)) for id_, value, other in zip(ids, own, others, strict=True)
    )


def _best(found: object) -> tuple[tuple[int, float], ...]:
    if not isinstance(found, dict):
        return ()
    pairs = [(_id(name), _number(value)) for name, value in found.items()]
    return tuple(sorted(pairs, key=lambda pair: -pair[1]))


def _id(name: str) -> int:
    digits = name.removeprefix(_ID)
    if name == digits or not digits.isdecimal():
        raise Garbage("its log-probabilities name no ids")
    return int(digits)


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise Garbage("its log-probabilities have no value")


def _identity(entry: dict[str, Any]) -> str:
    return " ".join(f"{name}={entry.get(name)}" for name in ("id", "root", "max_model_len"))


def _entry(listed: dict[str, Any], model: str) -> dict[str, Any] | None:
    entries = _entries(listed)
    if model == EMBEDDED and len(entries) == 1:
        return entries[0]
    return next((one for one in entries if one.get("id") == model), None)


def _entries(listed: dict[str, Any]) -> list[dict[str, Any]]:
    data = listed.get("data")
    return [one for one in data if isinstance(one, dict) and one.get("id")] if isinstance(data, list) else []
