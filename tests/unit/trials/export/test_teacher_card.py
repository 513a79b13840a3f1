"""What a card says of the teacher: its name on the hub, and what its own card says."""

from __future__ import annotations

from pathlib import Path

import pytest

from trials.export.teacher_card import about_teacher

OWN = """---
license: apache-2.0
license_link: https://example.org/license
language:
- en
- code
datasets: org/text
base_model: org/grandparent
pipeline_tag: text-generation
model-index: [1, 2]
---
# A teacher
"""


def teacher(folder: Path, card: str | None) -> Path:
    folder.mkdir(parents=True)
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder


def test_a_model_of_the_hub_is_the_base_and_its_card_says_the_rest(tmp_path: Path) -> None:
    folder = teacher(tmp_path / "models--org--teacher" / "snapshots" / "0123", OWN)
    assert about_teacher("org/teacher", folder) == {
        "base_model": "org/teacher",
        "base_model_relation": "finetune",
        "license": "apache-2.0",
        "license_link": "https://example.org/license",
        "language": ["en", "code"],
        "datasets": "org/text",
    }


def test_a_folder_is_named_by_what_it_was_made_from(tmp_path: Path) -> None:
    folder = teacher(tmp_path / "mine", OWN)
    assert about_teacher(str(folder), folder)["base_model"] == "org/grandparent"
    plain = teacher(tmp_path / "plain", "# no metadata\n")
    assert about_teacher(str(plain), plain) == about_teacher("x", teacher(tmp_path / "none", None)) == {}


@pytest.mark.parametrize(
    "card",
    ["---\n: : [\n---\n", "---\n- a\n- list\n---\n", "---\nlicense: [1]\nlanguage: {en: 1}\nbase_model: [a, b]\n---\n"],
)
def test_a_card_that_cannot_be_read_says_nothing(card: str, tmp_path: Path) -> None:
    folder = teacher(tmp_path / "mine", card)
    assert about_teacher("mine", folder) == {}
