"""How much do concurrent conversations slow each other down?

Total tokens per second of 1, 2, 4 and 8 conversations that generate at the same time, without history and with 1,000
tokens each. Then one stream while another user's 4,000-token paste is read: the 95th percentile of the gaps between its
tokens, and how much longer the paste takes than alone. The cases alternate, because a shared machine drifts.

    python -m benchmarks.batch [--model embedded] [--tokens 32] [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from dataclasses import dataclass, field

from benchmarks.driver import answer, load, prose_ids, start
from benchmarks.report import device_name, finish, median, table
from model_runtime.engine.engine import LocalEngine
from model_runtime.interface.events import Event, Finished, TokenDelta
from model_runtime.interface.protocol import KV, Generation, GenerationRequest
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loading import unload

CONVERSATIONS = (1, 2, 4, 8)
HISTORIES = (0, 1000)
FIRST_TOKENS = 8  # "no history" still needs a few tokens to start from
PASTE_TOKENS = 4000
STREAM_TOKENS = 200  # history of the stream that runs meanwhile


@dataclass
class Stream:
    """An answer that runs beside others, and the times of its tokens."""

    token_at: list[float] = field(default_factory=list)
    started_at: float = field(default_factory=time.perf_counter)
    first: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    generation: Generation | None = None

    def heard(self, event: Event) -> None:
        if isinstance(event, TokenDelta):
            self.token_at.append(time.perf_counter())
            self.first.set()
        elif isinstance(event, Finished):
            if event.error:
                print(event.error)
            self.done.set()

    @property
    def ttft_s(self) -> float:
        return self.token_at[0] - self.started_at


def begin(engine: LocalEngine, kv: KV, ledger: list[int], new_tokens: int, key: str = "") -> Stream:
    stream = Stream()
    sampling = SamplingParams(temperature=0, max_new_tokens=new_tokens)
    stream.generation = engine.submit(GenerationRequest(tuple(ledger), kv, sampling, fairness_key=key), stream.heard)
    return stream


def total_tokens_per_s(engine: LocalEngine, warm: list[tuple[KV, list[int]]], new_tokens: int) -> float:
    """The rate of all answers together, while all of them are running."""
    streams = [begin(engine, kv, ledger, new_tokens) for kv, ledger in warm]
    for stream in streams:
        stream.done.wait()
    since, until = max(s.token_at[0] for s in streams), min(s.token_at[-1] for s in streams)
    return sum(since < at <= until for s in streams for at in s.token_at) / (until - since)


def p95_ms(gaps_s: list[float]) -> float:
    return 1000 * statistics.quantiles(gaps_s, n=20, method="inclusive")[-1]


def paste(engine: LocalEngine, ledger: list[int], stream: tuple[KV, list[int]] | None) -> tuple[float, list[float]]:
    """Time to the first token of the paste, and the gaps of a stream that ran meanwhile."""
    running = None
    if stream is not None:
        running = begin(engine, *stream, 4000, key="streaming user")
        running.first.wait()
    kv = engine.new_kv()
    pasted = begin(engine, kv, ledger, 1, key="pasting user")
    pasted.done.wait()
    gaps: list[float] = []
    if running is not None:
        assert running.generation is not None
        running.generation.abort()
        running.done.wait()
        at = [t for t in running.token_at if pasted.started_at <= t <= pasted.token_at[0]]
        gaps = [
            after - before for before, after in zip([pasted.started_at, *at], [*at, pasted.token_at[0]], strict=True)
        ]
    engine.release(kv)
    return pasted.ttft_s, gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    loaded = load(options.model)
    engine = start(loaded, PASTE_TOKENS + 4200)
    rows, figures = [], {}
    for history in HISTORIES:
        warm = []
        for number in range(max(CONVERSATIONS)):
            ledger = [1000 + number, *prose_ids(loaded, max(history, FIRST_TOKENS) - 1)]
            warm.append((engine.new_kv(), ledger))
            answer(engine, *warm[-1], 1)
        rates: dict[int, list[float]] = {count: [] for count in CONVERSATIONS}
        for _ in range(options.repeats):
            for count in CONVERSATIONS:
                rates[count].append(total_tokens_per_s(engine, warm[:count], options.tokens))
        for count in CONVERSATIONS:
            ratio = median([many / one for many, one in zip(rates[count], rates[1], strict=True)])
            rows.append((f"{count} at {history:,}", median(rates[count]), median(rates[count]) / count, ratio))
            figures[f"total_tok_s_{count}_at_{history}"] = median(rates[count])
            figures[f"total_rate_{count}_over_1_at_{history}"] = ratio
        for kv, _ in warm:
            engine.release(kv)
    table(("conversations", "total tok/s", "each tok/s", "against one"), rows)

    stream = (engine.new_kv(), prose_ids(loaded, STREAM_TOKENS))
    answer(engine, *stream, 1)
    alone, shared, gaps, p95s = [], [], [], []
    for number in range(options.repeats):
        ledger = [2000 + number, *prose_ids(loaded, PASTE_TOKENS - 1)]
        alone.append(paste(engine, ledger, None)[0])
        ttft_s, own_gaps = paste(engine, ledger, stream)
        shared.append(ttft_s)
        gaps += own_gaps
        p95s.append(p95_ms(own_gaps))
    engine.close()
    figures["stall_p95_ms"] = median(p95s)
    figures["stall_max_ms"] = 1000 * max(gaps)
    figures["paste_ttft_penalty"] = median([with_s / without for with_s, without in zip(shared, alone, strict=True)])
    table(
        ("a 4,000-token paste", "first token s", "stall p95 ms", "longest ms", "penalty"),
        [
            ("alone", median(alone), "", "", ""),
            (
                "beside a stream",
                median(shared),
                figures["stall_p95_ms"],
                figures["stall_max_ms"],
                figures["paste_ttft_penalty"],
            ),
        ],
    )
    finish("batch", figures, device_name(str(loaded.model.device)), f"{loaded.name}, {loaded.quantization}")
    unload(loaded)


if __name__ == "__main__":
    main()
