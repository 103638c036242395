"""A wrong setting is a sentence, not a surprise later."""

from __future__ import annotations

import pytest

from sessions.config import SessionConfig


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
    ],
)
def test_wrong_values_are_refused(setting: str, value: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SessionConfig(**{"device_kv_budget_bytes": 1, setting: value})  # type: ignore[arg-type]


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(TypeError, match="kv_budget"):
        SessionConfig(kv_budget=1)  # type: ignore[call-arg]
