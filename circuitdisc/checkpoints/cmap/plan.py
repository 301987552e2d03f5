"""What `cmap` will take, before it runs: from the sizes in config.json and the lengths of the prompts. No weights are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuitdisc.checkpoints.cmap.sets import Label, Wanted, places_of, wanted_of
from circuitdisc.checkpoints.listing import check_same, find_checkpoint
from circuitdisc.engine.cross.patch import Patch, check_kinds
from circuitdisc.engine.cross.plan import CrossPlan, CrossShapes, forwards_of, plan_cross, shapes_from_config
from circuitdisc.engine.measuring import examples_of
from circuitdisc.engine.memory import parse_memory
from circuitdisc.errors import BadModel
from circuitdisc.graph import ComputationGraph
from circuitdisc.heads.base import as_list
from circuitdisc.models.load import DTYPES
from circuitdisc.tasks import load_task


def plan_patching(
    shapes: CrossShapes,
    lengths: Sequence[int],
    wanted: Wanted,
    budget: int,
    *,
    n_search: int = 0,
    n_positions: int | None = None,
    on_cpu: bool = True,
    cache: str = "auto",
) -> CrossPlan:
    """Memory, disk and passes of one direction.

    Args:
        lengths: tokens of each prompt, those of the search split first.
        n_search: how many prompts that split has.
        n_positions: tokens of a prompt that are patched; None for all.

    Raises:
        BadSetting: one prompt does not fit the budget.
    """
    plan = plan_cross(
        shapes,
        lengths,
        wanted.kinds,
        budget,
        splits=(n_search,) if n_search else (),
        patched_per_prompt=n_positions,
        readout=wanted.readout,
        on_cpu=on_cpu,
        cache=cache,
    )
    passes, total = passes_of(shapes, wanted, n_positions is None)
    return replace(plan, passes=passes, total_passes=total)


def passes_of(shapes: CrossShapes, wanted: Wanted, everywhere: bool = True) -> tuple[dict[str, float], float]:
    """Plain forwards of the runs of one direction, by what they are for, and in all. Of a growing set the order is not yet
    known: another one stands in.

    Returns:
        What each would take alone; what all take together.
    """
    ranked = wanted.singles(wanted.what[0])
    judged = wanted.patches(list(range(len(ranked))))
    words = {"unit": "one by one", "part": "model in pieces", "group": "groups", "random": "random groups", "pair": "pairs"}
    words |= {"grow": "growing set"}
    passes = {"giver, activations kept": 1.0}
    if wanted.needs_order:
        passes[f"{wanted.what[0]}, one by one, on the search examples"] = forwards_of(shapes, ranked.values(), everywhere)
    for name, patches in _by_purpose(judged, words).items():
        passes[name] = forwards_of(shapes, patches.values(), everywhere)
    total = forwards_of(shapes, judged.values(), everywhere)
    if wanted.needs_order:
        total += forwards_of(shapes, ranked.values(), everywhere)
    return passes, total


def _by_purpose(patches: Mapping[Label, Patch], words: Mapping[str, str]) -> dict[str, dict[Label, Patch]]:
    by_purpose: dict[str, dict[Label, Patch]] = {}
    for label, patch in patches.items():
        name = f"{label[1]}, {words['unit']}" if label[0] == "unit" else words[str(label[0])]
        by_purpose.setdefault(name, {})[label] = patch
    return by_purpose


@dataclass(frozen=True)
class PlanModel:
    """What a task needs to know of a checkpoint whose weights are not read.

    Args:
        config: its config.json.
    """

    name: str
    tokenizer: Any
    config: Mapping[str, Any]

    @property
    def d_vocab(self) -> int:
        return self._size("vocab_size", "d_vocab")

    @property
    def d_vocab_out(self) -> int:
        return self._size("d_vocab_out", "vocab_size", "d_vocab")

    @property
    def n_ctx(self) -> int:
        return self._size("max_position_embeddings", "n_positions", "n_ctx")

    def shapes(self, dtype: str) -> CrossShapes:
        """Its sizes, weights and activations in this precision."""
        return shapes_from_config(self.config, DTYPES[dtype].itemsize)

    def _size(self, *names: str) -> int:
        size = next((self.config[name] for name in names if self.config.get(name) is not None), None)
        if size is None:
            raise BadModel(f"the configuration of {self.name} has no {names[0]}")
        return int(size)


def plan_model(name: str | Path) -> PlanModel:
    """A checkpoint's configuration and tokenizer, without its weights.

    Raises:
        UnknownName, BadFile: there is no such checkpoint, or its files cannot be read.
    """
    checkpoint = find_checkpoint(name)
    return PlanModel(checkpoint.name, checkpoint.tokenizer(), checkpoint.place.settings())


def plan_from_settings(
    config: Mapping[str, Any], groups: Mapping[str, Sequence[str]] | None = None
) -> tuple[CrossPlan, str, int]:
    """The plan of a call of `circuitdisc cmap`.

    Args:
        config: sections `settings` (of conf/cmap.yaml), `task`, `model`, and `seed`, `memory`.
        groups: named groups of heads.

    Returns:
        The plan, a word on the models, and the number of prompts.

    Raises:
        UnknownName, BadFile, BadModel, BadSetting, BadTask: as `cmap`.
    """
    settings = config["settings"]
    base, tuned = (find_checkpoint(settings[which]) for which in ("base", "tuned"))
    check_same([base, tuned])
    model = plan_model(settings["base"])
    shapes = model.shapes(config["model"]["dtype"])
    task_settings = dict(config["task"])
    task = load_task(task_settings.pop("name"), model, **{"seed": config["seed"], **task_settings})
    graph = ComputationGraph(shapes.n_layers, shapes.n_heads, shapes.d_mlp > 0)
    what = check_kinds(settings["what"])
    places = {name: places_of(graph, heads) for name, heads in (groups or {}).items()}
    wanted = wanted_of(shapes, shapes.d_mlp > 0, what, places, {**settings, "seed": config["seed"]})
    judged = examples_of(task, settings["split"])
    search = examples_of(task, "train") if wanted.needs_order else ()
    positions = settings["positions"]
    plan = plan_patching(
        shapes,
        [len(example) for example in (*search, *judged)],
        wanted,
        parse_memory(config["memory"]),
        n_search=len(search),
        n_positions=None if positions is None else len(as_list("positions", positions)),
        on_cpu=config["model"]["device"] == "cpu",
        cache=settings["cache"],
    )
    words = f"{base.name} and {tuned.name}: {graph.describe()}, width {shapes.d_model}, {config['model']['dtype']}"
    return plan, words, len(search) + len(judged)
