"""`keepwarm bin list|restore|empty`: conversations that were pruned. Works while a server is running."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from app.cli.terminal import Say
from sessions.store.tables.bin import KEEP_S, Bin, Binned, open_bin
from sessions.store.tables.served_time import DAY_S

SHOWN_ID_CHARS = 8


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], data_dir: Path) -> None:
    """Adds the `bin` command."""
    days = round(KEEP_S / DAY_S)
    command = commands.add_parser("bin", help=f"conversations that were pruned in the last {days} days")
    actions = command.add_subparsers(dest="action", required=True, metavar="{list,restore,empty}")
    shown = actions.add_parser("list", help="show the bin's conversations of all owners")
    restore = actions.add_parser("restore", help="return a conversation to its owner")
    restore.add_argument("id", help="as `keepwarm bin list` shows it")
    empty = actions.add_parser("empty", help="delete all of them now, permanently")
    for action in (shown, restore, empty):
        action.add_argument(
            "--data-dir", type=Path, default=data_dir, metavar="DIR", help="as given to `keepwarm serve`"
        )


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Lists, restores or deletes. Raises `SessionError` with a sentence."""
    found, database = open_bin(arguments.data_dir)
    try:
        if arguments.action == "restore":
            one = found.restore(arguments.id)
            say(f"{one.title or 'The conversation'} is back with {one.owner_id}, with all {one.messages} messages.")
        elif arguments.action == "empty":
            count = found.empty()
            say(f"{count} {'conversation was' if count == 1 else 'conversations were'} deleted permanently.")
        else:
            _list(found, say)
    finally:
        database.close()
    return 0


def _list(found: Bin, say: Say) -> None:
    every = found.every()
    for one in every:
        say(_line(one))
    if not every:
        say("The bin is empty.")


def _line(one: Binned) -> str:
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.binned_at))
    days = round(one.left_s / DAY_S)
    left = f"{days} {'day' if days == 1 else 'days'} of running left"
    title = one.title or "untitled"
    return f"{one.conversation_id[:SHOWN_ID_CHARS]}  {title}  {one.messages} messages of {one.owner_id}, {at}, {left}"
