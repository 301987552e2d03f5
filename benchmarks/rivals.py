"""How often rivals are found where there is one, and where there is none: on compiled models, whose circuits are known.

    python benchmarks/rivals.py [--seeds 20] [--out benchmarks/results/RIVALS.md]

1. Two circuits are planted (`known/compiled/twofold.py`), either of which is enough. Found: a try that is as good, and whose
   heads are those of the other path.
2. One circuit is planted (`cd.compiled.build`). A false rival: a try that is as good. The run's circuit is the true one.

Each seed has examples, distractor heads and a rotation of its own. Searches by cuts run as they are. Scores are made by hand in
case 1: gradients say little in saturated models, and here it is the search for rivals that is measured, not the scores.
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from common import machine, markdown

import circuitdisc as cd
from circuitdisc.certainty.rivals import Rivals, rivals
from circuitdisc.discovery.selection import top_k
from circuitdisc.known.compiled.twofold import twofold
from circuitdisc.stats import share_interval
from circuitdisc.wording import percent, span

PLANTED = (("acdc", "mean"), ("acdc", "zero"), ("bisect", "mean"), ("bisect", "zero"), ("scores", "mean"))
ALONE = (("induction", "acdc"), ("two_hop", "acdc"), ("proportion", "acdc"), ("histogram", "acdc"), ("induction", "bisect"))
SETTINGS: dict[str, Any] = {"threshold": 0.001}
N, N_RANDOM = 2, 5


def planted(algorithm: str, ablation: str, seed: int) -> tuple[bool, Rivals]:
    """Whether the other of two circuits is found."""
    case = twofold(rotate=seed, distractors=2, seed=seed, n=48, n_heldout=48)
    by = "acdc" if algorithm == "scores" else algorithm
    search = cd.discover(case.model, case.task, by, ablation=ablation, **SETTINGS)
    given: dict[str, Any] = {"n": N, "n_random": N_RANDOM, "seed": seed, "search": search.cost}
    circuit, settings = search.circuit, SETTINGS
    if algorithm == "scores":
        first = rivals(case.model, case.task, circuit, by, settings=SETTINGS, n=1, n_random=0, seed=seed)
        scores = _scores(case.model.graph, circuit, first, seed)
        by, settings = "eap", {}
        circuit = top_k(case.model.graph, scores, circuit.n_edges).with_provenance(circuit.provenance)
        given |= {"edge_scores": scores, "search": None}
    result = rivals(case.model, case.task, circuit, by, settings=settings, **given)
    run = case.path_of(circuit.heads())
    return run is not None and any(case.path_of(rival.heads) == 1 - run for rival in result.as_good), result


def _scores(graph: Any, circuit: Any, first: Rivals, seed: int) -> np.ndarray:
    """Of the run's path 1, of the other .9, of what both need 2, each moved by up to 5 %; of all others up to .1."""
    generator = np.random.default_rng(seed)
    scores = np.where(graph.edge_mask, 0.1 * generator.random(graph.edge_mask.shape), np.nan)
    for edges, score in ((first.rivals[0].edges, 0.9), (circuit.edge_names(), 1.0), (first.core_edges, 2.0)):
        for edge in edges:
            scores[graph.parse_edge(edge)] = score * (1 + 0.05 * generator.uniform(-1, 1))
    return scores


def alone(program: str, algorithm: str, seed: int) -> tuple[bool, Rivals]:
    """Whether a rival is found where there is none."""
    case = cd.compiled.build(program, rotate=seed, distractors=2, seed=seed)
    search = cd.discover(case.model, case.task, algorithm, ablation="resample", **SETTINGS)
    given: dict[str, Any] = {"n": N, "n_random": N_RANDOM, "seed": seed, "search": search.cost}
    result = rivals(case.model, case.task, search.circuit, algorithm, settings=SETTINGS, **given)
    return bool(result.as_good), result


def row(name: list[str], drawn: list[tuple[bool, Rivals]]) -> list[str]:
    """A line of a table."""
    hits = np.array([hit for hit, _ in drawn], dtype=float)
    ends = share_interval(hits)
    counts = sum((result.standings for _, result in drawn), Counter[str]())
    passed = sum(result.random_as_good for _, result in drawn)
    n_random = sum(len(result.own.controls) for _, result in drawn)
    costs = [float(tries or 0) / N / own for tries, own in map(_forwards, drawn) if own]
    standings = ", ".join(f"{counts[name]} {name}" for name in sorted(counts))
    share = f"{int(hits.sum())} of {len(hits)}, {percent(hits.mean())} {span('share', *ends.ends)}"
    return [*name, share, standings, f"{passed} of {n_random}", f"{np.median(costs):.1f}" if costs else "none"]


def _forwards(drawn: tuple[bool, Rivals]) -> tuple[float | None, float | None]:
    return drawn[1].forwards["tries"], drawn[1].forwards["own search"]


def lines(seeds: int) -> Iterator[str]:
    """The page."""
    heads = ["standing of the tries", "random circuits as good", "a try's forwards / the search's"]
    yield "# Rivals where there is one, and where there is none\n"
    yield f"`python benchmarks/rivals.py --seeds {seeds}`: {N} tries a seed, margin .05, {N_RANDOM} random circuits."
    yield f"{machine()}\n"
    yield "## Two circuits, either of which is enough: is the other found?\n"
    made = {case: [planted(*case, seed) for seed in range(seeds)] for case in PLANTED}
    yield from markdown(["search", "ablation", "found, 95 % interval", *heads], [row([*case], made[case]) for case in made])
    yield "\n## One circuit: is a rival found all the same?\n"
    made = {case: [alone(*case, seed) for seed in range(seeds)] for case in ALONE}
    yield from markdown(["program", "search", "false, 95 % interval", *heads], [row([*case], made[case]) for case in made])
    yield (
        "\nA try is `alike` where the same circuit came out again. Random circuits that are as good are the other path: they "
        "have the run's layers, and there are few heads to draw from."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "RIVALS.md")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    started = process_time()
    given.out.write_text("\n".join(lines(given.seeds)) + "\n", encoding="utf-8")
    print(f"wrote {given.out}: {process_time() - started:.0f} s of processor time")


if __name__ == "__main__":
    main()
