"""The README.md of an exported checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from search_spaces.architecture import Architecture
from trials.compress.extras import SCHEMES
from trials.export.loads_in import LLAMA_CPP, LoadsIn, card_lines
from trials.teacher.revision import split_revision

TEMPLATE = """---
{metadata}---

# {title}

A language model of {parameters:,} parameters ({share:.1%} of its teacher), cut from `{teacher}` by importance and
retrained by knowledge distillation. Its architecture was found by a search with a budget of {budget}.

```python
from transformers import AutoModelForCausalLM, {tokenizer}
model = AutoModelForCausalLM.from_pretrained("./{name}"{trust})
tokenizer = {tokenizer}.from_pretrained("./{name}"{tokenizer_trust})
```

{loading}{warning}

{commands}

| | this model | teacher |
|---|---|---|
| parameters | {parameters:,} | {teacher_parameters:,} |
| validation loss, nats a token | {val_loss:.4f} | {teacher_loss:.4f} |
| validation perplexity | {perplexity:.2f} | {teacher_perplexity:.2f} |

- Architecture: `{architecture}`
- Distilled on {distilled}; text: {corpus}{compared}{general}
- Number format of the weights: {dtype}{compressed}{rounded}{where}
- Made by `{command}`
- Loaded again in a fresh process, without the project that made it; largest difference between logits: {difference:.1e}
- `manifest.json` holds the size and the sha256 of every file. No test set was used to choose this model.
"""
METADATA = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["pruned", "distilled"]}
# How programs load it, by their names; lm-eval and PEFT load what transformers loads.
COMMANDS = {
    "vLLM": "vllm serve ./{name}",
    "llama.cpp": (
        "python -m nas.export ./{name} --format gguf  # by llm-nas; also --type q8_0, q4_0, ...\n"
        "llama-server -m {name}-f16.gguf"
    ),
    "lm-eval": "lm_eval --model hf --model_args pretrained=./{name}{argument} --tasks hellaswag",
}
QUANTIZED = (
    "; the {matrices} matrices of the layers are {scheme} ({package}, which `from_pretrained` needs; they are "
    "multiplied in half precision)"
)
SPARSE = (
    "\n- {level:.3g} % of the weights in the {matrices} matrices are 0. `packed.safetensors` holds them without the "
    "zeros; no server reads it, so `model.safetensors` holds the zeros too"
)
ROUNDED = (
    "\n- The losses are those of the float32 weights that were trained; {dtype} moves logits by at most {rounding:.2g} "
    "on a probe of random tokens"
)
STOCK = "It is of a class that transformers ships and needs no code of its own."
HALF = "; `dtype=torch.bfloat16` in `from_pretrained` loads them in half of the memory"
CUSTOM = (
    "transformers' own class cannot express its layers, so the folder contains one modelling file, `{module}.py`. "
    "`trust_remote_code=True` lets transformers run it. Read it first: it is short."
)
OTHER_TOKENS = (
    "\n\n**Load the tokenizer with `{tokenizer}`.** `AutoTokenizer` takes the rules of the model's type instead of "
    "those in `tokenizer.json`, and so gives other tokens than the model was trained on."
)


class FreshLoad(NamedTuple):
    """How a checkpoint loads elsewhere.

    ``difference`` is the largest absolute difference between the logits of the student and of the checkpoint.
    ``tokenizer`` is the class of transformers that loads the tokenizer. It is `AutoTokenizer`, unless that one chooses
    its rules by the type of the model and so gives other tokens.
    """

    difference: float
    tokenizer: str


@dataclass(frozen=True)
class ModelCard:
    """The content of the model card of an exported student.

    ``teacher`` and ``corpus`` are names by which a reader can find them. ``budget`` and ``command`` are as the user
    gave them. Losses are mean nats per token on validation text. ``tokens`` is the number of tokens distilled in the
    trial, ``final_tokens`` those distilled after it. ``comparison`` compares the student with the next best.
    ``other_text`` says what it loses on text that it was not calibrated on. ``metadata`` is as in
    `trials.export.teacher_card.about_teacher`. ``loads_in`` says which programs load a student of its sizes.
    """

    teacher: str
    teacher_parameters: int
    teacher_loss: float
    budget: str
    architecture: Architecture
    parameters: int
    tokens: int
    val_loss: float
    corpus: str
    command: str
    final_tokens: int = 0
    comparison: str = ""
    other_text: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    loads_in: LoadsIn | None = None

    def render(
        self, name: str, module: str | None, loaded: FreshLoad, dtype: str, rounding: float, no_gguf: str | None = ""
    ) -> str:
        """The text for a folder ``name`` with weights in ``dtype``.

        ``module`` is the name of its modelling file, None for a stock class. ``rounding`` is the largest difference
        between the logits in float32 and in ``dtype``. ``no_gguf`` says why it cannot be written for llama.cpp; None if
        it can.
        """
        tokenizer = loaded.tokenizer
        trust = ", trust_remote_code=True" if module else ""
        values = {
            key: value for key, value in vars(self).items() if key not in ("architecture", "metadata", "loads_in")
        }
        quantized = self.architecture.compression.quantization.scheme != "none" and "base_model" in self.metadata
        metadata = {**METADATA, **self.metadata, **({"base_model_relation": "quantized"} if quantized else {})}
        return TEMPLATE.format(
            **values,
            metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
            name=name,
            title=f"{Path(split_revision(self.teacher)[0]).name}, pruned to {shape_in_words(self.architecture)}",
            commands=self._commands(name, bool(module), no_gguf is None),
            where="".join(f"\n{line}" for line in self._where(no_gguf)),
            architecture=json.dumps(self.architecture.to_dict()),
            share=self.parameters / self.teacher_parameters,
            perplexity=exp(self.val_loss),
            teacher_perplexity=exp(self.teacher_loss),
            trust=trust,
            tokenizer=tokenizer,
            tokenizer_trust=trust if tokenizer.startswith("Auto") else "",
            warning="" if tokenizer.startswith("Auto") else OTHER_TOKENS.format(tokenizer=tokenizer),
            distilled=f"{self.tokens:,} tokens" + self._final(),
            compared=f"\n- In the final comparison: {self.comparison}" if self.comparison else "",
            general=f"\n- Loss in {self.other_text}" if self.other_text else "",
            loading=CUSTOM.format(module=module) if module else STOCK,
            difference=loaded.difference,
            dtype=dtype + (HALF if dtype == "float32" else ""),
            rounded=ROUNDED.format(dtype=dtype, rounding=rounding) if rounding else "",
            compressed=self._compressed(),
        )

    def _commands(self, name: str, custom: bool, gguf: bool) -> str:
        """The commands of the programs that load it, each under a heading."""
        served = {"vLLM": bool(self.loads_in and self.loads_in.vllm), "llama.cpp": gguf}
        programs = [one for one in COMMANDS if served.get(one, True)]
        argument = ",trust_remote_code=True" if custom else ""
        lines = [f"# {one}\n{COMMANDS[one].format(name=name, argument=argument)}" for one in programs]
        return "```bash\n" + "\n".join(lines) + "\n```"

    def _where(self, no_gguf: str | None) -> list[str]:
        """Which programs load it and what its sizes fit, as lines of a list."""
        if self.loads_in is None:
            return []
        refused = {**self.loads_in.reasons, **({LLAMA_CPP: no_gguf} if no_gguf and self.loads_in.route else {})}
        route = "" if no_gguf else self.loads_in.route
        return card_lines(replace(self.loads_in, route=route, reasons=refused))

    def _compressed(self) -> str:
        """What was done to the weights, for a reader who wants to load them."""
        how, sparsity = self.architecture.compression.quantization, self.architecture.compression.sparsity
        names = " and ".join(how.matrices)
        text = (
            ""
            if how.scheme == "none"
            else QUANTIZED.format(matrices=names, scheme=how.scheme, package=SCHEMES[how.scheme])
        )
        if sparsity.level:
            text += SPARSE.format(level=100 * sparsity.level, matrices=" and ".join(sparsity.matrices))
        return text

    def _final(self) -> str:
        return f" in its trial and {self.final_tokens:,} more as a finalist" if self.final_tokens else ""


def shape_in_words(architecture: Architecture) -> str:
    """``8 layers, width 224, 7 heads, MLP 512``; sizes that differ by layer as their smallest and largest."""
    heads, mlp = (_range(sizes) for sizes in (architecture.heads, architecture.mlp))
    kv = "" if architecture.kv_heads == architecture.heads else f" on {_range(architecture.kv_heads)} key/value heads"
    layers = f"{architecture.depth} layer{'s' * (architecture.depth != 1)}"
    return f"{layers}, width {architecture.hidden:,}, {heads} heads{kv}, MLP {mlp}"


def _range(sizes: Sequence[int]) -> str:
    least, most = min(sizes), max(sizes)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


ONNX = """```python
import onnxruntime
from transformers import PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast.from_pretrained("./{name}")
session = onnxruntime.InferenceSession("./{name}/model.onnx")
inputs = tokenizer("The", return_tensors="np")
[logits] = session.run(None, {{name: inputs[name] for name in ("input_ids", "attention_mask")}})
```
"""
ONNX_CHECKED = "- Loaded again in onnxruntime, which gave the same logits"
NUMBER_FORMATS = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "int8": "bfloat16; the matrices of the layers are int8 (bitsandbytes, which `from_pretrained` needs)",
    "nf4": "bfloat16; the matrices of the layers are nf4 (bitsandbytes, which `from_pretrained` needs)",
    "onnx": "float32",
}


def converted_card(card: str, before: str, name: str, kind: str) -> str:
    """The ``card`` of the export in the folder ``before`` for the folder ``name`` that holds it in the format ``kind``.

    The losses on it are those of the export before.
    """
    text = card.replace(f"./{before}", f"./{name}").replace(f" {before}-f16.gguf", f" {name}-f16.gguf")
    if kind in ("int8", "nf4"):
        text = text.replace("base_model_relation: finetune\n", "base_model_relation: quantized\n", 1)
        text = re.sub(r"```bash\n.*?```\n\n", "", text, count=1, flags=re.DOTALL)  # llama.cpp does not read the codes
    if kind in ("int8", "nf4", "onnx"):
        text = re.sub(r"^- (Loads in|Does not load in|Sizes fit|Sizes do not fit) .*\n", "", text, flags=re.MULTILINE)
    if kind == "onnx":
        lines = ONNX.format(name=name)
        text = re.sub(r"```python\n.*?(?=\n\| \|)", lambda _: lines, text, count=1, flags=re.DOTALL)
        text = re.sub(r"^- Loaded again .*$", ONNX_CHECKED, text, count=1, flags=re.MULTILINE)
    numbers = f"- Number format of the weights: {NUMBER_FORMATS[kind]}; made from `{before}`, whose losses these are"
    return re.sub(r"^- Number format of the weights: .*$", lambda _: numbers, text, count=1, flags=re.MULTILINE)
