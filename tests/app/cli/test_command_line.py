"""Flags, and one clear sentence for every failure. No model is loaded here."""

from __future__ import annotations

import pwd
import socket
from pathlib import Path

import pytest

from app.__main__ import main
from app.cli.serve import listeners
from app.server.listen import url_of
from sessions.store.store import Store


def test_help_names_defaults_and_units(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("default: embedded", "default: auto", "default: 7860", "50% of the free memory", "4GiB", "in tokens"):
        assert words in shown


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--host", "0.0.0.0"], "lets other machines in: add --password"),
        (["--password", " "], "The password must not be empty."),
        (["--trusted-proxy", "10.0.0.0/8"], "A proxy lets other machines in: add --password-file"),
        (["--share", "--headless", "--password", "x"], "A share link is for the page"),
        (["--device-kv-budget", "lots"], "A size looks like"),
        (["--device-kv-budget", "200%"], "at most 100%"),
        (["--context-limit", "3"], "at least 16 tokens"),
        (["--model", " "], "Name a model"),
    ],
)
def test_flags_that_cannot_be_meant(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *flags]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("networks", ["proxy.example", "10.0.0.1/8", "", "10.0.0.1,"])
def test_a_proxy_is_named_by_its_address(networks: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--trusted-proxy", networks])
    assert "takes addresses like 127.0.0.1 or networks like 10.0.0.0/8" in capsys.readouterr().err


def test_a_user_without_a_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user id without a name on this machine, as containers often have."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert main(["serve"]) == 2
    assert main(["serve", "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "keepwarm: This user has no home directory: say where to store conversations with --data-dir.",
        "keepwarm: This user has no home directory: name a cache directory with XDG_CACHE_HOME.",
    ]


def test_a_taken_port_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port), "--data-dir", str(tmp_path)]) == 1
    assert f"Port {port} is already in use." in capsys.readouterr().err


def test_an_unknown_address_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--host", "192.0.2.1", "--password", "x", "--port", "0", "--data-dir", str(tmp_path)]
    assert main(["serve", *flags]) == 1
    assert "Cannot listen on 192.0.2.1" in capsys.readouterr().err


def test_a_second_process_on_the_same_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    try:
        assert main(["serve", "--port", "0", "--data-dir", str(tmp_path)]) == 1
    finally:
        store.close()
    assert "already using the data directory" in capsys.readouterr().err


def test_a_data_directory_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a directory", encoding="utf-8")
    assert main(["serve", "--port", "0", "--data-dir", str(tmp_path / "file")]) == 1
    assert "cannot be used" in capsys.readouterr().err


def test_a_share_link_has_a_door_of_its_own() -> None:
    opened = listeners("127.0.0.1", 0, share=True)
    names = [one.getsockname() for one in opened]
    for one in opened:
        one.close()
    assert [name[0] for name in names] == ["127.0.0.1", "127.0.0.1"]
    assert names[0][1] != names[1][1]


def test_addresses_to_type() -> None:
    assert url_of("127.0.0.1", 7860) == "http://127.0.0.1:7860"
    assert url_of("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert url_of("::1", 80) == "http://[::1]:80"


def test_the_doctor_refuses_what_it_cannot_examine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--data-dir", str(tmp_path / "nowhere")]) == 2
    assert "There is no data directory" in capsys.readouterr().out
    assert not (tmp_path / "nowhere").exists()
    store = Store(tmp_path)
    try:
        assert main(["doctor", "--data-dir", str(tmp_path)]) == 2
    finally:
        store.close()
    assert "already using the data directory" in capsys.readouterr().out


def test_the_doctors_quick_mode_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path).close()
    quick = ["doctor", "--data-dir", str(tmp_path), "--no-verify"]
    assert main(quick) == 0
    assert "nothing was verified" in capsys.readouterr().out
    (tmp_path / "kv").mkdir(mode=0o700)
    (tmp_path / "kv" / "stranger.kv").write_bytes(b"x")
    assert main(quick) == 1
    said = capsys.readouterr().out
    assert "not written by Keepwarm: 1 file (stranger.kv). They are left alone." in said
    assert "1 thing is wrong. No message is affected." in said
