"""Measures training and preparation on a GPU, in one command and to one JSON file.

    python -m benchmarks.distillation.gpu --output gpu.json
    python -m benchmarks.distillation.gpu --small --device cpu --output smoke.json    # a quick test that it runs

It needs only torch and transformers. A teacher of gpt2-medium's shape with random weights is pruned to 254M parameters,
and the text is random tokens, because the cost of a step depends on neither. Measured are

- optimizer steps of the distillation loop (`trials.distill.distill`) with the teacher online, with its stored states
  and with drawn tokens, with and without compiled layers, and of a straightforward loop (all logits, in float32 and
  under autocast): tokens per second, utilisation and peak memory;
- the loss alone: ours, ours not compiled, and Liger Kernel's if it is installed, with errors against float64;
- the work before the first step: scores, streams, slices, refit, screening and latency;
- a whole trial as a search runs it: pruning, refit, training, validation, checkpoints and the saved student;
- a bare matrix product.

A step is measured without checkpoints and validation, and a whole trial with them. "Compiled" means the layers of
student and teacher; a search compiles the student's layers in finals, and never the teacher's.

Model FLOP utilisation is FLOPs per second over the peak of the device's bfloat16 tensor cores without sparsity. As in
`trials.estimate`, FLOPs are the student's forward and backward pass, with attention over the whole context, and the
teacher's forward pass, output projection or nothing. Values are medians of ``repeats`` repetitions after a warm-up.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from search_spaces.architecture import Architecture
from trials.distill.distill import MICRO_TOKENS, DistillSettings, distill, make_optimizer
from trials.distill.results import save_student
from trials.estimate import screen_flops, teacher_flops
from trials.evaluate.efficiency import Workload, generation_milliseconds
from trials.families.base import compile_layers
from trials.families.lookup import family_of
from trials.families.shapes import shape_of
from trials.losses.kl import _one_chunk, chunked_kl, gradient_chunk_tokens
from trials.losses.precision import autocast, compiles, training_precision
from trials.losses.window_losses import window_losses
from trials.prune.importance import ImportanceScores, compute_importance
from trials.prune.prune import prune
from trials.recipe import Recipe
from trials.storage.cache import Cache
from trials.teacher.streams import Streams, load_streams
from trials.teacher.targets import Way, load_targets
from trials.teacher.teacher import Teacher
from trials.text.corpus import Corpus, windows

STEPS: dict[str, Way] = {"teacher online": "online", "stored states": "cached", "drawn tokens": "drawn"}
# Peak bfloat16 FLOP/s without sparsity, from NVIDIA's data sheets (SXM), by a part of the device's name.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


MEDIUM_STUDENT = Architecture.uniform(24, 1024, 12, 2560)  # 254,104,576 parameters


@dataclass(frozen=True)
class Sizes:
    """Sizes of the teacher, the student and the work. ``batch``, ``calibration``, ``trial``, ``validation``: tokens."""

    layers: int = 24
    hidden: int = 1024
    vocab: int = 50257
    student: Architecture = MEDIUM_STUDENT
    length: int = 1024
    batch: int = 32_768
    steps: int = 6
    repeats: int = 3
    calibration: int = 65_536
    trial: int = 8_388_608
    validation: int = 262_144


SMALL = Sizes(3, 64, 500, Architecture.uniform(2, 48, 1, 128), 32, 128, 2, 2, 256, 1024, 256)


class Bench:
    """A teacher on ``device``, random text, scores and streams."""

    def __init__(self, sizes: Sizes, device: str, folder: Path) -> None:
        self.sizes, self.device, self.cache = sizes, device, Cache(folder)
        config = GPT2Config(
            n_layer=sizes.layers,
            n_embd=sizes.hidden,
            n_head=sizes.hidden // 64,
            n_positions=sizes.length,
            vocab_size=sizes.vocab,
            bos_token_id=0,
            eos_token_id=0,
        )
        torch.manual_seed(0)
        dtype = training_precision(device)[0] if device == "cuda" else torch.float32
        model = GPT2LMHeadModel(config).to(device, dtype).eval().requires_grad_(False)
        self.family = family_of(config)
        self.teacher = Teacher(Path(), model, None, shape_of(config), "random")  # type: ignore[arg-type]
        tokens = np.random.default_rng(0).integers(0, sizes.vocab, max(sizes.calibration, sizes.batch * 2), np.uint16)
        self.corpus = Corpus(tokens, tokens[: 2 * sizes.length], "random", "random", "random tokens")
        self.text = windows(tokens, sizes.length)
        self.recipe = Recipe("", "", sizes.batch, (sizes.batch,), sizes.length, sizes.length, sizes.batch, 1e-5, 1, 0)
        self.scores: ImportanceScores | None = None
        self.streams: Streams | None = None

    def student(self, refitted: bool = False) -> PreTrainedModel:
        assert self.scores is not None, "scores are computed first"
        return prune(self.teacher.model, self.scores, self.sizes.student, self.streams if refitted else None).float()

    def seconds(self, run: Callable[[], Any]) -> float:
        """Median seconds of ``run``, after one untimed call."""
        found = []
        for _ in range(self.sizes.repeats + 1):
            self.synchronize()
            started = time.perf_counter()
            run()
            self.synchronize()
            found.append(time.perf_counter() - started)
        return statistics.median(found[1:])

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def preparation(self) -> dict[str, float]:
        """Seconds of the work before the first step of a trial."""
        sizes, model = self.sizes, self.teacher.model
        calibration = self.text[: sizes.calibration // sizes.length]
        tokens = torch.from_numpy(calibration.astype(np.int64))
        found = {"importance": self.seconds(lambda: compute_importance(model, self.family, tokens))}
        self.scores = compute_importance(model, self.family, tokens)
        started = time.perf_counter()
        self.streams = load_streams(self.teacher, calibration, self.cache)
        found["streams"] = time.perf_counter() - started
        found["slices"] = self.seconds(self.student)
        found["slices_and_refit"] = self.seconds(lambda: self.student(refitted=True))
        found["refit_tokens"] = float(self.streams.windows.numel())
        few, whole = self.streams.first(max(1, sizes.calibration // 8 // sizes.length)), self.streams
        text = calibration[: max(1, len(calibration) // 8)]
        self.streams = few
        found["screening"] = self.seconds(lambda: window_losses(self.student(refitted=True), self.family, text))
        self.streams = whole
        flops = screen_flops(self.teacher.shape, sizes.student, self.recipe, few.windows.numel(), text.size)
        found["screening_flops_per_second"] = flops / found["screening"]
        workload = replace(Workload.within(sizes.length, 1), warmup=2)
        found["latency_ms"] = generation_milliseconds(self.student(), workload)
        return found

    def step(self, way: Way, compiled: bool) -> dict[str, float]:
        """Our loop: tokens per second, utilisation, peak memory, and seconds to the first step."""
        length, teacher = self.sizes.length, self.teacher
        student = self.student()
        if compiled:
            teacher = replace(teacher, model=copy.deepcopy(teacher.model))
            torch._dynamo.reset()
            compile_layers(self.family, student)
            compile_layers(self.family, teacher.model)
        targets = load_targets(teacher, self.corpus, length, self.cache, way=way)
        tokens = self.sizes.batch * self.sizes.steps
        settings = DistillSettings(tokens, (tokens,), length, self.sizes.batch, 1e-5, 0, "", checkpoint_seconds=1e9)
        warm_up = replace(settings, tokens=self.sizes.batch, rungs=(self.sizes.batch,))
        speeds: list[float] = []
        started = time.perf_counter()
        for one in (warm_up, *[settings] * self.sizes.repeats):
            if speeds:
                self._reset()
            with tempfile.TemporaryDirectory() as folder:
                rungs = distill(student, targets, self.corpus, one, Path(folder), lambda *_: None).rungs
            validating, whole = (rung.metrics["seconds"] for rung in rungs)
            if not speeds:
                first = time.perf_counter() - started
            speeds.append(one.tokens / (whole - 2 * validating))
        return {**self._figures(statistics.median(speeds[1:]), way), "first_step_seconds": first}

    def trial(self, way: Way) -> dict[str, float]:
        """A whole trial as a search runs it: seconds of its parts, and tokens per second of the whole.

        It prunes and refits the student, trains it without compiled layers, measures validation at the start and at
        three rungs, writes checkpoints in the background, and saves the student.
        """
        sizes, length = self.sizes, self.sizes.length
        validation = np.random.default_rng(1).integers(0, sizes.vocab, sizes.validation, np.uint16)
        corpus = replace(self.corpus, validation=validation)
        targets = load_targets(self.teacher, self.corpus, length, self.cache, way=way)
        rungs = tuple(sizes.trial // share for share in (4, 2, 1))
        settings = DistillSettings(sizes.trial, rungs, length, sizes.batch, 1e-5, 0, "")
        self._reset()
        started = time.perf_counter()
        student = self.student(refitted=True)
        self.synchronize()
        pruned = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            outcome = distill(student, targets, corpus, settings, Path(folder), lambda *_: None)
            trained = time.perf_counter()
            save_student(student, Path(folder) / "student")
        ended = time.perf_counter()
        return {
            "seconds": ended - started,
            "pruning_seconds": pruned - started,
            "validation_seconds": len(outcome.rungs) * outcome.rungs[0].metrics["seconds"],
            "waiting_for_checkpoints_seconds": trained - pruned - outcome.seconds,
            "saving_seconds": ended - trained,
            **self._figures(sizes.trial / (ended - started), way),
        }

    def losses(self) -> dict[str, float]:
        """The loss and its gradients alone, by implementation: tokens per second, peak memory, relative errors."""
        states, few = self._states(min(self.sizes.batch, 16_384)), self._states(self.sizes.length)
        found: dict[str, float] = {}
        for name, loss in loss_ways(self.device).items():

            def run(loss: Loss = loss, given: tuple[Tensor, ...] = states) -> None:
                with autocast(self.device):
                    torch.autograd.backward(loss(*given))

            self._reset()
            found[f"{name}, tokens_per_second"] = len(states[0]) / self.seconds(run)
            if self.device == "cuda":
                found[f"{name}, peak_memory_bytes"] = float(torch.cuda.max_memory_allocated())
            found |= {f"{name}, error of {what}": error for what, error in self._errors(loss, few).items()}
        return found

    def _states(self, count: int) -> tuple[Tensor, ...]:
        """Random final states and output projections of a student (with gradients) and of a teacher."""
        generator, sizes = torch.Generator(self.device).manual_seed(0), self.sizes
        dtype = training_precision(self.device)[0]

        def some(rows: int, width: int, dtype: torch.dtype) -> Tensor:
            return torch.randn(rows, width, generator=generator, device=self.device).mul_(0.2).to(dtype)

        own = some(count, sizes.student.hidden, torch.float32), some(sizes.vocab, sizes.student.hidden, torch.float32)
        for one in own:
            one.requires_grad_(True)
        return *own, some(count, sizes.hidden, dtype), some(sizes.vocab, sizes.hidden, dtype)

    def _errors(self, loss: Loss, given: tuple[Tensor, ...]) -> dict[str, float]:
        """The errors of the loss and both gradients against float64: |found - exact| / |exact|."""
        exact = [one.detach().double().requires_grad_(one.requires_grad) for one in given]
        own, target = (F.log_softmax(states @ weight.T, -1) for states, weight in (exact[:2], exact[2:]))
        value = F.kl_div(own, target, log_target=True, reduction="batchmean")
        wanted = [value.detach(), *torch.autograd.grad(value, exact[:2])]
        with autocast(self.device):
            found = loss(*given)
        values = [found.detach(), *torch.autograd.grad(found, given[:2])]
        pairs = zip(("the loss", "the states' gradient", "the projection's gradient"), values, wanted, strict=True)
        return {name: float((one.double() - two).norm() / two.norm()) for name, one, two in pairs}

    def product(self) -> dict[str, float]:
        """FLOPs per second of a bare matrix product."""
        size = 8192 if self.device == "cuda" else 256
        one, other = (torch.randn(size, size, device=self.device).to(training_precision(self.device)[0]) for _ in "ab")
        return {"flops_per_second": 10 * 2 * size**3 / self.seconds(lambda: [one @ other for _ in range(10)])}

    def straightforward(self, mixed: bool) -> dict[str, float]:
        """A straightforward loop: the teacher runs on every batch and all logits are kept, in small micro-batches."""
        student, windows_left = self.student(), self.sizes.batch // self.sizes.length
        optimizer, teacher = make_optimizer(student, 1e-5), self.teacher.model
        micro = max(1, min(windows_left, 4))

        def step() -> None:
            optimizer.zero_grad()
            for start in range(0, windows_left, micro):
                tokens = torch.from_numpy(self.text[start : start + micro].astype(np.int64)).to(self.device)
                with autocast(self.device) if mixed else torch.autocast(self.device, enabled=False):
                    with torch.no_grad():
                        target = F.log_softmax(teacher(tokens).logits.flatten(0, 1).float(), dim=-1)
                    own = F.log_softmax(student(tokens).logits.flatten(0, 1).float(), dim=-1)
                    loss = F.kl_div(own, target, log_target=True, reduction="batchmean")
                torch.autograd.backward(loss * (micro / windows_left))
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()

        self._reset()
        return self._figures(self.sizes.batch / self.seconds(step), "online")

    def _figures(self, speed: float, way: Way) -> dict[str, float]:
        shape, student, length = self.teacher.shape, self.sizes.student, self.sizes.length
        flops = speed * (3 * shape.flops_per_token(student, length) + teacher_flops(shape, length, way))
        found = {"tokens_per_second": speed, "flops_per_second": flops}
        if self.device == "cuda":
            found["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated())
            name = torch.cuda.get_device_name()
            peaks = [peak for part, peak in PEAKS.items() if part in name]
            found |= {"utilisation": flops / peaks[0]} if peaks else {}
        return found

    def _reset(self) -> None:
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Maps a student's states (N, H) and output projection (V, H), and a teacher's, to the loss."""


def loss_ways(device: str) -> dict[str, Loss]:
    """The implementations of the loss that `Bench.losses` compares, by name."""

    def ours(states: Tensor, weight: Tensor, teacher_states: Tensor, teacher_weight: Tensor) -> Tensor:
        return chunked_kl(states, weight, teacher_states, teacher_weight, gradient_chunk_tokens(len(weight), device))

    ways: dict[str, Loss] = {"ours": ours}
    if compiles(device)[0]:

        def eager(*given: Tensor) -> Tensor:
            with mock.patch("trials.losses.kl._on", return_value=_one_chunk):
                return ours(*given)

        ways["ours, not compiled"] = eager
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearJSD  # type: ignore[import-not-found,unused-ignore]

        kernel, dtype = LigerFusedLinearJSD(jsd_beta=0.0), training_precision(device)[0]  # beta 0 is the forward KL

        def liger(states: Tensor, weight: Tensor, teacher_states: Tensor, teacher_weight: Tensor) -> Tensor:
            found: Tensor = kernel(states.to(dtype), weight.to(dtype), teacher_states, teacher_weight, None)
            return found

        ways["Liger Kernel"] = liger
    return ways


def machine(device: str) -> dict[str, Any]:
    """The machine and its software."""
    found: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    found |= {"compiled": compiles(device)[1], "python": platform.python_version(), "cpus": torch.get_num_threads()}
    if device == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "memory": torch.cuda.get_device_properties(0).total_memory}
    return found


def measure(sizes: Sizes, device: str, folder: Path) -> dict[str, Any]:
    """Measure all parts. Each part is printed when it is done."""
    bench, found = Bench(sizes, device, folder), dict[str, Any]()
    found["machine"] = machine(device)
    found["sizes"] = {**asdict(sizes), "student": sizes.student.key, "micro": MICRO_TOKENS[device]}
    found["parameters"] = bench.teacher.shape.parameters(sizes.student)
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "matrix product": bench.product,
        "loss alone": bench.losses,
        "preparation, seconds": bench.preparation,
        **{
            f"step, {name}{', compiled' if compiled else ''}": partial(bench.step, way, compiled)
            for compiled in (False, True)
            for name, way in STEPS.items()
        },
        "trial, drawn tokens": partial(bench.trial, "drawn"),
        "straightforward, float32": lambda: bench.straightforward(mixed=False),
        "straightforward, autocast": lambda: bench.straightforward(mixed=True),
    }
    for name, part in parts.items():
        found[name] = part()
        print(name, {what: float(f"{value:.4g}") for what, value in found[name].items()}, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny model, to test that it runs")
    parser.add_argument("--batch-tokens", type=int, metavar="N", help="tokens of an optimizer step (32,768)")
    parser.add_argument("--micro-tokens", type=int, metavar="N", help="tokens of a forward pass (as in the loop)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    flags = parser.parse_args()
    if flags.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU; give --device cpu --small to try it")
    sizes = SMALL if flags.small else Sizes()
    sizes = replace(sizes, batch=flags.batch_tokens or sizes.batch)
    MICRO_TOKENS[flags.device] = flags.micro_tokens or MICRO_TOKENS[flags.device]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(sizes, flags.device, Path(folder))
    flags.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
