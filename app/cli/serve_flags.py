"""The flags of `keepwarm serve`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from app.access.origins import origin_of
from app.access.password import VARIABLE
from app.access.visitors import trusted_networks
from app.budgets import DEFAULT_SHARE
from app.cli.engine_flags import add_engine_flags
from app.cli.model_flags import add_model_flags
from app.http.sub_path import root_path
from model_runtime.interface.config import KvDtype, SavedKvDtype
from sessions.config import DAY_S, KEEP_UNNAMED_S

DRAIN_LIMIT_S = 5.0
KEEP_UNNAMED_DAYS = KEEP_UNNAMED_S / DAY_S


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], data_dir: Path) -> None:
    """Adds the `serve` command."""
    serve = commands.add_parser("serve", help="serve the chat on this machine")
    add_model_flags(serve, data_dir)
    add_engine_flags(serve)
    _add_memory_flags(serve)
    _add_idle_flags(serve)
    _add_access_flags(serve)
    _add_name_flags(serve)
    serve.add_argument(
        "--keep-unnamed",
        type=_days,
        default=KEEP_UNNAMED_DAYS,
        metavar="DAYS",
        help="move a conversation that a program started without naming it, and no person touched, to the bin after "
        f"this many days of running without use; 0 means never (default: {KEEP_UNNAMED_DAYS:g})",
    )
    serve.add_argument(
        "--drain-limit",
        type=_seconds,
        default=DRAIN_LIMIT_S,
        metavar="SECONDS",
        help="how long running answers may continue after shutdown begins; then they are stopped and kept as they are "
        f"(default: {DRAIN_LIMIT_S:g})",
    )
    serve.add_argument(
        "--log-level",
        default="warning",
        choices=("debug", "info", "warning", "error"),
        help="'info' logs every request and every move of a cache, never the text of a message (default: warning)",
    )


def _add_memory_flags(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--device-kv-budget",
        metavar="SIZE",
        help="memory for the caches of all conversations together: bytes, a size like 4GiB, or a share of the free "
        f"memory like 80%% (default: {round(DEFAULT_SHARE * 100)}%% of the free memory, 80%% of a GPU's)",
    )
    serve.add_argument(
        "--host-kv-budget",
        metavar="SIZE",
        help="host memory for caches evicted from the device: bytes, a size, a share of the memory that the device's "
        "budget leaves free, or 0 for none (default: none on a CPU, half of the free memory with a GPU)",
    )
    serve.add_argument(
        "--kv-dtype",
        default="auto",
        choices=get_args(KvDtype),
        help="precision of the caches in Keepwarm's own CPU kernels: 'float16' takes half the memory of float32 and is "
        "read faster, 'float32' keeps them as computed (default: auto, float16 where the model tolerates it; other "
        "kernels keep the precision they compute in)",
    )
    serve.add_argument(
        "--cold-kv-dtype",
        default="exact",
        choices=get_args(SavedKvDtype),
        help="precision of the caches in host memory and on disk: 'int8' takes half the space of float16, is not "
        "exact, and reports at start-up what that costs (default: exact)",
    )
    serve.add_argument(
        "--disk-kv-budget",
        metavar="SIZE",
        help="disk space for saved caches, which keep conversations warm across a restart: bytes, a size, a share of "
        "the free disk, or 0 to save nothing and neither read nor delete what was saved before (default: 20%% of the "
        "free disk, at most 8 GiB)",
    )


def _add_idle_flags(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--prompt-lookup",
        default="auto",
        choices=("auto", "on", "off"),
        help="guess the next tokens from the conversation's own text and check them in one step; 'auto' where that is "
        "expected to save time, 'on' wherever there is a guess (default: auto)",
    )
    serve.add_argument(
        "--no-read-ahead",
        dest="read_ahead",
        action="store_false",
        help="do not read messages while they are typed (default: read them while no request is waiting, in every "
        "browser that has not turned this off)",
    )
    serve.add_argument(
        "--no-titles",
        dest="titles",
        action="store_false",
        help="title conversations with their first words (default: the model writes a title while no request is "
        "waiting)",
    )


def _add_access_flags(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; one that other machines can reach needs a password (default: 127.0.0.1)",
    )
    serve.add_argument("--port", type=_port, default=7860, help="port to listen on; 0 picks a free one (default: 7860)")
    serve.add_argument(
        "--share", action="store_true", help="open a public link through Gradio's tunnel; always behind a password"
    )
    serve.add_argument(
        "--password-file",
        type=Path,
        metavar="FILE",
        help="ask every browser for the password in this file, which other users must not be able to read "
        f"(default: the password in ${VARIABLE}, else none; with --share a new one, printed once)",
    )
    serve.add_argument(
        "--password", help="the password itself; others may see it in the shell's history, so prefer --password-file"
    )
    serve.add_argument(
        "--require-key",
        action="store_true",
        help="answer programs only with an API key (default: programs on this machine need none until the first key is "
        "made; from then on every program needs one, even after all keys are revoked)",
    )
    serve.add_argument(
        "--allow-origin",
        action="append",
        type=_origin,
        default=[],
        metavar="ORIGIN",
        help="let scripts of this site or browser extension call the API while no key was made yet: "
        "https://chat.example.org, http://localhost:3000, chrome-extension://ID or null; may be given several times "
        "(default: none; once every request needs a key, any origin may call)",
    )
    serve.add_argument(
        "--trusted-proxy",
        type=_proxies,
        default=(),
        metavar="ADDRESS[,...]",
        help="proxies, or networks of them, whose X-Forwarded-For and X-Forwarded-Proto are trusted; requests through "
        "them never count as coming from a program on this machine (default: none)",
    )
    serve.add_argument(
        "--root-path",
        type=_root_path,
        default="",
        metavar="PATH",
        help="path of a proxy's host below which the page and the API are served, like /chat; a proxy may strip it or "
        "not (default: none)",
    )
    serve.add_argument(
        "--headless", action="store_true", help="serve only the API, without the page; needs no password on any address"
    )


def _add_name_flags(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME",
        help="another name by which programs may ask for the model; may be given several times",
    )
    serve.add_argument(
        "--any-model-name",
        action="store_true",
        help="answer programs whatever model they ask for; the response names the one that answered (default: another "
        "name is refused)",
    )


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65_535:
        raise argparse.ArgumentTypeError(f"a port must be between 0 and 65535, not {number}")
    return number


def _origin(text: str) -> str:
    try:
        return origin_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _proxies(text: str) -> tuple[object, ...]:
    try:
        return trusted_networks(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _root_path(text: str) -> str:
    try:
        return root_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 3600:
        raise argparse.ArgumentTypeError(f"a limit must be between 0 and 3600 seconds, not {text}")
    return number


def _days(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 36_500:
        raise argparse.ArgumentTypeError(f"a number of days must be between 0 and 36500, not {text}")
    return number
