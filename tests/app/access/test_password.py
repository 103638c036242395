"""Where the password comes from, and who can read it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.__main__ import main
from app.access.password import VARIABLE, given_password


def given(flag: str | None = None, file: Path | None = None, environment: dict[str, str] | None = None) -> str | None:
    return given_password(flag, file, {} if environment is None else environment, lambda sentence: None)


@pytest.mark.parametrize(
    ("raw", "password"),
    [
        (b"a kettle\n", "a kettle"),
        (b"a kettle", "a kettle"),
        (b"a kettle\r\n", "a kettle"),
        (b" a kettle \n", " a kettle "),
        ("Töpfe\n".encode(), "Töpfe"),
    ],
)
def test_a_file_holds_one_line(tmp_path: Path, raw: bytes, password: str) -> None:
    path = tmp_path / "password"
    path.write_bytes(raw)
    path.chmod(0o600)
    assert given(file=path) == password
    path.chmod(0o400)
    assert given(file=path) == password


@pytest.mark.parametrize(
    ("raw", "mode", "words"),
    [
        *((b"a kettle\n", mode, "Every user of this machine can open") for mode in (0o644, 0o604, 0o602, 0o601, 0o666)),
        *(
            (b"a kettle\n", mode, "Its group can open the password file")
            for mode in (0o640, 0o660, 0o620, 0o610, 0o440)
        ),
        (b"", 0o600, "must not be empty"),
        (b"\n", 0o600, "must not be empty"),
        (b"  \r\n", 0o600, "must not be empty"),
        (b"a kettle\n\n", 0o600, "more than one line"),
        (b"a\nkettle\n", 0o600, "more than one line"),
        (b"a\0kettle", 0o600, "more than one line"),
        (b"\xff\xfe", 0o600, "is not UTF-8"),
        (b"x" * 5000, 0o600, "more than 4096 bytes"),
    ],
)
def test_files_that_are_refused(
    tmp_path: Path, raw: bytes, mode: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "password"
    path.write_bytes(raw)
    path.chmod(mode)
    assert main(["serve", "--password-file", str(path)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert "kettle" not in said.replace(str(path), "")
    assert ("Run: chmod 600 " in said) == (mode != 0o600)


def test_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, words in ((tmp_path / "nowhere", "No such file"), (tmp_path, "is a directory"), (Path("/dev/null"), "")):
        assert main(["serve", "--password-file", str(path)]) == 2
        assert words.lower() in capsys.readouterr().err.lower()


def test_the_environment_is_read_last_and_cleared() -> None:
    environment = {VARIABLE: "a kettle"}
    assert given(environment=environment) == "a kettle"
    assert environment == {}
    assert given(flag="a pot", environment={VARIABLE: "a kettle"}) == "a pot"
    assert given() is None
    with pytest.raises(ValueError, match="KEEPWARM_PASSWORD must not be empty"):
        given(environment={VARIABLE: ""})
    with pytest.raises(ValueError, match="not both"):
        given("a pot", Path("x"))


@pytest.mark.parametrize("password", ["kettle-of-mine", "Töpfe", "x"])
@pytest.mark.parametrize("shape", [["--password", "{}"], ["--password={}"]])
def test_the_process_list_does_not_tell_it(shape: list[str], password: str) -> None:
    spelled = [part.format(password) for part in shape]
    code = (
        "import sys; from app.access.password import given_password; said = [];"
        "assert given_password(sys.argv[-1], None, {}, said.append) == sys.argv[-1];"
        "print(said, flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        # The port is not a password, but equal to it.
        [sys.executable, "-c", code, "serve", *spelled, "--port", password],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert child.stdout is not None
    assert child.stdout.readline().strip() == b"[]"
    shown = Path(f"/proc/{child.pid}/cmdline").read_bytes().split(b"\0")[3:-1]
    child.communicate(b"", 20)
    assert child.returncode == 0
    cover = ("-" if password == "x" else "x") * len(password.encode())
    assert [part.decode() for part in shown[1:-2]] == [part.format(cover) for part in shape]


def test_where_it_cannot_be_hidden_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("app.access.password.hide_from_process_list", lambda secret: False)
    assert given_password("a kettle", None, {}, said.append) == "a kettle"
    assert said == ["Other users of this machine can read the password in the process list; --password-file hides it."]
