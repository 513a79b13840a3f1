"""Stages on and off, on a tiny teacher: what is trained, what is saved, and what is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import VOCAB, make_gpt2
from safetensors.numpy import load_file as load_texts
from safetensors.torch import load_file
from small_search import write_text
from torch import Tensor

from search_spaces.adapter_count import adapter_parameters
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials import stack
from trials.compress.matrices import layer_matrices
from trials.compress.quantized_modules import allow_repacking, with_codes
from trials.distill.distill import text_loss
from trials.evaluate.stage_costs import AddedMemory, StepClock, tensor_bytes
from trials.evaluate.stages import StageCosts, Stages
from trials.families.lookup import FAMILIES
from trials.families.shapes import shape_of
from trials.losses.window_losses import window_losses
from trials.recipe import Recipe
from trials.stack import ADAPTERS, StageSpec, architecture_of, measure, run_stage, train
from trials.text.corpus import windows
from trials.trial import TrialSpec, load_student

GPT2 = FAMILIES["gpt2"]
STUDENT = Architecture(2, 40, (4, 2), (64, 96))
TEACHER = shape_of(make_gpt2().config)
TOKENS = torch.randint(VOCAB, (3, 20), generator=torch.Generator().manual_seed(3))
ALL = "distil+lora+pruned+nf4+flash"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the text, the cache and all measurements."""
    folder = tmp_path_factory.mktemp("stack")
    write_text(folder)
    return folder


def spec_of(key: str, teacher: Path, home: Path, **changes: object) -> StageSpec:
    recipe = Recipe(str(teacher), str(home / "text.txt"), 1024, (1024,), 256, 32, 64, 1e-3, 8, 0)
    stages = Stages.from_key(key)
    architecture, folder = architecture_of(stages, STUDENT, TEACHER.full), home / key
    folder.mkdir(exist_ok=True)
    return StageSpec(
        TrialSpec(replace(recipe, **changes), architecture, str(folder), str(home / "cache")),  # type: ignore[arg-type]
        stages,
    )


@pytest.mark.parametrize("key", ["none", "distil", "distil+lora+pruned", "nf4", "lora+nf4", ALL])
def test_a_stage_is_trained_saved_and_measured(key: str, tiny_teacher_folder: Path, home: Path) -> None:
    if "nf4" in key:
        pytest.importorskip("bitsandbytes")
    spec = spec_of(key, tiny_teacher_folder, home)
    training, inference = train(spec), measure(spec)
    architecture, stages = spec.trial.architecture, spec.stages
    adapters = adapter_parameters(TEACHER, architecture, ADAPTERS)
    weights = TEACHER.parameters(architecture)
    trained = adapters if stages.lora else weights
    assert training.trained == (pytest.approx(0.2 * trained, rel=0.02) if stages.pruned else trained)
    assert training.steps == 16 - (2 if stages.pruned else 1)  # the first of a training is not timed
    assert inference.weights == weights + (adapters if stages.lora and stages.nf4 else 0)
    assert (4 * weights == inference.weight_bytes) != stages.nf4
    assert inference.bytes >= inference.weight_bytes
    assert training.bytes >= training.trained * 4
    for positive in (training.seconds, inference.tokens_per_second, inference.forward_ms, inference.generation_ms):
        assert positive > 0
    (text,) = load_texts(spec.folder / "validation.safetensors").values()
    saved = window_losses(load_student(spec.trial), GPT2, text).mean()
    if stages.lora and stages.nf4:
        assert inference.loss < saved  # that is the student before the adapters
    else:
        assert inference.loss == pytest.approx(saved, rel=0.3 if stages.nf4 else 1e-5)


def test_what_trains_is_what_the_stage_says(tiny_teacher_folder: Path, home: Path) -> None:
    """Without "distil" the student is the teacher, trained; beside NF4 its matrices stay and only adapters are new."""
    pytest.importorskip("bitsandbytes")
    spec = spec_of("lora+nf4", tiny_teacher_folder, home)
    train(spec)
    own = load_file(spec.folder / "adapters.safetensors")
    assert all(one.any() for one in own.values())
    teacher = make_gpt2()
    assert torch.equal(load_student(spec.trial)(TOKENS).logits, teacher(TOKENS).logits)
    plain = spec_of("none", tiny_teacher_folder, home)
    train(plain)
    assert not torch.equal(load_student(plain.trial)(TOKENS).logits, teacher(TOKENS).logits)


def test_labels_are_shifted() -> None:
    """The loss of a stage without a teacher is that of the next token; the original compares each token with itself."""
    model = make_gpt2()
    logits = model(TOKENS).logits
    shifted = F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    unshifted = F.cross_entropy(logits.flatten(0, 1), TOKENS.flatten())
    found = text_loss(GPT2.backbone(model, TOKENS), GPT2.output_weight(model), TOKENS)
    measured = window_losses(model, GPT2, TOKENS.numpy()).mean()
    assert float(found) == pytest.approx(float(shifted), rel=1e-5)
    assert measured == pytest.approx(float(shifted), rel=1e-5)
    assert abs(unshifted - shifted) > 0.1


def test_nothing_is_padding(tiny_teacher_folder: Path, home: Path) -> None:
    """Windows are the text itself, one after the other. A loss over padded lines would count what nobody wrote."""
    text = np.arange(100, dtype=np.uint16)
    packed = windows(text, 32)
    assert packed.flatten().tolist() == list(range(96))
    model, lengths = make_gpt2(), (20, 9, 4)
    rows = [TOKENS[row, :length] for row, length in enumerate(lengths)]
    alone = torch.cat([losses(model(row[None]).logits, row[None]) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(20) < torch.tensor(lengths)[:, None]
    states = GPT2.backbone(model, padded, mask)
    all_losses = losses(states @ GPT2.output_weight(model).T, padded).view(3, -1)
    assert torch.allclose(all_losses[mask[:, 1:]], alone, atol=1e-4)
    assert abs(all_losses.mean() - alone.mean()) > 0.05


def losses(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")


def test_a_stage_takes_two_processes_once(
    tiny_teacher_folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes are calls here; `tests/e2e/test_stack_study.py` has real ones."""
    steps: list[str] = []

    def call(step: str, folder: Path) -> None:
        steps.append(step)
        monkeypatch.setattr(sys, "argv", ["trials.stack", step, str(folder)])
        assert stack.main() == 0

    monkeypatch.setattr(stack, "_in_process", call)
    spec = spec_of("distil+flash", tiny_teacher_folder, home)
    costs = run_stage(spec)
    assert (costs.stages, costs.architecture) == (spec.stages, STUDENT.key)
    assert run_stage(spec) == costs
    assert steps == ["train", "measure"]
    changed = replace(spec, trial=replace(spec.trial, recipe=replace(spec.trial.recipe, seed=1)))
    assert run_stage(changed).training != costs.training
    assert steps == ["train", "measure"] * 2


def test_a_process_that_refuses_its_input_or_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def ending(code: int, stderr: str) -> None:
        done = subprocess.CompletedProcess([], code, "", stderr)
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
        stack._in_process("train", Path("folder"))

    ending(0, "a warning")
    with pytest.raises(InputError, match=r"^--corpus x: too short$"):
        ending(2, "a warning\n--corpus x: too short\n")
    with pytest.raises(RuntimeError, match=r"trials\.stack train folder failed with exit code 137: no message"):
        ending(137, "")


def test_a_training_too_short_to_time_is_refused(tiny_teacher_folder: Path, home: Path) -> None:
    spec = spec_of("lora+pruned", tiny_teacher_folder, home, tokens=256, rungs=(256,))
    with pytest.raises(InputError, match="--tokens-per-trial 256: a part of the training would have 2 batches"):
        train(spec)


def test_specs_and_costs_survive_json(tiny_teacher_folder: Path, home: Path) -> None:
    spec = spec_of(ALL, tiny_teacher_folder, home)
    assert StageSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.identity != replace(spec, stages=replace(spec.stages, flash=False)).identity
    spec = spec_of("none", tiny_teacher_folder, home)
    costs = StageCosts(spec.stages, "d1", train(spec), measure(spec))
    assert StageCosts.from_dict(json.loads(json.dumps(costs.to_dict()))) == costs


def test_stages_that_make_no_sense_are_named() -> None:
    with pytest.raises(InputError, match="stages pruned: there are no adapters to prune without lora"):
        Stages.from_key("distil+pruned")
    with pytest.raises(InputError, match="unknown stage 'lore'; known are distil, lora, pruned, nf4, flash"):
        Stages.from_key("distil+lore")
    assert [Stages.from_key(key).key for key in ("none", ALL)] == ["none", ALL]


def test_the_clock_counts_from_the_end_of_a_step_to_the_next() -> None:
    clock, weight = StepClock("cpu"), torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for steps in (3, 1, 4):
        with clock.running():
            for _ in range(steps):
                optimizer.step()
    optimizer.step()  # outside
    assert len(clock.seconds) == 2 + 0 + 3


def test_memory_is_the_model_and_what_its_use_adds() -> None:
    model = make_gpt2()
    memory = AddedMemory(model)
    assert memory.bytes == tensor_bytes(model) == 4 * TEACHER.parameters(TEACHER.full)
    with memory.watched():
        more = torch.ones(50_000_000)  # 200 MB
    added = memory.bytes - tensor_bytes(model)
    assert 0.9 * more.nbytes < added < 1.3 * more.nbytes


def test_only_matrices_that_the_kernel_takes_are_repacked() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    model = with_codes(make_gpt2(n_embd=64, n_inner=96))
    quantized = [one.module for one in layer_matrices(model)]
    assert {type(one) for one in quantized} == {bnb.nn.Linear4bit}
    assert not any(one.support_avx512bf16_for_cpu for one in quantized)
    with torch.no_grad():
        plain = model(TOKENS).logits
    allow_repacking(model)
    if bnb.functional.has_avx512bf16():
        taken = [one.support_avx512bf16_for_cpu for one in quantized[:4]]
        assert taken == [True, True, True, False]  # the last reads 96 neurons, no multiple of 64
    with torch.no_grad():
        assert (model(TOKENS).logits - plain).abs().mean() < 0.05  # the kernel computes in bfloat16
