"""Memory of the 15.5B multi-query shape: weights, the peak of a 60-token run, and a very long system prompt."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.bench import GIB, Bench
from benchmarks.gpu.shapes import PRECISIONS, build
from benchmarks.gpu.talk import ask, open_engine, some_ids
from model_runtime.loading.loaded import LoadedModel

NEW_TOKENS = 60
PUBLISHED_PEAKS_GIB = {"none": 29.0, "int8": 15.2, "fp4": 9.5}
PUBLISHED_PROMPT = {"math": (37.7, 11.0), "flash": (32.6, 3.0)}
_NAMES = {"none": "bf16"}


def memory(bench: Bench) -> None:
    """Weights and peak in each precision. The long prompt then uses the bf16 model."""
    for precision in PRECISIONS:
        if bench.left_s < 30:
            bench.note(f"octocoder_{_NAMES.get(precision, precision)}", "skipped: no time left")
            continue
        loaded = build(bench, "octocoder", precision)
        name = f"octocoder_{_NAMES.get(precision, precision)}"
        bench.figure(f"{name}_weights_gib", loaded.weights_bytes / GIB)
        _peak_of_a_run(bench, name, loaded, PUBLISHED_PEAKS_GIB.get(precision))
        if precision == "none":
            _long_prompt(bench, loaded)
        del loaded
        bench.clean()


def _peak_of_a_run(bench: Bench, name: str, loaded: LoadedModel, published_gib: float | None) -> None:
    engine = open_engine(bench, loaded, 1024, 1024)
    prompt = some_ids(loaded, 24)
    bench.clean()
    kv = engine.new_kv()
    ask(engine, kv, prompt, NEW_TOKENS).wait()
    engine.release(kv)
    bench.figure(f"{name}_peak_gib", bench.peak_gib())
    if published_gib is not None:
        bench.note(f"{name}_published_peak_gib", str(published_gib))
    engine.close()


def _long_prompt(bench: Bench, loaded: LoadedModel) -> None:
    """About 6,000 tokens before a 60-token answer: ours with flash, and transformers with the math kernel."""
    prompt = some_ids(loaded, 300 if bench.is_tiny else 6000)
    _prompt_with_flash(bench, loaded, prompt)
    bench.clean()
    _prompt_with_math(bench, loaded, prompt)
    for kind, (gib, seconds) in PUBLISHED_PROMPT.items():
        bench.note(f"prompt_{kind}_published", f"{gib} GiB, {seconds} s")


def _prompt_with_flash(bench: Bench, loaded: LoadedModel, prompt: list[int]) -> None:
    engine = open_engine(bench, loaded, len(prompt) + 128, len(prompt) + 128)
    bench.clean()
    kv = engine.new_kv()
    bench.figure("prompt_flash_s", bench.timed_s(lambda: ask(engine, kv, prompt, NEW_TOKENS).wait()))
    engine.release(kv)
    bench.figure("prompt_flash_peak_gib", bench.peak_gib())
    engine.close()


def _prompt_with_math(bench: Bench, loaded: LoadedModel, prompt: list[int]) -> None:
    model = loaded.model
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([prompt], device=bench.device)
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        seconds = bench.timed_s(lambda: model.generate(ids, max_new_tokens=NEW_TOKENS, **settings))
    bench.figure("prompt_math_s", seconds)
    bench.figure("prompt_math_peak_gib", bench.peak_gib())
