"""Does prompt lookup speed answers up, and does it slow ordinary chat down?

Tokens per second with prompt lookup on "auto" and off, on turns that ask for a summary or a correction of a text and on
ordinary chat, greedy and with the model's default sampling. Both alternate, because a shared machine drifts; every pair
of runs gives a ratio, and medians over prompts and repeats are printed.

    python -m benchmarks.lookup [--model embedded] [--tokens 96] [--repeats 2]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace

from benchmarks.driver import Answer, answer
from benchmarks.report import device_name, finish, median, table
from model_runtime.engine.engine import LocalEngine
from model_runtime.engine.passing_thread import in_passing_thread
from model_runtime.interface.config import EngineConfig, ModelConfig
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loading import load_model, unload
from model_runtime.text.chat_template import ChatTemplate

LIGHTHOUSE = (
    "The lighthouse at Grey Point was built in 1871 after three ships were lost on the reef in a single winter. Its "
    "keeper, Anna Holm, lit the lamp every evening for thirty-one years and kept a diary of weather, ships and birds. "
    "In 1902 a storm broke the lantern glass, and she carried a hand lamp up and down the stairs all night so that the "
    "mail steamer could find the channel. The town later named the harbour square after her. Today the tower is a "
    "small museum, open from April to October, and its diary has been digitised by the county library."
)
COMPOST = (
    "Compost is made when bacteria and fungi break down plant matter. A good heap needs carbon-rich material such as "
    "dry leaves and straw, nitrogen-rich material such as grass clippings and kitchen scraps, water and air. If the "
    "heap smells bad, it is usually too wet or lacks air; turning it and adding dry leaves helps. If nothing happens, "
    "it is usually too dry or lacks nitrogen. A heap that is turned every week can be ready in two to three months, "
    "while one that is left alone may take a year. Finished compost is dark, crumbly and smells of earth."
)
PROMPTS = {
    "summarise": (
        f"Summarise this text:\n\n{LIGHTHOUSE}",
        f"Summarise this text:\n\n{COMPOST}",
        f"Summarise both texts:\n\n{COMPOST}\n\n{LIGHTHOUSE}",
        f"Correct the spelling of this text and print all of it:\n\n{COMPOST}",
    ),
    "chat": (
        "Tell me a short story about a fox and a crow.",
        "How do I make a good cup of coffee?",
        "Explain why the sky is blue.",
        "Give me five tips for better sleep.",
        "What is the difference between a list and a tuple in Python?",
        "Who was Marie Curie?",
    ),
}


def rate(found: Answer) -> float:
    """Tokens per second after the first one."""
    return (found.finished.sampled_tokens - 1) / found.finished.decode_s


def switch(engine: LocalEngine, lookup: str) -> None:
    """Changes the mode between two answers. One engine runs both, as the threads of a second one would slow it down."""
    engine.lookup.mode = lookup  # type: ignore[assignment]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()

    config = ModelConfig(model=options.model)
    loaded = in_passing_thread(lambda: load_model(config, say=lambda line: print(f"# {line}")))
    template = ChatTemplate(loaded.tokenizer, loaded.stop_token_ids)
    engine = in_passing_thread(lambda: LocalEngine(loaded, EngineConfig(), 4096))
    samplings = {
        "greedy": SamplingParams(temperature=0),
        "default": replace(loaded.default_sampling, seed=1),
    }
    rows, figures = [], {}
    for kind, prompts in PROMPTS.items():
        for name, sampling in samplings.items():
            rates: dict[str, list[float]] = defaultdict(list)
            ratios, drafted, accepted = [], 0, 0
            for prompt in prompts:
                ledger = template.first_turn("", prompt)
                kv = engine.new_kv()
                answer(engine, kv, ledger, 1)  # reads the prompt
                for repeat in range(options.repeats):
                    pair: dict[str, float] = {}
                    for lookup in ("auto", "off") if repeat % 2 else ("off", "auto"):
                        switch(engine, lookup)
                        found = answer(engine, kv, ledger, options.tokens, sampling)
                        pair[lookup] = rate(found)
                        rates[lookup].append(pair[lookup])
                        drafted += found.finished.drafted_tokens
                        accepted += found.finished.accepted_tokens
                    ratios.append(pair["auto"] / pair["off"])
                engine.release(kv)
            right = 100 * accepted / max(1, drafted)
            with_lookup, without, ratio = median(rates["auto"]), median(rates["off"]), median(ratios)
            rows.append((f"{kind}, {name}", with_lookup, without, ratio, min(ratios), f"{right:.0f}%"))
            figures[f"{kind}_{name}_tok_s_with"] = with_lookup
            figures[f"{kind}_{name}_tok_s_without"] = without
            figures[f"{kind}_{name}_ratio"] = ratio
    engine.close()
    table(("turn", "with tok/s", "without tok/s", "ratio", "worst ratio", "guesses right"), rows)
    finish("lookup", figures, device_name(str(loaded.model.device)), f"{loaded.name}, {loaded.quantization}")
    unload(loaded)


if __name__ == "__main__":
    main()
