"""The discovery algorithms by name, and `discover`. A new algorithm is a file, a line here and a file in conf/algorithm.

Other packages enter theirs as entry points (`circuitdisc/plugins.py`), and they are called as those here are:
`my_algorithm(model, task, ablation, context, *, setting=default, ...) -> Discovery`.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Annotated, Any

from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation, get_ablation
from circuitdisc.checks import SEED, check_values
from circuitdisc.circuit import Provenance
from circuitdisc.discovery.algorithm import Algorithm, adopt_algorithm, algorithm_of
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.cancelling import cancelling_note
from circuitdisc.discovery.lines import check_lines
from circuitdisc.discovery.presearch import ability_metric, ability_of, corruption_notes
from circuitdisc.discovery.target import discover_to_target
from circuitdisc.engine.measuring import Ablating
from circuitdisc.engine.patching import Cost, Patching
from circuitdisc.engine.ranks import agreed
from circuitdisc.errors import BadSetting, CircuitdiscWarning, MetricAtChance, UnknownName
from circuitdisc.identity import Identity, identity_of, with_contents
from circuitdisc.metrics import REGISTRY as METRIC_REGISTRY
from circuitdisc.metrics import AnyMetric, Metric, get_metric
from circuitdisc.models.model import Model
from circuitdisc.options import Option, Working, of_others, takes
from circuitdisc.plugins import Registry, refuse_mark
from circuitdisc.runs import Journal, versions
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.measured import is_numeric, metric_for

HELD_NORM = (
    "a norm couples the heads of a layer, and the number by which it divides is held at the full model's run: "
    "`circuitdisc score RUN model.exact_norm=true` shows what that costs"
)
ALGORITHMS = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("acdc", "cut every edge that the metric does not miss, from logits backwards (Conmy et al. 2023)"),
        Algorithm("bisect", "drop edges in groups, least important first, and halve the groups that matter"),
        Algorithm("refine", "any circuit, walked by exact search backwards and forwards until neither changes it"),
        Algorithm("head_ablation", "ablate heads layer by layer against each layer's baseline (the TPP study)"),
        Algorithm("path_patching", "heads whose paths into the logits, then into each other, matter (Wang et al. 2022)"),
        Algorithm(
            "eap", "difference times gradient at the full model, for every edge (Syed et al. 2023)", by_mean=True, by_unit=True
        ),
        Algorithm(
            "eap_ig",
            "the same with gradients averaged between ablated and clean inputs (Hanna et al. 2024)",
            by_mean=True,
            by_unit=True,
        ),
        Algorithm(
            "eap_ig_activations",
            "the same with gradients averaged between ablated and clean activations",
            by_mean=True,
            by_unit=True,
        ),
        Algorithm(
            "clean_corrupted",
            "the same with gradients averaged over the clean and the ablated inputs",
            by_mean=True,
            by_unit=True,
        ),
        Algorithm(
            "ceap",
            "what flows through every edge between clean and corrupted inputs (Wu et al. 2026)",
            by_mean=True,
            by_unit=True,
        ),
        Algorithm(
            "eap_gp",
            "the same with gradients averaged along a path that follows a gradient (Zhang et al. 2025)",
            by_mean=True,
            by_unit=True,
        ),
        Algorithm("atp", "the same with an exact softmax for edges into q and k (Kramar et al. 2024)", by_mean=True),
        Algorithm("information_flow", "widest routes from logits downwards on clean prompts alone (Ferrando and Voita 2024)"),
        Algorithm("edge_pruning", "learned masks on edges with a given number of them (Bhaskar et al. 2024)"),
        Algorithm("subnetwork_probing", "learned masks on edges or nodes at a price for each (Cao et al. 2021)"),
        Algorithm("soft_topk", "one learned ranking of edges, trained over circuits of all sizes"),
        Algorithm("hisp", "keep the heads whose output the metric is most sensitive to (Michel et al. 2019)"),
        Algorithm("exact", "cut every edge alone: what the attributions estimate", by_mean=True),
        Algorithm("ensemble", "the mean over several algorithms' scores (Mondorf et al. 2025)", by_mean=True),
        Algorithm("from_file", "scores of edges from a file: an algorithm that lives elsewhere"),
        Algorithm("random", "random scores: the control"),
    )
}


REGISTRY = Registry(
    "algorithm",
    ALGORITHMS,
    adopt_algorithm,
    "a function (model, task, ablation, context, *, setting=default, ...)",
    lambda algorithm: algorithm.settings,
)


def get_algorithm(algorithm: str | Callable[..., Discovery]) -> Algorithm:
    """An algorithm by its name, or a function of one's own as one.

    Raises:
        UnknownName, BadSetting: there is none of this name, or the function cannot be called as an algorithm is.
    """
    if isinstance(algorithm, str):
        refuse_mark("algorithm", algorithm)
        return REGISTRY.get(algorithm)
    return algorithm_of(algorithm)


class Searching(Ablating, Working, total=False, extra_items=Any):
    """What every search takes; further settings are the algorithm's own."""

    seed: Annotated[int, Option(0, "of everything random in the algorithm.", SEED)]


@takes(Searching)
def discover(
    model: Model,
    task: Task,
    algorithm: str | Callable[..., Discovery] = "acdc",
    *,
    allow_chance: bool = False,
    journal: Journal | None = None,
    keep_units: bool = False,
    **options: Unpack[Searching],
) -> Discovery:
    """Find the circuit of a task on its train split.

    Args:
        algorithm: a name from `ALGORITHMS`, or of an algorithm of another package; or a function of your own,
            `(model, task, ablation, *, setting=default, ...) -> Discovery`, whose fourth argument, if it has one, is the
            `SearchContext`.
        ablation: `zero`, `mean`, `resample`, or an `Ablation` with settings.
        allow_chance: search even though the model does not do the task, or its corrupted prompts change nothing.
        journal: decisions are written there as they are made, and those already in it are taken over; they must belong to the
            same weights, train examples and settings.
        keep_units: also keep what each example (or group of them) adds to the scores, in the result's `units`: searches on
            samples of the examples then take no run. Where the algorithm cannot, or memory is too small, `no_units` says why.
        settings: the algorithm's own (see its docstring).

    Returns:
        The circuit with provenance, edge scores if the algorithm has any, the trace of decisions and the cost.

    Raises:
        UnknownName: algorithm, metric, ablation or setting is not known.
        BadSetting: a setting is out of its bounds.
        MetricAtChance: the model does not do the task, and `allow_chance` is not set.
        NothingToExplain: under `resample` the corrupted prompts change nothing that can be told from 0, and it is not set.
        BadRun: the journal was begun with other weights, examples or settings, or by another version.
    """
    given: Any = options
    seed, memory, settings = given["seed"], given["memory"], of_others(Searching, given)
    chosen, ablation = get_algorithm(algorithm), get_ablation(given["ablation"])
    asked, algorithm, known = algorithm, chosen.name, chosen.settings
    measure = metric_for(model, task, given["metric"])
    for name in settings:
        if name not in known:
            raise UnknownName(f"setting of algorithm '{algorithm}'", name, known)
        if isinstance(known[name], bool) and not isinstance(settings[name], bool):
            raise BadSetting(f"{name}={settings[name]!r} of algorithm '{algorithm}' must be true or false")
    check_values(chosen.function, settings)  # before anything is computed
    journal = journal if journal is not None else Journal()
    identity = search_identity(model, task, asked, ablation, measure, seed, settings)
    journal.bind(identity)
    check_lines(algorithm, model.graph, journal.decisions, journal.path)
    full = None if allow_chance else refuse_chance(model, task, measure)
    held = (HELD_NORM,) if model.can("partial runs") and model.components.freezes_scales else ()
    notes = (*held, *task.notes, *corruption_notes(model, task, ablation, measure, memory, allow_nothing=allow_chance))
    context = SearchContext(measure, memory, seed, journal, given["progress"], keep_units)
    started = perf_counter()
    aims = settings.get("target") is not None and chosen.declared is None
    search = partial(discover_to_target, chosen.function, known) if aims else chosen.function
    discovery = search(model, task, ablation, context, **settings)
    if not isinstance(discovery, Discovery):
        raise BadSetting(f"algorithm '{algorithm}' gave a {type(discovery).__name__}: an algorithm must return a Discovery")
    if keep_units and discovery.units is None and not discovery.no_units:
        discovery.no_units = f"{algorithm} keeps no score of every edge for each example"
    discovery.cost.seconds = perf_counter() - started
    discovery.cost = Cost(**agreed(vars(discovery.cost)))  # the number of random controls rests on it
    cancels = cancelling_note(
        model, task, ablation, measure, discovery, algorithm, chosen.by_mean and discovery.signed, full, memory
    )
    if cancels is not None:
        warnings.warn(cancels, CircuitdiscWarning, stacklevel=2)
    provenance = Provenance(
        model=model.name,
        task=task.name,
        ablation=ablation.to_dict(),
        metric=measure.name,
        algorithm=algorithm,
        settings={**known, **settings},
        seed=seed,
        versions=versions() | _packages(algorithm, settings) | ablation.versions | METRIC_REGISTRY.versions(measure.name),
        notes=tuple(dict.fromkeys((*notes, *discovery.notes, *((cancels,) if cancels else ())))),
        identity=identity.to_dict(),
    )
    return replace(discovery, circuit=discovery.circuit.with_provenance(provenance))


def search_identity(
    model: Model,
    task: Task,
    algorithm: str | Callable[..., Discovery],
    ablation: str | Ablation | dict[str, Any],
    metric: AnyMetric | None,
    seed: int,
    settings: dict[str, Any],
) -> Identity:
    """What a search belongs to; the arguments are those of `discover`."""
    ablation, measure = get_ablation(ablation), get_metric(metric, task.metric).name
    chosen = get_algorithm(algorithm)
    asked = {
        "algorithm": {"name": chosen.name, **with_contents({**chosen.settings, **settings})},
        "ablation": ablation.to_dict(),
        "metric": measure,
        "seed": seed,
    }
    packages = _packages(chosen.name, settings) | ablation.versions | METRIC_REGISTRY.versions(measure)
    return identity_of(model, {"train examples": task.train}, asked).with_packages(packages)


def _packages(algorithm: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Versions of the packages whose algorithms a search runs: this one's, and its members'."""
    members = settings.get("members", ())
    members = [members] if isinstance(members, str) else members if isinstance(members, Sequence) else ()
    return {package: version for name in (algorithm, *members) for package, version in REGISTRY.versions(name).items()}


def refuse_chance(model: Model, task: Task, measured: Metric | None = None) -> Float[Tensor, "B"] | None:
    """Make sure that the model does the task on the train split, so that there is something to find.

    `ability_of` says when it does. A model with one output and no targets is not judged: nothing says what is right.

    Args:
        measured: another metric, which the same run measures.

    Returns:
        The full model's values of `measured`, or of the metric that was tested, on the train examples; None if it is not
        judged.

    Raises:
        MetricAtChance: it does not.
    """
    if model.d_vocab_out < 2 and not is_numeric(task.train):
        return None
    metric = ability_metric(task.train)
    patching = Patching(model, Ablation("zero"), task.train)
    measured = measured or metric
    both = list({each.name: each for each in (metric, measured)}.values())  # each once: values are collected by name
    values = patching.evaluate(task.train, {"full": model.graph.edge_mask}, both)["full"]
    shown = ability_of(model, task.train, values[metric.name])
    if not shown.does:
        raise MetricAtChance(
            f"{model.name} does not do task '{task.name}': {metric.name} on {len(task.train)} train examples is "
            f"{shown.mean:.3g} ± {shown.error:.2g}, which is not above {shown.chance}, so there is no circuit to find. "
            "To search all the same (the base of a ladder, say) set allow_chance=true"
        )
    return values[measured.name]
