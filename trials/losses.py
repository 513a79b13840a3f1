"""Losses window by window, text by text, and the one number they come to. No torch: readers need none."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# By the name of a validation text: the loss of each of its windows in nats per token, shape (n,).
WindowLosses = Mapping[str, NDArray[np.float64]]
OF_TEXT = "val_loss/"  # before the name of a text: the metric that is the loss on it


def mean_loss(losses: WindowLosses) -> float:
    """The one number by which candidates are compared: the mean over texts, each counting alike, of their losses."""
    return float(np.mean([one.mean() for one in losses.values()]))


def text_losses(losses: WindowLosses) -> dict[str, float]:
    """The mean loss on each text; nothing where there is one text alone, whose mean is all there is to say."""
    return {name: float(one.mean()) for name, one in losses.items()} if len(losses) > 1 else {}
