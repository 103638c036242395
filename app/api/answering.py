"""The one way from a request to its answer, for every protocol: the line of open requests, the run, what follows it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api import streams
from app.api.json_route import CLIENT_GONE
from app.api.line import Line
from app.api.requests import ChatCompletionRequest
from app.api.translation.request import Translated, chat_request
from sessions.turns.run import Run
from sessions.types import MessageView

if TYPE_CHECKING:
    from app.services import Services

log = logging.getLogger(__name__)

Begin = Callable[[str], tuple[Run, streams.Voice]]


class Answering:
    """Begins answers and follows them. Its only state is the line."""

    def __init__(self, services: Services, line: Line) -> None:
        self._services = services
        self._manager = services.manager
        self._line = line

    async def answer(self, request: Request, begin: Begin, is_streamed: bool) -> Response:
        """The response to a request, which `begin` translates and starts on a worker thread; it gets the owner."""
        owner_id = request.state.owner_id
        if not await self._enter(owner_id, request):
            return Response(status_code=CLIENT_GONE)

        def ended(run: Run | None = None, message: MessageView | None = None) -> None:
            self._line.leave(owner_id)
            if run is not None:
                _log(owner_id, run, message)

        try:
            run, voice = await run_in_threadpool(begin, owner_id)
            await request.state.body_held.aclose()  # its text is tokenised: the next large body may be parsed
        except BaseException:
            ended()
            raise
        if is_streamed:
            pieces = streams.pieces(voice, run, self._manager, partial(ended, run))
            return streams.PieceStream(pieces, voice.media_type)
        message = None
        try:
            message = await streams.answer_of(run, self._manager, request)
        finally:
            ended(run, message)
        if message is None:
            return Response(status_code=CLIENT_GONE)
        return JSONResponse(voice.whole(message, self._manager.completions.message(run, message.text)))

    async def compute(self, request: Request, work: Callable[[str], dict[str, Any]]) -> Response:
        """The response to a request that asks for no answer, but takes a while: `work` gets the owner, on a worker
        thread."""
        owner_id = request.state.owner_id
        if not await self._enter(owner_id, request):
            return Response(status_code=CLIENT_GONE)
        try:
            return await run_in_threadpool(lambda: JSONResponse(work(owner_id)))
        finally:
            self._line.leave(owner_id)

    def translated(self, body: ChatCompletionRequest) -> Translated:
        """The request for the session manager. Raises `Problem`, or `ValueError` with a sentence."""
        completions = self._manager.completions
        return chat_request(
            body, self._manager.info, self._services.names, completions.template, completions.grammar_refusal
        )

    async def _enter(self, owner_id: str, request: Request) -> bool:
        """Opens the request, at once or when there is a place. False if its client has gone meanwhile."""
        if self._line.is_full(owner_id):
            await request.state.body_held.aclose()  # it would keep others' large bodies waiting
            return bool(await streams.until_gone(self._line.enter(owner_id), request.receive))
        return await self._line.enter(owner_id)


def _log(owner_id: str, run: Run, message: MessageView | None) -> None:
    """Logs what a completion cost and how it ended: "gone" if its client disconnected first."""
    found = message.receipt if message else None
    log.info(
        "completion owner=%s session=%s status=%s fed=%s reused=%s sampled=%s ttft_s=%s miss=%s",
        *(owner_id, run.conversation_id, message.status.value if message else "gone"),
        *((found.fed_tokens, found.reused_tokens, found.sampled_tokens) if found else (None, None, None)),
        *((found.ttft_s, found.miss_reason) if found else (None, None)),
    )
