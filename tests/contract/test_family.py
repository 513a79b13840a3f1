"""What every model family must do. A new family adds its teachers and its masked reference below."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gpt2_reference
import pytest
import torch
from conftest import make_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, PretrainedConfig, PreTrainedModel

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.shape import ModelShape
from trials.families import FAMILIES, Family, Kept, family_of
from trials.importance import ImportanceScores, compute_importance
from trials.prune import choose, prune


@dataclass(frozen=True)
class Case:
    """A teacher, its scores on random text, and a second implementation of its masked forward pass."""

    teacher: PreTrainedModel
    masked_logits: Callable[[PreTrainedModel, Tensor, Kept], Tensor]
    scores: ImportanceScores

    @property
    def family(self) -> Family:
        return family_of(self.teacher.config)

    @property
    def shape(self) -> ModelShape:
        return self.family.shape(self.teacher.config)

    def tokens(self, count: int = 2, length: int = 17, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.shape.vocab, (count, length), generator=generator)


def make_case(teacher: PreTrainedModel, masked_logits: Callable[[PreTrainedModel, Tensor, Kept], Tensor]) -> Case:
    tokens = torch.randint(teacher.config.vocab_size, (4, 16), generator=torch.Generator().manual_seed(9))
    return Case(teacher, masked_logits, compute_importance(teacher, family_of(teacher.config), tokens))


CASES = {
    "gpt2": lambda: make_case(make_gpt2(), gpt2_reference.masked_logits),
    "gpt2-untied": lambda: make_case(make_gpt2(tie_word_embeddings=False), gpt2_reference.masked_logits),
}
KNOWN_COUNTS: dict[str, tuple[PretrainedConfig, dict[Architecture, int]]] = {
    "gpt2": (
        GPT2Config(n_layer=24, n_embd=1024, n_head=16),
        {
            Architecture.uniform(24, 1024, 16, 4096): 354_823_168,
            Architecture.uniform(24, 1024, 12, 2560): 254_104_576,
            Architecture.uniform(24, 1024, 10, 3072): 266_690_560,
            Architecture.uniform(20, 1024, 12, 3584): 262_469_632,
        },
    )
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return shared_case(request.param)


@cache
def shared_case(name: str) -> Case:
    return CASES[name]()


def axes(shape: ModelShape) -> dict[str, Architecture]:
    """Each axis alone and all together, alike in all layers and by layer, stock and not."""
    layers, hidden, heads, mlp = shape.layers, shape.hidden, shape.heads, shape.mlp
    narrow = (heads - 1) * shape.head_dim
    by_layer = tuple(1 + layer % heads for layer in range(layers)), tuple(mlp - 7 * layer for layer in range(layers))
    return {
        "depth": Architecture.uniform(layers - 1, hidden, heads, mlp),
        "hidden": Architecture.uniform(layers, hidden - 5, heads, mlp),
        "heads": Architecture.uniform(layers, hidden, heads - 1, mlp),
        "mlp": Architecture.uniform(layers, hidden, heads, mlp - 11),
        "together, stock": Architecture.uniform(layers - 1, narrow, heads - 1, mlp // 2),
        "together": Architecture.uniform(layers - 1, narrow + 3, heads - 1, mlp // 2),
        "by layer": Architecture(layers, hidden - 3, *by_layer),
        "smallest": Architecture.uniform(1, 1, 1, 1),
    }


AXES = tuple(axes(ModelShape("", 3, 48, 4, 12, 96, 1, 1, True)))


def random_architecture(shape: ModelShape, random_: random.Random, narrowest: int = 1) -> Architecture:
    depth, hidden = random_.randint(1, shape.layers), random_.randint(narrowest, shape.hidden)
    if random_.random() < 0.3:
        heads = random_.randint(1, shape.heads)
        hidden = min(heads * shape.head_dim, shape.hidden) if random_.random() < 0.5 else hidden
        return Architecture.uniform(depth, hidden, heads, random_.randint(1, shape.mlp))
    heads_by_layer = tuple(random_.randint(1, shape.heads) for _ in range(depth))
    return Architecture(depth, hidden, heads_by_layer, tuple(random_.randint(1, shape.mlp) for _ in range(depth)))


def logits(case: Case, model: PreTrainedModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


def test_every_family_is_in_this_suite() -> None:
    assert {shared_case(name).teacher.config.model_type for name in CASES} == set(FAMILIES) == set(KNOWN_COUNTS)


@pytest.mark.parametrize("axis", AXES)
def test_pruned_equals_masked_teacher(case: Case, axis: str) -> None:
    architecture = axes(case.shape)[axis]
    student = prune(case.teacher, case.scores, architecture)
    expected = case.masked_logits(case.teacher, case.tokens(), choose(case.scores, architecture))
    torch.testing.assert_close(logits(case, student, case.tokens()).double(), expected, rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(random_=st.randoms(use_true_random=False), seed=st.integers(0, 1000))
def test_pruned_equals_masked_teacher_for_any_architecture_and_scores(random_: random.Random, seed: int) -> None:
    for case in map(shared_case, CASES):
        generator = torch.Generator().manual_seed(seed)
        scores = ImportanceScores(
            **{
                name: torch.rand(getattr(case.scores, name).shape, generator=generator).numpy()
                for name in ("layers", "hidden", "heads", "mlp")
            }
        )
        # LayerNorm over two or three channels magnifies float32's rounding beyond any tolerance worth having.
        architecture = random_architecture(case.shape, random_, narrowest=8)
        expected = case.masked_logits(case.teacher, case.tokens(seed=seed), choose(scores, architecture))
        found = logits(case, prune(case.teacher, scores, architecture), case.tokens(seed=seed))
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", AXES)
def test_cached_generation_equals_masked_teacher(case: Case, axis: str) -> None:
    architecture = axes(case.shape)[axis]
    student = prune(case.teacher, case.scores, architecture)
    prompt = case.tokens(length=5)
    with torch.no_grad():
        made = student.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=True,
        )
    assert made.past_key_values is not None
    expected = case.masked_logits(case.teacher, made.sequences, choose(case.scores, architecture))
    found = torch.stack(made.logits, dim=1).double()
    torch.testing.assert_close(found, expected[:, 4:-1], rtol=0, atol=1e-5)


def test_pruning_to_full_size_is_the_identity(case: Case) -> None:
    student = prune(case.teacher, case.scores, case.shape.full)
    assert type(student) is type(case.teacher)
    theirs, ours = case.teacher.state_dict(), student.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(logits(case, student, case.tokens()), logits(case, case.teacher, case.tokens()))
    assert case.family.shape(student.config) == case.shape


@pytest.mark.parametrize("axis", ["depth", "by layer"])
def test_student_is_whole_and_independent(case: Case, axis: str) -> None:
    student = prune(case.teacher, case.scores, axes(case.shape)[axis])
    before = {name: weight.clone() for name, weight in case.teacher.state_dict().items()}
    assert all(weight.requires_grad and not weight.is_meta for weight in student.parameters())
    assert not any(buffer.is_meta for buffer in student.buffers())
    assert not student.training
    tied = student.get_output_embeddings().weight is student.get_input_embeddings().weight
    assert tied == case.shape.tied
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1)
    assert all(torch.equal(before[name], weight) for name, weight in case.teacher.state_dict().items())
    assert case.family.shape(case.teacher.config) == case.shape


@pytest.mark.parametrize("axis", ["mlp", "by layer"])
def test_student_keeps_the_dtype(axis: str) -> None:
    for make in CASES.values():
        case = make()
        student = prune(case.teacher.bfloat16(), case.scores, axes(case.shape)[axis])
        assert {weight.dtype for weight in student.parameters()} == {torch.bfloat16} == {student.config.dtype}


@pytest.mark.parametrize("axis", AXES)
def test_saved_student_loads_equal_and_complete(case: Case, axis: str, tmp_path: Path) -> None:
    architecture = axes(case.shape)[axis]
    student = prune(case.teacher, case.scores, architecture)
    student.save_pretrained(tmp_path)
    stock = case.shape.is_stock(architecture)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=not stock, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(logits(case, loaded, case.tokens()), logits(case, student, case.tokens()))
    assert bool(list(tmp_path.glob("*.py"))) == (not stock)


def test_parameter_counts(case: Case) -> None:
    random_ = random.Random(7)
    for number in range(200 // len(CASES)):
        architecture = random_architecture(case.shape, random_)
        model = case.family.build(case.teacher.config, architecture)
        assert case.shape.parameters(architecture) == sum(weight.numel() for weight in model.parameters())
        if number % 20 == 0:
            model = prune(case.teacher, case.scores, architecture)
            assert case.shape.parameters(architecture) == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("family", KNOWN_COUNTS)
def test_parameter_counts_of_known_models(family: str) -> None:
    config, counts = KNOWN_COUNTS[family]
    shape = FAMILIES[family].shape(config)
    for architecture, expected in counts.items():
        model = FAMILIES[family].build(config, architecture)
        assert sum(weight.numel() for weight in model.parameters()) == expected == shape.parameters(architecture)


@pytest.mark.parametrize("axis", AXES)
def test_flops_are_those_counted(case: Case, axis: str) -> None:
    architecture, length = axes(case.shape)[axis], 16
    student = prune(case.teacher, case.scores, architecture)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused kernels go uncounted on CPU
        logits(case, student, case.tokens(1, length))
    assert counter.get_total_flops() == length * case.shape.flops_per_token(architecture, length)


@pytest.mark.parametrize("axis", ["depth", "by layer"])
def test_cache_size_is_that_built(case: Case, axis: str) -> None:
    architecture = axes(case.shape)[axis]
    student = prune(case.teacher, case.scores, architecture)
    cache = student(case.tokens(1, 10), use_cache=True).past_key_values
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert stored == 10 * case.shape.kv_cache_bytes(architecture, dtype_bytes=4)


@pytest.mark.parametrize("axis", ["depth", "by layer"])
def test_backbone_and_output_weight_make_the_logits(case: Case, axis: str) -> None:
    student = prune(case.teacher, case.scores, axes(case.shape)[axis])
    states = case.family.backbone(student, case.tokens())
    expected = student(case.tokens()).logits
    torch.testing.assert_close(states @ case.family.output_weight(student).T, expected, rtol=0, atol=1e-5)
    states.sum().backward()
    assert all(weight.grad is not None for name, weight in student.named_parameters() if "lm_head" not in name)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("axis", ["depth", "by layer"])
def test_backbone_does_not_see_padding(case: Case, axis: str, side: str) -> None:
    student = prune(case.teacher, case.scores, axes(case.shape)[axis])
    tokens, padding = case.tokens(2, 9), case.tokens(2, 4, seed=1)
    real = torch.zeros(2, 13, dtype=torch.bool)
    places = slice(4, None) if side == "left" else slice(0, 9)
    real[:, places] = True
    padded = torch.cat([padding, tokens] if side == "left" else [tokens, padding], dim=1)
    with torch.no_grad():
        found = case.family.backbone(student, padded, real)[:, places]
        torch.testing.assert_close(found, case.family.backbone(student, tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", ["depth", "hidden", "heads", "mlp"])
def test_architecture_larger_than_the_teacher_is_refused(case: Case, axis: str) -> None:
    full = case.shape.full
    sizes = {"depth": full.depth, "hidden": full.hidden, "heads": full.heads[0], "mlp": full.mlp[0]}
    larger = Architecture.uniform(**{**sizes, axis: sizes[axis] + 1})
    with pytest.raises(InputError, match=f"{axis} {sizes[axis] + 1} exceeds the teacher's {sizes[axis]}"):
        prune(case.teacher, case.scores, larger)


def test_unknown_model_type_is_refused() -> None:
    class Other(PretrainedConfig):
        model_type = "mamba"

    with pytest.raises(InputError, match=r"'mamba'.*gpt2"):
        family_of(Other())
