"""llama.cpp's own `/completion`: a list of ids in, a list of ids out.

Source: llama.cpp's `tools/server/README.md` and `server-task.cpp`; what the documentation leaves open was tried with
the build in `docs/remote-engines.md`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, cast

from model_runtime.interface.config import EMBEDDED
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.remote.connection import Connection
from model_runtime.remote.dialects.dialect import (
    End,
    Facts,
    IdLogprobs,
    NotSpoken,
    Piece,
    Slots,
    Wanted,
    are_ids,
    count_in,
    get_or_not_spoken,
    ids_in,
    try_out,
)
from model_runtime.remote.dialects.llama_slots import LlamaSlots, can_save_slots
from model_runtime.remote.trouble import Garbage

_SEEDS = 2**32 - 1  # the last one means "a random one"
# Keepwarm's order; what is missing here is off, whatever the server was started with.
_SAMPLERS = ["penalties", "temperature", "top_k", "top_p", "min_p"]
_ECHOED = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "samplers", "ignore_eos")
_WEIGHTS = {"n_vocab": "tokens", "n_params": "parameters", "size": "bytes"}
_SHARED = (
    "The engine at {address} has one cache for all users: how soon an answer begins can tell one of them that another "
    "has sent the same text."
)
_ENDS = {"eos": End.STOP, "word": End.STOP, "limit": End.LENGTH}


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """A llama.cpp server. `saves_slots`: it was started with a folder for them."""

    facts: Facts
    saves_slots: bool = False
    name: str = "llama.cpp /completion"
    path: str = "/completion"

    def refusal(self, sampling: SamplingParams) -> str:
        if sampling.presence_penalty or sampling.frequency_penalty:
            return (
                "counts the whole prompt for presence and frequency penalties, and Keepwarm's are about the answer "
                "alone: leave both at 0, or use the repetition penalty"
            )
        if sampling.min_new_tokens:
            return "cannot be told a least number of tokens: leave min_tokens out"
        return ""

    def body(self, request: Wanted) -> dict[str, Any]:
        sampling, wanted = request.sampling, request.sampling.top_logprobs
        return {
            "prompt": request.ledger,
            "n_predict": request.new_tokens,
            "id_slot": -1 if request.slot is None else request.slot,
            "stream": request.is_streamed,
            "return_tokens": True,
            "return_progress": request.is_streamed,
            "cache_prompt": True,
            "samplers": _SAMPLERS,
            "temperature": sampling.temperature,
            "dynatemp_range": 0.0,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": self.facts.context_tokens or len(request.ledger) + request.new_tokens,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "mirostat": 0,
            "seed": -1 if sampling.seed is None else sampling.seed % _SEEDS,
            "ignore_eos": sampling.ignore_eos,
            "logit_bias": [list(one) for one in sampling.logit_bias],
            "n_probs": 0 if wanted is None else max(1, wanted),
            "post_sampling_probs": False,
            "stop": [],
        }

    def piece(self, event: dict[str, Any], so_far: Sequence[int] | None = ()) -> Piece:
        progress = event.get("prompt_progress")
        if isinstance(progress, dict):  # its `tokens` are a placeholder: [0]
            reused, processed = count_in(progress.get("cache")), count_in(progress.get("processed"))
            read = None if reused is None or processed is None else max(0, processed - reused)
            return Piece(reused_tokens=reused, read_tokens=read)
        ids, written = ids_in(event, "tokens"), count_in(event.get("tokens_predicted"))
        # A token that ends within a character is not sent (`process_token`), nor is its id with what follows.
        left_out = 0 if written is None or so_far is None else written - len(so_far) - len(ids)
        if left_out < 0:
            raise Garbage("it sent ids twice")
        piece = Piece(
            ids,
            _logprobs(event, len(ids)),
            prompt_tokens=count_in(event.get("tokens_evaluated")),
            left_out_tokens=left_out,
            text=str(event.get("content") or ""),
        )
        if not event.get("stop"):
            if piece.text and not ids:
                raise Garbage("it sent text without token ids")
            return piece
        if event.get("model", self.facts.model) != self.facts.model:
            raise Garbage(f"the model {event['model']} wrote it, and not {self.facts.model}")
        timings = event.get("timings")
        reused = count_in(timings.get("cache_n")) if isinstance(timings, dict) else None
        return replace(piece, reused_tokens=reused, end=_ENDS.get(str(event.get("stop_type")), End.CUT))

    def slots(self, connection: Connection) -> Slots | None:
        return LlamaSlots(connection, self.facts.concurrent, self.facts.identity) if self.saves_slots else None

    async def identity(self, connection: Connection) -> str:
        return _identity(await connection.get("/v1/models"))

    async def ids_of(self, connection: Connection, text: str, are_controls: bool) -> list[int] | None:
        body = {"content": text, "add_special": False, "parse_special": are_controls}
        found = (await connection.post("/tokenize", body)).get("tokens")
        return cast("list[int]", found) if are_ids(found) else None

    async def text_of(self, connection: Connection, ids: list[int]) -> str | None:
        found = (await connection.post("/detokenize", {"tokens": ids})).get("content")
        return found if isinstance(found, str) else None


async def find_llama_cpp(connection: Connection, model: str, sample: tuple[int, ...]) -> LlamaCpp:
    """Asks whether this is one, and lets it write one token after `sample`. Raises `NotSpoken` or `EngineTrouble`."""
    props = await get_or_not_spoken(connection, "/props")
    settings, slots = props.get("default_generation_settings"), count_in(props.get("total_slots"))
    if not isinstance(settings, dict) or not slots:
        raise NotSpoken("its /props has no slots")
    listed = await connection.get("/v1/models")
    meta = _meta(listed)
    facts = Facts(
        model=_name(listed) or str(props.get("model_path") or props.get("model_alias") or model),
        identity=_identity(listed),
        weights=", ".join(f"{meta.get(name)} {what}" for name, what in _WEIGHTS.items()),
        context_tokens=count_in(settings.get("n_ctx")) or None,
        vocabulary_tokens=count_in(meta.get("n_vocab")) or None,
        concurrent=slots,
        notes=(*_name_note(connection.address, model, _name(listed)), _SHARED.format(address=connection.address)),
    )
    found = LlamaCpp(facts, await can_save_slots(connection))
    sampling = SamplingParams(temperature=0.0, repetition_penalty=1.1)
    _, last = await try_out(found, connection, sample, sampling)
    _refuse_dropped(last.get("generation_settings"), found.body(Wanted(sample, sampling, 1)))
    return found


def _refuse_dropped(echoed: object, asked: dict[str, Any]) -> None:
    """Raises `NotSpoken` unless all settings came back as they were sent."""
    if not isinstance(echoed, dict):
        raise NotSpoken("its /completion does not say with which settings it answered")
    changed = [name for name in _ECHOED if not _is_same(echoed.get(name), asked[name])]
    if changed:
        raise NotSpoken(f"its /completion did not honour {', '.join(changed)}")


def _is_same(found: object, asked: object) -> bool:
    if isinstance(asked, float) and isinstance(found, int | float):
        return math.isclose(float(found), asked, rel_tol=1e-5, abs_tol=1e-6)  # it computes in float32
    return found == asked


def _logprobs(event: dict[str, Any], ids: int) -> tuple[IdLogprobs, ...]:
    """Of the model's own logits, before temperature and penalties."""
    found = event.get("completion_probabilities")
    if not isinstance(found, list) or len(found) != ids:
        return ()
    return tuple(IdLogprobs(_pair(one), tuple(_pair(other) for other in one.get("top_logprobs", ()))) for one in found)


def _pair(found: object) -> tuple[int, float]:
    if isinstance(found, dict) and type(found.get("id")) is int and isinstance(found.get("logprob"), int | float):
        return int(found["id"]), float(found["logprob"])
    raise Garbage("its log-probabilities have no id or no value")


def _identity(listed: dict[str, Any]) -> str:
    meta = _meta(listed)
    return " ".join((_name(listed), *(f"{name}={meta.get(name)}" for name in (*_WEIGHTS, "n_ctx"))))


def _name_note(address: str, asked: str, own: str) -> tuple[str, ...]:
    if asked == EMBEDDED or asked in (own, PurePath(own).name, PurePath(own).stem):
        return ()
    return (f"The engine at {address} calls its model {own}; it has no other.",)


def _meta(listed: dict[str, Any]) -> dict[str, Any]:
    entry = _entry(listed)
    meta = entry.get("meta")
    return meta if isinstance(meta, dict) else {}


def _name(listed: dict[str, Any]) -> str:
    return str(_entry(listed).get("id") or "")


def _entry(listed: dict[str, Any]) -> dict[str, Any]:
    data = listed.get("data")
    return data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
