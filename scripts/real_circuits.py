"""Circuits of a language model, each by one public command, and the tables of docs/real-circuits.md.

    python scripts/real_circuits.py FOLDER                    # runs what is missing below runs/real, then writes the tables
    python scripts/real_circuits.py FOLDER --only 'ioi|acdc'  # the commands in whose name this expression is found
    python scripts/real_circuits.py FOLDER --limit 600        # processor seconds of one command
    python scripts/real_circuits.py FOLDER --tables           # the tables alone
    python scripts/real_circuits.py FOLDER --pictures /usr/bin/chromium    # a picture of some circuits, by a headless browser

A command runs in a process of its own. Beside its folder lies `NAME.measured.json`: the command, processor seconds, the largest
resident set, and, where it did not end well, its last sentence. What has ended is not run again; what was killed goes on by the
same command.
"""

import argparse
import html
import json
import os
import re
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "real-circuits.md"
EXAMPLES = "task.n=20 task.n_heldout=40"
TASKS = {  # the cheap ones first; settings of a task, and the positions between which attention is measured
    "subject_verb_agreement": ("", ("end:subject", "end:attractor")),
    "gendered_pronoun": ("", ("end:name",)),
    "factual_recall": ("", ("end:subject",)),
    "ioi": ("", ("end:io", "end:s2", "s2:s1", "s2:s1+1")),
    "induction": ("task.length=8", ("end:b1",)),
    "colored_objects": ("", ("end:correct_color",)),
}
ALGORITHMS = {
    "eap_ig": "algorithm.edges=500",
    "path_patching": "algorithm.max_depth=2",
    "acdc": "algorithm.threshold=auto algorithm.prune_first=1000",
    "head_ablation": "",
    "bisect": "algorithm.keep=0.9",
}
SAMPLES = {"head_ablation": 3, "path_patching": 3}  # whole searches; of scores, 50 samples come along with the search
UNSURE = {"colored_objects": "allow_chance=true"}  # above chance on 100 prompts, not for certain on the 20 of the search
PICTURES = ("subject_verb_agreement_acdc", "ioi_path_patching")


@dataclass(frozen=True)
class Call:
    """One command.

    Args:
        name: of the note that is kept of it, and of its folder below the runs'.
        words: MODEL and RUNS stand for the model's folder and the runs'.
        leaves_folder: whether it takes `out=`; else it writes into a run's folder.
    """

    name: str
    words: str
    leaves_folder: bool = True


def calls() -> Iterator[Call]:
    """Every command, algorithm by algorithm."""
    task_words = {task: f"model=MODEL task={task} {more} {EXAMPLES}" for task, (more, _) in TASKS.items()}
    for algorithm, settings in ALGORITHMS.items():
        for task, words in task_words.items():
            how = f"ablation=resample algorithm={algorithm} {settings} scoring.n_random=10"
            yield Call(f"{task}_{algorithm}", f"discover {words} {UNSURE.get(task, '')} {how}")
        for task in TASKS if algorithm in SAMPLES else ():
            words = f"stability RUNS/{task}_{algorithm} n_samples={SAMPLES[algorithm]}"
            yield Call(f"{task}_{algorithm}_stability", words, leaves_folder=False)
    yield Call("heads_roles", f"heads roles {task_words['ioi']} prompts=repeated")
    for task, words in task_words.items():
        yield Call(f"heads_{task}_logits", f"heads logits {words}")
        for positions in TASKS[task][1]:
            query, key = positions.split(":")
            yield Call(f"heads_{task}_{query}_{key}", f"heads attention {words} query={query} key={key}")


def measured(call: Call, model: str, runs: Path, limit: float) -> dict[str, Any]:
    """Run a command, or go on with it if it was killed; what it needed."""
    folder = runs / call.name
    words = call.words.replace("MODEL", model).replace("RUNS", str(runs)).split()
    if call.leaves_folder:
        words = ["resume", str(folder)] if (folder / "journal.jsonl").exists() else [*words, f"out={folder}"]
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "circuitdisc", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5)),
        )
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        said = output.read().decode(errors="replace").strip().splitlines()
    process.returncode = code = os.waitstatus_to_exitcode(status)  # Popen has not seen that it ended
    return {
        "command": "circuitdisc " + shlex.join(words),
        "status": "stopped" if code in (-signal.SIGXCPU, -signal.SIGKILL) else "done" if code == 0 else "refused",
        "seconds": usage.ru_utime + usage.ru_stime,
        "wall": time.perf_counter() - started,
        "peak": usage.ru_maxrss * 1024,
        "said": _sentence(said).replace(model, Path(model).name) if code else "",
    }


def _sentence(lines: Sequence[str]) -> str:
    """What a command that failed said last, as far as it fits into a table."""
    own = [line.removeprefix("circuitdisc: ") for line in lines if line.startswith("circuitdisc: ")]
    return textwrap.shorten((own or lines or [""])[-1], 160, placeholder=" ...")


# --- tables ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> Any:
    """A file of JSON; None if there is none."""
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def short(value: float | None) -> str:
    """Two decimals, no zero before the point."""
    if value is None:
        return "–"
    value = round(value, 2) + 0.0  # no -0
    return f"{value:.2f}".replace("0.", ".", 1).replace("-", "−") if abs(value) < 1 else f"{value:.2f}".replace("-", "−")


def interval(row: Mapping[str, Any]) -> str:
    return f"{short(row['value'])} [{short(row['low'])}, {short(row['high'])}]"


def among(values: Sequence[float]) -> str:
    """Median and ends of what random circuits have."""
    return f"{short(statistics.median(values))} ({short(min(values))} to {short(max(values))})" if values else "–"


def _why_not(note: Mapping[str, Any] | None) -> str:
    if note is None:
        return "not run"
    return f"stopped after {note['seconds']:.0f} s" if note["status"] == "stopped" else f"refused: {note['said']}"


def circuit_row(runs: Path, task: str, algorithm: str) -> list[str]:
    """A line of the table of circuits."""
    folder, name = runs / f"{task}_{algorithm}", f"{task}_{algorithm}"
    note, scores = read(runs / f"{name}.measured.json"), read(folder / "scores.json")
    row = [f"`{task}`", f"`{algorithm}`"]
    if scores is None:
        return [*row, _why_not(note), *["–"] * 7]
    held_out = {score["name"]: score for score in scores["scores"] if score["split"] == "heldout"}
    circuit, cost, stable = (read(folder / f"{file}.json") for file in ("circuit", "cost", "stability"))
    size = f"{scores['circuit_heads']} heads" + ("" if circuit["granularity"] == "head" else f", {circuit['n_edges']:,} edges")
    likeness = {line["of"]: line["Jaccard"] for line in stable["table"]} if stable else {}
    return [
        *row,
        size,
        interval(held_out["faithfulness"]),
        among(held_out["faithfulness"]["controls"]),
        f"{short(held_out['accuracy']['value'])}, {short(held_out['full_accuracy']['value'])}",
        f"{short(held_out['pair_accuracy']['value'])}, {short(held_out['full_pair_accuracy']['value'])}",
        f"{note['seconds']:,.0f}" if note else f"{cost['seconds']:,.0f}",
        f"{note['peak'] / 2**30:.1f}" if note else "–",
        f"{short(likeness['edges'])}, {short(likeness['heads'])} ({stable['n']})" if stable else "–",
    ]


CIRCUITS_HEAD = [
    "task", "algorithm", "circuit", "faithfulness", "random circuits, median (lowest to highest)", "accuracy of circuit, model",
    "pair accuracy of circuit, model", "CPU s", "peak, GiB", "stability of edges, heads (samples)",
]  # fmt: skip


def circuits(runs: Path) -> list[str]:
    """The table of circuits that were searched for, and the names of the others."""
    pairs = [(task, algorithm) for task in TASKS for algorithm in ALGORITHMS]
    called = [pair for pair in pairs if (runs / f"{'_'.join(pair)}.measured.json").exists()]
    missing: dict[str, list[str]] = {}
    for task, algorithm in pairs:
        if (task, algorithm) not in called:
            missing.setdefault(algorithm, []).append(f"`{task}`")
    words = [f"`{algorithm}` on {', '.join(of)}" for algorithm, of in missing.items()]
    more = ["", f"Not run: {'; '.join(words)}."] if words else []
    return markdown(CIRCUITS_HEAD, [circuit_row(runs, *pair) for pair in called]) + more


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (headers, ["---"] * len(headers), *rows)]


def attention(runs: Path, task: str, positions: str) -> dict[str, float]:
    """Mean attention of each head from one position to another."""
    query, key = positions.split(":")
    result = read(runs / f"heads_{task}_{query}_{key}" / "result.json")
    if result is None:
        return {}
    return {f"a{layer}.h{head}": value for layer, row in enumerate(result["result"]["mean"]) for head, value in enumerate(row)}


def direct_effects(runs: Path, task: str) -> tuple[dict[str, dict[str, float]], float]:
    """What each head adds to the logit difference, with its interval; and the difference itself."""
    result = read(runs / f"heads_{task}_logits" / "result.json")
    if result is None:
        return {}, 0.0
    parts = result["result"]
    lines = zip(parts["names"], parts["mean"], parts["low"], parts["high"], strict=True)
    return {n: {"value": v, "low": low, "high": high} for n, v, low, high in lines if n.startswith("a")}, parts["logit_diff"]


def roles(runs: Path) -> dict[str, dict[str, float]]:
    """Each role's score of each head, on random tokens said twice."""
    result = read(runs / "heads_roles" / "result.json")
    if result is None:
        return {}
    means = zip(result["result"]["roles"], result["result"]["mean"], strict=True)
    return {
        role: {f"a{layer}.h{head}": v for layer, row in enumerate(mean) for head, v in enumerate(row)} for role, mean in means
    }


def write_names(model_name: str, path: Path) -> None:
    """What each head adds to the logit of `ioi`'s two names, each against a name that only the corrupted prompt has."""
    from circuitdisc import load_model, load_task
    from circuitdisc.heads import logit_attribution

    model = load_model(model_name)
    examples = load_task("ioi", model, n=20, n_heldout=40, seed=0).heldout
    result = {}
    for role, other in (("io", "io"), ("s2", "s1")):
        asked = []
        for example in examples:
            assert example.corrupted is not None, "`ioi` has corrupted prompts"
            answer, wrong = example.clean[example.roles[role]], example.corrupted[example.roles[other]]
            asked.append(replace(example, answers=((answer,),), wrong=((wrong,),)))
        parts = logit_attribution(model, asked)
        result[role] = dict(zip(parts.names, parts.mean.tolist(), strict=True))
    path.write_text(json.dumps(result) + "\n", "utf-8")


def order(head: str) -> tuple[int, int]:
    layer, number = head[1:].split(".h")
    return int(layer), int(number)


def heads_table(runs: Path, task: str) -> list[str]:
    """Heads with a direct effect, with attention between the named positions, or in a group of path patching."""
    effects, difference = direct_effects(runs, task)
    shown: set[str] = {
        head for head, row in effects.items() if abs(row["value"]) >= 0.05 * difference and row["low"] * row["high"] > 0
    }
    looks = {positions: attention(runs, task, positions) for positions in TASKS[task][1]}
    for of_head in looks.values():
        shown |= {head for head, value in of_head.items() if value >= 0.4}
    circuit = read(runs / f"{task}_path_patching" / "circuit.json")
    groups = {head: group for group, heads in (circuit or {}).get("groups", {}).items() for head in heads}
    scored = {role: by_head for role, by_head in roles(runs).items() if role not in ("first_token", "self")}
    names = read(runs / "names.json") if task == "ioi" else None
    rows = []
    for head in sorted(shown | set(groups), key=order):
        having = ", ".join(f"{role.replace('_', ' ')} {short(by[head])}" for role, by in scored.items() if by[head] >= 0.4)
        marks = [short(of_head.get(head)) for of_head in looks.values()]
        rows.append([head, groups.get(head, ""), having, *marks, interval(effects[head]) if head in effects else "–"])
        if names is not None:
            rows[-1] += [short(names[role][head]) for role in names]
    headers = ["head", "path patching", "role on random tokens", *(p.replace(":", " → ") for p in looks)]
    headers += [f"adds to the difference of {short(difference)}", *([] if names is None else ["to IO", "to S"])]
    return markdown(headers, rows)


def overlaps(runs: Path) -> list[str]:
    """What the circuits of every two tasks share, beside circuits with as many parts of each layer and kind."""
    from circuitdisc import Circuit, overlap

    rows = []
    for algorithm in ("eap_ig", "path_patching"):
        files = {task: runs / f"{task}_{algorithm}" / "circuit.json" for task in TASKS}
        loaded = {task: Circuit.load(path) for task, path in files.items() if path.exists()}
        for a, b in combinations(loaded, 2):
            shared = overlap(loaded[a], loaded[b])
            cells = []
            for kind in ("heads", "edges"):
                of_kind = shared[kind]
                chance = of_kind.matched
                cells += [f"{of_kind.n_a}, {of_kind.n_b}", f"{of_kind.n_shared}"] if chance else ["–", "–"]
                cells += [f"{chance.expected:.1f}, {chance.p_value:.1g}" if chance else "–"]
            rows.append([f"`{a}`, `{b}`", f"`{algorithm}`", *cells])
    head = ["tasks", "algorithm", "heads", "shared", "same layers, p", "edges", "shared", "same layers, p"]
    return markdown(head, rows)


def fill(page: str, name: str, lines: Sequence[str]) -> str:
    """The page with what stands between a table's two marks replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in page:
        return page
    before, rest = page.split(begin, 1)
    return "\n".join([before + begin, "", *lines, "", end]) + rest.split(end, 1)[1]


def write_tables(runs: Path, path: Path) -> None:
    """Replace this model's tables on the page."""
    page = path.read_text("utf-8")
    tables = {"circuits": circuits(runs), "overlaps": overlaps(runs)} | {f"heads of {t}": heads_table(runs, t) for t in TASKS}
    for name, lines in tables.items():
        page = fill(page, f"{name}, {runs.name}", lines)
    path.write_text(page, "utf-8")


def draw(browser: str, runs: Path, folder: Path) -> None:
    """Pictures of some circuits as SVG, made by plotly.js in a headless browser."""
    from circuitdisc import Circuit
    from circuitdisc.pages.drawing import draw_circuit

    for name in PICTURES:
        if not (runs / name / "circuit.json").exists():
            continue
        figure = draw_circuit(Circuit.load(runs / name / "circuit.json"))
        figure.update_layout(paper_bgcolor="white")
        traces: Any = figure.data
        figure.data = [trace for trace in traces if trace.marker.opacity != 0]  # without the points that carry hover texts
        size = f"width: {figure.layout.width:.0f}, height: {figure.layout.height:.0f}"
        show = "Plotly.toImage('{plot_id}', {format: 'svg', SIZE}).then(made => {document.body.textContent = made})"
        with tempfile.TemporaryDirectory() as scratch:
            page = Path(scratch) / "page.html"
            figure.write_html(page, include_plotlyjs=True, post_script=show.replace("SIZE", size))
            words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", "--dump-dom"]
            shown = subprocess.run([*words, page.as_uri()], check=True, capture_output=True, text=True).stdout
        svg = urllib.parse.unquote(html.unescape(shown.split("data:image/svg+xml,", 1)[1].split("<", 1)[0]))
        (folder / f"{runs.name}_{name}.svg").write_text(re.sub(r"(\d\.\d)\d+", r"\1", svg) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/real"))
    parser.add_argument("--only", default="", help="a regular expression that is found in a command's name")
    parser.add_argument("--limit", type=float, default=400.0, help="processor seconds of one command")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    parser.add_argument("--pictures", metavar="BROWSER", help="draw some circuits by this browser, and run nothing")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the tables stand, and beside which the pictures lie")
    args = parser.parse_args()
    runs = args.runs / Path(args.model).name
    runs.mkdir(parents=True, exist_ok=True)
    for call in calls():
        note = runs / f"{call.name}.measured.json"
        before = read(note) or {"status": "not run", "seconds": 0.0, "peak": 0}
        if args.tables or args.pictures or not re.search(args.only, call.name) or before["status"] == "done":
            continue
        result = measured(call, args.model, runs, args.limit)
        if before["status"] == "stopped":  # it went on from there
            result |= {"seconds": result["seconds"] + before["seconds"], "peak": max(result["peak"], before["peak"])}
        note.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        needed = f"{result['seconds']:.0f} s, {result['peak'] / 2**20:,.0f} MiB"
        print(f"{call.name}: {result['status']}, {needed} {result['said']}", flush=True)
    if not args.tables and not args.pictures and re.search(args.only, "names") and not (runs / "names.json").exists():
        write_names(args.model, runs / "names.json")
    if args.pictures:
        draw(args.pictures, runs, args.page.parent / "pictures")
    write_tables(runs, args.page)


if __name__ == "__main__":
    main()
