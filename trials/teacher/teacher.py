"""Loads the teacher: weights, tokenizer, shape and fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from search_spaces.errors import InputError
from search_spaces.shape import ModelShape
from trials.storage.durable import MANIFEST, damage
from trials.teacher.source import fingerprint, first_line, read_shape


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher. ``model`` is in eval mode, without gradients. ``fingerprint`` digests weights and config."""

    path: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shape: ModelShape
    fingerprint: str


def load_teacher(path: Path, device: str) -> Teacher:
    """Load the checkpoint in folder ``path`` onto ``device`` ("cpu" in float32, "cuda" in bfloat16).

    Raises InputError when weights are damaged or missing, when the config ties weights that differ, or when the
    tokenizer has more entries than the model's embedding.
    """
    _check_manifest(path)
    shape = read_shape(path)
    tokenizer = load_tokenizer(path)
    check_vocabulary(path, tokenizer, shape.vocab)
    model = load_weights(path, torch.bfloat16 if device == "cuda" else torch.float32)
    _check_tied(path, model)
    model.to(device).eval().requires_grad_(False)
    return Teacher(path, model, tokenizer, shape, fingerprint(path))


def check_vocabulary(path: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Raise InputError when the tokenizer has more entries than the ``vocabulary`` rows of the embedding."""
    if len(tokenizer) > vocabulary:
        raise InputError(
            f"model {path}: its tokenizer has {len(tokenizer):,} entries and its embedding {vocabulary:,}; "
            "use the tokenizer that belongs to the model"
        )


def load_tokenizer(path: Path, own_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in folder ``path``. Raises InputError when it cannot be loaded."""
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=own_code)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model {path}: its tokenizer cannot be loaded: {first_line(error)}") from error


def load_weights(path: Path, dtype: torch.dtype, own_code: bool = False) -> PreTrainedModel:
    """The causal language model in folder ``path``, on the CPU. Raises InputError for damaged or missing weights."""
    transformers_logging.disable_progress_bar()  # it would print a bar for every file to every worker's log
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, output_loading_info=True, trust_remote_code=own_code
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"model {path}: its weights cannot be loaded: {first_line(error)}") from error
    if missing := sorted(loading["missing_keys"]):
        raise InputError(f"model {path}: its weights lack {len(missing)} tensors, the first is {missing[0]}")
    return model


def _check_manifest(path: Path) -> None:
    """Check an exported model against its manifest, because safetensors loads a file with flipped bytes silently."""
    if (path / MANIFEST).is_file() and (problem := damage(path)):
        raise InputError(f"model {path}: {problem}; export it again or copy it again")


def _check_tied(path: Path, model: PreTrainedModel) -> None:
    """Raise InputError when tied weights differ: transformers then leaves them untied, whatever the config says."""
    if model.config.tie_word_embeddings and (
        model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    ):
        raise InputError(
            f"model {path}: its weights hold an output projection of its own, but its config.json says "
            "tie_word_embeddings: true; set that to false, or save the model with tied weights"
        )
