"""llama.cpp's server in every replica of a Ray Serve deployment: for models as GGUF, without vLLM.

    pip install "ray[serve]==2.60.0" xllamacpp==2026.10.11549 httpx
    PYTHONPATH=deploy/ray-serve serve run deploy/ray-serve/llama.yaml

Requests are passed on as they are. Ray's router chooses the replica; `x-replica` says which one answered.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import xllamacpp
from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse


@serve.deployment
class Llama:
    """A server on a free port of this machine, which ends with the replica."""

    def __init__(self, model: str, slots: int, context_tokens: int, replicas: int, threads: int) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = model
        params.hostnames, params.port = ["127.0.0.1"], 0
        params.n_parallel, params.n_ctx = slots, slots * context_tokens
        params.endpoint_props = True
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self._server = xllamacpp.Server(params)
        self._slots = slots * replicas
        self._name = serve.get_replica_context().replica_id.unique_id
        self._http = httpx.AsyncClient(base_url=self._server.listening_address, timeout=httpx.Timeout(None, connect=5))

    async def __call__(self, request: Request) -> StreamingResponse:
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers = {"content-type": request.headers.get("content-type", "application/json")}
        asked = self._http.build_request(request.method, path, content=await request.body(), headers=headers)
        answer = await self._http.send(asked, stream=True)
        pieces = self._with_all_slots(answer) if request.url.path == "/props" else _pieces(answer)
        kind = answer.headers.get("content-type")
        return StreamingResponse(pieces, answer.status_code, {"x-replica": self._name}, kind)

    async def _with_all_slots(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        """Of all replicas: so many answers can be written at once."""
        said: dict[str, Any] = json.loads(await answer.aread())
        if "total_slots" in said:
            said["total_slots"] = self._slots
        yield json.dumps(said).encode()


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    """As they come. Also a client that goes closes the connection, which ends llama.cpp's work."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


def build(args: dict[str, Any]) -> serve.Application:
    """The application of a configuration's `args`: model (a path), slots and context_tokens of a slot, threads."""
    replicas = int(args.get("replicas", 2))
    deployment = Llama.options(
        num_replicas=replicas,
        max_ongoing_requests=64,  # a replica that has more is passed over, and what it has read with it
        ray_actor_options={"num_cpus": float(args.get("num_cpus", 1))},
        request_router_config={
            "request_router_class": "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
        },
    )
    return deployment.bind(
        str(args["model"]),
        int(args.get("slots", 4)),
        int(args.get("context_tokens", 4096)),
        replicas,
        int(args.get("threads", 1)),
    )
