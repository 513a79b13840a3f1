"""Measures the cost of a model: exact counts, and timings with all the settings needed to repeat them."""

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
RSS_SECONDS = 0.002  # between two samples of the process's memory
PASSES = 4  # over the workload in `generation_milliseconds`


@dataclass(frozen=True)
class Workload:
    """The timed workload: a prompt of ``prompt`` tokens is processed, then tokens are generated one by one.

    Throughput and memory use ``batch`` sequences; latencies use one. ``prompts`` prompts and ``steps`` generated tokens
    are timed, each after ``warmup`` repetitions that are not timed.
    """

    prompt: int
    batch: int = 8
    prompts: int = 10
    steps: int = 32
    warmup: int = 3

    @classmethod
    def within(cls, length: int, batch: int) -> Workload:
        """The workload for sequences of ``length`` tokens: the prompt is half of them, at most 512.

        Raises InputError when no room is left to generate tokens, and for an empty batch.
        """
        prompt = min(512, length // 2)
        steps = min(cls.steps, length - prompt - cls.warmup)
        if steps < 1:
            raise InputError(f"length {length}: too short to generate a token; give --length 8 or more")
        if batch < 1:
            raise InputError(f"batch {batch}: must be at least 1 sequence")
        return cls(prompt, batch, steps=steps)


def efficiency(model: PreTrainedModel, path: Path, workload: Workload) -> list[Reading]:
    """All counts and timings of ``model``, whose checkpoint is at ``path``.

    Raises InputError when the model has no key/value cache, because generation cannot be timed without one.
    """
    model.eval()
    with torch.inference_mode():
        return [*counts(model, path, workload.prompt), *timings(model, workload)]


def counts(model: PreTrainedModel, path: Path, length: int) -> list[Reading]:
    """Parameters, bytes of the weights on disk, and FLOPs and cache bytes per token of a sequence of ``length`` tokens.

    Tied parameters count once. Embedding parameters are those of all embeddings, including positions, and of the output
    projection. FLOPs are those of a forward pass divided by ``length``; a multiply-add counts as two. They are counted
    by ``torch.utils.flop_counter``: matrix products only, including the output projection, with attention over the
    whole length as the unfused kernel computes it. The cache bytes are measured on a real cache in the model's dtype.
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
    """Latency of a prompt and of a generated token, generated tokens per second, and peak memory.

    Peak memory is that of a forward pass over a batch: the allocator's peak on CUDA, or on a CPU the sampled resident
    memory of the whole process.
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
def generation_milliseconds(model: PreTrainedModel, workload: Workload, passes: int = PASSES) -> float:
    """The milliseconds per generated token of one sequence, greedy, with a cache.

    The workload is generated ``passes`` times. The 5th percentile of all its tokens is the latency: a neighbour on the
    machine makes some tokens slower and none faster, so the median would compare neighbours.
    """
    model.eval()
    single, warmup = _tokens(model, 1, workload.prompt), workload.warmup
    steps = [_step_seconds(model, single, warmup + workload.steps)[warmup:] for _ in range(passes)]
    return 1e3 * float(np.percentile(np.concatenate(steps), 5))


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
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused CPU kernels are not counted
        model(input_ids=tokens, use_cache=False)
    return int(counter.get_total_flops())


def _cache_bytes(model: PreTrainedModel, tokens: Tensor) -> int:
    """Bytes of all tensors in the cache after ``tokens``. In older model code, each layer of the cache is a tuple."""
    _, cache = _read(model, tokens)
    layers = [vars(layer).values() for layer in cache.layers] if hasattr(cache, "layers") else cache
    return sum(tensor.nbytes for layer in layers for tensor in layer if isinstance(tensor, Tensor))


def _read(model: PreTrainedModel, tokens: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
    """One forward pass as in generation. Returns the likeliest next tokens (B, 1) and the cache."""
    cache_name, last_only = _arguments(type(model).forward)
    output = model(input_ids=tokens, use_cache=True, **{cache_name: cache}, **last_only)
    cache = getattr(output, cache_name, None)
    if cache is None:
        raise InputError(
            f"model of type {model.config.model_type!r}: it has no key/value cache, so generation cannot be timed; "
            f"leave {EFFICIENCY} out of --tasks"
        )
    return output.logits[:, -1:].argmax(-1), cache


@lru_cache
def _arguments(forward: Callable[..., Any]) -> tuple[str, dict[str, int]]:
    """The name of a model's cache argument, and the arguments by which it computes the last token's logits only."""
    accepted = inspect.signature(forward).parameters
    cache_name = "cache" if "cache" in accepted else "past_key_values"  # the latter is the name in older model code
    return cache_name, {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}


def _step_seconds(model: PreTrainedModel, prompt: Tensor, steps: int) -> list[float]:
    """Seconds of each of ``steps`` greedy steps after ``prompt``, with a growing cache."""
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
    with resident_bytes() as samples:
        _read(model, tokens)
    return max(samples)


@contextmanager
def resident_bytes() -> Iterator[list[int]]:
    """Resident bytes of this process, sampled by a thread until the block ends and once at its end."""
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
