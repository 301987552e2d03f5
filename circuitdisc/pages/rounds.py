"""Path patching round by round, for the page: which heads each round found, and the map of all effects."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from circuitdisc.graph import ComputationGraph, Node
from circuitdisc.pages.heads_figures import head_map
from circuitdisc.wording import number

_MAPS_AT_MOST = 12
_RECEIVERS_AT_MOST = 6


@dataclass(frozen=True)
class RoundRow:
    """One round as the page tells it.

    Args:
        name: of the group.
        into: the receivers, and where their inputs are set.
        found: each head with its effect and twice its standard error.
        unit: of the effects in the figure.
        figure: the effects of all heads; None if nothing was patched, or for later rounds of many that found nothing.
    """

    name: str
    into: str
    found: str
    unit: str
    figure: go.Figure | None


def round_rows(graph: ComputationGraph, trace: Sequence[Mapping[str, Any]]) -> list[RoundRow]:
    """The rounds in a search's trace; none for other algorithms."""
    rounds = [line for line in trace if "round" in line]
    drawn = [line["round"] for line in rounds if line["effects"] and line["found"]]
    drawn += [line["round"] for line in rounds if line["effects"] and not line["found"]]
    shown = set(drawn[:_MAPS_AT_MOST])
    return [_row(graph, line, line["round"] in shown) for line in rounds]


def _row(graph: ComputationGraph, line: Mapping[str, Any], draw: bool) -> RoundRow:
    effects = line["effects"]
    receivers = list(line.get("receivers", ()))
    into = ", ".join(receivers[:_RECEIVERS_AT_MOST]) + (
        f" and {len(receivers) - _RECEIVERS_AT_MOST} more" * (len(receivers) > 6)
    )
    positions = line["plan"]["positions"]
    at = "" if positions == "all" else f" at {positions if isinstance(positions, str) else ', '.join(map(str, positions))}"
    outcome = "; ".join(f"{name} {_effect(effects[name])}" for name in line["found"]) or "no head passes"
    if not effects:
        outcome = "no head comes before the receivers" if receivers else "nothing was found that it could start from"
    relative = all(effect["relative"] is not None for effect in effects.values())
    figure = head_map(_values(graph, effects, relative), signed=True) if draw else None
    return RoundRow(line["round"], (into or "nothing") + at, outcome, "%" if relative else "the metric's own units", figure)


def _effect(effect: Mapping[str, float | None]) -> str:
    absolute, relative, error = effect["absolute"] or 0.0, effect["relative"], effect["standard_error"]
    words = number(absolute) if relative is None else f"{100 * relative:+.1f} %"
    if not error:
        return words
    spread = 2 * error if relative is None or not absolute else 200 * error * abs(relative / absolute)
    return f"{words} (± {number(spread) if relative is None else f'{spread:.1f}'})"


def _values(graph: ComputationGraph, effects: Mapping[str, Mapping[str, Any]], relative: bool) -> Float[np.ndarray, "L H"]:
    key, scale = ("relative", 100.0) if relative else ("absolute", 1.0)
    names = ((Node("head", layer, head).name for head in range(graph.n_heads)) for layer in range(graph.n_layers))
    return np.array([[scale * effects[name][key] if name in effects else np.nan for name in row] for row in names])


def round_figures(rows: Sequence[RoundRow]) -> Iterator[tuple[str, go.Figure, str]]:
    """Name, figure and description of every map."""
    for index, row in enumerate(rows):
        if row.figure is not None:
            yield f"round{index}", row.figure, f"Effects of all heads' paths into {row.into}. The table lists those that count."
