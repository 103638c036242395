"""Does the tenth turn start as fast as the first?

One conversation grows to 6,000 tokens. At 500, 2,000 and 6,000 tokens, the time to the first new token of a 32-token
turn is measured: with its warm KV, with the same model reading everything again, and with transformers' `generate` on
the same weights de-quantised to float32 with a fresh cache, like a program without sessions.

    python -m benchmarks.turns [--model embedded] [--repeats 7]
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch
from transformers import PreTrainedModel

from benchmarks.driver import answer, load, prose_ids, start
from benchmarks.report import device_name, finish, median, table
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import unload

HISTORIES = (500, 2000, 6000)
TURN_TOKENS = 32


def flops(model: PreTrainedModel, start: int, end: int) -> float:
    """The operations needed to feed positions `start..end`: two per weight and token (the output head for the last
    token only), four per query head, head dimension, token and visible key."""
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention_widths = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    a_layer = config.hidden_size * head_dim * attention_widths + 3 * config.hidden_size * config.intermediate_size
    tokens = end - start
    keys = tokens * (start + end + 1) / 2
    matrices = 2 * tokens * a_layer * config.num_hidden_layers + 2 * config.hidden_size * config.vocab_size
    return matrices + 4 * keys * config.num_attention_heads * head_dim * config.num_hidden_layers


def generate_ttft_s(loaded: LoadedModel, ledger: list[int]) -> float:
    """Time to the first token of `generate` on a whole conversation with a fresh cache."""
    ids = torch.tensor([ledger], device=loaded.model.device)
    begin = time.perf_counter()
    with torch.inference_mode():
        loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=0
        )
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()

    plain = load(options.model, "none")
    loaded = load(options.model)
    model_flops = [
        (flops(loaded.model, h, h + TURN_TOKENS), flops(loaded.model, 0, h + TURN_TOKENS)) for h in HISTORIES
    ]
    engine = start(loaded, max(HISTORIES) + 256)
    history = prose_ids(loaded, max(HISTORIES))
    turn = prose_ids(loaded, TURN_TOKENS + options.repeats)[options.repeats :]

    kv = engine.new_kv()
    warm: list[list[float]] = [[] for _ in HISTORIES]
    reread: list[list[float]] = [[] for _ in HISTORIES]
    generate: list[list[float]] = [[] for _ in HISTORIES]
    for place, length in enumerate(HISTORIES):
        answer(engine, kv, history[:length] + turn[:1], 1)
        for number in range(options.repeats):
            # A unique first id makes every repeat feed the whole turn, because the KV is cropped to the history.
            ledger = [*history[:length], 1000 + number, *turn[1:]]
            found = answer(engine, kv, ledger, 1).finished
            assert (found.fed_tokens, found.reused_tokens) == (TURN_TOKENS, length)
            warm[place].append(found.ttft_s or 0.0)
            if number < (1 if length > 2000 else 2) + 1:  # fewer repeats of the slow ones, interleaved
                cold = engine.new_kv()
                reread[place].append(answer(engine, cold, ledger, 1).finished.ttft_s or 0.0)
                engine.release(cold)
                generate[place].append(engine.call(partial(generate_ttft_s, plain, ledger)))
    engine.close()

    rows = []
    for place, length in enumerate(HISTORIES):
        w, r, g = median(warm[place]), median(reread[place]), median(generate[place])
        rows.append((f"{length:,}", w, r, g, r / w, g / w))
    table(("history", "warm s", "re-read s", "generate s", "re-read/warm", "generate/warm"), rows)

    last = len(HISTORIES) - 1
    delta_flops, all_flops = model_flops[last]
    expected_s = delta_flops / (all_flops / median(reread[last]))
    figures = {
        "warm_ttft_s_500": median(warm[0]),
        "warm_ttft_s_6000": median(warm[last]),
        "reread_ttft_s_6000": median(reread[last]),
        "warm_vs_reread_at_6000": median(reread[last]) / median(warm[last]),
        "warm_vs_generate_at_6000": median(generate[last]) / median(warm[last]),
        "warm_ttft_6000_over_500": median(warm[last]) / median(warm[0]),
        "warm_ttft_over_model": median(warm[last]) / expected_s,
    }
    finish("turns", figures, device_name(str(loaded.model.device)), f"{loaded.name}, {loaded.quantization}")
    unload(plain)
    unload(loaded)


if __name__ == "__main__":
    main()
