"""`keepwarm doctor`: examines a data directory, or holds a model against transformers alone."""

from __future__ import annotations

import argparse
import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from app.cli.model_flags import add_model_flags, model_config
from app.cli.model_report import lines_of
from app.cli.terminal import Say
from model_runtime.interface.config import EMBEDDED, CpuActivations
from model_runtime.interface.errors import ModelRuntimeError
from model_runtime.interface.numerics import activations, cold_precision, kv_precision
from sessions.errors import SessionError, StoreError
from sessions.maintenance import doctor
from sessions.store.store import Store

if TYPE_CHECKING:
    from model_runtime.interface.config import ModelConfig

WELL, SOMETHING_WRONG, NOT_EXAMINED = 0, 1, 2
LONGEST_PROMPT_TOKENS, LEAST_PROMPT_TOKENS = 8_448, 256


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], data_dir: Path) -> None:
    """Adds the `doctor` command."""
    command = commands.add_parser(
        "doctor",
        help="examine a data directory that no server is using, or a model",
        description="With --model: loads the model twice, through Keepwarm and through transformers alone, and "
        "compares token ids, logits and greedy tokens, past every window and at a second turn. With --data-dir, or "
        "without --model: compares the saved files with the database and verifies every conversation. Exit codes: 0 "
        "all is well, 1 something is wrong or differs, 2 it could not be examined or is refused.",
    )
    add_model_flags(command, data_dir)
    command.set_defaults(model=None, data_dir=None, default_data_dir=data_dir)
    command.add_argument(
        "--no-verify",
        action="store_true",
        help="of a data directory: only compare the files with the database, which takes seconds and loads no model",
    )
    command.add_argument(
        "--longest-prompt",
        type=_tokens,
        metavar="TOKENS",
        help="of a model: the longest text to compare; what lies behind it is named and not compared "
        f"(default: {LONGEST_PROMPT_TOKENS:,})",
    )
    command.add_argument(
        "--json", action="store_true", help="of a model: print one JSON object, and what is going on on stderr"
    )


def run(arguments: argparse.Namespace, say: Say) -> int:
    """The exit code: 0 when all is well, 1 when something is wrong, 2 when it could not be examined. Raises
    `ValueError` with a sentence for flags that make no sense."""
    _refuse_senseless(arguments)
    code = WELL
    if arguments.model is not None:
        code = _examine_model(arguments, say)
    if arguments.model is None or arguments.data_dir is not None:
        code = max(code, _examine_directory(arguments, say))
    return code


def _refuse_senseless(arguments: argparse.Namespace) -> None:
    has_model = arguments.model is not None
    is_set = has_model or arguments.context_limit is not None
    if arguments.no_verify and (is_set or {arguments.quantization, arguments.cpu_activations} != {"auto"}):
        raise ValueError(
            "--no-verify loads no model: leave out --model, --quantization, --cpu-activations and --context-limit, or "
            "leave it out itself."
        )
    if not has_model and (arguments.json or arguments.longest_prompt is not None):
        raise ValueError("--json and --longest-prompt are for a model: name one with --model.")
    if arguments.json and arguments.data_dir is not None:
        raise ValueError("--json is for a model alone: leave out --data-dir.")


def _examine_model(arguments: argparse.Namespace, say: Say) -> int:
    """Holds the model against transformers alone."""
    from model_runtime.reference.comparison import compare_model

    config = model_config(arguments)
    said: Say = (lambda _: None) if arguments.json else say
    said(f"Comparing {config.model}: through Keepwarm, then through transformers alone.")
    try:
        found = compare_model(config, said, arguments.longest_prompt or LONGEST_PROMPT_TOKENS)
    except ModelRuntimeError as error:
        if arguments.json:
            say(json.dumps({"model": config.model, "verdict": "refused", "refusal": str(error)}, ensure_ascii=False))
        else:
            say(f"keepwarm: {error}")
        return NOT_EXAMINED
    if arguments.json:
        say(json.dumps(found.as_json(), ensure_ascii=False))
    else:
        for line in lines_of(found):
            say(line)
    return {"exact": WELL, "agrees": WELL, "differs": SOMETHING_WRONG}.get(found.verdict, NOT_EXAMINED)


def _examine_directory(arguments: argparse.Namespace, say: Say) -> int:
    """Compares a data directory's files with its database, and its saved memory with a fresh read."""
    verifies, data_dir = not arguments.no_verify, arguments.data_dir or arguments.default_data_dir
    arguments.model = arguments.model or EMBEDDED
    model = model_config(arguments)
    try:
        if not data_dir.is_dir():
            raise StoreError(f"There is no data directory {data_dir}. Name another one with --data-dir.")
        with contextlib.closing(Store(data_dir)) as store:
            report = doctor.Report(say)
            say(f"Examining {data_dir}")
            doctor.inspect(store, report)
            if verifies and store.segments.every():
                _verify(store, model, report)
    except (SessionError, ModelRuntimeError) as error:
        say(f"keepwarm: {error}")
        return NOT_EXAMINED
    if not report.wrong:
        say("All is well." if verifies else "All is well, as far as files and database go; nothing was verified.")
        return WELL
    say(f"{len(report.wrong)} {'thing is' if len(report.wrong) == 1 else 'things are'} wrong. No message is affected.")
    return SOMETHING_WRONG


def _tokens(text: str) -> int:
    number = int(text)
    if not LEAST_PROMPT_TOKENS <= number <= 1_000_000:
        raise argparse.ArgumentTypeError(f"a prompt must have {LEAST_PROMPT_TOKENS} to 1,000,000 tokens, not {text}")
    return number


def _verify(store: Store, model: ModelConfig, report: doctor.Report) -> None:
    """Loads the model and compares every saved KV with a fresh read."""
    from model_runtime.engine.engine import LocalEngine
    from model_runtime.engine.passing_thread import in_passing_thread
    from model_runtime.interface.config import EngineConfig
    from model_runtime.loading.loading import context_limit_tokens, load_model, unload

    served = store.segments.served()
    numerics = [one.numerics for one in served if one.is_last] or [one.numerics for one in served]
    config = EngineConfig(
        kv_dtype="float32" if {kv_precision(line) for line in numerics} == {"float32"} else "auto",
        cold_kv_dtype="int8" if {cold_precision(line) for line in numerics} == {"int8"} else "exact",
    )
    kinds = {activations(line) for line in numerics}
    with contextlib.ExitStack() as stack:
        loaded = in_passing_thread(lambda: load_model(model, report.say))
        if model.cpu_activations == "auto" and len(kinds) == 1 and kinds != {activations(loaded.fingerprint)}:
            unload(loaded)  # what "auto" chooses now is not what was saved
            known = [kind for kind in get_args(CpuActivations) if kinds == {kind}]
            saved = replace(model, cpu_activations=known[0] if known else "float32")
            loaded = in_passing_thread(lambda: load_model(saved, report.say))
        stack.callback(unload, loaded)
        limit_tokens = context_limit_tokens(loaded, model.context_limit_tokens)
        engine = in_passing_thread(lambda: LocalEngine(loaded, config, limit_tokens))
        stack.callback(engine.close)
        report.say(f"Model {engine.info.name}, {engine.info.quantization}, on {engine.info.device}.")
        doctor.verify_everything(store, engine, report)
