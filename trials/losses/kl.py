"""The distillation loss over a whole vocabulary, computed in chunks of tokens to bound memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trials.losses.precision import compiles

# The size of one float32 tensor (chunk, vocabulary). About five such tensors exist at once without compilation.
CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
GRADIENT_CHUNKS = {"cpu": 1, "cuda": 4}  # how many chunks are joined for losses with a gradient
ALIGNED = {"cpu": 1, "cuda": 64}  # logits per token are padded to a multiple of this: 128 bytes suit tensor cores best
NEVER = -3e4  # the logit of padding: its exp is 0, and differences of two such logits are finite

log = logging.getLogger(__name__)


def chunk_tokens(vocabulary: int, device: str) -> int:
    """The number of tokens in a chunk, so that a float32 tensor (chunk, ``vocabulary``) fits in `CHUNK_BYTES`.

    On CUDA it is a power of two, so that micro-batches split into equal chunks and their shape is compiled once.
    """
    most = max(1, CHUNK_BYTES[device] // (4 * vocabulary))
    return most if device == "cpu" else 2 ** (most.bit_length() - 1)


def gradient_chunk_tokens(vocabulary: int, device: str) -> int:
    """`chunk_tokens` for losses with a gradient. Chunks are larger on CUDA.

    Every chunk reads and writes the gradient of the output projection, (V, H) in float32. On an H200, chunks of 8,192
    instead of 2,048 tokens make a training step of gpt2-medium's student 4 % faster.
    """
    return GRADIENT_CHUNKS[device] * chunk_tokens(vocabulary, device)


def chunked_kl(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, chunk: int
) -> Tensor:
    """KL(teacher || student) of the next-token distributions at temperature 1, in mean nats per token.

    ``student_hidden`` (N, H_s) and ``teacher_hidden`` (N, H_t) are the inputs of the output projections
    ``student_weight`` (V, H_s) and ``teacher_weight`` (V, H_t). The loss is differentiable in the student's two
    tensors. ``chunk`` tokens are processed at a time, which bounds memory and does not change the value.

    Forward KL on logits alone is Minitron's recipe (arXiv 2407.14679, section 3; Hinton et al., arXiv 1503.02531).
    The gradient of a softmax has a closed form. It is computed with the loss, chunk by chunk, so that only gradients
    of shape (N, H) and (V, H) are kept. This is the idea of Liger Kernel's fused linear losses (arXiv 2410.10989).
    Under autocast, matrix products run in its dtype; softmax, loss and gradient sums are in float32.
    """
    device, vocabulary, tokens = teacher_hidden.device.type, len(teacher_weight), len(teacher_hidden)
    target, target_weight = _in_autocast_dtype(teacher_hidden, teacher_weight)
    target_weight, one_chunk = _aligned(target_weight), _on(device, _one_chunk)

    def compare(part: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        return one_chunk(logits, _logits(target[part], target_weight, vocabulary), tokens)

    loss: Tensor = _Chunked.apply(student_hidden, student_weight, compare, chunk)  # type: ignore[no-untyped-call]
    return loss


def chunked_drawn_kl(
    student_hidden: Tensor, student_weight: Tensor, ids: Tensor, likelihoods: Tensor, chunk: int
) -> Tensor:
    """An unbiased estimate of `chunked_kl` from k tokens ``ids`` (N, k; int64) drawn from each teacher distribution.

    ``likelihoods`` (N,) are the teacher's log-probabilities in nats, averaged over the k drawn tokens. For x_j drawn
    from p with replacement, the expectation of sum_j (log p(x_j) - log q(x_j)) / k is KL(p || q). The expectation of
    its gradient is the gradient of the KL. For the logits, the gradient is q minus each token's share of the k draws
    (random sampling knowledge distillation, arXiv 2503.16870). The value of a single batch may be below 0.
    """
    one_chunk = _on(student_hidden.device.type, _one_drawn_chunk)

    def compare(part: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        return one_chunk(logits, ids[part], likelihoods[part], len(ids))

    loss: Tensor = _Chunked.apply(student_hidden, student_weight, compare, chunk)  # type: ignore[no-untyped-call]
    return loss


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    """Cross-entropy with the tokens ``ids`` (N,; int64) in mean nats per token; otherwise as `chunked_kl`.

    It equals the KL divergence from distributions that give each token of ``ids`` probability 1.
    """
    return chunked_drawn_kl(hidden, weight, ids[:, None], hidden.new_zeros(len(ids), dtype=torch.float32), chunk)


Compare = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""Maps the rows of a chunk and the student's logits (n, V) to the summed loss and the mean loss's logit gradient."""


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, compare: Compare, chunk: int) -> Tensor:
        device, tokens = hidden.device.type, hidden.shape[0]
        needed: tuple[bool, ...] = ctx.needs_input_grad
        hidden_grad = torch.empty_like(hidden, dtype=torch.float32) if needed[0] else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None
        own, own_weight = _in_autocast_dtype(hidden, weight)
        vocabulary, own_weight = len(weight), _aligned(own_weight)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, tokens, chunk):
                part = slice(start, start + chunk)
                loss, logits_grad = compare(part, _logits(own[part], own_weight, vocabulary))
                total += loss
                if hidden_grad is not None:
                    hidden_grad[part] = logits_grad @ own_weight
                if weight_grad is not None:
                    weight_grad += (logits_grad.T @ own[part])[:vocabulary]
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.dtypes = (hidden.dtype, weight.dtype)
        return (total / tokens).float()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_grad, weight_grad = (
            None if grad is None else (grad * grad_outputs[0]).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return hidden_grad, weight_grad, None, None


def _in_autocast_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    device = tensors[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensors[0].dtype
    return tuple(tensor.detach().to(dtype) for tensor in tensors)


def _aligned(weight: Tensor) -> Tensor:
    """``weight`` (V, H), padded with rows of zeros to a multiple of `ALIGNED`."""
    lacking = -len(weight) % ALIGNED[weight.device.type]
    return F.pad(weight, (0, 0, 0, lacking)) if lacking else weight


def _logits(states: Tensor, weight: Tensor, vocabulary: int) -> Tensor:
    """The logits (n, aligned V) of ``states`` (n, H) with an `_aligned` ``weight``; `NEVER` from ``vocabulary`` on."""
    logits = states @ weight.T
    if logits.shape[1] > vocabulary:
        logits[:, vocabulary:] = NEVER
    return logits


OneChunk = Callable[..., tuple[Tensor, Tensor]]


@lru_cache
def _on(device: str, one_chunk: OneChunk) -> OneChunk:
    """``one_chunk``, compiled if ``device`` allows it: two or three passes over the logits instead of about ten."""
    compiled, reason = compiles(device)
    if compiled:
        return torch.compile(one_chunk)
    if device != "cpu":
        log.warning(reason)
    return one_chunk


def _one_chunk(logits: Tensor, teacher_logits: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """The summed KL of a chunk of logits (n, V), and the logit gradient of its part in the mean over ``tokens``."""
    own = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    target = torch.log_softmax(teacher_logits, dim=-1, dtype=torch.float32)
    probability = target.exp()
    loss = torch.sum(target.sub_(own).mul_(probability))
    return loss, own.exp_().sub_(probability).div_(tokens).to(logits.dtype)


def _one_drawn_chunk(logits: Tensor, ids: Tensor, likelihoods: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """As `_one_chunk`, from drawn tokens ``ids`` (n, k) and the teacher's mean log-probabilities of them (n,)."""
    own = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    loss = likelihoods.sum() - own.gather(1, ids).mean(dim=1).sum()
    gradient = own.exp_()
    gradient = gradient.scatter_add_(1, ids, gradient.new_full(ids.shape, -1 / ids.shape[1]))
    return loss, gradient.div_(tokens).to(logits.dtype)
