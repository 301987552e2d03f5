"""`bisect` against `acdc` on the shipped TPP model: runs, size, held-out faithfulness.

    python benchmarks/bisect_against_acdc.py      # writes benchmarks/results/BISECT.md

Both by logit difference on the same 100 examples at the same thresholds, judged on the same held-out ones. A test is one
candidate circuit whose metric was measured: `bisect` measures groups by whole runs of a circuit, and single edges in its last
walks; `acdc` measures every candidate from the cut on.
"""

import argparse
import sys
from pathlib import Path

from common import machine, markdown
from tqdm import tqdm

import circuitdisc as cd
from circuitdisc.scoring.base import Scores

RESULTS = Path(__file__).parent / "results" / "BISECT.md"
HEADERS = [
    "ablation", "threshold", "algorithm", "tests", "accepted", "node evaluations", "seconds / acdc's", "edges",
    "faithfulness, held out", "accuracy, held out", "faithfulness of random circuits",
]  # fmt: skip
SETTINGS = {
    "acdc": {"two_sided": False},
    "acdc, two-sided": {"two_sided": True},
    "bisect": {"two_sided": False},
    "bisect, two-sided": {},
    "bisect, random ranking": {"ranking": "random"},
}


def shown(scores: Scores, name: str) -> str:
    score = scores.get(name, "heldout")
    if score.value is None or score.low is None or score.high is None:
        return "undefined"
    return f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"


def rows(ablation: str, threshold: float, n: int, n_heldout: int, controls: int) -> list[list[str]]:
    model = cd.load_model("tpp/lightweight")
    task = cd.load_task("tpp", model, n=n, n_heldout=n_heldout)
    found = []
    seconds_of_acdc = 0.0
    for label, settings in SETTINGS.items():
        result = cd.discover(model, task, label.split(",")[0], ablation=ablation, threshold=threshold, **settings)
        seconds_of_acdc = seconds_of_acdc or result.cost.seconds
        scores = cd.score(model, task, result.circuit, n_random=controls)
        random = [value for value in scores.get("faithfulness").controls if value is not None]
        found.append(
            [
                ablation,
                f"{threshold:g}",
                label,
                f"{result.cost.candidates:,}",
                str(sum(line.get("kept") is False for line in result.trace)),
                f"{result.cost.node_evaluations:,.0f}",
                f"{result.cost.seconds / seconds_of_acdc:.2f}",
                str(result.circuit.n_edges),
                shown(scores, "faithfulness"),
                shown(scores, "accuracy"),
                f"at most {max(random):.2f}" if random else "–",
            ]
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="examples searched on")
    parser.add_argument("--n-heldout", type=int, default=500)
    parser.add_argument("--controls", type=int, default=20, help="random circuits beside each")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.3, 0.1])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    cases = [(ablation, threshold) for ablation in ("mean", "resample") for threshold in args.thresholds]
    table = [row for case in tqdm(cases) for row in rows(*case, args.n, args.n_heldout, args.controls)]
    command = f"`python benchmarks/bisect_against_acdc.py {' '.join(sys.argv[1:])}`"
    text = [
        "# bisect against acdc on tpp/lightweight (1,519 edges)",
        "",
        command,
        "",
        "Metric logit_diff; brackets: 95 % intervals; random circuits with as many edges between "
        "the same layers. `accepted`: tests whose cut was kept, each of which may cost up to the threshold. " + machine(),
        "",
        *markdown(HEADERS, table),
        "",
    ]
    args.out.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
