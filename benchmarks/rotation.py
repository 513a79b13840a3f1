"""The residual stream cut to its principal components, against the channels that matter most, before retraining.

    python -m benchmarks.rotation
    python -m benchmarks.rotation --model teachers/SmolLM2-135M-Instruct.Q4_1.gguf --corpus ./wikitext-2

Rotated, the stream of all layers is held in the k principal components of what the norms make of it, one rotation for
the whole network (SliceGPT, arXiv 2401.15024, has one for each layer, and matrices between them that no stock model
has). The rotation is exact where the weights of a norm go into the matrices that read it. So that embeddings stay tied,
those of the final norm are all their mean, and the last layer is refitted to a stream multiplied by what they were.

Here the teacher itself is kept in its full width with all that is written to its stream projected to the components,
which computes what the rotated and cut model would. Both are refitted (`trials.refit`); excess of the validation loss
over the teacher's in nats per token.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from benchmarks.flags import flags_of, plan_of
from benchmarks.pruning import REFIT, SLICES, Bench
from search_spaces.architecture import Architecture
from trials.losses import mean_loss
from trials.prune import choose
from trials.refit import refit
from trials.stored import to_tensor
from trials.streams import Streams

SHARES = (0.875, 0.75, 0.5)


@dataclass(frozen=True, eq=False)
class Projected(Streams):
    """A teacher's streams in the range of ``projection`` (H, H) alone."""

    projection: Tensor
    gain: Tensor
    centred: bool

    def before(self, layer: int) -> Tensor:
        stream = super().before(layer)
        if layer == len(self.inputs) - 1:  # the final norm keeps one gain for all; the last layer makes up for the rest
            stream = (stream - stream.mean(dim=1, keepdim=True) if self.centred else stream) * self.gain
        return stream @ self.projection

    def after_attention(self, layer: int) -> Tensor:
        return (Streams.before(self, layer) + to_tensor(self.attention[layer]).float()) @ self.projection


def components(bench: Bench) -> Tensor:
    """The directions (H, H) of the normalised streams of all layers, as columns, strongest first.

    For a LayerNorm the streams are centred, as it does itself.
    """
    streams, shape = bench.common.streams, bench.common.teacher.shape
    centred = bench.common.teacher.model.config.model_type in ("gpt2", "gpt_neox")
    total = torch.zeros(shape.hidden, shape.hidden)
    for layer in range(shape.layers + 1):
        stream = streams.before(layer)
        if centred:
            stream -= stream.mean(dim=1, keepdim=True)
        stream /= stream.norm(dim=1, keepdim=True)
        total += stream.T @ stream
    vectors: Tensor = torch.linalg.eigh(total.double()).eigenvectors
    return vectors.flip(1).float()


@torch.no_grad()
def rotated(bench: Bench, projection: Tensor, refitted: bool) -> PreTrainedModel:
    """The teacher whose embeddings and output projections write to the range of ``projection`` alone."""
    common, family = bench.common, bench.common.targets.family
    model = copy.deepcopy(common.teacher.model)
    head = copy.deepcopy(model.get_output_embeddings())
    head.weight = torch.nn.Parameter(head.weight.clone())
    model.set_output_embeddings(head)  # the embeddings are projected, what reads the stream is not
    model.config.tie_word_embeddings = False
    inputs = [model.get_input_embeddings().weight]
    inputs += [model.transformer.wpe.weight] if hasattr(model, "transformer") else []
    for weight in inputs:
        weight.copy_(weight @ projection)
    for layer in family.layers(model):
        for module in (family.attention_output(layer), family.mlp_output(layer)):
            weight = module.get_parameter("weight")
            weight.copy_(weight @ projection if isinstance(module, Conv1D) else projection @ weight)
            if (bias := dict(module.named_parameters()).get("bias")) is not None:
                bias.copy_(bias @ projection)
    norm = dict(family.norms(model)[-1].named_parameters())
    gain, scale = norm["weight"].clone(), norm["weight"].mean()
    norm["weight"].fill_(scale)
    if "bias" in norm:
        norm["bias"].copy_(norm["bias"] @ projection)
    head.weight.copy_(head.weight @ projection)
    if refitted:
        kept = choose(common.scores, common.teacher.shape.full, common.teacher.shape.group)
        parts = (common.streams.windows, common.streams.inputs, common.streams.attention)
        refit(model, family, kept, Projected(*parts, projection, gain / scale, "bias" in norm))
    return model


def compare(bench: Bench, directions: Tensor, share: float) -> None:
    """Print the lines of one width."""
    shape = bench.common.teacher.shape
    width = round(share * shape.hidden)
    architecture = Architecture.uniform(shape.layers, width, shape.heads, shape.mlp, shape.kv_heads)
    projection = directions[:, :width] @ directions[:, :width].T
    for name, students in (
        ("channels", (bench.student(architecture, way) for way in (SLICES, REFIT))),
        ("components", (rotated(bench, projection, refitted) for refitted in (False, True))),
    ):
        excess = [mean_loss(bench.losses(one)) - bench.teacher_loss for one in students]
        print(f"{width:>6} {name:<12}{excess[0]:8.3f}{excess[1]:8.3f}", flush=True)


def main() -> None:
    parser = flags_of(__doc__)
    flags = parser.parse_args()
    plan = plan_of(flags)
    bench = Bench(plan.recipe, plan.cache)
    shape, directions = bench.common.teacher.shape, components(bench)
    print(f"teacher {bench.teacher_loss:.4f}, width {shape.hidden}")
    print(f"{'width':>6} {'kept':<12}{'slices':>8}{'refit':>8}")
    for share in SHARES:
        compare(bench, directions, share)


if __name__ == "__main__":
    main()
