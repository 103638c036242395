"""A server on a disk that is full, or becomes read-only: run inside a mount namespace, prints what happened as JSON.

Real: tmpfs, the kernel's own ENOSPC and EROFS, SQLite, the real engine's files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from sessions.errors import StoreError
from sessions.store.store import Store
from tests.model_runtime.harness import WatchedEngine
from tests.sessions.real_session_harness import GREEDY, load, manager_of
from tests.sessions.session_harness import ADA, finish

KIB = 1024


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def main(model_dir: str, data_dir: str, trouble: str) -> None:
    data, said = Path(data_dir), {}
    kv = data / "kv"
    kv.mkdir(mode=0o700, parents=True)
    mount("-t", "tmpfs", "-o", f"size={256 * KIB if trouble == 'full' else 2**24},mode=700", "none", kv)
    loaded = load(Path(model_dir))
    engine, store = WatchedEngine(loaded), Store(data)
    manager = manager_of(store, engine, loaded)
    manager.start()
    c = manager.create_conversation(ADA, GREEDY).conversation_id
    answers = []
    for number in range(8):
        if trouble == "read-only" and number == 3:
            mount("-o", "remount,ro", kv)
        answers.append(finish(manager.send(ADA, c, f"Message {number} about the harbour and the boats there."), 60))
    said["statuses"] = [answer.status.value for answer in answers]
    said["misses"] = [answer.receipt.miss_reason for answer in answers if answer.receipt is not None]
    manager.close()  # by then every queued save was tried
    said["events"] = [event.text for event in manager.memory_view(ADA).events]
    said["left_over"] = [path.name for path in kv.rglob("*.tmp")]
    said["disk_bytes"] = manager.memory_view(ADA).disk_used_bytes
    store.close()
    if trouble == "read-only":
        mount("-t", "tmpfs", "none", kv)  # out of the way
        mount("--bind", data, data)
        mount("-o", "remount,bind,ro", data)
        try:
            Store(data)
        except StoreError as error:
            said["start"] = str(error)
    engine.close()
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
