"""Decodes first, then prefills in turns, and no chunk that stalls the streams."""

from __future__ import annotations

from dataclasses import dataclass

from model_runtime.engine.scheduler import MIN_CHUNK_TOKENS, Scheduled, Scheduler, SchedulerConfig

CONFIG = SchedulerConfig(chunk_tokens=512, shared_step_s=0.2)


@dataclass
class Job:
    unfed_tokens: int
    is_decoding: bool
    kv_tokens: int = 0
    fairness_key: str = ""


def millisecond_a_token(start: int, end: int) -> float:
    return (end - start) / 1000


def plan(*jobs: Job) -> list[Scheduled[Job]]:
    return Scheduler(CONFIG).plan(jobs, millisecond_a_token)


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert plan() == []


def test_every_stream_gets_its_token_and_the_first_prefill_goes_on() -> None:
    first, second = Job(2000, False), Job(10, False)
    streams = [Job(1, True), Job(1, True)]
    found = plan(streams[0], first, second, streams[1])
    assert [slot.sequence for slot in found] == [*streams, first]
    assert [slot.tokens for slot in found] == [1, 1, 192]  # 224 would take 0.224 s


def test_alone_a_prefill_gets_the_whole_chunk() -> None:
    assert plan(Job(2000, False))[0].tokens == 512
    assert plan(Job(20, False))[0].tokens == 20


def test_a_slow_machine_still_reads_on() -> None:
    found = Scheduler(CONFIG).plan([Job(1, True), Job(2000, False)], lambda start, end: 10.0)
    assert found[1].tokens == MIN_CHUNK_TOKENS


def test_whole_prompts_fill_what_a_chunk_leaves() -> None:
    short = [Job(60, False), Job(70, False), Job(400, False), Job(30, False)]
    assert [slot.tokens for slot in plan(*short)] == [60, 70, 30]  # 400 does not fit any more, and is not cut
    stream = Job(1, True)
    assert [slot.tokens for slot in plan(stream, *short)] == [1, 60, 70, 30]
    assert [slot.tokens for slot in plan(stream, *short[:2], Job(100, False))] == [
        1,
        60,
        70,
    ]  # 0.23 s would be too long


def test_a_short_message_waits_for_one_chunk_of_anothers_pastes() -> None:
    scheduler = Scheduler(CONFIG)
    pastes = [Job(4000, False, fairness_key="ada") for _ in range(3)]
    assert [slot.sequence for slot in scheduler.plan(pastes, millisecond_a_token)] == [pastes[0]]
    short = Job(40, False, fairness_key="ben")
    found = scheduler.plan([*pastes, short], millisecond_a_token)
    assert [(slot.sequence, slot.tokens) for slot in found] == [(short, 40)]  # the rest is too small for a whole paste


def test_long_prompts_of_two_take_turns_and_those_of_one_do_not() -> None:
    scheduler = Scheduler(CONFIG)
    jobs = [Job(4000, False, fairness_key=key) for key in ("ada", "ada", "ben", "cy")]
    found = [scheduler.plan(jobs, millisecond_a_token)[0].sequence for _ in range(6)]
    assert [jobs.index(job) for job in found] == [0, 2, 3, 0, 2, 3]


def test_many_short_prompts_of_one_do_not_hold_up_the_long_one_of_another() -> None:
    scheduler = Scheduler(CONFIG)
    long = Job(4000, False, fairness_key="ben")
    served = 0
    for _ in range(20):
        fresh = Job(500, False, fairness_key="ada")
        served += scheduler.plan([fresh, long], millisecond_a_token)[0].sequence is long
    assert served == 10
