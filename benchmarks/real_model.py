"""Searches and scores on a real model: CPU seconds, passes, peak memory, and the share of the time that is linear algebra.

    python benchmarks/real_model.py FOLDER                               # a Hugging Face folder; writes results/REAL_MODEL.md
    python benchmarks/real_model.py FOLDER --only ioi,eap_ig             # some rows
    python benchmarks/real_model.py FOLDER --against /an/older/checkout  # each row by both, one after the other

Every row runs in a process of its own, by the public calls alone, so that an older checkout can run it, too. Seconds are of the
processor, so that other work beside counts little; with one thread they are those of a quiet machine. Peak memory is
the largest resident set over that of the loaded model. Linear algebra is the time inside matrix products (one Python call
each, measured by a dispatch mode in a second run of the row, `--share`).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "REAL_MODEL.md"
N, HELDOUT = 20, 40
# task, call, settings; those that an older checkout does not know are left out of its run
ROWS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("ioi", "eap_ig", {"edges": 500}),
    ("ioi", "score", {"edges": 500}),
    ("ioi", "path_patching", {}),
    ("ioi", "head_ablation", {}),
    ("ioi", "head_effects", {}),
    ("ioi", "acdc", {"threshold": 0.1, "prune_first": 2000}),
    ("ioi", "acdc", {"keep": 0.9, "prune_first": 2000, "order": "attribution"}),
    ("ioi", "acdc", {"threshold": 0.02, "prune_first": 2000, "metric": "kl"}),
    ("ioi", "bisect", {"keep": 0.9}),
    ("ioi", "acdc", {"threshold": 0.1}),
    ("subject_verb_agreement", "eap_ig", {"edges": 500}),
    ("subject_verb_agreement", "score", {"edges": 500}),
    ("subject_verb_agreement", "path_patching", {}),
    ("subject_verb_agreement", "head_ablation", {}),
    ("subject_verb_agreement", "head_effects", {}),
    ("subject_verb_agreement", "acdc", {"threshold": 0.05, "two_sided": True}),
    ("subject_verb_agreement", "acdc", {"threshold": 0.02, "prune_first": 2000}),
    ("subject_verb_agreement", "bisect", {"keep": 0.9}),
)
NEW = {"prune_first", "keep"}  # settings that make a row one of this version alone


def peak_bytes() -> int:
    """The largest resident set of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


class InProducts:
    """Seconds inside matrix products, by a dispatch mode."""

    def __init__(self) -> None:
        from torch.utils._python_dispatch import TorchDispatchMode

        outer = self
        self.seconds, self.names = 0.0, {"mm", "addmm", "bmm", "baddbmm"}

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func.overloadpacket.__name__ not in outer.names:
                    return func(*args, **(kwargs or {}))
                started = time.process_time()
                result = func(*args, **(kwargs or {}))
                outer.seconds += time.process_time() - started
                return result

        self.mode = Mode()


def seconds_of_forward(forward: Callable[[], object]) -> float:
    """Of the second of two."""
    import torch

    seconds = 0.0
    with torch.no_grad():
        for _ in range(2):
            started = time.process_time()
            forward()
            seconds = time.process_time() - started
    return seconds


def run_row(folder: str, task_name: str, call: str, settings: dict[str, Any], threads: int, share: bool) -> dict[str, Any]:
    """One row in this process."""
    import warnings

    import torch

    import circuitdisc as cd

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    model = cd.load_model(folder)
    task = cd.load_task(task_name, model, n=N, n_heldout=HELDOUT, seed=0)
    tokens = torch.tensor([[0] * max(len(example) for example in task.train)] * N)
    body: Any = model.module
    forward = seconds_of_forward(lambda: body.model(input_ids=tokens))
    circuit: Any = None
    if call == "score":
        circuit = cd.discover(model, task, "eap_ig", ablation="resample", **settings).circuit
    before = peak_bytes()
    products = InProducts()
    if share:
        products.mode.__enter__()
    started = time.process_time()
    result: dict[str, Any] = {}
    if call == "score":
        scores = cd.score(model, task, circuit, ablation="resample")
        result["figure"] = [score.value for score in scores.scores if score.name == "faithfulness"]
    elif call == "head_effects":
        from circuitdisc.heads import head_effects

        effects = head_effects(model, task, ablation="resample")
        result["figure"] = effects.mean.ravel().tolist()
    else:
        discovery = cd.discover(model, task, call, ablation="resample", **settings)
        circuit = discovery.circuit
        result["cost"] = {name: float(value) for name, value in vars(discovery.cost).items()}
        tried = [line for line in discovery.trace if {"edge", "group", "head"} & set(line)]
        result["decided"], result["figure"] = len(tried), sorted(circuit.edge_names())
    seconds = time.process_time() - started
    if share:
        products.mode.__exit__(None, None, None)
    result |= {"seconds": seconds, "forward": forward, "peak": peak_bytes() - before, "products": products.seconds}
    result["edges"] = 0 if circuit is None else circuit.n_edges
    if call not in ("score", "head_effects"):
        assert circuit is not None, "a search leaves a circuit"
        scores = cd.score(model, task, circuit, ablation="resample", n_random=0)
        held_out = next(one for one in scores.scores if one.name == "faithfulness" and one.split == "heldout")
        result["faithfulness"] = [held_out.value, held_out.low, held_out.high]
    return result


def in_child(package: Path, *words: str) -> dict[str, Any] | str:
    """A row in a process of its own; a sentence if it failed."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "row.json"
        environment = os.environ | {"PYTHONPATH": str(package), "OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run([sys.executable, __file__, *words, "--out", str(out)], env=environment, capture_output=True)
        if done.returncode or not out.exists():
            return done.stderr.decode(errors="replace").strip().splitlines()[-1][:200] if done.stderr else "no result"
        return json.loads(out.read_text())


def same(one: Any, other: Any) -> str:
    """Whether two results are the same: circuits edge for edge, figures by their largest difference."""
    if one["figure"] and isinstance(one["figure"][0], str):
        a, b = set(one["figure"]), set(other["figure"])
        return "yes" if a == b else f"no: {len(a ^ b)} edges differ"
    return f"to {max(abs(a - b) for a, b in zip(one['figure'], other['figure'], strict=True)):.0e}"


def words_of(settings: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def line_of(row: tuple[str, str, dict[str, Any]], now: Any, before: Any) -> list[str]:
    """A row of the table."""
    task, call, settings = row
    if isinstance(now, str):
        return [task, f"{call} {words_of(settings)}", now, *["–"] * 7]
    cost = now.get("cost", {})
    passes = cost.get("model_runs", 0) + cost.get("circuit_runs", 0) + cost.get("backward_runs", 0)
    score = now.get("faithfulness")
    return [
        task,
        f"{call} {words_of(settings)}",
        f"{now['seconds']:,.0f}",
        f"{now['seconds'] / now['forward']:,.0f}",
        f"{now['decided']:,}; {passes:,.0f}; {cost['node_evaluations']:,.0f}" if cost else "–",
        f"{now['peak'] / 2**20:,.0f}",
        f"{now['share']:.0%}" if "share" in now else "–",
        f"{now['edges']:,}",
        f"{score[0]:.2f} [{score[1]:.2f}, {score[2]:.2f}]" if score else "–",
        f"{before['seconds'] / now['seconds']:.1f} x; {same(now, before)}" if isinstance(before, dict) else (before or "–"),
    ]


HEADERS = [
    "task", "call", "CPU seconds", "plain forwards", "decided; passes; node evaluations", "peak memory, MiB", "in matrix products",
    "edges", "faithfulness, held out", "before / now; the same",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a Hugging Face folder")
    parser.add_argument("--only", default="", help="words that a row must all hold, with commas; several sets with |")
    parser.add_argument("--against", type=Path, help="an older checkout, run in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--share", action="store_true", help="run each row once more, for the share of matrix products")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row is not None:
        task, call, settings = ROWS[args.row]
        result = run_row(args.folder, task, call, settings, args.threads, args.share)
        args.out.write_text(json.dumps(result))
        return
    from common import machine, markdown

    lines = []
    for number, row in enumerate(ROWS):
        name = f"{row[0]} {row[1]} {words_of(row[2])}"
        if args.only and not any(all(word in name for word in words.split(",")) for words in args.only.split("|")):
            continue
        words = [args.folder, "--row", str(number), "--threads", str(args.threads)]
        here = Path(__file__).resolve().parents[1]
        before = None if args.against is None or NEW & set(row[2]) else in_child(args.against.resolve(), *words)
        now = in_child(here, *words)
        if args.share and isinstance(now, dict):
            again = in_child(here, *words, "--share")
            if isinstance(again, dict):
                now["share"] = again["products"] / again["seconds"]
        lines.append(line_of(row, now, before))
        print(" | ".join(lines[-1]), flush=True)
        about = f"{N} prompts to search on, {HELDOUT} held out, resample ablation; {args.threads} threads. {machine()}"
        RESULTS.write_text(
            "\n".join([f"`python benchmarks/real_model.py {Path(args.folder).name}`: {about}", "", *markdown(HEADERS, lines)])
            + "\n"
        )


if __name__ == "__main__":
    main()
