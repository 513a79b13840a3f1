"""Whatever goes wrong, the command ends with one line and an exit code."""

from __future__ import annotations

import json
import re
import tempfile
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import NoReturn

import pytest

from nas import search
from trials.export.export import ExportError

ERRORS = {
    "of ours": RuntimeError("two\nlines about postgresql://me:secret@host/db"),
    "of an export": ExportError("export best: reloaded logits differ"),
    "of the system": OSError(28, "No space left on device", "/out/studies.db"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_that_nobody_expected_is_one_line_and_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    def fail(*_: object) -> NoReturn:
        raise ERRORS[name]

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(search, "_dry_run", fail)
    assert search.main(["--budget", "60%", "--dry-run"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    found = re.fullmatch(r"error: (\w+): .*; details are in (\S+); what is finished is kept, .*\n", captured.err)
    assert found is not None, captured.err
    assert found[1] == type(ERRORS[name]).__name__
    log = Path(found[2]).read_text()
    assert "Traceback" in log
    assert "secret" not in log + captured.err


def test_a_log_that_cannot_be_written_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(*_: object) -> NoReturn:
        raise RuntimeError("a fault")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    monkeypatch.setattr(search, "_dry_run", fail)
    assert search.main(["--budget", "60%", "--dry-run"]) == 1
    assert "a fault; the details cannot be written" in capsys.readouterr().err


def test_the_first_cause_of_an_error_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(*_: object) -> NoReturn:
        try:
            raise OSError("database is locked")
        except OSError as error:
            raise RuntimeError("This typically happens due to invalid data") from error

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(search, "_dry_run", fail)
    assert search.main(["--budget", "60%", "--dry-run"]) == 1
    assert capsys.readouterr().err.startswith("error: OSError: database is locked; details are in ")


def test_the_console_script_is_the_command() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))["project"]
    assert EntryPoint("llm-nas", project["scripts"]["llm-nas"], "console_scripts").load() is search.main


def test_a_dry_run_looks_at_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_bytes(b"words \xff\xff")
    flags = ["--budget", "60%", "--model", "mini", "--dry-run", "--json", "--corpus", str(tmp_path / "text.txt")]
    assert search.main(flags) == 2
    assert "not UTF-8 at byte 6" in capsys.readouterr().err
    (tmp_path / "text.txt").write_text("words\n" * 99)
    assert search.main(flags) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["estimated_seconds"] > 0
    assert "nothing was started" in captured.err
