"""The dialects of scripted servers, as the real ones were seen or are documented to speak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.model_runtime.remote.scripted_server import ScriptedServer


class LlamaCppScript:
    """llama.cpp's own endpoints, as build 11549 answered: progress events carry a placeholder token, every setting
    comes back in the last event."""

    returns_tokens = True
    drops = ""  # a setting that it does not honour

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
        return None

    def events(self, server: ScriptedServer, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]] | None:
        return self._events(server, body) if path == "/completion" else None

    def _events(self, server: ScriptedServer, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        ledger = tuple(body["prompt"])
        reused = server.read(ledger)
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
    tokenizer = server.tokenizer.backend_tokenizer
    if are_controls:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    tokenizer.encode_special_tokens = True
    try:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    finally:
        tokenizer.encode_special_tokens = False
