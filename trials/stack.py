"""Measures stages of a compression one by one, each in processes of its own, so that peaks of memory are its alone.

    python -m trials.stack train FOLDER
    python -m trials.stack measure FOLDER

are these processes; `run_stage` starts them.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file as load_texts
from safetensors.numpy import save_file as save_texts
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from search_spaces.architecture import Architecture
from search_spaces.compression import Adapters
from search_spaces.errors import InputError
from trials.compress.adapters import ADAPTER_RATE, adapter_state, load_adapters, merged, prune_adapters, with_adapters
from trials.compress.quantized_modules import allow_repacking, with_codes
from trials.distill.distill import DistillSettings, distill
from trials.distill.results import STUDENT, save_student
from trials.evaluate.efficiency import Workload
from trials.evaluate.stage_costs import AddedMemory, StepClock, inference_costs, training_costs
from trials.evaluate.stages import InferenceCosts, StageCosts, Stages, TrainingCosts
from trials.families.lookup import family_of
from trials.preparation import Shared, shared
from trials.prune.prune import prune
from trials.storage.cache import digest
from trials.storage.durable import from_json, write_file
from trials.teacher.source import read_config, resolve_model
from trials.teacher.targets import Targets
from trials.text.corpus import windows
from trials.trial import TrialSpec, load_student

VERSION = 1  # raise it whenever something else is measured: older results are then not used
SPEC, TRAINING, INFERENCE, RESULT = "stage.json", "training.json", "inference.json", "costs.json"
ADAPTER_WEIGHTS, TEXTS = "adapters.safetensors", "validation.safetensors"
ADAPTERS = Adapters(rank=8, sparsity=0.8)
BATCH, REPEATS = 8, 10  # sequences of a batch; repetitions of what is timed
ATTENTION = {True: "sdpa", False: "eager"}  # by the stage "flash"
FEWEST = 3  # batches of a training, so that their times have a deviation


@dataclass(frozen=True)
class StageSpec:
    """What to measure: ``stages`` with ``adapters``, on the architecture and with the recipe of ``trial``.

    Without the stage "distil" the architecture is the teacher's. ``trial.directory`` is the folder of this measurement.
    """

    trial: TrialSpec
    stages: Stages
    adapters: Adapters = ADAPTERS

    @property
    def folder(self) -> Path:
        """The folder of this measurement."""
        return Path(self.trial.directory)

    @property
    def identity(self) -> str:
        """A digest of everything that the result depends on, but for the machine."""
        return digest(VERSION, json.dumps(self.to_dict(), sort_keys=True))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"trial": self.trial.to_dict(), "stages": asdict(self.stages), "adapters": asdict(self.adapters)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> StageSpec:
        """The inverse of `to_dict`."""
        adapters = {**value["adapters"], "matrices": tuple(value["adapters"]["matrices"])}
        return cls(TrialSpec.from_dict(value["trial"]), Stages(**value["stages"]), Adapters(**adapters))


def run_stage(spec: StageSpec) -> StageCosts:
    """Train and measure ``spec`` in two processes, or read the result of an earlier call with the same ``spec``.

    Raises InputError with the message of a process that refused its input, and RuntimeError when one failed.
    """
    if (found := _read(spec.folder / RESULT)) and found["identity"] == spec.identity:
        return StageCosts.from_dict(found["costs"])
    spec.folder.mkdir(parents=True, exist_ok=True)
    write_file(spec.folder / SPEC, json.dumps(spec.to_dict()).encode())
    for step in STEPS:
        _in_process(step, spec.folder)
    training, inference = (json.loads((spec.folder / name).read_text()) for name in (TRAINING, INFERENCE))
    costs = StageCosts(spec.stages, spec.trial.architecture.key, TrainingCosts(**training), InferenceCosts(**inference))
    document = {"identity": spec.identity, "costs": costs.to_dict()}
    write_file(spec.folder / RESULT, json.dumps(document, indent=1).encode())
    return costs


def train(spec: StageSpec) -> TrainingCosts:
    """Train ``spec`` and save the model in its folder: the student, its adapters if they stay, and validation text."""
    given = spec.trial
    common = shared(given.recipe, given.cache, given.device)
    model, targets = _start(spec, common)
    if spec.stages.nf4 and spec.stages.lora:
        save_student(model, spec.folder / STUDENT)  # NF4 is made from it again
        model = with_codes(model)
    if spec.stages.lora:
        model = with_adapters(model, spec.adapters, given.recipe.seed)
    model.set_attn_implementation(ATTENTION[spec.stages.flash])
    clock, memory = StepClock(given.device), AddedMemory(model)
    with memory.watched():
        for part, settings in enumerate(_parts(spec, common)):
            if part:
                prune_adapters(model, spec.adapters.sparsity)
            with clock.running(), TemporaryDirectory() as empty:
                distill(model, targets, common.corpus, settings, Path(empty), lambda *_: None)
    trained = _trained(model)
    _save(spec, model)
    texts = {name: windows(text, given.recipe.sequence_length) for name, text in common.corpus.texts.items()}
    save_texts(texts, spec.folder / TEXTS)
    return training_costs(clock.seconds, memory, trained)


def measure(spec: StageSpec) -> InferenceCosts:
    """Measure the model that `train` left in the folder of ``spec``."""
    given = spec.trial
    config = read_config(resolve_model(given.recipe.model))
    model = load_student(given).to(given.device)
    if given.device == "cuda":
        model = model.bfloat16()
    if spec.stages.nf4:
        model = with_codes(model)
        if spec.stages.lora:
            model = with_adapters(model, spec.adapters)
            load_adapters(model, load_file(spec.folder / ADAPTER_WEIGHTS))
        allow_repacking(model)
    model.set_attn_implementation(ATTENTION[spec.stages.flash])
    workload = replace(Workload.within(given.recipe.sequence_length, BATCH), prompts=REPEATS)
    return inference_costs(model, family_of(config), load_texts(spec.folder / TEXTS), workload)


class TextOnly(Targets):
    """Stands for the teacher where there is none: the divergence is 0 everywhere."""

    def divergence(self, hidden: Tensor, weight: Tensor, places: NDArray[np.int64], tokens: Tensor) -> Tensor:
        """0, without a gradient."""
        return hidden.new_zeros(())


def architecture_of(stages: Stages, student: Architecture, teacher: Architecture) -> Architecture:
    """The architecture that is measured with ``stages``."""
    return student if stages.distil else teacher


def _start(spec: StageSpec, common: Shared) -> tuple[PreTrainedModel, Targets]:
    """The model before training in float32, and what it learns from."""
    if spec.stages.distil:
        student = prune(common.teacher.model, common.scores, spec.trial.architecture, common.streams).float()
        return student.requires_grad_(True), common.targets
    return copy.deepcopy(common.teacher.model).float().requires_grad_(True), TextOnly(common.teacher)


def _parts(spec: StageSpec, common: Shared) -> list[DistillSettings]:
    """One training, or two halves of it with the adapters pruned between them."""
    recipe = spec.trial.recipe
    batches = recipe.tokens // recipe.batch_tokens
    counts = [batches - batches // 2, batches // 2] if spec.stages.pruned else [batches]
    if min(counts) < FEWEST:
        raise InputError(
            f"--tokens-per-trial {recipe.tokens}: a part of the training would have {min(counts)} batches, too few to "
            f"time; give at least {2 * FEWEST * recipe.batch_tokens}"
        )
    whole = DistillSettings(
        tokens=0,
        rungs=(),
        sequence_length=recipe.sequence_length,
        batch_tokens=recipe.batch_tokens,
        learning_rate=recipe.learning_rate * (ADAPTER_RATE if spec.stages.lora else 1),
        seed=recipe.seed,
        identity=spec.identity,
        checkpoint_seconds=float("inf"),
        first_windows=common.first,
        text_share=recipe.text_share if spec.stages.distil else 1.0,
    )
    starts = [sum(counts[:part]) for part in range(len(counts))]
    tokens = [count * recipe.batch_tokens for count in counts]
    return [
        replace(whole, tokens=one, rungs=(one,), steps_before=start) for one, start in zip(tokens, starts, strict=True)
    ]


def _trained(model: PreTrainedModel) -> int:
    if adapters := adapter_state(model):
        return sum(int(one.count_nonzero()) for one in adapters.values())
    return sum(one.numel() for one in model.parameters())


def _save(spec: StageSpec, model: PreTrainedModel) -> None:
    """Save what `measure` needs. Adapters are merged, unless that would round NF4 once more."""
    if spec.stages.lora and spec.stages.nf4:
        save_file(adapter_state(model), spec.folder / ADAPTER_WEIGHTS)
    else:
        save_student(merged(model), spec.folder / STUDENT)


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON document at ``path``; None if there is none that can be read."""
    try:
        found: dict[str, Any] = from_json(path.read_bytes())
        return found
    except (OSError, ValueError):
        return None


def _in_process(step: str, folder: Path) -> None:
    command = [sys.executable, "-m", "trials.stack", step, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # nosec B603  # ours, no shell
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode == WRONG_INPUT:
        raise InputError(last)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed with exit code {done.returncode}: {last}")


STEPS: dict[str, tuple[Callable[[StageSpec], TrainingCosts | InferenceCosts], str]] = {
    "train": (train, TRAINING),
    "measure": (measure, INFERENCE),
}
WRONG_INPUT = 2


def main() -> int:
    """One process: the step and the folder are its arguments."""
    step, folder = sys.argv[1], Path(sys.argv[2])
    work, name = STEPS[step]
    try:
        costs = work(StageSpec.from_dict(json.loads((folder / SPEC).read_text())))
    except InputError as error:
        print(error, file=sys.stderr)
        return WRONG_INPUT
    write_file(folder / name, json.dumps(asdict(costs)).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
