"""Finals: they start from the trial's student, use the text that follows, can be resumed, and run once."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials import final as door
from trials.distill import distill as distillation
from trials.distill.validation_kl import validation_kl
from trials.final import FinalResult, FinalSpec, read_windows, run_final
from trials.losses.window_losses import validation_loss
from trials.preparation import shared
from trials.recipe import Recipe
from trials.storage.cache import Cache
from trials.teacher.targets import Targets
from trials.text.corpus import BatchOrder, windows
from trials.trial import TrialSpec, load_weights, run_trial

ARCHITECTURE = Architecture(2, 40, (4, 2), (10, 96))
TEXT = "the teacher is pruned to a smaller architecture and distilled for a short while until a layer matters"
WORDS = TEXT.split()
Reading = tuple[int, dict[str, float]]
Places = list[list[int]]


@pytest.fixture(scope="module")
def recipe(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    source = random.Random(0)
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text("\n\n".join(" ".join(source.choices(WORDS, k=60)) for _ in range(300)))
    return Recipe(str(tiny_teacher_folder), str(file), 320, (128, 320), 256, 16, 64, 3e-3, 8, 0)


@pytest.fixture(scope="module")
def trial(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> TrialSpec:
    """A finished trial."""
    folder = tmp_path_factory.mktemp("trial")
    spec = TrialSpec(recipe, ARCHITECTURE, str(folder / "trial"), str(folder / "cache"))
    run_trial(spec, lambda *_: None)
    return spec


@pytest.fixture
def spec(trial: TrialSpec, tmp_path: Path) -> FinalSpec:
    return FinalSpec(trial, 256, str(tmp_path / "final"))


def run(spec: FinalSpec) -> tuple[FinalResult, list[Reading]]:
    readings: list[Reading] = []
    return run_final(spec, lambda tokens, metrics: readings.append((tokens, metrics))), readings


def weights(spec: FinalSpec) -> dict[str, torch.Tensor]:
    return load_file(Path(spec.directory) / "student" / "model.safetensors")


def same(one: FinalSpec, other: FinalSpec) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def comparable(result: FinalResult) -> dict[str, Any]:
    """The values of a result that are the same on every machine."""
    unlike = ("seconds", "resumed_from", "peak_memory_bytes")
    return {name: value for name, value in result.to_dict().items() if name not in unlike}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Places:
    """The windows of every batch, in their order."""
    places: Places = []
    hidden = Targets.hidden

    def watched(targets: Targets, asked: Any, tokens: torch.Tensor) -> torch.Tensor:
        places.append(asked.tolist())
        return hidden(targets, asked, tokens)

    monkeypatch.setattr(Targets, "hidden", watched)
    return places


def test_result_is_of_the_student_that_is_left(spec: FinalSpec) -> None:
    trial = run_trial(spec.trial, lambda *_: None)
    result, readings = run(spec)
    assert [tokens for tokens, _ in readings] == [0, 128, 320, 320 + 128, 320 + 256]
    assert result.curve == tuple((tokens, metrics["val_loss"]) for tokens, metrics in readings)
    assert (result.tokens, result.trial_loss) == (576, trial.val_loss)
    assert (result.val_loss, result.kl) == (readings[-1][1]["val_loss"], readings[-1][1]["kl"])
    assert result.kl < trial.kl
    common = shared(spec.trial.recipe, spec.trial.cache, "cpu")
    student = load_weights(spec.trial, Path(spec.directory) / "student")
    text = windows(common.corpus.validation, 16)
    assert validation_loss(student, common.targets.family, text) == result.val_loss
    (losses,) = (read_windows(Path(spec.directory), result.windows_digest) or {}).values()
    assert (losses.shape, losses.mean()) == ((len(text),), result.val_loss)
    assert result.val_kl == validation_kl(student, common.teacher, {"text": text}, Cache(Path(spec.trial.cache)))
    assert FinalResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert FinalSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_batches_follow_on_those_of_the_trial(spec: FinalSpec, seen: Places) -> None:
    """The whole corpus is used before any window repeats."""
    trial = replace(spec.trial, directory=f"{spec.directory}-trial")
    run_trial(trial, lambda *_: None)
    of_trial = [place for batch in seen for place in batch]
    seen.clear()
    run_final(replace(spec, trial=trial), lambda *_: None)
    of_final = [place for batch in seen for place in batch]
    assert sorted(of_trial) == list(range(20))
    assert len(set(of_final)) == 16
    assert not set(of_final) & set(of_trial)


def test_a_short_text_is_gone_round(spec: FinalSpec, seen: Places, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("\n\n".join(" ".join(WORDS[place % 5 :]) for place in range(12)))
    recipe = replace(spec.trial.recipe, corpus=str(tmp_path / "short.txt"), tokens=640, rungs=(640,))
    trial = replace(spec.trial, recipe=recipe, directory=f"{spec.directory}-trial")
    run_final(replace(spec, trial=trial), lambda *_: None)
    count = len(windows(shared(recipe, trial.cache, "cpu").corpus.train, 16))
    assert count < 40
    order = BatchOrder(count, 4, recipe.seed)
    assert [batch for batch in seen if len(batch) == 4] == [order.indices(step).tolist() for step in range(10 + 4)]


def test_the_same_student_and_batches_give_the_same(spec: FinalSpec) -> None:
    other = replace(spec, directory=f"{spec.directory}-other")
    one, two = run(spec), run(other)
    assert comparable(one[0]) == comparable(two[0])
    assert same(spec, other)


class Killed(BaseException):
    """The worker dies without cleaning up."""


@pytest.mark.parametrize(("step", "seconds", "resumed"), [(1, 1e9, 0), (2, 1e9, 128), (1, 0.0, 64), (3, 0.0, 192)])
def test_cut_and_resumed_is_as_if_never_cut(
    spec: FinalSpec, monkeypatch: pytest.MonkeyPatch, step: int, seconds: float, resumed: int
) -> None:
    whole = replace(spec, directory=f"{spec.directory}-whole")
    expected, readings = run(whole)
    with monkeypatch.context() as patch:
        settings = lambda *given, **more: distillation.DistillSettings(*given, checkpoint_seconds=seconds, **more)  # noqa: E731
        patch.setattr(door, "DistillSettings", settings)
        patch.setattr(distillation._Distillation, "_gradients", after(step, distillation._Distillation._gradients))
        with pytest.raises(Killed):
            run(spec)
    result, again = run(spec)
    assert result.resumed_from == resumed
    assert comparable(result) == comparable(expected)
    assert [(tokens, metrics["val_loss"]) for tokens, metrics in again] == [
        (tokens, metrics["val_loss"]) for tokens, metrics in readings
    ]
    assert same(spec, whole)
    assert sorted(path.name for path in Path(spec.directory).iterdir()) == ["result.json", "student"]


def after(calls: int, function: Callable[..., float]) -> Callable[..., float]:
    left = iter(range(calls))

    def cut(*arguments: Any) -> float:
        if next(left, None) is None:
            raise Killed
        return function(*arguments)

    return cut


def test_finished_final_is_not_run_again(spec: FinalSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    result, readings = run(spec)
    monkeypatch.setattr(door, "distill", lambda *_: pytest.fail("trained again"))
    assert run(spec) == (replace(result, resumed_from=256), readings)


def test_a_trial_that_is_not_there_is_run_first(spec: FinalSpec, trial: TrialSpec) -> None:
    missing = replace(spec, trial=replace(trial, directory=f"{spec.directory}-trial"))
    result, _ = run(missing)
    assert (Path(missing.trial.directory) / "result.json").exists()
    assert comparable(result) == comparable(run(replace(spec, directory=f"{spec.directory}-other"))[0])


@pytest.mark.parametrize("change", ["tokens", "student"])
def test_a_final_of_something_else_is_not_taken_up(spec: FinalSpec, trial: TrialSpec, change: str) -> None:
    first, _ = run(spec)
    if change == "tokens":
        other = replace(spec, tokens=320)
    else:
        copied = shutil.copytree(trial.directory, f"{spec.directory}-trial")
        run_trial(replace(trial, directory=str(copied), architecture=Architecture.uniform(2, 36, 3, 64)), lambda *_: 0)
        other = replace(spec, trial=replace(trial, directory=str(copied)))
        other = replace(other, trial=replace(other.trial, architecture=Architecture.uniform(2, 36, 3, 64)))
    again, _ = run(other)
    assert (again.resumed_from, again.val_loss == first.val_loss) == (0, False)


def test_damaged_losses_are_not_read(spec: FinalSpec) -> None:
    result, _ = run(spec)
    folder = Path(spec.directory)
    assert read_windows(folder, "another") is None
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text.replace(str(next(iter(result.windows.values()))[0]), "1.0"))
    assert read_windows(folder, result.windows_digest) is None
    (folder / "result.json").write_text(text[:50])
    assert read_windows(folder, result.windows_digest) is None
    assert read_windows(folder / "nowhere", result.windows_digest) is None


@pytest.mark.parametrize("tokens", [0, 65, -64])
def test_final_tokens_are_whole_steps(trial: TrialSpec, tokens: int) -> None:
    with pytest.raises(InputError, match="multiple of the tokens of a step, 64"):
        FinalSpec(trial, tokens, "somewhere")


def test_order_over_a_text_that_has_grown_goes_on_where_the_shorter_one_ended() -> None:
    short, grown = BatchOrder(20, 4, 7), BatchOrder(53, 4, 7, first=20)
    assert all(np.array_equal(short.indices(step), grown.indices(step)) for step in range(5))
    rest = np.concatenate([grown.indices(step) for step in range(5, 14)])
    assert sorted(rest[:33]) == list(range(20, 53))
    second = np.concatenate([grown.indices(step) for step in range(13, 27)])[1:54]
    assert sorted(second) == list(range(53))
