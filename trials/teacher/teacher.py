"""Loads the teacher: weights, tokenizer, shape and fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from search_spaces.errors import InputError, one_line
from search_spaces.shape import ModelShape
from trials.storage.durable import MANIFEST, damage
from trials.storage.node_digests import sha256_on_node
from trials.teacher.config_file import is_coded
from trials.teacher.source import UNUSABLE, fingerprint, read_config, read_shape, weight_files

PROBE = "In 1984, 13888 of 2,000 don't.\n\n\tdef prune(teacher):  # naïve, 100 %\r\n    return 'student'   日本 🙂\n"
PROBE_TOKENS = 8
PANIC = "PanicException"  # of a library in Rust: no Exception, and of no module that can be imported
NOWHERE = "no adapter is read"  # a folder that there is not


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

    Raises InputError when weights are damaged, missing or not finite, when the config ties weights that differ, or when
    the tokenizer has more entries than the model's embedding. It also does when the model does not run, and when it
    gives logits that are not finite.
    """
    _check_manifest(path)
    shape = read_shape(path)
    tokenizer = load_tokenizer(path)
    check_vocabulary(path, tokenizer, shape.vocab)
    model = load_weights(path, torch.bfloat16 if device == "cuda" else torch.float32)
    _check_tied(path, model)
    model.to(device).eval().requires_grad_(False)
    probe(path, model)
    return Teacher(path, model, tokenizer, shape, fingerprint(path))


@torch.inference_mode()
def probe(path: Path, model: PreTrainedModel) -> Tensor:
    """The logits of ``model`` for two short texts, (2, T, vocab), of which only the last tokens differ.

    Raises InputError when the model does not run, and when the logits are not finite.
    """
    length = min(PROBE_TOKENS, getattr(model.config.get_text_config(), "max_position_embeddings", None) or PROBE_TOKENS)
    tokens = torch.arange(length, device=model.device).repeat(2, 1) % model.get_input_embeddings().weight.shape[0]
    tokens[1, -1] = 0
    try:
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits.float()
    except (*UNUSABLE, RuntimeError) as error:
        raise InputError(f"model {path}: it does not run with its config.json: {one_line(error)}") from error
    if not logits.isfinite().all():
        raise InputError(f"model {path}: it gives logits that are not finite; take an undamaged checkpoint")
    return logits


def check_vocabulary(path: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Raise InputError when the tokenizer has more entries than the ``vocabulary`` rows of the embedding."""
    if len(tokenizer) > vocabulary:
        raise InputError(
            f"model {path}: its tokenizer has {len(tokenizer):,} entries and its embedding {vocabulary:,}; "
            "use the tokenizer that belongs to the model"
        )


def load_tokenizer(path: Path, own_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in folder ``path``. Raises InputError when it cannot be loaded.

    transformers may take a class by the type of the model, whose rules replace some of tokenizer.json. Where the ids
    then differ from those of tokenizer.json, which the model was trained with, the file is taken as it is.
    """
    try:
        written = _tokenizer_file(path)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=own_code)  # nosec B615
        if written is None or type(tokenizer).__module__.startswith("transformers_modules."):
            return tokenizer
        if (
            tokenizer(PROBE, add_special_tokens=False)["input_ids"]
            != written.encode(PROBE, add_special_tokens=False).ids
        ):
            return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)  # nosec B615
    except InputError:
        raise
    except UNUSABLE as error:
        raise InputError(f"model {path}: its tokenizer cannot be loaded: {one_line(error)}") from error
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise InputError(f"model {path}: its tokenizer cannot be used: {one_line(error)}; copy it again") from error
    return tokenizer


def load_weights(path: Path, dtype: torch.dtype, own_code: bool = False) -> PreTrainedModel:
    """The causal language model in folder ``path``, on the CPU: the weights of its safetensors files, dequantized.

    An adapter in the same folder is not read. Raises InputError for damaged or missing weights, and for weights that
    are not finite.
    """
    transformers_logging.disable_progress_bar()  # it would print a bar for every file to every worker's log
    config = read_config(path, own_code)
    quantization = getattr(config, "quantization_config", None)
    if quantization and not _is_coded(config):
        quantization["dequantize"] = True  # otherwise weights stay in FP8 where a GPU can multiply it
    _check_number(path, config)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(  # nosec B615  # a folder
            path,
            config=config,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=own_code,
            use_safetensors=True,
            adapter_kwargs={"subfolder": NOWHERE},  # where transformers looks for one, if peft is installed
        )
    except (*UNUSABLE, RuntimeError, SafetensorError) as error:
        raise InputError(f"model {path}: its weights cannot be loaded: {one_line(error)}") from error
    if missing := sorted(loading["missing_keys"]):
        raise InputError(f"model {path}: its weights lack {len(missing)} tensors, the first is {missing[0]}")
    if _is_coded(config):
        model = _dequantized(model, dtype)
    _check_finite(path, model)
    return model


def _tokenizer_file(path: Path) -> Tokenizer | None:
    """tokenizer.json in folder ``path`` as it is written, if there is one."""
    if not (path / "tokenizer.json").is_file():
        return None
    try:
        written = Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the library raises no other class
        raise InputError(
            f"model {path}: its tokenizer.json cannot be used: {one_line(error)}; copy it again"
        ) from error
    written.no_truncation()
    written.no_padding()
    return written


def _check_number(path: Path, config: PretrainedConfig) -> None:
    """Raise InputError when ``config`` describes more weights than the files hold: loading would make them up."""
    if getattr(config, "auto_map", None):
        return  # code of its own
    try:
        described = parameters_of(config)
    except (*UNUSABLE, RuntimeError) as error:
        raise InputError(f"model {path}: its config.json cannot be used: {one_line(error)}") from error
    most = 2 if _is_coded(config) else 1  # weights in a byte
    if described > most * (held := sum(file.stat().st_size for file in weight_files(path))):
        raise InputError(
            f"model {path}: its weights cannot be loaded: they have {held:,} bytes, and config.json describes "
            f"{described:,} parameters; copy both from the model again"
        )


def parameters_of(config: PretrainedConfig) -> int:
    """The number of parameters that ``config`` describes. Takes no memory for them. Tied ones may count twice."""
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return sum(one.numel() for one in model.parameters())


def _is_coded(config: PretrainedConfig) -> bool:
    """Whether the weights are in codes of bitsandbytes or torchao."""
    return is_coded(getattr(config, "quantization_config", None) or {})


def _dequantized(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """``model`` with plain numbers in place of codes. transformers does it for bitsandbytes, but not for torchao."""
    if model.config.quantization_config.quant_method == "bitsandbytes":
        return model.dequantize().to(dtype)
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and type(weight.data) is not Tensor:
            module.weight = nn.Parameter(weight.data.dequantize(dtype), requires_grad=False)
    return model.to(dtype)


def _check_finite(path: Path, model: PreTrainedModel) -> None:
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.numel() and not all(end.isfinite() for end in weight.aminmax()):
            dtype = str(weight.dtype).removeprefix("torch.")
            raise InputError(
                f"model {path}: its weight {name} holds NaN or infinity in {dtype}; take an undamaged checkpoint"
            )


def _check_manifest(path: Path) -> None:
    """Check an exported model against its manifest, because safetensors loads a file with flipped bytes silently."""
    if (path / MANIFEST).is_file() and (problem := damage(path, sha256_on_node)):
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
