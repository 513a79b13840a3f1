"""A rotated model against its original: equal if nothing is lost, close if little is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import make_decoder, make_gpt2
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from trials.families.base import Family
from trials.families.lookup import FAMILIES, family_of
from trials.families.shapes import shape_of
from trials.prune.importance import compute_importance
from trials.prune.prune import prune, student_from
from trials.prune.rotate import rotated, rotation_to
from trials.storage.cache import Cache
from trials.teacher.streams import load_streams
from trials.teacher.teacher import Teacher

TOKENS = torch.randint(320, (24, 32), generator=torch.Generator().manual_seed(5))
TEACHERS = {
    **{name: name for name in FAMILIES},
    "llama-tied": "llama",
    "gpt_neox-sequential": "gpt_neox",
}


def make_teacher(name: str) -> PreTrainedModel:
    """A teacher with random norms and large embeddings, whose final norm has one weight for all channels."""
    changes: dict[str, object] = {}
    if name == "llama-tied":
        changes = {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
    if name == "gpt_neox-sequential":
        changes = {"use_parallel_residual": False}
    model = make_gpt2() if name == "gpt2" else make_decoder(TEACHERS[name], **changes)
    generator = torch.Generator().manual_seed(3)
    family = family_of(model.config)
    with torch.no_grad():
        for norm in family.norms(model):
            for parameter in norm.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        family.norms(model)[-1].weight.fill_(1.3)
        for module in family.embeddings(model):
            module.weight.mul_(30)  # far above the epsilon that norms add to a mean square
    return model


def embedded(model: PreTrainedModel, family: Family, width: int) -> Tensor:
    """Directions (H, H) whose first ``width`` span every possible stream of ``model``.

    Everything that writes to the stream is projected to this span. For a LayerNorm it excludes the mean.
    """
    hidden, centred = shape_of(model.config).hidden, isinstance(family.norms(model)[-1], nn.LayerNorm)
    start = torch.randn(hidden, hidden, generator=torch.Generator().manual_seed(7)).double()
    if centred:
        start -= start.mean(dim=0)
    directions, _ = torch.linalg.qr(start)
    inside = (directions[:, :width] @ directions[:, :width].T).float()
    with torch.no_grad():
        for module in family.embeddings(model):
            module.weight.copy_(module.weight @ inside)
        for layer in family.layers(model):
            for writer in (family.attention_output(layer), family.mlp_output(layer)):
                matrix = writer.weight if type(writer).__name__ == "Conv1D" else writer.weight.T
                matrix.copy_(matrix @ inside)
                if writer.bias is not None:
                    writer.bias.copy_(writer.bias @ inside)
        head = family.norms(model)[-1]
        if centred:
            head.bias.copy_(inside @ head.bias)
    return directions.float()


@pytest.mark.parametrize("name", TEACHERS)
def test_a_narrower_stream_that_holds_all_gives_the_same_logits(name: str) -> None:
    model = make_teacher(name)
    family = family_of(model.config)
    shape, room = shape_of(model.config), 20
    directions = embedded(model, family, room)
    width = room + isinstance(family.norms(model)[-1], nn.LayerNorm)
    full = shape.full
    architecture = Architecture(full.depth, width, full.heads, full.mlp, full.kv_heads)
    rotation = rotation_to(model, family, directions, width)
    student = student_from(model.config, architecture, rotated(model, family, rotation))
    expected = model(TOKENS).logits
    torch.testing.assert_close(student(TOKENS).logits, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_the_whole_stream_turned_is_the_same_model(name: str) -> None:
    """The gains of the final norm are an exception: they are applied to the stream before it."""
    model = make_teacher(name)
    family = family_of(model.config)
    shape, states = shape_of(model.config), []
    with torch.no_grad():
        family.norms(model)[-1].weight.mul_(torch.rand(shape.hidden) + 0.5)
        directions = torch.linalg.qr(torch.randn(shape.hidden, shape.hidden) - 0.1).Q
    if isinstance(family.norms(model)[-1], nn.LayerNorm):
        directions = embedded(make_teacher(name), family, 1)
    rotation = rotation_to(model, family, directions, shape.hidden)
    student = student_from(model.config, shape.full, rotated(model, family, rotation))
    for one in (model, student):
        family.norms(one)[-1].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].flatten(0, 1)))
        one(TOKENS)
    theirs, ours = states
    torch.testing.assert_close(ours, rotation.turned(theirs), rtol=0, atol=2e-4 * float(theirs.abs().max()))
    if name == "llama":
        turned = family.norms(student)[-1](rotation.turned_last(theirs)) @ family.output_weight(student).T
        scale = (theirs * rotation.gain).norm(dim=1) / theirs.norm(dim=1)  # a norm divides by it
        expected = family.norms(model)[-1](theirs) @ family.output_weight(model).T / scale[:, None]
        torch.testing.assert_close(turned, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_whole_stream_is_not_turned_at_all(name: str) -> None:
    """The rotation is the identity for all directions. The weights are the teacher's, with signs from the norms."""
    model = make_teacher(name)
    family = family_of(model.config)
    hidden, centred = shape_of(model.config).hidden, name == "gpt2"
    directions = embedded(model, family, hidden) if centred else torch.linalg.qr(torch.randn(hidden, hidden) + 0.1).Q
    rotation = rotation_to(model, family, directions, hidden)
    torch.testing.assert_close(rotation.projection, torch.eye(hidden) - centred / hidden, rtol=0, atol=1e-5)
    if centred:
        return
    state = rotated(model, family, rotation)
    norm, reader = (f"model.layers.1.{one}.weight" for one in ("input_layernorm", "self_attn.q_proj"))
    gains, matrix = model.get_parameter(norm).detach(), model.get_parameter(reader).detach()
    assert (gains < 0).any() or (gains > 0).all()
    torch.testing.assert_close(state[norm], gains.abs(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state[reader], matrix * gains.sign(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("width", [12, 40])
def test_channels_are_as_near_to_those_of_the_teacher_as_a_rotation_of_them_can_be(name: str, width: int) -> None:
    model = make_teacher(name)
    family = family_of(model.config)
    hidden, centred = shape_of(model.config).hidden, name == "gpt2"
    directions = embedded(make_teacher("gpt2"), FAMILIES["gpt2"], hidden)
    projection = rotation_to(model, family, directions, width).projection
    span = directions[:, : width - centred] @ directions[:, : width - centred].T
    torch.testing.assert_close(projection.T @ projection, span, rtol=0, atol=1e-5)
    channels = torch.argsort(span.diagonal(), descending=True)[:width].sort().values
    wanted, allowed = torch.eye(hidden)[channels], torch.eye(width) - centred / width
    for seed in range(20):
        skew = allowed @ torch.randn(width, width, generator=torch.Generator().manual_seed(seed)) @ allowed
        for size in (1.0, 0.02):
            other = torch.linalg.matrix_exp(size * (skew - skew.T)) @ projection
            assert (projection - wanted).norm() < (other - wanted).norm()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_weights_behind_a_norm_are_as_large_as_the_teachers(name: str) -> None:
    """All channels of a reader have similar weights. Channels with small norm weights keep small norm weights."""
    model = make_teacher(name)
    family = family_of(model.config)
    hidden, held = shape_of(model.config).hidden, slice(None, None, 7)
    with torch.no_grad():
        for norm in family.norms(model)[:-1]:
            norm.weight[held] *= 0.01
    rotation = rotation_to(model, family, embedded(make_teacher("gpt2"), FAMILIES["gpt2"], hidden), hidden - 1)
    student = rotated(model, family, rotation)
    reader, norm, inputs = {
        "llama": ("model.layers.1.mlp.up_proj.weight", "model.layers.1.post_attention_layernorm.weight", 1),
        "gpt2": ("transformer.h.1.mlp.c_fc.weight", "transformer.h.1.ln_2.weight", 0),
    }[name]
    before, after = (one.norm(dim=1 - inputs) for one in (model.get_parameter(reader), student[reader]))
    assert 0.7 * float(before.min()) < float(after.min())
    assert float(after.max()) < 1.5 * float(before.max())
    assert float(student[norm].min()) < 0.3 * float(student[norm].median())


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_stream_of_few_directions_is_found_and_kept(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = make_teacher(name)
    family = family_of(model.config)
    shape = shape_of(model.config)
    embedded(model, family, 20)
    teacher = Teacher(tmp_path, model, tiny_tokenizer, shape, "fingerprint")
    streams = load_streams(teacher, TOKENS.numpy(), Cache(tmp_path))
    scores, full = compute_importance(model, family, TOKENS), shape.full
    narrow = Architecture(full.depth, 21, full.heads, full.mlp, full.kv_heads)
    sliced, turned = (prune(model, scores, narrow, one)(TOKENS).logits for one in (None, streams))
    expected = model(TOKENS).logits
    assert (turned - expected).square().mean() < 0.05 * (sliced - expected).square().mean()


@pytest.mark.parametrize("width", [1, 2, 7])
def test_a_layer_norm_takes_nothing_from_a_turned_stream(width: int) -> None:
    model = make_teacher("gpt2")
    family = family_of(model.config)
    rotation = rotation_to(model, family, embedded(model, family, 20), width)
    turned = rotation.turned(torch.randn(9, 48))
    torch.testing.assert_close(turned.mean(dim=1), torch.zeros(9), rtol=0, atol=1e-6)
    product = rotation.projection @ rotation.projection.T
    torch.testing.assert_close(product, torch.eye(width) - 1 / width, rtol=0, atol=1e-5)


def test_a_norm_whose_addition_has_nowhere_to_go_is_refused() -> None:
    model = make_decoder("gpt_neox", attention_bias=False)
    family = family_of(model.config)
    rotation = rotation_to(model, family, torch.eye(shape_of(model.config).hidden), 8)
    with pytest.raises(InputError, match="without a bias"):
        rotated(model, family, rotation)
