"""The keys of a GGUF file that are not its architecture's: which of them matter, and which only describe the file."""

from __future__ import annotations

import re
from typing import Any

from gguf.constants import Keys

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.gguf_header import GgufHeader
from model_runtime.loading.gguf.families import FAMILIES

_SAMPLING = {  # llama.cpp's names and transformers'
    Keys.General.SAMPLING_TEMP: "temperature",
    Keys.General.SAMPLING_TOP_K: "top_k",
    Keys.General.SAMPLING_TOP_P: "top_p",
    Keys.General.SAMPLING_PENALTY_REPEAT: "repetition_penalty",
}
_SAMPLING_PREFIX = "general.sampling."
# What `general.type` and the like may be; other values are another kind of file.
_ONLY = {Keys.General.TYPE: ("model",), Keys.General.QUANTIZATION_VERSION: (2,)}
# Describe where the file comes from, or were used when it was made. The last three are those of common tools.
_DESCRIPTIONS = re.compile(
    r"general\.(architecture|alignment|file_type|name|author|version|organization|finetune|basename|description"
    r"|quantized_by|size_label|license(\.(name|link))?|url|doi|uuid|repo_url|source\.\w+|tags|languages"
    r"|(base_model|dataset)\.(count|\d+\.\w+)|parameter_count)"
    r"|split\.(no|count|tensors\.count)"
    r"|quantize\.imatrix\.\w+|imatrix\.\w+|mradermacher\.\w+"
)


def check_architecture(name: str, header: GgufHeader) -> None:
    """Raises `ModelLoadError` for an architecture that Keepwarm does not read from GGUF."""
    if header.architecture not in FAMILIES:
        raise ModelLoadError(
            f"{name} cannot be used: Keepwarm does not read GGUF files of the architecture '{header.architecture}' (it "
            f"reads {', '.join(sorted(FAMILIES))}). Name a checkpoint with safetensors instead."
        )


def check_general_keys(name: str, header: GgufHeader) -> None:
    """Raises `ModelLoadError` for a key that is not supported or not known. The architecture's and the tokenizer's own
    are checked elsewhere."""
    for key, value in header.metadata.items():
        if key.startswith((f"{header.architecture}.", "tokenizer.", _SAMPLING_PREFIX)):
            continue
        if key in _ONLY:
            if value not in _ONLY[key]:
                raise ModelLoadError(f"{name} cannot be used: its {key} is {str(value)[:60]}, not {_ONLY[key][0]}.")
        elif not _DESCRIPTIONS.fullmatch(key):
            raise ModelLoadError(f"{name} cannot be used: Keepwarm does not know what its entry {key[:80]} means.")


def recommended_sampling(header: GgufHeader) -> tuple[dict[str, Any], list[str]]:
    """The authors' settings for transformers' generation config, and a note about those that Keepwarm does not have."""
    found = {key: value for key, value in header.metadata.items() if key.startswith(_SAMPLING_PREFIX)}
    known = {_SAMPLING[key]: value for key, value in found.items() if key in _SAMPLING}
    others = sorted(key.removeprefix(_SAMPLING_PREFIX) for key in found.keys() - _SAMPLING.keys())
    notes = [f"The file also recommends {', '.join(others)} for sampling, which is not supported."] if others else []
    return known, notes
