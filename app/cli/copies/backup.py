"""`keepwarm backup DIR` and `keepwarm restore DIR`, described in docs/backup.md."""

from __future__ import annotations

import argparse
from pathlib import Path

from app import units
from app.cli.copies.counts import count, without
from app.cli.terminal import Say
from sessions.maintenance.backup import back_up, restore
from sessions.maintenance.contents import Contents


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser], data_dir: Path) -> None:
    """Adds both commands."""
    backup = commands.add_parser("backup", help="copy everything to a new directory; works while a server is running")
    backup.add_argument("directory", type=Path, metavar="DIR", help="target directory; it must be new or empty")
    back = commands.add_parser("restore", help="turn a backup into a data directory")
    back.add_argument("directory", type=Path, metavar="DIR", help="as given to `keepwarm backup`")
    for command, what in ((backup, "what to copy"), (back, "target directory; it must be new or empty")):
        command.add_argument(
            "--data-dir",
            type=Path,
            default=data_dir,
            metavar="DIR",
            help=f"{what} (default: {data_dir})".replace("%", "%%"),
        )


def run_backup(arguments: argparse.Namespace, say: Say) -> int:
    """Copies everything to a new directory and says what. Raises `SessionError` with a sentence."""
    made = back_up(arguments.data_dir, arguments.directory)
    say(f"Backed up to {arguments.directory}: {_what(made)}.")
    if made.linked_files:
        say(
            f"{made.linked_files} of the files are hard links, which take no space while the originals exist. On "
            "another disk they would be copies, and would survive the loss of this one."
        )
    if made.has_cookie_key:
        say(
            "It holds cookie.key, which identifies browsers, and the hashes of the API keys: keep it as private as the "
            "data directory."
        )
    return 0


def run_restore(arguments: argparse.Namespace, say: Say) -> int:
    """Makes a data directory of a backup and says what it holds. Raises `SessionError` with a sentence."""
    made = restore(arguments.directory, arguments.data_dir)
    say(f"Restored to {arguments.data_dir}: {_what(made)}.")
    if made.has_cookie_key:
        say("Known browsers keep their conversations, and API keys open the same conversations as before.")
    return 0


def _what(made: Contents) -> str:
    return (
        f"{count(made.conversations, 'conversation')}, {count(made.messages, 'message')} "
        f"({units.size(made.database_bytes)}), {count(made.segments, 'file')} of saved memory "
        f"({units.size(made.kv_bytes)}){without(made.dropped_segments)}"
    )
