"""The tokenizer and chat template of the model that a remote engine serves. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerFast

from model_runtime.interface.config import EMBEDDED, RemoteConfig
from model_runtime.interface.errors import ModelLoadError
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.checks.gguf_header import read_gguf_header
from model_runtime.loading.checks.json_file import read_config
from model_runtime.loading.embedded import EMBEDDED_SAMPLING, SMOLLM2, embedded_gguf
from model_runtime.loading.fingerprint import gguf_key, tokenizer_fingerprint
from model_runtime.loading.generation_settings import GENERATION_FILE, generation_settings
from model_runtime.loading.gguf.general_keys import recommended_sampling
from model_runtime.loading.gguf.vocabulary import check_vocabulary_keys, save_tokenizer, token_ids
from model_runtime.loading.hub.downloads import hub_description, looks_like_model_id
from model_runtime.loading.sealed_directory import broken_because, build, only_one
from model_runtime.loading.tokenizer import load_tokenizer, stop_token_ids
from model_runtime.text.presets import choose_template

_VERSION = 1
_CONFIG = "config.json"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RemoteTexts:
    """What a remote model's ids mean. `stop_token_ids` and `stop_strings` end every answer; `sampling` are the defaults
    that its authors recommend."""

    tokenizer: PreTrainedTokenizerFast
    name: str
    stop_token_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    sampling: SamplingParams
    fingerprint: str
    notes: tuple[str, ...] = ()


def load_texts(config: RemoteConfig, say: Say) -> RemoteTexts:
    """The tokenizer that `config` names. Raises `ModelLoadError` with a message for the user."""
    named = config.tokenizer or config.model
    name, directory = _found(named, config.cache_dir, say, is_guessed=config.tokenizer is None)
    tokenizer = load_tokenizer(directory)
    template = choose_template(tokenizer, name, config.chat_preset)
    settings = generation_settings(directory)
    return RemoteTexts(
        tokenizer=tokenizer,
        name=name,
        stop_token_ids=stop_token_ids(_stated_ends(directory), tokenizer),
        stop_strings=template.stop_strings,
        sampling=EMBEDDED_SAMPLING if name == SMOLLM2.name else settings.sampling,
        fingerprint=tokenizer_fingerprint(tokenizer),
        notes=(*template.notes, *settings.notes),
    )


def _found(named: str, cache_dir: Path, say: Say, is_guessed: bool) -> tuple[str, Path]:
    """(name, directory with the tokenizer's files)."""
    if named == EMBEDDED:
        key = f"{SMOLLM2.name}-{SMOLLM2.gguf_sha256[:12]}"
        return SMOLLM2.name, _of_gguf(lambda: embedded_gguf(cache_dir, say), key, cache_dir, say, embedded=True)
    path = Path(named).expanduser()
    if path.is_dir():
        return path.resolve().name, path
    if path.is_file() and path.suffix.lower() == ".gguf":
        return path.stem, _of_gguf(lambda: path, gguf_key(path), cache_dir, say)
    if looks_like_model_id(named) and ("/" in named or not is_guessed):
        return named, hub_description(named, say)
    hint = f"'{named}' is the engine's name for it, and " if is_guessed else f"There is no file or directory {named}: "
    raise ModelLoadError(
        f"{hint}Keepwarm needs the model's tokenizer here: name a directory, a .gguf file or a hub id like org/name "
        "with --tokenizer."
    )


def _of_gguf(gguf: Callable[[], Path], key: str, cache_dir: Path, say: Say, *, embedded: bool = False) -> Path:
    """The cached directory with the tokenizer of a GGUF file, made once. The embedded model's splits text as it does
    when it runs here."""
    directory = cache_dir / "models" / f"{key}-tokenizer-v{_VERSION}"

    def fill(fresh: Path) -> None:
        path = gguf()
        say(f"Reading the tokenizer of {path.name} (once).")
        header = read_gguf_header(path)
        check_vocabulary_keys(path.name, header)
        save_tokenizer(path, header, fresh, splits_as_stated=not embedded)
        ids = token_ids(header)
        sampling, _ = recommended_sampling(header)
        ends = {name: value for name, value in ids.items() if name != "unk_token_id"}
        GenerationConfig(do_sample=bool(sampling), **ends, **sampling).save_pretrained(fresh)

    if broken_because(directory) is not None:
        try:
            lock = directory.parent / ".lock"
            with only_one(lock, lambda: say("Another process is preparing the model; waiting for it.")):
                if broken_because(directory) is not None:
                    build(directory, fill)
        except OSError as error:
            if error.filename is None and error.strerror is None:
                raise ModelLoadError(f"The tokenizer cannot be read: {error}.") from error
            raise ModelLoadError(
                f"The tokenizer cannot be cached in {directory.parent}: {error.strerror or error}. Free some space "
                "there, or set another cache directory with XDG_CACHE_HOME."
            ) from error
    return directory


def _stated_ends(directory: Path) -> list[object]:
    """What the configs say that ends an answer."""
    stated: list[object] = []
    for name in (GENERATION_FILE, _CONFIG):
        try:
            found = read_config(directory / name)
        except FileNotFoundError:
            continue
        text = found.get("text_config")
        stated += [found.get("eos_token_id"), text.get("eos_token_id") if isinstance(text, dict) else None]
    return stated
