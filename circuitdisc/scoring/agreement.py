"""Agreement: how often is the circuit's most likely token the full model's, be it right or wrong?

    agreement(C)  share of examples with argmax of C's logits = argmax of M's logits, over the whole vocabulary

Faithfulness compares means, in which one example's error can make up for another's; accuracy counts right answers alone.
Agreement counts each example, and a circuit that mends the model's mistakes loses by it. Where the full model finds several
tokens most likely, each of them agrees.

Source: Stanton et al. 2021, "Does Knowledge Distillation Really Work?", average top-1 agreement
(https://arxiv.org/abs/2106.05945).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from circuitdisc.checks import N_RANDOM, bounded
from circuitdisc.circuit import Circuit
from circuitdisc.controls import random_circuits
from circuitdisc.metrics import Labels, Metric
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.progress import work_bar
from circuitdisc.results import Result, Row
from circuitdisc.scoring.base import Score
from circuitdisc.scoring.chance import RANDOM_CIRCUITS, chance_caveats
from circuitdisc.scoring.judging import Judging, check_graph, judging
from circuitdisc.scoring.kind import ScoreCall, ScoreDescription, ScoreKind
from circuitdisc.scoring.score import masks_of
from circuitdisc.scoring.work import READY, CircuitRuns, Works, counted, defaults_of
from circuitdisc.stats import share_interval
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.measured import need_choice
from circuitdisc.wording import SPLIT_WORDS, percent, span


def agrees(logits: Float[Tensor, "... N V"], labels: Labels) -> Float[Tensor, "... N"]:
    """1 where the most likely token is one of the full model's most likely ones, else 0."""
    full = labels.full_logprobs
    assert full is not None
    chosen = full.expand_as(logits).gather(-1, logits.argmax(-1, keepdim=True))[..., 0]
    return (chosen == full.amax(-1)).to(logits.dtype)


AGREES = Metric("agreement", agrees, differentiable=False, least_outputs=2)


@dataclass(frozen=True, repr=False)
class TopAgreement(Result):
    """How often a circuit agrees with the full model.

    Args:
        circuit, empty: the shares of the circuit, with random circuits as controls, and of the empty circuit.
        n: examples.
        cost: node evaluations, runs and seconds.
        method: how the intervals were made, and over what.
    """

    circuit: Score
    empty: Score
    n: int
    split: str
    ablation: str
    metric: str
    confidence: float
    cost: Mapping[str, float]
    method: str = ""

    def table(self) -> list[Row]:
        """A line for the circuit, one for the empty circuit."""
        return [
            {"of": of, **row}
            for of, agreement in (("circuit", self.circuit), ("empty circuit", self.empty))
            for row in agreement.table()
        ]

    def describe(self) -> ScoreDescription:
        """What it says."""
        own, nothing = float(self.circuit.value or 0.0), float(self.empty.value or 0.0)
        drawn = [value for value in self.circuit.controls if value is not None]
        rows = [{"of": "circuit", **_row(self.circuit)}, {"of": "empty circuit", **_row(self.empty)}]
        if drawn:
            ends = {"low": min(drawn), "high": max(drawn), "n": self.n}
            rows.append({"of": f"{len(drawn):,} random circuits: median, lowest, highest", "agreement": median(drawn), **ends})
        said = (
            f"On {_valued(self.circuit)} of {self.n:,} {SPLIT_WORDS[self.split]} the circuit's most likely token is the full "
            "model's, be it right or wrong."
        )
        caveats = (
            []
            if own > nothing
            else ["The empty circuit agrees at least as often: so far agreement is no merit of this circuit."]
        )
        as_good = sum(value >= own for value in drawn)
        chance = chance_caveats(
            RANDOM_CIRCUITS, "agree at least as often with the model", self.circuit.controls, as_good, self.circuit.matched
        )
        note = "Share of the examples on which the most likely token of the whole vocabulary is the full model's"
        return ScoreDescription([f"The empty circuit's is on {_valued(self.empty)}."], rows, note, [said], [*caveats, *chance])


def _valued(score: Score) -> str:
    return f"{percent(score.value)} {span(score.name, score.low, score.high)}".rstrip()


def _row(score: Score) -> dict[str, Any]:
    return {"agreement": score.value, "low": score.low, "high": score.high, "n": score.n}


@bounded(n_random=N_RANDOM)
@takes(Judging)
def agreement(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    n_random: int = 20,
    **options: Unpack[Judging],
) -> TopAgreement:
    """Compare the most likely tokens of a circuit and of the full model, example by example.

    Args:
        n_random: random circuits matched with this one; fewer where there are no more.
        seed: of the random circuits.

    Raises:
        GraphMismatch: the circuit belongs to another architecture.
        BadSetting: a number is out of its bounds, the split is empty, no ablation is known, or the model has one output.

    Source: Stanton et al. 2021.
    """
    started = time.perf_counter()
    check_graph(model, circuit)
    need_choice(model, "agreement")
    setup = judging(model, task, circuit.provenance, {**options, "metric": AGREES})
    examples, over, confidence = setup.examples, setup.over, setup.confidence
    controls = random_circuits(circuit, n_random, np.random.default_rng(setup.seed))
    masks = {name: mask for name, mask in masks_of(circuit, controls).items() if name != "full"}
    patching = setup.patching()
    weights = dict.fromkeys(masks, 1.0) | {"circuit": 1 + READY, "empty": 0.0}
    with work_bar(sum(weights.values()) * len(examples), "agreement", setup.progress) as bar:
        found = patching.evaluate(examples, masks, [AGREES], keep=counted(bar, weights))
    values = {name: by_metric[AGREES.name].double().cpu().numpy() for name, by_metric in found.items()}
    labels = (setup.split, setup.ablation.label, AGREES.name, len(examples))

    def share(name: str, drawn: tuple[float, ...] = (), matched: str = "") -> Score:
        ends = share_interval(values[name], groups=over, confidence=confidence)
        value = float(values[name].mean())
        return Score("agreement", *labels, value, *ends.ends, confidence, drawn, method=ends.method, matched=matched)

    drawn = tuple(float(row.mean()) for name, row in values.items() if name not in ("circuit", "empty"))
    own, nothing = share("circuit", drawn, controls.words), share("empty")
    patching.cost.seconds = time.perf_counter() - started
    return TopAgreement(own, nothing, len(examples), *labels[:3], confidence, dict(vars(patching.cost)), own.method)


DEFAULTS = defaults_of(agreement)


def _work(call: ScoreCall) -> Works:
    return [CircuitRuns(2 + DEFAULTS["n_random"], len(call.task.heldout))]


SCORE = ScoreKind(
    "agreement",
    "how often is the circuit's most likely token the full model's?",
    TopAgreement,
    lambda call: call.run(agreement),
    work=_work,
)
