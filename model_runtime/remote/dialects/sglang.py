"""SGLang's `/generate` with `input_ids`: ids in, `output_ids` out.

Source: SGLang 0.5.23, `python/sglang/srt`: `managers/io_struct.py` and `sampling/sampling_params.py` (requests),
`managers/tokenizer_manager.py` (`_handle_batch_output`: answers; `_validate_one_request`: lengths),
`managers/scheduler_components/output_streamer.py` (the end is part of the ids), `managers/tp_worker.py`
(`max_req_input_len`), `entrypoints/http_server.py`, `sampling/penaltylib/` (all penalties count the answer alone).
A client that goes ends its answer two seconds later (`create_abort_task`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.remote.connection import LATER, Connection
from model_runtime.remote.dialects.dialect import (
    End,
    Facts,
    IdLogprobs,
    NotSpoken,
    Piece,
    Wanted,
    are_ids,
    ask,
    count_in,
    ids_in,
    is_no_answer,
    try_out,
)
from model_runtime.remote.trouble import EngineTrouble, Full, Garbage

CONCURRENT = 256  # unless it says otherwise; it queues more by itself
# Of a context it keeps so many tokens back: no prompt may have as many as what is left (`max_req_input_len`).
_KEPT_BACK_TOKENS = 6
_MODEL_PATHS = ("/model_info", "/get_model_info")  # the newer name first
_SERVER_PATHS = ("/server_info", "/get_server_info")
_ENDS = {"stop": End.STOP, "length": End.LENGTH}


@dataclass(frozen=True, slots=True)
class Sglang:
    """An SGLang server. `has_seeds`: it was started so that seeds have an effect. `has_tokenizer`: not with
    --skip-tokenizer-init."""

    facts: Facts
    has_seeds: bool = False
    has_tokenizer: bool = True
    name: str = "SGLang /generate"
    path: str = "/generate"

    def refusal(self, sampling: SamplingParams) -> str:
        if sampling.repetition_penalty != 1.0:
            return (
                "counts the answer alone for the repetition penalty, and Keepwarm's is about the whole conversation: "
                "leave it at 1, or use the presence or the frequency penalty"
            )
        if sampling.seed is not None and not self.has_seeds:
            return "uses seeds only when it is started with --enable-deterministic-inference: leave the seed out"
        if sampling.top_logprobs is not None and _changes_logprobs(sampling):
            return (
                "reports log-probabilities as temperature, penalties and biases change them, and Keepwarm's are the "
                "model's own: ask for them at temperature 0 or 1 alone, or leave them out"
            )
        asked = {"min_tokens": sampling.min_new_tokens, "ignore_eos": sampling.ignore_eos}
        masking = " and ".join(name for name, value in asked.items() if value)
        if masking and not self.has_tokenizer:
            return f"runs with --skip-tokenizer-init and masks no ends: leave {masking} out"
        return ""

    def body(self, request: Wanted) -> dict[str, Any]:
        sampling, wanted = request.sampling, request.sampling.top_logprobs
        parameters = {
            "n": 1,
            "stop": [],
            "max_new_tokens": request.new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repetition_penalty": 1.0,
            # It masks ends before a least number of ids; `ignore_eos` alone would write on behind one.
            "min_new_tokens": request.least_tokens,
            "stop_token_ids": request.masked_ends,
            "ignore_eos": False,
            "no_stop_trim": True,
            "skip_special_tokens": False,
            **({"sampling_seed": sampling.seed} if sampling.seed is not None else {}),
            **({"logit_bias": {str(id_): bias for id_, bias in sampling.logit_bias}} if sampling.logit_bias else {}),
        }
        logprobs = {"return_logprob": True, "top_logprobs_num": wanted, "logprob_start_len": -1}
        asked = {**(logprobs if wanted is not None else {}), **({"extra_key": request.salt} if request.salt else {})}
        return {"input_ids": request.ledger, "sampling_params": parameters, "stream": True, **asked}

    def piece(self, event: dict[str, Any], so_far: Sequence[int] | None = ()) -> Piece:
        meta = event.get("meta_info")
        if not isinstance(meta, dict):
            raise Garbage("it has no meta_info")
        ended = meta.get("finish_reason")
        kind = ended.get("type") if isinstance(ended, dict) else ended
        if isinstance(ended, dict) and kind == "abort":
            said = str(ended.get("message") or "without a reason")
            if ended.get("status_code") in LATER:  # the status of the response was sent before
                raise Full(said)
            raise Garbage(f"it gave the answer up ({said})")
        if isinstance(ended, dict) and isinstance(ended.get("matched"), str):
            # No text was to end it. `NaN happened`: an id that is none, with an end in its place.
            raise Garbage(f"it ended the answer with {ended['matched']!r}")
        end = None if kind is None else _ENDS.get(str(kind), End.CUT)
        reused, prompt_tokens = count_in(meta.get("cached_tokens")), count_in(meta.get("prompt_tokens"))
        if so_far is None:
            return Piece(reused_tokens=reused, end=end)
        ids = _news(ids_in(event, "output_ids"), tuple(so_far), count_in(meta.get("completion_tokens")))
        return Piece(ids, _logprobs(meta, ids), reused, None, end, prompt_tokens)

    def slots(self, connection: Connection) -> None:
        """It finds what it has by itself."""
        return

    async def identity(self, connection: Connection) -> str:
        return _identity(await _first(connection, _MODEL_PATHS))

    async def ids_of(self, connection: Connection, text: str, are_controls: bool) -> list[int] | None:
        if not self.has_tokenizer:
            return None
        body = {"model": self.facts.model, "prompt": text, "add_special_tokens": False}
        found = await ask(connection, "/tokenize", body, "tokens")
        return cast("list[int]", found) if are_ids(found) else None

    async def text_of(self, connection: Connection, ids: list[int]) -> str | None:
        if not self.has_tokenizer:
            return None
        body = {"model": self.facts.model, "tokens": ids, "skip_special_tokens": False}
        found = await ask(connection, "/detokenize", body, "text")
        return found if isinstance(found, str) else None


async def find_sglang(connection: Connection, model: str, sample: tuple[int, ...]) -> Sglang:
    """Asks what it is, and for one token after `sample`. Raises `NotSpoken` or `EngineTrouble`."""
    try:
        info = await _first(connection, _MODEL_PATHS)
    except EngineTrouble as trouble:
        if is_no_answer(trouble):
            raise
        raise NotSpoken("it has no /model_info") from trouble
    if not isinstance(info.get("model_path"), str):
        raise NotSpoken("its /model_info names no model")
    settings = await _settings(connection)
    facts = Facts(
        model=str(info["model_path"]),
        identity=_identity(info),
        weights=f"{info['model_path']} {info.get('weight_version') or ''}".strip(),
        context_tokens=_usable_tokens(
            settings, count_in(settings.get("context_length")) or await _context_tokens(connection)
        ),
        vocabulary_tokens=None,
        concurrent=count_in(settings.get("max_running_requests")) or CONCURRENT,
    )
    has_seeds, has_no_tokenizer = (
        settings.get(name) is True for name in ("enable_deterministic_inference", "skip_tokenizer_init")
    )
    found = Sglang(facts, has_seeds, not has_no_tokenizer)
    await try_out(found, connection, sample, SamplingParams(temperature=0.0))
    return found


def _changes_logprobs(sampling: SamplingParams) -> bool:
    """`layers/sampler.py`: they are of the logits from which the id is drawn, before top-k, top-p and min-p."""
    changed = (sampling.presence_penalty, sampling.frequency_penalty, sampling.logit_bias, sampling.min_new_tokens)
    return sampling.temperature not in (0.0, 1.0) or any(changed) or sampling.ignore_eos


def _news(ids: tuple[int, ...], so_far: tuple[int, ...], count: int | None) -> tuple[int, ...]:
    """The new ids of an event, which has all ids of the answer or, with `--incremental-streaming-output`, the new ones
    alone. `count` is the number of ids up to now. A list of all ids may have some more: it goes on growing until it is
    sent."""
    if count is None:
        raise Garbage("it does not say how many tokens there are")
    if len(so_far) + len(ids) == count:
        return ids
    if len(ids) >= count and ids[: len(so_far)] == so_far:
        return ids[len(so_far) :]
    raise Garbage(f"of its {count:,} tokens the ids of some are missing")


def _logprobs(meta: dict[str, Any], ids: tuple[int, ...]) -> tuple[IdLogprobs, ...]:
    """Of the model's own logits. The lists are of all ids so far, or of the new ones: their last entries count."""
    own, top = meta.get("output_token_logprobs"), meta.get("output_top_logprobs")
    if not ids or not isinstance(own, list) or len(own) < len(ids):
        return ()
    others = top[-len(ids) :] if isinstance(top, list) and len(top) >= len(ids) else [None] * len(ids)
    chosen = [_pair(one) for one in own[-len(ids) :]]
    if [id_ for id_, _ in chosen] != list(ids):
        raise Garbage("its log-probabilities are of other ids")
    return tuple(
        IdLogprobs(pair, tuple(_pair(one) for one in other or ())) for pair, other in zip(chosen, others, strict=True)
    )


def _pair(found: object) -> tuple[int, float]:
    """`[log-probability, id, text]`."""
    if isinstance(found, list) and len(found) >= 2 and isinstance(found[0], int | float) and type(found[1]) is int:
        return found[1], float(found[0])
    raise Garbage("its log-probabilities have no id or no value")


def _usable_tokens(settings: dict[str, Any], context_tokens: int | None) -> int | None:
    """How many ids prompt and answer may have together, so that every prompt of fewer is taken and every answer may
    reach the limit. Its pool of rows may be smaller than the context; drafts take rows too."""
    pool_tokens = count_in(settings.get("max_req_input_len"))
    drafts = [count_in(settings.get(f"speculative_{name}")) or 0 for name in ("eagle_topk", "num_steps")]
    draft_tokens = max(drafts[0] * drafts[1], count_in(settings.get("speculative_num_draft_tokens")) or 0)
    usable = [pool_tokens] if pool_tokens else []
    if context_tokens:
        usable.append(context_tokens - max(_KEPT_BACK_TOKENS, draft_tokens))
    return max(min(usable), 1) if usable else None


async def _first(connection: Connection, paths: tuple[str, ...]) -> dict[str, Any]:
    """The answer of the first path that is there. Raises `EngineTrouble`."""
    for path in paths[:-1]:
        try:
            return await connection.get(path)
        except EngineTrouble as trouble:
            if trouble.status != 404:
                raise
    return await connection.get(paths[-1])


async def _settings(connection: Connection) -> dict[str, Any]:
    try:
        return await _first(connection, _SERVER_PATHS)
    except EngineTrouble as trouble:
        if trouble.status is None:
            raise
        return {}


async def _context_tokens(connection: Connection) -> int | None:
    try:
        data = (await connection.get("/v1/models")).get("data")
    except EngineTrouble as trouble:
        if trouble.status is None:
            raise
        return None
    entry = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
    return count_in(entry.get("max_model_len")) or None


def _identity(info: dict[str, Any]) -> str:
    return " ".join(f"{name}={info.get(name)}" for name in ("model_path", "tokenizer_path", "weight_version"))
