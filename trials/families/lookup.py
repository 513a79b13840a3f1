"""Model families by the ``model_type`` of their configuration."""

from __future__ import annotations

from transformers import PretrainedConfig

from trials.families.base import Family
from trials.families.gpt2 import GPT2
from trials.families.gpt_neox import GPTNeoX
from trials.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3, SEED_OSS
from trials.families.shapes import shape_of

OWN = "pruned_"  # begins the model types of the families' own classes
FAMILIES: dict[str, Family] = {
    "gpt2": GPT2(),
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "seed_oss": SEED_OSS,
    "gpt_neox": GPTNeoX(),
}


def family_of(config: PretrainedConfig) -> Family:
    """The family of a teacher with ``config``. Raises InputError as `trials.families.shapes.shape_of` does."""
    return FAMILIES[shape_of(config).family]


def family_of_student(config: PretrainedConfig) -> Family:
    """The family of a student with ``config``, whose class may be the family's own."""
    return FAMILIES[config.model_type.removeprefix(OWN)]
