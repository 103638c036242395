"""Loads thousands of damaged models in a process of its own, where a crash is seen: `python -m ... SEED COUNT FOLDER`.

Each mutation must end in a model that works (it answers, and its logits are those of transformers' own read of the same
file) or in a `ModelLoadError`. Prints one JSON line a case; the parent counts them. The kernels are built with
AddressSanitizer where the parent has preloaded its library.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import resource
import shutil
import struct
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from gguf import GGMLQuantizationType, GGUFReader
from transformers import AutoModelForCausalLM, GgufConfig
from transformers.utils import logging as transformers_logging

from model_runtime.engine.engine import LocalEngine
from model_runtime.forward.native_forward import runs_natively
from model_runtime.interface.config import EngineConfig, ModelConfig
from model_runtime.interface.errors import ModelLoadError
from model_runtime.interface.protocol import GenerationRequest
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import context_limit_tokens, load_model, unload
from model_runtime.native import native_library
from tests.model_runtime.harness import GREEDY, Answer, full_read
from tests.model_runtime.tiny_gguf import write_gguf
from tests.model_runtime.tiny_models import tiny_wide_llama

HOSTILE = (0, 1, 2, 3, 7, 31, 32, 33, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, 2**64 - 1)
LARGEST_GAP = 0.1  # standard deviations of the logits: 4-bit weights in another order of sums, float16 rows
PROMPT = (3, 70, 71, 72, 5)

Mutate = Callable[[random.Random, Path], str]


def gguf_places(path: Path) -> list[tuple[int, int, str]]:
    """(offset, bytes, name) of every number and text in the header: lengths, counts, values, names, shapes, types."""
    reader = GGUFReader(path)
    base = reader.data.__array_interface__["data"][0]
    places = []
    for name, field in reader.fields.items():
        if not name.startswith("tokenizer.ggml.") or name.endswith("_id"):
            places += [(part.__array_interface__["data"][0] - base, part.nbytes, name) for part in field.parts]
        else:  # of the long lists only what says how long they are
            places += [(p.__array_interface__["data"][0] - base, p.nbytes, name) for p in field.parts[:5]]
    for tensor in reader.tensors:
        places += [
            (part.__array_interface__["data"][0] - base, part.nbytes, tensor.name) for part in tensor.field.parts
        ]
    return [place for place in places if place[1] > 0]


def plausible_gguf(rng: random.Random, path: Path) -> str:
    """Values that could be some model's, only not this one's: the ones that reach the kernels if anything does."""
    reader = GGUFReader(path, "r+")
    if rng.random() < 0.3:
        tensor = rng.choice(reader.tensors)
        dims, kind = tensor.field.parts[3], tensor.field.parts[4]
        if rng.random() < 0.5:
            dims[:] = dims[::-1].copy()
        else:
            kind[0] = rng.choice((0, 1, 2, 3, 8, 30))
        return f"{tensor.name} {dims.tolist()} {kind[0]}"
    key = rng.choice([key for key in reader.fields if key.startswith("llama.")])
    part = reader.fields[key].parts[-1]
    part[0] = rng.choice((1, 2, 4, 6, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256, 480, 512, 544, 10_000))
    return f"{key}={part[0]}"


def mutate_gguf(rng: random.Random, path: Path) -> str:
    """Damages the header of a copy in place; says how."""
    if rng.random() < 0.4:
        return plausible_gguf(rng, path)
    places = gguf_places(path)
    data = bytearray(path.read_bytes())
    header_end = int(GGUFReader(path).data_offset)
    said = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.random()
        offset, size, name = rng.choice(places)
        if kind < 0.45 and size in (4, 8):
            value = rng.choice(HOSTILE)
            data[offset : offset + size] = (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
            said.append(f"{name}@{offset}={value}")
        elif kind < 0.55 and size in (4, 8):
            value = rng.choice((float("nan"), float("inf"), -1.0, 0.0, 1e30))
            data[offset : offset + size] = struct.pack("<f" if size == 4 else "<d", value)
            said.append(f"{name}@{offset}={value}")
        elif kind < 0.7 and size in (4, 8):
            number = int.from_bytes(data[offset : offset + size], "little")
            value = rng.choice((number + 1, max(0, number - 1), number * 2, number // 2))
            data[offset : offset + size] = (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
            said.append(f"{name}@{offset}:{number}->{value}")
        elif kind < 0.9:
            place = rng.randrange(header_end)
            data[place] ^= 1 << rng.randrange(8)
            said.append(f"bit@{place}")
        elif kind < 0.95:
            cut = rng.randrange(8, len(data))
            del data[cut : cut + rng.choice((1, 8, 32, 4096))]
            said.append(f"cut@{cut}")
        else:
            place = rng.randrange(header_end)
            data[place:place] = rng.randbytes(rng.choice((1, 8, 32)))
            said.append(f"insert@{place}")
    path.write_bytes(data)
    return ", ".join(said)


def mutate_checkpoint(rng: random.Random, directory: Path) -> str:
    """Damages the config, the header of the weights, or the tokenizer of a copy; says how."""
    kind = rng.random()
    if kind < 0.4:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        key = rng.choice([key for key in config if key not in ("transformers_version",)])
        value = rng.choice(
            (*HOSTILE, -1, None, 0.5, float("nan"), float("inf"), "wide", [], {}, [1, 2], True, "gelu", "qwen3")
        )
        path.write_text(json.dumps({**config, key: value}))
        return f"config {key}={value}"
    path = directory / rng.choice(("model.safetensors",) * 4 + ("tokenizer.json", "generation_config.json"))
    data = bytearray(path.read_bytes())
    if path.suffix != ".safetensors":
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(7)
        path.write_bytes(data)
        return f"{path.name} bit@{place}"
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if kind < 0.6:
        place = rng.randrange(8 + length)
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        return f"{path.name} bit@{place}"
    if kind < 0.65:
        data[:8] = rng.choice(HOSTILE).to_bytes(8, "little")
        path.write_bytes(data)
        return "header length"
    name = rng.choice([name for name in header if name != "__metadata__"])
    tensor = header[name]
    change = rng.randrange(5)
    if change == 0:
        tensor["shape"][rng.randrange(len(tensor["shape"]))] = rng.choice(HOSTILE)
    elif change == 1:
        tensor["dtype"] = rng.choice(("F16", "BF16", "F64", "I64", "U8", "F8_E4M3", "nonsense"))
    elif change == 2:
        tensor["data_offsets"][rng.randrange(2)] = rng.choice(HOSTILE)
    elif change == 3:
        header[f"{name}x"] = header.pop(name)
    else:
        tensor["shape"] = tensor["shape"][::-1]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data[8 + length :]))
    return f"{name} change {change}: {json.dumps(tensor)}"


def outcome(model: Path, cache_dir: Path) -> tuple[str, str]:
    """("works" | "refused", what) of a model; anything else is raised."""
    loaded: LoadedModel | None = None
    try:
        quantization = "shipped" if model.is_file() else "none"
        config = ModelConfig(str(model), quantization, cache_dir=cache_dir, device="cpu")
        loaded = load_model(config, lambda _: None)
        limit_tokens = min(512, context_limit_tokens(loaded, None))
        if model.is_file():
            assert runs_natively(loaded.model), "the kernels that believe what they are told have to run"
        engine = LocalEngine(loaded, EngineConfig(prefill_chunk_tokens=32, prompt_lookup="off"), limit_tokens)
        try:
            prompt = PROMPT[: max(1, limit_tokens - 1)]  # a context of two tokens is a context
            answer = Answer(prompt)
            engine.submit(GenerationRequest(prompt, engine.new_kv(), GREEDY), answer.heard)
            finished = answer.wait()
            assert finished.error is None, finished.error
        finally:
            engine.close()
        loaded.model.set_attn_implementation("sdpa")
        return "works", f"{gap_to_transformers(loaded, model):.3g}"
    except ModelLoadError as error:
        sentence = str(error)
        assert sentence.endswith("."), sentence
        assert "\n" not in sentence, sentence
        return "refused", sentence
    finally:
        if loaded is not None:
            unload(loaded)


def gap_to_transformers(loaded: LoadedModel, model: Path) -> float:
    """How far its logits lie from those of transformers' own read, in standard deviations."""
    if model.is_file():
        reference = AutoModelForCausalLM.from_pretrained(
            model.parent, gguf_file=model.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    else:
        reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    expected = full_read(reference.eval(), PROMPT)
    gap = float(((full_read(loaded.model, PROMPT) - expected) / expected.std()).abs().max())
    assert gap <= LARGEST_GAP, f"its logits differ from transformers' by {gap}"
    return gap


def run(seed: int, count: int, folder: Path) -> int:
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g")
        native_library.FLAGS = (*native_library.FLAGS, *flags)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(2)
    checkpoint = tiny_wide_llama(folder / "source")
    gguf = write_gguf(checkpoint, folder / "source.gguf", GGMLQuantizationType.Q4_1)
    cache_dir = folder / "cache"
    for intact in (gguf, checkpoint):  # what is there once: compiled kernels, imported modules
        assert outcome(intact, cache_dir)[0] == "works"
    start_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        is_gguf = rng.random() < 0.7
        target = folder / ("case.gguf" if is_gguf else "case")
        if is_gguf:
            shutil.copyfile(gguf, target)
            how = mutate_gguf(rng, target)
        else:
            shutil.copytree(checkpoint, target)
            how = mutate_checkpoint(rng, target)
        began = time.monotonic()
        print(json.dumps({"case": number, "how": how}), flush=True)
        try:
            result, what = outcome(target, cache_dir)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            result, what = "unexpected", f"{type(error).__name__}: {error}"[:500]
        took_s = time.monotonic() - began
        print(json.dumps({"case": number, "is": result, "what": what, "seconds": round(took_s, 2)}), flush=True)
        with contextlib.suppress(OSError):
            target.unlink() if is_gguf else shutil.rmtree(target)
        for converted in (cache_dir / "models").glob("case-*"):
            shutil.rmtree(converted, ignore_errors=True)
    grown_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start_bytes
    print(json.dumps({"grown_bytes": grown_bytes}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
