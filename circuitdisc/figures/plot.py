"""Which figure a result has, and what of a folder it is drawn from: files and results go through the same schemas.

Light to import: what draws is imported with matplotlib.
"""

import inspect
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdisc.bound import check_together, read_own_edge_scores
from circuitdisc.checkpoints.transfer.matrix import Transfer
from circuitdisc.checks import Real, bounded
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery
from circuitdisc.errors import BadFile, BadSetting, UnknownName
from circuitdisc.files import read_json
from circuitdisc.heads.attention import AttentionTo
from circuitdisc.heads.effects import HeadEffects
from circuitdisc.schemas import validate
from circuitdisc.scoring.base import Scores
from circuitdisc.scoring.curves import Curve

if TYPE_CHECKING:
    from circuitdisc.figures.paper import PaperFigure

KINDS = {
    "graph": ("circuit.json", "`circuitdisc discover` leaves it"),
    "scores": ("scores.json", "`circuitdisc score RUN` writes it"),
    "curve": ("judgement.json", "`circuitdisc score RUN --all` writes it"),
    "transfer": ("transfer.json", "`circuitdisc transfer` leaves it"),
    "attention": ("result.json", "`circuitdisc heads attention` leaves it"),
    "effects": ("result.json", "`circuitdisc heads effects` leaves it"),
}
"""Kind of figure -> the file that it is drawn from, and where that comes from."""


WIDTH = Real(4, 40)
"""Centimetres that a figure may be wide; a column of most journals has 8 to 9."""


@bounded(width=WIDTH)
def plot(result: Any, path: str | PathLike[str] | None = None, *, width: float = 8.4, **options: Any) -> "PaperFigure":
    """Draw a result for a paper.

    Args:
        result: a circuit, what an algorithm has found, scores, a curve over sizes, a transfer, attention or effects of heads.
        path: also write it there, as PDF, SVG or PNG.
        width: in centimetres; text keeps its size.
        options: of a circuit `edges`, how many are drawn; of scores and transfers `score` and `split`.

    Raises:
        BadSetting: there is no figure of such a result, matplotlib is not installed, or a setting cannot be used.
        BadRun: the file cannot be written.
    """
    if isinstance(result, Circuit):
        kind, data = "graph", (result, None)
    elif isinstance(result, Discovery):
        kind, data = "graph", (result.circuit, result.edge_scores)
    elif isinstance(result, Scores | Curve):
        kind, data = ("scores" if isinstance(result, Scores) else "curve"), (result,)
    elif isinstance(result, Transfer | AttentionTo | HeadEffects):
        kind, data = ("transfer" if isinstance(result, Transfer) else "attention"), (result.to_dict(), "not such a result")
    else:
        raise BadSetting(
            f"there is no figure of a {type(result).__name__}: its rows, table() or to_frame(), go into a plot of your own"
        )
    return _draw(kind, data, path, {"width": width, **options})


@bounded(width=WIDTH)
def figure_of(
    folder: Path, kind: str | None = None, path: Path | None = None, *, width: float = 8.4, **options: Any
) -> "PaperFigure":
    """Draw what a command has left in a folder.

    Args:
        kind: one of `KINDS`; None: the first that the folder has a file for.
        path, width, options: as of `plot`.

    Raises:
        UnknownName: there is no such kind.
        BadFile: the folder holds nothing to draw, or not what the kind asks for, or a file is damaged.
        BadSetting: matplotlib is not installed, or a setting cannot be used.
        BadRun: files of two searches lie beside each other, or the file cannot be written.
    """
    if kind is not None and kind not in KINDS:
        raise UnknownName("kind of figure", kind, KINDS)
    there = [name for name, (file, _) in KINDS.items() if (folder / file).is_file() and kind in (None, name)]
    if not there:
        file, origin = KINDS[kind or "graph"]
        raise BadFile(f"{folder} has no {file}, which a figure of {kind or 'a run'} is drawn from: {origin}")
    kind = there[0]
    return _draw(kind, _read(kind, folder / KINDS[kind][0]), path, {"width": width, **options})


def _read(kind: str, file: Path) -> tuple[Any, ...]:
    """What a figure is drawn from."""
    remedy = f"{KINDS[kind][1]} again"
    if kind == "graph":
        circuit = Circuit.load(file)
        return circuit, read_own_edge_scores(file.with_name("edge_scores.npz"), circuit)
    data = read_json(file)
    if kind == "transfer":
        return data, str(file)
    if kind in ("attention", "effects"):
        if not isinstance(data, Mapping) or data.get("tool") not in ("attention", "effects"):
            raise BadFile(f"{file} is not of `circuitdisc heads attention` or `effects`: there is no figure of it")
        return data.get("result"), str(file)
    if (circuit := file.with_name("circuit.json")).is_file():
        check_together(file, data, Circuit.load(circuit))
    if kind == "scores":
        return (validate(Scores, data, str(file), remedy=remedy),)
    if not isinstance(data, Mapping) or not data.get("curve"):
        raise BadFile(f"{file} has no curve: only algorithms that score edges have circuits of every size")
    return (validate(Curve, data["curve"], f"{file}, curve", remedy=remedy),)


def _draw(kind: str, data: tuple[Any, ...], path: str | PathLike[str] | None, settings: dict[str, Any]) -> "PaperFigure":
    try:
        import matplotlib  # noqa: F401 - seen to be there before anything is drawn
    except ImportError as error:
        raise BadSetting('figures need matplotlib: pip install "circuitdisc[figures]", or pip install matplotlib') from error
    from circuitdisc.figures import charts, circuits
    from circuitdisc.figures.paper import check_ending, style

    if path is not None:
        path = check_ending(path)
    drawer = {
        "graph": circuits.draw_graph,
        "scores": charts.draw_scores,
        "curve": charts.draw_curve,
        "transfer": charts.draw_transfer,
    }.get(kind, charts.draw_heads)
    known = [name for name, each in inspect.signature(drawer).parameters.items() if each.kind is each.KEYWORD_ONLY]
    for name in settings:
        if name not in known:
            raise UnknownName(f"setting of a figure of {kind}", name, known)
    with style():
        drawing = drawer(*data, **settings)
    if path is not None:
        drawing.save(path)
    return drawing
