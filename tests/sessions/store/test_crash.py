"""kill -9 at any moment: every committed message is there, every segment with a row is complete, and the conversation
continues with the text that a server without any memory would write."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import sessions.memory.moves.restore
from model_runtime.interface.protocol import Engine
from model_runtime.interface.sampling_params import SamplingParams
from sessions.ledger.ledger import fold
from sessions.maintenance.doctor import Report, inspect, verify_everything
from sessions.manager import SessionManager
from sessions.memory.saved.kv_files import path_in
from sessions.memory.saved.speed import RestoreChoice
from sessions.store.store import Store
from sessions.types import MessageStatus, Tier
from tests.conftest import TinyDir
from tests.model_runtime.harness import GREEDY, WatchedEngine
from tests.polling import pause
from tests.sessions.byte_template import END
from tests.sessions.conftest import MakeHarness
from tests.sessions.real_session_harness import load, manager_of
from tests.sessions.scripted_engine import ScriptedEngine, text_of
from tests.sessions.session_harness import ADA, SessionHarness, finish, prompt_of
from tests.sessions.store.crash_zygote import DISK_BYTES

KILLS_PER_DIRECTORY = 10  # then a new one: endlessly growing conversations only make the test slow
Said = list[tuple[str, str]]


class Zygote:
    """Starts servers and kills them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self._queue() == "ready"

    def run_and_kill(self, data_dir: Path, round_number: int, after_s: float) -> Said:
        """Kills the server `after_s` seconds after it began to start. Returns what it had said was committed."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{data_dir} {round_number}\n")
        self._process.stdin.flush()
        lines = [self._queue()]
        while not lines[-1].isdigit():  # the child may print first
            lines.append(self._queue())
        pause(after_s)
        os.kill(int(lines.pop()), signal.SIGKILL)
        while (line := self._queue()) != "dead":
            lines.append(line)
        return [(c, text) for c, _, text in (line.split(" ", 2) for line in lines)]

    def _queue(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the zygote died"
        return line.rstrip("\n")


@contextmanager
def zygote(*arguments: str) -> Iterator[Zygote]:
    command = [sys.executable, "-m", "tests.sessions.store.crash_zygote", *arguments]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Zygote(process)
        finally:
            process.kill()


def examine(data_dir: Path, engine: Engine) -> None:
    """Checks the directory before the next start: a file may have no row, but every row's file is complete and
    correct."""
    store = Store(data_dir)
    report = Report(lambda sentence: None)
    try:
        inspect(store, report)
        verify_everything(store, engine, report)
    finally:
        store.close()
    assert [sentence for sentence in report.wrong if "without a row" not in sentence] == []


def check_messages(manager: SessionManager, committed: Said) -> None:
    """A message may be committed without being reported, never the other way round."""
    for c in dict.fromkeys(c for c, _ in committed):
        texts = [m.text for m in manager.view(ADA, c).messages if m.role == "user"]
        wanted = [text for where, text in committed if where == c]
        assert [t for t in texts if t in wanted] == wanted


def check_answers(harness: SessionHarness, c: str) -> None:
    path = harness.path(c)
    for number in range(2, len(path) + 1, 2):
        answer = path[number - 1]
        expected = text_of(harness.engine.answer(prompt_of(path[:number])))
        if answer.status is MessageStatus.COMPLETE:
            assert answer.text == expected
        else:
            assert answer.status is MessageStatus.INTERRUPTED
            assert expected.startswith(answer.text)
            assert (*expected.encode(), END)[: len(answer.ids.token_ids)] == answer.ids.token_ids


def check_disk(harness: SessionHarness) -> None:
    """After the start: every row has its complete file, every file its row, and both fit the budget."""
    rows = {path_in(harness.store.kv_dir, row.key): row.size_bytes for row in harness.store.segments.every()}
    assert {path: path.stat().st_size for path in harness.files()} == rows
    assert sum(rows.values()) <= DISK_BYTES


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kill_count", [30, pytest.param(200, marks=pytest.mark.long)])
def test_random_kills(make_harness: MakeHarness, tmp_path: Path, kill_count: int) -> None:
    dice, longest_s = random.Random(7), 0.2
    interrupted = from_disk = early = 0
    committed: Said = []
    engine = ScriptedEngine()
    with zygote("scripted") as kills:
        for number in range(kill_count):
            data_dir = tmp_path / str(number // KILLS_PER_DIRECTORY)
            if number % KILLS_PER_DIRECTORY == 0:
                committed = []
            said = kills.run_and_kill(data_dir, number, dice.uniform(0.0, longest_s))
            early += not said
            if early > 0.35 * (number + 1):  # a busy machine needs longer to report anything
                longest_s = min(2.0, longest_s * 1.1)
            committed += said
            if not (data_dir / "keepwarm.db").exists():
                continue  # it was killed before there was a database
            examine(data_dir, engine)
            harness = make_harness(data_dir=data_dir, disk_kv_budget_bytes=DISK_BYTES)
            check_disk(harness)
            check_messages(harness.manager, committed)
            for c in dict.fromkeys(c for c, _ in committed):
                check_answers(harness, c)
                if harness.path(c)[-1].status is MessageStatus.INTERRUPTED:
                    interrupted += 1
                    assert harness.manager.view(ADA, c).messages[-1].can_continue
                    act = dice.choice([harness.manager.continue_answer, harness.manager.regenerate])
                    answer = finish(act(ADA, c))
                    assert answer.text == harness.expected_text(c)
                    from_disk += harness.receipt(answer).tier_before is Tier.DISK
            harness.close()
    engine.close()
    print(f"kills={kill_count} before the first message={early} interrupted={interrupted} from disk={from_disk}")
    assert interrupted > kill_count // 2
    assert 0 < early < kill_count // 2
    assert from_disk > kill_count // 20


def alone(engine: WatchedEngine, prompt: tuple[int, ...], sampling: SamplingParams) -> tuple[int, ...]:
    """What the model answers with a new KV."""
    kv = engine.engine.new_kv()
    answer = engine.submit(kv, prompt, sampling)
    answer.wait()
    engine.engine.release(kv)
    return answer.token_ids


@pytest.mark.parametrize("kill_count", [3, pytest.param(15, marks=pytest.mark.long)])
def test_kills_of_the_real_engine(
    kill_count: int, tiny_dir: TinyDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reading 100 tokens with a model of 3 layers takes no longer than opening a file.
    monkeypatch.setattr(sessions.memory.moves.restore, "choose", lambda *args: RestoreChoice(True, "For the test."))
    dice, longest_s = random.Random(3), 1.2
    loaded = load(tiny_dir("llama"))
    engine = WatchedEngine(loaded)
    from_disk = spoken = 0
    committed: Said = []
    with zygote("real", str(tiny_dir("llama"))) as kills:
        for number in range(kill_count):
            data_dir = tmp_path / str(number // 5)
            if number % 5 == 0:
                committed = []
            committed += (said := kills.run_and_kill(data_dir, number, dice.uniform(0.1, longest_s)))
            if not said:  # a busy machine needs longer to report anything
                longest_s = min(20.0, longest_s * 2)
            spoken += len(said)
            if not (data_dir / "keepwarm.db").exists():
                continue
            examine(data_dir, engine.engine)
            store = Store(data_dir)
            manager = manager_of(store, engine, loaded)
            manager.start()
            check_messages(manager, committed)
            for c in dict.fromkeys(c for c, _ in committed):
                answer = finish(manager.send(ADA, c, "And then?"), 60)
                path = store.messages.path(store.conversation(ADA, c).leaf_id)
                prompt = fold(path)[: -len(path[-1].answer_ids)]
                assert alone(engine, prompt, GREEDY) == path[-1].answer_ids
                assert answer.receipt is not None
                from_disk += answer.receipt.tier_before is Tier.DISK
            manager.close()
            store.close()
    engine.close()
    print(f"kills={kill_count} messages={spoken} continued from disk={from_disk}")
    assert spoken > kill_count
    assert from_disk > kill_count // 3
