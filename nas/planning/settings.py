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
    """Everything a user can set. A field that is None is derived from the teacher and the machine, and printed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget: str = Field(
        description="parameters of the student: 260M, 0.26B, 260_000_000, or 70%% of the teacher; several in one study "
        "with commas"
    )
    model: str = Field("openai-community/gpt2-medium", description="teacher: hub name, folder, .gguf file, or mini")
    corpus: str | None = Field(
        None, description="text: hub name, .txt or .jsonl file, folder, or stdlib (stdlib for mini, else wikitext-103)"
    )
    tolerance: float = Field(DEFAULT_TOLERANCE, ge=0, lt=1, description="width of the budget band, share of the budget")
    max_memory: ByteSize | None = Field(
        None, description="bytes of bfloat16 weights and of the cache of a full context at most: 300MB, 1.5GiB"
    )
    max_latency_ms: float | None = Field(
        None, gt=0, description="milliseconds of a generated token at most, measured where trials run, one sequence"
    )
    objectives: str = Field(
        "loss", description="what is weighed: loss alone, or with any of params, memory, latency for a Pareto front"
    )
    space: str = Field("default", description=f"search space: {', '.join(PRESETS)}, or a YAML file")
    sampler: Literal["screen", "tpe", "gp", "nsga2", "random", "exhaustive"] = Field(
        "screen", description="who proposes; screen measures all before retraining and takes the best first"
    )
    screened: int = Field(64, ge=1, description="architectures at most that screen measures before retraining")
    scheduler: Literal["asha", "none"] = Field("asha", description="asha stops weak trials early; none trains all")
    trials: int = Field(8, ge=1, description="candidates of each budget, earlier ones of the study included")
    tokens_per_trial: int | None = Field(
        None, ge=1, description="distillation tokens of a full trial (32,768 on CPU, 8,388,608 on GPU)"
    )
    sequence_length: int | None = Field(
        None, ge=8, description="tokens of a sequence (the model's positions, at most 256 on CPU, 1,024 on GPU)"
    )
    batch_tokens: int | None = Field(
        None, ge=8, description="tokens of one optimizer step (1,024 on CPU, 32,768 on GPU)"
    )
    learning_rate: float | None = Field(None, gt=0, description="peak learning rate (0.0002 on CPU, 0.0004 on GPU)")
    teacher_targets: Literal["cached", "drawn", "online"] | None = Field(
        None,
        description="what students learn from: the teacher's final states, kept on disk; 64 tokens drawn from each "
        "distribution, kept; or the teacher reading every batch (cached up to 2 GiB, else drawn)",
    )
    text_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the loss that is cross-entropy with the text, the rest is KL to the teacher",
    )
    calibration_samples: int | None = Field(
        None, ge=1, description="sequences to measure importance and to refit students on (256 on CPU, 1,024 on GPU)"
    )
    validation_tokens: int | None = Field(
        None, ge=8, description="validation tokens of every comparison (16,384 on CPU, 262,144 on GPU)"
    )
    validation: str | None = Field(
        None, description="further validation text, comma-separated: files, folders, hub names, or name=any of these"
    )
    test: str | None = Field(
        None, description="test text for the final table, read after all is chosen: wikitext-2,ptb=./ptb.txt,..."
    )
    test_tokens: int | None = Field(None, ge=1, description="tokens of each test text, from its start (all)")
    test_dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="number format in which models read test text (float32 on CPU, bfloat16 on GPU)"
    )
    finalists: int = Field(3, ge=0, description="best trials that are trained further, to choose among; 0: none is")
    final_tokens: int | None = Field(
        None, ge=1, description="tokens that finalists are trained on beyond their trial (as many as a trial)"
    )
    baselines: bool = Field(
        True, description="train depth only, width only and a random candidate as far as finalists, to compare with"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the proposals and of the order of the batches")
    study: str | None = Field(
        None,
        pattern=r"^[\w.\-]{1,80}$",
        description="name of the study, which the same name continues (from the settings)",
    )
    storage: str | None = Field(None, description="Optuna storage URL (SQLite in the output folder)")
    output: str = Field("outputs", description="folder of all results; on a cluster one that every node sees")
    experiment: str = Field("nas", description="MLflow experiment; MLFLOW_TRACKING_URI chooses the server")
    address: str | None = Field(None, description="a running Ray cluster (RAY_ADDRESS, else a Ray of its own)")
    workers: int | None = Field(None, ge=1, description="trials at a time (as many as fit)")
    cpus_per_trial: int | None = Field(None, ge=1, description="CPU cores, and threads, of a trial")
    gpus_per_trial: float | None = Field(
        None, ge=0, description="GPUs of a trial, fractions allowed (1 where there are any)"
    )


HELP_EPILOG = """\
Every setting can also be given as an environment variable (NAS_BUDGET, NAS_TOKENS_PER_TRIAL, ...) or in the file
of --config (budget: 260M). Flags win over the environment, the environment over the file.
Exit codes: 0 done, 2 wrong input, 3 nothing feasible finished, 130 interrupted."""


def build_parser() -> argparse.ArgumentParser:
    """The command line: one flag for each setting, and the three that say how to run."""
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
    parser.add_argument("--dry-run", action="store_true", default=False, help="print the plan and start nothing")
    parser.add_argument("--json", action="store_true", default=False, help="one JSON document on stdout")
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
    """The settings by precedence: ``flags``, then the environment, then the YAML file ``config``, then defaults.

    Raises InputError naming the setting, its source and the rule.
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
    """The settings, whether only the plan is asked for, and whether the result is wanted as JSON."""
    flags = vars(build_parser().parse_args(arguments))
    config, dry_run, as_json = flags.pop("config"), flags.pop("dry_run"), flags.pop("json")
    return load_settings(flags, config), dry_run, as_json
