"""A server whose output goes to a full disk keeps running."""

from __future__ import annotations

import contextlib
import logging
import sys

import pytest

from app.cli.terminal import fail, say


def test_a_sentence_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115
    handler = logging.StreamHandler(full)
    try:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", full)
        monkeypatch.setattr(logging, "raiseExceptions", False)
        say("Keepwarm is ready.")
        assert fail("It is not.", 3) == 3
        handler.handle(logging.LogRecord("keepwarm", logging.ERROR, "", 0, "a line", (), None))
    finally:
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
