"""The benchmark of discovery: each part on tiny cells, a kill and what is done again, the page, refusals, outside scores."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks is no part of the installed package

from benchmarks.discovery import table  # noqa: E402
from benchmarks.discovery.__main__ import main  # noqa: E402
from benchmarks.discovery.cases import _load, load_case, true_case_names  # noqa: E402
from benchmarks.discovery.cells import Cell, cells, settings_text  # noqa: E402
from benchmarks.discovery.launch import compose  # noqa: E402
from circuitdisc.discovery.registry import ALGORITHMS  # noqa: E402
from circuitdisc.errors import BadFile, BadTask, UnknownName  # noqa: E402
from circuitdisc.scoring.stability import jaccard  # noqa: E402

torch.set_num_threads(1)
SMALL = ["truth.n=8", "truth.n_heldout=8", "truth.distractors=0", "seed=0", "ablation=resample", "metric=logit_diff"]
SHIPPED = ["shipped.n=4", "shipped.n_heldout=6", "shipped.n_random=1"]
STABLE = ["stability.n=8", "stability.n_heldout=4", "stability.bootstraps=2", "stability.seeds=2", "stability.distractors=0"]


def rows_of(path):
    return {str(cell): row for cell, row in table.read(path).items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """All three parts, on a few cells."""
    path = tmp_path_factory.mktemp("benchmark") / "T.csv"
    asked = [*SMALL, *SHIPPED, *STABLE, f"out={path}"]
    assert main(["part=truth,stability", "case=histogram", "algorithm=eap,hisp,random,acdc", *asked]) == 0
    assert main(["part=shipped", "case=tpp/lightweight:tpp", "algorithm=eap,hisp", *asked]) == 0
    return path


def test_known_truth(finished):
    rows = rows_of(finished)
    row = rows["truth|histogram|resample|logit_diff|acdc|0"]
    assert (row["kind"], row["AUROC_edges"], row["precision_edges"], row["recall_edges"]) == ("decides edges", "1", "1", "1")
    assert row["circuit_edges"] == row["true_edges"] == "4"
    assert float(row["faithfulness"]) == pytest.approx(1, abs=1e-3)
    assert row["CMD"] == row["precision_edges_at_true_size"] == "", "what decides has no curve, nor another size"
    row = rows["truth|histogram|resample|logit_diff|eap|0"]
    assert row["kind"] == "scores"
    assert 0 < float(row["AUROC_edges"]) < 1
    assert float(row["CMD_low"]) <= float(row["CMD"]) <= float(row["CMD_high"])
    assert (float(row["forward_passes"]), float(row["backward_passes"])) == (2, 1)
    assert float(row["node_evaluations"]) == 2 * 2, "one head and one MLP, on clean and corrupted prompts"
    assert len(row["curve"].split()) == len(row["random_curve"].split()) == 10
    assert row["settings"] == "n=8 n_heldout=8 distractors=0 n_random=1"


def test_without_a_truth(finished):
    rows = rows_of(finished)
    scored = rows["shipped|tpp/lightweight:tpp|resample|logit_diff|eap|0"]
    assert scored["AUROC_edges"] == ""
    assert (scored["examples"], scored["graph_edges"]) == ("6", "1519")
    assert float(scored["CPR_low"]) <= float(scored["CPR"]) <= float(scored["CPR_high"])
    decided = rows["shipped|tpp/lightweight:tpp|resample|logit_diff|hisp|0"]
    assert decided["kind"] == "decides heads"
    assert decided["CMD"] == ""
    assert decided["faithfulness"] != ""


def test_stability_is_that_of_circuits_found_again(finished):
    import circuitdisc as cd
    from circuitdisc.scoring.stability import mean_of_pairs

    rows = rows_of(finished)
    random = rows["stability|histogram|resample|logit_diff|random|0"]
    assert random["jaccard_edges"] == "1", "random scores do not look at the examples"
    config = compose(STABLE)
    case = load_case("histogram", config, "stability", 0)
    asked: dict[str, Any] = {"ablation": "resample", "metric": "logit_diff", "edges": 4, "grow": "greedy"}
    found = [cd.discover(case.model, case.task, "random", seed=seed, **asked) for seed in (0, 1)]
    sets = np.array([one.circuit.mask[one.circuit.graph.edge_mask] for one in found])
    assert float(random["jaccard_edges_seeds"]) == pytest.approx(mean_of_pairs(jaccard(sets, sets)), abs=1e-3)
    assert rows["stability|histogram|resample|logit_diff|eap|0"]["jaccard_edges_seeds"] == "1"


def test_page_and_figures_come_from_the_table_alone(finished, tmp_path, capsys):
    copy = tmp_path / "T.csv"
    copy.write_bytes(finished.read_bytes())
    assert main(["report", f"out={copy}"]) == 0
    page = copy.with_suffix(".md").read_text()
    assert page == finished.with_suffix(".md").read_text()
    row = rows_of(copy)["truth|histogram|resample|logit_diff|eap|0"]
    (line,) = [line for line in page.splitlines() if line.startswith("| `eap` | scores | resample | 1 |")]
    assert f"| {float(row['AUROC_edges']):.2f} |" in line
    assert "### tpp/lightweight:tpp, resample" in page
    assert "## Stability" in page
    figures = copy.with_suffix(".html").read_text()
    assert figures.count('class="plotly-graph-div"') == 4
    assert 'src="http' not in figures


def test_finished_cells_are_not_run_again(finished, tmp_path, capsys, monkeypatch):
    copy = tmp_path / "T.csv"
    copy.write_bytes(finished.read_bytes())
    asked = ["part=truth", "case=histogram", *SMALL, f"out={copy}"]
    monkeypatch.setattr("benchmarks.discovery.launch.launch", lambda *_: pytest.fail("nothing is left to run"))
    assert main([*asked, "algorithm=eap,acdc"]) == 0
    assert "2 cells, 2 of them" in capsys.readouterr().out
    monkeypatch.undo()
    before = rows_of(copy)
    assert main([*asked, "algorithm=eap,acdc", "settings.truth.acdc.threshold=1000"]) == 0, "other settings are another cell"
    after = rows_of(copy)
    changed = [cell for cell in after if after[cell] != before[cell]]
    assert changed == ["truth|histogram|resample|logit_diff|acdc|0"]
    assert after[changed[0]]["circuit_edges"] == "0"


def test_a_killed_benchmark_goes_on(tmp_path):
    path = tmp_path / "T.csv"
    command = [sys.executable, "-m", "benchmarks.discovery", "part=truth", "case=histogram", *SMALL, f"out={path}"]
    command += ["algorithm=eap,edge_pruning"]
    slow = subprocess.Popen([*command, "settings.truth.edge_pruning.steps=1000000"], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (path.exists() and path.read_bytes().count(b"\n") == 2):
            assert time.monotonic() < deadline
            assert slow.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(slow.pid, signal.SIGKILL)
        slow.wait()
    kept = path.read_text()
    path.write_text(kept + "truth,histogram,resa")  # as a kill can leave it
    args = [*command[3:], "settings.truth.edge_pruning.steps=3"]
    assert main(args) == 0
    assert path.read_text().startswith(kept), "the row that was there is there as it was"
    assert path.read_text().count("\n") == 3
    whole = rows_of(path)
    assert whole["truth|histogram|resample|logit_diff|edge_pruning|0"]["kind"] == "scores"
    path.unlink()
    assert main(args) == 0
    assert rows_of(path) == whole, "seconds included: the table is made of what was kept"


def test_a_cell_is_found_by_what_it_belongs_to(finished, tmp_path, monkeypatch):
    """Rows that were lost are not run again; those of other weights are, whatever their settings say."""
    copy = tmp_path / "T.csv"
    copy.write_text(finished.read_text().splitlines(keepends=True)[0])
    shutil.copytree(finished.with_suffix(".cells"), copy.with_suffix(".cells"))
    asked = ["part=truth", "case=histogram", "algorithm=eap", *SMALL, f"out={copy}"]
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.discovery.parts.run", lambda *_: pytest.fail("it was kept"))
        assert main(asked) == 0
    ((cell, row),) = rows_of(copy).items()
    assert row == rows_of(finished)[cell]
    monkeypatch.setattr("benchmarks.discovery.cases.ROTATION", 2)
    _load.cache_clear()
    assert main(asked) == 0
    _load.cache_clear()
    now = rows_of(copy)[cell]
    assert now["settings"] == row["settings"]
    assert now["identity"] != row["identity"]


def test_rows_of_an_older_table_are_known_by_their_settings(finished, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "T.csv"
    older, header = table.OLDER[-1], finished.read_text().splitlines()[0]
    rows = "".join(",".join(row[name] for name in older) + "\n" for row in rows_of(finished).values())
    copy.write_text(",".join(older) + "\n" + rows + "truth,hist")
    lost = {name: "" for name in table.COLUMNS if name not in older}
    wanted = {cell: {**row, **lost} for cell, row in rows_of(finished).items()}
    assert rows_of(copy) == wanted
    monkeypatch.setattr("benchmarks.discovery.launch.launch", lambda *_: pytest.fail("nothing is left to run"))
    assert main(["part=truth", "case=histogram", "algorithm=eap,acdc", *SMALL, f"out={copy}"]) == 0
    assert "2 cells, 2 of them" in capsys.readouterr().out
    assert copy.read_text().startswith(header)
    assert rows_of(copy) == wanted


def test_refusals_and_failures_are_rows(tmp_path, monkeypatch):
    path = tmp_path / "T.csv"
    asked = ["part=truth", "case=histogram", *SMALL, f"out={path}"]
    assert main([*asked, "metric=accuracy", "algorithm=eap,exact"]) == 0

    def broken(*args):
        raise ValueError("a mistake\nof its author")

    monkeypatch.setattr("circuitdisc.discovery.eap.eap", broken)
    assert main([*asked, "algorithm=eap"]) == 0
    rows = rows_of(path)
    assert "'accuracy' is constant almost everywhere" in rows["truth|histogram|resample|accuracy|eap|0"]["note"]
    assert rows["truth|histogram|resample|accuracy|exact|0"]["kind"] == "scores"
    assert rows["truth|histogram|resample|logit_diff|eap|0"]["note"] == "failed: ValueError: a mistake of its author"
    assert "constant almost everywhere" in path.with_suffix(".md").read_text().partition("## Refused")[2]


def test_a_file_of_scores_is_an_algorithm(tmp_path):
    config = compose(SMALL[:3])
    case = load_case("histogram", config, "truth", 0)
    scores = tmp_path / "mine.json"
    scores.write_text(json.dumps(dict.fromkeys(case.truth.edges("resample"), 1.0)))
    path = tmp_path / "T.csv"
    assert main(["case=histogram", *SMALL, f"scores={scores}", f"out={path}"]) == 0
    (cell,) = rows_of(path)
    assert cell == "truth|histogram|resample|logit_diff|from_file:mine|0"
    assert rows_of(path)[cell]["AUROC_edges"] == "1"


def test_the_default_is_everything():
    config = compose([])
    asked = list(cells(config, {}))
    assert len(set(asked)) == len(asked)
    for part in ("truth", "shipped", "stability"):
        assert {cell.algorithm for cell in asked if cell.part == part} == set(ALGORITHMS) - {"from_file"}
    assert {cell.seed for cell in asked if cell.part == "truth"} == {0, 1}
    assert Cell.parse(str(asked[0])) == asked[0]
    slow = next(cell for cell in asked if cell.part == "stability" and cell.algorithm == "acdc")
    assert "bootstraps=3" in settings_text(slow, config)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["case=histogran"], "unknown case 'histogran'. Did you mean histogram"),
        (["algorithm=ackdc"], "unknown algorithm 'ackdc'. Did you mean acdc"),
        (["part=proof"], "unknown part 'proof'"),
        (["ablation=none"], "none"),
        (["metric=logit"], "unknown metric 'logit'"),
        (["seed=x"], "seed=x must be a whole number"),
        (["scores=no_such.json"], "scores=no_such.json: there is no such file"),
        (["tracr=no_such_folder"], "tracr=no_such_folder: there is no such folder"),
        (["nothing.like=this"], "these settings cannot be read"),
        (["part=shipped", "case=histogram"], "no cell fits"),
    ],
)
def test_bad_input_gets_a_sentence(tmp_path, capsys, args, sentence):
    path = tmp_path / "T.csv"
    assert main([*args, f"out={path}"]) == 2
    assert sentence in capsys.readouterr().err
    assert not path.exists()


def test_another_table_is_left_alone(tmp_path, capsys):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    assert main(["part=truth", "case=histogram", "algorithm=eap", f"out={path}"]) == 2
    assert "is not a table of this benchmark" in capsys.readouterr().err
    assert path.read_text() == "a,b\n1,2\n"
    with pytest.raises(BadFile, match="cannot read"):
        table.read(tmp_path / "none.csv")
    with pytest.raises(UnknownName):
        list(cells(compose([]), {"case": ["none"]}))


def add_many(path, name):
    for seed in range(100):
        table.add(path, {"part": "truth", "case": name, "algorithm": "eap", "seed": seed, "settings": "n=1", "note": "x" * 200})


def test_rows_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "T.csv"
    table.start(path)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_many, args=(path, name)) for name in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rows = table.read(path)
    assert len(rows) == 400
    assert {row["note"] for row in rows.values()} == {"x" * 200}


@pytest.mark.skipif(not os.environ.get("CIRCUITDISC_TRACR"), reason="CIRCUITDISC_TRACR names no folder")
def test_programs_of_another_compiler():
    """The task has the model's own answers, and cutting edges one at a time finds the true ones."""
    import circuitdisc as cd

    config = compose([])
    names = [name for name in true_case_names(config) if name.startswith("tracr/")]
    assert names
    for name in names:
        if name in ("tracr/frac_prevs", "tracr/pair_balance"):
            with pytest.raises(BadTask, match="writes a number"):
                load_case(name, config, "truth", 0)
            continue
        case = load_case(name, config, "truth", 0)
        found = cd.discover(case.model, case.task, "exact", ablation="resample", metric="logit_diff")
        assert cd.against_truth(found, case.true_circuit(name, "resample"), ablation="resample").edges.auroc == 1
        assert cd.score(case.model, case.task, cd.Circuit.full(case.model.graph), ablation="zero").get("accuracy").value == 1
