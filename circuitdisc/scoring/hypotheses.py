"""Hypothesis tests of a circuit: five statements about an ideal circuit, each with a p value.

With s_i the metric on example i, M the full model, C the circuit, M \\ C its complement (everything that C cuts), and the
distance d(A, B) = mean over examples of |s_i(A) - s_i(B)|:

    equivalence        H0: |P(s(C) > s(M)) - 1/2| < epsilon. Sign test, example by example.
    independence       H0: s(M \\ C) and s(M) are independent. HSIC, permuted.
    minimality         H0, for each edge e of C: P(d(C, C - e) > d(I, I - f)) >= q, where I is C inflated by a random path and
                       f a random edge of what was added. An edge for which it is rejected does no more than chance edges do.
                       Holm.
    sufficiency        H0: P(d(M, C) < d(M, R)) <= q, R a random circuit of the same size.
    partial necessity  H0: P(d(M, M \\ C) > d(M, M \\ R)) <= q.

An ideal circuit keeps the first three hypotheses and rejects the last two. In a head circuit heads stand where edges do.

Source: Shi et al. 2024, "Hypothesis Testing the Circuit Hypothesis in LLMs" (https://arxiv.org/abs/2410.13032).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float
from typing_extensions import Unpack

from circuitdisc.checks import SEED, SHARE, Real, Whole, bounded, check_choice
from circuitdisc.circuit import Circuit
from circuitdisc.controls import random_circuits
from circuitdisc.engine.part_removal import PartRemoval
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting
from circuitdisc.identity import identity_of
from circuitdisc.metrics import Metric
from circuitdisc.models.model import Model
from circuitdisc.options import Option, Working, takes
from circuitdisc.progress import work_bar
from circuitdisc.runs import Memo
from circuitdisc.scoring.base import judging_ablation
from circuitdisc.scoring.changes import complement, inflate, members, random_paths, without
from circuitdisc.scoring.exact_tests import apart, holm, hsic_test, less_often, more_often, sign_test
from circuitdisc.scoring.hypotheses_result import HypothesisTest, HypothesisTests, MemberTests
from circuitdisc.scoring.judging import ByMetric, check_graph
from circuitdisc.scoring.kind import ScoreCall, ScoreKind
from circuitdisc.scoring.work import DENSE, EDGES, CircuitRuns, Works, defaults_of
from circuitdisc.tasks.base import SPLITS, Example, Task
from circuitdisc.tasks.measured import metric_for

RANDOM = ("matched", "paths")
BELOW_HALF, PERMUTATIONS = Real(0, 0.5, open_high=True), Whole(1, 10_000_000)

Values = Mapping[str, Float[np.ndarray, "B"]]
"""Name of a circuit -> its metric, example by example."""


class Testing(Working, ByMetric, total=False):
    """What is tested, and how strictly."""

    split: Annotated[str, Option("heldout", "the examples that it is tested on.")]
    seed: Annotated[int, Option(0, "of the permutations and everything drawn.", SEED)]
    alpha: Annotated[float, Option(0.05, "level of each test; minimality holds it over all its edges together.", SHARE)]
    epsilon: Annotated[float, Option(0.1, "how far from 1/2 the sign test allows, from 0 to below 1/2.", BELOW_HALF)]
    quantile: Annotated[float, Option(0.9, "q of the last three tests.", SHARE)]
    n_permutations: Annotated[
        int, Option(1000, "of the independence test; its p value is no smaller than 1 / (n_permutations + 1).", PERMUTATIONS)
    ]


@bounded(n_random=Whole(1, 100_000), most_members=Whole(1, 2**31 - 1))
@takes(Testing)
def hypothesis_tests(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    n_random: int = 100,
    random: str = "paths",
    most_members: int | None = None,
    journal: str | Path | None = None,
    **options: Unpack[Testing],
) -> HypothesisTests:
    """Test a circuit against all five hypotheses.

    Args:
        metric: the score of the task; None takes what the circuit was found with, or the task's.
        n_random: inflated circuits, and random circuits.
        random: `paths`, the published test: random paths from an embedding to `logits` until there are at least as many edges,
            each drawn without regard to the others and to the circuit. `matched`: the controls of `score`, all different and
            none of them the circuit; fewer than n_random where there are no more. Head circuits always have these: as many
            heads in each layer.
        most_members: test so many of the circuit's edges for minimality, drawn at random; None tests all.
        journal: a file for the values of each circuit as they come. Called again with it, a killed test goes on where it was,
            to the same result bit for bit.

    Returns:
        The five tests, those of the edges one by one, and the values that they are made from.

    Raises:
        GraphMismatch: the circuit belongs to another architecture.
        BadSetting: a number is out of its bounds, the metric compares with the full model, a value is not finite, or the
            circuit is empty or the whole graph, or no other circuit is matched with it.
        UnknownName: the metric, the ablation or a word is not known.
        BadRun: the journal was begun with other settings, or cannot be written.

    Source: Shi et al. 2024.
    """
    given: Any = options
    split, seed, epsilon, quantile, alpha = (given[name] for name in ("split", "seed", "epsilon", "quantile", "alpha"))
    check_graph(model, circuit)
    check_choice("split", split, SPLITS)
    check_choice("random", random, RANDOM)
    if not 0 <= epsilon < 0.5:
        raise BadSetting(f"epsilon={epsilon!r} must lie from 0 to below 1/2: shares further from 1/2 than that do not exist")
    if not members(circuit):
        raise BadSetting("the circuit is empty, so that there is nothing to test")
    measure = metric_for(model, task, given["metric"], circuit.provenance.metric)
    cut = judging_ablation(given["ablation"], circuit.provenance)
    examples = _examples(task, split, measure)
    tested = _draw_members(circuit, most_members, np.random.default_rng([seed, 0]))
    by_paths = random == "paths" and circuit.granularity == "edge"
    drawn = None if by_paths else _matched(circuit, n_random, np.random.default_rng([seed, 3]))
    circuits = dict(_circuits(circuit, tested, n_random, drawn, np.random.default_rng([seed, 1])))
    n_drawn = n_random if drawn is None else len(drawn)
    patching = Patching(model, cut, task.train, memory=given["memory"])
    settings: dict[str, Any] = {
        "ablation": cut.label, "metric": measure.name, "split": split, "epsilon": epsilon, "quantile": quantile,
        "n_permutations": given["n_permutations"], "n_random": n_random, "random": random, "most_members": most_members,
        "seed": seed,
    }  # fmt: skip
    of = {"train examples": task.train, "tested examples": examples}
    matched = {} if drawn is None else {"drawn": [one.n_edges for one in drawn]}
    # the budget decides on the chunks, and each chunk of examples is a unit
    units = Memo(journal, identity_of(model, of, {**settings, "memory": str(given["memory"]), **matched}, circuit))
    try:
        values = _evaluate(patching, examples, circuit, circuits, tested, measure, units, given["progress"])
    finally:
        units.close()
    members_tested = _member_tests(values, tested, n_random, quantile, alpha)
    tests = (
        _equivalence(values, epsilon, alpha),
        _independence(values, given["n_permutations"], alpha, np.random.default_rng([seed, 2])),
        _minimality(members_tested, quantile, alpha, n_random, len(members(circuit))),
        _sufficiency(values, n_drawn, quantile, alpha),
        _partial_necessity(values, n_drawn, quantile, alpha),
    )
    return HypothesisTests(
        tests,
        members_tested,
        {name: values[name] for name in ("full", "circuit", "complement")},
        np.array([distance(values["full"], values[f"random{index}"]) for index in range(n_drawn)]),
        np.array([distance(values["full"], values[f"random_complement{index}"]) for index in range(n_drawn)]),
        len(examples),
        settings,
    )


def distance(first: Float[np.ndarray, "B"], second: Float[np.ndarray, "B"]) -> float:
    """d: mean over examples of the absolute difference, those of rounding alone counting 0."""
    return float((np.abs(first - second) * apart(first, second)).mean())


# --- the circuits and their values ---------------------------------------------------------------------------------------


def _examples(task: Task, split: str, measure: Metric) -> tuple[Example, ...]:
    if measure.zero_at_full:
        raise BadSetting(f"metric '{measure.name}' compares with the full model and is no score of the task: use logit_diff")
    examples = task.split(split)
    if len(examples) < 2:
        raise BadSetting(f"split='{split}' has {len(examples)} examples: a test needs two at least, and better a hundred")
    if measure.needs_wrong and not all(all(example.wrong) for example in examples):
        raise BadSetting(f"metric '{measure.name}' needs wrong answers, and the task has examples without: use log_prob")
    return examples


def _draw_members(circuit: Circuit, most: int | None, generator: np.random.Generator) -> list[str]:
    names = members(circuit)
    if most is None or most >= len(names):
        return names
    return [names[index] for index in np.sort(generator.choice(len(names), most, replace=False))]


def _matched(circuit: Circuit, n: int, generator: np.random.Generator) -> tuple[Circuit, ...]:
    controls = random_circuits(circuit, n, generator)
    if not controls.circuits:
        raise BadSetting(
            f"the circuit {controls.note}, so that two of the tests cannot be made: take random=paths, or another circuit"
        )
    return controls.circuits


def _circuits(
    circuit: Circuit, tested: list[str], n_random: int, matched: Sequence[Circuit] | None, generator: np.random.Generator
) -> Iterator[tuple[str, Circuit]]:
    """Every circuit that is run, by name.

    Args:
        matched: the random circuits; None draws random paths.
    """
    yield "full", Circuit.full(circuit.graph)
    yield "circuit", circuit
    yield "complement", complement(circuit)
    for name in tested:
        yield f"without {name}", without(circuit, name)
    for index in range(n_random):
        inflated, reduced = inflate(circuit, generator)
        yield f"inflated{index}", inflated
        yield f"reduced{index}", reduced
        if matched is None:
            drawn = random_paths(circuit, generator)
        elif index < len(matched):
            drawn = matched[index]
        else:
            continue
        yield f"random{index}", drawn
        yield f"random_complement{index}", complement(drawn)


def _evaluate(
    patching: Patching,
    examples: tuple[Example, ...],
    circuit: Circuit,
    circuits: dict[str, Circuit],
    tested: list[str],
    measure: Metric,
    units: Memo,
    progress: bool,
) -> Values:
    """The metric of every circuit, example by example. Those that lack one edge are run incrementally."""
    found: dict[str, list[list[float]]] = {name: [] for name in circuits}
    by = "head" if circuit.granularity == "head" else "edge"
    whole = sum(map(_share, circuits)) * len(examples)
    with work_bar(whole, "hypothesis tests", progress) as bar:
        for place, chunk in enumerate(patching.shares(examples)):
            removal = PartRemoval(patching, [chunk], measure, by)
            for names, compute in _groups(removal, circuit, circuits, tested):
                unit, runs = f"{place} {names[0]}", sum(map(_share, names)) * chunk.n_examples
                known = units.knows(unit)
                values = units.get(unit, lambda compute=compute: compute().tolist())
                for name, row in zip(names, values, strict=True):
                    removal.know(circuits[name].mask, np.array(row))
                    found[name].append(row)
                if known:
                    bar.total -= runs
                else:
                    bar.update(runs)
    return {name: np.concatenate(rows) for name, rows in found.items()}


def _share(name: str) -> float:
    """Of a run, that the circuit of this name takes."""
    return EDGES if name.startswith("without ") else DENSE if "complement" in name else 1.0


DEFAULTS = defaults_of(hypothesis_tests)


def _work(call: ScoreCall) -> Works:
    given, n = DEFAULTS, len(call.task.heldout)
    tested, n_random = len(members(call.circuit)), given["n_random"]
    return [CircuitRuns(2 + 3 * n_random, n), CircuitRuns(1 + n_random, n, DENSE), CircuitRuns(tested, n, EDGES)]


def _groups(
    removal: PartRemoval, circuit: Circuit, circuits: dict[str, Circuit], tested: list[str]
) -> Iterator[tuple[list[str], Callable[[], Float[np.ndarray, "n B"]]]]:
    """Names of circuits that are run together, and the function that runs them."""
    lacking = {f"without {name}" for name in tested}
    for name, one in circuits.items():
        if name in lacking or name.startswith("reduced"):
            continue
        if name.startswith("inflated") and circuit.granularity == "edge":
            smaller = name.replace("inflated", "reduced")
            (edge,) = (one - circuits[smaller]).edge_names()
            yield [name, smaller], partial(_with_and_without, removal, one.mask, edge)
        else:
            yield [name], lambda mask=one.mask: removal.values(mask)[None]
            if name.startswith("inflated"):
                yield [name.replace("inflated", "reduced")], lambda: removal.values(circuit.mask)[None]
    if circuit.granularity == "head" or not removal.cuts_edges:
        for name in tested:
            yield [f"without {name}"], lambda name=name: removal.each_removed(circuit.mask, [name])
        return
    for places, compute in removal.edge_groups(circuit.mask, tested):
        yield [f"without {tested[place]}" for place in places], compute


def _with_and_without(removal: PartRemoval, mask: Bool[np.ndarray, "R S"], edge: str) -> Float[np.ndarray, "2 B"]:
    """A circuit and the same without one edge, from one run and what the edge changes."""
    fewer = removal.each_removed(mask, [edge])[0]
    return np.stack([removal.values(mask), fewer])


# --- the five tests ------------------------------------------------------------------------------------------------------


def _equivalence(values: Values, epsilon: float, alpha: float) -> HypothesisTest:
    statistic, p_value, n = sign_test(values["circuit"], values["full"], epsilon)
    null = f"the circuit scores above the full model about as often as below it: |P - 1/2| < {epsilon:g}"
    n_ties = len(values["full"]) - n
    note = f"{n_ties} examples on which both score the same are left out" if n_ties else ""
    return HypothesisTest("equivalence", null, "|share - 1/2|", statistic, p_value, alpha, n, False, note)


def _independence(values: Values, n_permutations: int, alpha: float, generator: np.random.Generator) -> HypothesisTest:
    statistic, p_value = hsic_test(values["full"], values["complement"], n_permutations, generator)
    null = "the score of the model without the circuit says nothing about the full model's"
    n = len(values["full"])
    return HypothesisTest("independence", null, "HSIC", statistic, p_value, alpha, n, False)


def _member_tests(values: Values, tested: list[str], n_random: int, quantile: float, alpha: float) -> MemberTests:
    chance = np.array([distance(values[f"inflated{index}"], values[f"reduced{index}"]) for index in range(n_random)])
    effects = np.array([distance(values["circuit"], values[f"without {name}"]) for name in tested])
    hits = (effects[:, None] > chance[None, :]).sum(1)
    p_values = np.array([less_often(int(count), n_random, quantile) for count in hits])
    adjusted = holm(p_values)
    return MemberTests(tuple(tested), effects, chance, hits / n_random, p_values, adjusted, adjusted <= alpha)


def _minimality(found: MemberTests, quantile: float, alpha: float, n_random: int, n_members: int) -> HypothesisTest:
    null = f"removing any one edge (or head) changes more than removing a random added one, in at least {quantile:.0%} of draws"
    note = f"{int(found.rejected.sum())} of {len(found.names)} tested do no more than that"
    if len(found.names) < n_members:
        note += f"; {n_members - len(found.names)} were not tested"
    statistic, p_value = float(found.shares.min()), float(found.adjusted.min())
    return HypothesisTest("minimality", null, "smallest share", statistic, p_value, alpha, n_random, False, note)


def _sufficiency(values: Values, n_random: int, quantile: float, alpha: float) -> HypothesisTest:
    own = distance(values["full"], values["circuit"])
    hits = sum(own < distance(values["full"], values[f"random{index}"]) for index in range(n_random))
    null = f"the circuit is closer to the full model than at most {quantile:.0%} of random circuits of its size"
    p_value = more_often(hits, n_random, quantile)
    return HypothesisTest("sufficiency", null, "share", hits / n_random, p_value, alpha, n_random, True)


def _partial_necessity(values: Values, n_random: int, quantile: float, alpha: float) -> HypothesisTest:
    own = distance(values["full"], values["complement"])
    hits = sum(own > distance(values["full"], values[f"random_complement{index}"]) for index in range(n_random))
    null = f"taking the circuit out changes more than taking out a random one does, in at most {quantile:.0%} of draws"
    p_value = more_often(hits, n_random, quantile)
    return HypothesisTest("partial necessity", null, "share", hits / n_random, p_value, alpha, n_random, True)


SCORE = ScoreKind(
    "tests",
    "five hypotheses of an ideal circuit, each with a p value",
    HypothesisTests,
    lambda call: call.run(hypothesis_tests, journal=call.journal),
    title="hypothesis tests",
    always=True,
    work=_work,
)
