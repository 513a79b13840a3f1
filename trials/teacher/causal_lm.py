"""Loads any causal language model for evaluation. It need not be of a type that can be pruned."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from search_spaces.errors import InputError
from trials.teacher.config_file import read_object
from trials.teacher.inside import check_code
from trials.teacher.source import read_config, resolve_model
from trials.teacher.teacher import check_vocabulary, load_tokenizer, load_weights, probe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_DTYPES = {"cpu": "float32", "cuda": "bfloat16"}


def resolve_causal_lm(model: str, own_code: bool) -> Path:
    """The folder of the checkpoint of ``model``; see `resolve_model`.

    Raises InputError as `resolve_model` does, for a model that is not a causal language model, and for a model with
    its own code unless ``own_code`` allows it.
    """
    return resolve_model(model, lambda path: _check(path, own_code))


def load_causal_lm(
    path: Path, device: str, dtype: str, own_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in eval mode without gradients, and its tokenizer. ``dtype`` is a key of `DTYPES`.

    Raises InputError when weights or tokenizer are damaged or do not belong together, when the model does not run or
    gives logits that are not finite, and when a prediction depends on later tokens. Perplexity is not defined for such
    a model.
    """
    tokenizer = load_tokenizer(path, own_code)
    model = load_weights(path, DTYPES[dtype], own_code).to(device).eval().requires_grad_(False)
    check_vocabulary(path, tokenizer, model.get_input_embeddings().weight.shape[0])
    if _looks_ahead(path, model):
        raise InputError(f"model {path}: it reads the tokens that it should predict; use a causal language model")
    return model, tokenizer


def _check(path: Path, own_code: bool) -> None:
    if not own_code and (files := _code_files(path)):
        raise InputError(
            f"model {path}: it comes with code of its own, {', '.join(files)}; read it, then add --trust-remote-code"
        )
    if own_code:
        check_code(path, str(path))
    config = read_config(path, own_code)
    own_classes = getattr(config, "auto_map", None) or {}
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in own_classes:
        raise InputError(f"model {path}: type {config.model_type!r} is not a causal language model; use one that is")


def _code_files(path: Path) -> list[str]:
    """The code files that transformers needs to build the model in folder ``path``; empty for its own classes."""
    config = read_object(path / "config.json", str(path))
    if config.get("model_type") in CONFIG_MAPPING_NAMES:
        return []
    classes = (name for name in (config.get("auto_map") or {}).values() if isinstance(name, str))
    return sorted({f"{name.split('.')[0]}.py" for name in classes})


def _looks_ahead(path: Path, model: PreTrainedModel) -> bool:
    one, other = probe(path, model)[:, :-1]
    return one.numel() > 0 and bool((one - other).abs().max() > 0.01 * one.std())
