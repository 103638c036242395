"""`keepwarm cache list|clear`: the saved memory of conversations, and models that were converted
or quantised for faster starts. The texts are never touched."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from app import units
from app.cli.terminal import Say
from model_runtime.interface.config import default_cache_dir
from model_runtime.interface.numerics import settings
from model_runtime.loading import sealed_directory
from sessions.errors import StoreError
from sessions.maintenance import cache
from sessions.store.tables.segments import Served


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], data_dir: Path) -> None:
    """Adds the `cache` command."""
    command = commands.add_parser("cache", help="list or delete saved memory and converted models, never texts")
    actions = command.add_subparsers(dest="action", required=True, metavar="{list,clear}")
    shown = actions.add_parser(
        "list", help="show what is saved, by model and settings; works while a server is running"
    )
    clear = actions.add_parser("clear", help="delete saved memory while no server is running")
    which = clear.add_mutually_exclusive_group()
    which.add_argument(
        "--other-models",
        action="store_true",
        help="memory saved by models or settings other than those served last (the default)",
    )
    which.add_argument(
        "--all", action="store_true", help="all saved memory; the next turns read their conversations again"
    )
    which.add_argument(
        "--models",
        action="store_true",
        help="models that were converted or quantised for faster starts, not saved memory; that is done again when "
        "they are loaded",
    )
    for action in (shown, clear):
        action.add_argument(
            "--data-dir", type=Path, default=data_dir, metavar="DIR", help="as given to `keepwarm serve`"
        )


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Lists or deletes. Raises `SessionError` with a sentence."""
    if arguments.action == "list":
        _list(arguments.data_dir, say)
        _list_models(say)
        return 0
    if arguments.models:
        _clear_models(say)
        return 0

    def before(segments: int, size_bytes: int) -> None:
        what = "of all models" if arguments.all else "of other models and settings"
        if segments:
            say(f"Deleting {_files(segments)} of saved memory {what}, {units.size(size_bytes)}.")
        else:
            say(f"There is no saved memory {what}: nothing to delete.")

    cleared = cache.clear(arguments.data_dir, arguments.all, before)
    if cleared.files_left:
        say(f"{_files(cleared.files_left)} were not written by Keepwarm and were left alone; the log names them.")
    if cleared.segments:
        say("Done. No text was touched.")
    return 0


def _list(data_dir: Path, say: Say) -> None:
    every = cache.list_saved(data_dir)
    total_bytes, segments = sum(one.size_bytes for one in every), sum(one.segments for one in every)
    say(f"Saved memory in {data_dir}: {units.size(total_bytes)} in {_files(segments)}.")
    for one in every:
        say(_line(one))
    other_bytes = sum(one.size_bytes for one in every if not one.is_last)
    if other_bytes:
        say(f"Other models and settings: {units.size(other_bytes)}. They are deleted first when space is needed.")


def _list_models(say: Say) -> None:
    directory = _models_dir()
    every = sealed_directory.sealed_in(directory)
    if every:
        say(f"Converted models in {directory}: {units.size(sum(one.size_bytes for one in every))}.")
    for one in every:
        day = datetime.fromtimestamp(one.used_at_s).astimezone().date()
        say(f"  {one.path.name}: {units.size(one.size_bytes)}, last used {day}")


def _clear_models(say: Say) -> None:
    directory = _models_dir()
    try:
        gone = sealed_directory.clear(directory, lambda: say("Another process is preparing a model; waiting for it."))
    except OSError as error:
        raise StoreError(f"The models in {directory} cannot be deleted: {error.strerror or error}.") from error
    if gone:
        total = units.size(sum(one.size_bytes for one in gone))
        say(f"Deleted {len(gone)} converted model{'' if len(gone) == 1 else 's'} in {directory}, {total}.")
    else:
        say(f"There are no converted models in {directory}: nothing to delete.")


def _models_dir() -> Path:
    return default_cache_dir() / "models"


def _line(one: Served) -> str:
    model = one.model or "a model of an earlier version of Keepwarm"
    last = ", served last" if one.is_last else ""
    how = f" ({known})" if (known := settings(one.numerics)) else ""
    return f"  {model}{how}: {units.size(one.size_bytes)} in {_files(one.segments)}{last}"


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"
