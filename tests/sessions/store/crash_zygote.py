"""Forks servers that are going to be killed: each talks in several conversations and says what was committed.

A fork of a process that has imported everything, and loaded the model, starts in milliseconds. It has one thread, so
that the fork is a whole process. A line of input is a data directory and a round; the answers are the child's pid, then
what the child says, then "dead".
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tests.polling import pause

Say = Callable[[str], None]
DISK_BYTES = 300 * 1024  # small, so that files are deleted too


def scripted() -> Callable[[Path, str], None]:
    from tests.sessions.scripted_engine import ScriptedEngine
    from tests.sessions.session_harness import SessionHarness

    def serve(data_dir: Path, round_number: str) -> None:
        harness = SessionHarness(
            data_dir,
            ScriptedEngine(token_delay_s=0.002),
            checkpoint_interval_s=0.01,
            disk_kv_budget_bytes=DISK_BYTES,
        )
        talk(harness.manager, 3, round_number, None)

    return serve


def real(model_dir: str) -> Callable[[Path, str], None]:
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    from sessions.store.store import Store
    from tests.sessions.real_session_harness import GREEDY, load, manager_of

    loaded = load(Path(model_dir))

    def serve(data_dir: Path, round_number: str) -> None:
        from tests.model_runtime.harness import WatchedEngine

        manager = manager_of(Store(data_dir), WatchedEngine(loaded), loaded, checkpoint_interval_s=0.01)
        manager.start()
        talk(manager, 2, round_number, GREEDY)

    return serve


def talk(manager, count: int, round_number: str, settings) -> None:  # type: ignore[no-untyped-def]
    """Talks until it is killed, with `count` answers at a time."""
    from sessions.errors import ConversationBusy

    known = [s.conversation_id for s in manager.list_conversations("ada")]
    for number in itertools.count():
        if len(known) < count:
            known.append(manager.create_conversation("ada", settings).conversation_id)
        c = known[number % count]
        view = manager.view("ada", c)
        if view.ledger_tokens > view.context_limit_tokens // 2:
            c = known[number % count] = manager.create_conversation("ada", settings).conversation_id
        text = f"round {round_number} message {number}"
        try:
            run = manager.send("ada", c, text)
        except ConversationBusy:  # the same empty conversation twice in the list: an earlier process left it behind
            pause(0.01)
            continue
        say(f"{c} {run.message_id} {text}")
        if number % count == count - 1:
            for other in known:
                active = manager.active_run("ada", other)
                while active is not None and not active.is_done:
                    active.wait(active.snapshot().version, 1.0)


def say(line: str) -> None:
    """Prints in one write, so that a kill leaves no half line."""
    os.write(1, f"{line}\n".encode())


def main(kind: str, *arguments: str) -> None:
    serve = {"scripted": scripted, "real": real}[kind](*arguments)
    say("ready")
    for line in iter(sys.stdin.readline, ""):
        data_dir, round_number = line.split()
        pid = os.fork()
        if pid == 0:
            try:
                serve(Path(data_dir), round_number)
            finally:
                os._exit(3)
        say(str(pid))
        os.waitpid(pid, 0)
        say("dead")


if __name__ == "__main__":
    main(*sys.argv[1:])
