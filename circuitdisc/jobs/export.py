"""`circuitdisc export`: a run's circuit and scores for other programs, in the format that the file's ending names."""

from pathlib import Path
from typing import Any

from circuitdisc.checks import Whole
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output

SETTINGS = ("prune", "table", "rows")
TABLES = ("edges", "heads", "scores")
SWITCHES = {"true": True, "false": False}
ENDINGS = ".json, .dot, .gv, .graphml, .gexf, .csv, .tex"


def _work(call: Call) -> Output:
    path = _write(call)
    return Output(path, {"folder": call.run_folder(), "file": path})


def _write(call: Call) -> str:
    """Write the file that was asked for; returns its path."""
    folder, files, given = call.run_folder(), list[str](), dict[str, str]()
    for arg in call.args[1:]:
        key, equals, value = arg.partition("=")
        if equals and key in SETTINGS and key not in given:
            given[key] = value
        else:
            files.append(arg)
    if len(files) != 1 or not files[0].lower().endswith(tuple(ENDINGS.split(", "))):
        raise BadSetting(
            f"which file? `circuitdisc export RUN FILE` writes the run's circuit and scores there, by its ending: "
            f"{ENDINGS}; `circuitdisc export --help` says what each holds"
        )
    path = Path(files[0])
    kind = {".json": "json", ".csv": "table", ".tex": "table"}.get(path.suffix.lower(), "graph")
    allowed = {"json": ("prune",), "table": ("table", "rows"), "graph": ()}[kind]
    for key in given:
        if key not in allowed:
            raise UnknownName(f"setting of export to {path.suffix}", key, allowed)
    if kind == "json":
        from circuitdisc.jobs.pipeline import export

        if given.get("prune", "false") not in SWITCHES:
            raise BadSetting(f"prune={given['prune'][:40]} is neither prune=true nor prune=false")
        return str(export(folder, path, prune=SWITCHES[given.get("prune", "false")]))
    return _graph(folder, path) if kind == "graph" else _table(folder, path, given)


def _graph(folder: Path, path: Path) -> str:
    from circuitdisc.exchange.graphs import write_graph

    write_graph(path, *_found(folder))
    return str(path)


def _table(folder: Path, path: Path, given: dict[str, str]) -> str:
    from circuitdisc.exchange.tables import edge_rows, head_rows, write_table

    table = given.get("table", TABLES[0])
    if table not in TABLES:
        raise UnknownName("table", table, TABLES)
    if not (rows := given.get("rows", "1000000")).isdecimal():
        raise BadSetting(f"rows={rows[:40]} is not a whole number")
    most = Whole(1, 1_000_000).check("rows", int(rows))
    if table == "scores":
        lines, caption = _scores(folder, path.suffix.lower() == ".tex")
    else:
        circuit, scores = _found(folder)
        lines, caption = edge_rows(circuit, scores) if table == "edges" else head_rows(circuit), repr(circuit)
    left = f", the first {most:,} of {len(lines):,} rows" if len(lines) > most else ""
    write_table(path, lines[:most], f"{table}: {caption}{left}")
    return str(path)


def _scores(folder: Path, as_words: bool) -> tuple[list[dict[str, Any]], str]:
    """The lines of a table of scores: with all digits, or in the words of the page."""
    from circuitdisc.pages.tables import controls_words, valued
    from circuitdisc.scoring.base import Scores
    from circuitdisc.sections import open_run

    file = open_run(folder).path("scores.json")
    scores = Scores.from_dict(_read(file, folder))
    if not as_words:
        return scores.table(), repr(scores)
    ordered = sorted(scores.scores, key=lambda score: score.split != "heldout")
    return [
        {
            "score": score.name,
            "split": score.split,
            "value": valued(score),
            "n": score.n,
            "random circuits": controls_words(score),
        }
        for score in ordered
    ], repr(scores)


def _read(file: Path, folder: Path) -> Any:
    from circuitdisc.bound import check_together
    from circuitdisc.errors import BadRun
    from circuitdisc.files import read_json

    if not file.is_file():
        raise BadRun(f"{folder} has no scores yet: `circuitdisc resume {folder}` goes on with it")
    data = read_json(file)
    check_together(file, data, _found(folder)[0])
    return data


def _found(folder: Path) -> tuple[Any, Any]:
    """A run's circuit, and its edge scores if it has any."""
    from circuitdisc.bound import read_own_edge_scores
    from circuitdisc.jobs.pipeline import EDGE_SCORES, read_circuit
    from circuitdisc.sections import open_run

    run = open_run(folder)
    circuit = read_circuit(run)
    return circuit, read_own_edge_scores(run.path(EDGE_SCORES), circuit)


JOB = Job(
    name="export",
    arguments=("RUN", "FILE"),
    summary="a run's circuit and scores for other programs: EAP-IG and MIB, Graphviz, GraphML, GEXF, CSV, LaTeX",
    text="""Writes the run's circuit and scores in the format that the file's ending names:

  .json           circuit and edge scores as EAP-IG and the MIB benchmark read them; prune=true leaves out the edges that
                  EAP-IG drops before it evaluates a circuit
  .dot, .gv       the circuit as a graph for Graphviz
  .graphml, .gexf the same for networkx, Gephi, Cytoscape: `score` is an edge's score, `weight` its size
  .csv, .tex      a table: table=edges (or heads, scores); rows=20 the first 20 alone. CSV has all digits, LaTeX three""",
    work=_work,
)
