"""The model `mini` without its training: shape, initial weights, optimizers, tokenizer and checkpoint format."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.mini.muon import Muon

END_OF_TEXT = "<|endoftext|>"
CONTEXT = 256
VOCABULARY = 4096
PEAK_RATE = 3e-3


def new_model(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(mini_config())


def new_optimizers(model: GPT2LMHeadModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, biases and norms."""
    matrices = [parameter for parameter in model.transformer.h.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    embeddings = [model.transformer.wte.weight, model.transformer.wpe.weight]
    groups = [{"params": embeddings, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)
    return [Muon(matrices, lr=PEAK_RATE), adam]


def mini_config() -> GPT2Config:
    """The configuration, with 7.4M parameters, so that the folder stays below 16 MB in half precision."""
    shape = {"n_layer": 8, "n_embd": 256, "n_head": 8, "n_inner": 1024}
    text = {"n_positions": CONTEXT, "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    # GPT-2's own activation as one kernel. "gelu_new" is the same in eight kernels and makes a step a seventh longer.
    activation = {"activation_function": "gelu_pytorch_tanh"}
    return GPT2Config(**shape, **dropout, **activation, **text, tie_word_embeddings=True)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 4096 entries: the 256 bytes, the end-of-text token, and merges trained on ``texts``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrapped(tokenizer)


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **special)


def write_checkpoint(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the checkpoint folder. Weights are in float16 to halve the file; the config makes them load as float32."""
    half = GPT2LMHeadModel(model.config).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
