"""The `keepwarm` command: parses the command line, runs one command, and turns every error into one sentence."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from app.cli import bin, cache, doctor, keys, serve, serve_flags, terminal
from app.cli.copies import backup, owners
from model_runtime.interface.errors import ModelRuntimeError
from model_runtime.native import heap
from sessions.errors import SessionError

NO_HOME = Path("~")
COMMANDS: dict[str, Callable[[argparse.Namespace, terminal.Say], int]] = {
    "serve": serve.run,
    "doctor": doctor.run,
    "key": keys.run,
    "bin": bin.run,
    "cache": cache.run,
    "backup": backup.run_backup,
    "restore": backup.run_restore,
    "export": owners.run_export,
    "import": owners.run_import,
}

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `keepwarm` and returns its exit code: 0, 1 for a failure, 2 for flags that make no sense."""
    terminal.prepare()
    heap.limit()
    arguments = parser().parse_args(argv)
    level = getattr(arguments, "log_level", "warning").upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns about hub kernels that Keepwarm never uses
    try:
        data_dir = arguments.data_dir or arguments.default_data_dir
        if NO_HOME in data_dir.parents:
            raise ValueError("This user has no home directory: say where to store conversations with --data-dir.")
        return COMMANDS[arguments.command](arguments, terminal.say)
    except ValueError as error:
        return terminal.fail(str(error), 2)
    except (SessionError, ModelRuntimeError) as error:
        return terminal.fail(str(error), 1)
    except KeyboardInterrupt:
        return terminal.fail("Stopped.", 130)
    except Exception as error:  # the person gets one sentence; the traceback goes to the debug log
        log.debug("unexpected", exc_info=True)
        line = (str(error).strip() or "no reason given").splitlines()[0].rstrip(".")
        return terminal.fail(
            f"An unexpected error occurred ({type(error).__name__}: {line}). `--log-level debug` shows where.", 1
        )


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(
        prog="keepwarm", description="A self-hosted chat whose conversations are never read twice."
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    data_dir = default_data_dir()
    for add_parser in (
        keys.add_parser,
        bin.add_parser,
        cache.add_parser,
        backup.add_parsers,
        owners.add_parsers,
        serve_flags.add_parser,
        doctor.add_parser,
    ):
        add_parser(commands, data_dir)
    return root


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/keepwarm`, or `~/.local/share/keepwarm`. A relative XDG path is ignored. Below `NO_HOME` for a
    user without a home directory."""
    root = Path(os.environ.get("XDG_DATA_HOME", ""))
    if root.is_absolute():
        return root / "keepwarm"
    try:
        return Path.home() / ".local" / "share" / "keepwarm"
    except RuntimeError:
        return NO_HOME / ".local" / "share" / "keepwarm"


if __name__ == "__main__":
    sys.exit(main())
