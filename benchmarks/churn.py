"""Do many conversations stay warm when the device holds only four of them?

64 conversations of 500 to 4,000 tokens, then turns whose conversation is drawn by Zipf's law (exponent 1). The device
holds four of average length, the disk holds all. Measures the time from sending to the first token, through the whole
session manager. Every fourth turn is also measured with nothing kept: the same engine reads the same ledger from its
beginning.

    python -m benchmarks.churn [--model embedded] [--conversations 64] [--turns 80]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.driver import answer, load
from benchmarks.report import device_name, finish, table
from benchmarks.served import OWNER, Served, serve
from model_runtime.loading.loading import unload
from sessions.ledger.ledger import fold
from sessions.types import MissReason, Receipt

SHORTEST, LONGEST = 500, 4000
TURN_TOKENS = 32
NEW_TOKENS = 4
ON_DEVICE = 4
BASELINE_EVERY = 4
GIB = 1024**3


def lengths(count: int, dice: random.Random) -> list[int]:
    """Lengths from the shortest to the longest, short ones more often, in random order."""
    drawn = [int(SHORTEST * (LONGEST / SHORTEST) ** ((n / max(1, count - 1)) ** 4)) for n in range(count)]
    dice.shuffle(drawn)
    return drawn


def nothing_kept_s(served: Served, conversation_id: str) -> float:
    """Time to the first token of the turn that was just answered, if its whole ledger is read."""
    store = served.store
    path = store.messages.path(store.conversation(OWNER, conversation_id).leaf_id)
    ledger = fold(path)[: -len(path[-1].answer_ids)]
    kv = served.engine.new_kv()
    try:
        return answer(served.engine, kv, ledger, 1).finished.ttft_s or 0.0  # type: ignore[arg-type]
    finally:
        served.engine.release(kv)


def percentile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--turns", type=int, default=80)
    arguments = parser.parse_args()

    dice, begin = random.Random(5), time.perf_counter()
    loaded = load(arguments.model)
    wanted = lengths(arguments.conversations, dice)
    kept: list[tuple[float, Receipt]] = []
    nothing: list[float] = []
    paired: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        room = int(ON_DEVICE * statistics.mean(wanted) * 1.15)
        with serve(loaded, Path(folder), device_tokens=room, disk_bytes=16 * GIB, limit=LONGEST + 4096) as served:
            device_bytes = served.manager.memory_view(OWNER).device_budget_bytes
            conversations = [served.conversation(NEW_TOKENS)]
            for number, tokens in enumerate(wanted):
                served.turn(conversations[-1], served.text(tokens - TURN_TOKENS, number))
                conversations.append(served.conversation(NEW_TOKENS))
            del conversations[-1]
            began_s = time.perf_counter() - begin
            print(f"# {len(conversations)} conversations of {sum(wanted):,} tokens after {began_s:.0f} s")
            weights = [1 / rank for rank in range(1, len(conversations) + 1)]
            for number, c in enumerate(dice.choices(conversations, weights, k=arguments.turns)):
                kept.append(served.turn(c, served.text(TURN_TOKENS, number)))
                if number % BASELINE_EVERY == 0:
                    nothing.append(nothing_kept_s(served, c))
                    paired.append(kept[-1][0])
            used_bytes, device = (
                served.manager.memory_view(OWNER).disk_used_bytes,
                device_name(served.engine.info.device),
            )
            assert served.manager.memory_view(OWNER).device_used_bytes <= device_bytes
    receipts = [receipt for _, receipt in kept]
    cheaper = [r for r in receipts if r.miss_reason is MissReason.REREAD_CHEAPER]
    others = [r for r in receipts if r.miss_reason is not MissReason.REREAD_CHEAPER]
    seconds = [s for s, _ in kept]
    tiers = Counter(r.tier_before.value for r in receipts)
    table(
        ("turns", "p50 s", "p95 s"),
        [
            (f"kept ({len(seconds)})", percentile(seconds, 0.5), percentile(seconds, 0.95)),
            (f"kept, those also read ({len(paired)})", percentile(paired, 0.5), percentile(paired, 0.95)),
            (f"nothing kept ({len(nothing)})", percentile(nothing, 0.5), percentile(nothing, 0.95)),
        ],
    )
    print(f"# began on: {dict(tiers)}; misses: {dict(Counter(r.miss_reason for r in others if r.miss_reason))}")
    print(f"# device budget {device_bytes / 2**20:.0f} MiB, disk used {used_bytes / 2**20:.0f} MiB")
    print(f"# {time.perf_counter() - begin:.0f} s in all")
    figures = {
        "fed_only_delta_share": sum(r.fed_tokens <= r.delta_tokens for r in others) / max(1, len(others)),
        "reread_cheaper_share": len(cheaper) / len(receipts),
        "ttft_p50_reduction": 1 - percentile(paired, 0.5) / percentile(nothing, 0.5),
        "ttft_p95_reduction": 1 - percentile(paired, 0.95) / percentile(nothing, 0.95),
    }
    finish("churn", figures, device, f"{loaded.name}, {loaded.quantization}")
    unload(loaded)


if __name__ == "__main__":
    main()
