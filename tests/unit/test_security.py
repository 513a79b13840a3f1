"""What SECURITY.md says of the code, where no linter looks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from search_spaces.errors import InputError
from trials.teacher.source import resolve_model

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(file for top in ("nas", "trials", "search_spaces") for file in (ROOT / top).rglob("*.py"))
OF_OUR_OWN_EXPORT = "trials/export/fresh_load.py"


def calls() -> Iterator[tuple[str, ast.Call]]:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                yield str(file.relative_to(ROOT)), node


def called(call: ast.Call) -> str:
    return ast.unparse(call.func)


def given(call: ast.Call) -> dict[str | None, str]:
    return {one.arg: ast.unparse(one.value) for one in call.keywords}


def test_torch_reads_tensors_alone() -> None:
    found = [given(call).get("weights_only") for _, call in calls() if called(call) == "torch.load"]
    assert found
    assert set(found) == {"True"}


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="pickled weights are not supported"):
        resolve_model(str(tmp_path))


def test_numpy_reads_no_pickle() -> None:
    found = [call for _, call in calls() if called(call) in ("np.load", "numpy.load")]
    assert found
    assert not [call for call in found if "allow_pickle" in given(call) or len(call.args) > 2]


def test_yaml_is_read_by_the_safe_loader() -> None:
    loaders = {called(call) for _, call in calls() if re.match(r"yaml\.(\w*load\w*)$", called(call))}
    assert loaders == {"yaml.safe_load"}


def test_code_of_a_model_is_never_allowed_by_default() -> None:
    values = {
        (file, value) for file, call in calls() for name, value in given(call).items() if name == "trust_remote_code"
    }
    assert {value for _, value in values} <= {"own_code", "False"}
    for file in FILES:
        text = file.read_text("utf-8")
        if '"trust_remote_code": True' in text:
            assert str(file.relative_to(ROOT)) == OF_OUR_OWN_EXPORT
        assert not re.search(r"own_code: bool = True|own_code=True", text)


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`((?:tests|deploy)/[\w/.]+)`", (ROOT / "SECURITY.md").read_text())))
)
def test_what_the_page_names_is_there(name: str) -> None:
    assert (ROOT / name).is_file()
