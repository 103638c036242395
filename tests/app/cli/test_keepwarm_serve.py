"""The real command with the real embedded model and a real browser: killed, restarted, shut down."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from app.__main__ import main
from sessions.config import SessionConfig
from sessions.manager import SessionManager
from sessions.store.store import Store
from sessions.types import MessageStatus
from tests.app.site import Tab
from tests.polling import pause, until
from tests.sessions.scripted_engine import ByteTemplate, ScriptedEngine

pytestmark = [pytest.mark.browser, pytest.mark.embedded, pytest.mark.timeout(600)]

START_TIMEOUT_S = 300.0
OpenTab = Callable[..., Tab]


class Process:
    """`keepwarm serve` on a free port; collects its lines."""

    def __init__(self, data_dir: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "app", "serve", "--port", "0", "--data-dir", str(data_dir), *flags]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def url(self) -> str:
        def ready() -> list[str]:
            found = [line for line in self.lines if line.startswith("Keepwarm is ready: ")]
            assert found or self.process.poll() is None, "\n".join(self.lines)
            return found

        until(ready, START_TIMEOUT_S, 0.05)
        return ready()[0].split()[-1]

    def end(self, number: int) -> float:
        """Seconds from the signal to the end of the process."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(30)
        self._reader.join()
        return time.monotonic() - began

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.lines.extend(line.rstrip("\n") for line in lines)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def run(*flags: str) -> Process:
        processes.append(Process(tmp_path / "data", *flags))
        return processes[-1]

    yield run
    for one in processes:
        if one.process.poll() is None:
            one.end(signal.SIGKILL)


def limit_answers(one: Tab, tokens: int) -> None:
    one.page.locator("#kw-open-settings").click()
    field = one.page.locator("#kw-set-max-new-tokens input")
    expect(field).to_have_value("512")
    field.fill(str(tokens))
    one.page.locator("#kw-set-temperature input").fill("0")
    one.page.locator("#kw-set-repetition-penalty input").fill("1")  # counts on and on when it is asked to
    one.page.locator("#kw-settings-save").click()
    expect(one.page.locator("#kw-settings-note")).to_contain_text("Saved")
    one.page.keyboard.press("Escape")


def say(one: Tab, text: str) -> None:
    before = one.messages.count()
    one.write(text)
    expect(one.messages).to_have_count(before + 2)  # 16 tokens may be over before a running answer is seen
    expect(one.by("send")).to_be_visible(timeout=120_000)


def test_it_answers_survives_a_kill_continues_and_shuts_down_cleanly(
    start: Callable[..., Process], tab: OpenTab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start("--device-kv-budget", "512MiB")
    one = tab(first.url()).open()
    expect(one.by("model")).to_contain_text("SmolLM2-135M")
    assert any("KV budget 512.0 MiB" in line for line in first.lines)
    limit_answers(one, 16)
    say(one, "Name a colour.")
    say(one, "And another one.")
    expect(one.messages.nth(3).locator(".kw-receipt")).to_contain_text(re.compile(r"\d+ new, [1-9]\d* kept"))
    one.new()
    limit_answers(one, 6000)  # too long to end during this test
    one.write("Write the numbers from 1 to 500, separated by commas.")
    expect(one.message(1)).to_contain_text(re.compile(r"\d\D+\d\D+\d"), timeout=60_000)
    begun = one.message(1).inner_text()
    pause(1.5)  # longer than the checkpoint interval
    one.wait_running()
    address = one.page.url.split("#")[1]
    one.page.context.close()
    first.end(signal.SIGKILL)

    second = start("--device-kv-budget", "512MiB", "--drain-limit", "0.5")
    url = second.url()
    again = tab(url).open(f"{url}/#{address}")
    expect(again.by("conversation")).to_have_count(2)
    expect(again.messages).to_have_count(2)
    expect(again.messages.nth(1)).to_contain_text("interrupted")
    expect(again.message(1)).to_contain_text(begun)
    again.by("continue").click()
    again.wait_running()
    expect(again.page.locator(".kw-running")).to_have_attribute("data-phase", "answering", timeout=60_000)
    assert second.end(signal.SIGTERM) < 5.0
    assert second.process.returncode == 0
    assert not [line for line in second.lines if "Traceback" in line]

    capsys.readouterr()
    assert main(["doctor", "--data-dir", str(tmp_path / "data")]) == 0
    examined = capsys.readouterr().out
    assert "Name a colour.: its memory is correct (" in examined
    assert "All is well." in examined

    engine, store = ScriptedEngine(), Store(tmp_path / "data")
    manager = SessionManager(store, engine, ByteTemplate(), SessionConfig(device_kv_budget_bytes=2**20))
    answer = manager.view("local", address).messages[-1]
    engine.close()
    store.close()
    assert answer.status is MessageStatus.INTERRUPTED
    assert re.search(r"\d\D+\d\D+\d", answer.text)


def test_a_signal_while_the_model_loads_ends_it_at_once(start: Callable[..., Process], tmp_path: Path) -> None:
    """It sets its own exit status: a container's first process never receives a signal without a handler."""
    process = start()
    until((tmp_path / "data" / "keepwarm.lock").exists, 60.0)
    assert process.end(signal.SIGTERM) < 3.0
    assert process.process.returncode == 128 + signal.SIGTERM
    assert not [line for line in process.lines if "ready" in line or "Traceback" in line]
