"""`keepwarm doctor`: examines a data directory and prints what it finds."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli.model_flags import add_model_flags, model_config
from app.cli.terminal import Say
from model_runtime.interface.errors import ModelRuntimeError
from model_runtime.interface.numerics import cold_precision, kv_precision
from sessions.errors import SessionError, StoreError
from sessions.maintenance import doctor
from sessions.store.store import Store

if TYPE_CHECKING:
    from model_runtime.interface.config import ModelConfig

SOMETHING_WRONG, NOT_EXAMINED = 1, 2


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], data_dir: Path) -> None:
    """Adds the `doctor` command."""
    command = commands.add_parser("doctor", help="examine a data directory that no server is using")
    add_model_flags(command, data_dir)
    command.add_argument(
        "--no-verify",
        action="store_true",
        help="only compare the files with the database: takes seconds, and loads no model",
    )


def run(arguments: argparse.Namespace, say: Say) -> int:
    """The exit code: 0 when all is well, 1 when something is wrong, 2 when the directory could not be examined. Raises
    `ValueError` with a sentence for flags that make no sense."""
    model, verifies, data_dir = model_config(arguments), not arguments.no_verify, arguments.data_dir
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
        return 0
    say(f"{len(report.wrong)} {'thing is' if len(report.wrong) == 1 else 'things are'} wrong. No message is affected.")
    return SOMETHING_WRONG


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
    with contextlib.ExitStack() as stack:
        loaded = in_passing_thread(lambda: load_model(model, report.say))
        stack.callback(unload, loaded)
        limit_tokens = context_limit_tokens(loaded, model.context_limit_tokens)
        engine = in_passing_thread(lambda: LocalEngine(loaded, config, limit_tokens))
        stack.callback(engine.close)
        report.say(f"Model {engine.info.name}, {engine.info.quantization}, on {engine.info.device}.")
        doctor.verify_everything(store, engine, report)
