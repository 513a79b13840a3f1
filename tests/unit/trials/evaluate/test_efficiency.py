"""Counts equal closed forms; timings include their conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_gpt2
from reading_models import SIZES, make_llama
from transformers import GPT2LMHeadModel, PreTrainedModel

from search_spaces.errors import InputError
from trials.evaluate import efficiency as measured
from trials.evaluate.efficiency import Workload, counts, efficiency, timings
from trials.families.shapes import shape_of

LENGTH = 20
SHORT = Workload(prompt=8, batch=3, prompts=2, steps=4, warmup=1)


def values(model: PreTrainedModel, path: Path) -> dict[str, float]:
    with torch.inference_mode():
        return {reading.metric: reading.value for reading in counts(model, path, LENGTH)}


@pytest.mark.parametrize("tied", [True, False])
def test_counts_of_a_gpt2_are_those_of_its_shape(tmp_path: Path, tied: bool) -> None:
    model = make_gpt2(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    shape = shape_of(model.config)
    assert values(model, tmp_path) == {
        "parameters": shape.parameters(shape.full),
        "embedding parameters": shape.embedding_parameters(shape.full),
        "non-embedding parameters": shape.non_embedding_parameters(shape.full),
        "checkpoint": (tmp_path / "model.safetensors").stat().st_size,
        "forward pass": shape.flops_per_token(shape.full, LENGTH),
        "key/value cache": shape.kv_cache_bytes(shape.full, dtype_bytes=4),
    }


def test_grouped_queries_share_their_cache(tmp_path: Path) -> None:
    found = values(make_llama(), tmp_path)
    hidden, mlp, heads, groups = 48, 96, 4, 2
    layer = hidden * 12 * (2 * heads + 2 * groups) + 3 * hidden * mlp
    assert found["key/value cache"] == 2 * 2 * groups * 12 * 4
    assert found["forward pass"] == 2 * (2 * layer + 4 * LENGTH * heads * 12) + 2 * SIZES["vocab_size"] * hidden
    assert found["parameters"] == 2 * (layer + 2 * hidden) + hidden + 2 * SIZES["vocab_size"] * hidden
    assert found["embedding parameters"] == 2 * SIZES["vocab_size"] * hidden


def test_the_cache_is_in_the_format_of_the_model(tmp_path: Path) -> None:
    model = make_gpt2()
    whole = values(model, tmp_path)["key/value cache"]
    assert values(model.bfloat16(), tmp_path)["key/value cache"] == whole / 2


def test_shards_and_single_files_are_counted(tmp_path: Path, tiny_gpt2: GPT2LMHeadModel) -> None:
    tiny_gpt2.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = [file.stat().st_size for file in tmp_path.glob("*.safetensors")]
    assert len(shards) > 1
    assert values(tiny_gpt2, tmp_path)["checkpoint"] == sum(shards)
    assert values(tiny_gpt2, tmp_path / "config.json")["checkpoint"] == (tmp_path / "config.json").stat().st_size


def test_timings_carry_their_conditions(tiny_gpt2: GPT2LMHeadModel, tmp_path: Path) -> None:
    readings = {reading.metric: reading for reading in efficiency(tiny_gpt2, tmp_path, SHORT)}
    sizes = {"prefill latency": (1, 2), "generation latency": (1, 4), "throughput": (3, 4)}
    for metric, (batch, repeats) in sizes.items():
        reading = readings[metric]
        assert (reading.batch, reading.repeats, reading.warmup, reading.length) == (batch, repeats, 1, 8)
        assert reading.value > 0
    assert readings["prefill latency"].at_p5 <= readings["prefill latency"].value
    assert readings["throughput"].at_p5 >= readings["throughput"].value
    memory = readings["peak memory (process)"]
    assert (memory.batch, memory.length) == (3, 8)
    assert memory.value > sum(weight.nbytes for weight in tiny_gpt2.parameters())


def test_times_are_medians_of_what_comes_after_the_warm_up(
    tiny_gpt2: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 2.0, 4.0, *(50.0, 1.0, 2.0, 3.0, 9.0), *(60.0, 3.0, 6.0, 6.0, 30.0)])
    real = measured._timed
    monkeypatch.setattr(measured, "_timed", lambda model, run: (real(model, run)[0], next(clock)))
    prefill, step, throughput, _ = timings(tiny_gpt2, SHORT)
    assert (prefill.value, step.value, throughput.value) == (3000.0, 2500.0, 3 / 6.0)
    assert prefill.at_p5 == pytest.approx(2100.0)


def test_tokens_are_generated_one_by_one_through_the_cache(
    tiny_gpt2: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps equal those of ``generate``."""
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []
    real = measured._read

    def read(model: PreTrainedModel, tokens: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
        following, cache = real(model, tokens, cache)
        steps.append((tokens, following))
        return following, cache

    monkeypatch.setattr(measured, "_read", read)
    prompt = torch.arange(16).reshape(2, 8)
    with torch.inference_mode():
        measured._step_seconds(tiny_gpt2, prompt, 5)
    assert [tokens.shape[1] for tokens, _ in steps] == [8, 1, 1, 1, 1, 1]
    found = torch.cat([prompt, *(following for _, following in steps)], dim=1)
    wanted = tiny_gpt2.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
    assert torch.equal(found[:, : wanted.shape[1]], wanted)


def test_a_model_without_a_cache_is_refused(tmp_path: Path) -> None:
    model = make_gpt2()
    forward = model.forward
    model.forward = lambda *inputs, **named: forward(*inputs, **{**named, "use_cache": False})
    with pytest.raises(InputError, match=r"no key/value cache.*leave efficiency out"):
        efficiency(model, tmp_path, SHORT)


@pytest.mark.parametrize("length", [8, 9, 64, 1024, 2048])
def test_a_workload_fits_the_positions(length: int) -> None:
    workload = Workload.within(length, batch=2)
    assert workload.prompt >= 1
    assert workload.steps >= 1
    assert workload.prompt + workload.warmup + workload.steps <= length


@pytest.mark.parametrize(("length", "batch", "message"), [(6, 1, "length 6: too short"), (64, 0, "batch 0")])
def test_a_workload_that_cannot_be_is_refused(length: int, batch: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Workload.within(length, batch)
