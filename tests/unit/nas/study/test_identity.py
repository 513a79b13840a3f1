"""A study of other settings, another teacher, text, program or arithmetic is refused in plain words, unless forced."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas.study.study import SearchStudy
from search_spaces.errors import InputError
from search_spaces.space import SearchSpace
from trials.teacher.source import MINI, read_shape

SHAPE = read_shape(MINI)
SPACE = SearchSpace(SHAPE, depth=(4, 6, 8), hidden=(128, 192, 256), heads=(4, 8), kv_heads=(), mlp=(512, 1024))
WIDER = replace(SPACE, hidden=(64, 128, 192, 256))
FIRST = {"code_version": 7, "tokens": 1024, "teacher": "aa", "text": "bb", "arithmetic": "float32 on cpu"}


def opened(folder: Path, space: SearchSpace = SPACE, force: bool = False, **changes: Any) -> SearchStudy:
    url, identity = f"sqlite:///{folder / 'studies.db'}", {**FIRST, **space.to_dict(), **changes}
    feasible = tuple(space)
    return SearchStudy(url, "s", space, feasible, sampler="random", seed=0, identity=identity, force=force)


def tried(study: SearchStudy, count: int) -> SearchStudy:
    for _ in range(count):
        candidate = study.ask()
        assert candidate is not None
        study.complete(candidate.number, 1.0, {})
    return study


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": "cc"}, "with another teacher (its content is aa, now cc)"),
        ({"text": "cc"}, "with another text (its content is bb, now cc)"),
        ({"code_version": 8}, "by another version of this program (its computations have the version 7, now 8)"),
        ({"arithmetic": "bfloat16 on cuda"}, "with other arithmetic (float32 on cpu, now bfloat16 on cuda)"),
        ({"tokens": 2048}, "with tokens=1024, not 2048"),
        ({"hidden": [256]}, "with another space, hidden=[128, 192, 256], not [256]"),
    ],
)
def test_a_difference_is_refused_in_words_with_the_ways_out(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    tried(opened(tmp_path), 2)
    with pytest.raises(InputError, match=re.escape(f"study 's' was made {words}: its losses are not")) as told:
        opened(tmp_path, **changes)
    assert "another name with --study, or mix them with --force" in str(told.value)
    forced = opened(tmp_path, force=True, **changes)
    assert forced.mixed == [words]
    assert forced.finished() == 2


def test_all_differences_are_named_at_once(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(InputError, match=r"another teacher .*, with other arithmetic .*give another name"):
        opened(tmp_path, teacher="cc", arithmetic="bfloat16 on cpu")


def test_a_forced_study_says_what_it_mixes_for_ever_and_needs_force_each_time(tmp_path: Path) -> None:
    tried(opened(tmp_path), 1)
    tried(opened(tmp_path, force=True, teacher="cc"), 1)
    assert opened(tmp_path).mixed == ["with another teacher (its content is aa, now cc)"]
    with pytest.raises(InputError, match="another teacher"):
        opened(tmp_path, teacher="cc")
    again = opened(tmp_path, force=True, teacher="cc", tokens=1)
    assert len(again.mixed) == 2
    assert again.finished() == 2


def test_force_is_no_difference_of_its_own(tmp_path: Path) -> None:
    opened(tmp_path, force=True)
    assert opened(tmp_path).mixed == []


def test_a_wider_space_can_be_mixed_in(tmp_path: Path) -> None:
    before = [one.architecture for one in tried(opened(tmp_path), 4).records()]
    forced = tried(opened(tmp_path, WIDER, force=True), 12)
    found = [one.architecture for one in forced.records()]
    assert found[:4] == before
    assert len(set(found)) == 16
    assert any(one.hidden == 64 for one in found)


@pytest.mark.parametrize(
    ("space", "why"),
    [
        (replace(SPACE, hidden=(128, 200, 256)), "the sizes of hidden are no range of even steps in one of the spaces"),
        (replace(SPACE, kv_heads=(2, 4)), "one space has the axes depth, heads, hidden, mlp, the other"),
    ],
)
def test_a_space_that_cannot_be_mixed_in_is_refused_with_force_too(
    tmp_path: Path, space: SearchSpace, why: str
) -> None:
    tried(opened(tmp_path), 1)
    with pytest.raises(InputError, match=f"--force cannot mix these, because {why}"):
        opened(tmp_path, space, force=True)


def test_a_study_of_an_earlier_version_takes_on_the_arithmetic_that_it_is_continued_with(tmp_path: Path) -> None:
    identity = {name: value for name, value in FIRST.items() if name != "arithmetic"} | SPACE.to_dict()
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    SearchStudy(url, "s", SPACE, tuple(SPACE), sampler="random", seed=0, identity=identity)
    opened(tmp_path)
    with pytest.raises(InputError, match="other arithmetic"):
        opened(tmp_path, arithmetic="bfloat16 on cpu")
