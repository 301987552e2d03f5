"""Certified edges: sums against literal searches on subsets, bounds against exact probabilities, deletions one by one."""

import json
from dataclasses import replace
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import random_examples, random_task, unchecked
from models import model_of
from scipy import stats

import circuitdisc as cd
import circuitdisc.engine.gradients.attribution as attribution_module
from circuitdisc.cli import main
from circuitdisc.discovery import discover
from circuitdisc.engine.gradients.unit_sums import UnitSums
from circuitdisc.engine.ranks import simulated
from circuitdisc.errors import BadSetting, BadTask
from circuitdisc.pages.certify import certificate_part, certificate_verdict
from circuitdisc.scoring import stability as stability_module
from circuitdisc.scoring.certify import ABSTAINED, IN, OUT, bounds_of_sets, certify
from circuitdisc.scoring.stability import stability_of_units
from circuitdisc.tasks.base import Task

SETTINGS: dict[str, Any] = {"ablation": "resample", "edges": 12, "allow_chance": True}
RUN = ["discover", "model=toys/induction", "task=induction", "task.n=12", "task.n_heldout=8", "ablation=resample",
       "progress=false", "algorithm=eap", "algorithm.edges=8", "scoring.n_random=1", "explorer=false"]  # fmt: skip
BY_UNIT = ("eap", "eap_ig", "eap_ig_activations", "clean_corrupted", "ceap", "eap_gp")


@cache
def small():
    model = model_of("layer_norm_gated")
    return model, random_task(model, 7, seed=1)


def in_groups(model, n: int, n_groups: int) -> Task:
    examples = [replace(one, group=f"g{at % n_groups}") for at, one in enumerate(random_examples(model, n))]
    return Task("groups", tuple(examples), ())


def subset(task: Task, kept) -> Task:
    return Task(task.name, tuple(one for one, keep in zip(task.train, kept, strict=True) if keep), (), task.metric)


# --- what each unit adds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", BY_UNIT)
@pytest.mark.parametrize("a_chunk", [7, 2])
def test_sums_are_the_search_on_the_subset_and_move_no_bit_of_the_whole(algorithm, a_chunk, monkeypatch):
    model, task = small()
    monkeypatch.setattr(attribution_module, "examples_in_budget", lambda *_: a_chunk)
    plain, kept = (discover(model, task, algorithm, keep_units=keep, **SETTINGS) for keep in (False, True))
    assert plain.circuit == kept.circuit
    assert plain.edge_scores is not None
    assert kept.edge_scores is not None
    assert np.array_equal(plain.edge_scores, kept.edge_scores, equal_nan=True)
    assert vars(plain.cost) | {"seconds": 0} == vars(kept.cost) | {"seconds": 0}, "no further run"
    assert plain.units is None
    assert kept.units is not None
    assert not kept.units.frozen
    for chosen in ([1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 1, 0, 0], [1] * 7):
        literal = discover(model, subset(task, chosen), algorithm, **SETTINGS)
        assert literal.edge_scores is not None
        assert np.allclose(kept.units.scores(np.array(chosen)), literal.edge_scores, rtol=0, atol=1e-13, equal_nan=True)
        assert kept.units.circuit(np.array(chosen)) == literal.circuit


@pytest.mark.parametrize("by_group", [False, True])
def test_ranks_have_the_sums_of_one_process(by_group, monkeypatch):
    model, task = small()
    task = in_groups(model, 12, 6) if by_group else task
    monkeypatch.setattr(attribution_module, "examples_in_budget", lambda *_: 2)  # a group lies in several chunks
    alone = discover(model, task, "eap_ig", keep_units=True, **SETTINGS).units
    for found in simulated(3, lambda _: discover(model, task, "eap_ig", keep_units=True, **SETTINGS).units):
        assert alone is not None
        assert found is not None
        assert np.allclose(found.sums, alone.sums, rtol=0, atol=1e-13)


def test_what_does_not_fit_beside_a_chunk_is_not_kept(monkeypatch):
    model, task = small()
    needed = UnitSums.bytes_of(7, model.graph)
    for room, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(attribution_module, "chunk_bytes", lambda *_, room=room: 2**30 - room)
        found = discover(model, task, "eap", keep_units=True, **unchecked({**SETTINGS, "memory": "1GiB"}))
        assert (found.units is not None) is fits
        assert fits or found.no_units.startswith("the scores of 7 examples take ")


def test_groups_are_units_and_their_own_means_are_no_frozen_ones():
    model = model_of("attention_only")
    task = in_groups(model, 12, 6)
    found = discover(model, task, "eap", keep_units=True, **unchecked({**SETTINGS, "ablation": "mean"}))
    assert found.units is not None
    assert (len(found.units.sums), found.units.over.by_group, found.units.frozen) == (6, True, False)
    chosen = np.array([1, 0, 1, 1, 0, 1])
    literal = discover(model, subset(task, chosen[found.units.over.of]), "eap", **unchecked({**SETTINGS, "ablation": "mean"}))
    assert found.units.circuit(chosen) == literal.circuit
    by_data_set = unchecked({**SETTINGS, "ablation": {"kind": "mean", "scope": "dataset"}})
    frozen = discover(model, task, "eap", keep_units=True, **by_data_set)
    assert frozen.units is not None
    assert frozen.units.frozen


def test_who_keeps_nothing_says_why():
    model, task = small()
    for algorithm in ("atp", "random", "ensemble"):
        found = discover(model, task, algorithm, keep_units=True, **SETTINGS)
        assert found.units is None
        assert algorithm in found.no_units
        with pytest.raises(BadSetting, match=algorithm):
            stability_of_units(found)
    with pytest.raises(BadSetting, match="keep_units=True"):
        stability_of_units(discover(model, task, "eap", **SETTINGS))


# --- certificates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["eap", "clean_corrupted"])
def test_one_search_certifies_what_literal_searches_do(algorithm):
    model, task = small()
    sums, reruns = (certify(model, task, algorithm, n=12, rerun=rerun, seed=3, **SETTINGS) for rerun in (False, True))
    assert (sums.reruns, reruns.reruns) == (False, True)
    assert sums.table() == reruns.table()
    assert sums.circuit == reruns.circuit
    kept_NG = np.random.default_rng(3).random((12, 7)) >= 0.2
    circuits = [discover(model, subset(task, kept), algorithm, **SETTINGS).circuit for kept in kept_NG]
    for row in sums.table():
        assert row["share"] == sum(row["edge"] in circuit.edge_names() for circuit in circuits) / 12
    assert sums.forwards < reruns.forwards / 9, "one search, and thirteen of about .8 of the examples"


def test_bounds_are_clopper_and_pearsons():
    sets = np.random.default_rng(0).random((40, 5)) < np.array([0, 0.3, 0.5, 0.95, 1])
    found = bounds_of_sets(sets, 0.2, 0.9, 10)
    for edge, hits in enumerate(sets.sum(0).tolist()):
        low, high = stats.binomtest(hits, 40).proportion_ci(1 - 0.1 / 5, "exact")
        assert (found.low[edge], found.high[edge]) == pytest.approx((low, high))
        label = IN if low > 0.5 else OUT if high < 0.5 else ABSTAINED
        assert found.labels[edge] == label
        sure = max(low, 1 - high)
        withstood = [r for r in range(11) if sure > 1 - 0.2**r / 2]
        assert found.deletions[edge] == max(withstood, default=-1)
    assert {IN, OUT, ABSTAINED} == set(found.labels)


def probabilities(rule, n_units: int, delete: float) -> dict[tuple[int, ...], np.ndarray]:
    """Each edge's exact probability of being in the circuit of a random subset, of all units and without any few of them."""
    subsets = list(product((0, 1), repeat=n_units))
    edges = {kept: rule(np.array(kept)) for kept in subsets}
    found = {}
    for r in range(4):
        for gone in combinations(range(n_units), r):
            left = [kept for kept in subsets if not any(kept[i] for i in gone)]
            weights = [(1 - delete) ** sum(kept) * delete ** (n_units - r - sum(kept)) for kept in left]
            found[gone] = np.array(weights) @ np.array([edges[kept] for kept in left], dtype=float)
    return found


def planted(seed: int, n_units: int = 8, n_edges: int = 9):
    """Three edges of nine by the largest sum of scores, some of which hang on few units; none of no unit."""
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal((n_units, n_edges)) + np.linspace(2.5, -0.5, n_edges)

    def rule(kept):
        chosen = np.zeros(n_edges, dtype=bool)
        chosen[np.argsort(-(kept @ scores))[:3]] = kept.any()
        return chosen

    return rule


@pytest.mark.parametrize("delete", [0.2, 0.6])
def test_bounds_hold_over_seeds_and_no_deletion_breaks_a_certificate(delete):
    """Exact probabilities of a planted rule by all subsets: bounds hold for all edges at once, and certificates always then."""
    missed, withstood = 0, 0
    for seed in range(60):
        rule = planted(seed)
        exact = probabilities(rule, 8, delete)
        kept = np.random.default_rng(1000 + seed).random((300, 8)) >= delete
        found = bounds_of_sets(np.array([rule(row) for row in kept]), delete, 0.95, 8)
        missed += not ((found.low <= exact[()]) & (exact[()] <= found.high)).all()
        if ((found.low <= exact[()]) & (exact[()] <= found.high)).all():
            for edge, (label, deletions) in enumerate(zip(found.labels, found.deletions, strict=True)):
                for gone, p in exact.items():
                    if label != ABSTAINED and len(gone) <= deletions:
                        withstood += len(gone) > 0
                        assert (p[edge] > 0.5) == (label == IN)
                        assert p[edge] != 0.5
    assert missed <= 6, "5 % of 60, at most; P(more than 6) is .03 at .05, and the bounds are wide"
    assert withstood > 500


def test_the_derived_bound_is_attained():
    """An edge that is in all circuits with one of two units, and with the third: without both it has what the bound leaves."""
    delete = 0.4
    exact = probabilities(lambda kept: np.array([kept[:3].any()]), 4, delete)
    assert exact[0, 1][0] == pytest.approx((exact[()][0] - (1 - delete**2)) / delete**2)


def test_too_few_subsets_certify_nothing_and_it_is_said():
    model, task = small()
    found = certify(model, task, "eap", n=4, **SETTINGS)
    record = json.loads(json.dumps(found.to_dict()))
    assert found.n_needed > 4
    assert set(found.bounds.labels) == {ABSTAINED}
    said = certificate_verdict(record, found.circuit)
    assert any(f"that takes {found.n_needed:,} at least" in line for line in said.caveats)
    enough = bounds_of_sets(np.ones((found.n_needed, len(found.names)), dtype=bool), 0.2, 0.95, 7)
    fewer = bounds_of_sets(np.ones((found.n_needed - 1, len(found.names)), dtype=bool), 0.2, 0.95, 7)
    assert (set(enough.labels), set(fewer.labels)) == ({IN}, {ABSTAINED})
    assert (bounds_of_sets(np.ones((found.n_for_one, len(found.names)), dtype=bool), 0.2, 0.95, 7).deletions == 1).all()
    assert (bounds_of_sets(np.ones((found.n_for_one - 1, len(found.names)), dtype=bool), 0.2, 0.95, 7).deletions == 0).all()


def test_the_table_counts_every_edge_once():
    model, task = small()
    found = certify(model, task, "eap", n=40, **SETTINGS)
    counts = found.counts
    assert sum(counts["circuit"].values()) == found.circuit.n_edges
    assert sum(n for own in counts.values() for n in own.values()) == model.graph.n_edges
    listed = {row["edge"] for row in found.table()}
    assert len(listed) + found.never["edges"] == model.graph.n_edges + sum(row["share"] == 0 for row in found.table()), (
        "edges of the circuit that no subset has are listed"
    )
    assert set(found.certified.edge_names()) == {row["edge"] for row in found.table() if row["label"] == IN}
    part = certificate_part(json.loads(json.dumps(found.to_dict())), found.circuit)
    assert len(part.rows) <= 20
    assert f"{found.forwards:,.0f} plain forward passes" in part.lines[0]


def test_bad_input_is_refused():
    model, task = small()
    with pytest.raises(BadTask, match="at least two"):
        certify(model, Task("one", task.train[:1], ()), "eap", **SETTINGS)
    for bad in map(unchecked, ({"delete": 0.0}, {"delete": 1.0}, {"n": 0}, {"confidence": 1.0})):
        with pytest.raises(BadSetting):
            certify(model, task, "eap", **bad, **SETTINGS)


# --- stability of one search ----------------------------------------------------------------------------------------------


def test_stability_of_units_is_that_of_literal_searches():
    model, task = small()
    found = stability_of_units(discover(model, task, "eap", keep_units=True, **SETTINGS), 5, seed=2)
    generator, literal = np.random.default_rng(2), []
    for _ in range(5):
        sample = Task("again", tuple(task.train[i] for i in generator.integers(7, size=7)), (), task.metric)
        literal.append(discover(model, sample, "eap", **SETTINGS).circuit)
    assert list(found.circuits) == literal
    assert found.settings["reruns"] is False
    again = cd.stability(model, task, "eap", n_bootstrap=5, seed=2, **SETTINGS)
    assert again.table() == found.table()
    assert again.shares == found.shares


@cache
def toy_run(folder: str, *more: str) -> Path:
    run = Path(folder) / "_".join(["run", *more])
    assert main([*RUN, *more, f"out={run}"]) == 0
    return run


def test_a_run_has_it_by_default_and_nothing_else_moves(tmp_path_factory):
    at = str(tmp_path_factory.mktemp("along"))
    with_it, without = toy_run(at), toy_run(at, "stability=0")
    record = json.loads((with_it / "stability.json").read_text("utf-8"))
    assert (record["n"], record["settings"]["reruns"], record["settings"]["frozen"]) == (50, False, False)
    assert not (without / "stability.json").exists()
    for name in ("circuit.json", "scores.json"):
        assert (with_it / name).read_bytes() == (without / name).read_bytes()
    ours, theirs = (np.load(run / "edge_scores.npz")["edge_scores"] for run in (with_it, without))
    assert np.array_equal(ours, theirs, equal_nan=True)
    costs = [json.loads((run / "cost.json").read_text("utf-8")) | {"seconds": 0} for run in (with_it, without)]
    assert costs[0] == costs[1]
    page = (with_it / "report.html").read_text("utf-8")
    assert "no further run" in page
    assert "plot-stability" in page
    model = cd.load_model("toys/induction")
    task = cd.load_task("induction", model, n=12, n_heldout=8)
    by_hand = cd.stability(model, task, "eap", n_bootstrap=50, ablation="resample", metric="logit_diff", edges=8)
    assert record["table"] == json.loads(json.dumps(by_hand.table()))
    assert record["shares"] == by_hand.shares


def test_terminal_and_page_say_the_same_of_it(tmp_path, capsys):
    assert main([*RUN, f"out={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out.split("verdict\n")[1]
    sentence = next(line.strip() for line in said.splitlines() if line.startswith("  Edges: "))
    assert "50 bootstrap samples" in sentence
    assert sentence in (tmp_path / "run" / "report.html").read_text("utf-8").replace("\u00a0", " ")
    assert main(["discover", *RUN[1:], "--json", f"out={tmp_path / 'json'}"]) == 0
    assert sentence in json.loads(capsys.readouterr().out)["verdict"]


def test_a_search_that_keeps_no_scores_says_so_on_its_page(tmp_path_factory):
    run = toy_run(str(tmp_path_factory.mktemp("along")), "algorithm=atp")
    assert not (run / "stability.json").exists()
    page = (run / "report.html").read_text("utf-8")
    assert "was not computed along with the search (atp forms no scores of single examples)" in page
    assert "no stability" not in page


def test_one_sample_is_refused_before_anything_is_loaded(tmp_path, capsys):
    assert main([*RUN, "stability=1", f"out={tmp_path / 'run'}"]) == 2
    assert "stability=1 compares no two circuits" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- the command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return toy_run(str(tmp_path_factory.mktemp("certify")))


def test_the_command_writes_the_record_and_the_page(run, capsys):
    assert f"circuitdisc certify {run}" in (run / "report.html").read_text("utf-8")
    assert main(["certify", str(run), "n=80", "progress=false"]) == 0
    out = capsys.readouterr().out
    record = json.loads((run / "certify.json").read_text("utf-8"))
    assert (record["n"], record["delete"], record["reruns"], record["frozen"]) == (80, 0.2, False, False)
    assert "certified in" in out
    page = (run / "report.html").read_text("utf-8")
    assert "Certified edges" in page
    model = cd.load_model("toys/induction")
    task = cd.load_task("induction", model, n=12, n_heldout=8)
    by_hand = certify(model, task, "eap", n=80, ablation="resample", metric="logit_diff", edges=8)
    assert json.loads(json.dumps(by_hand.table())) == record["table"]


def test_searches_go_on_where_they_were(run, monkeypatch):
    command = ["certify", str(run), "n=6", "rerun=true", "progress=false"]
    calls = []
    whole = stability_module.discover

    def killed(*args, **settings):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(*args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(stability_module, "discover", killed)
        assert main(command) == 130
    assert (run / "certify.partial.jsonl").exists()
    assert main([*command, "delete=0.5"]) == 2, "subsets of another share are not those of now"
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(stability_module, "discover", lambda *args, **settings: calls.append(1) or whole(*args, **settings))
        assert main(["resume", str(run)]) == 0
    assert len(calls) == 4
    record = json.loads((run / "certify.json").read_text("utf-8"))
    assert (record["n"], record["reruns"]) == (6, True)
    assert not (run / "certify.partial.jsonl").exists()


def test_of_a_circuit_without_edges_nothing_is_said_to_be_certified():
    model, task = small()
    found = certify(model, task, "eap", n=4, **SETTINGS)
    record = found.to_dict()
    record["counts"]["circuit"] = dict.fromkeys(record["counts"]["circuit"], 0)
    record["table"] = [{**row, "kept": False} for row in record["table"]]
    said = certificate_verdict(record, found.circuit)
    assert said.lines[0].startswith("The circuit has no edge")
    assert not any("are certified in: most" in line for line in said.lines)
