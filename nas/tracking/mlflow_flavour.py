"""Makes a Hugging Face checkpoint a model of MLflow's flavour "transformers", without reading its weights.

`mlflow.transformers.save_model` would copy the weights once more and ask the hub for a model card. The files here are
what it would write beside them, so `mlflow.transformers.load_model` reads the folder. The folder stays a checkpoint.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path

from mlflow.models import Model

from nas.tracking.outbox import RejectedError

PACKAGES = ("torch", "transformers", "safetensors")
QUANTIZER = "bitsandbytes"
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
)


def write_flavour(folder: Path, run: str, artifact_path: str) -> None:
    """Write ``MLmodel``, ``requirements.txt`` and the tokenizer's component into the checkpoint ``folder``.

    ``artifact_path`` is where the run ``run`` will hold the folder. Raises RejectedError when the configuration of the
    checkpoint does not name a class.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if not config.get("architectures"):
        raise RejectedError(f"{folder / 'config.json'} names no class: key 'architectures' is missing")
    _copy_tokenizer(folder, folder / "components" / "tokenizer")
    requirements = _requirements("quantization_config" in config)
    (folder / "requirements.txt").write_text("".join(f"{one}\n" for one in requirements), "utf-8")
    model = Model(artifact_path=artifact_path, run_id=run)
    model.add_flavor(
        "transformers",
        task="text-generation",
        instance_type="TextGenerationPipeline",
        pipeline_model_type=config["architectures"][0],
        model_binary=".",  # the folder itself
        components=["tokenizer"],
        # As the model was trained: AutoTokenizer may take other rules by the type of the model.
        tokenizer_type="PreTrainedTokenizerFast" if (folder / "tokenizer.json").exists() else "AutoTokenizer",
        transformers_version=importlib.metadata.version("transformers"),
    )
    model.save(str(folder / "MLmodel"))


def _copy_tokenizer(folder: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in {one for pattern in TOKENIZER_FILES for one in folder.glob(pattern) if one.is_file()}:
        shutil.copy2(file, target / file.name)


def _requirements(quantized: bool) -> list[str]:
    names = [*PACKAGES, *([QUANTIZER] if quantized else [])]
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]
