"""Estimates come from what was measured."""

from __future__ import annotations

import pytest

from model_runtime.read_speed import ReadSpeed


def cost_s(start: int, end: int, chunk: int = 512) -> float:
    """A machine: 5 ms a chunk, 1 ms a token, 0.2 microseconds a token and key."""
    total = 0.0
    while start < end:
        n = min(chunk, end - start)
        total += 0.005 + 0.001 * n + 2e-7 * n * (start + n / 2)
        start += n
    return total


def test_a_machine_is_learnt_from_its_chunks() -> None:
    speed = ReadSpeed(512)
    assert speed.estimate_s(0, 1000) == 0
    for start, tokens in ((0, 16), (0, 512), (512, 512), (2048, 16), (3000, 100)):
        speed.observe(start, start + tokens, cost_s(start, start + tokens))
    for start, end in ((0, 6000), (6000, 6032), (100, 101), (0, 8192)):
        assert speed.estimate_s(start, end) == pytest.approx(cost_s(start, end), rel=0.01)
    assert speed.estimate_s(10, 10) == 0
    assert speed.estimate_s(10, 5) == 0


def test_noise_never_makes_a_cost_negative() -> None:
    speed = ReadSpeed(512)
    speed.observe(0, 512, 0.1)  # deeper reads that look faster
    speed.observe(4000, 4512, 0.05)
    speed.observe(0, 16, 0.2)
    for start in range(0, 9000, 500):
        assert speed.estimate_s(start, start + 32) >= 0


def test_old_chunks_are_forgotten() -> None:
    speed = ReadSpeed(512)
    for _ in range(64):
        speed.observe(0, 512, 1.0)
    for _ in range(64):
        speed.observe(0, 512, 0.25)
    assert speed.estimate_s(0, 512) == pytest.approx(0.25, rel=0.01)


def test_many_short_reads_do_not_push_out_the_long_ones() -> None:
    """A person types: a few rows, again and again, at the same depth."""
    speed = ReadSpeed(512)
    for start, tokens in ((0, 16), (0, 256), (2048, 16)):
        speed.observe(start, start + tokens, cost_s(start, start + tokens))
    for number in range(500):
        speed.observe(80, 87, cost_s(80, 87) * (1.0, 1.3, 0.8)[number % 3])
    assert speed.estimate_s(0, 2000) == pytest.approx(cost_s(0, 2000), rel=0.1)
    assert speed.estimate_s(80, 87) == pytest.approx(cost_s(80, 87), rel=0.1)
