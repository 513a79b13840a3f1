"""The training script of mini: replicas take one step together, and an interrupted run continues exactly."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks.mini import train as train_mini
from benchmarks.mini.model import new_model, new_optimizers, train_tokenizer
from benchmarks.mini.muon import orthogonal
from benchmarks.mini.train import Progress, learning_rate, replicate, resume, save, train_step

BATCH = torch.randint(0, 4096, (4, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def progress() -> Progress:
    model = new_model(seed=0)
    return Progress(model, new_optimizers(model))


def test_replicas_together_take_the_step_of_one(progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        train_mini, "autocast", lambda device: nullcontext()
    )  # bfloat16 rounds too coarsely for this comparison
    other = Progress(new_model(seed=0), [])
    other.optimizers = new_optimizers(other.model)
    losses = [
        train_step(progress, replicate(progress.model), BATCH),
        train_step(other, replicate(other.model)[:1], BATCH),
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for one, two in zip(progress.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-4)


def test_a_stopped_run_goes_on_bit_for_bit(progress: Progress, tmp_path: Path) -> None:
    train_step(progress, replicate(progress.model), BATCH)
    save(progress, train_tokenizer(["some text"]), tmp_path / "model")
    continued = resume(tmp_path / "model", torch.device("cpu"), seed=7)
    losses = [train_step(run, replicate(run.model), BATCH) for run in (progress, continued)]
    assert losses[0] == losses[1]
    weights = [run.model.state_dict() for run in (progress, continued)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("shape", [(3, 8, 32), (2, 32, 8), (1, 16, 16)])
def test_an_orthogonal_update_has_singular_values_of_about_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.4


def test_the_rate_until_its_way_down_does_not_depend_on_the_length_of_the_run() -> None:
    assert [learning_rate(step, 800) for step in range(400)] == [learning_rate(step, 1200) for step in range(400)]
    assert learning_rate(799, 800) < learning_rate(600, 800) < learning_rate(400, 800)
