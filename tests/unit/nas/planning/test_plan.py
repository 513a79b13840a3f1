"""Plans: what is derived from teacher and machine, and what names a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nas.planning.forecast import estimated_seconds, expected_tokens, plan_lines, summary
from nas.planning.machine import Machine, Node
from nas.planning.plan import Plan, make_plan, resolve_target, trial_bytes
from nas.planning.settings import load_settings
from nas.stages.prepare import target_helpers
from search_spaces.errors import InputError
from trials.export.loads_in import LLAMA_CPP, loads_in
from trials.text.mixture import GENERAL

LAPTOP = Machine((Node(2, 0.0, 20 * 2**30),))
SERVER = Machine((Node(16, 1.0, 125 * 2**30),) * 4)


def make(folder: Path, machine: Machine = LAPTOP, **flags: Any) -> Plan:
    given = {"model": str(folder), "budget": "60%", "tolerance": "0.1", "corpus": "stdlib", **flags}
    settings = load_settings({name: str(value) for name, value in given.items()}, None, {})
    return make_plan(settings, resolve_target(settings), machine)


def test_target_holds_the_band(tiny_teacher_folder: Path) -> None:
    target = make(tiny_teacher_folder).target
    assert target.feasible
    assert all(target.shape.parameters(one) in target.budget for one in target.feasible)


def test_recipe_fits_the_teacher_and_whole_steps(tiny_teacher_folder: Path) -> None:
    recipe = make(tiny_teacher_folder).recipe
    assert recipe.sequence_length == 64  # the teacher's positions, not the default of 256
    assert recipe.tokens % recipe.batch_tokens == 0
    with pytest.raises(InputError, match="--sequence-length 65: the teacher has 64 positions"):
        make(tiny_teacher_folder, sequence_length=65)


def test_workers_get_absolute_paths(tiny_teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_teacher_folder)
    Path("text.txt").write_text("text")
    try:
        recipe = make(Path("."), corpus="text.txt").recipe
    finally:
        Path("text.txt").unlink()
    assert recipe.model == str(tiny_teacher_folder)
    assert recipe.corpus == str(tiny_teacher_folder / "text.txt")
    assert make(tiny_teacher_folder, corpus="org/name").recipe.corpus == "org/name"
    (tiny_teacher_folder / "more.txt").write_text("text")
    try:
        further = make(Path("."), validation="m=more.txt,org/name").recipe.validation
    finally:
        (tiny_teacher_folder / "more.txt").unlink()
    assert further == (("m", str(tiny_teacher_folder / "more.txt")), ("name", "org/name"))


def test_all_workers_compute_targets_of_several_parts(tiny_teacher_folder: Path) -> None:
    def helpers(**flags: Any) -> int:
        return target_helpers(make(tiny_teacher_folder, SERVER, gpus_per_trial=0, workers=4, **flags))

    assert helpers() == 0
    assert helpers(tokens_per_trial=2 * 2**20) == 1  # beside the worker that prepares
    assert helpers(tokens_per_trial=9 * 2**20, teacher_targets="drawn") == 3
    assert helpers(tokens_per_trial=9 * 2**20, teacher_targets="online") == 0


def test_resources_use_the_whole_machine_and_no_more(tiny_teacher_folder: Path) -> None:
    laptop = make(tiny_teacher_folder).resources
    assert (laptop.workers, laptop.cpus, laptop.device) == (2, 1, "cpu")
    assert make(tiny_teacher_folder, workers=1).resources.cpus == 2
    server = make(tiny_teacher_folder, SERVER).resources
    assert (server.workers, server.gpus, server.device) == (4, 1.0, "cuda")
    assert make(tiny_teacher_folder, SERVER, gpus_per_trial=0.5).resources.workers == 8
    assert make(tiny_teacher_folder, SERVER, gpus_per_trial=0).resources.device == "cpu"
    for wrong, rule in (({"gpus_per_trial": 1}, "no node has a GPU"), ({"cpus_per_trial": 3}, "give at most that")):
        with pytest.raises(InputError, match=rule):
            make(tiny_teacher_folder, **wrong)


def test_memory_limits_the_workers(tiny_teacher_folder: Path) -> None:
    need = trial_bytes(make(tiny_teacher_folder).target)
    tight = Machine((Node(16, 0.0, int(need * 3.5)),))
    resources = make(tiny_teacher_folder, tight).resources
    assert (resources.workers, resources.cpus) == (3, 5)


def test_default_name_changes_with_what_makes_losses_incomparable_and_with_nothing_else(
    tiny_teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = make(tiny_teacher_folder).study
    assert make(tiny_teacher_folder, trials=99, sampler="random", workers=1, output="elsewhere").study == name
    assert make(tiny_teacher_folder, finalists=9, final_tokens=4096, baselines="no").study == name
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"tokens_per_trial": 4096},
        {"learning_rate": 1e-5},
        {"teacher_targets": "online"},
        {"text_share": 0.5},
        {"tolerance": "0.2"},
        {"scheduler": "none"},
        {"space": "depth", "tolerance": "0.3"},
        {"corpus": "org/other"},
        {"validation": "org/other"},
    ]
    names = {make(tiny_teacher_folder, **change).study for change in changes}
    assert len(names) == len(changes)
    assert name not in names
    assert make(tiny_teacher_folder, study="mine").study == "mine"
    monkeypatch.setattr("nas.planning.plan.VERSION", 0)
    assert make(tiny_teacher_folder).study not in {name, *names}


def test_halving_is_planned(tiny_teacher_folder: Path) -> None:
    trial = {"trials": 8, "tokens_per_trial": 4096, "batch_tokens": 64, "finalists": 0}
    plan = make(tiny_teacher_folder, **trial)
    assert plan.recipe.rungs == (1024, 2048, 4096)
    assert expected_tokens(plan) == 8 * 1024 + 4 * 1024 + 2 * 2048
    whole = make(tiny_teacher_folder, **trial, scheduler="none")
    assert expected_tokens(whole) == 8 * 4096


def test_without_training_refitted_students_are_compared(tiny_teacher_folder: Path) -> None:
    plan = make(tiny_teacher_folder, trials=8, tokens_per_trial=0, finalists=0)
    assert (plan.recipe.tokens, plan.recipe.rungs, expected_tokens(plan)) == (0, (), 0)
    assert plan_lines(plan)["tokens"].startswith("none per trial")
    assert "total" not in plan_lines(plan)
    assert estimated_seconds(plan) > 0
    further = make(tiny_teacher_folder, trials=8, tokens_per_trial=0, batch_tokens=64, final_tokens=128)
    assert expected_tokens(further) == (4 + 3) * 128
    with pytest.raises(InputError, match=r"--tokens-per-trial 0: .*give --final-tokens, or --finalists 0"):
        make(tiny_teacher_folder, tokens_per_trial=0)


def test_the_final_stage_is_planned(tiny_teacher_folder: Path) -> None:
    trial = {"trials": 8, "tokens_per_trial": 4096, "batch_tokens": 64}
    off = make(tiny_teacher_folder, **trial, finalists=0)
    alone = make(tiny_teacher_folder, **trial, finalists=2, final_tokens=700, baselines="no")
    assert (off.baselines, alone.baselines) == ({}, {})
    assert alone.final_tokens == 640  # whole steps
    assert make(tiny_teacher_folder, **trial, final_tokens=1).final_tokens == 64
    assert expected_tokens(alone) == expected_tokens(off) + 3 * 640  # one of them for the best stock candidate
    whole = make(tiny_teacher_folder, **trial)
    assert whole.final_tokens == whole.recipe.tokens
    assert len(set(whole.baselines.values())) == 3
    third = 2048  # three trials are wanted as finalists, where halving alone leaves two to their last stretch
    assert expected_tokens(whole) == expected_tokens(off) + third + 4 * 4096 + 3 * 8192
    assert "nearest to depth only, width only, random" in dict(summary(whole))["finals"]
    assert "the best trial wins" in dict(summary(off))["finals"]


def test_no_more_trials_than_the_band_holds(tiny_teacher_folder: Path) -> None:
    plan = make(tiny_teacher_folder, trials=10_000)
    assert plan.trials == len(plan.target.feasible)
    assert make(tiny_teacher_folder, trials=1, sampler="exhaustive").trials == plan.trials


def test_summary_says_that_candidates_are_screened(tiny_teacher_folder: Path) -> None:
    plan = make(tiny_teacher_folder, sampler="screen", screened=9)
    assert dict(summary(plan))["screen"].startswith("9 architectures are measured before retraining")
    assert "screen" not in dict(summary(make(tiny_teacher_folder, sampler="tpe")))


def test_summary_says_what_will_be_done(tiny_teacher_folder: Path) -> None:
    text = "\n".join(f"{what} {value}" for what, value in summary(make(tiny_teacher_folder)))
    for part in (
        "75,408 parameters",
        "architectures",
        "8 from sampler screen",
        "2 at a time",
        "learning rate",
        "studies.db",
    ):
        assert part in text


def test_several_budgets_are_one_plan_with_a_part_for_each(tiny_teacher_folder: Path) -> None:
    plan = make(tiny_teacher_folder, budget="60%,80%", trials=3, finalists=1, sampler="screen")
    large, small = plan.parts
    assert [part.part for part in plan.parts] == ["80pct", "60pct"]
    assert plan.target.feasible == (*large.target.feasible, *small.target.feasible)
    assert small.target.feasible == make(tiny_teacher_folder).target.feasible
    assert (large.trials, small.trials, plan.trials) == (3, 3, 6)
    assert large.results == plan.folder / "80pct"
    assert (large.folder, large.storage, large.cache) == (plan.folder, plan.storage, plan.cache)
    assert plan.screenings == large.screenings + small.screenings == len(plan.target.feasible)
    assert set(small.baselines.values()) <= set(small.target.feasible)
    assert plan.identity == make(tiny_teacher_folder, budget="80%,60%", trials=9).identity
    alone = [make(tiny_teacher_folder, budget=budget, trials=3, finalists=1) for budget in ("60%", "80%")]
    assert expected_tokens(plan) == sum(map(expected_tokens, alone))
    assert "-80pct-60pct-" in plan.study
    lines = summary(plan)
    assert [value for what, value in lines if what == "band"] == [
        f"{part.target.budget}: {len(part.target.feasible)} architectures" for part in plan.parts
    ]
    assert dict(lines)["trials"].startswith("3 + 3 from sampler screen")


def test_a_single_budget_is_its_own_part(tiny_teacher_folder: Path) -> None:
    plan = make(tiny_teacher_folder)
    assert plan.parts == (plan,)
    assert plan.results == plan.folder
    assert {"minimum", "maximum"} <= plan.identity.keys()


def test_a_limit_of_memory_leaves_what_fits_and_names_the_least_where_nothing_does(tiny_teacher_folder: Path) -> None:
    whole = make(tiny_teacher_folder, tolerance=0.3)
    shape = whole.target.shape
    needs = sorted(shape.memory_bytes(one) for one in whole.target.feasible)
    most = needs[len(needs) // 2]
    plan = make(tiny_teacher_folder, tolerance=0.3, max_memory=most)
    kept = [one for one in whole.target.feasible if shape.memory_bytes(one) <= most]
    assert list(plan.target.feasible) == kept
    assert len(kept) < len(needs)
    assert f"{most:,} bytes" in dict(summary(plan))["limits"]
    assert make(tiny_teacher_folder, max_memory="1GB").settings.max_memory == 10**9
    with pytest.raises(InputError, match=rf"--max-memory 1,000: .* at least {needs[0]:,} bytes"):
        make(tiny_teacher_folder, tolerance=0.3, max_memory="1KB")
    with pytest.raises(InputError, match="--max-memory 'much'"):
        make(tiny_teacher_folder, max_memory="much")


def test_only_what_loads_and_quantises_is_planned_baselines_included(tiny_teacher_folder: Path) -> None:
    whole = make(tiny_teacher_folder, tolerance=0.5, quantises_to="bf16")
    plan = make(tiny_teacher_folder, tolerance=0.5, loads_in="llama.cpp", quantises_to="bf16")
    assert set(plan.target.feasible) == {
        one for one in whole.target.feasible if LLAMA_CPP in loads_in(whole.target.shape, one).programs
    }
    assert 0 < len(plan.target.feasible) < len(whole.target.feasible)
    every = {*plan.target.feasible, *plan.baselines.values()}
    assert all("bf16" in loads_in(plan.target.shape, one).formats for one in every)
    assert dict(summary(plan))["loads in"] == "llama.cpp; nothing else is proposed"
    with pytest.raises(InputError, match="--quantises-to q4_k: no value of hidden is left"):
        make(tiny_teacher_folder, quantises_to="q4_k")
    with pytest.raises(InputError, match="--loads-in 'ollama'"):
        make(tiny_teacher_folder, loads_in="ollama")


def test_limits_and_objectives_are_part_of_what_a_study_is(tiny_teacher_folder: Path) -> None:
    plain = make(tiny_teacher_folder).identity
    changes = [{"max_memory": "1GB"}, {"max_latency_ms": 9}, {"objectives": "loss,params"}]
    changed = [make(tiny_teacher_folder, **change).identity for change in changes]
    assert [one.keys() - plain.keys() for one in changed] == [{name} for change in changes for name in change]
    asked = make(tiny_teacher_folder, tolerance=0.5, loads_in="transformers", quantises_to="bf16").identity
    assert {"loads_in", "quantises_to"} <= asked.keys()
    with pytest.raises(InputError, match="--objectives 'speed'"):
        make(tiny_teacher_folder, objectives="speed")


@pytest.mark.parametrize(
    ("output", "named"), [("{file}/out", "is a file"), ("{file}", "is a file"), ("a\0b", "no path"), ("{x}", "no path")]
)
def test_an_output_that_is_no_folder_is_named_before_anything_starts(
    tiny_teacher_folder: Path, tmp_path: Path, output: str, named: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match=named):
        make(tiny_teacher_folder, output=output.format(file=file, x="x" * 300))


def test_a_study_is_named_after_its_teacher_whatever_the_path_looks_like(tiny_teacher_folder: Path) -> None:
    folder = tiny_teacher_folder.parent
    assert make(Path(f"{tiny_teacher_folder}/../{tiny_teacher_folder.name}")).study.startswith(tiny_teacher_folder.name)
    assert not make(Path(f"{folder}/{tiny_teacher_folder.name}/.")).study.startswith((".", "-"))


@pytest.mark.parametrize(
    ("flags", "tests"),
    [
        ({"corpus": "stdlib"}, []),
        ({"corpus": "stdlib", "validation": "wikitext-2"}, []),
        ({"corpus": "org/web:0.5,stdlib:0.5"}, []),
        ({"corpus": "org/web"}, ["python-docs"]),
        ({"corpus": "org/web", "test": "ptb"}, ["ptb", "python-docs"]),
        ({"corpus": "org/web", "test": "python-docs,ptb"}, ["python-docs", "ptb"]),
        ({"corpus": "org/web", "finalists": 0}, []),
    ],
)
def test_every_search_reads_text_of_another_kind(
    tiny_teacher_folder: Path, flags: dict[str, Any], tests: list[str]
) -> None:
    assert [one.name for one in make(tiny_teacher_folder, **flags).tests] == tests


def test_a_mixture_is_a_part_of_the_recipe_with_the_paths_that_workers_see(
    tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    monkeypatch.chdir(tmp_path)
    plan = make(tiny_teacher_folder, corpus="web=org/web:0.7,a.txt:0.3")
    assert plan.recipe.corpus == f"web=org/web:0.7,a={tmp_path}/a.txt:0.3"
    other = make(tiny_teacher_folder, corpus="web=org/web:0.6,a.txt:0.4")
    assert other.study != plan.study
    for corpus, message in {
        "web=org/web:0.7,b.txt:0.3": "corpus b.txt: no such file",
        "org/web:0.7,nobody:0.3": "corpus 'nobody': no such file, folder or dataset",
        "org/web:0.7,a.txt": "has no weight",
    }.items():
        with pytest.raises(InputError, match=message):
            make(tiny_teacher_folder, corpus=corpus)


def test_the_default_text_is_a_mixture_except_for_mini(tiny_teacher_folder: Path) -> None:
    settings = load_settings({"model": str(tiny_teacher_folder), "budget": "60%"}, None, {})
    assert make_plan(settings, resolve_target(settings), LAPTOP).recipe.corpus == GENERAL
    settings = load_settings({"model": "mini", "budget": "60%"}, None, {})
    assert make_plan(settings, resolve_target(settings), LAPTOP).recipe.corpus == "stdlib"


def test_layer_removal_brings_the_settings_of_its_study(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    flags = {"space": "layer-removal", "model": str(tiny_teacher_folder), "output": str(tmp_path), "corpus": "stdlib"}
    plan = make_plan(
        settings := load_settings(flags, None, {}), resolve_target(settings), Machine((Node(2, 0.0, 2**34),))
    )
    layers = plan.target.shape.layers
    assert plan.trials == len(plan.target.feasible) == 2**layers - 1
    assert sorted(plan.slices)[:2] == [(0,), (0, 1)]
    assert len(plan.slices) == plan.trials
    assert (plan.recipe.tokens, plan.recipe.refit, plan.settings.table) == (0, False, "layers")
    assert plan.times_candidates
    assert plan.identity["refit"] is False
    assert "none per trial: plain students are compared" in plan_lines(plan)["tokens"]
    refitted = load_settings({**flags, "refit": "yes"}, None, {})
    other = make_plan(refitted, resolve_target(refitted), Machine((Node(2, 0.0, 2**34),)))
    assert other.slices == []
    assert other.study != plan.study
    assert load_settings({"space": "layer-removal"}, None, {}).model == "distilbert/distilgpt2"


def test_a_budget_in_bytes_is_not_exported_in_four_bytes_a_number(tiny_teacher_folder: Path) -> None:
    given = {"budget": "80%B", "model": str(tiny_teacher_folder), "corpus": "stdlib"}
    with pytest.raises(InputError, match="--export-dtype float32: --budget 80%B counts two bytes for a number"):
        resolve_target(load_settings({**given, "export_dtype": "float32"}, None, {}))
