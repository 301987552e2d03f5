"""Certified edges on the page and in the verdict: what stays in the circuit whichever few search examples are deleted."""

from circuitdisc.ablation import get_ablation
from circuitdisc.circuit import Circuit
from circuitdisc.pages.scores.base import Part, ScoreData, reads
from circuitdisc.pages.verdict import Verdict
from circuitdisc.scoring.certify import ABSTAINED, IN, OUT
from circuitdisc.wording import number, percent, share

SHOWN = 20
"""Edges in the page's table; certify.json has all."""
HEADERS = ("Edge", "In this circuit", "Share of subsets", "Between", "Certified", "Deletions withstood")


@reads("certify.json", "a certificate", "circuitdisc certify RUN")
def certificate_part(score: ScoreData, circuit: Circuit) -> Part:
    """The most frequent edges with their bounds, and how it was computed.

    Args:
        score: as `Certificate.to_dict` gives it.

    Raises:
        BadFile: it is not a certificate.
    """
    rows = tuple(_row(row) for row in score["table"][:SHOWN])
    caption = (
        f"The most frequent of {len(score['table']):,} edges. Bounds hold for all {circuit.graph.n_edges:,} edges of the graph "
        f"together with {percent(score['confidence'])} confidence (Clopper-Pearson, Bonferroni)"
    )
    return Part("Certified edges", "", (_how(score), *_never(score)), HEADERS if rows else (), rows, caption)


def _row(row: ScoreData) -> tuple[str, ...]:
    between = f"[{number(row['low'])}, {number(row['high'])}]"
    withstood = "–" if row["label"] == ABSTAINED else f"{row['deletions']:,}"
    return row["edge"], "yes" if row["kept"] else "no", percent(row["share"]), between, row["label"], withstood


def _how(score: ScoreData) -> str:
    settings, units = score["settings"], score["units"]
    drawn = f"{score['n']:,} random subsets of {score['n_units']:,} {units}, each left out with probability {score['delete']:g}"
    how = "one search each" if score["reruns"] else "all from the scores of one search"
    cost = f"{score['forwards']:,.0f} plain forward passes of a prompt (a backward pass counts as two)"
    ablation = get_ablation(settings["ablation"]).label
    return f"{drawn}; {how}: {cost}. {settings['algorithm']}, metric {settings['metric']}, ablation {ablation}."


def _never(score: ScoreData) -> tuple[str, ...]:
    never = score["never"]
    if not never["edges"]:
        return ()
    words = f"{never['edges']:,} edges of the graph are in no subset's circuit: "
    if never["label"] == ABSTAINED:
        return (words + "too few subsets to certify that they stay out.",)
    return (words + f"certified out, under {_deletions(never['deletions'], score['units'])}.",)


def _deletions(r: int, units: str) -> str:
    """`the deletion of any 2 examples`."""
    return f"the deletion of any {f'{r:,} {units}' if r > 1 else f'{units[:-1]}'}" if r else "no deletion"


@reads("certify.json", "a certificate", "circuitdisc certify RUN")
def certificate_verdict(score: ScoreData, circuit: Circuit) -> Verdict:
    """Which of the circuit's edges most random subsets of the search examples have, for certain.

    Args:
        score: as `Certificate.to_dict` gives it.

    Raises:
        BadFile: it is not a certificate.
    """
    own, others, n, units = score["counts"]["circuit"], score["counts"]["others"], score["n"], score["units"]
    kept, sure = sum(own.values()), percent(score["confidence"])
    certified = [row["deletions"] for row in score["table"] if row["kept"] and row["label"] == IN]
    lines = [
        f"{own[IN]:,} of the circuit's {kept:,} edges ({share(own[IN], kept)}) are certified in: most random subsets of the "
        f"search examples have them, with {sure} confidence for all edges together. Not decided: "
        f"{own[ABSTAINED]:,}; certified out: {own[OUT]:,}."
    ]
    if not kept:
        lines = [f"The circuit has no edge, so that none of it can be certified; {sure} confidence for all edges together."]
    if others[IN]:
        lines.append(f"Of the edges that the circuit lacks {others[IN]:,} are certified in.")
    if most := max(certified, default=0):
        surest = f"; the surest under {_deletions(most, units)}" if most > 1 else ""
        n_stay = sum(r >= 1 for r in certified)
        lines.append(f"Of the circuit's edges {n_stay:,} stay in the majority under {_deletions(1, units)}{surest}.")
    caveats = list[str]()
    if certified and not most:
        caveats.append(
            f"No edge's certificate withstands a deletion: with delete={score['delete']:g} that takes {score['n_for_one']:,} "
            "subsets at least."
        )
    if n < score["n_needed"]:
        caveats.append(
            f"{n:,} subsets are too few to certify anything among {circuit.graph.n_edges:,} edges: that takes "
            f"{score['n_needed']:,} at least."
        )
    chance = score["random"]
    if chance is not None and own[IN] and chance >= own[IN] / kept:
        caveats.append(f"Random circuits of this size and kind have as many certified edges ({percent(chance)}).")
    elif chance is not None:
        lines.append(f"Of random circuits of this size and kind {percent(chance)} of the edges are certified in.")
    if score["frozen"]:
        caveats.append(
            "What the ablation carries stayed that of all search examples: the certificate is of the search with these values "
            "given. `rerun=true` searches each subset anew."
        )
    return Verdict(tuple(lines), tuple(caveats))
