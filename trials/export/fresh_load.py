"""A script that `trials.export.export` runs to load an exported checkpoint without this project, as other users will.

It imports only torch, transformers, safetensors and the standard library.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

OURS = {"nas", "trials", "search_spaces"}


class _Blocker(MetaPathFinder):
    """Blocks imports of this project, however it is installed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in OURS:
            raise ImportError(f"an exported checkpoint must load without {name!r}")
        return None


def main(request: Path) -> None:
    """Load the checkpoint named in ``request``, a JSON file, and write the answer beside that file.

    The answer has the logits, and the tokens of the text by the class that loads the tokenizer.
    """
    sys.meta_path.insert(0, _Blocker())
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    asked = json.loads(request.read_text("utf-8"))
    torch.set_num_threads(asked["threads"])  # the order of summation, and thus the last bits, depends on it
    trust = {} if asked["stock"] else {"trust_remote_code": True}  # also needed by the tokenizer, which asks otherwise
    model, loading = AutoModelForCausalLM.from_pretrained(asked["folder"], output_loading_info=True, **trust)  # nosec B615
    if problems := {name: sorted(map(str, found)) for name, found in loading.items() if found}:
        raise ValueError(f"weights do not match the model: {problems}")
    with torch.inference_mode():
        logits = model.eval()(torch.tensor(asked["tokens"])).logits
    answer = {"logits": logits.contiguous()}
    kinds = {"AutoTokenizer": (AutoTokenizer, trust), "PreTrainedTokenizerFast": (PreTrainedTokenizerFast, {})}
    for name, (kind, options) in kinds.items():
        if name == "AutoTokenizer" or os.path.exists(os.path.join(asked["folder"], "tokenizer.json")):
            answer[name] = torch.tensor(kind.from_pretrained(asked["folder"], **options)(asked["text"])["input_ids"])
    save_file(answer, request.with_name("answer.safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
