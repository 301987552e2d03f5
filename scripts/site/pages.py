"""Pages that are made of something else: files of the root, tables of the benchmarks, help of the commands, docstrings."""

import csv
import statistics
from collections import defaultdict
from pathlib import Path

import mkdocs_gen_files

import circuitdisc
from circuitdisc import errors
from circuitdisc.jobs.help import job_help, main_help
from circuitdisc.jobs.registry import REGISTRY

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = (("CMD", min), ("CPR", max), ("AUROC_edges", max), ("faithfulness", max))


def write(name: str, text: str) -> None:
    with mkdocs_gen_files.open(name, "w") as file:
        file.write(text)


def commands() -> str:
    """The help of every command."""
    parts = ["# Commands", "", "```text", main_help(), "```"]
    for name in REGISTRY.names:
        parts += ["", f"## {name}", "", "```text", job_help(REGISTRY.get(name)), "```"]
    return "\n".join(parts) + "\n"


def python() -> str:
    """Every public call."""
    parts = ["# Python", "", "What `import circuitdisc as cd` offers. Rooms below it are described in the sources."]
    for name in sorted(circuitdisc.__all__, key=str.lower):
        member = getattr(circuitdisc, name)
        where = name if not hasattr(member, "__module__") else f"{member.__module__}.{member.__qualname__}"
        parts += ["", f"::: {where}" if "." in where else f"::: circuitdisc.{name}"]
    return "\n".join(parts) + "\n"


def error_page() -> str:
    """What each kind of error means."""
    parts = [
        "# Errors",
        "",
        "A wrong input ends in one sentence: what is wrong, where, what to do; exit status 2. In Python each is an exception, "
        "a subclass of `CircuitdiscError`.",
        "",
        "| exception | when |",
        "|---|---|",
    ]
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.CircuitdiscError) and kind is not errors.CircuitdiscError:
            parts.append(f"| `{name}` | {' '.join((kind.__doc__ or '').split())} |")
    return "\n".join(parts) + "\n"


def board() -> list[str]:
    """The overview of the algorithms: the first table of BOARD.md, with what its columns mean."""
    text = (RESULTS / "BOARD.md").read_text("utf-8").partition("\n## ")[0]
    return [
        "## At a glance",
        "",
        *text.splitlines()[text.splitlines().index("") :],
        "",
        "All figures: [BOARD](results/BOARD.md).",
    ]


def leaderboard() -> str:
    """The benchmark's table: median and worst over cases and seeds."""
    with (RESULTS / "DISCOVERY.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    parts = [
        "# Leaderboard",
        "",
        f"{len(rows):,} cells of the discovery benchmark (`python -m benchmarks.discovery`): every algorithm on "
        f"{len({row['case'] for row in rows})} cases, by metric `logit_diff`; median (worst) over cases, ablations and seeds. "
        "CMD: the smaller the better; all others: the larger. A new algorithm: "
        "[one file and one command](new-algorithm.md). Every column and every cell: [the whole table](results/DISCOVERY.md).",
        "",
        *board(),
    ]
    for part, words in (("truth", "Where the circuit is known"), ("shipped", "Tasks of shipped models")):
        table: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row["part"] == part and row["metric"] == "logit_diff":
                for column, _ in COLUMNS:
                    if row[column]:
                        table[row["algorithm"]][column].append(float(row[column]))
                table[row["algorithm"]]["passes"].append(float(row["forward_passes"] or 0) + float(row["backward_passes"] or 0))
        used = [(column, best) for column, best in COLUMNS if any(cells[column] for cells in table.values())]
        heads = ["algorithm", *(column.replace("_edges", ", edges") for column, _ in used), "passes, median"]
        parts += ["", f"## {words}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        first, best = used[0]
        order = sorted(table, key=lambda name: _key(table[name], first, best))
        for name in order:
            cells = [_median_and_worst(table[name][column], better) for column, better in used]
            parts.append(f"| `{name}` | {' | '.join(cells)} | {statistics.median(table[name]['passes']):.3g} |")
    return "\n".join(parts) + "\n"


def _key(cells: dict[str, list[float]], column: str, better: object) -> float:
    if not cells[column]:
        return float("inf")
    middle = statistics.median(cells[column])
    return middle if better is min else -middle


def _median_and_worst(values: list[float], better: object) -> str:
    if not values:
        return "–"
    worst = max(values) if better is min else min(values)
    return f"{statistics.median(values):.2f} ({worst:.2f})"


def gallery() -> str:
    """Pages of runs that were made for the site (`scripts/docs`), as they are."""
    parts = [
        "# Gallery",
        "",
        "Pages as every run leaves them, each of one command, with its explorer: shipped models, and real language models "
        "where `scripts/real_models` had put them. More of those: [circuits of real models](real-circuits.md).",
        "",
    ]
    runs = sorted((ROOT / "build" / "gallery").glob("*/report.html"))
    for page in runs:
        name = page.parent.name
        with mkdocs_gen_files.open(f"gallery/{name}.html", "wb") as file:
            file.write(page.read_bytes())
        command = (page.parent / "command.txt").read_text("utf-8").strip()
        parts.append(f'- <a href="gallery/{name}.html">{name}</a>: `{command}`')
    if not runs:
        parts.append("None were made: `scripts/docs` makes them.")
    return "\n".join(parts) + "\n"


for source, target in (("README.md", "index.md"), ("CONTRIBUTING.md", "contributing.md"), ("CHANGELOG.md", "changelog.md")):
    write(target, (ROOT / source).read_text("utf-8"))
for result in sorted(RESULTS.glob("*.md")):
    text = result.read_text("utf-8")
    write(
        f"results/{result.name}", text if text.startswith("#") else f"# {result.stem.replace('_', ' ').capitalize()}\n\n{text}"
    )
write("reference/commands.md", commands())
write("reference/python.md", python())
write("reference/errors.md", error_page())
write("leaderboard.md", leaderboard())
write("gallery.md", gallery())
