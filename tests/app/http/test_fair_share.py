"""Units are handed out to callers in rotation."""

from __future__ import annotations

import asyncio

import pytest

from app.http.fair_share import FairShare
from tests.coroutines import run_coroutine


def test_callers_take_turns() -> None:
    async def run() -> list[str]:
        share, order = FairShare(1), list[str]()

        async def work(caller: str) -> None:
            async with share.hold(caller, 1):
                order.append(caller)
                await asyncio.sleep(0)

        await asyncio.gather(*(work(caller) for caller in ["a"] * 4 + ["b"] * 2 + ["c"]))
        assert share.held == 0
        return order

    assert run_coroutine(run()) == ["a", "a", "b", "c", "a", "b", "a"]


def test_one_caller_holds_half_and_another_gets_the_rest() -> None:
    async def run() -> None:
        share = FairShare(100)
        async with share.hold("a", 40), share.hold("b", 40):
            with pytest.raises(TimeoutError):
                async with share.hold("a", 20, patience_s=0.01):
                    pass
            async with share.hold("c", 20, patience_s=0.01):
                assert share.held == 100
        async with share.hold("a", 5_000, patience_s=0.01):  # more than there is: all of it
            assert share.held == 100
        assert share.held == 0

    run_coroutine(run())


def test_a_caller_that_gives_up_keeps_nothing() -> None:
    async def run() -> None:
        share = FairShare(1)

        async def wait() -> None:
            async with share.hold("a", 1):
                raise AssertionError

        async with share.hold("b", 1):
            waiting = [asyncio.create_task(wait()) for _ in range(3)]
            await asyncio.sleep(0)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        async with share.hold("c", 1, patience_s=0.1):
            assert share.held == 1
        assert share.held == 0

    run_coroutine(run())
