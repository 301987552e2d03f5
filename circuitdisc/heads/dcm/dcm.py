"""Desiderata-based component masking (DCM): which heads, groups of heads or edges carry what a desideratum asks for.

1. A desideratum gives prompt pairs and, for each, the answer that the model should give on the clean prompt if the right
   components carried what they carry on the corrupted one (`tasks/desiderata.py`).
2. Each component has a mask m from 0 to 1. Its output in the clean run is mixed with that in the corrupted run, at some
   positions: (1 - m) * clean + m * corrupted. m = 1 patches it. Components behind a patched one see the change.
3. Train the masks by Adam on -logit of the target + penalty * sum of m, clamped to 0..1 after each step; round at 0.5.
4. Of all penalties and seeds take the mask that meets the desideratum most often on a second split; of equal ones the
   smallest.
5. Report on a third split: the share of examples on which the patched model says the target, beside random sets of equal
   size, all components patched, and none; and the same for every whole group of heads.

Source: Davies et al. 2023, "Discovering Variable Binding Circuitry with Desiderata" (https://arxiv.org/abs/2307.03637); by
group of a circuit in Prakash et al. 2024 (https://arxiv.org/abs/2402.14811), whose settings are the defaults here (Adam at
0.1, two epochs, a penalty of 0.01), but for further penalties to choose from.

Shape letters: C components, B examples, X sets of components.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import N_RANDOM, bounded
from circuitdisc.circuit import Circuit
from circuitdisc.engine.changed_heads import Ready, hold
from circuitdisc.engine.path_effects import Positions
from circuitdisc.errors import BadSetting
from circuitdisc.graph import heads_where
from circuitdisc.heads.base import as_list
from circuitdisc.heads.dcm.fit import TARGET_LOGIT, MaskFit, MaskFitting, train_mask
from circuitdisc.heads.dcm.parts import Groups, HeadParts, Parts, check_circuit, parts_of, together
from circuitdisc.heads.dcm.result import Dcm, FoundMask, GroupMet, MaskTrial, Met
from circuitdisc.identity import Identity, identity_of
from circuitdisc.models.model import Model
from circuitdisc.options import from_options, takes
from circuitdisc.progress import progress_bar
from circuitdisc.runs import Journal, Memo
from circuitdisc.stats import partition_of
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.desiderata import Desideratum, of_task
from circuitdisc.tasks.measured import need_choice

AT_ONCE = 100
"""Examples that are measured at once; fewer where the budget is small."""


@bounded(n_random=N_RANDOM)
@takes(MaskFitting)
def dcm(
    model: Model,
    desiderata: Task | Desideratum | Sequence[Desideratum],
    over: str = "head",
    *,
    circuit: Circuit | None = None,
    groups: Groups | None = None,
    positions: Positions | Mapping[str, Positions] | None = None,
    n_random: int = 20,
    journal: Journal | None = None,
    **options: Unpack[MaskFitting],
) -> Dcm:
    """Learn which components carry what each desideratum asks for, and how often patching them brings it about.

    Args:
        desiderata: see `load_desiderata`; a task stands for one whose target is the first of `wrong`.
        over: `head`: the circuit's heads, or all; `group`: whole groups; `edge`: the circuit's edges, all others left alone.
        circuit: whose heads, groups or edges are masked.
        groups: named groups of heads; None takes the circuit's. They also get a line each in the table by group.
        positions: where components are patched: `all`, a position (a role, `end`, an index), several, or with `over=group` a
            mapping from each group to its own; None takes the desideratum's.
        n_random: random sets of equal size: of as many heads of the model, or of as many of the circuit's edges; fewer where
            there are no more.
        seed: of the random sets.
        journal: where every trained mask is written; those already in it are taken over.

    Raises:
        BadSetting: a number is out of its bounds, there is nothing to mask, or the model runs by hooks.
        UnknownName: `over`, a group or a position is not known.
        GraphMismatch: the circuit or a head belongs to another architecture.
        BadTask: a position lies outside a prompt.
        BadRun: the journal is of a call with other settings.

    Source: Davies et al. 2023; Prakash et al. 2024, section 5.
    """
    need_choice(model, "dcm")
    chosen = _as_desiderata(desiderata)
    check_circuit(model.graph, circuit)
    named = dict(groups if groups is not None else circuit.groups if circuit is not None else {})
    given: Any = options
    penalties = tuple(map(float, as_list_of_numbers("penalties", given["penalties"])))
    fit = from_options(MaskFit, given, penalties=penalties, seeds=tuple(as_list("seeds", given["seeds"])))
    if not fit.penalties or not fit.seeds:
        raise BadSetting("penalties= and seeds= need at least one value each")
    places: list[Positions | Mapping[str, Positions]] = [
        desideratum.positions if positions is None else positions for desideratum in chosen
    ]
    parts = [parts_of(model.graph, over, circuit, named, at) for at in places]
    table = [HeadParts(model.graph, named, at) if named else None for at in places]
    identity = _identity(model, over, fit, chosen, parts, places)
    masks, by_group = [], []
    steps = len(chosen) * len(fit.penalties) * len(fit.seeds)
    bar_of = progress_bar(steps, f"dcm on {model.name}", "mask", given["progress"])
    with closing(Memo(journal, identity)) as memo, bar_of as bar:
        for desideratum, own, of_groups in zip(chosen, parts, table, strict=True):
            needed = together([each.needed for each in (own, of_groups) if each is not None])
            how: dict[str, Any] = {"positions": needed, "memory": given["memory"], "name": "dcm"}
            batches = {
                split: hold(model, Ablation("resample"), getattr(desideratum, split), TARGET_LOGIT, batch=size, **how)
                for split, size in (("train", fit.batch), ("choose", AT_ONCE), ("report", AT_ONCE))
            }
            trials = []
            for penalty, order in ((p, s) for p in fit.penalties for s in fit.seeds):

                def learn(
                    penalty: float = penalty, order: int = order, own: Parts = own, batches: Any = batches
                ) -> dict[str, Any]:
                    mask = train_mask(model, own, batches["train"], fit, penalty, order)
                    met = _measure(model, batches["choose"], [(own, _rounded(mask))])["met"][0]
                    return MaskTrial(penalty, order, tuple(mask.tolist()), float(met.mean())).to_dict()

                trials.append(MaskTrial.from_dict(memo.get(f"{desideratum.name}, penalty {penalty!r}, seed {order}", learn)))
                bar.update(1)
            settings = (n_random, given["confidence"], given["seed"])
            masks.append(_report(model, desideratum, own, trials, batches["report"], settings))
            if of_groups is not None:
                by_group += _report_groups(model, desideratum, of_groups, batches["report"], settings)
    graph = model.graph
    return Dcm(over, tuple(masks), tuple(by_group), (graph.n_layers, graph.n_heads), n_random, given["confidence"])


def _rounded(mask: Float[Tensor, "C"]) -> Float[Tensor, "C"]:
    return (mask > 0.5).to(mask.dtype)


@torch.no_grad()
def _measure(
    model: Model, batches: Sequence[Sequence[Ready]], sets: Sequence[tuple[Parts, Float[Tensor, "C"]]]
) -> dict[str, Float[np.ndarray, "X B"]]:
    """What several patched models say.

    Returns:
        met: 1 where the target is the most likely token at every reading, else 0; kept: the same of the clean answer;
        logit: the target's.
    """
    rows: dict[str, list[list[np.ndarray]]] = {name: [[] for _ in sets] for name in ("met", "kept", "logit")}
    for ready in (ready for batch in batches for ready in batch):
        labels, batch = ready.chunk.labels, ready.chunk.batch
        for index, (parts, mask) in enumerate(sets):
            logits = parts.logits(model, ready, mask)
            top = logits.argmax(-1, keepdim=True)
            met = ((top == labels.answers) & labels.answers_mask).any(-1)
            kept = ((top == labels.wrong) & labels.wrong_mask).any(-1)
            values = {"met": met.double(), "kept": kept.double(), "logit": TARGET_LOGIT(logits, labels).double()}
            for name, readings in values.items():
                rows[name][index].append(batch.per_example(readings).cpu().numpy())
    stacked = {name: np.stack([np.concatenate(parts) for parts in each]) for name, each in rows.items()}
    return {name: np.floor(values + 1e-9) if name != "logit" else values for name, values in stacked.items()}


def _report(
    model: Model,
    desideratum: Desideratum,
    parts: Parts,
    trials: Sequence[MaskTrial],
    batches: Sequence[Sequence[Ready]],
    settings: tuple[int, float, int],
) -> FoundMask:
    """The chosen mask of one desideratum on the third split."""
    (n_random, confidence, seed), over = settings, partition_of(desideratum.report)
    best = min(range(len(trials)), key=lambda i: (-trials[i].chosen_by, trials[i].size, i))
    mask = torch.tensor(trials[best].mask, dtype=torch.promote_types(model.dtype, torch.float32), device=model.device)
    kept = (mask > 0.5).cpu().numpy()
    drawn = parts.random(kept, n_random, np.random.default_rng(seed))
    one_mask = torch.ones(1, dtype=mask.dtype, device=mask.device)
    sets = [(parts, _rounded(mask)), (parts, torch.ones_like(mask)), (parts, torch.zeros_like(mask))]
    values = _measure(model, batches, [*sets, *((each, one_mask) for each in drawn)])
    patched, everything, nothing, *random = (
        Met.of(values["met"][i], values["kept"][i], values["logit"][i], confidence, over) for i in range(len(sets) + len(drawn))
    )
    return FoundMask(
        desideratum.name, parts.names, tuple(trials), best, patched, everything, nothing, tuple(each.share for each in random),
        {name: len(getattr(desideratum, name)) for name in ("train", "choose", "report")}, values["met"],
    )  # fmt: skip


def _report_groups(
    model: Model,
    desideratum: Desideratum,
    groups: HeadParts,
    batches: Sequence[Sequence[Ready]],
    settings: tuple[int, float, int],
) -> list[GroupMet]:
    """Every whole group patched alone, beside random sets of as many heads at the same positions."""
    (n_random, confidence, seed), over = settings, partition_of(desideratum.report)
    reports = []
    n = len(groups.names)
    ones = torch.ones(1, dtype=torch.promote_types(model.dtype, torch.float32), device=model.device)
    for index, name in enumerate(groups.names):
        alone = np.arange(n) == index
        drawn = groups.random(alone, n_random, np.random.default_rng([seed, index]))
        mask = torch.from_numpy(alone).to(ones)
        values = _measure(model, batches, [(groups, mask), *((each, ones) for each in drawn)])
        met, *random = (
            Met.of(values["met"][i], values["kept"][i], values["logit"][i], confidence, over) for i in range(1 + len(drawn))
        )
        heads = tuple(heads_where(groups.members[index]))
        at = groups.positions[index if len(groups.positions) > 1 else 0]
        reports.append(GroupMet(desideratum.name, name, heads, words_of(at), met, tuple(each.share for each in random)))
    return reports


def words_of(positions: Positions) -> str:
    """Positions as people read them."""
    return str(positions) if isinstance(positions, str | int) else ", ".join(map(str, positions))


def _as_desiderata(given: Task | Desideratum | Sequence[Desideratum]) -> list[Desideratum]:
    if isinstance(given, Task):
        return [of_task(given)]
    desiderata = [given] if isinstance(given, Desideratum) else list(given)
    names = [desideratum.name for desideratum in desiderata]
    if not desiderata or len(set(names)) < len(names):
        raise BadSetting(f"desiderata={names!r} cannot be used: give at least one, each with a name of its own")
    return desiderata


def as_list_of_numbers(name: str, value: float | Sequence[float]) -> list[float]:
    """Several numbers, or one as a list of itself."""
    return [value] if isinstance(value, int | float) else as_list(name, value)


def _identity(
    model: Model, over: str, fit: MaskFit, chosen: Sequence[Desideratum], parts: Sequence[Parts], places: Sequence[Any]
) -> Identity:
    """What the trained masks belong to. The examples of the report are no part of it: it is made each time."""
    examples = {
        f"{split} examples of desideratum '{desideratum.name}'": getattr(desideratum, split)
        for desideratum in chosen
        for split in ("train", "choose")
    }
    components = {
        desideratum.name: [list(own.names), str(place)] for desideratum, own, place in zip(chosen, parts, places, strict=True)
    }
    return identity_of(model, examples, {"over": over, **fit.to_dict(), "components": components})
