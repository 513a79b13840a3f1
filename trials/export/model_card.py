"""The README.md of an exported checkpoint."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import exp

from search_spaces.architecture import Architecture

TEMPLATE = """---
library_name: transformers
pipeline_tag: text-generation
tags: [pruned, distilled]
---

# {name}

A language model of {parameters:,} parameters ({share:.1%} of its teacher), cut from `{teacher}` by importance and
retrained by knowledge distillation. Its architecture was found by a search with a budget of {budget}.

```python
from transformers import AutoModelForCausalLM, {tokenizer}
model = AutoModelForCausalLM.from_pretrained("./{name}"{trust})
tokenizer = {tokenizer}.from_pretrained("./{name}"{tokenizer_trust})
```

{loading}{warning}

| | this model | teacher |
|---|---|---|
| parameters | {parameters:,} | {teacher_parameters:,} |
| validation loss, nats a token | {val_loss:.4f} | {teacher_loss:.4f} |
| validation perplexity | {perplexity:.2f} | {teacher_perplexity:.2f} |

- Architecture: `{architecture}`
- Distilled on {distilled}; text: {corpus}{compared}{general}
- Number format of the weights: {dtype}{compressed}
- Made by `{command}`
- Loaded again in a fresh process, without the project that made it; largest difference between logits: {difference:.1e}
- `manifest.json` holds the size and the sha256 of every file. No test set was used to choose this model.
"""
QUANTIZED = (
    "; the {matrices} matrices of the layers are {scheme} (bitsandbytes, which `from_pretrained` needs; they are "
    "multiplied in half precision)"
)
SPARSE = (
    "\n- {level:.3g} % of the weights in the {matrices} matrices are 0. `packed.safetensors` holds them without the "
    "zeros; no server reads it, so `model.safetensors` holds the zeros too"
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


@dataclass(frozen=True)
class ModelCard:
    """The content of the model card of an exported student.

    ``teacher`` and ``corpus`` are names by which a reader can find them. ``budget`` and ``command`` are as the user
    gave them. Losses are mean nats per token on validation text. ``tokens`` is the number of tokens distilled in the
    trial, ``final_tokens`` those distilled after it. ``comparison`` compares the student with the next best.
    ``other_text`` says what it loses on text that it was not calibrated on.
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

    def render(self, name: str, module: str | None, difference: float, dtype: str, tokenizer: str) -> str:
        """The text for a folder ``name`` with weights in ``dtype``.

        ``module`` is the name of its modelling file, None for a stock class. ``difference`` and ``tokenizer`` are as in
        `trials.export.export.FreshLoad`.
        """
        trust = ", trust_remote_code=True" if module else ""
        values = {key: value for key, value in vars(self).items() if key != "architecture"}
        return TEMPLATE.format(
            **values,
            name=name,
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
            difference=difference,
            dtype=dtype + (HALF if dtype == "float32" else ""),
            compressed=self._compressed(),
        )

    def _compressed(self) -> str:
        """What was done to the weights, for a reader who wants to load them."""
        how, sparsity = self.architecture.compression.quantization, self.architecture.compression.sparsity
        names = " and ".join(how.matrices)
        text = "" if how.scheme == "none" else QUANTIZED.format(matrices=names, scheme=how.scheme)
        if sparsity.level:
            text += SPARSE.format(level=100 * sparsity.level, matrices=" and ".join(sparsity.matrices))
        return text

    def _final(self) -> str:
        return f" in its trial and {self.final_tokens:,} more as a finalist" if self.final_tokens else ""


ONNX = """```python
import onnxruntime
from transformers import PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast.from_pretrained("./{name}")
session = onnxruntime.InferenceSession("./{name}/model.onnx")
inputs = tokenizer("The", return_tensors="np")
[logits] = session.run(None, {{name: inputs[name] for name in ("input_ids", "attention_mask")}})
```
"""
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
    text = card.replace(f"./{before}", f"./{name}")
    if kind == "onnx":
        text = re.sub(r"```python\n.*?```\n", lambda _: ONNX.format(name=name), text, count=1, flags=re.DOTALL)
    numbers = f"- Number format of the weights: {NUMBER_FORMATS[kind]}; made from `{before}`, whose losses these are"
    return re.sub(r"^- Number format of the weights: .*$", lambda _: numbers, text, count=1, flags=re.MULTILINE)
