"""The dialects of scripted servers, as the real ones were seen or are documented to speak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.model_runtime.remote.scripted_server import Refused, ScriptedServer, common

UNFINISHED = "\ufffd"  # bytes that are no character yet


class LlamaCppScript:
    """llama.cpp's own endpoints, as build 11549 answered: progress events carry a placeholder token, a token that ends
    within a character is not sent at all, every setting comes back in the last event."""

    returns_tokens = True
    drops = ""  # a setting that it does not honour
    loses: int | None = None  # this event of every stream never arrives
    drafts = 1  # so many tokens are counted before the first of them is sent
    repeats: int | None = None  # this one comes twice
    cuts_tokens = 0  # so many ids of the prompt are not read
    saves_slots = False
    restores_nothing = False  # it says that it did

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, ...]] = {}
        self.files: dict[str, tuple[int, ...]] = {}
        self.moves: list[tuple[str, int]] = []

    def get(self, server: ScriptedServer, path: str) -> dict[str, Any] | None:
        if path == "/props":
            return {
                "default_generation_settings": {"n_ctx": server.context_tokens},
                "total_slots": server.slots,
                "model_path": server.model,
            }
        if path == "/v1/models":
            meta = {"n_vocab": server.vocabulary_tokens, "n_params": 1, "size": 2, "n_ctx": server.context_tokens}
            return {"data": [{"id": server.model, "meta": meta}]}
        return None

    def post(self, server: ScriptedServer, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        if path == "/tokenize":
            return {"tokens": _typed(server, body["content"], body["parse_special"])}
        if path == "/detokenize":
            return {"content": server.text(body["tokens"])}
        if path.startswith("/slots/"):
            return self._move(server, path, str(body["filename"]))
        if path == "/completion" and not body["stream"]:
            server.asked.append(dict(body))
            *_, last = self._events(server, body)
            answer = server.answer(tuple(body["prompt"]))[: body["n_predict"]]
            return {**last, "tokens": answer, "content": server.shown(answer)}
        return None

    def _move(self, server: ScriptedServer, path: str, name: str) -> dict[str, Any]:
        number, action = int(path.removeprefix("/slots/").partition("?")[0]), path.rpartition("=")[2]
        if not self.saves_slots:
            raise Refused(501, "This server does not support slots action. Start it with `--slot-save-path`")
        if ".." in name:
            raise Refused(400, "Invalid filename")
        self.moves.append((action, number))
        if action == "save":
            self.files[name] = self.slots.get(number, ())
            return {"n_saved": len(self.files[name]), "n_written": 10 * len(self.files[name])}
        if name not in self.files:
            raise Refused(400, "Unable to restore slot")
        self.slots[number] = () if self.restores_nothing else self.files[name]
        return {"n_restored": len(self.files[name]), "n_read": 10 * len(self.files[name])}

    def events(self, server: ScriptedServer, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]] | None:
        return self._events(server, body) if path == "/completion" else None

    def _events(self, server: ScriptedServer, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        ledger, slot = tuple(body["prompt"]), int(body["id_slot"])
        reused = server.read(ledger) if slot < 0 else min(common(self.slots.get(slot, ()), ledger), len(ledger) - 1)
        counted: dict[str, Any] = {"index": 0, "tokens_evaluated": len(ledger) - self.cuts_tokens}
        if server.reports_reuse:
            for processed in (reused, len(ledger)):
                progress = {"total": len(ledger), "cache": reused, "processed": processed, "time_ms": 1}
                start = {"content": "", "tokens": [0], "stop": False, "tokens_predicted": 0}
                yield {**counted, **start, "prompt_progress": progress}
        answer = server.answer(ledger)[: body["n_predict"]]
        said = ""
        for count, token_id in enumerate(answer, 1):
            whole = server.shown(answer[:count])
            if whole.endswith(UNFINISHED):
                continue
            content, said = whole[len(said) :], whole
            written = min(-(-count // self.drafts) * self.drafts, len(answer))
            event = {**counted, "content": content, "stop": False, "tokens_predicted": written, "_tokens": 1}
            if self.returns_tokens:
                event["tokens"] = [token_id]
            if body["n_probs"]:
                others = [{"id": n, "token": "?", "logprob": -1.0 - n} for n in range(body["n_probs"])]
                chosen = {"id": token_id, "token": "?", "logprob": -0.5, "top_logprobs": others}
                event["completion_probabilities"] = [chosen]
            if count != self.loses:
                yield event
            if count == self.repeats:
                yield {**event, "_tokens": 1}
        server.wrote(ledger + tuple(answer[:-1]))
        self.slots[slot] = ledger + tuple(answer[:-1])
        has_ended = bool(answer) and answer[-1] == server.end_id
        settings = {name: value for name, value in body.items() if name != self.drops}
        yield {
            **counted,
            "content": "",
            "tokens": [],
            "tokens_predicted": len(answer),
            "stop": True,
            "model": server.model,
            "stop_type": "eos" if has_ended else "limit",
            "generation_settings": settings,
            "timings": {"cache_n": reused} if server.reports_reuse else {},
        }


def _typed(server: ScriptedServer, text: str, are_controls: bool) -> list[int]:
    """As llama.cpp: control tokens in a text are such only where that is asked for."""
    return server.ids(text) if are_controls else list(server.plain.encode(text, add_special_tokens=False).ids)


class VllmScript:
    """vLLM's completions, as its source has them (`entrypoints/openai/completion/serving.py` at 030ea52e): usage comes
    with every event, and once more after the end, then with what was reused."""

    reports_details = True
    returns_ids = True
    repeats: int | None = None  # this event of an answer comes twice

    def get(self, server: ScriptedServer, path: str) -> dict[str, Any] | None:
        if path == "/v1/models":
            return {"data": [{"id": server.model, "root": server.model, "max_model_len": server.context_tokens}]}
        return None

    def post(self, server: ScriptedServer, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        if path == "/tokenize":
            return {"tokens": server.ids(body["prompt"])}
        if path == "/detokenize":
            return {"prompt": server.text(body["tokens"])}
        return None

    def events(self, server: ScriptedServer, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]] | None:
        return self._events(server, body) if path == "/v1/completions" else None

    def _events(self, server: ScriptedServer, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        ledger = tuple(body["prompt"])
        reused = server.read(ledger, body.get("cache_salt", ""))
        answer = server.answer(ledger)[: body["max_tokens"]]
        for place, token_id in enumerate(answer):
            has_ended, is_last = token_id == server.end_id, place == len(answer) - 1
            choice: dict[str, Any] = {"index": 0, "text": "" if has_ended else "x", "stop_reason": None}
            choice["finish_reason"] = ("stop" if has_ended else "length") if is_last else None
            choice["prompt_token_ids"] = list(ledger) if self.returns_ids and not place else None
            choice["token_ids"] = [token_id] if self.returns_ids else None
            if "logprobs" in body:
                top = {f"token_id:{n}": -1.0 - n for n in range(body["logprobs"])}
                choice["logprobs"] = {"token_logprobs": [-0.5], "top_logprobs": [top]}
            event: dict[str, Any] = {
                "object": "text_completion",
                "model": body["model"],
                "choices": [choice],
                "_tokens": 1,
            }
            if body["stream_options"].get("continuous_usage_stats"):
                event["usage"] = {"prompt_tokens": len(ledger), "completion_tokens": place + 1}
            yield event
            if place + 1 == self.repeats:
                yield {**event, "_tokens": 1}
        server.wrote(ledger + tuple(answer[:-1]), body.get("cache_salt", ""))
        usage: dict[str, Any] = {"prompt_tokens": len(ledger), "completion_tokens": len(answer)}
        if self.reports_details and server.reports_reuse:
            usage["prompt_tokens_details"] = {"cached_tokens": reused}
        yield {"model": body["model"], "choices": [], "usage": usage}


class SglangScript:
    """SGLang's `/generate`, as 0.5.23 has it (`managers/tokenizer_manager.py`, `_handle_batch_output`): every event has
    all ids of the answer, its end among them, or with `is_incremental` (`--incremental-streaming-output`) the new ones.
    Of its context it keeps tokens back (`managers/tp_worker.py`: `max_req_len`, `max_req_input_len`)."""

    is_incremental = False
    is_deterministic = True
    returns_ids = True
    has_tokenizer = True  # without --skip-tokenizer-init
    runs_ahead = False  # the list of ids has grown since the numbers beside it were taken
    queue_is_full = False
    has_no_numbers = False  # logits are NaN: it puts an end where an id should be, and calls it a stop

    def get(self, server: ScriptedServer, path: str) -> dict[str, Any] | None:
        if path == "/model_info":
            return {
                "model_path": server.model,
                "served_model_name": server.model,
                "tokenizer_path": server.model,
                "is_generation": True,
                "weight_version": "default",
            }
        if path == "/server_info":
            return {
                "context_length": server.context_tokens,
                "max_running_requests": server.slots,
                "skip_tokenizer_init": not self.has_tokenizer,
                "enable_deterministic_inference": self.is_deterministic,
                "max_total_num_tokens": server.context_tokens,
                "max_req_input_len": server.context_tokens - 6,
                "version": "0.5.23",
            }
        return None

    def post(self, server: ScriptedServer, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        if path in ("/tokenize", "/detokenize") and not self.has_tokenizer:
            raise Refused(500, "Internal server error during tokenization")
        if path == "/tokenize":
            return {"tokens": server.ids(body["prompt"])}
        if path == "/detokenize":
            return {"text": server.text(body["tokens"])}
        return None

    def events(self, server: ScriptedServer, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]] | None:
        return self._events(server, body) if path == "/generate" else None

    def _events(self, server: ScriptedServer, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        ledger, wanted = tuple(body["input_ids"]), int(body["sampling_params"]["max_new_tokens"])
        refused = self._refusal(server, len(ledger), wanted)
        if refused is not None:
            yield refused
            return
        reused = server.read(ledger, body.get("extra_key", ""))
        answer = server.answer(ledger)[: min(wanted, server.context_tokens - 2 - len(ledger))]
        for count in range(1, len(answer) + 1):
            is_last, has_ended = count == len(answer), answer[count - 1] == server.end_id
            ids = answer[count - 1 : count] if self.is_incremental else answer[:count]
            if self.runs_ahead:
                ids = answer[: count + 1]
            reason = {"type": "stop", "matched": server.end_id} if has_ended else {"type": "length", "length": count}
            if self.has_no_numbers:
                reason["matched"] = "NaN happened"
            meta: dict[str, Any] = {
                "id": "1",
                "finish_reason": reason if is_last else None,
                "prompt_tokens": len(ledger),
                "weight_version": "default",
                "completion_tokens": count,
            }
            if server.reports_reuse:
                meta["cached_tokens"] = reused
            if body.get("return_logprob"):
                meta["output_token_logprobs"] = [[-0.5, id_, None] for id_ in ids]
                top = [[-1.0 - n, n, None] for n in range(body["top_logprobs_num"])]
                meta["output_top_logprobs"] = [top for _ in ids]
            event = {"text": "x", "meta_info": meta, "_tokens": 1}
            yield {**event, "output_ids": ids} if self.returns_ids else event
        server.wrote(ledger + tuple(answer[:-1]), body.get("extra_key", ""))

    def _refusal(self, server: ScriptedServer, prompt: int, wanted: int) -> dict[str, Any] | None:
        """The status of the response was sent before."""
        if prompt + wanted > server.context_tokens:
            said = (
                f"Requested token count exceeds the model's maximum context length of {server.context_tokens} tokens."
            )
            return {"error": {"message": said, "type": "invalid_request_error", "code": 400, "retryable": False}}
        abort: dict[str, Any] = {"type": "abort", "err_type": None}
        if prompt >= server.context_tokens - 6:
            abort |= {"status_code": 400, "message": f"Input length ({prompt} tokens) exceeds the maximum."}
        elif self.queue_is_full:
            abort |= {"status_code": 503, "message": "The request queue is full."}
        else:
            return None
        meta = {"id": "1", "finish_reason": abort, "weight_version": "default", "completion_tokens": 0}
        return {"text": "", "output_ids": [], "meta_info": meta}
