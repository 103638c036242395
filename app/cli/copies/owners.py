"""`keepwarm export [OWNER DIR]` and `keepwarm import DIR`: one owner's conversations go to another server. Described in
docs/several-servers.md."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from app import units
from app.cli.copies.counts import count, without
from app.cli.terminal import Say
from sessions.maintenance.owner_export import Owner, export_owner, owners
from sessions.maintenance.owner_import import import_owner


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser], data_dir: Path) -> None:
    """Adds both commands."""
    out = commands.add_parser(
        "export", help="copy one owner's conversations to a new directory; without arguments, list the owners"
    )
    out.add_argument("owner", nargs="?", default="", metavar="OWNER", help="as the list shows it, or a key's id")
    out.add_argument("directory", nargs="?", type=Path, metavar="DIR", help="target directory; it must be new or empty")
    into = commands.add_parser("import", help="add exported conversations to a data directory whose server is stopped")
    into.add_argument("directory", type=Path, metavar="DIR", help="as given to `keepwarm export`")
    for command, warm in (
        (out, "copy what is saved of them on disk too, so that nothing is read again (default: conversations alone)"),
        (into, "take the saved memory too, which another model or another setting refuses (default: it is read again)"),
    ):
        command.add_argument("--warm", action="store_true", help=warm)
        command.add_argument(
            "--data-dir", type=Path, default=data_dir, metavar="DIR", help="as given to `keepwarm serve`"
        )


def run_export(arguments: argparse.Namespace, say: Say) -> int:
    """Lists owners, or copies one's conversations. Raises `SessionError` or `ValueError` with a sentence."""
    if not arguments.owner:
        for one in (found := owners(arguments.data_dir)):
            say(_line(one))
        if not found:
            say("There are no conversations.")
        return 0
    if arguments.directory is None:
        raise ValueError("Name a target directory too: keepwarm export OWNER DIR.")
    made = export_owner(arguments.data_dir, arguments.owner, arguments.directory, arguments.warm)
    held = made.contents
    saved = f", {count(held.segments, 'file')} of saved memory ({units.size(held.kv_bytes)})" if made.is_warm else ""
    say(
        f"Exported to {arguments.directory}: {count(held.conversations, 'conversation')}, "
        f"{count(held.messages, 'message')} of {made.owner_id}{saved}{without(held.dropped_segments)}."
    )
    say(
        "It holds their texts, and the hashes of their log-ins and API keys: keep it as private as the data directory. "
        "What is written from now on is not in it."
    )
    return 0


def run_import(arguments: argparse.Namespace, say: Say) -> int:
    """Adds an export to a data directory. Raises `SessionError` with a sentence."""
    made = import_owner(arguments.directory, arguments.data_dir, arguments.warm)
    saved = f", {count(made.segments, 'file')} of saved memory" if arguments.warm else ""
    say(
        f"Imported into {arguments.data_dir}: {count(made.conversations, 'conversation')}, "
        f"{count(made.messages, 'message')} of {made.owner_id}{saved}{without(made.dropped_segments)}."
    )
    if not made.has_same_key:
        say(
            "This server's cookie.key is not the other one's, so log-ins end: people give the password once more, and "
            "their browsers still open their own conversations."
        )
    return 0


def _line(one: Owner) -> str:
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used_at))
    key = f", key {one.key_id} of {one.key_name}" if one.key_id else ""
    return f"{one.owner_id}  {count(one.conversations, 'conversation')}{key}, last used {at}: {one.title or 'untitled'}"
