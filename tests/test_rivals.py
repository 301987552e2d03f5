"""Rivals: two circuits that were planted are both found, one alone stays alone, and the rule is that of plain numbers."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from examples import TINY_RUN, random_task, some_circuit, unchecked
from made_pages import Page
from models import model_of

import circuitdisc as cd
from circuitdisc.ablation import get_ablation
from circuitdisc.certainty.rival_heads import ByHeadScores
from circuitdisc.certainty.rival_search import FACTORS, ByScores, avoiding, uses_of
from circuitdisc.certainty.rivals import ALIKE, AS_GOOD, LARGER, UNDECIDED, WORSE, Rivals, rivals
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.selection import top_k
from circuitdisc.engine.patching import Cost, Patching
from circuitdisc.errors import BadRun, BadSetting, BadTask
from circuitdisc.known.compiled.twofold import PATHS, twofold
from circuitdisc.metrics import get_metric
from circuitdisc.pages.certainty import rivals_parts, rivals_verdict
from circuitdisc.runs.works import works_in

torch.set_num_threads(1)
CUTS: dict[str, Any] = {"threshold": 0.01}


@cache
def planted():
    return twofold(rotate=0, distractors=2)


@cache
def of_planted(algorithm: str) -> Rivals:
    case = planted()
    search = cd.discover(case.model, case.task, algorithm, ablation="mean", **CUTS)
    return rivals(case.model, case.task, search.circuit, algorithm, n=2, n_random=5, settings=CUTS, search=search.cost)


# --- planted --------------------------------------------------------------------------------------------------------------


def test_the_planted_model_does_the_same_with_either_path():
    case = planted()
    patching = Patching(case.model, get_ablation("mean"), case.task.train)
    graph, without = case.model.graph, {}
    for index, (early, late) in enumerate(PATHS):
        gone = {graph.sender_index[early], graph.sender_index[late]}
        without[str(index)] = graph.edge_mask & ~np.isin(np.arange(graph.n_senders), list(gone))
    both = {"neither": without["0"] & without["1"], "all": graph.edge_mask, **without}
    values = patching.evaluate(case.task.heldout, both, [get_metric("logit_diff")])
    means = {name: float(row["logit_diff"].mean()) for name, row in values.items()}
    assert means["0"] == pytest.approx(means["all"], abs=1e-9)
    assert means["1"] == pytest.approx(means["all"], abs=1e-9)
    assert means["neither"] < 0.2 * means["all"]


@pytest.mark.parametrize("algorithm", ["acdc", "bisect"])
def test_the_second_circuit_is_found(algorithm):
    case, result = planted(), of_planted(algorithm)
    first = result.rivals[0]
    assert first.standing == AS_GOOD
    run = case.path_of(sorted(set(result.core_heads) | set(result.optional_heads)))
    assert run is None, "both paths together"
    assert case.path_of(first.heads) is not None
    assert result.rivals[1].standing == ALIKE
    assert result.core_edges == ("m1->logits",)
    assert set(result.optional_heads) == {head for path in PATHS for head in path}
    assert "It is one of at least 2 circuits as good" in rivals_verdict(result).headline


def test_by_scores_the_second_best_path_comes_next():
    """Scores by hand: the first path's edges above the second's, the shared edge above both."""
    case = planted()
    graph = case.model.graph
    scores = np.where(graph.edge_mask, 1e-3, np.nan)
    circuits = [of_planted("acdc").rivals[0], of_planted("bisect").rivals[0]]
    paths: dict[Any, Any] = {case.path_of(rival.heads): rival.edges for rival in circuits}
    run = of_planted("acdc")
    paths[1 - next(iter(paths))] = (*run.core_edges, *(set(run.optional_edges) - set(circuits[0].edges)))
    for path, score in ((1, 0.9), (0, 1.0)):
        for edge in paths[path]:
            scores[graph.parse_edge(edge)] = 2.0 if edge in run.core_edges else score
    circuit = top_k(graph, scores, len(paths[0])).with_provenance(
        cd.discover(case.model, case.task, "random", ablation="mean", edges=3, allow_chance=True).circuit.provenance
    )
    result = rivals(case.model, case.task, circuit, "eap", n=1, n_random=3, edge_scores=scores)
    assert case.path_of(circuit.heads()) == 0
    assert result.rivals[0].standing == AS_GOOD
    assert case.path_of(result.rivals[0].heads) == 1
    assert result.rivals[0].factor == 0.1, "with 0 the shared edge is lost"


@pytest.mark.parametrize("name", ["induction", "proportion"])
@pytest.mark.parametrize("algorithm", ["acdc", "bisect"])
def test_a_circuit_that_is_the_only_one_has_no_rival(name, algorithm):
    case = cd.compiled.build(name, rotate=0, distractors=2)
    settings: dict[str, Any] = {"threshold": 0.001}
    search = cd.discover(case.model, case.task, algorithm, ablation="resample", **settings)
    assert set(search.circuit.edge_names()) == case.truth.edges("resample")
    result = rivals(case.model, case.task, search.circuit, algorithm, n=2, n_random=5, settings=settings)
    assert not result.as_good
    assert result.core_edges == tuple(search.circuit.edge_names())
    said = rivals_verdict(result)
    assert said.headline.startswith("No rival found in 2 tries (")
    assert any("does not say that there is none" in caveat for caveat in said.caveats)


# --- heads ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"threshold": 0.05, "order": "descending"}, {"keep": 0.9, "order": "descending"}])
def test_the_other_heads_are_found(settings):
    case = planted()
    search = cd.discover(case.model, case.task, "head_ablation", ablation="mean", **settings)
    run = case.path_of(search.circuit.heads())
    result = rivals(
        case.model, case.task, search.circuit, "head_ablation", n=2, n_random=3, settings=settings, search=search.cost
    )
    first = result.rivals[0]
    assert run is not None
    assert (first.standing, case.path_of(first.heads)) == (AS_GOOD, 1 - run)
    assert (first.n_shared, first.jaccard) == (0, 0.0)
    assert result.rivals[1].standing == ALIKE
    assert result.core_heads == ()
    assert set(result.optional_heads) == {*search.circuit.heads(), *first.heads}
    (part,) = rivals_parts(result)
    assert part.headers[2] == "Heads"
    assert [row[2] for row in part.rows[:2]] == [f"{len(heads)}" for heads in (search.circuit.heads(), first.heads)]
    said = " ".join(rivals_verdict(result).lines)
    assert "Its core: 0 of its 2 heads are in all of these 2. The mean Jaccard index of their heads is 0" in said


def test_heads_without_which_nothing_goes_have_no_rival():
    case = cd.compiled.build("induction", rotate=0, distractors=2)
    search = cd.discover(case.model, case.task, "head_ablation", ablation="resample", threshold=0.05)
    result = rivals(case.model, case.task, search.circuit, "head_ablation", n=1, n_random=3, settings={"threshold": 0.05})
    assert not result.as_good
    assert result.rivals[0].standing == ALIKE
    assert result.core_heads == tuple(search.circuit.heads())


def test_heads_by_scores_are_the_next_best():
    """Scores by hand, of two used heads and three that are not."""
    model = model_of("attention_only")
    graph, names = model.graph, list(model.graph.heads)
    scores = np.zeros((graph.n_layers, graph.n_heads))
    scores.flat[:5] = [1.0, 0.8, 0.6, 0.16, 0.12]
    used = [Circuit.from_heads(graph, names[:2]), Circuit.from_heads(graph, names[1:3])]
    by = ByHeadScores(graph, 2, scores, FACTORS, Cost())
    for factor, circuit in by.proposals(uses_of(used), 1):
        weighted = [score * factor**n for score, n in zip(scores.flat, [1, 2, 1], strict=False)] + [0.16, 0.12]
        best = sorted(range(5), key=lambda place: -weighted[place])[:2]
        assert circuit.heads() == [names[place] for place in sorted(best)]


@pytest.mark.parametrize("algorithm", ["hisp", "path_patching"])
def test_searches_that_score_heads_have_rivals(algorithm):
    model, task, _ = small()
    settings: dict[str, Any] = {"heads": 2} if algorithm == "hisp" else {"threshold": 0.0, "top": 2, "max_depth": 1}
    search = cd.discover(model, task, algorithm, ablation="resample", allow_chance=True, **settings)
    result = rivals(model, task, search.circuit, algorithm, n=2, n_random=2, settings=settings)
    assert result.by == "head"
    assert all(len(rival.heads) == len(search.circuit.heads()) for rival in result.rivals)
    own = set(search.circuit.heads())
    for rival in result.rivals:
        assert rival.n_shared == len(own & set(rival.heads))
        assert rival.jaccard == pytest.approx(len(own & set(rival.heads)) / len(own | set(rival.heads)))


# --- the rule -------------------------------------------------------------------------------------------------------------


@cache
def small():
    model = model_of("attention_only")
    task = random_task(model, 12, seed=1)
    search = cd.discover(model, task, "eap", ablation="resample", edges=30, allow_chance=True)
    return model, task, search


def test_figures_are_those_of_the_values_themselves():
    model, task, search = small()
    result = rivals(model, task, search.circuit, "eap", n=3, n_random=4, edge_scores=search.edge_scores, margin=0.3, seed=2)
    graph = model.graph
    masks = {"full": graph.edge_mask, "empty": np.zeros_like(graph.edge_mask), "run": search.circuit.mask}
    masks |= {rival.name: Circuit.from_edges(graph, rival.edges).mask for rival in result.rivals}
    values = Patching(model, get_ablation("resample"), task.train).evaluate(task.heldout, masks, [get_metric("logit_diff")])
    mean = {name: float(row["logit_diff"].mean()) for name, row in values.items()}
    span = mean["full"] - mean["empty"]
    assert result.own.value == pytest.approx((mean["run"] - mean["empty"]) / span)
    run, own = set(search.circuit.edge_names()), result.own.value
    assert own is not None
    for rival in result.rivals:
        faithful = (mean[rival.name] - mean["empty"]) / span
        assert rival.faithfulness == pytest.approx(faithful)
        assert rival.nearer == pytest.approx(abs(1 - own) - abs(1 - faithful))
        assert rival.jaccard == pytest.approx(len(run & set(rival.edges)) / len(run | set(rival.edges)))
        assert rival.n_edges == len(rival.edges) <= len(run)
        low, high = rival.nearer_low, rival.nearer_high
        assert low is not None
        assert high is not None
        wanted = AS_GOOD if low >= -0.3 else WORSE if high < -0.3 else UNDECIDED
        assert rival.standing in (wanted, ALIKE)
    good = [run, *(set(rival.edges) for rival in result.as_good)]
    assert set(result.core_edges) == set.intersection(*good)
    assert set(result.optional_edges) == set.union(*good) - set.intersection(*good)


def test_a_proposal_by_scores_is_the_largest_that_is_no_larger_than_the_run():
    model, _, search = small()
    graph = model.graph
    uses = uses_of([search.circuit, some_circuit(graph, 3)])
    assert search.edge_scores is not None
    by = ByScores(30, search.edge_scores, {"grow": "top_k", "by": "absolute"}, Circuit.full(graph), search.cost)
    for (factor, circuit), wanted in zip(by.proposals(uses, 1), FACTORS, strict=True):
        assert factor == wanted
        scores = search.edge_scores * np.array([[factor**n for n in row] for row in uses.tolist()])
        sizes = [top_k(graph, scores, n).n_edges for n in range(30, graph.n_edges + 1)]
        last = max(index for index, size in enumerate(sizes) if size <= 30)
        assert circuit == top_k(graph, scores, 30 + last)


def test_used_edges_are_cut_by_the_runs_own_rule():
    """Without a used edge the search is the run's own, and what is left holds the rule: no cut that it allows is left."""
    model, task, _ = small()
    settings: dict[str, Any] = {"threshold": 0.05}
    search = cd.discover(model, task, "acdc", ablation="resample", allow_chance=True, **settings)
    context = SearchContext(get_metric("logit_diff"))
    about = (model, task, search.circuit, "acdc", get_ablation("resample"), context, settings, None)
    again = avoiding(*about).proposals(np.zeros_like(search.circuit.mask, dtype=int), 1)
    assert again[0] == (1.0, search.circuit)
    other = avoiding(*about).proposals(uses_of([search.circuit]), 1)
    assert [factor for factor, _ in other] == [1.0, 0.5, 0.25][: len(other)]
    assert all(circuit.n_edges < search.circuit.n_edges for _, circuit in other[:-1])


def test_a_killed_call_goes_on_and_another_circuit_is_refused(tmp_path):
    model, task, search = small()
    given: dict[str, Any] = {"edge_scores": search.edge_scores, "n_random": 2, "journal": tmp_path / "tries.jsonl"}
    once = rivals(model, task, search.circuit, "eap", n=1, **given)
    more = rivals(model, task, search.circuit, "eap", n=2, **given)
    assert more.rivals[0] == once.rivals[0]
    fresh = rivals(model, task, search.circuit, "eap", n=2, **unchecked({**given, "journal": None}))
    assert [rival.edges for rival in fresh.rivals] == [rival.edges for rival in more.rivals]
    with pytest.raises(BadRun, match="another circuit"):
        rivals(model, task, some_circuit(model.graph).with_provenance(search.circuit.provenance), "eap", n=1, **given)


def test_resume_goes_on_with_a_call_that_was_killed(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    assert main([*TINY_RUN[:-1], "algorithm=eap", "algorithm.grow=greedy", f"out={run}"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("circuitdisc.certainty.rivals._judged", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["rivals", str(run), "n=1", "n_random=1", "progress=false"]) == 130
    assert [work.job for work in works_in(run)] == ["discover", "rivals"]
    assert main(["resume", str(run)]) == 0
    assert len(json.loads((run / "rivals.json").read_text())["rivals"]) == 1
    assert [work.job for work in works_in(run)] == ["discover"]


def test_bad_input_gets_a_sentence():
    model, task, search = small()
    for algorithm in ("head_ablation", "hisp", "refine"):
        with pytest.raises(BadSetting, match="edge by edge"):
            rivals(model, task, search.circuit, algorithm)
    with pytest.raises(BadSetting, match="n=0"):
        rivals(model, task, search.circuit, "eap", n=0)
    nothing = Circuit.empty(model.graph).with_provenance(search.circuit.provenance)
    with pytest.raises(BadTask, match="empty"):
        rivals(model, task, nothing, "eap")


# --- what is said ---------------------------------------------------------------------------------------------------------


def test_the_words_count_what_the_table_shows():
    result = of_planted("acdc")
    data = json.loads(json.dumps(result.to_dict()))
    assert Rivals.from_dict(data).to_dict() == data
    (part,) = rivals_parts(result)
    assert len(part.rows) == 1 + 2 + 1
    assert all(len(row) == len(part.headers) for row in part.rows)
    assert "In all circuits that are as good: m1->logits." in part.lines
    assert f"{result.forwards['own search']:,.0f}" in part.caption
    standings = dict.fromkeys([AS_GOOD, ALIKE, WORSE, UNDECIDED, LARGER])
    assert {rival.standing for rival in result.rivals} <= set(standings)


def test_the_command_leaves_a_file_and_a_section(tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*TINY_RUN[:-1], "algorithm=eap", "algorithm.grow=greedy", "task.n_heldout=12", f"out={run}"]) == 0
    capsys.readouterr()
    assert main(["rivals", str(run), "n=2", "n_random=3", "progress=false"]) == 0
    out = capsys.readouterr().out
    record = json.loads((run / "rivals.json").read_text())
    assert len(record["rivals"]) == 2
    assert not (run / "rivals.partial.jsonl").exists()
    for text in (out, Page((run / "report.html").read_text("utf-8")).words):
        assert "try 2" in text
        assert "circuits as good" in text or "No rival found in 2 tries" in text
    assert "Forward passes of a prompt" in out
    (run / "rivals.json").write_text(json.dumps({**record, "rivals": 3}))
    assert main(["report", str(run)]) == 2
    assert "`circuitdisc rivals RUN` writes it again" in capsys.readouterr().err
    assert main(["rivals"]) == 2
    assert main(["rivals", str(run), "tries=3"]) == 2
