"""What a model costs: exact counts, and timings with everything that it takes to repeat them."""

from __future__ import annotations

import inspect
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from search_spaces.errors import InputError
from trials.evaluate.reading import Reading
from trials.teacher.source import weight_files
from trials.text.evaluation_text import EFFICIENCY

COUNTED, TIMED, SAMPLED = "counted", "timed", "sampled"
RSS_SECONDS = 0.002  # between two looks at the memory of the process


@dataclass(frozen=True)
class Workload:
    """What is run to be timed: a prompt of ``prompt`` tokens is read, then tokens are generated one by one.

    ``batch`` sequences at a time for throughput and memory, one for latencies. ``prompts`` and ``steps`` are how many
    prompts and how many generated tokens are timed, each after ``warmup`` that are not.
    """

    prompt: int
    batch: int = 8
    prompts: int = 10
    steps: int = 32
    warmup: int = 3

    @classmethod
    def within(cls, length: int, batch: int) -> Workload:
        """The workload for a model that reads ``length`` tokens at once: a prompt of half of them, at most 512.

        Raises InputError when there is no room to generate behind it, and for an empty batch.
        """
        prompt = min(512, length // 2)
        steps = min(cls.steps, length - prompt - cls.warmup)
        if steps < 1:
            raise InputError(f"length {length}: too short to generate anything in it; give --length 8 or more")
        if batch < 1:
            raise InputError(f"batch {batch}: must be at least 1 sequence")
        return cls(prompt, batch, steps=steps)


def efficiency(model: PreTrainedModel, path: Path, workload: Workload) -> list[Reading]:
    """All counts and timings of ``model``, whose checkpoint is at ``path``.

    Raises InputError when the model keeps no key/value cache, so that generating could not be timed.
    """
    model.eval()
    with torch.inference_mode():
        return [*counts(model, path, workload.prompt), *timings(model, workload)]


def counts(model: PreTrainedModel, path: Path, length: int) -> list[Reading]:
    """Parameters (tied ones once), bytes of the weights on disk, FLOPs and cache bytes of a token among ``length``.

    Embedding parameters are those of all embeddings, positions included, and of the output projection. FLOPs are of
    the forward pass, a multiply-add is two: what ``torch.utils.flop_counter`` counts, matrix products alone, with
    attention over the whole length as the unfused kernel computes it, the output projection included, divided by
    ``length``. The cache is one that was built, in the model's number format.
    """
    total, embedding = _parameters(model)
    tokens = _tokens(model, 1, length)
    flops, cache = _forward_flops(model, tokens) / length, _cache_bytes(model, tokens) / length
    files = [path] if path.is_file() else weight_files(path)
    return [
        Reading(EFFICIENCY, COUNTED, "parameters", total, "parameters"),
        Reading(EFFICIENCY, COUNTED, "embedding parameters", embedding, "parameters"),
        Reading(EFFICIENCY, COUNTED, "non-embedding parameters", total - embedding, "parameters"),
        Reading(EFFICIENCY, COUNTED, "checkpoint", sum(file.stat().st_size for file in files), "bytes"),
        Reading(EFFICIENCY, COUNTED, "forward pass", flops, "FLOPs per token", length=length),
        Reading(EFFICIENCY, COUNTED, "key/value cache", cache, "bytes per token", length=length),
    ]


def timings(model: PreTrainedModel, workload: Workload) -> list[Reading]:
    """Latency of reading a prompt and of a generated token, tokens generated in a second, and peak memory.

    Memory is CUDA's own peak, or on a CPU the resident memory of the whole process, sampled while a batch is read.
    """
    single, batch = _tokens(model, 1, workload.prompt), _tokens(model, workload.batch, workload.prompt)
    warmup, length = workload.warmup, workload.prompt
    prompts = [_timed(model, partial(_read, model, single))[1] for _ in range(warmup + workload.prompts)][warmup:]
    steps = _step_seconds(model, single, warmup + workload.steps)[warmup:]
    batch_steps = _step_seconds(model, batch, warmup + workload.steps)[warmup:]

    def timed(metric: str, unit: str, seconds: list[float], figure: Callable[[float], float], size: int) -> Reading:
        at_median, at_p5 = figure(statistics.median(seconds)), figure(float(np.percentile(seconds, 5)))
        sizes: dict[str, Any] = {"length": length, "batch": size, "warmup": warmup, "repeats": len(seconds)}
        return Reading(EFFICIENCY, TIMED, metric, at_median, unit, at_p5=at_p5, **sizes)

    peak = _peak_memory(model, batch)
    return [
        timed("prefill latency", "ms", prompts, lambda seconds: 1e3 * seconds, 1),
        timed("generation latency", "ms per token", steps, lambda seconds: 1e3 * seconds, 1),
        timed("throughput", "tokens per second", batch_steps, lambda time: len(batch) / time, len(batch)),
        Reading(
            EFFICIENCY, SAMPLED, f"peak memory ({_memory_of(model)})", peak, "bytes", length=length, batch=len(batch)
        ),
    ]


@torch.inference_mode()
def generation_milliseconds(model: PreTrainedModel, workload: Workload) -> float:
    """The generation latency of `timings` alone: median milliseconds of a generated token, one sequence."""
    model.eval()
    single = _tokens(model, 1, workload.prompt)
    return 1e3 * statistics.median(_step_seconds(model, single, workload.warmup + workload.steps)[workload.warmup :])


def _parameters(model: PreTrainedModel) -> tuple[int, int]:
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if (head := model.get_output_embeddings()) is not None:
        embeddings.append(head)
    embedding = {id(weight): weight.numel() for module in embeddings for weight in module.parameters()}
    return sum(weight.numel() for weight in model.parameters()), sum(embedding.values())


def _tokens(model: PreTrainedModel, batch: int, length: int) -> Tensor:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    numbers = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (batch, length), generator=numbers).to(model.device)


def _forward_flops(model: PreTrainedModel, tokens: Tensor) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused kernels go uncounted on CPU
        model(input_ids=tokens, use_cache=False)
    return int(counter.get_total_flops())


def _cache_bytes(model: PreTrainedModel, tokens: Tensor) -> int:
    """Bytes of every tensor in the layers of the cache after ``tokens``; older code keeps a tuple for each layer."""
    _, cache = _read(model, tokens)
    layers = [vars(layer).values() for layer in cache.layers] if hasattr(cache, "layers") else cache
    return sum(tensor.nbytes for layer in layers for tensor in layer if isinstance(tensor, Tensor))


def _read(model: PreTrainedModel, tokens: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
    """A forward pass as in generation: the likeliest next tokens (B, 1), and the cache."""
    cache_name, last_only = _arguments(type(model).forward)
    output = model(input_ids=tokens, use_cache=True, **{cache_name: cache}, **last_only)
    cache = getattr(output, cache_name, None)
    if cache is None:
        raise InputError(
            f"model of type {model.config.model_type!r}: it keeps no key/value cache, so that generating cannot be "
            f"timed; leave {EFFICIENCY} out of --tasks"
        )
    return output.logits[:, -1:].argmax(-1), cache


@lru_cache
def _arguments(forward: Callable[..., Any]) -> tuple[str, dict[str, int]]:
    """What a model calls its cache, and how it is told to compute the logits of the last token alone."""
    accepted = inspect.signature(forward).parameters
    cache_name = "cache" if "cache" in accepted else "past_key_values"  # its name in older code
    return cache_name, {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}


def _step_seconds(model: PreTrainedModel, prompt: Tensor, steps: int) -> list[float]:
    """Seconds of each of ``steps`` greedy steps behind ``prompt``, through a growing cache."""
    (last, cache), seconds = _read(model, prompt), []
    for _ in range(steps):
        (last, cache), spent = _timed(model, partial(_read, model, last, cache))
        seconds.append(spent)
    return seconds


def _timed(model: PreTrainedModel, run: Callable[[], Any]) -> tuple[Any, float]:
    _synchronize(model)
    started = time.perf_counter()
    result = run()
    _synchronize(model)
    return result, time.perf_counter() - started


def _synchronize(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _memory_of(model: PreTrainedModel) -> str:
    return "CUDA" if model.device.type == "cuda" else "process"


def _peak_memory(model: PreTrainedModel, tokens: Tensor) -> int:
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        _read(model, tokens)
        return int(torch.cuda.max_memory_allocated(model.device))
    with _resident() as samples:
        _read(model, tokens)
    return max(samples)


@contextmanager
def _resident() -> Iterator[list[int]]:
    """Resident bytes of this process, sampled from a thread until the block is left, its end included."""
    samples: list[int] = []
    process, ended = psutil.Process(), threading.Event()

    def sample() -> None:
        while not ended.wait(RSS_SECONDS):
            samples.append(process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        samples.append(process.memory_info().rss)
        ended.set()
        thread.join()
