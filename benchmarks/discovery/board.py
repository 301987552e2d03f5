"""BOARD.md: one table of all algorithms on all groups of cases, and the real model's tasks one by one, from the table alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np

from benchmarks.common import machine, markdown
from benchmarks.discovery.page import Rows, ordered, settings_table
from benchmarks.discovery.table import Row, read
from circuitdisc.discovery.registry import REGISTRY
from circuitdisc.files import write_text
from circuitdisc.scoring.curves import MIB_SHARES
from circuitdisc.stats import interval

FAMILIES = {"compiled": "compiled", "siit": "SIIT", "shipped": "shipped", "real": "real"}
PLAIN, CONTROL, A_THIRD = "eap_ig", "random", 2 / 3
FIGURES: tuple[tuple[str, str, Callable[[list[float]], float]], ...] = (
    ("CMD", "CMD", max),
    ("CMD, MIB", "cmd_mib", max),
    ("CPR", "CPR", min),
    ("CPR, MIB", "cpr_mib", min),
    ("AUROC", "AUROC_edges", min),
    ("AUROC, MIB", "auroc_mib", min),
    ("f at equal size", "equal_faithfulness", min),
    ("`eap_ig` as large", "equal_faithfulness_eap_ig", min),
    ("halves", "jaccard_halves", min),
)
INTRODUCTION = """# All algorithms on all groups of cases

    python -m benchmarks.discovery preset=board                        # what is missing in the table, then this page
    python -m benchmarks.discovery preset=board real.model=FOLDER      # with tasks of a Hugging Face model of yours
    python -m benchmarks.discovery preset=board report                 # this page again

Made from [{table}]({table}), one row a cell: {cells:,} cells, {minutes:.0f} minutes of the clock in all. {machine}
What to use when: [which-algorithm.md](../../docs/which-algorithm.md); columns: [new-algorithm.md](../../docs/new-algorithm.md).

A figure is the **median, worst** over cases and seeds. `resample` ablation and the logit difference alone; all but AUROC on
held-out examples. CMD: area of |1 - f| over ten sizes from .001 to 1 of the edges (0 is best). AUROC: of the true edges; of
what decides, one point of a curve. f: faithfulness at an equal size: where the truth is known, as many edges as are true; else
{equal}. What decides has no curve: its f is that of its own circuit, and
`eap_ig as large` that of as many of the best edges of `eap_ig`. Columns *MIB*: [MIB's conventions](../../docs/scores.md#mib);
on the real model MIB's CMD is ours but for one edge of each circuit, and was not run. *Halves*: Jaccard index of the circuits
of two halves of the search examples, at that size (1 for `random`, which sees no examples). Passes: forward + backward, of all
search examples; median. Masks are trained for fewer steps than by default. A dash: not run, or there is no such figure;
*(2 of 8)*: run on two of eight cells, and not to be compared with figures of all."""
REAL = """## {model}: task by task

{tasks} tasks, {n} held-out examples each, one draw: all algorithms are judged on the same examples. CMD with its 95 % interval
over examples; the mean over tasks, and its share of the mean of plain `eap_ig`, with the interval over tasks ({method})."""


def write_board(table: Path) -> list[Path]:
    """Write the page beside the table; returns the paths of both.

    Raises:
        BadFile: there is no table.
    """
    from benchmarks.discovery.judged import EQUAL

    rows, page = read(table), table.with_suffix(".md")
    families = {words: {cell: row for cell, row in rows.items() if row["family"] == name} for name, words in FAMILIES.items()}
    groups = {words: own for words, own in families.items() if own}
    equal = ", ".join(f"{share:.0%} of the edges ({name})" for name, share in EQUAL.items())
    minutes = sum(float(row["cell_seconds"] or 0) for row in rows.values()) / 60
    introduction = INTRODUCTION.format(table=table.name, cells=len(rows), minutes=minutes, machine=machine(), equal=equal)
    lines = [*introduction.splitlines(), "", *_overview(groups), ""]
    lines += [line for name, own in groups.items() for line in _group(name, own)]
    lines += _real(groups["real"]) if "real" in groups else []
    write_text(page, "\n".join([*lines, *settings_table(rows)]) + "\n")
    return [table, page]


def by_algorithm(rows: Rows) -> dict[str, list[Row]]:
    """Rows of each algorithm, in the order of the registry; variants after the plain one."""
    order, found = {name: place for place, name in enumerate(REGISTRY.names)}, dict[str, list[Row]]()
    for cell in sorted(rows, key=lambda cell: (order.get(cell.registered, len(order)), cell.algorithm)):
        found.setdefault(cell.algorithm, []).append(rows[cell])
    return found


def _overview(groups: dict[str, Rows]) -> list[str]:
    """The one table: a line an algorithm, a few columns a group."""
    shown = {"CMD", "AUROC_edges", "equal_faithfulness"}
    algorithms = {name: by_algorithm(rows) for name, rows in groups.items()}
    every = by_algorithm({cell: row for rows in groups.values() for cell, row in rows.items()})
    most = {group: max(map(len, own.values())) for group, own in algorithms.items()}
    columns = [
        (group, words, name, worst)
        for group, own in algorithms.items()
        for words, name, worst in FIGURES
        if name in shown and any(row[name] for rows in own.values() for row in rows)
    ]
    lines = [
        [f"`{algorithm}`", *(_both(algorithms[group].get(algorithm, ()), name, worst, most[group])
                             for group, _, name, worst in columns), _passes(rows)]
        for algorithm, rows in every.items()
    ]  # fmt: skip
    return markdown(["algorithm", *(f"{group}: {words}" for group, words, _, _ in columns), "passes"], lines)


def _group(name: str, rows: Rows) -> list[str]:
    """All figures of a group."""
    columns = [column for column in FIGURES if any(row[column[1]] for row in rows.values())]
    lines = [
        [f"`{algorithm}`", str(len(own)), *(_both(own, figure, worst) for _, figure, worst in columns),
         _middle(own, "equal_edges"), _passes(own)]
        for algorithm, own in by_algorithm(rows).items()
    ]  # fmt: skip
    cases, seeds = ", ".join(f"`{case}`" for case in ordered(cell.case for cell in rows)), len({cell.seed for cell in rows})
    title = [f"## {name}", "", f"{cases}; {seeds} seed{'s' * (seeds > 1)}.", ""]
    return [*title, *markdown(["algorithm", "cells", *(words for words, _, _ in columns), "edges", "passes"], lines), ""]


# --- the real model ----------------------------------------------------------------------------------------------------------


def _real(rows: Rows) -> list[str]:
    """Tasks one by one, those that every algorithm was run on; and how far the best mean lies below that of plain `eap_ig`."""
    scored = {cell: row for cell, row in rows.items() if row["CMD"]}
    algorithms = list(by_algorithm(scored))
    complete = [
        case for case in ordered(cell.case for cell in scored)
        if {cell.algorithm for cell in scored if cell.case == case} == set(algorithms)
    ]  # fmt: skip
    if not complete or PLAIN not in algorithms:
        return []
    means = {name: np.array([_mean(scored, name, case, "CMD") for case in complete]) for name in algorithms}
    shares = {name: Share.of(own, means[PLAIN]) for name, own in means.items()}
    first = next(iter(scored.values()))
    words = {"model": complete[0].rpartition(":")[0], "tasks": len(complete), "n": first["examples"]}
    method = (
        interval([means[CONTROL] if CONTROL in means else means[PLAIN]]).method.replace("examples", "tasks")
        or "none for one task"
    )
    lines = [
        [f"`{name}`", *(_on_task(scored, name, case) for case in complete), f"{fmean(own):.3f}", str(shares[name])]
        for name, own in sorted(means.items(), key=lambda item: fmean(item[1]))
    ]
    headers = ["scores", *(case.rpartition(":")[2] for case in complete), "mean", "share of `eap_ig`'s"]
    curves = [
        [f"`{name}`", *(f"{np.mean([_curve(scored, name, case)[place] for case in complete]):.2f}" for place in range(10))]
        for name in algorithms
    ]
    return [
        *REAL.format(method=method, **words).splitlines(), "", *markdown(headers, lines), "", _verdict(means, shares), "",
        "Mean faithfulness over these tasks at each share of the edges:", "",
        *markdown(["scores", *(f"{share:g}" for share in MIB_SHARES)], curves), "",
    ]  # fmt: skip


def _verdict(means: dict[str, np.ndarray], shares: dict[str, "Share"]) -> str:
    """The best mean against plain `eap_ig`'s, as it is seen afterwards, and chosen on the other tasks."""
    best = min(means, key=lambda name: float(means[name].mean()))
    share = shares[best]
    reached = "a third or more" if share.value <= A_THIRD else "less than a third"
    text = f"**Best mean CMD: `{best}`, {means[best].mean():.3f} for {means[PLAIN].mean():.3f} of plain `{PLAIN}`, {reached} "
    text += f"below** ({share} of it)."
    if share.high is None or share.high >= 1:
        text += f" Of tasks in general {len(means[best])} tasks do not show it: the interval reaches 1."
    others, n = [name for name in means if name not in (PLAIN, CONTROL)], len(means[PLAIN])
    if n < 3 or not others:
        return text
    chosen = [min(others, key=lambda name: float(np.delete(means[name], left).mean())) for left in range(n)]
    honest = float(np.mean([means[name][left] for left, name in enumerate(chosen)]))
    names = ", ".join(f"`{name}`" for name in ordered(chosen))
    return (
        f"{text} That is chosen on what it is judged on. The best of the others on the other tasks ({names}), for each task in "
        f"turn, comes to {honest:.3f}, {honest / means[PLAIN].mean():.2f} of plain `{PLAIN}`'s."
    )


@dataclass(frozen=True)
class Share:
    """The ratio of two means over tasks, with its interval."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, own: np.ndarray, plain: np.ndarray) -> "Share":
        return cls(float(own.mean() / plain.mean()), *interval([own, plain], lambda means: means[0] / means[1]).within(0).ends)

    def __str__(self) -> str:
        ends = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{ends}"


def _mean(rows: Rows, algorithm: str, case: str, name: str) -> float:
    """Over seeds."""
    return fmean(float(row[name]) for row in _of(rows, algorithm, case))


def _on_task(rows: Rows, algorithm: str, case: str) -> str:
    value = _mean(rows, algorithm, case, "CMD")
    return f"{value:.3f} [{_mean(rows, algorithm, case, 'CMD_low'):.2f}, {_mean(rows, algorithm, case, 'CMD_high'):.2f}]"


def _curve(rows: Rows, algorithm: str, case: str) -> list[float]:
    points = [[math.nan if word == "-" else float(word) for word in row["curve"].split()] for row in _of(rows, algorithm, case)]
    return np.mean(points, axis=0).tolist()


def _of(rows: Rows, algorithm: str, case: str) -> list[Row]:
    return [row for cell, row in rows.items() if (cell.algorithm, cell.case) == (algorithm, case)]


# --- figures in cells ----------------------------------------------------------------------------------------------------


def _both(rows: Sequence[Row], name: str, worst: Callable[[list[float]], float], most: int = 0) -> str:
    """Median and worst; and of how many cells, where there are more: such figures are not to be compared.

    Args:
        most: cells that other algorithms have.
    """
    values, most = [float(row[name]) for row in rows if row[name]], max(most, len(rows))
    if not values:
        return "-"
    text = ", ".join(f"{round(figure(values), 2) + 0.0:.2f}" for figure in (median, worst))  # no -0.00
    return text if len(values) == most else f"{text} ({len(values)} of {most})"


def _middle(rows: Sequence[Row], name: str) -> str:
    values = [float(row[name]) for row in rows if row[name]]
    return f"{median(values):,.0f}" if values else "-"


def _passes(rows: Sequence[Row]) -> str:
    return " + ".join(_middle(rows, f"{way}_passes") for way in ("forward", "backward"))
