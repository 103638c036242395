"""Restoring is chosen when it is expected to be faster, and a slow moment of the disk is forgotten."""

from __future__ import annotations

import pytest

from sessions.memory.saved.speed import RestoreSpeed, choose

MIB = 1024 * 1024


def test_the_choice_is_the_shorter_wait_and_says_both() -> None:
    choice = choose(0.2, 0.1, 12.5, 84 * MIB, 5020)
    assert choice.restores
    assert choice.sentence == (
        "Restored: restoring 84.0 MiB from disk was expected to take 0.30 s, reading 5,020 tokens 12.50 s."
    )
    assert not choose(0.2, 0.1, 0.3, MIB, 1).restores


def test_the_time_per_byte_and_per_file_are_learnt_separately() -> None:
    speed = RestoreSpeed()
    for _ in range(200):
        speed.observe(100 * MIB, 4, 0.1 + 4 * 0.03)
        speed.observe(MIB // 4, 4, 0.00025 + 4 * 0.03)
    assert speed.estimate_s(1000 * MIB, 0) == pytest.approx(1.0, rel=0.05)
    assert speed.estimate_s(0, 10) == pytest.approx(0.3, rel=0.05)
    learnt_s = speed.estimate_s(1000 * MIB, 1)
    speed.observe(0, 0, 5.0)
    assert speed.estimate_s(1000 * MIB, 1) == learnt_s


def test_a_faster_or_slower_disk_is_noticed_within_a_few_large_restores() -> None:
    speed = RestoreSpeed()
    for seconds in (0.05, 1.0, 0.05):
        for _ in range(4):
            speed.observe(100 * MIB, 4, seconds)
        assert speed.estimate_s(100 * MIB, 4) == pytest.approx(seconds, rel=0.2)


def test_a_small_slow_file_says_little_about_a_large_conversation() -> None:
    speed = RestoreSpeed()
    for _ in range(10):
        speed.observe(100 * MIB, 4, 0.2)
    before_s = speed.estimate_s(100 * MIB, 4)
    speed.observe(2 * MIB, 1, 1.5)  # measured: the file of a turn, while a prompt was read on the same cores
    assert speed.estimate_s(100 * MIB, 4) < 1.5 * before_s


def test_one_slow_restore_does_not_rule_out_all_others() -> None:
    speed = RestoreSpeed()
    fresh_s = speed.estimate_s(100 * MIB, 1)
    for _ in range(3):
        speed.observe(100 * MIB, 1, 60.0)
    slow_s = speed.estimate_s(100 * MIB, 1)
    for _ in range(100):
        speed.declined()
    assert fresh_s < speed.estimate_s(100 * MIB, 1) < 1.01 * fresh_s < slow_s / 10
