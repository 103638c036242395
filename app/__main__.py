"""The command line: flags, launch, and one clear sentence when something is in the way."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from app import sizes
from app.access.guard import is_loopback
from app.access.password import VARIABLE, given_password
from app.access.visitors import Visitors, trusted_networks
from app.cli import backup, bin, cache, doctor, keys, terminal
from app.server.drain import Drain
from app.server.listen import bind, url_of
from app.temporary_files import import_page
from model_runtime.interface.config import EMBEDDED, KvDtype, ModelConfig, SavedKvDtype
from model_runtime.interface.errors import ModelRuntimeError
from model_runtime.native import heap
from sessions.config import DAY_S, KEEP_UNNAMED_S
from sessions.errors import SessionError

GRACEFUL_STOP_S = 2
DRAIN_LIMIT_S = 5.0
KEEP_UNNAMED_DAYS = KEEP_UNNAMED_S / DAY_S
NO_HOME = Path("~")

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `keepwarm`; the value is the exit code: 0, 1 for trouble, 2 for flags that cannot be meant."""
    terminal.prepare()
    heap.limit()
    arguments = _parser().parse_args(argv)
    level = getattr(arguments, "log_level", "warning").upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback, where to ever
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of kernels from a hub that nobody asked for
    try:
        return _run(arguments)
    except ValueError as error:
        return terminal.fail(str(error), 2)
    except (SessionError, ModelRuntimeError) as error:
        return terminal.fail(str(error), 1)
    except KeyboardInterrupt:
        return terminal.fail("Stopped.", 130)
    except Exception as error:  # a person gets a sentence, and who looks for the cause the rest
        log.debug("unexpected", exc_info=True)
        line = (str(error).strip() or "no reason given").splitlines()[0].rstrip(".")
        return terminal.fail(
            f"Something unexpected is in the way ({type(error).__name__}: {line}). `--log-level debug` says where.", 1
        )


def _run(arguments: argparse.Namespace) -> int:
    if NO_HOME in arguments.data_dir.parents:
        raise ValueError("This user has no home directory: say where conversations are kept with --data-dir.")
    match arguments.command:
        case "key":
            return keys.run(arguments, terminal.say)
        case "bin":
            return bin.run(arguments, terminal.say)
        case "cache":
            return cache.run(arguments, terminal.say)
        case "backup":
            return backup.run_backup(arguments, terminal.say)
        case "restore":
            return backup.run_restore(arguments, terminal.say)
        case "doctor":
            return _doctor(arguments)
    return _serve(arguments)


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/keepwarm`, or `~/.local/share/keepwarm`. A relative XDG path is ignored. Under `NO_HOME` for a
    user who has no home directory."""
    root = Path(os.environ.get("XDG_DATA_HOME", ""))
    if root.is_absolute():
        return root / "keepwarm"
    try:
        return Path.home() / ".local" / "share" / "keepwarm"
    except RuntimeError:
        return NO_HOME / ".local" / "share" / "keepwarm"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keepwarm", description="A self-hosted chat whose conversations are never read twice."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="serve|doctor|key|bin|cache|backup|restore")
    keys.add_parser(commands, default_data_dir())
    bin.add_parser(commands, default_data_dir())
    cache.add_parser(commands, default_data_dir())
    backup.add_parsers(commands, default_data_dir())
    serve = commands.add_parser("serve", help="serve the chat on this machine")
    examined = commands.add_parser("doctor", help="examine a data directory that nobody serves now")
    for command in (serve, examined):
        _add_common(command)
    doctor.add_flags(examined)
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; one that other machines can reach needs a password (default: 127.0.0.1)",
    )
    serve.add_argument("--port", type=_port, default=7860, help="0 takes a free one (default: 7860)")
    serve.add_argument(
        "--device-kv-budget",
        metavar="SIZE",
        help="memory for the caches of all conversations together: bytes, a size like 4GiB, or a share of what "
        f"is free like 80%% (default: {round(sizes.DEFAULT_BUDGET_SHARE * 100)}%% of the free memory, of a GPU's 80%%)",
    )
    serve.add_argument(
        "--host-kv-budget",
        metavar="SIZE",
        help="host memory for caches that left the device: bytes, a size, a share of the memory that is free beside "
        "the device's budget, or 0 for none (default: none on a CPU, half of the free memory beside a GPU)",
    )
    serve.add_argument(
        "--kv-dtype",
        default="auto",
        choices=get_args(KvDtype),
        help="how Keepwarm's own CPU kernels keep caches: 'float16' takes half of float32's room and is read faster, "
        "'float32' keeps them as they were computed (default: auto, float16 where the model stands it; other kernels "
        "keep the precision that they compute in)",
    )
    serve.add_argument(
        "--cold-kv-dtype",
        default="exact",
        choices=get_args(SavedKvDtype),
        help="how caches are kept in host memory and on disk: 'int8' takes half of float16's room, is not exact, "
        "and says at the start what that costs (default: exact)",
    )
    serve.add_argument(
        "--disk-kv-budget",
        metavar="SIZE",
        help="disk space for saved caches, which keep conversations warm across a restart: bytes, a size, a share of "
        "the free disk, or 0: nothing is saved, and what was saved before is neither read nor deleted (default: 20%% "
        "of the free disk, at most 8 GiB)",
    )
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
        help="do not read messages while they are typed (default: they are, while nobody waits for an answer, in every "
        "browser that has not switched it off)",
    )
    serve.add_argument(
        "--no-titles",
        dest="titles",
        action="store_false",
        help="name conversations by their first words (default: the model looks for a title while nobody waits)",
    )
    serve.add_argument(
        "--share", action="store_true", help="open a public link through Gradio's tunnel; always behind a password"
    )
    serve.add_argument(
        "--password-file",
        type=Path,
        metavar="FILE",
        help="ask every browser for the password in this file, which other users must not be able to read "
        f"(default: that in ${VARIABLE}, else none, or with --share a new one, printed once)",
    )
    serve.add_argument(
        "--password", help="the password itself; others may see it in the shell's history: prefer --password-file"
    )
    serve.add_argument(
        "--require-key",
        action="store_true",
        help="answer programs only with an API key (default: programs of this machine need none until the first key is "
        "made; from then on everybody needs one, also when all keys are revoked)",
    )
    serve.add_argument(
        "--trusted-proxy",
        type=_proxies,
        default=(),
        metavar="ADDRESS[,...]",
        help="proxies, or networks of them, whose X-Forwarded-For and X-Forwarded-Proto are believed; what comes from "
        "them never counts as a program of this machine (default: none)",
    )
    serve.add_argument(
        "--headless", action="store_true", help="the API alone, without the page; needs no password on any address"
    )
    serve.add_argument(
        "--keep-unnamed",
        type=_days,
        default=KEEP_UNNAMED_DAYS,
        metavar="DAYS",
        help="a conversation that a program began without naming it, and no person touched, goes to the bin "
        f"when it was not used for so many days of running; 0: never (default: {KEEP_UNNAMED_DAYS:g})",
    )
    serve.add_argument(
        "--drain-limit",
        type=_seconds,
        default=DRAIN_LIMIT_S,
        metavar="SECONDS",
        help="so long answers may go on when the server is told to end; then they are stopped and kept as they are "
        f"(default: {DRAIN_LIMIT_S:g})",
    )
    serve.add_argument(
        "--log-level",
        default="warning",
        choices=("debug", "info", "warning", "error"),
        help="'info' logs every request and every move of memory, never a message's text (default: warning)",
    )
    return parser


def _add_common(command: argparse.ArgumentParser) -> None:
    """Which data, and which model."""
    command.add_argument(
        "--model",
        default=EMBEDDED,
        help="'embedded', a directory, a .gguf file or a hub id like org/name (default: embedded)",
    )
    command.add_argument(
        "--quantization",
        default="auto",
        choices=("none", "int8", "nf4", "shipped", "auto"),
        help="'shipped' keeps the bits of a .gguf file, 'nf4' is 4 bits and 'int8' 8 through bitsandbytes, 'none' "
        "keeps 16 or 32 bits, 'auto' is 'shipped' for .gguf files and 'nf4' for everything else (default: auto)",
    )
    command.add_argument(
        "--data-dir",
        type=Path,
        default=default_data_dir(),
        metavar="DIR",
        help=f"where conversations are kept (default: {default_data_dir()})".replace("%", "%%"),
    )
    command.add_argument(
        "--context-limit", type=int, metavar="TOKENS", help="longest conversation, in tokens (default: the model's own)"
    )


def _doctor(arguments: argparse.Namespace) -> int:
    return doctor.run(arguments.data_dir, _model(arguments), not arguments.no_verify, terminal.say)


def _model(arguments: argparse.Namespace) -> ModelConfig:
    try:
        arguments.model.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"The model's name {arguments.model} is not UTF-8 in this locale, and its files could not be opened by it. "
            "Set LC_ALL=C.UTF-8, or rename it."
        ) from None
    return ModelConfig(
        model=arguments.model,
        quantization=arguments.quantization,
        context_limit_tokens=arguments.context_limit,
    )


def _serve(arguments: argparse.Namespace) -> int:
    password = _password(arguments)
    model = _model(arguments)
    # Ends at once, as anywhere: but a container's first process gets no signal that it has no handler for.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    if arguments.device_kv_budget is not None:  # refused now, not after the model was loaded
        sizes.parse_budget(arguments.device_kv_budget, sizes.free_memory_bytes())
    with contextlib.ExitStack() as sockets:
        listeners = [sockets.enter_context(one) for one in _listeners(arguments)]
        tunnel_port = listeners[1].getsockname()[1] if arguments.share else None
        from app.wiring import Access, Budgets, IdleFeatures, open_services

        budgets = Budgets(
            arguments.device_kv_budget,
            arguments.disk_kv_budget,
            arguments.host_kv_budget,
            arguments.kv_dtype,
            arguments.cold_kv_dtype,
        )
        idle_work = IdleFeatures(arguments.read_ahead, arguments.titles and not arguments.headless)
        with open_services(
            arguments.data_dir,
            model,
            arguments.prompt_lookup,
            budgets,
            password,
            terminal.say,
            idle_work,
            arguments.keep_unnamed * DAY_S,
            Access(Visitors(arguments.trusted_proxy, tunnel_port), arguments.require_key),
            (lambda: None) if arguments.headless else import_page,
        ) as services:
            from app.server.site import create_app
            from app.server.uvicorn_server import Server

            port = listeners[0].getsockname()[1]

            def on_ready() -> None:
                _freeze()
                terminal.say(f"Keepwarm is ready: {url_of(arguments.host, port)}")
                if tunnel_port is not None:
                    services.share.open("127.0.0.1", tunnel_port, terminal.say)
                if not services.callers.has_keys and (services.callers.needs_key or not is_loopback(arguments.host)):
                    answered = "no program is" if services.callers.needs_key else "only programs of this machine are"
                    terminal.say(f"There is no API key: {answered} answered. Add one: keepwarm key add NAME.")

            # uvicorn raises the signal that ended it once more; by then everything must still be put away.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: None)
            app = create_app(services, arguments.host, arguments.headless)
            drain = Drain(services.manager, arguments.drain_limit, terminal.say)
            Server(app, GRACEFUL_STOP_S, on_ready, drain).run(sockets=listeners)
            terminal.say("Putting the conversations away.")
    return 0


def _listeners(arguments: argparse.Namespace) -> list[socket.socket]:
    """The address that was asked for, and with a share link a second one that its tunnel alone knows: what comes
    through the tunnel looks like a program of this machine, whatever its headers say."""
    asked = bind(arguments.host, arguments.port)
    return [asked, bind("127.0.0.1", 0)] if arguments.share else [asked]


def _freeze() -> None:
    """What was imported and loaded stays until the end. Going through it again took the garbage collector 0.4 s, with
    every stream standing still, and three times that at the end."""
    gc.collect()
    gc.freeze()
    heap.give_back()


def _password(arguments: argparse.Namespace) -> str | None:
    password = given_password(arguments.password, arguments.password_file, os.environ, terminal.say)
    if arguments.headless and arguments.share:
        raise ValueError("A share link is for the page: leave out --share or --headless.")
    if password is not None or arguments.headless:
        return password
    if arguments.share:
        password = secrets.token_urlsafe(12)
        terminal.say(f"Password for the shared chat (shown once): {password}")
        return password
    if not is_loopback(arguments.host):
        raise ValueError(
            f"Listening on {arguments.host} lets other machines in: add --password-file, or leave --host at 127.0.0.1."
        )
    if arguments.trusted_proxy:
        raise ValueError("A proxy lets other machines in: add --password-file beside --trusted-proxy.")
    return None


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65_535:
        raise argparse.ArgumentTypeError(f"a port lies between 0 and 65535, not {number}")
    return number


def _proxies(text: str) -> tuple[object, ...]:
    try:
        return trusted_networks(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 3600:
        raise argparse.ArgumentTypeError(f"a limit lies between 0 and 3600 seconds, not {text}")
    return number


def _days(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 36_500:
        raise argparse.ArgumentTypeError(f"a number of days lies between 0 and 36500, not {text}")
    return number


if __name__ == "__main__":
    sys.exit(main())
