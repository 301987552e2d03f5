"""The mean over several algorithms' scores: what one estimate gets wrong, another may have right.

1. Score every edge by each member, with the member's own defaults, on the same examples under the same ablation and metric.
2. Bring the members to one scale, where that is asked for: each by its largest score, or each score by its rank.
3. Score an edge by the mean of its members' scores, with their signs. Scores of learned masks and of information flow have
   none: where one of these is a member, all count by their size.
4. Keep the edges with the best scores.

The result is an estimate, as its members are. Their passes add up. A search that was killed begins again.

Source: Mondorf et al. 2025, "BlackboxNLP-2025 MIB Shared Task: Exploring Ensemble Strategies for Circuit Localization Methods"
(https://arxiv.org/abs/2510.06811): the plain mean of EAP and EAP-IG's two kinds, their parallel ensemble.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import check_choice
from circuitdisc.discovery.algorithm import Algorithm
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.registry import get_algorithm
from circuitdisc.discovery.selection import Ranking, Selection
from circuitdisc.engine.patching import Cost
from circuitdisc.errors import BadSetting
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.runs import Journal
from circuitdisc.tasks.base import Task

MEMBERS = ["eap", "eap_ig", "eap_ig_activations"]
Normalise = Literal["none", "max", "ranks"]
Scores = Float[np.ndarray, "E"]


def _by_largest(scores: Scores) -> Scores:
    return scores / (np.abs(scores).max() or 1.0)


def _by_rank(scores: Scores) -> Scores:
    """The share of edges whose score is no larger, of either sign, with the score's own sign; equals share a rank."""
    return np.sign(scores) * rankdata(np.abs(scores)) / len(scores)


SCALES: dict[str, Callable[[Scores], Scores]] = {"none": lambda scores: scores, "max": _by_largest, "ranks": _by_rank}
WORDS = {
    "none": "the mean of the scores of {}",
    "max": "the mean of the scores of {}, each divided by its largest",
    "ranks": "the mean of the ranks of the scores of {}, with their signs",
}


@takes(Ranking)
def ensemble(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    members: Sequence[str] = MEMBERS,
    normalise: Normalise = "none",
    **options: Unpack[Ranking],
) -> Discovery:
    """Score every edge by the mean of several algorithms' scores.

    Args:
        members: algorithms that score edges, those of other packages included.
        normalise: `none`: scores as they are, for members that estimate the same change; `max`: each member's divided by its
            largest; `ranks`: each score's rank by size, with its sign.

    Returns:
        A circuit and the mean score of every edge: an estimate, in the members' unit only with `none`. The trace is empty.

    Raises:
        BadSetting: a member gives no edge scores, is named twice or is no name, or a setting is out of its bounds.
        UnknownName: there is no such algorithm or scale.
    """
    selection = Selection(**options)
    selection.n_edges(model.graph)
    check_choice("normalise", normalise, get_args(Normalise))
    chosen = _members(members)
    names = ", ".join(algorithm.name for algorithm in chosen)
    unsigned = [algorithm.name for algorithm in chosen if "by" not in algorithm.settings]
    if unsigned and selection.by == "signed":
        raise BadSetting(f"by=signed needs scores with a sign, and those of {unsigned[0]} have none: use by=absolute")
    edges, cost, notes = model.graph.edge_mask, Cost(), list[str]()
    mean = np.where(edges, 0.0, np.nan)
    for algorithm in chosen:
        discovery = algorithm.function(model, task, ablation, replace(context, journal=Journal(), keep_units=False))
        if discovery.edge_scores is None:
            raise _no_scores(algorithm.name)
        scores = discovery.edge_scores[edges].astype(np.float64)
        mean[edges] += SCALES[normalise](np.abs(scores) if unsigned else scores) / len(chosen)
        cost.add(discovery.cost)
        notes += discovery.notes
    notes.append(f"ensemble: every score is an estimate, {WORDS[normalise].format(names)}.")
    if unsigned:
        notes.append(f"ensemble: scores of {', '.join(unsigned)} have no sign, so that all count by their size.")
    return Discovery(selection.circuit(model.graph, mean), mean, cost=cost, notes=tuple(notes))


def _members(names: object) -> list[Algorithm]:
    """The algorithms of these names; those of this package that score no edges are refused before anything runs."""
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, Sequence) or not listed or not all(isinstance(name, str) for name in listed):
        raise BadSetting(f"members={names!r} is no list of algorithms: write members=[{','.join(MEMBERS)}]")
    if len(set(listed)) < len(listed):
        raise BadSetting(f"members={list(listed)} names an algorithm twice, which would count twice")
    algorithms = [get_algorithm(name) for name in listed]
    for algorithm in algorithms:
        if algorithm.declared is None and ("edges" not in algorithm.settings or algorithm.name in ("ensemble", "from_file")):
            raise _no_scores(algorithm.name)
    return algorithms


def _no_scores(name: str) -> BadSetting:
    why = "needs settings of its own" if name in ("ensemble", "from_file") else "gives no edge scores"
    return BadSetting(f"'{name}' cannot be a member of an ensemble: it {why}; take algorithms that score every edge, as eap_ig")
