"""Asks the profiler which kernels really ran, and torch how often the host waited for the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import Bench


def kernels_of(bench: Bench, call: Callable[[], object]) -> list[tuple[str, float]]:
    """The kernels that ran during `call` on any thread, with their milliseconds, longest first. On a CPU: operators."""
    is_cuda = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as profiler:
        call()
        bench.sync()
    times: dict[str, float] = {}
    for event in profiler.events():
        on_device = str(event.device_type).endswith("CUDA")
        if on_device == is_cuda:
            spent_us = event.self_device_time_total if is_cuda else event.self_cpu_time_total
            times[event.name] = times.get(event.name, 0.0) + spent_us / 1000
    return sorted(times.items(), key=lambda item: -item[1])


def attention_kernels(kernels: list[tuple[str, float]]) -> list[str]:
    """The names of those that are attention kernels."""
    words = ("flash", "fmha", "attention", "attn", "attend_")
    return [name for name, _ in kernels if any(word in name.lower() for word in words)]


def host_waits(bench: Bench, call: Callable[[], object]) -> int:
    """How often torch made the host wait for the device during `call`, on this thread; 0 on a CPU."""
    if bench.device.type != "cuda":
        call()
        return 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(each.message) for each in caught)
