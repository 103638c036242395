"""How fast is the same file here and in llama.cpp, on the same threads, in turns?

Reading 2,000 tokens, decoding at 0, 2,000 and 6,000 tokens of history, and memory; or, with --loss, what rounding
activations costs on real text. llama.cpp is `llama-cpp-python` in a Python of its own, with float16 KVs, once with
flash attention and once without: the better one counts. It has to be built for this processor (docs/benchmarks.md);
what it uses is printed. Ratios are above 1 where Keepwarm is faster.

    KEEPWARM_LLAMA_PYTHON=.../bin/python python -m benchmarks.against_llamacpp [--shapes embedded gemma270m 05b 1b]
        [--formats q4_0 q4_1 q4_k_m q8_0 nf4] [--activations int8] [--threads 2] [--repeats 3] [--tokens 16]
        [--files FOLDER] [--histories 0 2000 6000] [--read 2000] [--reads 2] [--loss]

The embedded model has its own format, Q4_1, and Gemma 3 270M (downloaded from PyPI, under Gemma's terms) Q4_K_M; the
other shapes are random models, written into FOLDER once. NF4 is compared with Q4_0.
"""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path
from typing import get_args

import torch

from benchmarks.against_llamacpp.duel import Found, Sizes, opened
from benchmarks.against_llamacpp.loss import losses
from benchmarks.against_llamacpp.models import ALL_FORMATS, ALL_SHAPES, EMBEDDED, GEMMA, Match, match_of
from benchmarks.report import device_name, finish, table
from model_runtime.interface.config import CpuActivations


def main() -> None:
    options = _parser().parse_args()
    if not options.llama_python:
        raise SystemExit("Name a Python that has llama-cpp-python: --llama-python, or KEEPWARM_LLAMA_PYTHON.")
    torch.set_num_threads(options.threads)
    options.files.mkdir(parents=True, exist_ok=True)
    shapes = [shape for shape in options.shapes if not options.loss or shape in (EMBEDDED, GEMMA)]
    figures: dict[str, float] = {}
    for shape, kind in itertools.product(shapes, options.formats):
        match = match_of(shape, kind, options.files)
        if match is not None:
            figures |= _losses(match, options) if options.loss else _speeds(match, options)
    finish("against_llamacpp", figures, device_name("cpu"), " ".join(shapes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", default=os.environ.get("KEEPWARM_LLAMA_PYTHON", ""))
    parser.add_argument("--shapes", nargs="+", default=ALL_SHAPES, choices=ALL_SHAPES)
    parser.add_argument("--formats", nargs="+", default=ALL_FORMATS, choices=ALL_FORMATS)
    parser.add_argument("--activations", default="auto", choices=get_args(CpuActivations))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--histories", type=int, nargs="+", default=[0, 2000, 6000])
    parser.add_argument("--read", type=int, default=2000)
    parser.add_argument("--reads", type=int, default=2)
    parser.add_argument("--files", type=Path, default=Path("build/llama/models"))
    parser.add_argument("--loss", action="store_true")
    return parser


def _speeds(match: Match, options: argparse.Namespace) -> dict[str, float]:
    kept_in = options.files / f"histories-{match.name.partition('_')[0]}"
    kept_in.mkdir(exist_ok=True)
    sizes = Sizes(options.tokens, options.histories, options.read, options.repeats, options.reads, kept_in)
    found, figures = Found(), dict[str, float]()
    with opened(options.llama_python, match, options.activations, options.threads, sizes, found) as duel:
        for name in duel.measure(found):
            ours, theirs = found.speeds[name]
            print(f"# {match.name}, {name}: {ours:.4g} against {theirs:.4g} tokens a second", flush=True)
    for name, (ours, theirs) in found.speeds.items():
        what, tokens = name.split("_")
        figures[f"{what}_ratio_{tokens}_{match.name}"] = ours / theirs
        figures[f"{what}_tok_s_{tokens}_{match.name}"] = ours
    figures[f"weights_bytes_over_file_{match.name}"] = found.weights_bytes / match.stored_bytes
    figures[f"peak_rss_over_weights_{match.name}"] = found.peak_bytes / found.weights_bytes
    figures[f"rss_over_llamacpp_{match.name}"] = found.resident_bytes / found.their_resident_bytes
    rows = [(name, ours, theirs, ours / theirs) for name, (ours, theirs) in found.speeds.items()]
    table((match.name, "ours tok/s", "llama.cpp tok/s", "ratio"), rows)
    return figures


def _losses(match: Match, options: argparse.Namespace) -> dict[str, float]:
    found = losses(options.llama_python, match, options.threads, options.read)
    table((match.name, "nats a token"), [(name, f"{value:.4f}") for name, value in found.items()])
    return {f"nll_{name}_{match.name}": value for name, value in found.items()}


if __name__ == "__main__":
    main()
