"""What a plan writes grows with what it does, and a disk with less is refused before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nas.planning import disk_space as spaces
from nas.planning.disk_space import DiskSpace, check_disk_space, disk_space, size_of
from nas.planning.machine import Machine, Node
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import load_settings
from search_spaces.errors import InputError


def plan_of(output: Path, gpus: float = 0.0, **changes: Any) -> Plan:
    flags = {"model": "mini", "budget": "60%", "output": output, "workers": 2, "tokens_per_trial": "1M", **changes}
    settings = load_settings({name: str(value) for name, value in flags.items()}, None, {})
    return make_plan(settings, resolve_target(settings), Machine((Node(8, gpus, 2**36),)))


@pytest.mark.parametrize(
    ("what", "grows"),
    [
        ({"workers": 4}, {"checkpoints", "students"}),
        ({"tokens_per_trial": "2M"}, {"cache"}),
        ({"finalists": 6}, {"students", "finals"}),
        ({"budget": "60%,40%"}, {"students", "finals", "winners"}),
        ({"objectives": "loss,params", "trials": 30}, {"students"}),
        ({"calibration_samples": 2}, set()),
    ],
)
def test_each_part_grows_with_what_it_is_for(tmp_path: Path, what: dict[str, Any], grows: set[str]) -> None:
    before, after = (vars(disk_space(plan_of(tmp_path, **changes))) for changes in ({}, what))
    assert {name for name in before if after[name] > before[name]} == grows
    assert all(after[name] >= before[name] for name in before if name != "cache")


def test_whoever_trains_nothing_writes_no_checkpoints_and_no_targets(tmp_path: Path) -> None:
    found = disk_space(plan_of(tmp_path, tokens_per_trial=0, finalists=0, refit="no"))
    assert found.checkpoints == found.finals == 0
    assert found.cache < 2 * 2**20  # text


def test_targets_are_drawn_where_states_would_be_too_large(tmp_path: Path) -> None:
    cached, drawn = (disk_space(plan_of(tmp_path, teacher_targets=way)) for way in ("cached", "drawn"))
    assert 0 < drawn.cache < cached.cache


def test_a_disk_with_less_is_refused_with_what_is_needed_and_for_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path)
    needed = disk_space(plan)
    monkeypatch.setattr(spaces, "free_bytes", lambda _: needed.total)
    check_disk_space(plan)
    monkeypatch.setattr(spaces, "free_bytes", lambda _: needed.total - 1)
    with pytest.raises(
        InputError, match=rf"has {size_of(needed.total - 1)} free, and this search writes up to"
    ) as told:
        check_disk_space(plan)
    assert str(needed) in str(told.value)
    assert "checkpoints" in str(needed)


def test_a_study_that_was_begun_needs_only_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path)
    (plan.folder / "trials").mkdir(parents=True)
    (plan.folder / "trials" / "student").write_bytes(bytes(10**6))
    left = disk_space(plan).total - disk_space(plan).cache - 10**6
    monkeypatch.setattr(spaces, "free_bytes", lambda _: left)
    check_disk_space(plan)
    monkeypatch.setattr(spaces, "free_bytes", lambda _: left - 1)
    with pytest.raises(InputError, match=rf"of which {size_of(left)} are left"):
        check_disk_space(plan)


def test_sizes_are_never_understated() -> None:
    assert [size_of(one) for one in (1, 10**6, 10**6 + 1, 2_150_000_000)] == ["1 MB", "1 MB", "2 MB", "2.2 GB"]
    assert str(DiskSpace(0, 1, 0, 0, 0, 0)) == "up to 1 MB (checkpoints 1 MB)"
