"""The malformed inputs of `test_malformed.py`: every file that a command reads, and every setting, with one thing wrong."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from malformed import (
    HOSTILE,
    Case,
    bad_numbers,
    junk,
    no_files,
    replaced,
    spoiled_arrays,
    spoiled_json,
    truncated,
    typed,
    write,
)

from circuitdisc.checks import SEED, THREADS, bounds_of
from circuitdisc.discovery.registry import ALGORITHMS
from circuitdisc.tasks.registry import TASKS

MOST_CHANGES = 100  # of one file
SEED_OF_ALL = 20
BASE = ["model=tpp/lightweight", "task=tpp", "task.n=6", "task.n_heldout=8", "scoring.n_random=1", "progress=false"]
SHORT = ["algorithm.threshold=0.1", *BASE]
# keys whose content is free: an algorithm's settings, a task's, what a page shows beside the scores
FREE = (
    "settings",
    "ablation_settings",
    "versions",
    "cost",
    "worst",
    "n_passed",
    "share_passed",
    "format",
    "version",
    "sizes",
    "shares",
    "ever found",
    "with whole",
    "always found",
    "reject",  # of a test: computed anew from its p, whatever the file says
    "for_circuit",
)
OPTIONAL = {
    "circuit.json": (
        "n_edges",
        "groups",
        "model",
        "task",
        "ablation",
        "metric",
        "algorithm",
        "seed",
        "notes",
        "scope",
        "prompts",
        "target",
    ),
    "scores.json": ("low", "high", "train", "heldout", "full", "circuit", "empty"),
    "judgement.json": ("low", "high", "train", "heldout", "full", "circuit", "empty", "agreement"),  # older ones have none
    "stability.json": ("edges", "heads"),
    "config.json": (
        "progress",
        "command",
        "started",
        "dtype",
        "device",
        "split_embeddings",
        "components",
        "scope",
        "prompts",
        "target",
        "n_random",
        "confidence",
        "name",
    ),
}

TASK_LINE = json.dumps(
    {
        "clean": "rabbit implies",
        "corrupted": "carrot implies",
        "answers": "lamp",
        "wrong": "desk",
        "positions": -1,
        "group": "a",
        "split": "train",
        "roles": {"subject": 0},
    }
)


def file_cases(good: Path, generator: random.Random) -> Iterator[Case]:
    """Files of a run with one thing wrong, under the commands that read them."""
    score, report, resume = ["score", "{}/run"], ["report", "{}/run"], ["resume", "{}/run"]
    figure, graph = ["figure", "{}/run", "--out", "{}/x.svg"], ["export", "{}/run", "{}/x.gexf"]
    readers = {
        "circuit.json": [
            *(report, score, ["export", "{}/run", "{}/x.json"], ["compare", "{}/run", "{}/scored", "out={}/c"]),
            *(figure, graph),
        ],
        "config.json": [report, score, resume, ["stability", "{}/run"], ["compare", "{}/scored", "{}/run", "out={}/c"]],
        "scores.json": [report, resume],
        "judgement.json": [report],
        "stability.json": [report],
        "cost.json": [report],
    }
    for name, commands in readers.items():
        path, text = f"run/{name}", (good / "run" / name).read_text(encoding="utf-8")
        spared = FREE if name != "config.json" else ("task", "algorithm", "versions", "memory")
        nullable = (
            "value", "low", "high", "name", "seed", "mean", "mean_low", "mean_high", "completeness", "minimality", "curve",
            "tests", "minimality_of_edges", "n_edges", "d_model", "for_circuit", "identity",
        )  # fmt: skip
        optional = (
            *OPTIONAL.get(name, ()), "confidence", "controls", "note", "means", "scores", "missing", "random",
            "minimality_of_edges", "d_model", "identity", "matched", "method",
            "train examples", "held-out examples",  # of an identity: what it does not name is not compared
        )  # fmt: skip
        contents = [] if name == "cost.json" else list(spoiled_json(json.loads(text), spared, optional, nullable))
        contents = generator.sample(contents, min(len(contents), MOST_CHANGES))
        contents += truncated(text, 6, generator)
        contents += [
            (what, content)
            for what, content in HOSTILE.items()
            if name != "cost.json" or what not in ("no keys", "a long line")
        ]
        for number, (what, content) in enumerate(contents):
            yield Case(f"{name}: {what}", commands[number % len(commands)], write(path, content))
        for what, spoil in no_files(path, needed=name in ("circuit.json", "config.json")):
            yield Case(f"{name}: {what}", commands[0], spoil)
    config = json.loads((good / "run" / "config.json").read_text(encoding="utf-8"))
    for section in ("model", "ablation", "metric", "scoring", None):
        more = {**config, "more": 1} if section is None else {**config, section: {**config[section], "more": 1}}
        yield Case(f"config.json: {section} has one more", score, write("run/config.json", json.dumps(more)))
    circuit = json.loads((good / "run" / "circuit.json").read_text(encoding="utf-8"))
    for sizes in ((200, 200), (10**6, 8), (10**12, 10**12), (-1, 8), (10**400, 1), (4, 10**9), (3, 8), (4, 0)):
        graph = {**circuit["graph"], "n_layers": sizes[0], "n_heads": sizes[1]}
        for command in (report, score):
            yield Case(
                f"a graph of {sizes[0]:.3g} layers" if sizes[0] < 10**300 else "a graph of many layers",
                command,
                write("run/circuit.json", json.dumps({**circuit, "graph": graph})),
            )


def journal_cases(good: Path, generator: random.Random) -> Iterator[Case]:
    """Journals of another algorithm, and with lines that somebody changed."""
    lines = (good / "run" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    decisions = [number for number, line in enumerate(lines) if "mark" not in line]
    others: list[dict[str, Any]] = [
        {"head": "a0.h0", "layer": 0, "kept": True, "metric": 1.0},
        {"step": 50, "loss": 1.0, "edges": 3.0},
        {"round": "direct", "plan": {}, "receivers": [], "found": [], "effects": {}},
        {},
        {"dead": 3, "edges": 1},
        {"dead": "a9.h9<q>", "edges": 1},
        {"edge": "input->nowhere", "kept": False, "metric": 0.0},
        {"edge": [], "kept": 1},
        {"edge": "input->logits", "kept": "no", "metric": 0.1},
        {"edge": "input->logits", "kept": False, "metric": "x"},
        {"edge": "input->logits", "kept": False},
        {"edge": "m0->logits", "metric": 0.5, "kept": None},
    ]

    def unfinished(line: str, at: int):
        def spoil(folder: Path) -> None:
            (folder / "run" / "journal.jsonl").write_text(
                "\n".join([*lines[:at], line, *lines[at + 1 :]]) + "\n", encoding="utf-8"
            )
            for name in ("circuit.json", "scores.json"):
                (folder / "run" / name).unlink()

        return spoil

    for line in others:
        at = generator.choice(decisions[:-1])
        yield Case(f"journal: {line}", ["resume", "{}/run"], unfinished(json.dumps(line), at))
        yield Case(
            f"journal on a page: {line}",
            ["report", "{}/run"],
            write("run/journal.jsonl", json.dumps(line) + "\n" + "\n".join(lines) + "\n"),
        )
    for what, spoil in no_files("run/journal.jsonl", needed=False):
        yield Case(f"journal: {what}", ["report", "{}/run"], spoil)
    for unit in ({}, {"unit": 3, "value": 1}, {"unit": "whole"}, {"unit": "whole", "value": {"format": "x"}}, {"of": 3}):
        text = json.dumps({"of": {}}) + "\n" + json.dumps(unit) + "\n" + json.dumps({"mark": "begun"}) + "\n"
        yield Case(
            f"stability journal: {unit}", ["stability", "{}/run", "n_samples=2"], write("run/stability.partial.jsonl", text)
        )


def array_cases(good: Path, generator: random.Random) -> Iterator[Case]:
    for what, content in spoiled_arrays((129, 41), generator):
        for command in (["report", "{}/scored"], ["export", "{}/scored", "{}/x.json"]):
            yield Case(f"edge_scores.npz: {what}", command, write("scored/edge_scores.npz", content))
    for what, spoil in no_files("scored/edge_scores.npz", needed=False):
        yield Case(f"edge_scores.npz: {what}", ["report", "{}/scored"], spoil)


def task_cases(generator: random.Random) -> Iterator[Case]:
    """Task files: a line with one thing wrong behind a good one."""
    command = ["discover", *[one for one in SHORT if not one.startswith("task")], "task={}/bad.jsonl", "out={}/new"]
    optional = ("corrupted", "wrong", "positions", "group", "split", "roles", "subject")
    free = ("group",)
    texts = [
        (what, text)
        for what, text in spoiled_json(json.loads(TASK_LINE), free, optional, optional)
        if not what.startswith(("answers is [", "wrong is []", "roles is {}", "wrong is {", "positions is [-"))
    ]
    texts += list(truncated(TASK_LINE, 30, generator))
    texts += [(what, text) for what, text in HOSTILE.items() if what not in ("empty",)]
    texts += [(f"junk {number}", junk(generator)) for number in range(40)]
    texts += [("an unknown field", TASK_LINE[:-1] + ', "more": 1}'), ("half a word", '{"clean": "\\ud83d", "answers": "lamp"}')]
    for what, text in texts:
        if text.strip():
            yield Case(f"task line: {what}", command, write("bad.jsonl", f"{TASK_LINE}\n{text}\n"))
    for what, spoil in no_files("bad.jsonl"):
        yield Case(f"task file: {what}", command, spoil)
    csv = [one if one != "task={}/bad.jsonl" else "task={}/bad.csv" for one in command]
    for number in range(30):
        rows = (
            "clean,corrupted,answers,wrong\nrabbit implies,carrot implies,lamp,desk\n"
            + junk(generator)
            + ',"'
            + junk(generator)
        )
        yield Case(f"csv: junk {number}", csv, write("bad.csv", rows + "\n"))


def edge_file_cases(generator: random.Random) -> Iterator[Case]:
    """Edge scores of other tools."""
    command = ["score", "--scores", "{}/bad.json", *BASE]
    good = {"input->logits": 1.0, "m0->logits": -2.0}
    wrong: list[Any] = ["x", [], True, {"score": "x"}, {"score": []}, 10**400, "9" * 6000]
    texts = [(f"score {str(value)[:20]}", json.dumps({**good, "m1->logits": value})) for value in wrong]
    texts += [("not finite", '{"m0->logits": NaN}'), ("not finite", '{"m0->logits": 1e999}'), ("an edge", '{"m9->logits": 1}')]
    texts += list(HOSTILE.items()) + list(truncated(json.dumps(good), 15, generator))
    for what, text in texts:
        yield Case(f"edge scores: {what}", command, write("bad.json", text))
    for what, spoil in no_files("bad.json"):
        yield Case(f"edge scores: {what}", command, spoil)


def plan_cases(generator: random.Random) -> Iterator[Case]:
    """Plans of path patching."""
    command = ["discover", *BASE, "algorithm=path_patching", "algorithm.plan={}/plan.yaml", "out={}/new"]
    one = "{group: a, receivers: logits, top: 3}"
    texts = [
        "rounds: " + "[" * 20_000,
        "[" * 20_000,
        "- " * 20_000,
        "a: &a [1]\nrounds: [*a, *a]",
        "rounds: 3",
        "rounds: []",
        "rounds: [3]",
        "rounds: {a: 1}",
        "",
        "x",
        "rounds: !!python/object/apply:os.system [ls]",
        "rounds: [{receivers: logits, top: 0}]",
        "rounds: [{receivers: logits, top: x}]",
        "rounds: [{receivers: logits, threshold: -1}]",
        "rounds: [{receivers: 3, top: 1}]",
        "rounds: [{receivers: {a: 1}, top: 1}]",
        "rounds: [{receivers: [[]], top: 1}]",
        "rounds: [{top: 1}]",
        f"rounds: [{one}, {one}]",
        "rounds: [{receivers: logits, top: 1, by: 3}]",
        "rounds: [{receivers: logits, top: 1, by: [a]}]",
        "? [a]\n: 3",
        "a: 2001-99-99",
        "rounds: [{receivers: logits, top: 1, input: 3}]",
        "rounds: [{receivers: logits, top: 1, group: [a]}]",
        "\x00",
        "\t- a",
        "rounds: [{receivers: logits, top: 1, positions: {a: 1}}]",
        f"rounds: [{one}]\nmore: 1",
        "a: " + "9" * 6000,
        "x: " + "y" * 10**6,
        "rounds: [{receivers: logits, top: " + "9" * 6000 + "}]",
        "rounds: [{receivers: nowhere, top: 1}]",
        "rounds: [{1: 2}]",
        "rounds: [{receivers: logits, top: 1, more: 2}]",
    ]
    for number, text in enumerate([*texts, *("rounds: [" + junk(generator) for _ in range(25))]):
        yield Case(f"plan {number}: {text[:30]!r}", command, write("plan.yaml", text))
    for what, spoil in no_files("plan.yaml"):
        yield Case(f"plan: {what}", command, spoil)


def folder_cases() -> Iterator[Case]:
    """Ladders, transfers, and what is no folder of a run."""
    ladders: list[Any] = [
        {},
        [],
        3,
        {"format": "circuitdisc.ladder"},
        {"format": "circuitdisc.ladder", "base": 3, "rungs": []},
        {"format": "circuitdisc.ladder", "base": "x", "rungs": 3},
        {"format": "circuitdisc.ladder", "base": "x", "rungs": [3]},
        {"format": "circuitdisc.ladder", "base": "x", "rungs": [{"name": 3}]},
        {"format": [], "base": "x", "rungs": []},
        {"format": "circuitdisc.ladder", "base": "x", "rungs": [{"name": "nowhere"}]},
    ]
    texts = [(str(one)[:40], json.dumps(one)) for one in ladders] + list(HOSTILE.items())
    for command in ("baselines", "drift", "transfer"):
        for what, text in texts:
            yield Case(
                f"{command}, ladder: {what}",
                [command, "checkpoints={}/scored", "task=tpp", "out={}/new"],
                write("scored/ladder.json", text),
            )
    head = '{"format": "circuitdisc.transfer.settings", "version": 2, "settings": '
    for what, text in [(name, head + text + "}") for name, text in HOSTILE.items() if name != "empty"]:
        yield Case(f"transfer's settings: {what}", ["transfer", "out={}/run"], write("run/config.json", text))
    for command in ("score", "report", "resume", "stability"):
        for what, make in (
            ("no folder", "{}/nowhere"),
            ("a file", "{}/task.jsonl"),
            ("an empty one", "{}"),
            ("a long name", "x" * 5000),
            ("a null character", "a\x00b"),
            ("no name", ""),
        ):
            yield Case(f"{command}: {what}", [command, make])
    yield Case("compare: a file", ["compare", "{}/run", "{}/task.jsonl"])
    yield Case("out: a file", ["discover", *SHORT, "out={}/task.jsonl"])
    yield Case("out: below a file", ["discover", *SHORT, "out={}/task.jsonl/x"])
    yield Case("export: a folder", ["export", "{}/run", "{}/scored/x/y.json"], replaced("scored/x", lambda path: None))


def setting_cases(generator: random.Random) -> Iterator[Case]:
    """Settings out of their bounds, from the bounds; and some characters."""
    out = "out={}/new"
    for name, algorithm in ALGORITHMS.items():
        for setting, bounds in bounds_of(algorithm.function).items():
            for arg in generator.sample(list(bad_numbers(f"algorithm.{setting}", bounds)), 3):
                yield Case(f"{name} {arg[:40]}", ["discover", *BASE, f"algorithm={name}", arg, out])
    for name, kind in TASKS.items():
        for setting, bounds in bounds_of(kind.build).items():
            for arg in bad_numbers(f"task.{setting}", bounds):
                yield Case(f"{name} {arg[:40]}", ["discover", BASE[0], f"task={name}", arg, out])
    for key, bounds in (
        ("seed", SEED),
        ("threads", THREADS),
        ("scoring.n_random", bounds_of(import_score())["n_random"]),
        ("scoring.confidence", bounds_of(import_score())["confidence"]),
    ):
        for arg in bad_numbers(key, bounds):
            yield Case(arg[:40], ["discover", *SHORT, arg, out])
            if key in ("seed", "threads"):
                command = generator.choice(["heads roles", "dcm", "localise", "heads effects"]).split()
                yield Case(f"{command[-1]} {arg[:40]}", [*command, *BASE[:4], arg, out])
    for key in (
        "memory",
        "model.dtype",
        "model.device",
        "metric",
        "ablation",
        "algorithm",
        "model",
        "scoring",
        "launcher",
        "task.n",
    ):
        for value in ("null", "[a]", "{a:1}", "3", "x" * 3000, "-1", "1e99", "größe", "it's", "a,b", '"', "${a}", "9" * 6000):
            if (key, value) not in {
                ("metric", "null"),
                ("memory", "3"),
                ("task.n", "null"),
                ("task.n", "3"),
                ("scoring", "null"),
            }:
                yield Case(f"{key}={value[:20]}", ["discover", *SHORT, f"{key}={value}", out])
    for number in range(120):
        key = generator.choice(
            ["algorithm.order", "model", "task", "memory", "ablation.kind", "metric.name", "seed", "", "algorithm"]
        )
        command = generator.choice(["discover", "dcm", "score {}/run", "heads knockout", "localise"]).split()
        yield Case(f"junk {number}", [*command, *(BASE[:2] if command[0] != "score" else ()), f"{key}={junk(generator)}!"])


def command_cases() -> Iterator[Case]:
    """Own settings of the other commands."""
    from circuitdisc.checkpoints.baselines import baselines
    from circuitdisc.checkpoints.cmap.cmap import cmap
    from circuitdisc.checkpoints.drift import drift
    from circuitdisc.checkpoints.finetune.finetune import finetune
    from circuitdisc.checkpoints.transfer.transfer import transfer
    from circuitdisc.jobs.compare_runs import compare_runs

    ladder, task = "checkpoints=[tpp/base,tpp/lightweight]", BASE[1:4]
    commands = [
        (baselines, ["baselines", ladder, *task]),
        (drift, ["drift", ladder, *task]),
        (transfer, ["transfer", ladder, *task]),
        (finetune, ["finetune", BASE[0], *task]),
        (cmap, ["cmap", "base=tpp/base", "tuned=tpp/lightweight", *task]),
        (compare_runs, ["compare", "{}/run", "{}/scored"]),
    ]
    for function, command in commands:
        for setting, bounds in bounds_of(function).items():
            for value in bounds.bad_values()[:6]:
                yield Case(f"{command[0]} {setting}={typed(value)[:20]}", [*command, f"{setting}={typed(value)}", "out={}/new"])


def import_score() -> Any:
    from circuitdisc.scoring import score

    return score


def all_cases(good: Path) -> list[Case]:
    generator = random.Random(SEED_OF_ALL)
    return [
        *file_cases(good, generator),
        *journal_cases(good, generator),
        *array_cases(good, generator),
        *task_cases(generator),
        *edge_file_cases(generator),
        *plan_cases(generator),
        *folder_cases(),
        *setting_cases(generator),
        *command_cases(),
    ]
