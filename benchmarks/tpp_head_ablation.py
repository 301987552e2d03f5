"""Do head circuits found on 100 examples hold on 1,000 others? The TPP study's observation, in small.

    python benchmarks/tpp_head_ablation.py       # writes benchmarks/results/TPP_HEAD_ABLATION.md

For each fine-tuned checkpoint and threshold: layer-ascending head ablation with accuracy as the metric, without and with
verification (a third of the search examples kept back), scored on the examples searched on and on held-out ones.
"""

import argparse
import platform
from pathlib import Path

import torch
from tqdm import tqdm

import circuitdisc as cd
from circuitdisc.scoring.base import Scores

RESULTS = Path(__file__).parent / "results" / "TPP_HEAD_ABLATION.md"
CHECKPOINTS = ("tpp/featherweight", "tpp/lightweight", "tpp/welterweight")
THRESHOLDS = (0.01, 0.03, 0.05, 0.1)
VERIFY = 1 / 3


def with_interval(scores: Scores, split: str) -> str:
    """Accuracy of the circuit with its interval."""
    score = scores.get("accuracy", split)
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def row(name: str, threshold: float, verify: float, n: int, n_heldout: int, ablation: str) -> list[str]:
    """One line of the table."""
    model = cd.load_model(name)
    task = cd.load_task("tpp", model, n=n, n_heldout=n_heldout)
    settings = {"threshold": threshold, "verify": verify, "two_sided": False}  # the study's rule: only falls count
    found = cd.discover(model, task, "head_ablation", ablation=ablation, metric="accuracy", **settings)
    scores = cd.score(model, task, found.circuit)
    removed = model.graph.n_layers * model.graph.n_heads - len(found.circuit.heads())
    controls = sorted(value for value in scores.get("accuracy").controls if value is not None)
    return [
        name,
        f"{threshold:g}",
        "yes" if verify else "no",
        str(removed),
        with_interval(scores, "train"),
        with_interval(scores, "heldout"),
        f"{scores.get('accuracy', 'train').value - scores.get('accuracy').value:+.3f}",  # pyright: ignore
        f"{controls[len(controls) // 2]:.3f} ({controls[0]:.3f}–{controls[-1]:.3f})",
        scores.get("accuracy").note.removeprefix("full model "),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="examples searched on")
    parser.add_argument("--n-heldout", type=int, default=1000)
    parser.add_argument("--ablation", default="mean")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    cases = [(name, threshold, verify) for name in CHECKPOINTS for threshold in THRESHOLDS for verify in (0.0, VERIFY)]
    rows = [row(*case, args.n, args.n_heldout, args.ablation) for case in tqdm(cases, unit="search")]
    headers = [
        "checkpoint", "threshold", "verified", "heads removed", f"accuracy, {args.n} searched on",
        f"accuracy, {args.n_heldout} held out", "gap", "random circuits, held out", "full model, held out",
    ]  # fmt: skip
    lines = ["| " + " | ".join(cells) + " |" for cells in (headers, ["---"] * len(headers), *rows)]
    text = "\n".join(
        [
            "# Head circuits of the TPP ladder: searched on a few examples, judged on others",
            "",
            f"`python benchmarks/tpp_head_ablation.py --n {args.n} --n-heldout {args.n_heldout} --ablation {args.ablation}`",
            "",
            f"Layer-ascending head ablation, metric accuracy, ablation {args.ablation} (per template and position, means of "
            "the searched examples); the threshold is the share of each layer's baseline that may be lost "
            "(`two_sided=false`, the study's rule). Brackets: 95 % "
            "bootstrap interval (Wilson's where all examples agree). Random circuits: median and range of 20 with as many "
            f"heads in each layer. torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}.",
            "",
            *lines,
            "",
        ]
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
