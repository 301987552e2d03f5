"""One circuit for several checkpoints, and a circuit of one checkpoint completed for another.

joint   the algorithm runs once, and every candidate is measured on every checkpoint: it goes only if no checkpoint needs it.
        All checkpoints are in memory at once; what that takes is estimated first and refused beyond the budget.
donor   the algorithm runs on checkpoint B, but may cut only what the circuit of checkpoint A has cut: what B needs of that is
        put back. The result holds all of A's circuit.

Both are the plain algorithm on one checkpoint with nothing spared, and take its settings. `acdc` and `head_ablation` have them:
they decide one by one, where a circuit chosen from scores does not ask a checkpoint what it needs.

Source: the CS224N study of the Transitive Property Problem found that the circuit of one checkpoint may serve another better
than the one found on it.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Bool

from circuitdisc.ablation import Ablation
from circuitdisc.checkpoints.joint_edges import joint_acdc
from circuitdisc.checkpoints.joint_heads import joint_head_ablation
from circuitdisc.checks import check_values
from circuitdisc.circuit import Circuit, Provenance
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.cancelling import cancelling_note
from circuitdisc.discovery.lines import check_lines
from circuitdisc.discovery.registry import get_algorithm, search_identity
from circuitdisc.engine.memory import bytes_per_token, parse_memory
from circuitdisc.errors import BadSetting, CircuitdiscWarning, GraphMismatch, UnknownName
from circuitdisc.files import size_words
from circuitdisc.identity import Identity, hash_circuit, hash_model
from circuitdisc.metrics import get_metric
from circuitdisc.models.model import Model
from circuitdisc.runs import versions
from circuitdisc.tasks.base import Example, Task

JOINT: dict[str, Callable[..., Discovery]] = {"acdc": joint_acdc, "head_ablation": joint_head_ablation}


def check_joint(algorithm: str, settings: dict[str, Any]) -> None:
    """The algorithm can search jointly, and has these settings.

    Raises:
        BadSetting: it cannot, or a setting asks for what only the plain algorithm does.
        UnknownName: it has no such setting.
    """
    if algorithm not in JOINT:
        raise BadSetting(
            f"algorithm '{algorithm}' cannot search on several checkpoints together: {' and '.join(JOINT)} can, which decide "
            "part by part"
        )
    known = get_algorithm(algorithm).settings
    for name in settings:
        if name not in known:
            raise UnknownName(f"setting of algorithm '{algorithm}'", name, known)
    own = _own_settings(algorithm)
    for name, value in settings.items():
        if name not in own and value != known[name]:
            raise BadSetting(f"{name}={value}: a search on several checkpoints together has no such setting: leave it out")


def _own_settings(algorithm: str) -> set[str]:
    """Settings that the joint form of an algorithm has, too."""
    return {
        name for name, parameter in signature(JOINT[algorithm]).parameters.items() if parameter.kind is parameter.KEYWORD_ONLY
    }


def joint_discover(
    models: Sequence[Model],
    task: Task,
    algorithm: str,
    ablation: Ablation,
    context: SearchContext,
    *,
    donor: Circuit | None = None,
    **settings: Any,
) -> Discovery:
    """Find the circuit that every one of several checkpoints needs.

    Args:
        models: checkpoints of one architecture, all in memory.
        task: examples, the same for all.
        context: as `discover` makes it; its memory is for all of them.
        donor: a circuit whose edges (heads) are kept without being asked about.
        settings: the algorithm's own.

    Returns:
        As the algorithm; a decision of the trace has a `metric` for each checkpoint.

    Raises:
        BadSetting: the algorithm has no joint form, or the checkpoints do not fit the budget.
        GraphMismatch: the graphs differ.
        BadRun: the journal was begun with other weights, examples or settings, or by another version.
    """
    check_joint(algorithm, settings)
    check_values(get_algorithm(algorithm).function, settings)
    first = models[0]
    check_lines(algorithm, first.graph, context.journal.decisions, context.journal.path)
    graphs = [model.graph for model in models] + ([donor.graph] if donor is not None else [])
    if odd := next((graph for graph in graphs if graph != first.graph), None):
        raise GraphMismatch(
            f"{first.name} has {first.graph.describe()}, and another has {odd.describe()}: they must be the same"
        )
    share = share_of_memory(models, task.train, context.memory)
    identity = _identity(models, task, algorithm, ablation, context, donor, settings)
    context.journal.bind(identity)
    started = perf_counter()
    own = {name: value for name, value in settings.items() if name in _own_settings(algorithm)}
    discovery = JOINT[algorithm](models, task, ablation, replace(context, memory=share), spared=_mask(donor), **own)
    discovery.cost.seconds = perf_counter() - started
    names = [model.name for model in models]
    cancels = [
        cancelling_note(model, task, ablation, get_metric(context.metric), discovery, algorithm, False, memory=share)
        for model in models
    ]
    blind = cancels[0] if all(cancels) else None  # the changes of one checkpoint suffice to decide
    if blind is not None:
        warnings.warn(blind, CircuitdiscWarning, stacklevel=2)
    provenance = Provenance(
        model=" + ".join(names),
        task=task.name,
        ablation=ablation.to_dict(),
        metric=get_metric(context.metric).name,
        algorithm=algorithm,
        settings={
            **get_algorithm(algorithm).settings,
            **settings,
            **({"joint": names} if donor is None else {"donor": donor.provenance.model}),
        },
        seed=context.seed,
        versions=versions(),
        notes=tuple(dict.fromkeys((*task.notes, *discovery.notes, *((blind,) if blind else ())))),
        identity=identity.to_dict(),
    )
    return replace(discovery, circuit=discovery.circuit.with_provenance(provenance))


def _identity(
    models: Sequence[Model],
    task: Task,
    algorithm: str,
    ablation: Ablation,
    context: SearchContext,
    donor: Circuit | None,
    settings: dict[str, Any],
) -> Identity:
    """What a joint search belongs to: that of a search on the first checkpoint, with the weights of all."""
    own = search_identity(models[0], task, algorithm, ablation, context.metric, context.seed, settings)
    weights = {f"weights of {model.name} (checkpoint {index})": hash_model(model) for index, model in enumerate(models)}
    more = {"donor": None if donor is None else hash_circuit(donor)}
    return replace(own, weights=weights, settings={**own.settings, **more})


def _mask(donor: Circuit | None) -> Bool[np.ndarray, "R S"] | None:
    return None if donor is None else donor.mask


def share_of_memory(models: Sequence[Model], examples: Sequence[Example], memory: str | int) -> str | int:
    """The budget for the activations of each checkpoint, when all are held at once.

    One checkpoint has the whole budget, which is for activations alone, as everywhere. Of several the weights count too, since
    nothing else here holds more than one model.

    Raises:
        BadSetting: they do not fit.
    """
    if len(models) == 1:
        return memory
    budget = parse_memory(memory)
    weights = sum(tensor.numel() * tensor.element_size() for model in models for tensor in model.module.state_dict().values())
    n_tokens = len(examples) * max(len(example) for example in examples)
    values = sum(n_tokens * bytes_per_token(model) for model in models)
    if weights + values > budget:
        raise BadSetting(
            f"a joint search holds all {len(models)} checkpoints at once: about {size_words(weights + values)} "
            f"({size_words(weights)} of weights, {size_words(values)} of activations on {len(examples)} examples), over the "
            f"budget of {size_words(budget)}: raise memory=, take fewer examples (task.n=), or name fewer (joint=[...])"
        )
    return (budget - weights) // len(models)
