"""Decode speed by batch and history, compared with transformers' `generate` and with the memory bandwidth."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.profiled import attention_kernels, host_waits, kernels_of
from benchmarks.gpu.shapes import build, read_bytes_a_token
from benchmarks.gpu.talk import GREEDY, SAMPLED, Answer, ask, open_engine, some_ids
from model_runtime.engine.engine import LocalEngine
from model_runtime.interface.protocol import KV, Segment
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.interface.segments import identify
from model_runtime.loading.loaded import LoadedModel

STEPS = 40
WATCHED_STEPS = 17


def copy_bytes_per_s(bench: Bench) -> float:
    """The memory bandwidth of a plain copy, bytes read and written together."""
    source = torch.empty((64 if bench.is_tiny else 2048) * 1024**2, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = min(bench.timed_s(lambda: target.copy_(source)) for _ in range(5))
    return 2 * source.nbytes / seconds


def decode(bench: Bench, loaded: LoadedModel) -> None:
    """All batches and histories on one model; `decode_vs_generate` and `decode_vs_limit` at batch 1."""
    batches, histories = ((1, 2, 4), (0, 64, 200)) if bench.is_tiny else ((1, 4, 8, 32), (0, 4096, 16384))
    bandwidth = bench.figure("copy_gb_per_s", copy_bytes_per_s(bench) / 1e9) * 1e9
    ours = _ours(bench, loaded, batches, histories)
    bench.clean()
    loaded.model.set_attn_implementation("sdpa")
    theirs: dict[tuple[int, int], float] = {}
    for batch in batches:
        for history in histories:
            if (batch, history) not in ours or batch * history > 4 * histories[1] or bench.left_s < 60:
                continue
            theirs[batch, history] = _generate_tok_s(bench, loaded, batch, history)
            bench.figure(f"generate_tok_s_b{batch}_h{history}", theirs[batch, history])
    ratios = {pair: ours[pair] / speed for pair, speed in theirs.items()}
    for (batch, history), ratio in ratios.items():
        bench.figure(f"decode_vs_generate_b{batch}_h{history}", ratio)
    alone = [ratio for (batch, _), ratio in ratios.items() if batch == 1]
    if alone:
        bench.figure("decode_vs_generate", min(alone))
    if (1, 0) in ours:
        limit = bandwidth / read_bytes_a_token(loaded.model)
        bench.figure("decode_limit_tok_s", limit)
        bench.figure("decode_vs_limit", ours[1, 0] / limit)


def decode_briefly(bench: Bench, loaded: LoadedModel) -> None:
    """Decode speed of another shape: batch 1 and 8, without history and with 4k tokens."""
    batches, histories = ((1, 2), (0, 64)) if bench.is_tiny else ((1, 8), (0, 4096))
    ours = _ours(bench, loaded, batches, histories, f"{loaded.name}_")
    if (1, 0) in ours:
        limit = copy_bytes_per_s(bench) / read_bytes_a_token(loaded.model)
        bench.figure(f"{loaded.name}_decode_vs_limit", ours[1, 0] / limit)


def recorded_or_not(bench: Bench, loaded: LoadedModel) -> None:
    """Compares `EngineConfig.record_steps` off and on: the same steps launched one by one and replayed."""
    for record in (False, True):
        _alone_tok_s(bench, loaded, "recorded" if record else "launched", record=record)


def _alone_tok_s(bench: Bench, loaded: LoadedModel, name: str, record: bool) -> None:
    engine = open_engine(bench, loaded, 2048, 4096, record=record)
    kv = engine.new_kv()
    bench.figure(f"first_{name}_s", bench.timed_s(lambda: ask(engine, kv, some_ids(loaded, 8), 3).wait(bench.left_s)))
    bench.figure(f"decode_tok_s_{name}", _tok_s([ask(engine, kv, some_ids(loaded, 8), STEPS + 9).wait()]))
    engine.close()
    bench.clean()


def _ours(
    bench: Bench, loaded: LoadedModel, batches: tuple[int, ...], histories: tuple[int, ...], prefix: str = ""
) -> dict[tuple[int, int], float]:
    most = max(batches) * (max(histories) + 256)
    engine = open_engine(bench, loaded, max(histories) + 512, _affordable(bench, loaded, most), max(batches))
    found: dict[tuple[int, int], float] = {}
    longest = some_ids(loaded, max(histories) + 1)
    first = engine.new_kv()
    ask(engine, first, longest, 1).wait()
    if not prefix:
        _how_it_runs(bench, engine, first, longest)
    for history in histories:
        segment = engine.stage(first, identify(None, longest[:history], "bench")) if history else None
        for batch in batches:
            if bench.left_s < 60:
                bench.note(f"{prefix}decode_b{batch}_h{history}", "skipped: no time left")
                continue
            try:
                found[batch, history] = _many_at_once(engine, longest[: history + 1], segment, batch)
            except RuntimeError as error:  # the largest may not fit into this device
                bench.note(f"{prefix}decode_b{batch}_h{history}", f"skipped: {error}")
                continue
            bench.figure(f"{prefix}decode_tok_s_b{batch}_h{history}", found[batch, history])
    if not prefix:
        bench.figure("decode_tok_s_sampled", _many_at_once(engine, longest[:1], None, 1, SAMPLED))
    engine.release(first)
    engine.close()
    return found


def _affordable(bench: Bench, loaded: LoadedModel, tokens: int) -> int:
    """How many arena tokens fit beside the memory that a step needs; `first` needs tokens of its own, too."""
    geometry_bytes = 2 * loaded.model.config.get_text_config().num_hidden_layers * loaded.kv_dtype.itemsize
    config = loaded.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or 1
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    fits = int((bench.free_bytes() - (0 if bench.is_tiny else 5 * 1024**3)) / (geometry_bytes * heads * dim))
    return min(tokens + tokens // 8 + 1024, fits)


def _many_at_once(
    engine: LocalEngine, ledger: list[int], segment: Segment | None, batch: int, sampling: SamplingParams = GREEDY
) -> float:
    """Tokens per second of `batch` answers after copies of one history, while all of them stream."""
    kvs: list[KV] = [engine.new_kv() for _ in range(batch)]
    try:
        for kv in kvs if segment is not None else ():
            assert segment is not None
            engine.restore(kv, [segment])
        for tokens in (STEPS // 4 + 2 * batch, STEPS + 2 * batch):  # the first round records the steps
            answers = [ask(engine, kv, ledger, tokens, sampling) for kv in kvs]
            speed = _tok_s([answer.wait() for answer in answers])
        return speed
    finally:
        for kv in kvs:
            engine.release(kv)


def _tok_s(answers: list[Answer]) -> float:
    """Tokens per second from the first token of the last answer until the first answer ends."""
    begin, end = max(answer.times[0] for answer in answers), min(answer.times[-1] for answer in answers)
    tokens = sum(sum(begin < at <= end for at in answer.times) for answer in answers)
    return tokens / (end - begin)


def _ask_and_wait(engine: LocalEngine, kv: KV, ledger: list[int], sampling: SamplingParams) -> None:
    ask(engine, kv, ledger, WATCHED_STEPS, sampling).wait()


def _how_it_runs(bench: Bench, engine: LocalEngine, kv: KV, ledger: list[int]) -> None:
    """The kernels of a decode step, and where the host waits for the device."""
    bench.note("engine_kernel", engine.info.kernel)
    for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
        ask(engine, kv, ledger, 6, sampling).wait()
        waits = host_waits(bench, partial(_ask_and_wait, engine, kv, ledger, sampling))
        # torch counts waits for the whole device. The wait for a step's ids uses an event and is not counted.
        bench.figure(f"host_waits_{name}", waits)
        bench.check(f"{name}: no host wait a step but for its ids", waits <= 5, f"({waits} in {WATCHED_STEPS} steps)")
    kernels = kernels_of(bench, lambda: ask(engine, kv, ledger, 8).wait())
    for name, ms in kernels[:12]:
        print(f"    {ms:8.3f} ms  {name[:110]}")
    ran = attention_kernels(kernels)
    bench.note("decode_attention_kernels", "; ".join(name[:100] for name in ran[:3]) or "none by that name")
    if bench.device.type == "cuda":
        bench.check("decode ran flash or our own attention", any("flash" in n.lower() or "attend_" in n for n in ran))


@torch.inference_mode()
def _generate_tok_s(bench: Bench, loaded: LoadedModel, batch: int, history: int) -> float:
    """Speed of transformers' `generate` with the same weights: the time of a long answer minus that of a short one."""
    ids = torch.tensor([some_ids(loaded, history + 1)] * batch, device=bench.device)
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def seconds(tokens: int) -> float:
        return bench.timed_s(lambda: loaded.model.generate(ids, max_new_tokens=tokens, **settings))

    few, many = (3, 9) if bench.is_tiny else (6, 30)
    seconds(2)
    short, long = seconds(few), seconds(many)
    bench.clean()
    return batch * (many - few) / max(long - short, 1e-9)


def other_shapes(bench: Bench) -> None:
    """SmolLM2-135M in bf16 and Qwen3-4B in NF4."""
    for shape, precision in (("smollm2_135m", "none"), ("qwen3_4b", "nf4")):
        if bench.left_s < 45:
            bench.note(shape, "skipped: no time left")
            continue
        decode_briefly(bench, build(bench, shape, precision))
        bench.clean()
