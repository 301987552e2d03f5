"""Completeness and minimality of the circuit that path patching finds for `ioi`, and the curve of eap_ig, with what they cost.

    python benchmarks/complete_and_minimal.py      # writes benchmarks/results/COMPLETE_AND_MINIMAL.md

The circuit is found on the search examples; sets K are chosen on these too; every figure is of the held-out examples.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import machine, markdown

import circuitdisc as cd

RESULTS = Path(__file__).parent / "results" / "COMPLETE_AND_MINIMAL.md"


def cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:z,.3f}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return markdown(list(rows[0]), [[cell(value) for value in row.values()] for row in rows])


def cost(result: Any) -> str:
    return f"{result.cost['seconds']:.0f} seconds, {result.cost['node_evaluations']:,.0f} node evaluations."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=60, help="search examples")
    parser.add_argument("--heldout", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = cd.load_model("multitask/base")
    task = cd.load_task("ioi", model, n=args.n, n_heldout=args.heldout)
    circuit = cd.discover(model, task, "path_patching", ablation="resample").circuit
    complete = cd.completeness(model, task, circuit, progress=True)
    minimal = cd.minimality(model, task, circuit, progress=True)
    line = cd.curve(model, task, cd.discover(model, task, "eap_ig", ablation="resample"), progress=True)

    random = [f"{chance.mean:.2f} (worst {chance.worst:.2f})" for chance in complete.controls]
    gone = complete.complement
    text = [
        "# Completeness, minimality and a curve on `ioi` in `multitask/base`",
        "",
        f"Ablation {complete.ablation}, metric {complete.metric}, {args.n} search examples, {complete.n} held out.",
        machine(),
        "",
        f"## Completeness of the {len(complete.parts)} heads that path patching found",
        "",
        f"Mean gap of 20 random K: {complete.mean:.2f} [{complete.mean_low:.2f}, {complete.mean_high:.2f}]; "
        f"of random circuits of the same size: {', '.join(random)}. Greedy K: {', '.join(complete.gaps[-1].removed)}. "
        f"Faithfulness of the model without these heads: {gone.value:z.3f} [{gone.low:z.3f}, {gone.high:.3f}]. "
        f"{cost(complete)}",
        "",
        *table([row for row in complete.table() if not row["K"].startswith("random")]),
        "",
        "## Minimality",
        "",
        f"{minimal.n_passed} of {len(minimal.needs)} heads pass at {minimal.threshold:.0%} of m(M) = {minimal.full:.2f}. "
        f"{cost(minimal)}",
        "",
        *table(minimal.table()),
        "",
        "## Curve of `eap_ig`, top_k",
        "",
        *(
            f"{one.name} {one.value:.3f} [{one.low:.3f}, {one.high:.3f}], random {', '.join(map(cell, one.controls))}.  "
            for one in (line.cpr, line.cmd, line.overshoot)
        ),
        cost(line),
        "",
        *table(line.table()),
    ]
    RESULTS.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
