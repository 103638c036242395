"""`keepwarm key add|list|revoke`: the API keys of programs. Works while a server is running."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from app.cli.terminal import Say
from sessions.store.tables.keys import ApiKey, open_keys

NO_KEYS = "no program is answered until there is another. Add one: keepwarm key add NAME."


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], data_dir: Path) -> None:
    """Adds the `key` command."""
    key = commands.add_parser("key", help="let programs use the API: add, list or revoke keys")
    actions = key.add_subparsers(dest="action", required=True, metavar="{add,list,revoke}")
    add = actions.add_parser("add", help="make a key and print it once; it sees only its own conversations")
    add.add_argument("name", help="the person or program it is for")
    shown = actions.add_parser("list", help="show the keys' names and ids, never the keys")
    revoke = actions.add_parser("revoke", help="make a key invalid; its conversations stay")
    revoke.add_argument("id", help="as `keepwarm key list` shows it")
    for action in (add, shown, revoke):
        action.add_argument(
            "--data-dir", type=Path, default=data_dir, metavar="DIR", help="as given to `keepwarm serve`"
        )


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Adds, lists or revokes. Raises `SessionError` or `ValueError` with a sentence."""
    keys, database = open_keys(arguments.data_dir)
    try:
        if arguments.action == "add":
            key, text = keys.add(arguments.name)
            say(f"Key {key.key_id} for {key.name} (shown once): {text}")
        elif arguments.action == "revoke":
            say(f"Key {keys.revoke(arguments.id).key_id} is no longer valid.")
            if not keys.any_valid():
                say(f"It was the last one: {NO_KEYS}")
        else:
            every = keys.every()
            for key in every:
                say(_line(key))
            if keys.ever_made() and not keys.any_valid():
                say(f"No key is valid: {NO_KEYS}")
            elif not every:
                say("There are no keys: only programs on this machine are answered.")
    finally:
        database.close()
    return 0


def _line(key: ApiKey) -> str:
    used = f"last used {_date(key.last_used_at)}" if key.last_used_at else "never used"
    ended = f", revoked {_date(key.revoked_at)}" if key.revoked_at else ""
    return f"{key.key_id}  {key.name}  made {_date(key.created_at)}, {used}{ended}"


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
