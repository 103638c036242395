"""Every flag of every command shows its effect. A new flag without an entry here fails."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.__main__ import main, parser
from app.cli import serve
from model_runtime.reference import comparison
from model_runtime.reference.findings import ModelComparison, Verdict
from sessions.store.store import Store

Shown = Callable[[dict[str, Any]], object]


PROXIED: dict[str, Any] = {
    "type": "http",
    "scheme": "http",
    "client": ("10.0.0.1", 5000),
    "server": ("10.0.0.2", 80),
    "headers": [(b"x-forwarded-for", b"192.0.2.7"), (b"host", b"example")],
}


class Reached(Exception):
    """The flags were understood: here the server's long-lived objects would be built."""


ENGINE = ["--engine", "http://e:1"]

# flag -> (arguments, what shows its effect in what `open_services` gets)
SERVE: dict[str, tuple[list[str], Shown]] = {
    "--model": (["x"], lambda got: got["model"].model == "x"),
    "--quantization": (["int8"], lambda got: got["model"].quantization == "int8"),
    "--cpu-activations": (["int16"], lambda got: got["model"].cpu_activations == "int16"),
    "--context-limit": (["99"], lambda got: got["model"].context_limit_tokens == 99),
    "--data-dir": (["elsewhere"], lambda got: got["data_dir"] == Path("elsewhere")),
    "--device-kv-budget": (["1MiB"], lambda got: got["budgets"].device == "1MiB"),
    "--host-kv-budget": (["2MiB"], lambda got: got["budgets"].host == "2MiB"),
    "--disk-kv-budget": (["3MiB"], lambda got: got["budgets"].disk == "3MiB"),
    "--kv-dtype": (["float32"], lambda got: got["budgets"].kv_dtype == "float32"),
    "--cold-kv-dtype": (["int8"], lambda got: got["budgets"].cold_kv_dtype == "int8"),
    "--prompt-lookup": (["off"], lambda got: got["prompt_lookup"] == "off"),
    "--no-read-ahead": ([], lambda got: not got["idle_work"].read_ahead),
    "--no-titles": ([], lambda got: not got["idle_work"].titles),
    "--keep-unnamed": (["2"], lambda got: got["keep_unnamed_s"] == 2 * 86_400),
    "--alias": (["gpt-4o"], lambda got: got["names"].aliases == ("gpt-4o",)),
    "--any-model-name": ([], lambda got: got["names"].takes_any),
    "--allow-origin": (
        ["https://Chat.example/"],
        lambda got: got["access"].allowed_origins == ("https://chat.example",),
    ),
    "--require-key": ([], lambda got: got["access"].require_key),
    "--trusted-proxy": (
        ["10.0.0.1", "--password", "x"],
        lambda got: got["access"].visitors.of(dict(PROXIED)).address == "192.0.2.7",
    ),
    "--password": (["secret"], lambda got: got["password"] == "secret"),
    "--password-file": (["FILE"], lambda got: got["password"] == "from the file"),
    "--host": (["127.0.0.2"], lambda got: got["listening"][0] == ("127.0.0.2", 0, False)),
    "--port": (["65000"], lambda got: got["listening"][0][1] == 65_000),
    "--share": ([], lambda got: got["listening"][0][2] and got["password"]),
    "--headless": ([], lambda got: got["import_page"] is not serve.import_page),
    "--engine": (["http://e:1/v1"], lambda got: got["remote"].addresses == ("http://e:1",)),
    "--tokenizer": (["t", *ENGINE], lambda got: got["remote"].tokenizer == "t"),
    "--engine-key-file": (["KEY", *ENGINE], lambda got: got["remote"].key == "from-the-file"),
    "--engine-header": (["x-sticky", *ENGINE], lambda got: got["remote"].session_header == "x-sticky"),
    "--engine-silence": (["7", *ENGINE], lambda got: got["remote"].silence_s == 7),
}
ELSEWHERE = {
    "--drain-limit",  # a real server ends in tests/app/cli/test_keepwarm_serve.py
    "--log-level",  # below
    "--chat-preset",  # where the presets are tested
    "--root-path",  # tests/app/page/test_sub_path_in_browser.py
}
DOCTOR: dict[str, tuple[list[str], Shown]] = {
    "--model": (["x"], lambda got: got["config"].model == "x"),
    "--quantization": (["none", "--model", "x"], lambda got: got["config"].quantization == "none"),
    "--cpu-activations": (["int8", "--model", "x"], lambda got: got["config"].cpu_activations == "int8"),
    "--context-limit": (["99", "--model", "x"], lambda got: got["config"].context_limit_tokens == 99),
    "--longest-prompt": (["300", "--model", "x"], lambda got: got["most_tokens"] == 300),
    "--json": (["--model", "x"], lambda got: got["said"].startswith("{")),
    "--data-dir": (["DATA"], lambda got: "Examining DATA" in got["said"]),
    "--no-verify": (["--data-dir", "DATA"], lambda got: "nothing was verified" in got["said"]),
}
OTHERS = {
    "key add": {"--data-dir"},
    "key list": {"--data-dir"},
    "key revoke": {"--data-dir"},
    "bin list": {"--data-dir"},
    "bin restore": {"--data-dir"},
    "bin empty": {"--data-dir"},
    "cache list": {"--data-dir"},
    "cache clear": {"--data-dir", "--all", "--other-models", "--models"},
    "backup": {"--data-dir"},
    "restore": {"--data-dir"},
    "export": {"--data-dir", "--warm"},
    "import": {"--data-dir", "--warm"},
}


def flags(command: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, set[str]]]:
    """(command, its flags) of every command that takes no further one."""
    deeper = [action for action in command._actions if isinstance(action, argparse._SubParsersAction)]  # noqa: SLF001
    for action in deeper:
        for word, one in action.choices.items():
            yield from flags(one, f"{name} {word}".strip())
    if not deeper:
        yield name, {a.option_strings[-1] for a in command._actions if a.option_strings} - {"--help"}  # noqa: SLF001


def test_every_flag_has_an_entry() -> None:
    found = dict(flags(parser()))
    assert found.pop("serve") - ELSEWHERE == set(SERVE)
    assert found.pop("doctor") - ELSEWHERE == set(DOCTOR)
    assert found == OTHERS


def test_the_log_level_is_the_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[str] = []
    monkeypatch.setattr("logging.basicConfig", lambda **settings: levels.append(settings["level"]))
    for arguments in ([], ["--log-level", "debug"]):
        assert main(["serve", "--model", " ", *arguments]) == 2
    assert levels == ["WARNING", "DEBUG"]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[list[str]], dict[str, Any]]:
    """What `open_services` would get, and what would be listened on, for these arguments of `serve`."""
    import app.wiring

    got: dict[str, Any] = {"listening": []}

    def open_services(settings: Any, say: Any, import_page: Any) -> Any:
        got.update({field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)})
        got.update(import_page=import_page, password=settings.access.password)
        raise Reached

    def listeners(host: str, port: int, share: bool) -> list[Any]:
        got["listening"].append((host, port, share))

        @contextlib.contextmanager
        def opened() -> Iterator[Any]:
            yield argparse.Namespace(getsockname=lambda: (host, port))

        return [opened(), opened()]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(app.wiring, "open_services", open_services)
    monkeypatch.setattr(serve, "listeners", listeners)
    (tmp_path / "FILE").write_text("from the file", encoding="utf-8")
    (tmp_path / "KEY").write_text("from-the-file\n", encoding="utf-8")
    for name in ("FILE", "KEY"):
        (tmp_path / name).chmod(0o600)

    def run(arguments: list[str]) -> dict[str, Any]:
        with contextlib.suppress(Reached):
            serve.run(parser().parse_args(["serve", "--port", "0", *arguments]), lambda _: None)
        return got

    return run


@pytest.mark.parametrize("flag", sorted(SERVE))
def test_a_flag_of_serve_reaches_what_it_changes(served: Any, flag: str) -> None:
    arguments, shows = SERVE[flag]
    more = ["--password", "x"] if flag == "--host" else []
    assert shows(served([*more, flag, *arguments]))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host-kv-budget", "lots"], "A size looks like"),
        (["--disk-kv-budget", "lots"], "A size looks like"),
        (["--password", "x", "--password-file", "FILE"], "not both"),
        (["--cold-kv-dtype", "int8", "--disk-kv-budget", "0", "--host-kv-budget", "0"], "both budgets are 0"),
        (["--engine", "http://e:1", "--quantization", "nf4"], "--quantization is about a model that runs here"),
        (["--engine", "http://e:1", "--disk-kv-budget", "1GiB"], "--disk-kv-budget is about a model that runs here"),
        (["--tokenizer", "t"], "--tokenizer is about an engine elsewhere"),
        (["--engine", "http://e:1", "--engine-key-file", "FILE"], "printable ASCII without white space"),
        (["--engine", "http://e:1", "--engine-header", "a b"], "cannot be the name of an HTTP header"),
    ],
)
def test_what_has_no_effect_together_is_refused_before_the_model_is_loaded(
    served: Any, arguments: list[str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        served(arguments)


@pytest.mark.parametrize("flag", sorted(DOCTOR))
def test_a_flag_of_doctor_does_what_it_says(
    flag: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got: dict[str, Any] = {}

    def compare(config: Any, say: Any, most_tokens: int) -> ModelComparison:
        got.update(config=config, most_tokens=most_tokens)
        return ModelComparison(config.model, Verdict.EXACT, "Exact.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparison, "compare_model", compare)
    Store(tmp_path / "DATA").close()
    arguments, shows = DOCTOR[flag]
    assert main(["doctor", flag, *arguments]) == 0
    got["said"] = capsys.readouterr().out
    assert shows(got)
    assert bool(got.get("config")) == ("--model" in (flag, *arguments))


@pytest.mark.parametrize(
    "command", [name for name in OTHERS if name not in ("key revoke", "bin restore", "restore", "import")]
)
def test_the_other_commands_work_in_the_named_directory(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "default"))
    Store(tmp_path / "named").close()
    words = {"key add": ["somebody"], "backup": [str(tmp_path / "copy")]}.get(command, [])
    assert main([*command.split(), *words, "--data-dir", str(tmp_path / "named")]) == 0
    assert not (tmp_path / "default").exists()
