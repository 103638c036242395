"""Decodes first, one prefill at a time, and no chunk that stalls the streams."""

from __future__ import annotations

from dataclasses import dataclass

from model_runtime.scheduler import MIN_CHUNK_TOKENS, SchedulerConfig, plan_step

CONFIG = SchedulerConfig(chunk_tokens=512, shared_step_s=0.2)


@dataclass
class Job:
    unfed_tokens: int
    is_decoding: bool
    kv_tokens: int = 0


def millisecond_a_token(start: int, end: int) -> float:
    return (end - start) / 1000


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert plan_step([], CONFIG, millisecond_a_token) == []


def test_every_stream_gets_its_token_and_the_first_prefill_goes_on() -> None:
    first, second = Job(2000, False), Job(10, False)
    streams = [Job(1, True), Job(1, True)]
    plan = plan_step([streams[0], first, second, streams[1]], CONFIG, millisecond_a_token)
    assert [slot.sequence for slot in plan] == [*streams, first]
    assert [slot.tokens for slot in plan] == [1, 1, 128]  # 256 would take 0.256 s


def test_alone_a_prefill_gets_the_whole_chunk() -> None:
    assert plan_step([Job(2000, False)], CONFIG, millisecond_a_token)[0].tokens == 512
    assert plan_step([Job(20, False)], CONFIG, millisecond_a_token)[0].tokens == 20


def test_a_slow_machine_still_reads_on() -> None:
    plan = plan_step([Job(1, True), Job(2000, False)], CONFIG, lambda start, end: 10.0)
    assert plan[1].tokens == MIN_CHUNK_TOKENS
