"""An engine that waits instead of computing, for `benchmarks.remote`: llama.cpp's dialect, ids in, ids out.

    python -m benchmarks.waiting_engine PORT SLOTS TOKEN_MS

More answers than slots wait in line. `/arrivals` lists when each request was read, by its session header.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from model_runtime.interface.config import RemoteConfig
from model_runtime.remote.texts import load_texts

CONTEXT_TOKENS = 32_768
MODEL = "waiting"


class Waiting:
    """The server's state."""

    def __init__(self, slots: int, token_s: float) -> None:
        self.slots, self.token_s = slots, token_s
        self.free = asyncio.Semaphore(slots)
        self.arrivals: list[tuple[str, float]] = []
        self.tokenizer = load_texts(RemoteConfig(("http://x",)), lambda sentence: None).tokenizer.backend_tokenizer
        self.known: dict[str, tuple[int, ...]] = {}

    def ids(self, text: str, are_controls: bool) -> list[int]:
        self.tokenizer.encode_special_tokens = not are_controls
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    async def events(self, name: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        ledger = tuple(body["prompt"])
        held = self.known.get(name, ())
        reused = min(len(held), len(ledger) - 1) if ledger[: len(held)] == held else 0
        async with self.free:
            progress = {"total": len(ledger), "cache": reused, "processed": len(ledger)}
            yield event(tokens=[0], stop=False, prompt_progress=progress)
            for _ in range(body["n_predict"]):
                await asyncio.sleep(self.token_s)
                yield event(tokens=[504], stop=False, content="The")
        self.known[name] = ledger + (504,) * (body["n_predict"] - 1)
        settings = {key: value for key, value in body.items() if key != "prompt"}
        timings = {"cache_n": reused}
        yield event(tokens=[], stop=True, stop_type="limit", generation_settings=settings, timings=timings)


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def app(state: Waiting) -> Starlette:
    meta = {"n_vocab": 49_152, "n_params": 1, "size": 1, "n_ctx": CONTEXT_TOKENS}

    async def props(request: Request) -> JSONResponse:
        settings = {"n_ctx": CONTEXT_TOKENS}
        return JSONResponse({"default_generation_settings": settings, "total_slots": state.slots})

    async def models(request: Request) -> JSONResponse:
        return JSONResponse({"data": [{"id": MODEL, "meta": meta}]})

    async def tokenize(request: Request) -> JSONResponse:
        body = await request.json()
        return JSONResponse({"tokens": state.ids(body["content"], body["parse_special"])})

    async def detokenize(request: Request) -> JSONResponse:
        ids = (await request.json())["tokens"]
        return JSONResponse({"content": state.tokenizer.decode(ids, skip_special_tokens=False)})

    async def completion(request: Request) -> StreamingResponse:
        content = await request.body()
        name, arrived = request.headers.get("x-session-id", ""), time.time()
        state.arrivals.append((name, arrived))
        return StreamingResponse(state.events(name, json.loads(content)), media_type="text/event-stream")

    async def arrivals(request: Request) -> JSONResponse:
        return JSONResponse({"arrivals": state.arrivals})

    return Starlette(
        routes=[
            Route("/props", props),
            Route("/v1/models", models),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/detokenize", detokenize, methods=["POST"]),
            Route("/completion", completion, methods=["POST"]),
            Route("/arrivals", arrivals),
        ]
    )


def main(port: str, slots: str, token_ms: str) -> None:
    state = Waiting(int(slots), float(token_ms) / 1000)
    uvicorn.run(app(state), host="127.0.0.1", port=int(port), log_level="error", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
