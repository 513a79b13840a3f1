"""The study of layer removal, by its preset, from the command to the table."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

from command import run, small_settings
from matplotlib.image import imread

LEFT_OUT = ("--sampler", "--trials", "--tokens-per-trial", "--tolerance", "--test", "--test-tokens")


def test_every_choice_of_layers_is_a_row_of_the_table(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    given = small_settings(tiny_teacher_folder, tmp_path)
    pairs = zip(given[::2], given[1::2], strict=True)
    flags = [part for pair in pairs if pair[0] not in LEFT_OUT for part in pair]
    flags += ["--space", "layer-removal", "--output", tmp_path, "--json"]
    done = run(*flags)
    assert done.returncode == 0, done.stderr
    for word in ("7 of 7 slices of the teacher are measured", "3/3 timed", "layers removed from", "greedy"):
        assert word in done.stderr
    result = json.loads(done.stdout)
    assert sum(result["trials"].values()) == 7
    folder = tmp_path / result["study"]
    rows = list(csv.DictReader((folder / "report" / "layers.csv").open()))
    assert len(rows) == 2**3 - 1
    baseline, speeds = rows[0], {(row["layers left"], row["ms a token"]) for row in rows}
    assert baseline["layers removed"] == "none"
    assert float(baseline["perplexity"]) == math.exp(float(baseline["val loss"]))
    assert [left for left, _ in sorted(speeds)] == ["1", "2", "3"]  # one speed for each number of layers
    trials = list(csv.DictReader((folder / "report" / "results.csv").open()))
    assert sorted(float(one["val_loss"]) for one in trials) == sorted(float(row["val loss"]) for row in rows)
    assert imread(folder / "report" / "layer_pairs.png").ndim == 3
    files = {one.name for one in (folder / "report").iterdir()}
    assert {"layers.md", "importance.png", "front.png", "sizes.png"} <= files
    assert not (tmp_path / "cache" / "streams").exists()
    again = run(*flags)
    assert again.returncode == 0, again.stderr
    assert "7 of 7 trials are done already" in again.stderr
    assert "measured" not in again.stderr
    assert "layers removed from" in again.stderr
