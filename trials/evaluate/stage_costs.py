"""Measures what a stage of a compression costs: time and memory of training, memory, speed and loss of the result."""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import GenerationConfig, PreTrainedModel

from trials.evaluate.efficiency import Workload, resident_bytes
from trials.evaluate.stages import InferenceCosts, TrainingCosts
from trials.families.base import Family
from trials.losses.window_losses import mean_loss, window_losses


class StepClock:
    """Collects the seconds of optimizer steps while it is open, without the first: from each step's end to the next."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, list[float]()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Collect the steps of one training, in this block."""
        ends: list[float] = []

        def note(*_: object) -> None:
            _synchronize(self.device)
            ends.append(time.perf_counter())

        handle = register_optimizer_step_post_hook(note)
        try:
            yield
        finally:
            handle.remove()
            self.seconds += np.diff(ends).tolist()


class AddedMemory:
    """The most memory that ``model`` and its use take in this process, in bytes.

    These are the bytes of its tensors now, and whatever the process holds at the peak of `watched` blocks beyond what
    it holds now. Make it before the first forward pass.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.device: str = model.device.type
        self.bytes = self._model = tensor_bytes(model)
        self._start = _held(self.device)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the memory during this block: the allocator's on CUDA, the resident memory of the process on a CPU."""
        _held(self.device)
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            yield
            peak = torch.cuda.max_memory_allocated()
        else:
            with resident_bytes() as samples:
                yield
            peak = max(samples)
        self.bytes = max(self.bytes, self._model + peak - self._start)


def tensor_bytes(model: PreTrainedModel) -> int:
    """The bytes of all tensors of ``model``, with the scales of quantized matrices; a tied tensor counts once."""
    return sum({one.data_ptr(): one.nbytes for one in model.state_dict().values()}.values())


@torch.inference_mode()
def inference_costs(
    model: PreTrainedModel,
    family: Family,
    texts: Mapping[str, NDArray[np.integer]],
    workload: Workload,
) -> InferenceCosts:
    """The costs of ``model``, with ``workload.prompts`` repetitions of everything that is timed.

    ``texts`` are windows (n, length) of validation text by name. They are packed text without padding, and each token
    is predicted from those before it. The model must not have run before: see `trials.compress.quantized_modules`.
    """
    memory, weight_bytes = AddedMemory(model.eval()), tensor_bytes(model)
    weights, device = sum(map(_weights, model.parameters())), model.device.type
    single, batch = _tokens(model, 1, workload), _tokens(model, workload.batch, workload)

    def forward(tokens: Tensor) -> Callable[[], object]:
        return lambda: model(input_ids=tokens, use_cache=False)

    greedy = _greedy(model, workload.steps)
    runs = [forward(single), lambda: model.generate(single, generation_config=greedy), forward(batch)]
    passes, generations, batches = (_seconds(run, workload, device) for run in runs)
    with memory.watched():  # not while something is timed
        for run in runs:
            run()
    return InferenceCosts(
        weights=weights,
        weight_bytes=weight_bytes,
        bytes=memory.bytes,
        batch=workload.batch,
        prompt=workload.prompt,
        generated=workload.steps,
        tokens_per_second=batch.numel() / statistics.mean(batches),
        forward_ms=1e3 * statistics.mean(passes),
        forward_ms_sd=1e3 * statistics.stdev(passes),
        generation_ms=1e3 * statistics.mean(generations),
        generation_ms_sd=1e3 * statistics.stdev(generations),
        loss=mean_loss({name: window_losses(model, family, one) for name, one in texts.items()}),
    )


def training_costs(seconds: Sequence[float], memory: AddedMemory, trained: int) -> TrainingCosts:
    """The costs of a training whose batches took ``seconds``; at least two of them."""
    mean, deviation = statistics.mean(seconds), statistics.stdev(seconds)
    return TrainingCosts(len(seconds), mean, deviation, memory.bytes, trained)


def _weights(parameter: Tensor) -> int:
    """The number of weights in ``parameter``; NF4 holds two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def _tokens(model: PreTrainedModel, batch: int, workload: Workload) -> Tensor:
    vocabulary, numbers = model.get_input_embeddings().weight.shape[0], torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (batch, workload.prompt), generator=numbers).to(model.device)


def _greedy(model: PreTrainedModel, tokens: int) -> GenerationConfig:
    """Generate exactly ``tokens`` tokens, the likeliest each time, so that every model does the same work."""
    end = model.generation_config.eos_token_id
    pad = model.generation_config.pad_token_id
    if pad is None:
        pad = end[0] if isinstance(end, list) else end
    return GenerationConfig(
        max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=end, pad_token_id=pad
    )


def _seconds(run: Callable[[], object], workload: Workload, device: str) -> list[float]:
    """The seconds of each of ``workload.prompts`` calls, after the calls for warm-up."""
    seconds = []
    for _ in range(workload.warmup + workload.prompts):
        _synchronize(device)
        started = time.perf_counter()
        run()
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds[workload.warmup :]


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _held(device: str) -> int:
    """Bytes that this process holds now, after memory that was freed has been given back."""
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()
    if give_back := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps freed memory for itself
        give_back(0)
    return int(psutil.Process().memory_info().rss)
