"""What a search found for one budget, in words, and its winner beside the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas.choosing.agreement import ENOUGH, Agreement
from nas.report.html.models import Model, known_loss
from nas.study.objectives import LOSS
from search_spaces.architecture import Architecture
from search_spaces.compression import BITS
from search_spaces.shape import ModelShape
from trials.export.loads_in import FORMATS, LLAMA_CPP, PROGRAMS, TRANSFORMERS, VLLM

MOSTLY = 0.6  # tau from which four of five pairs are in the same order


@dataclass(frozen=True)
class Size:
    """One size of the winner beside the teacher's: ``text`` is "8 of 8"."""

    name: str
    text: str
    share: float


@dataclass(frozen=True)
class Winner:
    """The winner of one budget.

    ``by_layer`` are its (heads, MLP neurons) in each layer if layers differ. ``removed`` are the teacher's layers that
    it does without.
    """

    key: str
    parameters: int
    share: float
    loss: float
    tokens: int
    stock: bool
    path: str
    load: str
    sizes: tuple[Size, ...]
    by_layer: tuple[tuple[int, int], ...]
    hidden: int
    removed: tuple[int, ...]


def winner_of(result: Mapping[str, Any], shape: ModelShape, scores: Sequence[float]) -> Winner:
    """The winner in the ``result`` document of a budget; ``shape`` and the ``scores`` of layers are the teacher's."""
    best = result["best"]
    own = Architecture.from_dict(best["architecture"])
    trust = "" if best["stock"] else ", trust_remote_code=True"
    return Winner(
        key=own.key,
        parameters=best["params"],
        share=best["params"] / result["teacher"]["params"],
        loss=best["val_loss"],
        tokens=best["tokens"],
        stock=best["stock"],
        path=best["path"],
        load=f'AutoModelForCausalLM.from_pretrained("{best["path"]}"{trust})',
        sizes=sizes_beside_teacher(own, shape),
        by_layer=() if own.is_uniform else tuple(zip(own.heads, own.mlp, strict=True)),
        hidden=own.hidden,
        removed=_removed(own, scores),
    )


def _removed(own: Architecture, scores: Sequence[float]) -> tuple[int, ...]:
    """The layers that ``own`` does without: those that it does not name, or those with the lowest ``scores``."""
    if own.kept_layers:
        return tuple(layer for layer in range(len(scores)) if layer not in own.kept_layers)
    order = sorted(range(len(scores)), key=lambda layer: (scores[layer], -layer))
    return tuple(sorted(order[: len(scores) - own.depth]))


def sizes_beside_teacher(own: Architecture, shape: ModelShape) -> tuple[Size, ...]:
    """The sizes of ``own``, each beside the teacher's; of sizes that differ by layer the mean."""
    heads, mlp = (sum(sizes) / own.depth for sizes in (own.heads, own.mlp))
    pairs = {
        "layers": (own.depth, shape.layers),
        "width": (own.hidden, shape.hidden),
        "heads": (heads, shape.heads),
        "MLP": (mlp, shape.mlp),
    }
    sizes = [Size(name, f"{_figure(one)} of {whole:,}", one / whole) for name, (one, whole) in pairs.items()]
    level, bits = own.compression.sparsity.level, BITS[own.compression.quantization.scheme]
    if level:
        sizes.append(Size("weights that are not 0", f"{1 - level:.0%}", 1 - level))
    if bits < BITS["none"]:
        sizes.append(Size("bits of a weight", f"{bits} of {BITS['none']}", bits / BITS["none"]))
    return tuple(sizes)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


@dataclass(frozen=True)
class Place:
    """A program that may load the winner, or a number format for it: whether it ``works``, and ``how``, or why not."""

    name: str
    works: bool
    how: str


def places_of(result: Mapping[str, Any]) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
    """The programs that load the winner in the ``result`` document, and the formats that it can be quantised to."""
    best = result["best"]
    found = best["loads_in"]
    own = f"with its own class, {found['saved_as']}" if best["stock"] else "with the modelling file that comes with it"
    how = {
        TRANSFORMERS: own,
        VLLM: f"as {found['saved_as']}",
        LLAMA_CPP: f"as {found['route']}: python -m nas.export {best['path']} --format gguf",
    }
    programs = []
    for name in PROGRAMS.values():
        works = name in found["programs"] or name == TRANSFORMERS
        programs.append(Place(name, works, how[name] if works else found["reasons"].get(name, "")))
    formats = (
        Place(one.title, key in found["formats"], _rule(one.inputs, one.outputs)) for key, one in FORMATS.items()
    )
    return tuple(programs), tuple(formats)


def _rule(inputs: int, outputs: int) -> str:
    return f"inputs by multiples of {inputs}" + (f", outputs of {outputs}" if outputs > 1 else "")


def verdict(result: Mapping[str, Any], winner: Winner) -> str:
    """The result of a budget in one sentence, with the interval of the winner's lead."""
    first = (
        f"{winner.key} wins with a validation loss of {winner.loss:.4f} at {winner.share:.1%} of the teacher's "
        "parameters"
    )
    versus = result["winner_vs_runner_up"]
    if versus is None:
        reason = "no other finalist was trained" if result["final"] else "without a final stage there is no interval"
        return f"{first}; {reason}."
    interval = f"95 % interval {versus['low']:+.4f} to {versus['high']:+.4f}"
    if versus["distinguishable"]:
        return f"{first}; the loss of the runner-up is {versus['mean']:.4f} nats a token higher ({interval})."
    return f"{first}; the runner-up is not distinguishable from it: {versus['mean']:+.4f} nats a token ({interval})."


def remarks(result: Mapping[str, Any], ended: int, objectives: Sequence[str]) -> list[str]:
    """What a reader has to know beside the verdict. ``ended`` trials have ended by now."""
    teacher = result["teacher"]["val_loss"]
    found = [f"The teacher's loss is {teacher:.4f}. Losses are in nats per token of validation text: lower is better."]
    for row in result["final"]:
        versus = row["vs_winner"]
        if versus and versus["mean"] < 0 and "teacher" not in row["roles"]:
            doubt = "" if versus["distinguishable"] else ", not distinguishable"
            what = f"{', '.join(row['roles'])}, {row['architecture']}: {versus['mean']:+.4f}{doubt}"
            found.append(f"A baseline has a smaller loss, but cannot win ({what}).")
    if others := ", ".join(one for one in objectives if one != LOSS):
        found.append(f'Of all candidates it has the smallest loss. "Size against loss" shows what less {others} costs.')
    then = sum(count for state, count in result["trials"].items() if state != "RUNNING")
    if ended > then:
        found.append(f"This result is of {then} trials; {ended - then} more have ended since.")
    return found


def progress(models: Sequence[Model], planned: Mapping[str, Any]) -> str:
    """How far a search without a result has come, in one sentence."""
    screened, tried = [one for one in models if one.screen is not None], [one for one in models if one.trial]
    finals = [one for one in models if one.final]
    ended = sum(one.trial is not None and one.trial.state not in ("running", "waiting") for one in tried)
    if finals:
        done = sum(one.final is not None and one.final.state == "complete" for one in finals)
        where = f"{done} of {len(finals)} finals are trained"
    elif tried:
        where = f"{ended} of {planned['trials']} trials have ended"
    elif screened:
        where = f"{len(screened)} of {planned['screenings']} architectures are screened"
    else:
        where = "nothing is measured yet"
    best = min((one for one in finals or tried or screened if known_loss(one) is not None), key=_loss, default=None)
    if best is None:
        return f"No winner yet: {where}."
    return f"No winner yet: {where}, and {best.key} has the smallest loss so far, {known_loss(best):.4f}."


def _loss(model: Model) -> float:
    return known_loss(model) or 0.0


def trust(found: Sequence[Agreement]) -> str:
    """How far the order of the screening can be trusted, in one sentence."""
    screen = next((one for one in found if one.name == "screen"), None)
    if screen is None:
        return "No trial that was screened has run to its end, so nothing can be said about the screening."
    if screen.tau is None or not screen.has_interval:
        return (
            f"Only {screen.pairs} screened architectures were trained to the end of a trial. That is too few to tell "
            f"how far the screening can be trusted; {ENOUGH} would do."
        )
    interval = f"95 % interval {screen.low:+.2f} to {screen.high:+.2f}, {screen.pairs} architectures"
    if screen.low is None or screen.low <= 0:
        return f"The order of the screening says little about that after training: tau {screen.tau:+.2f} ({interval})."
    much = "all" if screen.tau == 1 else "most" if screen.tau >= MOSTLY else "some"
    return f"Training kept {much} of the order of the screening: tau {screen.tau:+.2f} ({interval})."
