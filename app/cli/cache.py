"""`keepwarm cache list|clear`: the saved memory of conversations. The texts are never touched."""

from __future__ import annotations

import argparse
from pathlib import Path

from app import units
from app.cli.terminal import Say
from model_runtime.interface.numerics import settings
from sessions.maintenance import cache
from sessions.store.tables.segments import Served


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], data_dir: Path) -> None:
    """Adds the `cache` command."""
    command = commands.add_parser("cache", help="list or delete the saved memory of conversations, never their texts")
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
    which.add_argument("--all", action="store_true", help="everything; the next turns read their conversations again")
    for action in (shown, clear):
        action.add_argument(
            "--data-dir", type=Path, default=data_dir, metavar="DIR", help="as given to `keepwarm serve`"
        )


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Lists or deletes. Raises `SessionError` with a sentence."""
    if arguments.action == "list":
        _list(arguments.data_dir, say)
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


def _line(one: Served) -> str:
    model = one.model or "a model of an earlier version of Keepwarm"
    last = ", served last" if one.is_last else ""
    how = f" ({known})" if (known := settings(one.numerics)) else ""
    return f"  {model}{how}: {units.size(one.size_bytes)} in {_files(one.segments)}{last}"


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"
