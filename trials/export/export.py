"""Exports a student as a Hugging Face checkpoint, which is verified in a fresh process before it is put in place."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from search_spaces.errors import InputError
from trials.export.compressed import ROUNDING, TOLERANCES, as_exported, write_compressed
from trials.export.errors import ExportError
from trials.export.gguf.writer import refusal
from trials.export.model_card import FreshLoad, ModelCard
from trials.export.tokenizer_files import write_tokenizer
from trials.storage.durable import MANIFEST, damage, write_sealed
from trials.teacher.teacher import PROBE

__all__ = ["ExportError", "FreshLoad", "ModelCard", "check_fresh_load", "export_student", "verify_manifest"]

FRESH_LOAD = Path(__file__).with_name("fresh_load.py")
TIMEOUT = 900.0  # seconds; loading gpt2-medium takes about ten
PROBE_SHAPE = (2, 48)  # windows, tokens
TOKENIZERS = ("AutoTokenizer", "PreTrainedTokenizerFast")  # the first that gives the right tokens is named in the card

log = logging.getLogger(__name__)


def export_student(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    card: ModelCard,
    dtype: torch.dtype | None = None,
    tokenizer_folder: Path | None = None,
) -> Path:
    """Write ``student`` to ``directory`` and return its absolute path.

    The weights are compressed as the card's architecture says: quantized ones are written as transformers reads them,
    sparse ones a second time in a packed file. ``student`` holds them before they are rounded. A compressed student is
    written in bfloat16, any other in ``dtype``; None keeps its own. Logits may move by as much as `ROUNDING` says.

    The tokenizer's files are those of ``tokenizer_folder``, byte for byte (`trials.export.tokenizer_files`).

    The folder holds safetensors weights, configuration, generation configuration, tokenizer, model card, manifest
    and, for a custom class, one modelling file. It is loaded in a fresh process before it is put in place. It replaces
    an older export there, and removes what killed exports left beside it. ``student`` must be on the CPU and in eval
    mode. It generates with a cache from now on, whatever its teacher's configuration says.

    Raises ExportError when the reloaded model differs from the student, or when rounding moves it too far. Raises
    InputError when ``directory`` holds anything other than an export.
    """
    directory = directory.resolve()
    check_replaceable(directory)
    student.config.use_cache = True
    if student.generation_config is not None:
        student.generation_config.use_cache = True
        if student.generation_config.pad_token_id is None:  # not in config.json, where it would freeze an embedding
            pad = tokenizer.pad_token_id
            student.generation_config.pad_token_id = tokenizer.eos_token_id if pad is None else pad

    compression = card.architecture.compression
    with torch.inference_mode():
        before = student(probe_tokens(student)).logits
    shown = as_exported(student, compression, dtype)
    rounding = 0.0 if compression else rounding_of(shown, before)

    def write(folder: Path) -> None:
        shown.save_pretrained(folder)
        write_compressed(student, compression, folder)
        write_tokenizer(tokenizer, tokenizer_folder, folder)
        loaded = check_fresh_load(folder, shown, tokenizer, TOLERANCES[compression.quantization.scheme])
        numbers = str(shown.dtype).removeprefix("torch.")
        coded = compression.quantization.scheme != "none"
        refused = "its weights are in codes of another program" if coded else refusal(shown, folder)
        text = card.render(directory.name, _carried_module(folder), loaded, numbers, rounding, refused)
        (folder / "README.md").write_text(text, "utf-8")
        log.info("export %s: reloaded in a fresh process, logits differ by at most %.1e", directory, loaded.difference)

    directory.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(directory, write)
    return directory


@torch.inference_mode()
def rounding_of(model: PreTrainedModel, before: Tensor) -> float:
    """The largest difference between the logits of ``model`` for `probe_tokens` and those ``before`` it was rounded.

    Raises ExportError when it is over `ROUNDING`.
    """
    difference = float((model(probe_tokens(model)).logits.float() - before.float()).abs().max())
    allowed = ROUNDING[model.dtype] * max(1.0, float(before.abs().max()))
    if not difference <= allowed:
        name = str(model.dtype).removeprefix("torch.")
        raise ExportError(
            f"export in {name}: rounding moves logits by up to {difference:.3g}, the limit is {allowed:.3g}; "
            "take another number format"
        )
    return difference


def verify_manifest(directory: Path) -> None:
    """Check the size and sha256 of every file of an export. Raises InputError that names the damage."""
    if problem := damage(directory):
        raise InputError(f"checkpoint {directory}: {problem}; export it again or copy it again")


@torch.inference_mode()
def check_fresh_load(
    folder: Path, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tolerance: float = TOLERANCES["none"]
) -> FreshLoad:
    """Compare ``student`` and ``tokenizer`` with what others load from the checkpoint in ``folder``.

    The checkpoint is loaded by another Python process: isolated, offline, in another folder, and without access to this
    project. ``tolerance`` is the largest difference between logits, as a share of the largest logit or of 1.

    Raises ExportError when it does not load, or when its logits or its tokenizer differ.
    """
    tokens = probe_tokens(student)
    answer = _load_elsewhere(folder, tokens)
    expected = student(tokens).logits
    wanted = list(tokenizer(PROBE)["input_ids"])
    classes = [name for name in TOKENIZERS if name in answer and answer[name].tolist() == wanted]
    if not classes:
        raise ExportError(f"export {folder.name}: the saved tokenizer gives other tokens for {PROBE!r}")
    if answer["logits"].shape != expected.shape:
        shapes = f"{tuple(answer['logits'].shape)}, not {tuple(expected.shape)}"
        raise ExportError(f"export {folder.name}: reloaded logits have the shape {shapes}")
    difference = float((answer["logits"].float() - expected.float()).abs().max())
    allowed = tolerance * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:  # written so that nan is refused too
        raise ExportError(
            f"export {folder.name}: reloaded logits differ by up to {difference:.3g}, the limit is {allowed:.3g}"
        )
    return FreshLoad(difference, classes[0])


def probe_tokens(student: PreTrainedModel) -> Tensor:
    """Random tokens that are the same for all students with this vocabulary, at most as long as their positions."""
    count, length = PROBE_SHAPE
    length = min(length, student.config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(student.config.vocab_size, (count, length), generator=generator)


def _load_elsewhere(folder: Path, tokens: Tensor) -> dict[str, Tensor]:
    """The answer of `trials/export/fresh_load.py`: "logits" (B, T, vocab), and the tokens of `PROBE` by class."""
    with tempfile.TemporaryDirectory() as away:
        request = Path(away) / "request.json"
        asked = {"folder": str(folder.resolve()), "stock": _carried_module(folder) is None, "text": PROBE}
        request.write_text(json.dumps({**asked, "threads": torch.get_num_threads(), "tokens": tokens.tolist()}))
        _run([sys.executable, "-I", str(FRESH_LOAD), str(request)], Path(away), folder.name)
        answer: dict[str, Tensor] = load_file(request.with_name("answer.safetensors"))
        return answer


def _run(command: list[str], away: Path, name: str) -> None:
    alone = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(away / "modules"), "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(  # nosec B603  # this Python, a script of ours, a path; no shell
            command,
            cwd=away,
            env={**os.environ, **alone},
            stdin=subprocess.DEVNULL,  # a prompt, such as for trust_remote_code, fails at once instead of waiting
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"export {name}: not loaded in a fresh process within {TIMEOUT:.0f} s") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ExportError(f"export {name}: does not load in a fresh process: {reason}")


def _carried_module(folder: Path) -> str | None:
    """The name of the modelling file in a checkpoint; None if transformers has the class."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    reference: str | None = config.get("auto_map", {}).get("AutoModelForCausalLM")
    return reference.partition(".")[0] if reference else None


def check_replaceable(directory: Path) -> None:
    """Raise InputError when ``directory`` holds anything other than an export."""
    if not directory.exists():
        return
    try:
        known = {MANIFEST, *json.loads((directory / MANIFEST).read_text("utf-8"))}
    except (OSError, ValueError, TypeError):
        known = set()
    present = {file.relative_to(directory).as_posix() for file in directory.rglob("*") if not file.is_dir()}
    if not directory.is_dir() or present - known:
        foreign = min(present - known, default="it is a file")
        raise InputError(
            f"output {directory}: holds more than an export ({foreign}) and would be replaced; choose another folder"
        )
