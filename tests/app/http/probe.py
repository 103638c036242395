"""Requests /health over and over, each time on a new connection, like a supervisor, until its input ends; then prints
what it saw. It is a separate process, so that no other work keeps its interpreter busy."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from typing import Any

EVERY_S = 0.02


def main(port: str) -> None:
    has_ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), has_ended.set())).start()
    seen: dict[str, Any] = {"longest_s": 0.0, "answers": 0, "failures": []}
    print("ready", flush=True)
    answered_at = time.monotonic()
    while not has_ended.wait(EVERY_S):
        problem = _ask(int(port))
        if problem:
            seen["failures"].append(problem)
            continue
        now = time.monotonic()
        seen["longest_s"] = max(seen["longest_s"], now - answered_at)
        seen["answers"] += 1
        answered_at = now
    seen["longest_s"] = max(seen["longest_s"], time.monotonic() - answered_at)
    print(json.dumps(seen), flush=True)


def _ask(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        connection.close()
    return "" if status == 200 else f"status {status}"


if __name__ == "__main__":
    main(*sys.argv[1:])
