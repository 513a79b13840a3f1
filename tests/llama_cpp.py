"""GGUF files in llama.cpp itself, exact: key/value cache in float32, no flash attention, one thread.

llama.cpp ends its whole process when a file is wrong, so each file is loaded in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCAB = 320


@dataclass(frozen=True)
class Answer:
    """What llama.cpp computes.

    ``log_probabilities`` holds those of the next token, (VOCAB,), for each prompt; ``greedy`` the most likely
    continuation of the last prompt; ``tokens`` the ids of each text, with those around every text.
    """

    log_probabilities: list[list[float]]
    greedy: list[int]
    tokens: list[list[int]]


def ask(path: Path, prompts: Sequence[list[int]] = (), count: int = 0, texts: Sequence[str] = ()) -> Answer:
    """The answer for the GGUF file ``path``. Raises RuntimeError with llama.cpp's words when it does not load."""
    asked = json.dumps({"path": str(path), "prompts": list(prompts), "count": count, "texts": list(texts)})
    done = subprocess.run([sys.executable, "-I", __file__], input=asked, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return Answer(**json.loads(done.stdout.splitlines()[-1]))


def _serve(asked: dict[str, Any]) -> dict[str, Any]:
    import xllamacpp

    wanted = xllamacpp.CommonParams()
    wanted.model.path = asked["path"]
    wanted.cache_type_k = wanted.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    wanted.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    wanted.warmup, wanted.fit_params, wanted.n_ctx, wanted.n_gpu_layers = False, False, 64, 0
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(wanted)

    def post(way: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + way, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def complete(prompt: list[int], count: int, shown: int) -> dict[str, Any]:
        settings = {"temperature": 0.0, "ignore_eos": True, "return_tokens": True, "n_probs": shown}
        return post("/completion", {"prompt": prompt, "n_predict": count, **settings})

    def likely(prompt: list[int]) -> list[float]:
        step = complete(prompt, 1, VOCAB)["completion_probabilities"][0]
        found = {one["id"]: one["logprob"] for one in step["top_logprobs"]}
        return [found.get(token, float("nan")) for token in range(VOCAB)]

    return {
        "log_probabilities": [likely(prompt) for prompt in asked["prompts"]],
        "greedy": complete(asked["prompts"][-1], asked["count"], 0)["tokens"] if asked["count"] else [],
        "tokens": [
            post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
            for text in asked["texts"]
        ],
    }


if __name__ == "__main__":
    print("\n" + json.dumps(_serve(json.loads(sys.stdin.read()))))
