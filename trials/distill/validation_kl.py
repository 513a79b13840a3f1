"""How far the predictions of a student are from those of its teacher, on validation text."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from trials.families.lookup import family_of
from trials.losses.kl import chunk_tokens, chunked_kl
from trials.losses.precision import autocast
from trials.losses.window_losses import BATCH_TOKENS
from trials.storage.activation_files import to_tensor
from trials.storage.cache import Cache
from trials.teacher.targets import stored_states
from trials.teacher.teacher import Teacher


def validation_kl(
    student: PreTrainedModel, teacher: Teacher, texts: Mapping[str, NDArray[np.integer]], cache: Cache
) -> float:
    """KL(teacher || student) of the next-token distributions at temperature 1, in mean nats per token.

    ``texts`` holds the windows (n, length) of each text. Every text has the same weight, as in
    `trials.losses.window_losses.mean_loss`. Windows are packed, so there is no padding to count. The teacher's final
    states come from ``cache`` or are computed now. Number formats are those of `window_losses`.
    """
    return float(np.mean([_of_text(student, teacher, windows, cache) for windows in texts.values()]))


@torch.no_grad()
def _of_text(student: PreTrainedModel, teacher: Teacher, windows: NDArray[np.integer], cache: Cache) -> float:
    states, family, device = stored_states(teacher, windows, cache), family_of(teacher.model.config), student.device
    weight, head = family.output_weight(student), family.output_weight(teacher.model)
    batch = max(1, BATCH_TOKENS[device.type] // windows.shape[1])
    total = 0.0
    for start in range(0, len(windows), batch):
        part = slice(start, start + batch)
        tokens = torch.from_numpy(windows[part].astype(np.int64)).to(device)
        wanted = to_tensor(states[part]).to(device, head.dtype).flatten(0, 1)
        with torch.autocast(device.type, enabled=False) if device.type == "cpu" else autocast(device.type):
            own = family.backbone(student, tokens).flatten(0, 1)
            kl = chunked_kl(own, weight, wanted, head, chunk_tokens(len(weight), device.type))
        total += len(tokens) * float(kl)
    return total / len(windows)
