"""What the tools for heads and neurons found: in words, tables and figures."""

from circuitdisc.heads.attention import AttentionTo
from circuitdisc.heads.effects import HeadEffects
from circuitdisc.heads.knockout import KnockoutCurve
from circuitdisc.heads.logits import LogitAttribution
from circuitdisc.heads.matrices import HeadMatrices
from circuitdisc.heads.neurons.analysis import NeuronAnalysis
from circuitdisc.heads.neurons.table import NeuronTable
from circuitdisc.heads.roles import HeadRoles
from circuitdisc.pages.description import Description, Section, cell, describe
from circuitdisc.pages.heads_figures import axes_map, bars_figure, curve_figure, head_map, layers_figure, masked_figure
from circuitdisc.pages.page import picture
from circuitdisc.pages.verdict import Verdict, as_sentences, few_caveats, may_be_zero
from circuitdisc.results import Row
from circuitdisc.scoring.chance import chance_caveats
from circuitdisc.wording import SPLIT_WORDS, interval, intervals_over, is_number, number, percent

_AXES = "Rows: the axis that is read (of the key, of the attended token), 0 at the bottom; columns: of the query, written."
_MATRICES = 16  # pictures on a page
_MAP = "Layers are rows, heads are columns. Point at a cell to read the head's name and value."


@describe.register
def _(result: LogitAttribution) -> Description:
    row = result.table()[0]
    lead = [
        f"On {result.n:,} {SPLIT_WORDS[result.split]} the logit difference is {number(float(result.logit_diff.mean()))}; "
        f"the largest part of it, of either sign, is that of {row['component']}: {_with_ends(row, 'adds')}.",
        f"The parts add up to it within {number(result.error)}.",
    ]
    by_layer = Section(
        "By layer",
        result.by_layer(),
        "Means over examples. after: the difference if nothing later wrote anything, with its interval",
        picture("layers", layers_figure(result), "What each layer adds to the logit difference; the table has the numbers."),
        "Bars: what a layer adds. Line: the difference after it, the final norm's scale held at its final value.",
        ends_last=True,
    )
    heads = picture("heads", head_map(result.heads, signed=True), "Every head's part.")
    parts = Section(
        "Components",
        result.table(),
        f"The largest part, of either sign, first; {intervals_over(result.over)}",
        heads,
        f"What every head adds. {_MAP}",
    )
    caveats = (*as_sentences([result.note or ""]), *_first_caveats(row, f"the part of {row['component']}", result.n))
    return Description(Verdict(tuple(lead), caveats), (by_layer, parts))


def _with_ends(row: Row, name: str) -> str:
    """`0.40 [0.13, 0.79]`."""
    return f"{cell(row[name])} {interval(row['low'], row['high'])}"


def _first_caveats(row: Row, what: str, n: int) -> tuple[str, ...]:
    """What comes first of many may be nothing, and looks larger than it is."""
    crosses = may_be_zero(row["low"], row["high"])
    nothing = (f"The interval of {what} holds 0, although it comes first of many: it may be nothing.",) if crosses else ()
    return (*nothing, *few_caveats(n))


@describe.register
def _(result: HeadRoles) -> Description:
    words = f"{result.n:,} {'prompts of random tokens said twice' if result.prompts == 'repeated' else 'prompts of the task'}"
    by_role = {role: result.heads(role) for role in result.roles if result.heads(role)}
    lead = [
        f"On {words}: " + "; ".join(f"{role}: {', '.join(heads)}" for role, heads in by_role.items()) + "."
        if by_role
        else f"On {words} no head holds a role.",
        f"A head holds a role if its score lies above {result.threshold:g} in more than {percent(result.min_share)} of the "
        "examples.",
    ]
    if not all(result.n_defined):
        lead.append("Where no prompt has a query for a role (n/a), prompts=repeated measures it on random tokens said twice.")
    sections = [Section("Roles", result.by_role(), "In how many examples the role is defined, and the heads that hold it")]
    for p, role in enumerate(result.roles):
        if result.n_defined[p]:
            shown = picture(f"role-{role}", head_map(result.mean[p], largest=1.0), f"Score of every head as {role}.")
            sections.append(Section(role.replace("_", " ").capitalize(), picture=shown, caption=_MAP))
    sections.append(
        Section("Scores", result.table(), "Mean attention to the role's key, over the examples where it is defined")
    )
    return Description(Verdict(tuple(lead), tuple(few_caveats(result.n))), tuple(sections))


@describe.register
def _(result: AttentionTo) -> Description:
    rows = result.table()
    lead = (
        f"From '{result.query}' to '{result.key}' on {result.n:,} {result.prompts} prompts ({SPLIT_WORDS[result.split]}): "
        f"{rows[0]['head']} pays most attention, {cell(rows[0]['attention'])} on average.",
    )
    shown = picture("attention", head_map(result.mean, largest=1.0), "Attention of every head; the table has the numbers.")
    said = Verdict(lead, tuple(few_caveats(result.n)))
    return Description(said, (Section("Heads", rows, f"Mean attention; {intervals_over(result.over)}", shown, _MAP),))


@describe.register
def _(result: HeadEffects) -> Description:
    rows = result.table()
    first = rows[0]
    falls = is_number(first["effect"]) and first["effect"] < 0
    which = "the largest fall" if falls else "the lowest change of all heads: without no head does it fall"
    lead = (
        f"On {result.n:,} {SPLIT_WORDS[result.split]} the full model's {result.metric} is {number(float(result.full.mean()))}; "
        f"without {first['head']} it changes by {_with_ends(first, 'effect')}, {which}.",
        f"An ablated head carries: {result.ablation}.",
    )
    said = Verdict(lead, _first_caveats(first, f"the effect of {first['head']}", result.n))
    shown = picture("effects", head_map(result.mean, signed=True), "Effect of every head.")
    note = f"Metric with the head ablated minus the full model's; {intervals_over(result.over)}"
    return Description(said, (Section("Heads", rows, note, shown, f"Change of {result.metric}. {_MAP}"),))


@describe.register
def _(result: KnockoutCurve) -> Description:
    lead = [
        f"On {result.n:,} {SPLIT_WORDS[result.split]} {result.metric} goes from {number(float(result.mean[0]))} with "
        f"{result.sizes[0]} heads ablated to {number(float(result.mean[-1]))} with {result.sizes[-1]}. "
        f"An ablated head carries: {result.ablation}."
    ]
    areas = result.random_areas.tolist() if len(result.random) else []
    as_large = sum(area >= result.area for area in areas)
    if areas:
        lead.append(
            f"Between the random orders' median and this order lies an area of {number(result.area)} (mean difference of the "
            f"metric over the curve); {as_large:,} of {len(areas):,} random orders reach as much."
        )
    caveats = [*chance_caveats("random orders", "reach as much", areas, as_large), *few_caveats(result.n)]
    if result.area < 0:
        caveats.append("The area is below 0: ablated in this order the heads do less harm than in the random ones.")
    curve = picture("curve", curve_figure(result), "The metric over the number of ablated heads; the table has the numbers.")
    ends = f"{percent(result.confidence)} {intervals_over(result.over)}"
    note = f"last: the head that is ablated last at this point; low, high: {ends}"
    sections = [Section("Curve", result.table(), note, curve, "")]
    if result.effects is not None:
        shown = picture("effects", head_map(result.effects, signed=True), "Effect of every head.")
        sections.append(
            Section(
                "Effects on the search examples",
                picture=shown,
                caption=f"Change of {result.metric} with every head ablated alone. {_MAP}",
            )
        )
    return Description(Verdict(tuple(lead), tuple(caveats)), tuple(sections))


@describe.register
def _(result: NeuronAnalysis) -> Description:
    importance, table = result.importance, result.table
    rows = importance.table(max(1, len(result.tokens)), result.by)
    heads = ", ".join(importance.knocked_out)
    what = f"importance lost without {heads}" if result.by == "change" else "importance for the right answer"
    lead = (
        f"By {what} {rows[0]['neuron']} comes first ({_with_ends(rows[0], result.by)}, in nats, on {importance.n:,} search "
        "examples).",
        f"Importance: the rise of the right answer's log-probability when a neuron's output is {importance.method} "
        f"{'to the residual of its layer' if importance.method == 'added' else 'from the final residual'}, the final norm's "
        f"scale held. What is ablated carries: {table.ablation}.",
    )
    names = [str(row["neuron"]) for row in rows]
    columns = ("importance", "without heads") if importance.without is not None else ("importance",)
    series = {name: [float(row[name]) for row in rows] for name in columns}
    bars = picture(
        "neurons", bars_figure(names, series, "importance, in nats"), "The first neurons; the table has the numbers."
    )
    note = f"Means over examples; the interval is that of the {result.by}. activation: mean at the answer position"
    masked = picture("masked", masked_figure(table), "Metric with neurons masked, or alone kept; the table has the numbers.")
    layers = ", ".join(map(str, table.layers))
    return Description(
        Verdict(lead, _first_caveats(rows[0], f"the {result.by} of {names[0]}", importance.n)),
        (
            Section("Neurons", rows, note, bars, "The first neurons of the order."),
            Section(
                "Masked and kept",
                _masked_rows(table),
                f"Means over {table.n:,} {SPLIT_WORDS[table.split]}. mask: the top k neurons are ablated; keep: all others of "
                f"layers {layers} are. random: median (lowest to highest) of draws with as many neurons in each layer",
                masked,
                "",
            ),
            Section("Tokens", [tokens.row() for tokens in result.tokens], "What a neuron's output raises and lowers most"),
        ),
    )


@describe.register
def _(result: HeadMatrices) -> Description:
    rows, sums = result.table(), result.sums()
    first = max(rows, key=lambda row: abs(row["KQ diagonal"]))
    lead = (
        f"On the inputs (axes {', '.join(map(str, result.inputs))}) the diagonal of {first['head']}'s KQ is "
        f"{number(first['KQ diagonal'])}, with a standard deviation of {number(first['spread'])}; off it the entries have a "
        f"size of {number(first['off the diagonal'])}.",
        *(
            f"OV of the label (axis {result.label}) adds up to {number(row['sum over heads'])} over the heads of layer "
            f"{row['layer']}, of {number(row['of absolute values'])} in absolute values."
            for row in sums[:1]
        ),
    )
    pictures = [
        (f"{row['head']}: {what}", picture(f"{what}-{row['head']}", axes_map(matrix), f"{what} of {row['head']}."))
        for what, matrices in (("KQ", result.kq), ("OV", result.ov))
        for row, matrix in zip(rows, matrices.reshape(-1, *matrices.shape[2:]), strict=True)
    ][:_MATRICES]
    note = "Root mean squares where there is more than one entry. KQ times the scale of the scores; OV to the label's axis"
    sections = [Section("Heads", rows, note), Section("Sums", sums, "OV of the label over the heads of a layer")]
    sections += [Section(title, picture=shown, caption=_AXES) for title, shown in pictures]
    return Description(Verdict(lead, as_sentences([result.note])), tuple(sections))


def _masked_rows(table: NeuronTable) -> list[Row]:
    """The table of masked and kept neurons with its intervals as words, so that it fits a terminal."""
    rows: list[Row] = []
    for row in table.table():
        line: Row = {"neurons": row["neurons"], "k": row["k"]}
        for title, name in (("metric", table.metric), ("accuracy", "accuracy")):
            line[name] = row[title]
            line[f"{name}, interval"] = interval(row[f"{title} low"], row[f"{title} high"])
            low, high = row[f"{title}, random low"], row[f"{title}, random high"]
            middle = cell(row[f"{title}, random"])
            line[f"{name}, random"] = "-" if low is None else f"{middle} ({cell(low)} to {cell(high)})"
        rows.append(line)
    return rows
