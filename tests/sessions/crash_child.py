"""A server that is going to be killed: talks in several conversations and says what was committed."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from tests.sessions.house import House
from tests.sessions.scripted_engine import ScriptedEngine

DISK_BYTES = 300 * 1024  # so little that files come and go


def main(data_dir: str, round_number: str) -> None:
    if not sys.stdin.readline():  # started ahead of its turn, because importing takes longer than being killed
        return
    house = House(
        Path(data_dir), ScriptedEngine(token_delay_s=0.002), checkpoint_interval_s=0.01, disk_kv_budget_bytes=DISK_BYTES
    )
    known = [s.conversation_id for s in house.manager.list_conversations("ada")]
    for number in itertools.count():
        if len(known) < 3:
            known.append(house.conversation())
        c = known[number % 3]
        text = f"round {round_number} message {number}"
        run = house.manager.send("ada", c, text)
        print(f"{c} {run.message_id} {text}", flush=True)
        if number % 3 == 2:  # three answers are running at the same time
            for other in known:
                active = house.manager.active_run("ada", other)
                while active is not None and not active.is_done:
                    active.wait(active.snapshot().version, 1.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
