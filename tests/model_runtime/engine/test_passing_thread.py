"""What torch starts for a thread goes with it."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

from model_runtime.engine.passing_thread import in_passing_thread

# In a process of its own, where no other test begins or ends threads.
_COUNT = """
import os
import torch
from model_runtime.engine.passing_thread import in_passing_thread
from tests.polling import until

def threads():
    return len(os.listdir("/proc/self/task"))

def multiply():
    torch.mm(torch.ones(512, 512), torch.ones(512, 512))
    return threads()

before = threads()
during = in_passing_thread(multiply)
until(lambda: threads() <= before)
print(during - before, threads() - before)
"""


def test_results_and_errors_come_back() -> None:
    assert in_passing_thread(threading.current_thread) is not threading.current_thread()
    with pytest.raises(KeyError, match="gone"):
        in_passing_thread(lambda: {}["gone"])


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as Linux shows them")
@pytest.mark.skipif(torch.get_num_threads() < 2, reason="torch uses one thread here: there is no pool")
def test_the_pool_of_a_passing_thread_ends_with_it() -> None:
    counted = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True, timeout=120)
    during, afterwards = map(int, counted.stdout.split())
    assert during >= torch.get_num_threads()  # the thread and its workers
    assert afterwards == 0
