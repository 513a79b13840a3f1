"""The settings of a search: defaults < space < YAML file < environment < flags, validated once, then frozen."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError

from nas.planning.parser import Parser, suggestion
from search_spaces.budget import DEFAULT_TOLERANCE, UNITS
from search_spaces.errors import InputError
from search_spaces.files import PRESETS, read_yaml, study_settings
from trials.storage.redact import redacted
from trials.teacher.revision import at_commit, with_revision

PROGRAM = "python -m nas.search"
ENVIRONMENT_PREFIX = "NAS_"
SHARED = ("cache", "mlartifacts", "mlflow.db", "studies.db")  # in the output folder, beside the folders of studies
TEXTS = ("corpus", "test")  # settings of a preset that mini does without
MOST_TOKENS, LARGEST_BATCH = 2**50, 2**30  # more than anybody has; above, a slip would take all memory or never end
COUNT = re.compile(r"(\d[\d_]*(?:\.\d+)?)\s*([KMBG]?)", re.IGNORECASE)


def _count(value: Any) -> Any:
    """``32_768``, ``1M`` or ``0.5M`` as a whole number; anything else as it is, for pydantic to refuse."""
    found = COUNT.fullmatch(value.strip()) if isinstance(value, str) and len(value) < 40 else None
    if found is None:
        return value
    number = float(found[1].replace("_", "")) * UNITS[found[2].upper()]
    return int(number) if number.is_integer() else value


def _free_name(value: str | None) -> str | None:
    if value in SHARED:
        raise ValueError("the output folder has something else of this name; give another name")
    return value


Tokens = Annotated[int, BeforeValidator(_count), Field(le=MOST_TOKENS)]


class SearchSettings(BaseModel):
    """Everything that a user can set. A field that is None is derived from the teacher and the machine, and printed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    budget: str = Field(
        description="parameters of the student: 260M, 0.26B, 260_000_000, or 70%% of the teacher; or bytes of its "
        "exported weights: 90MB, 1.2GB, or 40%%B of the teacher's; give several, separated by commas, to search for "
        "all of them in one study"
    )
    model: str = Field(
        "openai-community/gpt2-medium", description="the teacher: a hub name, a folder, a .gguf file, or mini"
    )
    revision: str | None = Field(
        None, description="commit, tag or branch of a teacher of the hub; the search keeps the commit (main)"
    )
    corpus: str | None = Field(
        None,
        description="text: hub name, .txt or .jsonl file, folder of text or code, stdlib, or several with weights: "
        "web=org/name:0.7,code=./src:0.3 (stdlib for mini, else a general mixture from the hub)",
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
    objectives: str = Field(
        "loss", description="loss, or loss with any of params, bytes, memory, latency for a Pareto front"
    )
    space: str = Field("default", description=f"the search space: {', '.join(PRESETS)}, or a YAML file")
    loads_in: str | None = Field(
        None,
        description="only students that load without our code in all of these, separated by commas: transformers, "
        "vllm, llama.cpp",
    )
    quantises_to: str | None = Field(
        None,
        description="only students whose sizes fit all of these, separated by commas: bf16, q8_0, q4_0, q4_k, int4, "
        "int4-64, nf4, ...",
    )
    sampler: Literal["screen", "tpe", "gp", "nsga2", "random", "exhaustive"] = Field(
        "screen", description="what proposes candidates; screen measures all before retraining and takes the best first"
    )
    screened: int = Field(
        64, ge=1, description="the most architectures that the sampler screen measures, for each budget"
    )
    scheduler: Literal["asha", "none"] = Field(
        "asha", description="asha stops weak trials early; none trains all trials to their end"
    )
    table: Literal["layers", "pruned-gpt", "sparsity", "stack"] | None = Field(
        None, description="one more table at the end, that of a published study; the presets of these studies set it"
    )
    trials: int = Field(8, ge=1, description="trials of each budget, those that the study has already included")
    tokens_per_trial: Tokens | None = Field(
        None,
        ge=0,
        description="training tokens of a full trial (32,768 on a CPU, 8,388,608 on a GPU); 0 trains nothing and "
        "compares students as they are cut",
    )
    sequence_length: Tokens | None = Field(
        None, ge=8, description="tokens of a sequence (256 on a CPU, 1,024 on a GPU, at most the model's positions)"
    )
    batch_tokens: Tokens | None = Field(
        None, ge=8, le=LARGEST_BATCH, description="tokens of one optimizer step (1,024 on a CPU, 32,768 on a GPU)"
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
    refit: bool = Field(
        True, description="fit the output projections of a pruned student to the teacher; no leaves plain slices"
    )
    calibration_samples: int | None = Field(
        None,
        ge=1,
        le=LARGEST_BATCH,
        description="sequences for importance scores and for the refit (256 on a CPU, 1,024 on a GPU)",
    )
    validation_tokens: Tokens | None = Field(
        None, ge=8, description="tokens of each validation text (16,384 on a CPU, 262,144 on a GPU)"
    )
    validation: str | None = Field(
        None, description="more validation texts, separated by commas: files, folders, hub names, or name=SOURCE"
    )
    test: str | None = Field(
        None, description="test texts for the final table, read after the choice: wikitext-2,ptb=./ptb.txt,..."
    )
    test_tasks: str | None = Field(
        None,
        description="downstream tasks for the final table, zero-shot by lm-evaluation-harness: hellaswag,piqa:200,"
        "mine=./mine.yaml (needs the extra eval)",
    )
    test_tokens: Tokens | None = Field(None, ge=1, description="tokens of each test text, from its start (all)")
    test_dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="number format of models on test text (float32 on a CPU, bfloat16 on a GPU)"
    )
    finalists: int = Field(
        3, ge=0, description="how many of the best trials are trained further before the choice; 0 for none"
    )
    final_tokens: Tokens | None = Field(
        None, ge=1, description="training tokens of a finalist after its trial (as many as a trial has)"
    )
    baselines: bool = Field(
        True, description="also train depth only, width only and a random candidate like finalists, to compare with"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of proposals and of the order of batches")
    export_dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="number format of the winner's weights; trials train and compare float32"
    )
    study: Annotated[str | None, AfterValidator(_free_name)] = Field(
        None,
        pattern=r"^[A-Za-z0-9_][\w.-]{0,79}$",
        description="name of the study; the same name continues it (made from the settings)",
    )
    force: bool = Field(
        False,
        description="continue a study that was made with other settings, another teacher or other arithmetic, though "
        "its losses are not comparable; and start with too little space on the disk",
    )
    storage: str | None = Field(
        None, description="Optuna storage URL: sqlite, postgresql or mysql (SQLite in the output folder)"
    )
    output: str = Field("outputs", description="folder of all results; on a cluster, a folder that every node sees")
    mirror: str | None = Field(
        None,
        description="where a durable copy of the search is kept, from which an empty machine goes on: "
        "s3://bucket/folder, gs://bucket/folder, file:///folder",
    )
    experiment: str = Field("nas", description="MLflow experiment; MLFLOW_TRACKING_URI chooses the server")
    address: str | None = Field(
        None, description="address of a running Ray cluster (RAY_ADDRESS, else a Ray of its own)"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="what trials run on; auto: on GPUs if a node has some, or the autoscaler can bring some"
    )
    accelerator_type: str | None = Field(
        None, pattern=r"^[\w.-]{1,60}$", description="Ray's name of the GPUs to use, such as H100 (all of one kind)"
    )
    workers: int | None = Field(None, ge=1, description="trials that run at the same time (as many as fit)")
    cpus_per_trial: int | None = Field(
        None, ge=1, description="CPU cores and threads of a trial (what is free, shared by the workers)"
    )
    gpus_per_trial: float | None = Field(
        None, ge=0, description="GPUs of a trial, at most 1; a fraction is allowed (1 if there is a GPU)"
    )
    hung_after: float = Field(
        600.0, gt=0, description="seconds without an answer or work, after which a worker is replaced"
    )


HELP_EPILOG = """\
A value in brackets is the default; a value in parentheses is chosen when you give none.
Every setting is also an environment variable (NAS_BUDGET, NAS_TOKENS_PER_TRIAL, ...) and a key in the file of
--config (budget: 260M). Flags win over the environment, the environment over the file, and the
file over the settings of a space (key study).
Exit codes: 0 done, 2 wrong input, 3 nothing feasible finished, 130 interrupted."""


GROUPS = {
    "what to search": (
        "budget",
        "model",
        "revision",
        "tolerance",
        "space",
        "loads_in",
        "quantises_to",
        "max_memory",
        "max_latency_ms",
        "objectives",
        "table",
    ),
    "text": ("corpus", "validation", "test", "test_tasks", "test_tokens", "test_dtype"),
    "candidates": ("sampler", "screened", "scheduler", "trials", "finalists", "baselines", "seed"),
    "training": (
        "tokens_per_trial",
        "final_tokens",
        "sequence_length",
        "batch_tokens",
        "learning_rate",
        "teacher_targets",
        "text_share",
        "refit",
        "calibration_samples",
        "validation_tokens",
    ),
    "where results go": ("output", "export_dtype", "study", "force", "storage", "mirror", "experiment"),
    "machines": (
        "address",
        "device",
        "accelerator_type",
        "workers",
        "cpus_per_trial",
        "gpus_per_trial",
        "hung_after",
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line: one flag for each setting, and --config, --dry-run, --json, --submit and --version."""
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} --budget BUDGET [--model MODEL] [FLAG VALUE ...]",
        description="Find the best smaller architecture of a pretrained decoder under a parameter budget.",
        epilog=HELP_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names:
            field = SearchSettings.model_fields[name]
            default = f" [{field.default}]" if not field.is_required() and field.default is not None else ""
            alone: dict[str, Any] = {"nargs": "?", "const": "yes"} if field.annotation is bool else {}  # --force
            text = f"{field.description}{default}"
            group.add_argument(_flag(name), dest=name, metavar=_metavar(name), help=text, **alone)
    group = parser.add_argument_group("the command")
    group.add_argument("--config", metavar="FILE.yaml", default=None, help="settings as YAML")
    group.add_argument(
        "--dry-run", action="store_true", default=False, help="print the plan and the estimated time, and start nothing"
    )
    group.add_argument(
        "--json",
        action="store_true",
        default=False,
        help="print one JSON document on stdout, everything else on stderr",
    )
    group.add_argument(
        "--submit",
        metavar="URL",
        default=None,
        help="run as a job of the Ray cluster with this dashboard, http://HOST:8265; Ctrl-C stops the job",
    )
    group.add_argument("--version", action="version", version=_version(), help="print the version")
    return parser


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _version() -> str:
    try:
        return f"llm-nas {importlib.metadata.version('llm-nas')}"
    except importlib.metadata.PackageNotFoundError:  # run from a folder, such as the working directory of a Ray job
        return "llm-nas, not installed"


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

    Settings that the space brings along come last of all (`search_spaces.files.SpaceFile`).

    Raises InputError that names the setting, its source and the rule.
    """
    variables = dict(os.environ) if environment is None else environment
    from_file = _read_yaml(config) if config else {}
    from_environment = _from_environment(variables)
    given = {**from_file, **from_environment, **flags}
    from_space = _from_space(given.get("space", SearchSettings.model_fields["space"].default), given.get("model"))
    sources = {
        **dict.fromkeys(from_space, f"space {given.get('space')}: study: "),
        **dict.fromkeys(from_file, f"{config}: "),
        **{name: f"{_variable(name)}: " for name in from_environment},
        **dict.fromkeys(flags, ""),
    }
    try:
        settings = SearchSettings.model_validate({**from_space, **given})
    except ValidationError as error:
        raise InputError(_describe(error, sources)) from error
    if settings.revision is None:
        return settings
    return settings.model_copy(update={"model": with_revision(settings.model, settings.revision)})


def with_commit(settings: SearchSettings, folder: Path) -> SearchSettings:
    """``settings`` with the commit of the teacher's ``folder`` in place of its revision. Workers load that commit."""
    return settings.model_copy(update={"model": at_commit(settings.model, folder)})


def _from_space(space: Any, model: Any) -> dict[str, Any]:
    """The settings that the ``space`` brings along. Raises InputError when it cannot be read, or names itself.

    The texts of a preset come from the hub. The ``model`` mini needs no hub, so it keeps to its own text.
    """
    found = study_settings(space) if isinstance(space, str) else {}
    if "space" in found:
        raise InputError(f"space {space}: study: a space cannot name another space; leave 'space' out")
    left_out = TEXTS if model == "mini" and space in PRESETS else ()
    kept = {name: value for name, value in found.items() if name not in left_out}
    return {name: str(value) if name == "budget" else value for name, value in kept.items()}


def _from_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The settings among ``variables``. Raises InputError for a variable that is nearly one of them."""
    known = {_variable(name): name for name in SearchSettings.model_fields}
    for variable in variables:
        unknown = variable.startswith(ENVIRONMENT_PREFIX) and variable not in known
        if unknown and (close := get_close_matches(variable, list(known), 1, cutoff=0.8)):
            raise InputError(f"{variable}: not a setting; did you mean {close[0]}? Rename it or unset it")
    return {name: value for variable, name in known.items() if (value := variables.get(variable))}


def ignored_variables(environment: Mapping[str, str] | None = None) -> list[str]:
    """The variables that begin like settings and are none, such as those of a network storage."""
    variables = os.environ if environment is None else environment
    known = {_variable(name) for name in SearchSettings.model_fields}
    return sorted(one for one in variables if one.startswith(ENVIRONMENT_PREFIX) and one not in known)


def command_line(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """The command that starts, or continues, the search of ``arguments``; settings of the environment become flags.

    A setting of the environment with a password stays there. That of a flag is hidden.
    """
    given = {one.partition("=")[0] for one in arguments if one.startswith("--")}
    variables = os.environ if environment is None else environment
    found = {_flag(name): value for name in SearchSettings.model_fields if (value := variables.get(_variable(name)))}
    shown = {flag: value for flag, value in found.items() if flag not in given and redacted(value) == value}
    more = [part for pair in shown.items() for part in pair]
    return redacted(shlex.join([*PROGRAM.split(), *arguments, *more]))


def _variable(name: str) -> str:
    return f"{ENVIRONMENT_PREFIX}{name.upper()}"


def _describe(error: ValidationError, sources: dict[str, str]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    source = sources.get(name, "")
    flag = name if source else _flag(name)
    if first["type"] == "missing":
        return f"{flag} is missing: give the size of the student, for example {flag} 260M or {flag} 70%"
    if first["type"] == "extra_forbidden":
        close = suggestion(name, SearchSettings.model_fields)
        return f"{source}unknown setting {name!r}{close}; known are {', '.join(SearchSettings.model_fields)}"
    value = redacted(repr(first["input"]))
    shown = value if len(value) <= 100 else f"{value[:100]}..."
    if first["type"] == "string_pattern_mismatch":
        return f"{source}{flag} {shown}: give letters, digits, '_', '-' and '.', the first no '.' and no '-'"
    return f"{source}{flag} {shown}: {first['msg'].removeprefix('Value error, ')}"


def _read_yaml(config: str) -> dict[str, Any]:
    try:
        content = read_yaml(config)
    except (OSError, ValueError) as error:
        raise InputError(f"--config {config}: not a readable YAML file: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"--config {config}: must be a mapping such as 'budget: 260M'")
    return {str(key): str(value) if key == "budget" else value for key, value in content.items()}


def parse_arguments(arguments: Sequence[str]) -> tuple[SearchSettings, bool, bool]:
    """The settings, whether this is a dry run, and whether the result is printed as JSON."""
    flags = vars(build_parser().parse_args(arguments))
    config, dry_run, as_json, _ = (flags.pop(name) for name in ("config", "dry_run", "json", "submit"))
    return load_settings(flags, config), dry_run, as_json


def submit_address(arguments: Sequence[str]) -> str | None:
    """The value of ``--submit``: the address of the cluster's Jobs API, or None to run here."""
    address: str | None = build_parser().parse_args(arguments).submit
    return address
