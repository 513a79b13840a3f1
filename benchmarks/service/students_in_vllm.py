r"""Whether vLLM generates what transformers does, with students of each family.

    python -m benchmarks.service.students_in_vllm make FOLDER
    VLLM/bin/python benchmarks/service/students_in_vllm.py check FOLDER

vLLM pins packages of its own, so it has an environment of its own. `make` runs in this project's environment: it
writes students with random weights, each with the tokens that transformers generates. `check` runs in vLLM's
environment, which needs nothing of this project.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

COUNT = 24  # tokens that are generated
PROMPT = [5, 9, 33, 100, 7, 8, 200, 61, 1, 319, 44]
EXPECTED = "expected.json"


def make(folder: Path) -> None:
    """Write a student of each family and kind that vLLM should load, and the greedy tokens of transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from benchmarks.service.where_students_load import config_of, kinds, teacher_of
    from trials.export.loads_in import loads_in
    from trials.families.lookup import family_of
    from trials.families.shapes import SHAPES
    from trials.prune.importance import compute_importance
    from trials.prune.prune import prune

    for family in SHAPES:
        shape = teacher_of(family, tied=True)
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            family, **config_of(family), vocab_size=512, bos_token_id=0, eos_token_id=0, tie_word_embeddings=True
        )
        config.initializer_range = 0.05  # at the usual 0.02, all tokens are about as likely
        teacher = AutoModelForCausalLM.from_config(config).eval()
        scores = compute_importance(teacher, family_of(teacher.config), torch.arange(60).view(4, 15))
        for place, (kind, architecture) in enumerate(kinds(shape)):
            found = loads_in(shape, architecture)
            if not found.vllm:
                print(f"{family}, {kind}: vLLM has no class")
                continue
            student = prune(teacher, scores, architecture).eval()
            into = folder / f"{family}-{place}"
            student.save_pretrained(into)
            ids = torch.tensor([PROMPT])
            made = student.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False
            )
            about = {"what": f"{family}, {kind}, saved as {found.saved_as}", "ids": made[0, len(PROMPT) :].tolist()}
            (into / EXPECTED).write_text(json.dumps(about))


def check(folder: Path) -> int:
    """Generate from each student in vLLM, in float32, and print whether the tokens are those of transformers."""
    from vllm import LLM, SamplingParams

    wrong = 0
    for expected in sorted(folder.glob(f"*/{EXPECTED}")):
        about = json.loads(expected.read_text())
        model = LLM(
            str(expected.parent), dtype="float32", skip_tokenizer_init=True, max_model_len=64, enforce_eager=True
        )
        sampling = SamplingParams(temperature=0, max_tokens=COUNT, min_tokens=COUNT, detokenize=False)
        (made,) = model.generate([{"prompt_token_ids": PROMPT}], sampling, use_tqdm=False)
        equal = list(made.outputs[0].token_ids) == about["ids"]
        wrong += not equal
        print(f"{about['what']}: {'equal' if equal else 'NOT EQUAL'}", flush=True)
        del model
    return wrong


if __name__ == "__main__":
    command, where = sys.argv[1], Path(sys.argv[2])
    if command == "check":
        sys.exit(check(where))
    make(where)
