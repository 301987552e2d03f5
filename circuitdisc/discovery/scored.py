"""What the algorithms that score every edge share: from settings to attribution, and from scores to a discovery."""

import warnings
from collections.abc import Callable
from typing import Annotated, Any, get_args

import numpy as np
from jaxtyping import Float

from circuitdisc.ablation import Ablation
from circuitdisc.checks import check_choice
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.selection import Consistent, Selection
from circuitdisc.discovery.units import SIGN_RESAMPLES, UnitScores
from circuitdisc.engine.gradients.attribution import Attribution
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.gradients.path_points import Points, starts_at_nothing
from circuitdisc.errors import BadSetting, CircuitdiscWarning
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import Option
from circuitdisc.stats import Partition, partition_of
from circuitdisc.tasks.base import Task


class Attributing(Consistent, total=False):
    """Choosing by scores that come from a backward pass."""

    rule: Annotated[
        str,
        Option(
            "plain",
            "of the backward pass. `plain`: autograd's own; `relp`: relevance patching; `gim`: gradient interaction "
            "modifications.",
        ),
    ]


def rule_and_selection(options: Attributing) -> tuple[str, Selection]:
    """The rule that is asked for, and how the circuit is chosen."""
    sizing: dict[str, Any] = {name: value for name, value in options.items() if name != "rule"}
    return options.get("rule", "plain"), Selection(**sizing)


FAR_OFF = 0.25
"""From which share on the embedding's scores that do not add up are warned about."""


def attribute(
    name: str,
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    selection: Selection,
    gradient: Gradient,
    scores_of: Callable[[Attribution], Float[np.ndarray, "R S"]],
    rule: str = "plain",
    by_token: bool = True,
) -> Discovery:
    """Score all edges on the train split and choose a circuit.

    Args:
        name: of the algorithm.
        selection: how the circuit is chosen.
        gradient: where gradients are taken.
        scores_of: the scores from an attribution that is ready.
        rule: of the backward pass.
        by_token: the scores are sums over tokens that `add_scores` forms, so that each unit's part can be kept.
    """
    selection.n_edges(model.graph)
    attribution = Attribution(
        model,
        ablation,
        task.train,
        get_metric(context.metric),
        gradient=gradient,
        memory=context.memory,
        name=name,
        progress=context.progress,
        rule=rule,
    )
    over, no_units, share = partition_of(task.train), "", selection.sign_consistent
    if context.keep_units or share is not None:
        no_units = _keep_units(name, attribution, over, by_token)
    if share is not None and no_units:
        raise BadSetting(f"sign_consistent={share:g} looks at resamples of the examples, and that cannot be: {no_units}")
    scores = scores_of(attribution)
    notes, units, allowed = _notes(name, attribution), None, None
    if attribution.units is not None:
        sums = attribution.units.edges(model.graph, attribution.n_rows)
        own_means = ablation.method.averages == "group" and over.by_group and all(example.group for example in task.train)
        frozen = attribution.fitted is not None and not own_means
        units = UnitScores(model.graph, sums, over, selection, frozen, context.seed)
        allowed = units.allowed(np.ones(len(sums)))
    if allowed is not None:
        notes = (*notes, _set_aside(name, model.graph.n_edges, int(allowed.sum()), selection, over))
    circuit, units = selection.circuit(model.graph, scores, allowed), units if context.keep_units else None
    return Discovery(
        circuit, scores, cost=attribution.cost, notes=notes, path_sum=attribution.path_sum, units=units, no_units=no_units
    )


def _set_aside(name: str, n_edges: int, n_allowed: int, selection: Selection, over: Partition) -> str:
    """How many edges may not be chosen, in a sentence."""
    return (
        f"{name} with sign_consistent={selection.sign_consistent:g}: {n_edges - n_allowed:,} of {n_edges:,} edges were set "
        f"aside before the circuit was chosen, since their score is 0 or keeps its sign in a smaller share of "
        f"{SIGN_RESAMPLES:,} bootstrap resamples of the {over.n_drawn:,} search {over.drawn}."
    )


def _keep_units(name: str, attribution: Attribution, over: Partition, by_token: bool) -> str:
    """Have each unit's part of the scores kept; returns why not."""
    if over.n < 2:
        return "one search example cannot be drawn again"
    return attribution.keep_units(over) if by_token else f"{name} forms no scores of single examples"


def _notes(name: str, attribution: Attribution) -> tuple[str, ...]:
    """Whether the scores of an integrated gradient add up, in a sentence; warned about if they are far off."""
    path = attribution.path_sum
    if path is None:
        return ()
    words = (
        f"{name}: the scores {path.where} add up to {path.scores:.4g}, and ablating it changes "
        f"{attribution.metric.name} by {path.change:.4g}; with all points of the way the two are equal, with {path.n_points} "
        f"they are {100 * path.off:.3g} % of an example's change apart."
    )
    if not path.off <= FAR_OFF:
        guide = f"Over {100 * FAR_OFF:g} % scores are a rough guide"
        words = f"{words} {guide}: take more points (eap_ig with steps=20), or algorithm=exact."
        warnings.warn(words, CircuitdiscWarning, stacklevel=2)
    return (words,)


def takes_gauss(points: str, model: Model, ablation: Ablation) -> bool:
    """Whether gradients are taken at Gauss's points; `auto` takes them where the published ones hold an input of 0 to a norm.

    Raises:
        UnknownName: there is no such rule.
    """
    check_choice("points", points, get_args(Points))
    if points == "auto":
        return model.can("gradients") and starts_at_nothing(ablation, model.components.spec)
    return points == "gauss"
