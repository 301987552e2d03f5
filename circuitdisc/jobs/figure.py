"""`circuitdisc figure`: what a command has left, as a figure for a paper."""

from pathlib import Path

from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.jobs.job import Call, Job

OPTIONS = {
    "--kind KIND": "graph, scores, curve, transfer, attention or effects; else what the folder holds",
    "--out FILE": "the figure's file: .pdf, .svg or .png",
    "--width CM": "its width in centimetres; 8.4, a column",
    "--score NAME": "of scores and transfers: this one",
    "--split SPLIT": "of scores and transfers: heldout or train; heldout",
    "--edges N": "of graphs: the N with the largest scores",
}


def _work(call: Call) -> str:
    folder = call.run_folder()
    words = {flag.lstrip("-"): value for flag, value in call.options.items()}
    for arg in call.args[1:]:
        key, _, words[key] = arg.partition("=")
    known = [option.partition(" ")[0].lstrip("-") for option in OPTIONS]
    for key in words:
        if key not in known:
            raise UnknownName("setting of figure", key, known)
    if not words.get("out"):
        raise BadSetting("which file? `circuitdisc figure RUN --out fig.pdf` writes it; .svg and .png will do, too")
    from circuitdisc.figures import figure_of
    from circuitdisc.pages.verdict import plain_text

    out, kind = Path(words.pop("out")), words.pop("kind", None)
    numbers = {key: _number(key, words.pop(key)) for key in ("width", "edges") if key in words}
    drawing = figure_of(folder, kind, out, **words, **numbers)
    return f"{out}\n\n{plain_text(drawing.caption)}"


def _number(key: str, text: str) -> float:
    try:
        return int(text) if key == "edges" else float(text)
    except ValueError as error:
        raise BadSetting(f"{key}={text[:40]} is not a number") from error


JOB = Job(
    name="figure",
    arguments=("RUN", "--out FILE"),
    summary="a figure for a paper, as PDF, SVG or PNG, and its caption",
    text="""Draws what a command has left in the folder RUN, at the width of a column, with fonts embedded, and prints a caption
whose numbers are those of the page. The figures:

  graph      the circuit; of a head circuit the grid of its heads
  scores     scores with their intervals, beside those of random circuits
  curve      faithfulness over size, once `circuitdisc score RUN --all` has measured it
  transfer   one score of every circuit on every checkpoint, of `circuitdisc transfer`
  attention  mean attention of every head, of `circuitdisc heads attention`; effects, of `circuitdisc heads effects`

Needs matplotlib: pip install "circuitdisc[figures]".""",
    options=OPTIONS,
    work=_work,
)
