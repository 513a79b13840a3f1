"""The published ways beside ours: each follows its paper on teachers small enough to check, and each can be trained."""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from conftest import TEXT, VOCAB, make_decoder
from distilling import CORPUS, SETTINGS, Readings
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.flags import parsed
from benchmarks.peers import __main__ as command
from benchmarks.peers.flap import adaptive, flap, flap_parameters, flap_scores
from benchmarks.peers.inputs import inputs_of
from benchmarks.peers.short_gpt import short_gpt
from benchmarks.peers.sizes import fewer_layers, flops_per_token, non_embedding, three_shapes
from benchmarks.peers.slice_gpt import slice_gpt, sliced_parameters
from benchmarks.peers.table import Row, against, best_peers
from benchmarks.peers.wanda import wanda_scores
from benchmarks.peers.ways import Peers
from benchmarks.pruning.minitron import Bench
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.space import SearchSpace
from trials.distill.distill import distill
from trials.estimate import refit_flops, training_flops
from trials.families.lookup import family_of
from trials.families.shapes import shape_of
from trials.preparation import Shared
from trials.prune.importance import ImportanceScores, compute_importance
from trials.recipe import Recipe
from trials.teacher.targets import Targets
from trials.teacher.teacher import Teacher

TOKENS = torch.randint(VOCAB, (24, 32), generator=torch.Generator().manual_seed(5))
LLAMA = make_decoder("llama")
SHAPE = shape_of(LLAMA.config)
FAMILY = family_of(LLAMA.config)
OURS = Architecture.uniform(3, 48, 6, 40, 3)


def scores_of(model: PreTrainedModel, tokens: Tensor = TOKENS) -> ImportanceScores:
    return compute_importance(model, family_of(model.config), tokens)


PEERS = Peers(LLAMA, TOKENS, scores_of(LLAMA))
NAMES = [way.name for way in PEERS.ways(OURS)]
SLICES = [name for name in NAMES if name != "SliceGPT"]


def student(name: str, ours: Architecture = OURS) -> PreTrainedModel:
    (way,) = (way for way in PEERS.ways(ours) if way.name == name)
    return way.make()


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: Tensor = TOKENS) -> Tensor:
    return model(tokens).logits


@torch.no_grad()
def read_by(model: PreTrainedModel, module: nn.Module) -> Tensor:
    """What ``module`` reads of `TOKENS`, (N, n), in float64."""
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].flatten(0, 1).double()))
    model(TOKENS)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("name", SLICES)
def test_a_way_that_removes_nothing_gives_the_teacher_exactly(name: str) -> None:
    assert torch.equal(logits(student(name, SHAPE.full)), logits(LLAMA))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_slice_gpt_without_cutting_gives_the_logits_of_the_teacher(model_type: str, tied: bool) -> None:
    teacher = make_decoder(model_type, tie_word_embeddings=tied)
    torch.testing.assert_close(logits(slice_gpt(teacher, TOKENS, 48)), logits(teacher), rtol=0, atol=1e-4)


def test_slice_gpt_keeps_biases_of_the_output_projections() -> None:
    teacher = make_decoder("llama", attention_bias=True, mlp_bias=True)
    torch.testing.assert_close(logits(slice_gpt(teacher, TOKENS, 48)), logits(teacher), rtol=0, atol=1e-4)


def test_slice_gpt_loses_nothing_when_the_stream_has_fewer_directions() -> None:
    teacher = make_decoder("llama", tie_word_embeddings=False)
    few = torch.linalg.qr(torch.randn(48, 20, generator=torch.Generator().manual_seed(3))).Q
    with torch.no_grad():
        teacher.model.embed_tokens.weight.copy_(teacher.model.embed_tokens.weight @ few @ few.T)
        for layer in FAMILY.layers(teacher):
            for writer in (FAMILY.attention_output(layer), FAMILY.mlp_output(layer)):
                writer.weight.copy_(few @ few.T @ writer.weight)
    torch.testing.assert_close(logits(slice_gpt(teacher, TOKENS, 20)), logits(teacher), rtol=0, atol=1e-3)
    assert (logits(slice_gpt(teacher, TOKENS, 18)) - logits(teacher)).abs().max() > 0.1


def test_the_statistics_are_those_of_all_inputs() -> None:
    for layer, found in zip(FAMILY.layers(LLAMA), inputs_of(LLAMA, FAMILY, TOKENS), strict=True):
        outputs = (FAMILY.attention_output(layer), found.heads), (FAMILY.mlp_output(layer), found.neurons)
        for module, one in outputs:
            rows = read_by(LLAMA, module)
            torch.testing.assert_close(one.mean, rows.mean(dim=0), rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(one.variance, rows.var(dim=0), rtol=1e-5, atol=1e-9)
            torch.testing.assert_close(one.norm, rows.norm(dim=0), rtol=1e-6, atol=1e-7)


def test_wanda_sp_adds_the_scores_of_a_neurons_output_weights() -> None:
    scores = wanda_scores(LLAMA, PEERS.scores, PEERS.inputs)
    for number, layer in enumerate(FAMILY.layers(LLAMA)):
        projection = FAMILY.mlp_output(layer)
        wanted = (projection.weight.abs().double() * read_by(LLAMA, projection).norm(dim=0)).sum(dim=0)
        np.testing.assert_allclose(scores.mlp[number], wanted.numpy(), rtol=1e-5)


def test_flap_scores_are_standardised_variances_times_squared_norms() -> None:
    scores = flap_scores(LLAMA, PEERS.scores, PEERS.inputs)
    for number, layer in enumerate(FAMILY.layers(LLAMA)):
        found = []
        for projection in (FAMILY.attention_output(layer), FAMILY.mlp_output(layer)):
            metric = read_by(LLAMA, projection).var(dim=0) * projection.weight.double().square().sum(dim=0)
            found.append((metric - metric.mean()) / metric.std())
        np.testing.assert_allclose(scores.mlp[number], found[1].numpy(), rtol=1e-4, atol=1e-5)
        groups = found[0].reshape(3, 2 * 12).mean(dim=1)
        np.testing.assert_allclose(scores.heads[number].reshape(3, 2), groups[:, None].expand(3, 2), rtol=1e-4)


@pytest.mark.parametrize("biased", [False, True])
def test_the_biases_of_flap_replace_inputs_that_never_vary(biased: bool) -> None:
    teacher = make_decoder("llama", attention_bias=biased, mlp_bias=biased)
    same = torch.full((4, 32), 7)  # every position reads the same token, so all inputs are constant
    scores, inputs = scores_of(teacher), inputs_of(teacher, FAMILY, same)
    cut = replace(OURS, heads=(4, 6, 2), kv_heads=(2, 3, 1), mlp=(5, 40, 96))
    torch.testing.assert_close(
        logits(flap(teacher, scores, inputs, cut), same), logits(teacher, same), rtol=0, atol=1e-4
    )
    assert (logits(flap(teacher, scores, inputs, cut)) - logits(teacher)).abs().max() > 0.1


def test_the_spread_of_flap_keeps_the_units_with_the_highest_scores() -> None:
    scores, target = PEERS.fluctuations, SHAPE.non_embedding_parameters(OURS)
    found = adaptive(SHAPE, scores, target)
    assert found.depth == SHAPE.layers
    assert not found.is_uniform
    kept: list[float] = []
    gone: list[float] = []
    for layer, (groups, neurons) in enumerate(zip(found.kv_heads, found.mlp, strict=True)):
        for values, count in ((scores.heads[layer, ::2], groups), (scores.mlp[layer], neurons)):
            ordered = sorted(values.tolist(), reverse=True)
            kept += ordered[1:count]  # the best stays in any case
            gone += ordered[max(1, count) :]
    assert min(kept) >= max(gone)
    group = 2 * 48 * 12 * (2 + 1)
    assert 0 <= target - flap_parameters(SHAPE, found) < group + 2 * 48


def test_short_gpt_keeps_the_layers_with_the_highest_block_importance() -> None:
    teacher = make_decoder("llama", num_hidden_layers=5)
    with torch.no_grad():  # two layers that hardly do anything
        for number in (1, 3):
            for writer in (FAMILY.attention_output, FAMILY.mlp_output):
                writer(FAMILY.layers(teacher)[number]).weight.mul_(0.05)
    stream = [read_by(teacher, layer) for layer in FAMILY.layers(teacher)]
    stream.append(read_by(teacher, FAMILY.norms(teacher)[-1]))
    importance = [
        1 - float(nn.functional.cosine_similarity(one, two).mean()) for one, two in itertools.pairwise(stream)
    ]
    best = sorted(sorted(range(5), key=importance.__getitem__)[2:])
    assert best == [0, 2, 4]
    shape = shape_of(teacher.config)
    found = short_gpt(teacher, scores_of(teacher), Architecture.uniform(3, 48, 6, 96, 3))
    for number, layer in zip(best, FAMILY.layers(found), strict=True):
        whole = FAMILY.mlp_output(FAMILY.layers(teacher)[number])
        assert torch.equal(FAMILY.mlp_output(layer).weight, whole.weight)
    assert fewer_layers(shape, non_embedding(found, FAMILY)).depth == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_student_has_the_parameters_that_were_counted_and_nearly_those_of_ours(name: str) -> None:
    model, target = student(name), SHAPE.non_embedding_parameters(OURS)
    built = non_embedding(model, FAMILY)
    counted = {
        "FLAP, uniform neurons": lambda: flap_parameters(SHAPE, Architecture.uniform(3, 48, 6, len_of_mlp(model), 3)),
        "FLAP, its own spread": lambda: flap_parameters(SHAPE, adaptive(SHAPE, PEERS.fluctuations, target)),
        "SliceGPT": lambda: sliced_parameters(SHAPE, model.config.hidden_size),
    }.get(name, lambda: shape_of(model.config).non_embedding_parameters(shape_of(model.config).full))
    assert built == counted()
    assert abs(built / target - 1) < 0.06  # a group of heads is a twentieth of this model


def len_of_mlp(model: PreTrainedModel) -> int:
    return FAMILY.mlp_output(FAMILY.layers(model)[0]).weight.shape[1]


def test_adapters_and_an_untied_embedding_are_counted() -> None:
    teacher = make_decoder("llama", tie_word_embeddings=True)
    model = slice_gpt(teacher, TOKENS, 30)
    total = sum(one.numel() for one in model.parameters())
    assert total == sliced_parameters(shape_of(teacher.config), 30) + 2 * VOCAB * 30


@pytest.mark.parametrize("name", NAMES)
def test_flops_are_those_of_the_matrices(name: str) -> None:
    model = student(name)
    if name == "FLAP, its own spread":
        wanted = SHAPE.flops_per_token(adaptive(SHAPE, PEERS.fluctuations, SHAPE.non_embedding_parameters(OURS)), 32)
    elif name == "SliceGPT":
        width = model.config.hidden_size
        wanted = SHAPE.flops_per_token(replace(SHAPE.full, hidden=width), 32) + 4 * SHAPE.layers * width**2
    else:
        wanted = SHAPE.flops_per_token(shape_of(model.config).full, 32)
    assert flops_per_token(model, FAMILY, 32) == wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_student_can_be_trained(name: str, tmp_path: Path) -> None:
    model = student(name).float()
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    targets = Targets(Teacher(Path(), LLAMA, None, SHAPE, "fingerprint"))  # type: ignore[arg-type]
    settings = replace(SETTINGS, tokens=2560, rungs=(640, 2560))
    run = distill(model, targets, CORPUS, settings, tmp_path, Readings())
    assert run.rungs[2].metrics["kl"] < 0.8 * run.rungs[1].metrics["kl"]
    assert all(not torch.equal(before[key], weight) for key, weight in model.named_parameters())


def test_a_peer_trains_for_the_flops_of_our_refit_and_training() -> None:
    sizes = {"tokens": 4096, "rungs": (4096,), "validation_tokens": 512, "sequence_length": 32, "batch_tokens": 64}
    recipe = Recipe("model", "text", **sizes, learning_rate=1e-3, calibration_samples=24, seed=0)  # type: ignore[arg-type]
    bench = object.__new__(Bench)  # without its teacher and text
    teacher, streams = SimpleNamespace(shape=SHAPE, model=LLAMA), SimpleNamespace(windows=TOKENS)
    bench.recipe, bench.common = recipe, cast(Shared, SimpleNamespace(teacher=teacher, streams=streams))
    other = Architecture.uniform(2, 48, 6, 96, 3)
    tokens = bench.tokens_for_refit(SHAPE.flops_per_token(other, 32), OURS)
    work = training_flops(SHAPE, other, replace(recipe, tokens=tokens, rungs=(tokens,)), "cpu")
    ours = training_flops(SHAPE, OURS, recipe, "cpu") + refit_flops(SHAPE, OURS, recipe, len(TOKENS))
    assert tokens > 4096
    assert abs(work - ours) <= work * 64 / tokens / 2


def test_a_name_gives_its_architecture() -> None:
    for one in (Architecture.uniform(29, 576, 9, 1056, 3), Architecture.uniform(8, 224, 7, 512)):
        assert parsed(one.key) == one
    with pytest.raises(InputError, match="d29-h576"):
        parsed("d29-h576")


def test_three_shapes_cut_layers_widths_and_both_to_just_below_the_share() -> None:
    shape = replace(SHAPE, layers=20, group=1, heads=8, hidden=96, mlp=384)
    sizes = tuple(range(10, 21)), tuple(range(48, 97, 6)), tuple(range(4, 9)), tuple(range(192, 385, 24))
    found = three_shapes(SearchSpace(shape, *sizes), 0.71)
    whole = shape.non_embedding_parameters(shape.full)
    assert all(0.97 * 0.71 <= shape.non_embedding_parameters(one) / whole <= 0.71 for one in found.values())
    assert found["depth"] == Architecture.uniform(14, 96, 8, 384)
    assert found["width"].depth == 20
    assert found["depth and width"].depth < 20
    for name in ("width", "depth and width"):
        assert found[name].hidden < 96
        assert found[name].heads[0] < 8
        assert found[name].mlp[0] < 384


def test_the_best_peer_is_chosen_on_each_side_of_its_own() -> None:
    def row(way: str, own: float, other: float) -> Row:
        losses = {"own": np.full(8, 2 + own), "ptb": np.full(8, 3 + other)}
        return Row(way, "", 1, 1, {"own": own, "ptb": other}, 0.0, losses=losses)

    rows = [row("ours", 0.5, 1.0), row("near", 1.0, 4.0), row("far", 2.0, 0.8)]
    assert {side: one.way for side, one in best_peers(rows).items()} == {"calibrated": "near", "unseen": "far"}
    calibrated, unseen = against(rows)
    assert calibrated.ratio == pytest.approx(0.5)
    assert calibrated.difference.mean == pytest.approx(-0.5)
    assert unseen.ratio == pytest.approx(1.25)
    assert unseen.difference.mean == pytest.approx(0.2)


def test_the_command_trains_everyone_at_equal_flops(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LLAMA.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT * 400)
    (tmp_path / "other.txt").write_text(TEXT.upper() * 40)
    arguments = f"""--model {tmp_path / "model"} --corpus {tmp_path / "text.txt"} --output {tmp_path / "outputs"}
        --sequence-length 32 --batch-tokens 64 --tokens-per-trial 512 --validation-tokens 512 --calibration-samples 8
        --architectures {OURS.key} --texts other={tmp_path / "other.txt"} --train all
        --json {tmp_path / "found.json"}"""
    monkeypatch.setattr(sys, "argv", ["benchmarks.peers", *arguments.split()])
    command.main()
    (table,) = json.loads((tmp_path / "found.json").read_text())["tables"]
    assert [row["way"] for row in table["before"]] == [row["way"] for row in table["after"]] == ["ours", *NAMES]
    assert all(set(row["excess"]) == {"text.txt", "other"} for row in table["before"])
    assert all(math.isfinite(row["unseen"]) for row in table["after"])
    ours, *peers = table["after"]
    assert ours["tokens"] == 512
    assert all(row["tokens"] > 512 and row["tokens"] % 64 == 0 for row in peers)
