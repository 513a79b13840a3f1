"""The contract of model families. A new family adds its teachers to `CASES` and `KNOWN_COUNTS` below."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gpt2_reference
import pytest
import rotary_reference
import torch
from conftest import make_decoder, make_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, PretrainedConfig, PreTrainedModel

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.shape import ModelShape
from trials.families.base import Family, Kept
from trials.families.lookup import FAMILIES, family_of
from trials.families.shapes import SHAPES, by_layer, settings_of, shape_of
from trials.prune.importance import ImportanceScores, compute_importance
from trials.prune.prune import choose, prune, student_from


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
        return shape_of(self.teacher.config)

    def choose(self, architecture: Architecture, scores: ImportanceScores | None = None) -> Kept:
        return choose(scores or self.scores, architecture, self.shape.group)

    def tokens(self, count: int = 2, length: int = 17, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.shape.vocab, (count, length), generator=generator)


def make_case(teacher: PreTrainedModel, masked_logits: Callable[[PreTrainedModel, Tensor, Kept], Tensor]) -> Case:
    tokens = torch.randint(teacher.config.vocab_size, (4, 16), generator=torch.Generator().manual_seed(9))
    return Case(teacher, masked_logits, compute_importance(teacher, family_of(teacher.config), tokens))


def rotary(model_type: str, **changes: object) -> Callable[[], Case]:
    return lambda: make_case(make_decoder(model_type, **changes), rotary_reference.masked_logits)


WINDOW = 6  # shorter than the text of the tests
CASES = {
    "gpt2": lambda: make_case(make_gpt2(), gpt2_reference.masked_logits),
    "gpt2-untied": lambda: make_case(make_gpt2(tie_word_embeddings=False), gpt2_reference.masked_logits),
    "llama": rotary("llama", tie_word_embeddings=True),
    "llama-biased": rotary("llama", attention_bias=True, mlp_bias=True),
    "mistral": rotary("mistral", sliding_window=None),
    "qwen2": rotary("qwen2", num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": rotary("qwen3", attention_bias=True),
    "seed_oss": rotary("seed_oss", residual_dropout=0.0, tie_word_embeddings=True),
    "seed_oss-biased": rotary("seed_oss", attention_bias=False, attention_out_bias=True, mlp_bias=True),
    "mistral-windowed": rotary("mistral", sliding_window=WINDOW),
    "qwen2-windowed": rotary("qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=0),
    "qwen3-windowed": rotary("qwen3", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=0),
    "qwen2-mixed": rotary("qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3-mixed": rotary(
        "qwen3",
        use_sliding_window=True,
        sliding_window=WINDOW,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
    "gpt_neox": rotary("gpt_neox", rotary_pct=0.5),
    "gpt_neox-sequential": rotary("gpt_neox", rotary_pct=0.5, use_parallel_residual=False, tie_word_embeddings=True),
}


def config_of(model_type: str, **values: Any) -> Any:
    """The configuration of a small teacher, with ``values`` as a config.json may have them."""
    return (make_gpt2(**values) if model_type == "gpt2" else make_decoder(model_type, **values)).config


def published(model_type: str, layers: int, hidden: int, heads: int, mlp: int, vocab: int, **others: object) -> Any:
    """The configuration of a published model."""
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return AutoConfig.for_model(model_type, intermediate_size=mlp, vocab_size=vocab, **sizes, **others)


KNOWN_COUNTS: dict[str, tuple[PretrainedConfig, dict[Architecture, int]]] = {
    "gpt2": (
        GPT2Config(n_layer=24, n_embd=1024, n_head=16),
        {
            Architecture.uniform(24, 1024, 16, 4096): 354_823_168,
            Architecture.uniform(24, 1024, 12, 2560): 254_104_576,
            Architecture.uniform(24, 1024, 10, 3072): 266_690_560,
            Architecture.uniform(20, 1024, 12, 3584): 262_469_632,
        },
    ),
    "llama": (  # SmolLM2-135M
        published("llama", 30, 576, 9, 1536, 49_152, num_key_value_heads=3, tie_word_embeddings=True),
        {Architecture.uniform(30, 576, 9, 1536, 3): 134_515_008},
    ),
    "mistral": (  # Mistral-7B-v0.1
        published("mistral", 32, 4096, 32, 14_336, 32_000, num_key_value_heads=8),
        {Architecture.uniform(32, 4096, 32, 14_336, 8): 7_241_732_096},
    ),
    "qwen2": (  # Qwen2.5-0.5B
        published("qwen2", 24, 896, 14, 4864, 151_936, num_key_value_heads=2, tie_word_embeddings=True),
        {Architecture.uniform(24, 896, 14, 4864, 2): 494_032_768},
    ),
    "qwen3": (  # Qwen3-0.6B
        published("qwen3", 28, 1024, 16, 3072, 151_936, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True),
        {Architecture.uniform(28, 1024, 16, 3072, 8): 596_049_920},
    ),
    "seed_oss": (  # Seed-OSS-36B
        published("seed_oss", 64, 5120, 80, 27_648, 155_136, num_key_value_heads=8, head_dim=128),
        {Architecture.uniform(64, 5120, 80, 27_648, 8): 36_151_104_512},
    ),
    "gpt_neox": (published("gpt_neox", 6, 512, 8, 2048, 50_304), {Architecture.uniform(6, 512, 8, 2048): 70_426_624}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return shared_case(request.param)


@cache
def shared_case(name: str) -> Case:
    return CASES[name]()


def axes(shape: ModelShape) -> dict[str, Architecture]:
    """Architectures that reduce each axis alone and all together, uniform and by layer, stock and custom."""
    layers, hidden, group, mlp = shape.layers, shape.hidden, shape.group, shape.mlp
    kv, fewer = shape.kv_heads, max(1, shape.group - 1)
    full, heads = shape.full, (kv - 1) * group
    square = min(heads * shape.head_dim, hidden - 12)
    by_layer = [1 + layer % kv for layer in range(layers)]
    members = [group - layer % group for layer in range(layers)]
    return {
        "depth": Architecture.uniform(layers - 1, hidden, full.heads[0], mlp, kv),
        "hidden": Architecture.uniform(layers, hidden - 5, full.heads[0], mlp, kv),
        "heads": Architecture.uniform(layers, hidden, heads, mlp, kv - 1),
        "heads of a group": Architecture.uniform(layers, hidden, kv * fewer, mlp, kv),
        "mlp": Architecture.uniform(layers, hidden, full.heads[0], mlp - 11, kv),
        "together, stock": Architecture.uniform(layers - 1, square, heads, mlp // 2, kv - 1),
        "together": Architecture.uniform(layers - 1, square + 3, heads, mlp // 2, kv - 1),
        "by layer": Architecture(
            layers,
            hidden - 3,
            tuple(one * many for one, many in zip(by_layer, members, strict=True)),
            tuple(mlp - 7 * layer for layer in range(layers)),
            tuple(by_layer),
        ),
        "smallest": Architecture.uniform(1, 1, 1, 1),
    }


AXES = tuple(axes(ModelShape("", 3, 48, 4, 12, 96, 1, 1, True)))


def random_architecture(shape: ModelShape, random_: random.Random, narrowest: int = 1) -> Architecture:
    depth, hidden = random_.randint(1, shape.layers), random_.randint(narrowest, shape.hidden)
    if random_.random() < 0.3:
        kv, members = random_.randint(1, shape.kv_heads), random_.randint(1, shape.group)
        hidden = min(kv * members * shape.head_dim, shape.hidden) if random_.random() < 0.5 else hidden
        return Architecture.uniform(depth, hidden, kv * members, random_.randint(1, shape.mlp), kv)
    kv_heads = tuple(random_.randint(1, shape.kv_heads) for _ in range(depth))
    heads = tuple(kv * random_.randint(1, shape.group) for kv in kv_heads)
    return Architecture(depth, hidden, heads, tuple(random_.randint(1, shape.mlp) for _ in range(depth)), kv_heads)


def logits(case: Case, model: PreTrainedModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


def test_every_family_is_in_this_suite() -> None:
    cases = {shared_case(name).teacher.config.model_type for name in CASES}
    assert cases == set(FAMILIES) == set(SHAPES) == set(KNOWN_COUNTS)


@pytest.mark.parametrize("axis", AXES)
def test_pruned_equals_masked_teacher(case: Case, axis: str) -> None:
    architecture = axes(case.shape)[axis]
    student = prune(case.teacher, case.scores, architecture)
    expected = case.masked_logits(case.teacher, case.tokens(), case.choose(architecture))
    torch.testing.assert_close(logits(case, student, case.tokens()).double(), expected, rtol=0, atol=2e-5)


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
        # LayerNorm over two or three channels magnifies float32's rounding too much for a useful tolerance.
        architecture = random_architecture(case.shape, random_, narrowest=8)
        expected = case.masked_logits(case.teacher, case.tokens(seed=seed), case.choose(architecture, scores))
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
    expected = case.masked_logits(case.teacher, made.sequences, case.choose(architecture))
    found = torch.stack(made.logits, dim=1).double()
    torch.testing.assert_close(found, expected[:, 4:-1], rtol=0, atol=1e-5)


def test_pruning_to_full_size_is_the_identity(case: Case) -> None:
    student = prune(case.teacher, case.scores, case.shape.full)
    assert type(student) is type(case.teacher)
    theirs, ours = case.teacher.state_dict(), student.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(logits(case, student, case.tokens()), logits(case, case.teacher, case.tokens()))
    assert shape_of(student.config) == case.shape


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
    assert shape_of(case.teacher.config) == case.shape


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
    rebuilt = student_from(case.teacher.config, architecture, student.state_dict(), by_layer(student.config))
    for one in (loaded, rebuilt):
        # The kernel for a small matrix, and so the last bit, depends on where in memory its weights are.
        torch.testing.assert_close(
            logits(case, one, case.tokens()), logits(case, student, case.tokens()), rtol=0, atol=1e-6
        )
        assert all(torch.equal(weight, one.state_dict()[name]) for name, weight in student.state_dict().items())
    assert bool(list(tmp_path.glob("*.py"))) == (not stock)


def test_parameter_counts(case: Case) -> None:
    random_ = random.Random(7)
    for number in range(100):
        architecture = random_architecture(case.shape, random_)
        first = settings_of(case.teacher.config, range(architecture.depth))
        model = case.family.build(case.teacher.config, architecture, first)
        assert case.shape.parameters(architecture) == sum(weight.numel() for weight in model.parameters())
        if number % 20 == 0:
            model = prune(case.teacher, case.scores, architecture)
            assert case.shape.parameters(architecture) == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("family", KNOWN_COUNTS)
def test_parameter_counts_of_known_models(family: str) -> None:
    config, counts = KNOWN_COUNTS[family]
    shape = shape_of(config)
    for architecture, expected in counts.items():
        model = FAMILIES[family].build(config, architecture)
        assert sum(weight.numel() for weight in model.parameters()) == expected == shape.parameters(architecture)


@pytest.mark.parametrize("axis", AXES)
def test_flops_are_those_counted(case: Case, axis: str) -> None:
    architecture, length = axes(case.shape)[axis], 16
    student = prune(case.teacher, case.scores, architecture)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused CPU kernels are not counted
        logits(case, student, case.tokens(1, length))
    assert counter.get_total_flops() == length * case.shape.flops_per_token(architecture, length)


@pytest.mark.parametrize("axis", ["depth", "by layer"])
def test_cache_size_is_that_built(case: Case, axis: str) -> None:
    architecture = axes(case.shape)[axis]
    student = prune(case.teacher, case.scores, architecture)
    cache = student(case.tokens(1, 10), use_cache=True).past_key_values
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    windows = [rotary_reference.window_of(student.config, layer) for layer in range(architecture.depth)]
    held = [10 if window is None else window - 1 for window in windows]  # a window forgets what no later token can see
    sizes = [2 * 4 * heads * case.shape.head_dim for heads in architecture.kv_heads]  # bytes a token
    assert stored == sum(tokens * size for tokens, size in zip(held, sizes, strict=True))
    assert sum(sizes) == case.shape.kv_cache_bytes(architecture, dtype_bytes=4)


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


def test_groups_stay_whole(case: Case) -> None:
    for architecture in axes(case.shape).values():
        kept = case.choose(architecture)
        for heads, groups in zip(kept.heads, kept.kv_heads, strict=True):
            members = (heads // case.shape.group).tolist()
            assert sorted(set(members)) == groups.tolist()
            assert len({members.count(group) for group in groups.tolist()}) == 1


@pytest.mark.parametrize("axis", ["depth", "hidden", "heads", "mlp"])
def test_architecture_larger_than_the_teacher_is_refused(case: Case, axis: str) -> None:
    full = case.shape.full
    sizes = {"depth": full.depth, "hidden": full.hidden, "heads": full.heads[0], "mlp": full.mlp[0]}
    larger = Architecture.uniform(
        **{**sizes, axis: sizes[axis] + 1}, kv_heads=1 if axis == "heads" else case.shape.kv_heads
    )
    with pytest.raises(InputError, match=f"{axis} {sizes[axis] + 1} exceeds the teacher's {sizes[axis]}"):
        prune(case.teacher, case.scores, larger)


@pytest.mark.parametrize("axis", AXES)
def test_settings_by_layer_are_those_of_the_kept_layers(case: Case, axis: str, tmp_path: Path) -> None:
    architecture = axes(case.shape)[axis]
    student = prune(case.teacher, case.scores, architecture)
    student.save_pretrained(tmp_path)
    stored = AutoConfig.from_pretrained(tmp_path, trust_remote_code=not case.shape.is_stock(architecture))
    kept = case.choose(architecture).layers.tolist()
    kinds = getattr(case.teacher.config, "layer_types", None)
    for config in (student.config, stored):
        assert getattr(config, "layer_types", None) == (kinds and [kinds[layer] for layer in kept])
        for place, layer in enumerate(kept):
            windows = [rotary_reference.window_of(*one) for one in ((config, place), (case.teacher.config, layer))]
            assert "gpt" in config.model_type or windows[0] == windows[1]
    if kinds is not None and stored.model_type != "seed_oss":  # programs that do not read layer_types read this
        own = ["sliding" in kinds[layer] for layer in kept]
        assert stored.max_window_layers == (own.index(True) if any(own) else len(kept))


@pytest.mark.parametrize("model_type", SHAPES)
def test_lists_that_transformers_does_not_know_follow_the_kept_layers(model_type: str) -> None:
    config = config_of(model_type, no_rope_layers=[1, 0, 3])
    student = FAMILIES[model_type].build(config, two_layers(config), settings_of(config, [0, 2]))
    assert student.config.no_rope_layers == [1, 3]
    with pytest.raises(ValueError, match="the no_rope_layers of the kept layers must be given"):
        FAMILIES[model_type].build(config, two_layers(config))


def two_layers(config: Any) -> Architecture:
    full = shape_of(config).full
    return Architecture.uniform(2, full.hidden, full.heads[0], full.mlp[0], full.kv_heads[0])


@pytest.mark.parametrize("model_type", SHAPES)
def test_sizes_by_layer_of_transformers_are_refused_by_name(model_type: str) -> None:
    config = config_of(model_type)
    config.per_layer_config = {0: {"n_inner" if model_type == "gpt2" else "intermediate_size": 32}}
    with pytest.raises(InputError, match=r"per_layer_config.* cannot be pruned; take one whose layers are alike"):
        shape_of(config)


@pytest.mark.parametrize("model_type", SHAPES)
def test_a_student_by_layer_says_its_sizes_in_the_way_of_transformers_too(model_type: str, tmp_path: Path) -> None:
    config = config_of(model_type)
    architecture = axes(shape_of(config))["by layer"]
    FAMILIES[model_type].build(config, architecture).config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    # Not the type's own class, because transformers' llama and gpt_neox check heads before they know those by layer.
    plain = (GPT2Config if model_type == "gpt2" else PretrainedConfig)(**stored)
    assert plain.is_heterogeneous
    for place, layer in enumerate(plain.per_layer_config):
        assert layer.num_attention_heads == architecture.heads[place]
        assert (layer.n_inner if model_type == "gpt2" else layer.intermediate_size) == architecture.mlp[place]
        assert "gpt" in model_type or layer.num_key_value_heads == architecture.kv_heads[place]
    assert PretrainedConfig.from_pretrained(tmp_path).is_heterogeneous  # AutoTokenizer reads it so
    again = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert not again.is_heterogeneous  # the folder's own code reads its own lists
    again.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["per_layer_config"] == stored["per_layer_config"]


@pytest.mark.parametrize("model_type", SHAPES)
def test_what_is_the_same_for_all_layers_is_carried_and_other_lists_are_let_be(model_type: str) -> None:
    config = config_of(model_type, no_rope_layers=[1, 1, 1], eos_token_id=[1, 2, 3], remarks=["a", "b"])
    shape = shape_of(config)
    for architecture in axes(shape).values():
        student = FAMILIES[model_type].build(config, architecture)
        assert student.config.no_rope_layers == [1] * architecture.depth
        assert (student.config.eos_token_id, student.config.remarks) == ([1, 2, 3], ["a", "b"])


def test_a_qwen2_with_heads_of_another_width_becomes_a_seed_oss_and_a_square_one_stays() -> None:
    config = config_of("qwen2", pad_token_id=7)
    kinds = {}
    for hidden in (46, 36, 40):  # 36 is three heads of 12
        student = FAMILIES["qwen2"].build(config, Architecture.uniform(2, hidden, 3, 64, 3))
        kinds[hidden] = student.config.model_type
    assert kinds == {46: "seed_oss", 36: "qwen2", 40: "seed_oss"}
    assert (student.config.pad_token_id, student.config.bos_token_id, student.config.eos_token_id) == (7, 0, 0)
    assert (student.config.attention_dropout, student.config.residual_dropout) == (0.0, 0.0)
    windowed = config_of("qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=0)
    assert FAMILIES["qwen2"].build(windowed, Architecture.uniform(2, 40, 3, 64, 3)).config.model_type == "qwen2"


def test_a_llama_that_says_a_window_without_having_one_has_none_as_a_mistral() -> None:
    config = config_of("llama", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=0)
    student = FAMILIES["llama"].build(config, Architecture.uniform(2, 43, 6, 64, 3))
    assert (student.config.model_type, student.config.sliding_window) == ("mistral", None)


@pytest.mark.parametrize("model_type", SHAPES)
def test_a_student_is_not_quantized_and_has_its_cache(model_type: str) -> None:
    config = config_of(model_type, use_cache=False)
    config.quantization_config = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    for architecture in axes(shape_of(config)).values():
        values = FAMILIES[model_type].build(config, architecture).config.to_dict()
        assert "quantization_config" not in values
        assert values["use_cache"] is True


def test_unknown_model_type_is_refused() -> None:
    class Other(PretrainedConfig):
        model_type = "mamba"

    with pytest.raises(InputError, match=r"'mamba'.*gpt2, llama, mistral, qwen2, qwen3, seed_oss, gpt_neox"):
        family_of(Other())
