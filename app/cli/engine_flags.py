"""The flags of `keepwarm serve` with a remote engine, and those that say nothing there."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from app.access.password import read_secret
from model_runtime.interface.config import SESSION_HEADER, RemoteConfig
from model_runtime.remote.address import base_address

_LONGEST_WAIT_S = 86_400
# What a model that runs elsewhere leaves no say in: the flag's name, and its default.
_OF_OWN_MODELS = {
    "quantization": "auto",
    "cpu_activations": "auto",
    "device_kv_budget": None,
    "host_kv_budget": None,
    "disk_kv_budget": None,
    "kv_dtype": "auto",
    "cold_kv_dtype": "exact",
    "prompt_lookup": "auto",
}
_OF_ENGINES = {"tokenizer": None, "engine_key_file": None, "engine_header": SESSION_HEADER, "engine_silence": 300.0}


def add_engine_flags(serve: argparse.ArgumentParser) -> None:
    """Adds `--engine` and what belongs to it."""
    serve.add_argument(
        "--engine",
        action="append",
        type=_address,
        default=[],
        metavar="URL",
        help="let a server elsewhere compute: vLLM, SGLang or llama.cpp's server at http://host:port; given several "
        "times, conversations are spread over all of them (default: the model runs here)",
    )
    serve.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="the tokenizer and chat template of the engine's model: a directory, a .gguf file or a hub id (default: "
        "what --model names)",
    )
    serve.add_argument(
        "--engine-key-file",
        type=Path,
        metavar="FILE",
        help="send the key in this file to the engine as a bearer token; other users must not be able to read the file "
        "(default: none)",
    )
    serve.add_argument(
        "--engine-header",
        default=SESSION_HEADER,
        metavar="NAME",
        help="the header by which a router can send all turns of a conversation to the same engine; its value is the "
        f"same for all of them (default: {SESSION_HEADER})",
    )
    serve.add_argument(
        "--engine-silence",
        type=_seconds,
        default=_OF_ENGINES["engine_silence"],
        metavar="SECONDS",
        help="how long an engine may send no token of an answer, and report no progress with reading, before it counts "
        "as hanging (default: "
        f"{_OF_ENGINES['engine_silence']:g})",
    )


def remote_config(arguments: argparse.Namespace) -> RemoteConfig | None:
    """The engine that the flags name, None for a model that runs here. Raises `ValueError` for flags that would say
    nothing."""
    given = {name: getattr(arguments, name) for name in (*_OF_OWN_MODELS, *_OF_ENGINES)}
    if not arguments.engine:
        _refuse(given, _OF_ENGINES, "is about an engine elsewhere: add --engine, or leave it out")
        return None
    _refuse(given, _OF_OWN_MODELS, "is about a model that runs here, and --engine lets another server compute")
    key = ""
    if arguments.engine_key_file is not None:
        key = read_secret(arguments.engine_key_file, "key")
        if not (key.isascii() and key.isprintable() and key and " " not in key):
            raise ValueError(f"The key in {arguments.engine_key_file} must be printable ASCII without white space.")
    return RemoteConfig(
        addresses=tuple(dict.fromkeys(arguments.engine)),
        model=arguments.model,
        tokenizer=arguments.tokenizer,
        key=key,
        context_limit_tokens=arguments.context_limit,
        chat_preset=arguments.chat_preset,
        session_header=arguments.engine_header,
        silence_s=arguments.engine_silence,
    )


def _refuse(given: Mapping[str, object], defaults: Mapping[str, object], why: str) -> None:
    wrong = [f"--{name.replace('_', '-')}" for name, default in defaults.items() if given[name] != default]
    if wrong:
        raise ValueError(f"{wrong[0]} {why}.")


def _address(text: str) -> str:
    try:
        return base_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number <= _LONGEST_WAIT_S:
        raise argparse.ArgumentTypeError(f"it must be between 0 and {_LONGEST_WAIT_S:,} seconds, not {text}")
    return number
