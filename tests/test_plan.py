"""Plans of runs: what is planned is what a run reports, or holds it between its ends; memory, shapes alone, bad input."""

import json
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from examples import random_task
from models import hugging_face, model_of

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.cli import main
from circuitdisc.discovery.registry import ALGORITHMS, get_algorithm
from circuitdisc.engine.gradients.memory import Shapes, peak_bytes
from circuitdisc.engine.patching import Cost, Patching
from circuitdisc.errors import BadSetting, GraphMismatch, UnknownName
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import METRICS
from circuitdisc.planning import open_model, plan
from circuitdisc.planning.counts import Search, behind, counts_of, tried_at_most
from circuitdisc.planning.measured import time_search
from circuitdisc.planning.models import has_weights, prompts_of_length
from circuitdisc.planning.plan import shares_of
from circuitdisc.planning.result import PlannedPart, RunPlan
from circuitdisc.planning.sizes import GRADIENTS, Prompts, Sizes, attribution_chunk, most_that_fits, removal_peak
from circuitdisc.progress import OutOfTime, WatchedBar, progress_bar, watching

N = 7
COUNTS = ("model_runs", "backward_runs", "circuit_runs", "candidates", "node_evaluations")
EXACT = ("eap", "eap_ig", "eap_ig_activations", "clean_corrupted", "atp", "hisp", "information_flow", "ensemble", "random")
MASKS = {"steps": 7, "batch": 3}
SETTINGS = {
    **{name: ({},) for name in (*EXACT, "exact", "path_patching")},
    "acdc": (
        {"threshold": 0.01},
        {"threshold": 0.01, "speculation": 2},
        {"threshold": 0.01, "prune_first": 30},
        {"threshold": "auto", "ranking": "eap"},
        {"keep": 0.8, "order": "attribution"},
    ),
    "bisect": ({"threshold": 0.01}, {"threshold": 0.01, "prune_first": 40}, {"keep": 0.8}),
    "head_ablation": ({}, {"keep": 0.8, "order": "descending"}, {"verify": 0.3}),
    "edge_pruning": (MASKS,),
    "subnetwork_probing": (MASKS,),
    "soft_topk": (MASKS,),
}


def planned(model, task, algorithm, **settings):
    return plan(model, task, algorithm, allow_chance=True, measure=0, **settings).part(algorithm)


def between(part, cost):
    """The counts of a run that lie outside the planned ones."""
    ends = {name: getattr(part, name) for name in COUNTS}
    return {
        name: (low, getattr(cost, name), high)
        for name, (low, high) in ends.items()
        if not low - 1e-6 <= getattr(cost, name) <= high + 1e-6
    }


def test_every_algorithm_is_planned():
    assert set(SETTINGS) == set(ALGORITHMS) - {"from_file"}


@pytest.mark.parametrize(("family", "ablation"), [("gpt2", "resample"), ("gpt2", "mean"), ("llama", "zero")])
@pytest.mark.parametrize("algorithm", SETTINGS)
def test_what_is_planned_is_what_a_search_reports(algorithm, family, ablation):
    model = model_of(family, torch.float64)
    task = random_task(model, N)
    for settings in SETTINGS[algorithm]:
        found = cd.discover(model, task, algorithm, ablation=ablation, allow_chance=True, **settings)
        part = planned(model, task, algorithm, ablation=ablation, **settings)
        assert not between(part, found.cost)
        exact = algorithm in EXACT or (algorithm == "head_ablation" and "verify" not in settings)
        assert part.exact == exact, "a range where a count is known, or a count where it is not"
        assert bool(part.why) == (not part.exact)


def test_examples_in_several_chunks_are_counted_as_runs_count_them():
    model = model_of("gpt2", torch.float64)
    task = random_task(model, N)
    searches: list[tuple[str, dict[str, Any]]] = [("head_ablation", {}), ("acdc", {"threshold": 0.01}), ("path_patching", {})]
    for algorithm, settings in searches:
        assert Patching(model, Ablation("zero"), task.train, memory="1300kB").n_chunks(task.train) > 1
        found = cd.discover(model, task, algorithm, ablation="zero", allow_chance=True, memory="1300kB", **settings)
        assert not between(planned(model, task, algorithm, ablation="zero", memory="1300kB", **settings), found.cost)


@pytest.mark.parametrize("speculation", [None, 1, 5])
def test_no_guesses_are_worse_than_planned(speculation):
    """The walk's own rule for rows, against guesses that are right and wrong in all orders."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        n, rows, tried = int(rng.integers(1, 200)), speculation or int(rng.integers(1, 65)), 0
        most, left = int(rng.integers(1, 65)), n
        while left:
            now = min(rows, most, left)
            decided = now if rng.random() < 0.5 else int(rng.integers(1, now + 1))
            tried, left = tried + now, left - decided
            if speculation is None:
                rows = min(64, 2 * rows) if decided == now else max(1, (now + decided) // 2)
        assert tried <= tried_at_most(np.array([float(n)]), speculation)[0]


def test_nodes_behind_a_receiver_are_those_that_a_change_reaches():
    for parallel, has_mlp in ((False, True), (True, True), (False, False)):
        graph = ComputationGraph(3, 2, has_mlp, parallel)
        for receiver, count in zip(graph.receivers, behind(graph), strict=True):
            reached = {receiver.node.name} - {"logits"}
            for later in graph.receivers:
                if any(graph.sender_index[name] < graph.n_upstream[graph.receiver_index[later.name]] for name in reached):
                    reached |= {later.node.name} - {"logits"}
            assert len(reached) == count


class Spent(Patching):
    """Remembers what the last one has cost."""

    last = Cost()

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Spent.last = self.cost


@pytest.mark.parametrize("memory", ["4GiB", "700kB"])
@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_what_is_planned_is_what_scores_and_controls_report(monkeypatch, ablation, memory):
    model = model_of("gpt2", torch.float64)
    task = random_task(model, N)
    circuit = cd.discover(model, task, "eap", ablation=ablation, allow_chance=True, edges=60).circuit
    part = plan(model, task, None, circuit=circuit, ablation=ablation, n_random=4, memory=memory, measure=0).part("score")
    monkeypatch.setattr(import_module("circuitdisc.scoring.score"), "Patching", Spent)
    cd.score(model, task, circuit, ablation=ablation, n_random=4, memory=memory)
    assert Spent.last is not None
    assert not between(part, Spent.last)
    assert part.model_runs is not None
    assert part.circuit_runs is not None
    assert part.model_runs[0] == part.model_runs[1] == Spent.last.model_runs
    assert part.circuit_runs[0] == part.circuit_runs[1] == Spent.last.circuit_runs


def test_auto_controls_lie_between_the_planned_numbers():
    model = model_of("gpt2")
    task = random_task(model, N)
    part = plan(model, task, "eap_ig", allow_chance=True, measure=0, ablation="resample").part("score")
    n_chunks = 2
    assert part.circuit_runs == ((3 + 20) * n_chunks, (3 + 20) * n_chunks)


# --- memory ---------------------------------------------------------------------------------------------------------------


def sizes_of(model, task):
    prompts = Prompts(len(task.train), max(map(len, task.train)), 2, task.train)
    return Sizes.of(model, METRICS["logit_diff"], on_cpu=True), prompts


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("cut", [0.0, 0.3])
def test_removals_plan_no_more_than_is_planned_before_they_begin(family, cut):
    """What `Removal` plans is held against what torch allocates in test_removal_memory.py."""
    model = model_of(family)
    task = random_task(model, N)
    sizes, prompts = sizes_of(model, task)
    patching = Patching(model, Ablation("resample"), task.train)
    mask = model.graph.edge_mask & (np.random.default_rng(0).random(model.graph.edge_mask.shape) >= cut)
    removal = patching.removal(patching.hold(task.train), mask, METRICS["logit_diff"], first=0)
    asked = max(removal.planned_bytes(r, removal.most_rows(r)) for r in range(model.graph.n_receivers))
    assert asked <= removal_peak(sizes, prompts, patching.budget) < 8 * asked


@pytest.mark.parametrize("algorithm", GRADIENTS)
def test_attributions_take_the_planned_chunk_and_peak(algorithm):
    model = model_of("llama")
    task = random_task(model, N)
    sizes, prompts = sizes_of(model, task)
    gradient = GRADIENTS[algorithm]({"steps": 5})
    shapes = Shapes.of(model.components, METRICS["logit_diff"])
    n = attribution_chunk(sizes, prompts, 4 * 2**30, gradient)
    expected = peak_bytes(shapes, n, prompts.length, gradient, n_readings=2)
    assert planned(model, task, algorithm, ablation="resample").peak == expected


def test_weights_are_those_of_the_module_and_of_any_number_of_layers():
    for family in ("gpt2", "llama", "gpt_neox", "gemma2"):
        model, deeper = model_of(family), hugging_face(family)
        sizes = Sizes.of(model, METRICS["logit_diff"], on_cpu=True)
        assert sizes.parameters == sum(weight.numel() for weight in model.module.parameters())
        config = deeper.config
        config.num_hidden_layers = 2 * model.graph.n_layers
        if getattr(config, "layer_types", None):
            config.layer_types = list(config.layer_types) * 2
        expected = sum(weight.numel() for weight in type(deeper)(config).parameters())
        guessed = sizes.with_layers(config.num_hidden_layers).parameters
        assert abs(guessed - expected) < 0.01 * expected  # the final norm counts as a part of the layers


def test_the_largest_that_fits_is_found():
    assert [most_that_fits(lambda n, most=most: n <= most, 100) for most in (0, 1, 57, 100, 200)] == [0, 1, 57, 100, 100]


def test_what_fits_grows_with_memory_and_a_larger_model_would_not_fit():
    model = model_of("llama")
    task = random_task(model, N)
    small, large = (
        plan(model, task, "eap_ig", allow_chance=True, measure=0, ablation="resample", device_memory=size).fits[1]
        for size in ("40MB", "400MB")
    )
    assert 0 < small.layers < large.layers
    assert small.parameters < large.parameters
    assert small.tokens <= large.tokens
    assert small.parameters * 4 < 40e6


# --- ranks ----------------------------------------------------------------------------------------------------------------


def part_of(seconds, dealt):
    return PlannedPart("a", dealt, 1, *[None] * 6, usual=None, why="", dealt=dealt, peak=None, seconds=seconds)


def test_ranks_get_whole_examples():
    parts = [part_of(10.0, 10), part_of(6.0, 2)]
    assert shares_of(parts, 1) == (1.0, 16.0)
    assert shares_of(parts, 4)[1] == pytest.approx(10.0 * 3 / 10 + 6.0 / 2)
    assert shares_of(parts, 100)[1] == pytest.approx(1.0 + 3.0)


def test_a_rank_holds_its_share_of_the_examples():
    model = model_of("gpt2")
    task = random_task(model, 8)
    ranks = plan(model, task, "acdc", allow_chance=True, measure=0, ablation="resample", ranks=6).ranks
    assert [rank.ranks for rank in ranks] == [1, 2, 4, 6]
    assert ranks[0].memory > ranks[1].memory > ranks[2].memory
    assert [rank.split is None for rank in ranks] == [False, False, False, True]  # 4 heads


# --- time -----------------------------------------------------------------------------------------------------------------


def test_watched_bars_end_the_work_and_say_how_far_it_came():
    def work():
        outer = progress_bar(4, "outer", "round")
        for _ in range(4):
            inner = progress_bar(10, "inner", "step")
            for _ in range(5):
                inner.update(1)
            outer.update(1)

    with watching(0.0) as watch, pytest.raises(OutOfTime):
        work()
    assert watch.share() == pytest.approx((0 + 1 / 10) / 4)
    assert not isinstance(progress_bar(3, "later", "step", enabled=False), WatchedBar)


def test_a_bar_that_ends_leaves_those_around_it():
    with watching(60.0) as watch:
        outer = progress_bar(2, "outer", "round")
        progress_bar(10, "inner", "step").close()
        assert watch.open[0] is outer
        assert len(watch.open) == 1


def test_a_search_that_ends_in_time_is_timed_whole_and_its_circuit_scored():
    model = cd.load_model("tpp/lightweight")
    task = cd.load_task("tpp", model, n=10, n_heldout=10)
    whole = plan(model, task, "head_ablation", ablation="mean", n_random=2)
    part = whole.part("head_ablation")
    assert part.basis == "the search itself, to its end"
    assert whole.seconds == pytest.approx(sum(each.seconds or 0 for each in whole.parts))
    assert "the circuit that was found" in whole.part("score").basis
    assert whole.forward_seconds is not None
    assert whole.speed == pytest.approx(whole.operations / whole.forward_seconds / 1e9)


def test_a_search_that_does_not_is_extrapolated_by_its_work():
    model = model_of("gpt2")
    task = random_task(model, 4)
    search = Search(model, Ablation("zero"), get_algorithm("head_ablation").settings, 4)
    counts = counts_of("head_ablation", search)
    given = {"ablation": "zero", "allow_chance": True}
    timing, found = time_search(model, task, "head_ablation", {}, given, counts, 0.0, 1e-6)
    assert found is None
    assert timing is not None
    assert timing.basis.startswith("estimate: 12.5 % of the search")  # the first of 4 heads in each of 3 layers: 3 / 24
    assert timing.seconds > 0


def test_a_speed_gives_times_by_the_counts():
    model = model_of("gpt2")
    task = random_task(model, N)
    whole = plan(model, task, "eap_ig", ablation="resample", allow_chance=True, speed=2.0)
    part = whole.part("eap_ig")
    assert part.seconds == pytest.approx((2 + 5 + 2 * 5) * whole.operations / 2e9)
    assert part.seconds_span == pytest.approx((part.seconds, part.seconds))
    assert whole.measured == 0


def test_operations_are_those_of_the_matrix_products():
    from torch.utils.flop_counter import FlopCounterMode

    for family in ("gpt2", "llama"):
        model = model_of(family)
        task = random_task(model, N)
        examples = [replace(each, clean=each.clean[:5]) for each in task.train]
        tokens = torch.tensor([each.clean for each in examples])
        with FlopCounterMode(display=False) as counter:
            model.module(tokens)
        everywhere = len(examples) * 5  # the module's own logits are those of every token
        assert Sizes.of(model, METRICS["logit_diff"], True).operations([5] * N, everywhere) == counter.get_total_flops()


# --- shapes alone ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def config_only(tmp_path):
    """A folder of config.json alone."""
    hugging_face("llama").config.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_configuration_alone_is_planned_as_the_loaded_model(config_only, tmp_path):
    loaded = model_of("llama", torch.float32)
    task = prompts_of_length(loaded, 6, 4, 7, 0)
    shapes = open_model(str(config_only))
    assert not has_weights(shapes)
    for algorithm in ("acdc", "eap_ig", "head_ablation"):
        given = {"ablation": "resample", "allow_chance": True, "measure": 0.0}
        ours, theirs = (plan(model, task, algorithm, **given) for model in (shapes, loaded))
        assert replace(ours, model="") == replace(theirs, model="")
    hugging_face("llama").save_pretrained(tmp_path / "whole")
    assert has_weights(open_model(str(tmp_path / "whole")))
    assert not has_weights(open_model(str(tmp_path / "whole"), measure=False))


def test_the_command_plans_a_configuration_and_leaves_nothing(config_only, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["plan", f"model={config_only}", "length=7", "task=ioi", "task.n=6", "ablation=resample", "progress=false"]
    assert main([*words, "algorithm=eap_ig", "speed=100", "device_memory=80GiB", "ranks=2"]) == 0
    out = capsys.readouterr().out
    assert "This is an estimate (by 100 GFLOP/s)" in out
    assert "A memory of 80 GiB has room for it" in out
    assert {path.name for path in tmp_path.iterdir()} == {"llama"}


# --- the command ------------------------------------------------------------------------------------------------------------

QUICK = ["task.n=10", "task.n_heldout=10", "progress=false"]
TPP = ["model=tpp/lightweight", "task=tpp", *QUICK]


def test_a_plan_is_written_where_it_is_asked_for_and_read_back(tmp_path, capsys):
    out = tmp_path / "plan"
    assert main(["plan", "discover", *TPP, "algorithm=head_ablation", "measure=0", f"out={out}"]) == 0
    assert {path.name for path in out.iterdir()} == {"plan.json", "report.html"}
    data = json.loads((out / "plan.json").read_text())
    read = RunPlan.from_dict(data)
    assert read.part("head_ablation").exact
    assert read.job == "discover"
    assert main(["plan", *TPP, "measure=0", f"out={out}"]) == 2
    assert "already exists" in capsys.readouterr().err


def test_transfers_and_scores_are_planned(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["discover", *TPP, "algorithm=random", "allow_chance=true", "scoring.n_random=1", f"out={run}"]) == 0
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert main(["plan", "score", str(run), "measure=0"]) == 0
    assert main(["plan", "score", str(run), "measure=0", "scoring.n_random=7"]) == 0
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    names = "checkpoints=[tpp/featherweight,tpp/lightweight]"
    capsys.readouterr()
    asked = ["plan", "transfer", names, "task=tpp", *QUICK, "algorithm=head_ablation", "measure=0"]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert "head_ablation x 2" in out
    assert "score x 4" in out
    assert main([*asked, "joint=true", "donor=[tpp/featherweight:tpp/lightweight]"]) == 0
    out = capsys.readouterr().out
    assert "head_ablation x 5" in out  # two of their own, a joint one on both, one that completes
    assert "score x 8" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rank=4"], "Did you mean ranks"),
        (["scores", "RUN"], "Did you mean score"),
        (["ranks=0"], "ranks=0 must be a whole number from 1"),
        (["speed=-1"], "speed=-1 must be a number above 0"),
        (["measure=-2"], "measure=-2 must be"),
        (["measure=0", "device_memory=80Q"], "device_memory='80Q' is not a size"),
        (["measure=0", "length=9999"], "more than the 64 tokens"),
        (["measure=0", "length=many"], "length='many' must be a whole number"),
        (["measure=0", "algorithm.treshold=1"], "Did you mean threshold"),
        (["transfer", "model=tpp/base"], "no model="),
        (["transfer", "checkpoints=[tpp/base]"], "at least 2 checkpoints"),
        (["score"], "which run?"),
        (["model=no/such"], "unknown model"),
        (["model=tpp/lightweight", "model.components=hooks", "measure=0"], ""),
    ],
)
def test_bad_input_gets_a_sentence(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status = main(["plan", *words, *([] if words[0] in ("score", "scores") else ["task.n=4", "task.n_heldout=4"])])
    err = capsys.readouterr().err
    if says:
        assert status == 2
        assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_python_refuses_what_cannot_be_planned():
    model = model_of("gpt2")
    task = random_task(model, 4)
    with pytest.raises(UnknownName, match="Did you mean threshold"):
        cd.plan(model, task, "acdc", treshold=1)
    with pytest.raises(UnknownName, match="acdc"):
        cd.plan(model, task, "acd")
    with pytest.raises(BadSetting, match="nothing to plan"):
        cd.plan(model, task, None)
    with pytest.raises(BadSetting, match="fast components"):
        cd.plan(model_of("gpt2", components="hooks"), task, "acdc", measure=0)
    with pytest.raises(GraphMismatch, match="belongs to"):
        cd.plan(model, task, None, circuit=cd.Circuit.full(ComputationGraph(1, 1)), measure=0)
    with pytest.raises(BadSetting, match="threshold=-1"):
        cd.plan(model, task, "acdc", threshold=-1, measure=0)


def test_a_search_that_would_be_refused_is_said_to_be():
    model = model_of("gpt2")
    task = random_task(model, N)
    asked = {"ablation": "resample", "memory": "500kB", "allow_chance": True}
    with pytest.raises(BadSetting, match="over the budget"):
        cd.discover(model, task, "acdc", threshold=0.1, **asked)
    whole = plan(model, task, "acdc", threshold=0.1, measure=0, **asked)
    assert any("would be refused" in note for note in whole.notes)
    fitting = int(next(note for note in whole.notes if "fit" in note).split("; ")[1].split()[0])
    cd.discover(model, replace(task, train=task.train[:fitting]), "acdc", threshold=0.1, **asked)
