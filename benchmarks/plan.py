"""Plans against what happened: counts and processor seconds of searches and scores on a real model.

    python benchmarks/plan.py /path/to/model                  # prints a table for docs
    python benchmarks/plan.py /path/to/model --only eap_ig --tasks ioi --measure 60

Each case runs in a process of its own: first the plan, which may measure for some seconds, then the search and its scores.
Seconds are those of the processor with one thread, since other work on a machine does not change them much.
"""

import argparse
import json
import subprocess
import sys
import warnings
from time import process_time
from typing import Any

import torch

import circuitdisc as cd
from circuitdisc.scoring.work import n_controls

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "eap_ig": ("eap_ig", {}),
    "acdc, threshold=auto prune_first=1000": ("acdc", {"threshold": "auto", "prune_first": 1000}),
    "path_patching": ("path_patching", {}),
}
SHOWN = ("candidates", "node_evaluations")


def measure(folder: str, task_name: str, case: str, seconds: float) -> dict[str, Any]:
    """Planned and real figures of a case, in this process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = cd.load_model(folder)
    task = cd.load_task(task_name, model, n=20, n_heldout=40)
    algorithm, settings = CASES[case]
    planned = cd.plan(model, task, algorithm, ablation="resample", measure=seconds, **settings)
    clock = process_time()
    found = cd.discover(model, task, algorithm, ablation="resample", **settings)
    searched = process_time() - clock
    n_random = n_controls(model, task, found.cost)
    of_score = cd.plan(model, task, None, circuit=found.circuit, ablation="resample", n_random=n_random, measure=seconds)
    clock = process_time()
    cd.score(model, task, found.circuit, ablation="resample", n_random=n_random)
    scored = process_time() - clock
    return {
        "search": planned.part(algorithm).to_dict(), "score": planned.part("score").to_dict(),
        "score of the circuit": of_score.part("score").to_dict(), "cost": found.cost_dict(), "searched": searched,
        "scored": scored, "edges": found.circuit.n_edges,
    }  # fmt: skip


def rows_of(task: str, case: str, got: dict[str, Any]) -> list[str]:
    """Lines of the table."""
    planned = {case: (got["search"], got["searched"]), "its scores": (got["score"], got["scored"])}
    planned["score of this circuit"] = (got["score of the circuit"], got["scored"])
    lines = []
    for name, (part, real) in planned.items():
        counts = [""] * 4
        if name == case:
            counts = [text for count in SHOWN for text in (_span(part[count]), f"{got['cost'][count]:,.0f}")]
        seconds = part["cpu_seconds"]
        time = ["none", f"{real:.1f}", ""] if seconds is None else [f"{seconds:.1f}", f"{real:.1f}", f"{seconds / real:.2f}"]
        lines.append("| " + " | ".join([task, name, *counts, *time, part["basis"]]) + " |")
    return lines


def _span(ends: list[float]) -> str:
    return f"{ends[0]:,.0f}" if ends[0] == ends[1] else f"{ends[0]:,.0f} to {ends[1]:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--tasks", nargs="*", default=["subject_verb_agreement", "ioi"])
    parser.add_argument("--only", nargs="*", default=list(CASES), help="names of cases")
    parser.add_argument("--measure", type=float, default=60.0)
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.folder, args.case[0], args.case[1], args.measure)))
        return
    heads = ["task", "part", "candidates, planned", "real", "node evaluations, planned", "real", "CPU s, planned", "real"]
    print("| " + " | ".join([*heads, "ratio", "basis"]) + " |")
    print("|" + "---|" * 10)
    for task in args.tasks:
        for case in (name for name in CASES if any(name.startswith(only) for only in args.only)):
            command = [sys.executable, __file__, args.folder, "--measure", str(args.measure), "--case", task, case]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print("\n".join(rows_of(task, case, json.loads(done.stdout.splitlines()[-1]))), flush=True)


if __name__ == "__main__":
    main()
