"""The settings of a search: defaults < YAML file < environment < flags, validated once, then frozen."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError

from search_spaces.budget import DEFAULT_TOLERANCE
from search_spaces.errors import InputError
from search_spaces.files import PRESETS

ENVIRONMENT_PREFIX = "NAS_"


class SearchSettings(BaseModel):
    """Everything that a user can set. A field that is None is derived from the teacher and the machine, and printed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget: str = Field(
        description="parameters of the student: 260M, 0.26B, 260_000_000, or 70%% of the teacher; give several, "
        "separated by commas, to search for all of them in one study"
    )
    model: str = Field(
        "openai-community/gpt2-medium", description="the teacher: a hub name, a folder, a .gguf file, or mini"
    )
    corpus: str | None = Field(
        None,
        description="text: hub name, .txt or .jsonl file, folder, or stdlib (stdlib for mini, else wikitext-103)",
    )
    tolerance: float = Field(
        DEFAULT_TOLERANCE, ge=0, lt=1, description="how far below the budget a student may be, as a share of it"
    )
    max_memory: ByteSize | None = Field(
        None, description="the most bytes for bfloat16 weights and the key/value cache of a full context: 300MB, 1.5GiB"
    )
    max_latency_ms: float | None = Field(
        None,
        gt=0,
        description="the most milliseconds for a generated token, measured where trials run, with one sequence",
    )
    objectives: str = Field("loss", description="loss, or loss with any of params, memory, latency for a Pareto front")
    space: str = Field("default", description=f"the search space: {', '.join(PRESETS)}, or a YAML file")
    sampler: Literal["screen", "tpe", "gp", "nsga2", "random", "exhaustive"] = Field(
        "screen", description="what proposes candidates; screen measures all before retraining and takes the best first"
    )
    screened: int = Field(
        64, ge=1, description="the most architectures that the sampler screen measures, for each budget"
    )
    scheduler: Literal["asha", "none"] = Field(
        "asha", description="asha stops weak trials early; none trains all trials to their end"
    )
    trials: int = Field(8, ge=1, description="trials of each budget, those that the study has already included")
    tokens_per_trial: int | None = Field(
        None, ge=1, description="training tokens of a full trial (32,768 on a CPU, 8,388,608 on a GPU)"
    )
    sequence_length: int | None = Field(
        None, ge=8, description="tokens of a sequence (256 on a CPU, 1,024 on a GPU, at most the model's positions)"
    )
    batch_tokens: int | None = Field(
        None, ge=8, description="tokens of one optimizer step (1,024 on a CPU, 32,768 on a GPU)"
    )
    learning_rate: float | None = Field(None, gt=0, description="peak learning rate (0.0002 on a CPU, 0.0004 on a GPU)")
    teacher_targets: Literal["cached", "drawn", "online"] | None = Field(
        None,
        description="what students learn from: the teacher's final states on disk; 64 tokens drawn from each of its "
        "distributions, on disk; or the teacher itself, which reads every batch (cached up to 2 GiB, else drawn)",
    )
    text_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of cross-entropy with the text in the loss; the rest is KL to the teacher",
    )
    calibration_samples: int | None = Field(
        None, ge=1, description="sequences for importance scores and for the refit (256 on a CPU, 1,024 on a GPU)"
    )
    validation_tokens: int | None = Field(
        None, ge=8, description="tokens of each validation text (16,384 on a CPU, 262,144 on a GPU)"
    )
    validation: str | None = Field(
        None, description="more validation texts, separated by commas: files, folders, hub names, or name=SOURCE"
    )
    test: str | None = Field(
        None, description="test texts for the final table, read after the choice: wikitext-2,ptb=./ptb.txt,..."
    )
    test_tokens: int | None = Field(None, ge=1, description="tokens of each test text, from its start (the whole text)")
    test_dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="number format of models on test text (float32 on a CPU, bfloat16 on a GPU)"
    )
    finalists: int = Field(
        3, ge=0, description="how many of the best trials are trained further before the choice; 0 for none"
    )
    final_tokens: int | None = Field(
        None, ge=1, description="training tokens of a finalist after its trial (as many as a trial has)"
    )
    baselines: bool = Field(
        True, description="also train depth only, width only and a random candidate like finalists, to compare with"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of proposals and of the order of batches")
    study: str | None = Field(
        None,
        pattern=r"^[\w.\-]{1,80}$",
        description="name of the study; the same name continues it (made from the settings)",
    )
    storage: str | None = Field(None, description="Optuna storage URL (SQLite in the output folder)")
    output: str = Field("outputs", description="folder of all results; on a cluster, a folder that every node sees")
    experiment: str = Field("nas", description="MLflow experiment; MLFLOW_TRACKING_URI chooses the server")
    address: str | None = Field(
        None, description="address of a running Ray cluster (RAY_ADDRESS, else a Ray of its own)"
    )
    workers: int | None = Field(None, ge=1, description="trials that run at the same time (as many as fit)")
    cpus_per_trial: int | None = Field(
        None, ge=1, description="CPU cores and threads of a trial (what is free, shared by the workers)"
    )
    gpus_per_trial: float | None = Field(
        None, ge=0, description="GPUs of a trial, a fraction is allowed (1 if there is a GPU)"
    )


HELP_EPILOG = """\
A value in brackets is the default; a value in parentheses is chosen when you give none.
Every setting is also an environment variable (NAS_BUDGET, NAS_TOKENS_PER_TRIAL, ...) and a key in the file of
--config (budget: 260M). Flags win over the environment, the environment over the file.
Exit codes: 0 done, 2 wrong input, 3 nothing feasible finished, 130 interrupted."""


def build_parser() -> argparse.ArgumentParser:
    """The command line: one flag for each setting, and --config, --dry-run and --json."""
    parser = argparse.ArgumentParser(
        prog="python -m nas.search",
        description="Find the best smaller architecture of a pretrained decoder under a parameter budget.",
        epilog=HELP_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, field in SearchSettings.model_fields.items():
        default = f" [{field.default}]" if not field.is_required() and field.default is not None else ""
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, metavar=_metavar(name), help=f"{field.description}{default}")
    parser.add_argument("--config", metavar="FILE.yaml", default=None, help="settings as YAML")
    parser.add_argument(
        "--dry-run", action="store_true", default=False, help="print the plan and the estimated time, and start nothing"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        default=False,
        help="print one JSON document on stdout, everything else on stderr",
    )
    return parser


def _metavar(name: str) -> str:
    annotation = str(SearchSettings.model_fields[name].annotation)
    if "Literal" in annotation:
        return "|".join(re.findall(r"'(\w+)'", annotation))
    if "bool" in annotation:
        return "yes|no"
    return "N" if "int" in annotation else "X" if "float" in annotation else name.upper()


def load_settings(
    flags: dict[str, Any], config: str | None, environment: dict[str, str] | None = None
) -> SearchSettings:
    """The settings. ``flags`` win over the environment, the environment over the YAML file ``config``.

    Raises InputError that names the setting, its source and the rule.
    """
    variables = dict(os.environ) if environment is None else environment
    from_file = _read_yaml(config) if config else {}
    from_environment = {
        name: value
        for name in SearchSettings.model_fields
        if (value := variables.get(f"{ENVIRONMENT_PREFIX}{name.upper()}"))
    }
    sources = {
        **dict.fromkeys(from_file, f"{config}: "),
        **{name: f"{ENVIRONMENT_PREFIX}{name.upper()}: " for name in from_environment},
        **dict.fromkeys(flags, ""),
    }
    try:
        return SearchSettings.model_validate({**from_file, **from_environment, **flags})
    except ValidationError as error:
        raise InputError(_describe(error, sources)) from error


def _describe(error: ValidationError, sources: dict[str, str]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    source = sources.get(name, "")
    flag = name if source else f"--{name.replace('_', '-')}"
    if first["type"] == "missing":
        return f"{flag} is missing: give the size of the student, for example {flag} 260M or {flag} 70%"
    if first["type"] == "extra_forbidden":
        return f"{source}unknown setting {name!r}; known are {', '.join(SearchSettings.model_fields)}"
    return f"{source}{flag} {first['input']!r}: {first['msg']}"


def _read_yaml(config: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(config).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config {config}: not a readable YAML file: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"--config {config}: must be a mapping such as 'budget: 260M'")
    return {str(key): str(value) if key == "budget" else value for key, value in content.items()}


def parse_arguments(arguments: Sequence[str]) -> tuple[SearchSettings, bool, bool]:
    """The settings, whether this is a dry run, and whether the result is printed as JSON."""
    flags = vars(build_parser().parse_args(arguments))
    config, dry_run, as_json = flags.pop("config"), flags.pop("dry_run"), flags.pop("json")
    return load_settings(flags, config), dry_run, as_json
