"""The overview of the benchmark: variants in rows of their own, a model of the user, equal sizes, halves, median, worst."""

import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

import circuitdisc as cd
from circuitdisc.stats import partition_of

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks is no part of the installed package

from benchmarks.discovery import table  # noqa: E402
from benchmarks.discovery.__main__ import main  # noqa: E402
from benchmarks.discovery.board import write_board  # noqa: E402
from benchmarks.discovery.cases import load_case  # noqa: E402
from benchmarks.discovery.cells import Cell, cells, settings_text  # noqa: E402
from benchmarks.discovery.launch import compose  # noqa: E402

torch.set_num_threads(1)
FOLDER = ROOT / "circuitdisc" / "shipped" / "tpp" / "lightweight"
SMALL = ["truth.n=8", "truth.n_heldout=8", "truth.distractors=0", "real.n=4", "real.n_heldout=6", "real.case=[tpp]"]
ASKED = ["preset=board", *SMALL, f"real.model={FOLDER}"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A compiled case, and a task of a folder that the user names."""
    path = tmp_path_factory.mktemp("board") / "T.csv"
    asked = [*ASKED, f"out={path}", "seed=0", "algorithm=eap,eap:relp,eap_ig,acdc,random"]
    assert main(["part=truth", "case=histogram,induction", *asked]) == 0
    assert main(["part=real", *asked[:-1], "algorithm=eap,eap:relp,eap_ig,random"]) == 0
    return path


def row_of(path, text):
    return table.read(path)[Cell.parse(text)]


def test_a_model_of_the_users_goes_by_its_folders_name(finished):
    row = row_of(finished, "real|lightweight:tpp|resample|logit_diff|eap|0")
    assert (row["family"], row["examples"], row["graph_edges"], row["cmd_mib"]) == ("real", "6", "1519", "")
    assert float(row["cpr_mib_low"]) <= float(row["cpr_mib"])
    assert str(ROOT) not in finished.read_text() + finished.with_suffix(".md").read_text()
    without = compose(["preset=board"])
    without["real"]["model"] = None
    assert {cell.part for cell in cells(without, {})} == {"truth", "shipped"}
    config = compose(["preset=board", f"real.model={FOLDER}"])
    asked = list(cells(config, {"case": ["lightweight:ioi", "multitask/base:ioi"], "algorithm": ["eap"]}))
    assert [(cell.part, cell.case) for cell in asked if cell.seed == 0 and cell.part != "stability"] == [
        ("shipped", "multitask/base:ioi"),
        ("real", "lightweight:ioi"),
    ]
    induction = Cell("real", "lightweight:induction", "resample", "logit_diff", "eap:relp", 0)
    assert settings_text(induction, config) == "n=16 n_heldout=16 n_random=0 task.length=8 rule=relp"


def test_a_variant_is_the_algorithm_with_its_settings(finished):
    config = compose(ASKED)
    case = load_case("histogram", config, "truth", 0)
    found = cd.discover(case.model, case.task, "eap", ablation="resample", metric="logit_diff", rule="relp", edges=4)
    auroc = cd.against_truth(found, case.true_circuit("histogram", "resample"), ablation="resample").edges.auroc
    row = row_of(finished, "truth|histogram|resample|logit_diff|eap:relp|0")
    assert float(row["AUROC_edges"]) == pytest.approx(auroc, abs=1e-3)
    assert row["settings"].endswith("rule=relp")
    masks = Cell("truth", "siit/induction", "resample", "logit_diff", "edge_pruning:eap_ig", 0)
    assert settings_text(masks, config).endswith("steps=150 start=eap_ig"), "what holds for the algorithm holds for its variant"


def test_equal_sizes_and_halves(finished):
    """At the true size; of what decides at its own, with `eap_ig` beside; halves as two searches of half the examples."""
    config = compose(ASKED)
    case = load_case("induction", config, "truth", 0)
    shared: dict[str, Any] = {"ablation": "resample", "metric": "logit_diff"}
    found = cd.discover(case.model, case.task, "eap", **shared)
    size = len(case.truth.edges("resample"))
    row = row_of(finished, "truth|induction|resample|logit_diff|eap|0")
    score = cd.score(case.model, case.task, found.top_k(size), n_random=0, **shared).get("faithfulness")
    assert (row["equal_edges"], row["true_edges"]) == (str(size), str(size))
    assert float(row["equal_faithfulness"]) == pytest.approx(score.value, abs=1e-3)
    decided = row_of(finished, "truth|induction|resample|logit_diff|acdc|0")
    assert decided["equal_edges"] == decided["circuit_edges"]
    assert decided["equal_faithfulness"] == decided["faithfulness"]
    assert decided["equal_faithfulness_eap_ig"] != ""
    real = row_of(finished, "real|lightweight:tpp|resample|logit_diff|eap|0")
    assert real["equal_edges"] == "16", "a hundredth of 1,519 edges, rounded up"
    assert real["equal_faithfulness"] == real["curve"].split()[3]
    case = load_case("lightweight:tpp", config, "real", 0)
    units, masks = partition_of(case.task.train).of, []
    for start in (0, 1):
        train = tuple(example for example, unit in zip(case.task.train, units, strict=True) if unit % 2 == start)
        masks.append(cd.discover(case.model, replace(case.task, train=train), "eap", **shared).top_k(16).mask)
    shared_edges = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    assert float(real["jaccard_halves"]) == pytest.approx(shared_edges, abs=1e-3)
    assert 0 < shared_edges < 1


def test_the_one_table_has_median_and_worst(finished):
    rows, page = table.read(finished), finished.with_suffix(".md").read_text()
    values = [float(row["CMD"]) for cell, row in rows.items() if (cell.part, cell.algorithm) == ("truth", "eap:relp")]
    first = next(line for line in page.splitlines() if line.startswith("| `eap:relp` |"))
    assert len(values) == 2
    assert f"| {median(values):.2f}, {max(values):.2f} |" in first
    header = next(line for line in page.splitlines() if line.startswith("| algorithm |"))
    assert "compiled: CMD" in header
    assert "real: CMD" in header
    assert "real: AUROC" not in header
    assert "## lightweight: task by task" in page
    assert page.count("`acdc`") >= 2


def test_best_mean_against_plain_eap_ig(finished, tmp_path):
    """Three tasks whose CMD is made up: a mean of .1 for .2, every task the same."""
    lines = list(table.read(finished).values())
    (own,) = [line for line in lines if line["part"] == "real" and line["algorithm"] == "eap_ig"]
    path = tmp_path / "T.csv"
    table.start(path)
    for algorithm, factor in (("eap_ig", 2), ("ceap", 1), ("eap", 3)):
        for task, value in (("a", 0.05), ("b", 0.1), ("c", 0.15)):
            table.add(path, {**own, "algorithm": algorithm, "case": f"m:{task}", "CMD": factor * value})
    table.add(path, {**own, "algorithm": "eap_ig", "case": "m:unfinished", "CMD": 9})
    write_board(path)
    page = path.with_suffix(".md").read_text()
    assert "Best mean CMD: `ceap`, 0.100 for 0.200 of plain `eap_ig`, a third or more below** (0.50" in page
    assert "The best of the others on the other tasks (`ceap`), for each task in turn, comes to 0.100, 0.50" in page
    assert "3 tasks, 6 held-out examples each" in page


def test_unknown_variants_and_pages_are_refused(tmp_path, capsys):
    assert main([*ASKED, "algorithm=eap:gimm", f"out={tmp_path / 'T.csv'}"]) == 2
    assert "unknown algorithm 'eap:gimm'" in capsys.readouterr().err
    assert main(["report", "page=bord", f"out={tmp_path / 'T.csv'}"]) == 2
    assert "Did you mean board" in capsys.readouterr().err
