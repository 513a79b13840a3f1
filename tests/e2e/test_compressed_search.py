"""A search for a budget in bytes, over sizes, sparsity and bits together."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from command import run, small_settings
from transformers import AutoModelForCausalLM

from search_spaces.architecture import Architecture
from trials.export.packed import unpack


def without(settings: list[object], *flags: str) -> list[object]:
    """``settings`` without these flags and their values."""
    pairs = zip(settings[::2], settings[1::2], strict=True)
    return [one for flag, value in pairs if flag not in flags for one in (flag, value)]


def test_sizes_sparsity_and_bits_share_a_budget_in_bytes(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    flags = ["--space", "mixed", "--budget", "62%B", "--tolerance", 0.2, "--objectives", "loss,bytes", "--trials", 2]
    flags += ["--screened", 8, "--finalists", 1, "--output", tmp_path / "out"]
    given = without(small_settings(tiny_teacher_folder, tmp_path), "--tolerance", "--trials")
    done = run(*given, *flags, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["budget"]["unit"] == "bytes"
    assert sum(result["trials"].values()) == 2
    folder = tmp_path / "out" / result["study"]
    rows = list(csv.DictReader((folder / "report" / "results.csv").read_text().splitlines()))
    assert all(result["budget"]["minimum"] <= int(row["stored_bytes"]) <= result["budget"]["maximum"] for row in rows)
    best = Architecture.from_dict(result["best"]["architecture"])
    card = (folder / "best" / "README.md").read_text()
    assert json.dumps(best.to_dict()) in card
    trust = {} if result["best"]["stock"] else {"trust_remote_code": True}
    model = AutoModelForCausalLM.from_pretrained(folder / "best", **trust)
    assert torch.isfinite(model(torch.arange(20)[None]).logits).all()
    if best.compression.sparsity.level:
        assert unpack(folder / "best" / "packed.safetensors")
    for word in ("none/int8", "random", "file MB", "MB of weights"):
        assert word in done.stderr
    assert all("bytes" in one for one in result["front"])


def test_a_wrong_recipe_ends_with_the_name_of_the_field(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("sparsity: [1.2]")
    done = run("--budget", "60%", "--model", "mini", "--space", space, "--output", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: space {space}: sparsity.level 1.2: must be from 0 to 0.95\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("preset", ["sparsity", "pdp"])
def test_a_preset_of_a_study_ends_with_its_table(preset: str, tiny_teacher_folder: Path, tmp_path: Path) -> None:
    given = without(small_settings(tiny_teacher_folder, tmp_path), "--trials", "--sampler", "--test", "--test-tokens")
    done = run(*given, "--space", preset, "--sampler", "random", "--trials", 2, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (report,) = (tmp_path / "out").glob("*/report")
    rows = list(csv.DictReader((report / "sparsity.csv").read_text().splitlines()))
    assert len(rows) == 3
    assert rows[0]["model"] == "teacher"
    assert all(0.5 <= float(row["sparsity"]) <= 0.9 and row["distilled"] == "yes" for row in rows[1:])
    assert all(row["how"] in done.stdout for row in rows)
