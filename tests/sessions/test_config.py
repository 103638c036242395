"""A wrong setting is refused with a sentence."""

from __future__ import annotations

import pytest

from sessions.config import SessionConfig, default_disk_kv_budget_bytes


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("device_kv_budget_bytes", 0, "budget must be a positive number of bytes, not 0"),
        ("checkpoint_interval_s", 0.0, "checkpoint interval"),
        ("finished_run_keep_s", -1.0, "Finished runs"),
        ("event_log_length", -1, "event log"),
        ("max_message_bytes", 0, "largest message"),
        ("min_answer_tokens", 0, "left for an answer"),
        ("close_timeout_s", -1.0, "time to close"),
        ("disk_kv_budget_bytes", -1, "disk KV budget must be 0"),
        ("disk_free_floor_bytes", -1, "disk space to keep free"),
        ("draft_quiet_s", -1.0, "time a draft must be unchanged"),
        ("save_patience_s", -1.0, "wait for a save"),
        ("flush_timeout_s", -1.0, "time to save at shutdown"),
    ],
)
def test_wrong_values_are_refused(setting: str, value: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SessionConfig(**{"device_kv_budget_bytes": 1, setting: value})  # type: ignore[arg-type]


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(TypeError, match="kv_budget"):
        SessionConfig(kv_budget=1)  # type: ignore[call-arg]


def test_the_default_disk_budget() -> None:
    assert default_disk_kv_budget_bytes(10 * 1024**3) == 2 * 1024**3
    assert default_disk_kv_budget_bytes(1024**4) == 8 * 1024**3
    assert default_disk_kv_budget_bytes(0) == 0
