"""Mechanisms on the page and in the verdict: does one circuit hide several?"""

from collections.abc import Iterator
from textwrap import shorten

from circuitdisc.certainty.clusters import FEWEST, ClusterCount
from circuitdisc.certainty.mixtures import Mixtures
from circuitdisc.pages.backups import forwards_words
from circuitdisc.pages.scores.base import Part, of_words, valued
from circuitdisc.pages.verdict import Verdict, few_caveats
from circuitdisc.wording import number

_GROUPS = 4  # of a cluster that are named
_LETTERS = 120  # of a prompt that are shown


def mixtures_part(result: Mixtures) -> Part:
    """Each circuit on each cluster; with one cluster the numbers of clusters that were tried."""
    of = of_words(result.n, "heldout", result.metric, result.ablation, result.confidence, result.method)
    scored = f"{'edges' if result.by == 'edge' else 'senders'} by {result.scored_by}"
    lines = [f"Scores of {scored}, for each of {result.n_search:,} search examples."]
    forwards = f"Forward passes of a prompt: {forwards_words(result.forwards)}."
    if result.k == 1:
        headers = (
            "Clusters",
            "Silhouette",
            "One normal distribution, 95 %",
            "p",
            "Prediction strength",
            "Smallest",
            "Accepted",
        )
        return Part("Mechanisms", of, (*lines, forwards), headers, tuple(map(_count_row, result.counts)), "What was tried")
    accepted = [count for count in result.counts if count.accepted][-1]
    lines += [
        f"{accepted.k} clusters: {_count_words(accepted)}.",
        *(_cluster_words(result, place) for place in range(result.k)),
    ]
    headers = ("Circuit", "Edges", *(f"On cluster {place + 1} (n = {n:,})" for place, n in enumerate(result.heldout_sizes)))
    rows = []
    for circuit, n_edges in enumerate(result.edges):
        cells = (valued("faithfulness", c.faithfulness, c.low, c.high) for c in result.cells if c.circuit == circuit)
        rows.append((f"of cluster {circuit}" if circuit else "the run's own", f"{n_edges:,}", *cells))
    caption = (
        f"Faithfulness on held-out examples, each with the cluster whose centre is nearest; circuits by {result.algorithm}"
    )
    return Part("Mechanisms", of, (*lines, forwards), headers, tuple(rows), caption)


def _count_row(count: ClusterCount) -> tuple[str, ...]:
    figures = (
        "not tested" if value is None else number(value) for value in (count.silhouette, count.null, count.p, count.strength)
    )
    return str(count.k), *figures, str(count.smallest), "yes" if count.accepted else "no"


def _count_words(count: ClusterCount) -> str:
    return (
        f"silhouette {number(count.silhouette)} (of one normal distribution {number(count.null)} in the 95th percentile; p = "
        f"{number(count.p)}), prediction strength {number(count.strength)}"
    )


def _cluster_words(result: Mixtures, place: int) -> str:
    groups = sorted(result.groups[place].items(), key=lambda item: -item[1])
    words = ", ".join(f"{name} ({n})" for name, n in groups[:_GROUPS]) + ", ..." * (len(groups) > _GROUPS)
    prompts = "; ".join(f"“{shorten(prompt, _LETTERS, placeholder=' ...')}”" for prompt in result.examples[place])
    return f"Cluster {place + 1}: {result.sizes[place]:,} search examples{words and f', of groups {words}'}, such as {prompts}."


def mixtures_verdict(result: Mixtures) -> Verdict:
    """How many mechanisms the circuit hides."""
    return Verdict(tuple(_lines(result)), tuple(_caveats(result)))


def _lines(result: Mixtures) -> Iterator[str]:
    if result.k == 1:
        yield f"One mechanism: the scores of {result.n_search:,} search examples form one cluster."
        return
    chance = f"random splits {number(min(result.random))} to {number(max(result.random))}, p = {number(result.p)}"
    advantage = number(result.advantage)
    if result.separate:
        yield (
            f"The circuit mixes {result.k} mechanisms: the scores form {result.k} clusters, and each one's own circuit lies "
            f"nearer the model on its held-out examples than the others' by {advantage} of faithfulness ({chance})."
        )
    else:
        yield (
            f"The scores form {result.k} clusters, but circuits of these are no better on their own examples than the others' "
            f"beyond chance (nearer by {advantage}; {chance})."
        )
    yield (
        f"The clusters' circuits share a mean Jaccard index of {number(result.shared)}, those of random splits "
        f"{number(result.random_shared)}."
    )


def _caveats(result: Mixtures) -> Iterator[str]:
    if not result.counts:
        yield f"Two clusters of {FEWEST} take {2 * FEWEST} search examples at least."
    if len(result.random) and 1 / (1 + len(result.random)) > 1 - result.confidence + 1e-9:
        least = number(1 / (1 + len(result.random)))
        yield f"{len(result.random)} random splits are too few to rule out chance: p cannot fall below {least}."
    if any(n == 0 for n in result.heldout_sizes):
        yield "A cluster has no held-out examples, and nothing is said of it."
    if result.k > 1:
        yield from few_caveats(min(result.heldout_sizes))
