"""Restoring is chosen where it is expected to be faster, and a bad moment of the disk is forgotten."""

from __future__ import annotations

import pytest

from sessions.choice import FILE_S, RestoreSpeed, choose

MIB = 1024 * 1024


def test_the_choice_is_the_shorter_wait_and_says_both() -> None:
    choice = choose(0.2, 0.1, 12.5, 84 * MIB, 5020)
    assert choice.restores
    assert choice.sentence == (
        "Restored: restoring 84.0 MiB from disk was expected to take 0.30 s, reading 5,020 tokens 12.50 s."
    )
    assert not choose(0.2, 0.1, 0.3, MIB, 1).restores


def test_speed_is_learnt() -> None:
    speed = RestoreSpeed()
    for _ in range(30):
        speed.observe(100 * MIB, 4, 0.1 + 4 * FILE_S)
    assert speed.estimate_s(1000 * MIB, 1) == pytest.approx(1.0 + FILE_S, rel=0.01)
    speed.observe(0, 0, 5.0)
    assert speed.estimate_s(1000 * MIB, 1) == pytest.approx(1.0 + FILE_S, rel=0.01)


def test_one_slow_restore_does_not_rule_out_all_others() -> None:
    speed = RestoreSpeed()
    fresh_s = speed.estimate_s(MIB, 1)
    speed.observe(MIB, 1, 60.0)
    slow_s = speed.estimate_s(MIB, 1)
    for _ in range(100):
        speed.declined()
    assert fresh_s < speed.estimate_s(MIB, 1) < slow_s / 100
