"""What the database writes into the log: it may be on the very disk that is full."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import pytest

from sessions.errors import StoreError
from sessions.store.database import Database


def test_trouble_that_lasts_is_logged_once_and_again_after_it_was_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(tmp_path / "keepwarm.db")
    other = sqlite3.connect(database.path, isolation_level=None)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            other.execute("BEGIN IMMEDIATE")
            for _ in range(5):
                with pytest.raises(StoreError), database.write(patience_s=0.0):
                    raise AssertionError("another program is writing")
            other.execute("ROLLBACK")
        assert [record.message.split()[0] for record in caplog.records] == ["store_error"]
        with database.write() as db:
            db.execute("SELECT 1")
    other.close()
    database.close()
