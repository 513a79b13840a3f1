"""Trains `mini`, the embedded teacher, on the text of the Python standard library, or evaluates a trained one.

    python -m benchmarks.mini.train --output DIR [--steps N]
    python -m benchmarks.mini.train --evaluate DIR

DIR becomes a complete checkpoint folder every 200 steps. An interrupted run continues from the state beside it,
`DIR.state.pt`. The tokenizer and the model see only the training side of the split.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.mini.evaluation import held_out_report
from benchmarks.mini.model import (
    CONTEXT,
    PEAK_RATE,
    new_model,
    new_optimizers,
    train_tokenizer,
    wrapped,
    write_checkpoint,
)
from trials.text.corpus import BatchOrder, windows
from trials.text.packing import encode
from trials.text.stdlib_text import training_documents, validation_documents

SAVE_EVERY = 200
LOG_EVERY = 20
LAST_RATE, WARMUP_STEPS = 1e-4, 50
DECAY_SHARE = 0.4
PROBE_WINDOWS = 48
REPLICAS = 2  # on the CPU, one thread each


@dataclass
class Progress:
    """The state from which a run continues: the model in float32, its optimizers, and the steps and seconds so far."""

    model: GPT2LMHeadModel
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0


def main() -> None:
    arguments = parse_arguments()
    if arguments.evaluate:
        print(json.dumps(held_out_report(arguments.evaluate), indent=2))
        return
    train(arguments.output, arguments.steps, arguments.batch, arguments.seed)
    print(json.dumps(held_out_report(arguments.output), indent=2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, help="train, and write the checkpoint to this folder")
    what.add_argument("--evaluate", type=Path, help="print the held-out metrics of this checkpoint folder")
    parser.add_argument("--steps", type=int, default=2200, help="total optimizer steps (default: 2200)")
    parser.add_argument("--batch", type=int, default=16, help=f"windows of {CONTEXT} tokens a step (default: 16)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train(output: Path, steps: int, batch: int, seed: int) -> None:
    """Train for ``steps`` steps of ``batch`` windows. An interrupted run continues with the remaining steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    texts = [document.text for document in training_documents()]
    known = output / "tokenizer.json"
    tokenizer = wrapped(Tokenizer.from_file(str(known))) if training_state(output).exists() else train_tokenizer(texts)
    train_windows = pack(tokenizer, texts)
    held_out = pack(tokenizer, [document.text for document in validation_documents()])
    probe = torch.from_numpy(held_out[:PROBE_WINDOWS]).to(device)
    order = BatchOrder(len(train_windows), batch, seed)
    progress = resume(output, device, seed)
    parameters = sum(parameter.numel() for parameter in progress.model.parameters())
    print(f"{parameters:,} parameters, {train_windows.size:,} training tokens, from step {progress.step}", flush=True)
    replicas = replicate(progress.model)
    while progress.step < steps:
        started = time.perf_counter()
        set_rate(progress, learning_rate(progress.step, steps))
        batch_windows = torch.from_numpy(train_windows[order.indices(progress.step)]).to(device)
        loss = train_step(progress, replicas, batch_windows)
        progress.step += 1
        progress.seconds += time.perf_counter() - started
        if progress.step % LOG_EVERY == 0 or progress.step == steps:
            log(progress, steps, batch, loss)
        if progress.step % SAVE_EVERY == 0 or progress.step == steps:
            save(progress, tokenizer, output)
            print(f"step {progress.step} held-out {probe_loss(progress.model, probe):.4f}", flush=True)


def train_step(progress: Progress, replicas: list[GPT2LMHeadModel], batch: torch.Tensor) -> float:
    """One step on token windows (batch, CONTEXT). Returns the mean loss in nats per token.

    Each replica processes an equal part in its own thread. On a shared machine this is much faster than threads within
    each operation, which wait for each other hundreds of times per step.
    """
    parts = batch.chunk(len(replicas))
    with ThreadPoolExecutor(len(parts)) as threads:
        losses = list(threads.map(backward, replicas, parts))
    own = dict(progress.model.named_parameters())
    for (name, first), *others in zip(*(replica.named_parameters() for replica in replicas), strict=True):
        own[name].grad = sum((other.grad for _, other in others), start=first.grad) / len(parts)
    torch.nn.utils.clip_grad_norm_(progress.model.parameters(), 1.0)
    for optimizer in progress.optimizers:
        optimizer.step()
    for model in (progress.model, *replicas):
        model.zero_grad(set_to_none=True)
    return sum(losses) / len(losses)


def backward(model: GPT2LMHeadModel, windows_of_tokens: torch.Tensor) -> float:
    torch.set_num_threads(1)  # in this thread only; the optimizer step uses all threads
    with autocast(windows_of_tokens.device):
        loss = model(input_ids=windows_of_tokens, labels=windows_of_tokens).loss
    loss.backward()
    return float(loss.detach())


def replicate(model: GPT2LMHeadModel) -> list[GPT2LMHeadModel]:
    """Copies of the model that share its weights and have their own gradients."""
    replicas = [copy.deepcopy(model) for _ in range(REPLICAS if model.device.type == "cpu" else 1)]
    for replica in replicas:
        for parameter, own in zip(replica.parameters(), model.parameters(), strict=True):
            parameter.data = own.data
    return replicas


def set_rate(progress: Progress, rate: float) -> None:
    for optimizer in progress.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 if the hardware multiplies it natively. Emulated bfloat16 is several times slower than float32."""
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up to PEAK_RATE, then constant, then a linear decay to LAST_RATE over the last DECAY_SHARE of steps.

    Before the decay begins, the rate does not depend on ``steps``. A run can therefore be stopped and continued with
    another number of steps, with the same result as if it had had that number from the start.
    """
    if step < WARMUP_STEPS:
        return PEAK_RATE * (step + 1) / WARMUP_STEPS
    left = (steps - step) / (DECAY_SHARE * steps)
    return LAST_RATE + (PEAK_RATE - LAST_RATE) * min(1.0, left)


@torch.no_grad()
def probe_loss(model: GPT2LMHeadModel, probe: torch.Tensor) -> float:
    """Mean nats per token on a few fixed held-out windows, for the log. It is not the published value."""
    parts = torch.split(probe, 8)
    return float(np.mean([float(model(input_ids=part, labels=part).loss) for part in parts]))


def resume(output: Path, device: torch.device, seed: int) -> Progress:
    """The state of an interrupted run, or a freshly initialised model."""
    model = new_model(seed).to(device)
    progress = Progress(model, new_optimizers(model))
    state_file = training_state(output)
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(progress.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        progress.step, progress.seconds = state["step"], state["seconds"]
    return progress


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> npt.NDArray[np.int64]:
    """Documents, each followed by the end-of-text token, as int64 windows (n, CONTEXT)."""
    tokens = [token for ids in encode(tokenizer, texts) for token in [*ids, tokenizer.eos_token_id]]
    return windows(np.asarray(tokens, dtype=np.int64), CONTEXT)


def save(progress: Progress, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write the checkpoint folder and the state to continue from, each atomically."""
    temporary = output.with_name(output.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    write_checkpoint(progress.model, tokenizer, temporary)
    retired = output.with_name(output.name + ".retired")
    shutil.rmtree(retired, ignore_errors=True)
    if output.exists():
        output.rename(retired)
    temporary.rename(output)
    shutil.rmtree(retired, ignore_errors=True)
    optimizers = [optimizer.state_dict() for optimizer in progress.optimizers]
    state = {"model": progress.model.state_dict(), "optimizers": optimizers}
    torch.save(state | {"step": progress.step, "seconds": progress.seconds}, f"{training_state(output)}.partial")
    os.replace(f"{training_state(output)}.partial", training_state(output))


def training_state(output: Path) -> Path:
    return output.with_name(output.name + ".state.pt")


def log(progress: Progress, steps: int, batch: int, loss: float) -> None:
    pace = progress.step / progress.seconds
    left = (steps - progress.step) / pace
    print(
        f"step {progress.step}/{steps} loss {loss:.4f} {pace * batch * CONTEXT:,.0f} tok/s eta {left / 60:.1f} min",
        flush=True,
    )


if __name__ == "__main__":
    main()
