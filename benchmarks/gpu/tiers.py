"""A turn after a long history from every tier, and 64 conversations with room for 16."""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.talk import ask, open_engine, some_ids
from model_runtime.engine.engine import LocalEngine
from model_runtime.forward.arena.host_pool import HostPool
from model_runtime.interface.protocol import KV, Segment
from model_runtime.interface.segments import SegmentIdentity, identify
from model_runtime.loading.loaded import LoadedModel
from sessions.memory.moves.segment_reader import SegmentReader

TURN_TOKENS = 32
REPEATS = 5
FILE_BYTES = 32 * 1024**2
REST_S = 0.5  # time for the engine to record the shape of the turn


def first_token(bench: Bench, loaded: LoadedModel) -> None:
    """TTFT of a 32-token turn: warm, from pinned host memory, from disk, cold."""
    history = 256 if bench.is_tiny else 16384
    pinned_bytes = 64 * 1024**2 if bench.is_tiny else 6 * 1024**3
    engine = open_engine(bench, loaded, history + 256, 2 * history + 1024, pinned_bytes=pinned_bytes)
    ids = some_ids(loaded, history)
    cold = [_turn_s(engine, engine.new_kv(), ids, seed, release=True) for seed in range(2)][1]
    kv = engine.new_kv()
    ask(engine, kv, [*ids, 1], 1).wait()
    warm = _warm_s(engine, kv, ids)
    bench.figure("warm_ttft_ms", 1000 * warm)
    bench.figure("cold_ttft_ms", 1000 * cold)
    bench.figure("warm_vs_reread", cold / warm)

    identity = identify(None, ids, loaded.fingerprint)
    bench.figure("write_through_s", bench.timed_s(lambda: engine.stage(kv, identity)))
    segment = engine.stage(kv, identity)
    engine.release(kv)
    host = [
        _restored_turn_s(engine, lambda kv: engine.restore(kv, [segment], history), ids, seed)
        for seed in range(REPEATS)
    ]
    bench.figure("host_ttft_ms", 1000 * statistics.median(host))
    with tempfile.TemporaryDirectory() as folder:
        files = Files(engine, loaded, ids, Path(folder))
        disk = [_restored_turn_s(engine, files.restore, ids, seed) for seed in range(3)]
        bench.figure("disk_ttft_ms", 1000 * statistics.median(disk))
        bench.figure("disk_restore_gb_per_s", segment.data_bytes / bench.timed_s(files.restore_and_release) / 1e9)
    _restore_against_copy(bench, engine, segment)
    engine.close()


def turns_recorded_or_not(bench: Bench, loaded: LoadedModel) -> None:
    """Compares `EngineConfig.record_steps` off and on for the same warm turn."""
    history = 256 if bench.is_tiny else 16384
    ids = some_ids(loaded, history)
    for record in (False, True):
        engine = open_engine(bench, loaded, history + 256, history + 1024, record=record)
        kv = engine.new_kv()
        ask(engine, kv, [*ids, 1], 1).wait()
        name = "recorded" if record else "launched"
        bench.figure(f"warm_ttft_ms_{name}", 1000 * _warm_s(engine, kv, ids))
        engine.close()
        bench.clean()


def _warm_s(engine: LocalEngine, kv: KV, ids: Sequence[int]) -> float:
    """Seconds to the first token of a turn after these ids, once the engine could record a turn of that size."""
    _turn_s(engine, kv, ids, 99)
    time.sleep(REST_S)
    return statistics.median(_turn_s(engine, kv, ids, 100 + seed) for seed in range(REPEATS))


def _turn_s(engine: LocalEngine, kv: KV, history: Sequence[int], seed: int, release: bool = False) -> float:
    """Seconds to the first token of a turn whose first id is unique, so that the whole turn is fed."""
    answer = ask(engine, kv, [*history, 2 + seed, *range(3, TURN_TOKENS + 2)], 1).wait()
    if release:
        engine.release(kv)
    else:
        assert answer.fed_tokens == TURN_TOKENS, f"{answer.fed_tokens} tokens were fed"
    return answer.ttft_s


def _restored_turn_s(engine: LocalEngine, restore: Callable[[KV], object], history: Sequence[int], seed: int) -> float:
    """The same for a KV that is not on the device, including the restore."""
    kv = engine.new_kv()
    begin = time.perf_counter()
    restore(kv)
    answer = ask(engine, kv, [*history, 2 + seed, *range(3, TURN_TOKENS + 2)], 1).wait()
    assert answer.fed_tokens == TURN_TOKENS, f"{answer.fed_tokens} tokens were fed"
    seconds = answer.times[0] - begin
    engine.release(kv)
    return seconds


class Files:
    """A history on disk as the server saves it: in files of up to 32 MiB, read and verified by several threads while
    earlier ones are copied to the device."""

    def __init__(self, engine: LocalEngine, loaded: LoadedModel, ids: Sequence[int], folder: Path) -> None:
        self._engine = engine
        self._tokens = len(ids)
        self._folder = folder
        kv = engine.new_kv()
        ask(engine, kv, [*ids, 1], 1).wait()
        most_tokens = max(1, FILE_BYTES // engine.segment_bytes(1))
        parent: SegmentIdentity | None = None
        self._identities: list[SegmentIdentity] = []
        for start in range(0, len(ids), most_tokens):
            parent = identify(parent, ids[start : start + most_tokens], loaded.fingerprint)
            engine.save(engine.stage(kv, parent), self._path(parent))
            self._identities.append(parent)
        engine.release(kv)

    def restore(self, kv: KV) -> None:
        """Drops the files from the page cache, then restores them."""
        for identity in self._identities:
            with self._path(identity).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with SegmentReader(self._identities, self._load, self._engine.info.kv_bytes_per_token) as arrivals:
            while segments := arrivals.take():
                self._engine.restore(kv, segments, self._tokens)

    def restore_and_release(self) -> None:
        """Restores into a KV that is released unused."""
        kv = self._engine.new_kv()
        self.restore(kv)
        self._engine.release(kv)

    def _load(self, identity: SegmentIdentity) -> Segment:
        return self._engine.load(identity, self._path(identity))

    def _path(self, identity: SegmentIdentity) -> Path:
        return self._folder / identity.key


def _restore_against_copy(bench: Bench, engine: LocalEngine, segment: Segment) -> None:
    """Compares the restore with one plain copy of the same number of bytes from page-locked memory."""

    def restore() -> None:
        kvs.append(engine.new_kv())
        engine.restore(kvs[-1], [segment])

    kvs: list[KV] = []
    restores = []
    for _ in range(3):
        restores.append(bench.timed_s(restore))
        engine.release(kvs.pop())
    pool = HostPool(segment.data_bytes, bench.device)
    source = pool.take(segment.data_bytes)
    target = torch.empty(segment.data_bytes, dtype=torch.uint8, device=bench.device)
    copies = [bench.timed_s(lambda: target.copy_(source, non_blocking=True)) for _ in range(3)]
    bench.figure("pinned_copy_gb_per_s", segment.data_bytes / min(copies) / 1e9)
    bench.figure("host_restore_gb_per_s", segment.data_bytes / min(restores) / 1e9)
    bench.figure("host_restore_vs_copy", min(copies) / min(restores))
    pool.close()


class Crowd:
    """Conversations of which only some fit on the device. The least recently used one is evicted; its rows are already
    in host memory, because each turn's new rows are written through."""

    def __init__(self, engine: LocalEngine, loaded: LoadedModel, room_tokens: int) -> None:
        self._engine = engine
        self._loaded = loaded
        self._room_bytes = engine.kv_bytes(room_tokens)
        self._on_device: OrderedDict[int, KV] = OrderedDict()
        self._segments: dict[int, list[Segment]] = {}
        self.ledgers: dict[int, list[int]] = {}

    def turn(self, who: int, new_ids: Sequence[int], new_tokens: int) -> tuple[int, int]:
        """Runs one turn; returns how many tokens were fed and how many the turn added."""
        ledger = [*self.ledgers.get(who, []), *new_ids]
        kv = self._promote(who, len(ledger) + new_tokens)
        delta = len(ledger) - kv.length_tokens
        answer = ask(self._engine, kv, ledger, new_tokens).wait()
        self.ledgers[who] = [*ledger, *answer.token_ids]
        saved = self._segments.setdefault(who, [])
        parent = saved[-1].identity if saved else None
        start = parent.end_tokens if parent else 0
        held = self.ledgers[who][: kv.length_tokens]
        saved.append(self._engine.stage(kv, identify(parent, held[start:], self._loaded.fingerprint)))
        return answer.fed_tokens, delta if parent is None else len(new_ids) + 1

    def _promote(self, who: int, tokens: int) -> KV:
        kv = self._on_device.pop(who, None)
        needed = self._engine.kv_bytes(tokens)
        while self._on_device and needed + sum(k.allocated_bytes for k in self._on_device.values()) > self._room_bytes:
            self._engine.release(self._on_device.popitem(last=False)[1])
        if kv is None:
            kv = self._engine.new_kv()
            self._engine.restore(kv, self._segments.get(who, []))
        self._on_device[who] = kv
        return kv


def sessions(bench: Bench, loaded: LoadedModel) -> None:
    """64 conversations of 4k tokens with room for 16: turns per second, and whether only new tokens were fed."""
    people, length, room, turns = (8, 100, 2, 24) if bench.is_tiny else (64, 4096, 16, 160)
    new_tokens = 4 if bench.is_tiny else 16
    room_tokens = room * (length + 512) // 64 * 64  # as the arena rounds
    pinned_bytes = 64 * 1024**2 if bench.is_tiny else 40 * 1024**3
    engine = open_engine(bench, loaded, length + 4096, room_tokens, pinned_bytes=pinned_bytes)
    crowd = Crowd(engine, loaded, room_tokens)
    begun = time.perf_counter()
    for who in range(people):
        crowd.turn(who, some_ids(loaded, length, who), 1)
        if bench.left_s < 60:
            people = who + 1
            bench.note("sessions", f"only {people} conversations: no time left")
            break
    bench.figure("sessions_filled_s", time.perf_counter() - begun)
    randomness = random.Random(5)
    shares = [1 / (1 + who) for who in range(people)]  # a few conversations are used often, most of them rarely
    only_delta = done = 0
    begun = time.perf_counter()
    for number in range(turns):
        who = randomness.choices(range(people), shares)[0]
        fed, delta = crowd.turn(who, some_ids(loaded, TURN_TOKENS, 1000 + number), new_tokens)
        only_delta, done = only_delta + (fed == delta), done + 1
        if bench.left_s < 20:
            break
    bench.figure("sessions_turns_per_s", done / (time.perf_counter() - begun))
    bench.figure("fed_only_delta_share", only_delta / done)
    bench.check("only new tokens were fed", only_delta == done, f"({only_delta} of {done} turns)")
    engine.close()
