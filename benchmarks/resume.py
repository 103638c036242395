"""How long does it take to continue a long conversation, depending on where its KV is?

One conversation of 6,000 tokens gets short turns from every tier: its KV on the device, parked in host memory, parked
on disk with the page cache dropped, in a new process with the page cache dropped, and without any KV. Measures the time
from sending to the first token, through the whole session manager.

    python -m benchmarks.resume [--model embedded] [--tokens 6000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.driver import load
from benchmarks.report import device_name, finish, median, table
from benchmarks.served import OWNER, Served, forget_page_cache, serve
from model_runtime.loading.loading import unload
from sessions.types import Receipt, Tier

GIB = 1024**3
TURN_TOKENS = 24
NEW_TOKENS = 8


def measure(served: Served, conversation_id: str, repeats: int, tier: Tier) -> tuple[list[float], list[float]]:
    """Times to the first token of turns whose KV was moved to `tier` before each, and how long restoring took."""
    first_s, restore_s = [], []
    for number in range(repeats):
        if tier is Tier.NONE:
            served.manager.drop_kv(OWNER, conversation_id)
        elif tier is not Tier.DEVICE:
            served.settle(conversation_id)
            served.manager.park(OWNER, conversation_id, tier)
        if tier is Tier.DISK:
            forget_page_cache(served.data_dir)
        seconds, receipt = served.turn(conversation_id, served.text(TURN_TOKENS, number))
        if receipt.tier_before is not tier or (tier is not Tier.NONE and not fed_only_the_delta(receipt)):
            print(f"# expected {tier}: {receipt}")
        first_s.append(seconds)
        restore_s.append(receipt.restore_s)
    return first_s, restore_s


def restarted(arguments: argparse.Namespace) -> tuple[float, float]:
    """The first turn after a start. Runs in a process of its own."""
    loaded = load(arguments.model)
    with serve(loaded, Path(arguments.restarted), 4 * GIB, disk_bytes=8 * GIB) as served:
        conversation_id = served.manager.list_conversations(OWNER)[0].conversation_id
        first_s, restore_s = measure_as_it_is(served, conversation_id)
    unload(loaded)
    return first_s, restore_s


def measure_as_it_is(served: Served, conversation_id: str) -> tuple[float, float]:
    seconds, receipt = served.turn(conversation_id, served.text(TURN_TOKENS, 99))
    assert receipt.tier_before is Tier.DISK, receipt
    assert fed_only_the_delta(receipt), receipt
    return seconds, receipt.restore_s


def fed_only_the_delta(receipt: Receipt) -> bool:
    """Whether only the turn's own tokens were fed. One token less is right, too: if the start of the next turn was read
    ahead, the pending token's row is parked with the others."""
    return receipt.miss_reason is None and receipt.delta_tokens - receipt.fed_tokens in (0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--restarted", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.restarted:
        print(json.dumps(restarted(arguments)))
        return

    loaded = load(arguments.model)
    first_s: dict[str, list[float]] = {}
    restore_s: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        with serve(loaded, data_dir, 4 * GIB, host_bytes=2 * GIB, disk_bytes=8 * GIB) as served:
            c = served.conversation(NEW_TOKENS)
            served.turn(c, served.text(arguments.tokens - 40))
            served.turn(c, served.text(TURN_TOKENS, 50))  # warms up
            for name, tier in (("device", Tier.DEVICE), ("host", Tier.HOST), ("disk", Tier.DISK)):
                first_s[name], restore_s[name] = measure(served, c, arguments.repeats, tier)
            served.settle(c)
            memory, bytes_per_token = served.manager.memory_view(OWNER), loaded_bytes_per_token(served)
            row = memory.rows[0]
            device_over = memory.device_used_bytes / (row.kv_tokens * bytes_per_token)
            disk_over = memory.disk_used_bytes / (row.disk_tokens * bytes_per_token)
        first_s["restart"], restore_s["restart"] = [], []
        for _ in range(2):
            forget_page_cache(data_dir)
            command = [sys.executable, "-m", "benchmarks.resume", "--model", arguments.model, "--restarted", folder]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
            seconds, restoring = json.loads(printed)
            first_s["restart"].append(seconds)
            restore_s["restart"].append(restoring)
        with serve(loaded, data_dir, 4 * GIB) as served:
            c = served.manager.list_conversations(OWNER)[0].conversation_id
            first_s["cold"], restore_s["cold"] = measure(served, c, 2, Tier.NONE)
            device = device_name(served.engine.info.device)
    cold = median(first_s["cold"])
    table(
        ("from", "first token s", "of which restoring s", "cold / this"),
        [(name, median(s), median(restore_s[name]), cold / median(s)) for name, s in first_s.items()],
    )
    print("# disk and restart: page cache dropped with posix_fadvise(DONTNEED) on every file before the turn")
    figures = {
        "device_ttft_s": median(first_s["device"]),
        "host_ttft_s": median(first_s["host"]),
        "disk_ttft_s": median(first_s["disk"]),
        "restart_ttft_s": median(first_s["restart"]),
        "cold_ttft_s": cold,
        "disk_vs_cold": cold / median(first_s["disk"]),
        "restart_vs_cold": cold / median(first_s["restart"]),
        "device_used_over_minimum": device_over,
        "disk_over_minimum": disk_over,
    }
    finish("resume", figures, device, f"{loaded.name}, {loaded.quantization}")
    unload(loaded)


def loaded_bytes_per_token(served: Served) -> int:
    """`2 * layers * kv_heads * head_dim * bytes`."""
    return served.engine.info.kv_bytes_per_token


if __name__ == "__main__":
    main()
