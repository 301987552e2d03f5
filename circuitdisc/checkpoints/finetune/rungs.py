"""What a ladder will consist of: its settings checked, its rungs named, their heads chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from circuitdisc.checkpoints.finetune.heads_only import other_heads, shared_heads
from circuitdisc.checkpoints.finetune.loop import Trained
from circuitdisc.checkpoints.finetune.lora import check_peft
from circuitdisc.checks import BATCH, SEED, SHARE, Real, Whole
from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadSetting, GraphMismatch, UnknownName
from circuitdisc.heads.base import head_mask
from circuitdisc.models.load import DTYPES
from circuitdisc.models.model import Model
from circuitdisc.options import Option, Working
from circuitdisc.results import Result

Method = Literal["full", "lora", "heads"]
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


class Training(Working, total=False):
    """How a ladder is trained."""

    fractions: Annotated[
        float | Sequence[float],
        Option((0.1, 0.3, 0.5), "of the pool, one a rung.", Real(0, 1, open_low=True, many=True)),
    ]
    epochs: Annotated[
        float | Sequence[float],
        Option((3, 3, 20), "passes over them, one a rung, or one for all.", Real(0, 100_000, open_low=True, many=True)),
    ]
    lr: Annotated[float, Option(5e-5, "learning rate of AdamW.", Real(0, 10, open_low=True))]
    batch_size: Annotated[int, Option(64, "rows a step.", BATCH)]
    method: Annotated[
        Method,
        Option("full", "`full`, `lora` (a low-rank change, merged before it is saved) or `heads` (some heads alone)."),
    ]
    heads: Annotated[
        str | Path | Sequence[str] | None,
        Option(None, "for method=heads: names, a circuit's JSON file, or a run's folder."),
    ]
    control: Annotated[
        int, Option(0, "for method=heads: rungs of as many random other heads beside each rung.", Whole(0, 1000))
    ]
    rank: Annotated[int, Option(8, "of the low-rank change.", Whole(1, 100_000))]
    alpha: Annotated[int, Option(16, "scale of the low-rank change.", Whole(1, 1_000_000))]
    lora_targets: Annotated[Sequence[str] | None, Option(None, "layers with a low-rank change; None: peft's own choice.")]
    n_pool: Annotated[
        int | None,
        Option(None, "examples in the pool; None: 10,000, or all train examples of a file.", Whole(1, 10_000_000)),
    ]
    weight_decay: Annotated[float, Option(0.01, "of AdamW.", SHARE)]
    schedule: Annotated[
        str,
        Option("constant", "of the learning rate: `constant`, `linear` or `cosine`, after `warmup` steps of rising."),
    ]
    warmup: Annotated[int, Option(0, "steps over which the learning rate rises.", Whole(0, 10_000_000))]
    save_steps: Annotated[
        int | None,
        Option(None, "keep a checkpoint every so many steps, as `<rung>/step-N`.", Whole(1, 10_000_000)),
    ]
    dtype: Annotated[str, Option("float32", "of the saved weights.")]
    device: Annotated[str, Option("cpu", "to train on, as torch names it.")]
    seed: Annotated[
        int,
        Option(
            0,
            "of the order of the examples, low-rank starts and random heads. Also of the task, unless its settings name one.",
            SEED,
        ),
    ]


@dataclass(frozen=True, repr=False)
class Rung(Result):
    """One checkpoint of a ladder.

    Args:
        name: of its folder.
        fraction: of the pool.
        epochs: passes over it.
        heads: those that are trained; empty: all weights, or a low-rank change of them.
        random: the heads are a random control.
        shared: other heads that change too, since they read the same keys and values.
        trained: what it took; None before it is trained.
    """

    name: str
    fraction: float
    epochs: float
    heads: tuple[str, ...] = ()
    random: bool = False
    shared: tuple[str, ...] = ()
    trained: Trained | None = None


def check_settings(settings: dict[str, Any]) -> None:
    """Numbers within bounds, names known; `fractions` and `epochs` become lists of one length.

    Raises:
        UnknownName, BadSetting: a setting cannot be used.
    """
    for name, known in (("method", get_args(Method)), ("schedule", tuple(SCHEDULES)), ("dtype", tuple(DTYPES))):
        if settings[name] not in known:
            raise UnknownName(f"value of {name}", str(settings[name]), known)
    fractions, epochs = (_numbers(name, settings[name]) for name in ("fractions", "epochs"))
    if len(epochs) == 1:
        epochs = epochs * len(fractions)
    if len(fractions) != len(epochs):
        raise BadSetting(f"{len(fractions)} fractions and {len(epochs)} epochs: give one number of epochs for each fraction")
    settings |= {"fractions": fractions, "epochs": epochs}
    if settings["method"] == "heads" and not settings["heads"]:
        raise BadSetting(
            "method=heads trains chosen heads: name them with heads=[a1.h2,a3.h0], a circuit's file or a run's folder"
        )
    if settings["method"] != "heads" and (settings["heads"] or settings["control"]):
        raise BadSetting(f"heads= and control= belong to method=heads, not to method={settings['method']}")
    if settings["method"] == "lora":
        check_peft()


def _numbers(name: str, value: object) -> list[float]:
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not values or not all(isinstance(number, int | float) and not isinstance(number, bool) for number in values):
        raise BadSetting(f"{name}={value!r} cannot be used: give a number, or a list of numbers")
    return [number for number in values if isinstance(number, int | float)]


def make_rungs(model: Model, settings: Mapping[str, Any]) -> list[Rung]:
    """The rungs, each followed by its controls.

    Raises:
        GraphMismatch, BadFile, BadSetting: the heads cannot be used.
    """
    chosen = _chosen_heads(model, settings["heads"])
    drawn = other_heads(list(model.graph.heads), chosen, settings["seed"], settings["control"]) if chosen else []
    rungs: list[Rung] = []
    fractions = settings["fractions"]
    for fraction, epochs in zip(fractions, settings["epochs"], strict=True):
        name = f"{100 * fraction:g}pct" + (f"-{epochs:g}ep" if fractions.count(fraction) > 1 else "")
        groups = [(name, chosen, False)]
        groups += [(f"{name}-random{number}", names, True) for number, names in enumerate(drawn, start=1)]
        for label, names, random in groups:
            shared = shared_heads(model, head_mask(model.graph, names)) if names else []
            rungs.append(Rung(label, fraction, epochs, tuple(names), random, tuple(shared)))
    if twice := next((rung.name for rung in rungs if [other.name for other in rungs].count(rung.name) > 1), None):
        raise BadSetting(f"two rungs would be {twice}: each fraction needs another number of epochs")
    return rungs


def _chosen_heads(model: Model, heads: str | Path | Sequence[str] | None) -> list[str]:
    """Names of heads, from a list, a circuit's file or a run's folder.

    Raises:
        GraphMismatch: they are not heads of the model.
        BadFile: the file is no circuit.
        BadSetting: there are none.
    """
    if not heads:
        return []
    names = list(heads) if not isinstance(heads, str | Path) else _heads_of(Path(heads), model)
    if not names:
        raise BadSetting(f"the circuit {heads} keeps no head: choose another, or name heads")
    chosen = head_mask(model.graph, names)
    return [name for name, picked in zip(model.graph.heads, chosen.ravel().tolist(), strict=True) if picked]


def _heads_of(path: Path, model: Model) -> list[str]:
    if not path.exists() and path.suffix != ".json":
        return [name.strip() for name in str(path).split(",")]  # names of heads after all
    circuit = Circuit.load(path / "circuit.json" if path.is_dir() else path)
    if circuit.graph != model.graph:
        raise GraphMismatch(
            f"the circuit {path} belongs to a model of {circuit.graph.describe()}; {model.name} has {model.graph.describe()}"
        )
    return circuit.heads()
