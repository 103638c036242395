"""Runs torch in a short-lived thread, because a second long-lived one would slow the engine thread down.

Every thread that runs parallel torch code on the CPU gets an OpenMP pool of its own and keeps it until the thread ends.
GNU's OpenMP stops spinning between two parallel regions once all pools together have more threads than there are
processors, and puts its threads to sleep each time instead: measured on two cores, a decode step of the embedded model
took 37 ms instead of 16 once another thread (the one that had loaded the model) had multiplied two matrices.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_passing_thread(call: Callable[[], T]) -> T:
    """Runs `call` in a new thread that ends afterwards, together with its OpenMP pool. Returns and raises what `call`
    does."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="keepwarm-passing", daemon=True)
    thread.start()
    thread.join()
    return done.result()
