"""An engine elsewhere: requests go to its servers as ids, and ids come back as events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from model_runtime.interface.config import EMBEDDED, RemoteConfig
from model_runtime.interface.errors import EngineClosed, ModelLoadError, SegmentNotSaved, SegmentRefused
from model_runtime.interface.events import FinishReason, Listener
from model_runtime.interface.findings import Verification
from model_runtime.interface.grammar import Grammar
from model_runtime.interface.numerics import line
from model_runtime.interface.protocol import KV, GenerationRequest, ModelInfo, Pulse, ReadRequest, Segment
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.interface.segments import SegmentIdentity
from model_runtime.read_speed import ReadSpeed
from model_runtime.remote.address import base_address
from model_runtime.remote.answer import AnswerRules
from model_runtime.remote.connection import Connection
from model_runtime.remote.dialects.dialect import Dialect
from model_runtime.remote.generation import RemoteGeneration
from model_runtime.remote.kv import RemoteKV
from model_runtime.remote.loop_thread import LoopThread
from model_runtime.remote.server import MustBe, Server, refuse_different
from model_runtime.remote.servers import Servers
from model_runtime.remote.texts import RemoteTexts
from model_runtime.remote.trouble import EngineTrouble, Kind

START_PATIENCE_S = 30.0  # for a server that is still loading its model
AWAY_PATIENCE_S = 1.0  # for one that has just begun to listen
_LOOK_EVERY_S = 0.5
_NO_ROWS = "A remote engine keeps its rows to itself."
_CLOSED = "The engine was disconnected; start the server again."
_NO_FORMATS = (
    "The engine writes its answers elsewhere, so Keepwarm cannot hold them to a format token by token. Leave "
    "response_format, grammar and forced tool calls out, or run the model here."
)
_NO_WINDOW = (
    "The engine writes its answers elsewhere, and not each of those can be told how many tokens penalties are over. "
    "Leave repeat_last_n out, or run the model here."
)
Say = Callable[[str], None]


class RemoteEngine:
    """Implements `model_runtime.interface.protocol.Engine` for servers elsewhere.

    Its thread runs an event loop: requests, checks of the servers, listeners. KVs hold no bytes here. Raises
    `ModelLoadError` when no server can be used: none is there, it does not speak in ids, or it and the tokenizer do not
    belong together.
    """

    def __init__(self, config: RemoteConfig, texts: RemoteTexts, say: Say) -> None:
        self._config = config
        self._texts = texts
        self._thread = LoopThread()
        self._closed = False
        try:
            self._servers, dialect = self._thread.wait_for(self._connect(say))
        except BaseException:
            self._thread.close()
            raise
        limit = self._limit()
        vocabulary = dialect.facts.vocabulary_tokens or len(texts.tokenizer)
        self._rules = AnswerRules(
            texts.tokenizer.backend_tokenizer,
            texts.stop_token_ids,
            texts.stop_strings,
            min(vocabulary, len(texts.tokenizer)),
            limit,
        )
        for server in self._servers.all:
            server.must_be = MustBe(dialect.facts.weights, limit)
        self._speed = ReadSpeed(limit)  # a prompt is one read, whatever pieces the server cuts it into
        addresses = ", ".join(server.address for server in self._servers.all)
        self._info = ModelInfo(
            name=texts.name if config.model == EMBEDDED or config.tokenizer is None else config.model,
            quantization="as the engine runs it",
            kernel=dialect.name,
            device=addresses,
            context_limit_tokens=limit,
            kv_bytes_per_token=0,
            weights_bytes=0,
            fingerprint=line(weights=f"remote {dialect.facts.weights} {dialect.facts.model}"),
            tokenizer_fingerprint=texts.fingerprint,
            default_sampling=texts.sampling,
            vocabulary_tokens=self._rules.vocabulary_tokens,
            notes=(*texts.notes, *(note for server in self._servers.all for note in server.notes), *self._key_notes()),
            keeps_kv=False,
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def max_concurrent(self) -> int:
        """As many answers as all servers write at once; of several twice as many, so that none idles while the next
        answers in line all belong to another one."""
        found = [server.dialect.facts.concurrent for server in self._servers.all if server.dialect is not None]
        return sum(found) * (1 if len(self._servers.all) == 1 else 2)

    def give_memory_back_with(self, idle_kvs: Callable[[], Sequence[KV]]) -> None:
        """KVs hold no memory here."""

    def pulse(self) -> Pulse:
        """A server that hangs is its own time limit's business; here only the loop can die."""
        return Pulse(self._thread.is_alive, 0.0, 0.0, self._servers.shown)

    def rebuild(self) -> None:
        """There is nothing to rebuild it from."""
        raise EngineClosed(_CLOSED)

    def grammar_refusal(self, grammar: Grammar) -> str:
        return _NO_FORMATS

    def sampling_refusal(self, sampling: SamplingParams) -> str:
        """Asked of the dialect, so that nothing is sent that the server would drop."""
        if sampling.grammar is not None:
            return _NO_FORMATS
        if sampling.penalty_window is not None and sampling.has_penalties:
            return _NO_WINDOW
        for server in self._servers.all:  # any of them may have to answer
            if server.dialect is not None and (lacking := server.dialect.refusal(sampling)):
                return f"The engine at {server.address} {lacking}."
        return ""

    def new_kv(self) -> RemoteKV:
        return RemoteKV()

    def kv_bytes(self, tokens: int) -> int:
        return 0

    def submit(self, request: GenerationRequest, listener: Listener) -> RemoteGeneration:
        """Every failure is reported as a `Finished` event."""
        generation = self._generation(request, listener)
        if self._closed:
            generation.finish(FinishReason.FAILED, _CLOSED)
        else:
            generation.start()
        return generation

    def read(self, request: ReadRequest, listener: Listener) -> RemoteGeneration:
        """An engine that others may use too is not asked to read ahead: the reading ends at once."""
        as_answer = GenerationRequest(request.ledger, request.kv, SamplingParams())
        generation = self._generation(as_answer, listener)
        generation.finish(FinishReason.FAILED, "A remote engine does not read ahead.")
        return generation

    def release(self, kv: KV) -> None:
        _own(kv).length_tokens = 0

    def stage(self, kv: KV, identity: SegmentIdentity, before: Sequence[int] | None = None) -> Segment:
        raise ValueError(_NO_ROWS)

    def stage_run(
        self, kv: KV, identities: Sequence[SegmentIdentity], before: Sequence[int] | None = None
    ) -> list[Segment]:
        raise ValueError(_NO_ROWS)

    def restore(self, kv: KV, segments: Sequence[Segment], room_tokens: int = 0) -> float:
        raise ValueError(_NO_ROWS)

    def join(self, identity: SegmentIdentity, segments: Sequence[Segment]) -> Segment | None:
        return None

    def copy_beginning(self, source: KV, target: KV, ids: Sequence[int], least_tokens: int) -> tuple[int, int]:
        return 0, 0

    def save(self, segment: Segment, path: Path) -> int:
        raise SegmentNotSaved(_NO_ROWS)

    def load(self, identity: SegmentIdentity, path: Path) -> Segment:
        raise SegmentRefused(_NO_ROWS)

    def verify(
        self,
        scratch: KV,
        ledger: Sequence[int],
        copies: Sequence[KV | Iterable[Segment]],
        must_stop: Callable[[], bool],
        is_long_rope: bool = False,
    ) -> Verification | None:
        return None

    def segment_bytes(self, tokens: int) -> int:
        return 0

    def estimate_read_s(self, start_tokens: int, end_tokens: int) -> float:
        """Learnt from the answers so far; 0 before the first."""
        return self._speed.estimate_s(start_tokens, end_tokens)

    def close(self) -> None:
        """Ends every answer as ABORTED and the connections. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._thread.is_alive:
            self._thread.wait_for(self._end())
        self._thread.close()

    async def _end(self) -> None:
        answers = asyncio.all_tasks() - {asyncio.current_task()}
        for task in answers:
            task.cancel()
        await asyncio.gather(*answers, return_exceptions=True)
        await self._servers.close()

    def _generation(self, request: GenerationRequest, listener: Listener) -> RemoteGeneration:
        return RemoteGeneration(
            request,
            _own(request.kv),
            listener,
            self._rules,
            self._servers,
            self._speed,
            self._config.session_header,
            self._thread.loop,
        )

    async def _connect(self, say: Say) -> tuple[Servers, Dialect]:
        """Greets all servers at once. One that is away may come later, as long as another one is there."""
        addresses = dict.fromkeys(map(base_address, self._config.addresses))
        key, silence_s = self._config.key, self._config.silence_s
        found = [Server(Connection(one, key, silence_s), self._config.model, self._texts) for one in addresses]
        servers = Servers(found)
        try:
            troubles = await asyncio.gather(*(_greeted(server, say) for server in found))
            refuse_different(found)
            greeted = [server.dialect for server in found if server.dialect is not None]
            if not greeted:
                raise ModelLoadError(" ".join(str(trouble) for trouble in troubles if trouble is not None))
            for trouble in troubles:
                if trouble is not None:
                    say(f"{trouble} It is used once it is there.")
        except BaseException:
            await servers.close()
            raise
        servers.begin_checks()
        return servers, greeted[0]

    def _limit(self) -> int:
        """The context limit: the smallest of the servers', or what was asked for if that is less."""
        stated = [
            server.dialect.facts.context_tokens
            for server in self._servers.all
            if server.dialect is not None and server.dialect.facts.context_tokens is not None
        ]
        asked = self._config.context_limit_tokens
        own = min(stated, default=None)
        if own is not None and asked is not None and asked > own:
            self.close()
            raise ModelLoadError(f"The engine holds at most {own:,} tokens; {asked:,} were asked for.")
        return asked or own or 4096

    def _key_notes(self) -> tuple[str, ...]:
        plain = [server.address for server in self._servers.all if _is_open(server.address)]
        if not (self._config.key and plain):
            return ()
        return (f"The engine's key and all messages go to {', '.join(plain)} unencrypted (http).",)


async def _greeted(server: Server, say: Say) -> EngineTrouble | None:
    """What keeps the server from being used; None if it can be. Waits for one that is still loading its model."""
    started, has_said = time.monotonic(), False
    patience_s = {Kind.BUSY: START_PATIENCE_S, Kind.AWAY: AWAY_PATIENCE_S, Kind.BROKEN: AWAY_PATIENCE_S}
    while True:
        try:
            await server.greet()
            return None
        except EngineTrouble as trouble:
            if time.monotonic() - started > patience_s.get(trouble.kind, 0.0):
                server.failed(trouble)
                return trouble
            if trouble.kind is Kind.BUSY and not has_said:
                say(f"{trouble.sentence} Waiting for it.")
                has_said = True
        await asyncio.sleep(_LOOK_EVERY_S)


def _own(kv: KV) -> RemoteKV:
    assert isinstance(kv, RemoteKV), "a KV of another engine"
    return kv


def _is_open(address: str) -> bool:
    """Whether others could read what is sent there."""
    host = address.partition("://")[2].rpartition(":")[0] or address.partition("://")[2]
    return address.startswith("http:") and host.strip("[]") not in ("127.0.0.1", "localhost", "::1")
