"""Scores beside those of random circuits, faithfulness over size, and maps: of circuits on checkpoints, of heads.

Shape letters: L layers, H heads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from circuitdisc.errors import BadFile, BadSetting
from circuitdisc.figures.paper import FAINT, GREY, SMALL, PaperFigure, bare, choose, new_figure, on_dark, words
from circuitdisc.pages.drawing import KIND_COLOURS
from circuitdisc.pages.tables import controls_words, valued
from circuitdisc.schemas import validate
from circuitdisc.scoring.base import Score, Scores
from circuitdisc.scoring.curves import Curve
from circuitdisc.wording import SHARES, SPLIT_WORDS, is_number, number, percent, score_value

CIRCUIT, RANDOM = KIND_COLOURS["logits"], KIND_COLOURS["q"]
_PERCENT = FuncFormatter(lambda value, _: percent(value))
_LOW_IS_GOOD = ("kl", "difference")


# --- scores ---------------------------------------------------------------------------------------------------------------


def draw_scores(scores: Scores, *, width: float, score: str | None = None, split: str = "heldout") -> PaperFigure:
    """Each score of a circuit with its interval, among those of random circuits; a strip a score.

    Args:
        score: that alone; None: all that have random circuits.
        split: `heldout` or `train`.
    """
    known = [each for each in scores.scores if each.split == split and is_number(each.value)]
    names = [each.name for each in known if any(is_number(value) for value in each.controls)] or [each.name for each in known]
    chosen = names if score is None else [choose("score", score, [each.name for each in known])]
    if not chosen:
        raise BadSetting(f"there is no score on '{split[:40]}' to draw: {', '.join(sorted({s.split for s in scores.scores}))}")
    shown = [each for each in known if each.name in chosen]
    figure = new_figure(width, 1.15 * len(shown) + 0.35)
    strips = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, each in zip(strips, shown, strict=True):
        _strip(axes, each)
    lines = [
        f"{each.name} {valued(each)}" + (f", random circuits {drawn}" if (drawn := controls_words(each)) else "")
        for each in shown
    ]
    about = shown[0]
    where = f"{about.n:,} {SPLIT_WORDS.get(split, split)}; metric {about.metric}; cut edges carry {about.ablation}"
    return PaperFigure(
        figure, f"The circuit (diamond, with its interval) and random circuits (dots): {'; '.join(lines)}. {where}."
    )


def _strip(axes: Axes, score: Score) -> None:
    values = [value for value in score.controls if value is not None and is_number(value)]
    golden = (5**0.5 - 1) / 2  # spreads the dots evenly without randomness
    axes.plot(values, [((golden * at) % 1) - 0.5 for at in range(len(values))], "o", color=RANDOM, alpha=0.6, mew=0, ms=3)
    value = float(score.value or 0.0)
    axes.errorbar(value, 0, xerr=_reach(value, score.low, score.high), fmt="D", color=CIRCUIT, ms=4, elinewidth=1, capsize=2)
    axes.set_ylim(-1, 1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title(f"{score.name}  {valued(score)}", fontsize=SMALL, pad=2)
    if score.name in SHARES:
        axes.xaxis.set_major_formatter(_PERCENT)
        axes.axvline(1, color=GREY, linewidth=0.5, linestyle=":")


def _reach(value: float, low: float | None, high: float | None) -> Sequence[Sequence[float]] | None:
    """How far an interval reaches below and above its value."""
    if low is None or high is None or not (is_number(low) and is_number(high)):
        return None
    return [[max(value - low, 0.0)], [max(high - value, 0.0)]]


# --- faithfulness over size -----------------------------------------------------------------------------------------------


def draw_curve(curve: Curve, *, width: float) -> PaperFigure:
    """Faithfulness of circuits of growing size, with intervals, and the band of random curves.

    Raises:
        BadSetting: faithfulness is undefined at every size.
    """
    points = [point for point in curve.points if is_number(point.faithfulness)]
    if not points:
        raise BadSetting("faithfulness is undefined at every size of this curve, so that there is nothing to draw")
    figure = new_figure(width, 0.62 * width)
    axes = figure.add_subplot()
    x, y = [point.share for point in points], [float(point.faithfulness or 0.0) for point in points]
    drawn = [[value for value in point.controls if value is not None and is_number(value)] for point in points]
    axes.axhline(1, color=GREY, linewidth=0.5, linestyle=":")
    if all(drawn):
        label = f"{len(points[0].controls):,} random curves"
        band = [min(values) for values in drawn], [max(values) for values in drawn]
        axes.fill_between(x, *band, color=RANDOM, alpha=0.25, linewidth=0.5, label=label)
    bars = np.array([_reach(value, point.low, point.high) or [[0], [0]] for value, point in zip(y, points, strict=True)])
    axes.errorbar(x, y, yerr=bars[:, :, 0].T, fmt="o-", color=CIRCUIT, elinewidth=0.8, capsize=1.5, label="this algorithm")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_PERCENT)
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.set_xlabel("share of the graph's edges")
    axes.set_ylabel("faithfulness")
    axes.legend(loc="best")
    areas = "; ".join(f"{name} {valued(area)}" for name, area in (("CPR", curve.cpr), ("CMD (0 is best)", curve.cmd)))
    where = f"{curve.n:,} {SPLIT_WORDS.get(curve.split, curve.split)}; metric {curve.metric}; cut edges carry {curve.ablation}"
    bars_are = f"{percent(curve.confidence)} intervals"
    return PaperFigure(figure, f"Faithfulness over circuit size, with {bars_are}: {areas}. {where}.")


# --- circuits on checkpoints ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MatrixRow:
    """A circuit of a transfer: its label, and whether it is a checkpoint's `own`."""

    label: str
    kind: str


@dataclass(frozen=True)
class MatrixCell:
    """All scores of a circuit on a checkpoint."""

    circuit: str
    checkpoint: str
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class TransferFile:
    """What a figure reads of transfer.json."""

    checkpoints: tuple[str, ...]
    circuits: tuple[MatrixRow, ...]
    cells: tuple[MatrixCell, ...]
    metric: str
    ablation: str


def draw_transfer(data: object, where: str, *, width: float, score: str | None = None, split: str = "heldout") -> PaperFigure:
    """One score of every circuit on every checkpoint, as a map; a frame marks a circuit on the checkpoint that it is of.

    Args:
        data: of transfer.json.
        where: what messages call it.
        score: `accuracy`, `faithfulness`, ...; None: the first of these that there is.
    """
    found = validate(TransferFile, data, where)
    cells = {(cell.circuit, cell.checkpoint): cell.scores for cell in found.cells}
    kinds = [each.name for each in next(iter(cells.values()), ()) if each.split == split]
    first = [name for name in ("accuracy", "pair_accuracy", "faithfulness") if name in kinds]
    name = choose("score", score, list(dict.fromkeys([*first, *kinds])))
    rows = [circuit.label for circuit in found.circuits]
    table = [[_score(cells.get((row, column), ()), name, split) for column in found.checkpoints] for row in rows]
    values = np.array([[np.nan if each is None or each.value is None else each.value for each in line] for line in table])
    figure = new_figure(width, 0.62 * len(rows) + 1.5)
    axes = figure.add_subplot()
    low, high = (0.0, 1.0) if name in SHARES else (float(np.nanmin(values, initial=0)), float(np.nanmax(values, initial=0)))
    cells_words = [
        [score_value(name, each.value) if each and each.value is not None else "–" for each in line] for line in table
    ]
    _map(axes, values, cells_words, low, high, "Blues_r" if name in _LOW_IS_GOOD else "Blues")
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(found.checkpoints)), [words(name) for name in found.checkpoints], rotation=30, ha="left")
    axes.set_yticks(range(len(rows)), [words(row) for row in rows])
    for at, circuit in enumerate(found.circuits):
        if circuit.kind == "own" and circuit.label in found.checkpoints:
            column = found.checkpoints.index(circuit.label)
            axes.add_patch(_frame(column, at))
    axes.set_ylabel("circuit of")
    some = next((each for line in table for each in line if each), None)
    n = f"{some.n:,} {SPLIT_WORDS.get(split, split)}" if some else split
    about = f"{n}; ablation {found.ablation}" + (f"; metric {some.metric}" if some and some.metric != name else "")
    return PaperFigure(figure, f"{name} of each circuit (rows) on each checkpoint (columns). {about}.")


def _frame(column: int, row: int) -> Rectangle:
    return Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor=CIRCUIT, linewidth=1.2)


def _score(scores: Sequence[Score], name: str, split: str) -> Score | None:
    return next((each for each in scores if (each.name, each.split) == (name, split)), None)


def _map(
    axes: Axes, values: Float[np.ndarray, "L H"], written: Sequence[Sequence[str]] | None, low: float, high: float, cmap: str
) -> None:
    """Coloured cells with their values in them."""
    colours, scale = mpl.colormaps[cmap].with_extremes(bad=FAINT), Normalize(low, high if high > low else low + 1)
    axes.imshow(np.ma.masked_invalid(values), cmap=colours, norm=scale, aspect="auto", interpolation="nearest")
    for row, line in enumerate(written or ()):
        for column, text in enumerate(line):
            known = np.isfinite(values[row, column])
            ink = on_dark(colours(scale(values[row, column]))) if known else GREY
            axes.text(column, row, text, ha="center", va="center", fontsize=SMALL, color=ink)
    bare(axes)


# --- heads ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadValues:
    """What a figure reads of a result with a value for each head."""

    mean: Float[np.ndarray, "L H"]
    n: int
    split: str
    query: str = ""
    key: str = ""
    prompts: str = ""
    metric: str = ""
    ablation: str = ""


def draw_heads(data: object, where: str, *, width: float) -> PaperFigure:
    """A value for every head: layers are rows, the first at the bottom; heads are columns.

    Args:
        data: as a file has it.
        where: what messages call it.

    Raises:
        BadFile: it is of something else, or there is a number for no head.
    """
    found = validate(HeadValues, data, where)
    mean, signed = found.mean, not found.query
    if mean.ndim != 2 or not np.isfinite(mean).any():
        raise BadFile(f"{where}: 'mean' has no number for any head, so that there is nothing to draw")
    n_layers, n_heads = mean.shape
    largest = float(np.nanmax(np.abs(mean), initial=0.0)) or 1.0
    cell = (width - 1.9) / max(n_heads, 1)
    figure = new_figure(width, min(n_layers * float(np.clip(cell, 0.28, 0.55)) + 0.9, 21.0))
    axes = figure.add_subplot()
    digits = max(0, 2 - math.ceil(math.log10(largest)))  # as many for all, so that a small value reads as one
    written = [[_short(value, digits) for value in line] for line in mean.tolist()] if cell >= 0.62 else None
    _map(axes, mean, written, -largest if signed else 0.0, largest, "RdBu_r" if signed else "Blues")
    axes.invert_yaxis()
    every, rows = max(1, round(0.45 / cell)), max(1, n_layers // 24)
    axes.set_xticks(range(0, n_heads, every), [f"h{head}" for head in range(0, n_heads, every)])
    axes.set_yticks(range(0, n_layers, rows), [f"layer {layer}" for layer in range(0, n_layers, rows)])
    bar = figure.colorbar(axes.images[0], ax=axes, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue] - a patch
    bar.ax.tick_params(labelsize=SMALL, length=2)
    at = np.unravel_index(int(np.nanargmax(np.abs(mean))), mean.shape)
    top = f"a{at[0]}.h{at[1]} {number(float(mean[at]))}"
    what = (
        f"Change of {found.metric} when each head is ablated ({found.ablation})"
        if signed
        else f"Mean attention of each head from {words(found.query)} to {words(found.key)}, {found.prompts} prompts"
    )
    return PaperFigure(figure, f"{what}; the largest: {top}. {found.n:,} {SPLIT_WORDS.get(found.split, found.split)}.")


def _short(value: float, digits: int) -> str:
    """A value in a cell; what rounds to nothing is 0."""
    if not np.isfinite(value):
        return ""
    return f"{value:.{digits}f}".replace("-", "−") if round(value, digits) else "0"
