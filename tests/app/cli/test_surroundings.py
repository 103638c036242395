"""Starts in unusual environments: a working server, or one true sentence and an exit code."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.app.cli.start_process import StartedProcess, ask, clean_environment, get

pytestmark = pytest.mark.timeout(600)

Start = Callable[..., StartedProcess]
ODD_NAME = "модель 模型\n100%s é"
SHARED_TMP = "tmp"


@dataclass(frozen=True)
class Surroundings:
    """`{folder}` in a value stands for the test's own directory."""

    environment: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    model_name: str = "model"
    wrapped: str = ""


WORKS = {
    "a SOCKS proxy": Surroundings({"ALL_PROXY": "socks5://127.0.0.1:9"}),
    "a proxy of an unknown kind": Surroundings({"all_proxy": "carrier-pigeon://127.0.0.1:9", "NO_PROXY": "[::1]"}),
    "a proxy that is no address": Surroundings({"HTTPS_PROXY": "http://[", "HTTP_PROXY": "::::"}),
    "another's folder of Gradio": Surroundings({"TMPDIR": "{folder}/" + SHARED_TMP}),
    "no temporary directory there": Surroundings({"TMPDIR": "{folder}/nowhere", "TMP": "/dev/null"}),
    "a temporary directory that is a file": Surroundings({"TMPDIR": "/dev/null", "GRADIO_TEMP_DIR": "/dev/null/x"}),
    "an ASCII terminal": Surroundings({"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, model_name=ODD_NAME),
    "no home": Surroundings({"XDG_CACHE_HOME": "{folder}/cache"}),
    "a home that is a file": Surroundings({"HOME": "/dev/null", "XDG_CACHE_HOME": "{folder}/cache"}),
    "relative XDG paths": Surroundings({"XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "data", "HOME": "{folder}"}),
    "no cache": Surroundings({"XDG_CACHE_HOME": "/dev/null/cache"}),
    "IPv6 alone": Surroundings(flags=("--host", "::1")),
    "no one reads what it prints": Surroundings(wrapped='{ "$@" 2>&1; } | head -n 1'),
    "closed standard streams": Surroundings(wrapped='exec "$@" >&- 2>&- <&-'),
    "a full disk behind what it prints": Surroundings(wrapped='exec "$@" >/dev/full 2>&1'),
}
NO_UTF8 = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
REFUSED = {  # surroundings, what is said, the exit code; none of them gets as far as importing torch
    "no home and no --data-dir": (
        Surroundings(flags=("--data-dir", "~/.local/share/keepwarm")),
        "no home directory",
        2,
    ),
    "a home that is a file": (Surroundings({"HOME": "/dev/null"}, ("--data-dir", "/dev/null/x")), "cannot be used", 1),
    "a locale without the model's letters": (Surroundings(NO_UTF8, model_name=ODD_NAME), "Set LC_ALL=C.UTF-8", 2),
    "an address in brackets": (
        Surroundings({"HOME": "/"}, ("--host", "[::1]", "--headless")),
        "'[::1]' is not known",
        1,
    ),
    "an address too long": (Surroundings({"HOME": "/"}, ("--host", "a" * 70, "--headless")), "is not known", 1),
    "no address": (Surroundings({"HOME": "/"}, ("--host", "", "--headless")), "is not known", 1),
}
SILENT = ("no one reads what it prints", "closed standard streams", "a full disk behind what it prints")


@pytest.fixture
def start(tmp_path: Path, tiny_dir: Callable[[str], Path]) -> Iterator[Start]:
    """`start(surroundings)` starts the command in that environment."""
    processes: list[StartedProcess] = []

    def run(there: Surroundings, model: str = "llama") -> StartedProcess:
        """On a fresh copy of that model; "" for the existing one."""
        shared = tmp_path / SHARED_TMP
        shared.mkdir(exist_ok=True)
        (shared / "gradio").touch()
        directory = tmp_path / there.model_name
        if model:
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(tiny_dir(model), directory)
        flags = ["--model", str(directory), "--quantization", "none", "--device-kv-budget", "4MiB", *there.flags]
        changes = {name: value.format(folder=tmp_path) for name, value in there.environment.items()}
        changes = {"HOME": str(tmp_path / "home")} | changes if "HOME" in changes else changes
        processes.append(StartedProcess(tmp_path / "served", flags, clean_environment(**changes), there.wrapped))
        return processes[-1]

    yield run
    for one in processes:
        one.stop()


def works(process: StartedProcess, url: str) -> None:
    assert b"<script" in get(url)
    assert ask(url, "one", "Good morning.")["usage"]["completion_tokens"] > 0
    assert process.stop() == 0
    assert "Traceback" not in process.printed


def test_all_that_does_not_matter_at_once(start: Start, tmp_path: Path) -> None:
    """Each of the cases below on its own, minutes in all; `make test-long` runs it."""
    process = start(
        Surroundings(
            {
                "ALL_PROXY": "socks5://127.0.0.1:9",
                "https_proxy": "carrier-pigeon://",
                "NO_PROXY": "[::1]",
                "TMPDIR": "{folder}/" + SHARED_TMP,
                "LC_ALL": "C",
                "PYTHONIOENCODING": "ascii",
                "XDG_CACHE_HOME": "/dev/null/cache",
            },
            model_name=ODD_NAME,
        )
    )
    works(process, process.url())
    assert not (tmp_path / "served" / "data" / "page-files").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in WORKS if name not in SILENT])
def test_what_does_not_matter(start: Start, name: str) -> None:
    if name == "IPv6 alone" and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    process = start(WORKS[name])
    works(process, process.url())


@pytest.mark.long
@pytest.mark.parametrize("name", SILENT)
def test_it_serves_although_its_output_is_closed(start: Start, name: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = WORKS[name]
    process = start(Surroundings(there.environment, ("--port", str(port)), wrapped=there.wrapped))
    url = f"http://127.0.0.1:{port}"
    process.wait_for(lambda: _answers(url))
    assert ask(url, "one", "Good morning.")["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("name", REFUSED)
def test_one_sentence_at_once(start: Start, name: str) -> None:
    there, sentence, code = REFUSED[name]
    there = replace(there, environment={"PATH": "/usr/bin:/bin"} | there.environment)
    process = start(there)
    assert process.ended() == code, process.printed
    assert process.printed.startswith("keepwarm: ")
    assert sentence in process.printed
    assert process.printed.count("\n") == 1


def test_a_model_that_is_nowhere_has_an_odd_name(start: Start) -> None:
    """On a terminal whose encoding lacks the letters, with a line feed in the path."""
    there = Surroundings(
        {"HOME": "{folder}", "PYTHONIOENCODING": "ascii"}, ("--headless", "--model", "/no/模型\n\x1b[2J100%s")
    )
    process = start(there)
    assert process.ended() == 1
    assert process.printed == ("keepwarm: There is no file or directory /no/\\u6a21\\u578b\\n\\x1b[2J100%s.\n")


@pytest.mark.long
def test_one_data_directory_for_a_model_then_another_then_the_first(start: Start) -> None:
    there = Surroundings({"XDG_CACHE_HOME": "/dev/null/cache"}, ("--headless",))
    for model in ("llama", "qwen3", "llama"):
        process = start(there, model)
        url = process.url()
        assert ask(url, f"of {model}", "Good morning.")["usage"]["completion_tokens"] > 0
        assert ask(url, "of both", "Good morning.")["usage"]["completion_tokens"] > 0
        assert process.stop() == 0
        assert "Traceback" not in process.printed


@pytest.mark.long
@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_model_of_which_a_part_has_vanished(
    start: Start, tiny_dir: Callable[[str], Path], tmp_path: Path, lost: str
) -> None:
    there = Surroundings({"XDG_CACHE_HOME": "/dev/null/cache"}, ("--headless",))
    shutil.copytree(tiny_dir("llama"), tmp_path / there.model_name)
    (tmp_path / there.model_name / lost).unlink()
    process = start(there, "")
    assert process.ended() == 1
    assert process.printed.splitlines()[-1].startswith("keepwarm: ")
    assert "Traceback" not in process.printed


@pytest.mark.long
def test_a_gguf_without_a_compiler_or_without_a_cache(
    start: Start, tiny_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    from gguf import GGMLQuantizationType

    from tests.model_runtime.tiny_gguf import write_gguf

    path = write_gguf(tiny_dir("llama"), tmp_path / "tiny %s.gguf", GGMLQuantizationType.Q4_0)
    flags = ("--headless", "--model", str(path), "--quantization", "shipped")
    refused = start(Surroundings({"XDG_CACHE_HOME": "/dev/null/cache"}, flags))
    assert refused.ended() == 1
    assert refused.printed.splitlines()[-1].startswith("keepwarm: The model cannot be cached in /dev/null/cache")
    served = start(Surroundings({"XDG_CACHE_HOME": "{folder}/cache", "PATH": "/nowhere"}, flags))
    url = served.url()
    assert ask(url, "one", "Good morning.")["usage"]["completion_tokens"] > 0
    assert "there is no C compiler" in served.printed
    assert served.stop() == 0
    assert "Traceback" not in served.printed


def _answers(url: str) -> bool:
    try:
        return bool(get(f"{url}/health"))
    except OSError:
        return False


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True
