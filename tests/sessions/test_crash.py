"""kill -9 at any moment: every committed message is there, the answer is `interrupted`, the conversation goes on."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from pathlib import Path

from sessions.types import MessageStatus, Tier
from tests.sessions.byte_template import END
from tests.sessions.conftest import MakeHouse
from tests.sessions.crash_child import DISK_BYTES
from tests.sessions.house import ADA, House, finish, prompt_of
from tests.sessions.scripted_engine import text_of

KILLS = 20


def start_server(data_dir: Path, round_number: int) -> subprocess.Popen[str]:
    """It imports, and opens the data directory when told to."""
    command = [sys.executable, "-m", "tests.sessions.crash_child", str(data_dir), str(round_number)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_and_kill(child: subprocess.Popen[str], after_s: float) -> list[tuple[str, int, str]]:
    """Lets the server talk, kills it `after_s` after its first message; what it had said was committed."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("go\n")
    child.stdin.flush()
    first = child.stdout.readline()
    time.sleep(after_s)
    child.kill()
    child.wait()
    lines = [first, *child.stdout.readlines()]
    said = [line.rstrip("\n").split(" ", 2) for line in lines if line.endswith("\n")]
    return [(c, int(message_id), text) for c, message_id, text in said]


def check_disk(house: House) -> None:
    """What the sweep left: every row has its whole file, every file its row, and both fit the budget."""
    disk = house.manager._tiers._disk
    rows = {disk.path_of(segment.key): segment.size_bytes for segment in house.store.segments.every()}
    assert {path: path.stat().st_size for path in house.files()} == rows
    assert sum(rows.values()) <= DISK_BYTES


def test_twenty_random_kills(make_house: MakeHouse, tmp_path: Path) -> None:
    dice = random.Random(7)
    committed: list[tuple[str, int, str]] = []
    interrupted = from_disk = 0
    with contextlib.ExitStack() as children:
        ahead = [children.enter_context(start_server(tmp_path / "data", n)) for n in range(2)]
        for round_number in range(KILLS):
            said = run_and_kill(ahead.pop(0), dice.uniform(0.0, 0.15))
            if round_number + 2 < KILLS:
                ahead.append(children.enter_context(start_server(tmp_path / "data", round_number + 2)))
            assert said
            committed += said
            house = make_house(disk_kv_budget_bytes=DISK_BYTES)
            check_disk(house)
            for c in dict.fromkeys(c for c, _, _ in committed):
                texts = [m.text for m in house.manager.view(ADA, c).messages if m.role == "user"]
                wanted = [text for where, _, text in committed if where == c]
                # A message may be committed without its line having been printed; never the other way round.
                assert [t for t in texts if t in wanted] == wanted
                path = house.path(c)
                for number in range(2, len(path) + 1, 2):
                    answer = path[number - 1]
                    expected = text_of(house.engine.answer(prompt_of(path[:number])))
                    if answer.status is MessageStatus.COMPLETE:
                        assert answer.text == expected
                    else:
                        assert answer.status is MessageStatus.INTERRUPTED
                        assert expected.startswith(answer.text)
                        assert (*expected.encode(), END)[: len(answer.ids.token_ids)] == answer.ids.token_ids
                if path[-1].status is MessageStatus.INTERRUPTED:
                    interrupted += 1
                    assert house.manager.view(ADA, c).messages[-1].can_continue
                    act = dice.choice([house.manager.continue_answer, house.manager.regenerate])
                    answer_view = finish(act(ADA, c))
                    assert answer_view.text == house.expected_text(c)
                    from_disk += house.receipt(answer_view).tier_before is Tier.DISK
            house.close()
    assert interrupted > KILLS // 2
    assert from_disk > 0
