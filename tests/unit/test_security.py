"""What SECURITY.md says, where no other test looks. `test_no_code_from_data` has the rules for the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from search_spaces.errors import InputError
from trials.teacher.source import resolve_model

ROOT = Path(__file__).resolve().parents[2]


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="pickled weights are not supported"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`((?:tests|deploy)/[\w/.]+)`", (ROOT / "SECURITY.md").read_text())))
)
def test_what_the_page_names_is_there(name: str) -> None:
    assert (ROOT / name).is_file()
