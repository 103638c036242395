"""The dialects of scripted servers, as the real ones were seen or are documented to speak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.model_runtime.remote.scripted_server import Refused, ScriptedServer, common


class LlamaCppScript:
    """llama.cpp's own endpoints, as build 11549 answered: progress events carry a placeholder token, every setting
    comes back in the last event."""

    returns_tokens = True
    drops = ""  # a setting that it does not honour
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
        if server.reports_reuse:
            for processed in (reused, len(ledger)):
                progress = {"total": len(ledger), "cache": reused, "processed": processed, "time_ms": 1}
                yield {"content": "", "tokens": [0], "stop": False, "prompt_progress": progress}
        answer = server.answer(ledger)[: body["n_predict"]]
        for token_id in answer:
            event: dict[str, Any] = {"content": "x", "stop": False, "_tokens": 1}
            if self.returns_tokens:
                event["tokens"] = [token_id]
            if body["n_probs"]:
                others = [{"id": n, "token": "?", "logprob": -1.0 - n} for n in range(body["n_probs"])]
                chosen = {"id": token_id, "token": "?", "logprob": -0.5, "top_logprobs": others}
                event["completion_probabilities"] = [chosen]
            yield event
        server.wrote(ledger + tuple(answer[:-1]))
        self.slots[slot] = ledger + tuple(answer[:-1])
        has_ended = bool(answer) and answer[-1] == server.end_id
        settings = {name: value for name, value in body.items() if name != self.drops}
        yield {
            "content": "",
            "tokens": [],
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
    """vLLM's completions, as its source has them: usage comes in an event of its own, after the end."""

    reports_details = True
    returns_ids = True

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
            choice: dict[str, Any] = {"index": 0, "text": "" if has_ended else "x"}
            choice["finish_reason"] = ("stop" if has_ended else "length") if is_last else None
            if self.returns_ids:
                choice["token_ids"] = [token_id]
            if "logprobs" in body:
                top = {f"token_id:{n}": -1.0 - n for n in range(body["logprobs"])}
                choice["logprobs"] = {"token_logprobs": [-0.5], "top_logprobs": [top]}
            yield {"model": body["model"], "choices": [choice], "_tokens": 1}
        server.wrote(ledger + tuple(answer[:-1]), body.get("cache_salt", ""))
        usage: dict[str, Any] = {"prompt_tokens": len(ledger), "completion_tokens": len(answer)}
        if self.reports_details and server.reports_reuse:
            usage["prompt_tokens_details"] = {"cached_tokens": reused}
        yield {"model": body["model"], "choices": [], "usage": usage}


class SglangScript:
    """SGLang's `/generate`, as its source has it: every event has all ids of the answer, its end among them, or with
    `is_incremental` the new ones."""

    is_incremental = False
    is_deterministic = True
    returns_ids = True
    runs_ahead = False  # the list of ids has grown since the numbers beside it were taken
    queue_is_full = False

    def get(self, server: ScriptedServer, path: str) -> dict[str, Any] | None:
        if path == "/get_model_info":
            return {"model_path": server.model, "tokenizer_path": server.model}
        if path == "/get_server_info":
            return {
                "context_length": server.context_tokens,
                "max_running_requests": server.slots,
                "vocab_size": server.vocabulary_tokens,
                "enable_deterministic_inference": self.is_deterministic,
            }
        return None

    def post(self, server: ScriptedServer, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        if path == "/tokenize":
            return {"tokens": server.ids(body["prompt"])}
        if path == "/detokenize":
            return {"text": server.text(body["tokens"])}
        return None

    def events(self, server: ScriptedServer, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]] | None:
        return self._events(server, body) if path == "/generate" else None

    def _events(self, server: ScriptedServer, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        ledger = tuple(body["input_ids"])
        reused = server.read(ledger, body.get("extra_key", ""))
        answer = server.answer(ledger)[: body["sampling_params"]["max_new_tokens"]]
        if self.queue_is_full:
            full = {"type": "abort", "status_code": 503, "message": "The request queue is full."}
            yield {"text": "", "output_ids": [], "meta_info": {"completion_tokens": 0, "finish_reason": full}}
            return
        for count in range(1, len(answer) + 1):
            is_last, has_ended = count == len(answer), answer[count - 1] == server.end_id
            ids = answer[count - 1 : count] if self.is_incremental else answer[:count]
            if self.runs_ahead:
                ids = answer[: count + 1]
            reason = {"type": "stop", "matched": server.end_id} if has_ended else {"type": "length"}
            meta: dict[str, Any] = {"completion_tokens": count, "finish_reason": reason if is_last else None}
            if server.reports_reuse:
                meta["cached_tokens"] = reused
            if body.get("return_logprob"):
                meta["output_token_logprobs"] = [[-0.5, id_, None] for id_ in ids]
                top = [[-1.0 - n, n, None] for n in range(body["top_logprobs_num"])]
                meta["output_top_logprobs"] = [top for _ in ids]
            yield {"text": "x", "meta_info": meta, "_tokens": 1, **({"output_ids": ids} if self.returns_ids else {})}
        server.wrote(ledger + tuple(answer[:-1]), body.get("extra_key", ""))
