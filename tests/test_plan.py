"""Plans of runs: what is planned is what a run reports, or holds it between its ends; memory and time."""

from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from examples import random_task
from models import hugging_face, model_of

import circuitdisc as cd
from circuitdisc.ablation import Ablation, optimal
from circuitdisc.discovery.registry import ALGORITHMS, get_algorithm
from circuitdisc.engine.gradients.memory import Shapes, peak_bytes
from circuitdisc.engine.patching import Cost, Patching
from circuitdisc.graph import ComputationGraph
from circuitdisc.jobs.planned import describe_plan
from circuitdisc.metrics import METRICS
from circuitdisc.pages.description import description_text
from circuitdisc.planning import plan
from circuitdisc.planning.counts import Search, behind, counts_of, tried_at_most
from circuitdisc.planning.measured import time_search
from circuitdisc.planning.ranks import shares_of
from circuitdisc.planning.result import PlannedPart
from circuitdisc.planning.sizes import (
    GRADIENTS,
    Prompts,
    Sizes,
    attribution_chunk,
    machine_memory,
    memory_limits,
    most_that_fits,
    removal_peak,
)
from circuitdisc.progress import OutOfTime, WatchedBar, progress_bar, watching

N = 7
COUNTS = ("model_runs", "backward_runs", "circuit_runs", "candidates", "node_evaluations")
EXACT = (
    "eap",
    "ceap",
    "eap_gp",
    "eap_ig",
    "eap_ig_activations",
    "clean_corrupted",
    "atp",
    "hisp",
    "information_flow",
    "ensemble",
    "random",
)
MASKS = {"steps": 7, "batch": 3}
SETTINGS = {
    **{name: ({},) for name in (*EXACT, "exact", "path_patching")},
    "atp": ({}, {"grad_drop": True}),
    "acdc": (
        {"threshold": 0.01},
        {"threshold": 0.01, "speculation": 2},
        {"threshold": 0.01, "prune_first": 30},
        {"threshold": "auto", "ranking": "eap"},
        {"keep": 0.8, "order": "attribution"},
    ),
    "bisect": ({"threshold": 0.01}, {"threshold": 0.01, "prune_first": 40}, {"keep": 0.8}),
    "refine": ({"threshold": 0.03}, {"keep": 0.8, "fraction": 0.02}, {"edges": 9}),
    "head_ablation": ({}, {"keep": 0.8, "order": "descending"}, {"verify": 0.3}),
    "edge_pruning": (MASKS, {**MASKS, "start": "eap_ig"}),
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
        if not low - 1e-6 <= getattr(cost, name) <= (np.inf if high is None else high) + 1e-6
    }


def test_every_algorithm_is_planned():
    assert set(SETTINGS) == set(ALGORITHMS) - {"from_file"}


@pytest.mark.parametrize(("family", "ablation"), [("gpt2", "resample"), ("gpt2", "mean"), ("llama", "zero")])
@pytest.mark.parametrize("algorithm", SETTINGS)
def test_what_is_planned_is_what_a_search_reports(algorithm, family, ablation):
    model = model_of(family, torch.float64)
    task = random_task(model, N)
    if algorithm in ("ceap", "eap_gp") and ablation != "resample":
        pytest.skip("its way leads to the corrupted prompts: it has no other ablation")
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


OPTIMAL = {"kind": "optimal", "steps": 3}


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [("eap", {}), ("acdc", {"threshold": 0.01, "order": "attribution"}), ("head_ablation", {"verify": 0.3}), ("ensemble", {})],
)
def test_what_optimal_learns_is_counted_once(algorithm, settings, monkeypatch):
    model = model_of("gpt2", torch.float64)
    task = random_task(model, N)
    monkeypatch.setattr(optimal, "_learned", {})
    cost = cd.discover(model, task, algorithm, ablation=OPTIMAL, allow_chance=True, **settings).cost
    part = planned(model, task, algorithm, ablation=OPTIMAL, **settings)
    assert not between(part, cost)
    for name in ("model_runs", "backward_runs"):
        assert getattr(part, name)[1] == pytest.approx(getattr(cost, name)), "nothing of it was learned before"
    without = planned(model, task, algorithm, ablation="zero", **settings)
    assert (part.usual or 0) > (without.usual or 0) + 2 * (4 * (1 + 5 * 4 / 2)), "4 steps through 1 + 5 x (3 + 1) / 2 senders"


def test_what_optimal_learns_is_of_the_score_where_no_search_learns_it(monkeypatch):
    model = model_of("gpt2", torch.float64)
    task = random_task(model, N)
    circuit = cd.discover(model, task, "eap", ablation="zero", allow_chance=True, edges=60).circuit
    alone = plan(model, task, None, circuit=circuit, ablation=OPTIMAL, n_random=4, measure=0).part("score")
    monkeypatch.setattr(import_module("circuitdisc.scoring.score"), "Patching", Spent)
    monkeypatch.setattr(optimal, "_learned", {})
    cd.score(model, task, circuit, ablation=OPTIMAL, n_random=4)
    assert not between(alone, Spent.last)
    assert alone.model_runs is not None
    assert alone.model_runs[1] == pytest.approx(Spent.last.model_runs)
    ends = [
        plan(model, task, algorithm, ablation=OPTIMAL, allow_chance=True, n_random=4, measure=0).part("score").backward_runs
        for algorithm in ("eap", "random")
    ]
    assert ends == [(0.0, 0.0), alone.backward_runs]


def test_what_would_take_too_long_to_learn_is_not_learned_for_a_plan(monkeypatch):
    model = model_of("gpt2")
    task = random_task(model, 4)
    monkeypatch.setattr(optimal, "_learned", {})
    whole = plan(model, task, "eap", ablation={"kind": "optimal", "steps": 10_000}, allow_chance=True, measure=1.0)
    assert not optimal._learned
    assert any("ablation=optimal learns for about" in note for note in whole.notes)
    assert whole.seconds is not None
    assert whole.seconds > 1


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


def test_memory_that_nobody_planned_is_not_said(monkeypatch):
    model = model_of("gpt2")
    task = random_task(model, N)
    given = {"allow_chance": True, "measure": 0, "ablation": "mean"}
    whole = plan(model, task, "information_flow", **given, device_memory="80GiB", ranks=2)
    assert whole.peak is None
    assert [rank.memory for rank in whole.ranks] == [None, None]
    assert {(fit.fits, fit.layers, fit.tokens, fit.examples) for fit in whole.fits} == {(None, None, None, None)}
    said = description_text(describe_plan(whole))
    assert "how much information_flow takes beside them is not known" in said
    assert "Whether a memory of 80 GiB has room for it is not known." in said
    assert " at most" not in said
    assert plan(model, task, "information_flow", **given, device_memory="40kB").fits[1].fits is False, "the weights are larger"
    members = [planned(model, task, name, ablation="mean").peak for name in ("eap", "eap_ig", "eap_ig_activations")]
    assert planned(model, task, "ensemble", ablation="mean").peak == max(peak or 0 for peak in members)
    assert planned(model, task, "ensemble", ablation="mean", members=["eap", "information_flow"]).peak is None
    assert planned(model, task, "random", ablation="mean").peak == 0


def test_memory_is_what_the_process_may_take(tmp_path):
    (tmp_path / "processes").write_text("4:memory:/job/step\n9:name=systemd:/\n0::/user/job\n")
    limits = {
        "memory/memory.limit_in_bytes": 2**63 - 4096, "memory/job/memory.limit_in_bytes": 3000, "memory.max": "max",
        "user/memory.max": 5000, "user/job/memory.max": 4000, "other/memory.max": 1,
    }  # fmt: skip
    for name, limit in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{limit}\n")
    assert sorted(memory_limits(tmp_path / "processes", tmp_path)) == [3000, 4000, 5000, 2**63 - 4096]
    assert memory_limits(tmp_path / "nowhere", tmp_path) == []
    assert machine_memory("cpu") <= min([2**60, *memory_limits()])


def test_the_largest_that_fits_is_found():
    assert [most_that_fits(lambda n, most=most: n <= most, 100) for most in (0, 1, 57, 100, 200)] == [0, 1, 57, 100, 100]


def test_what_fits_grows_with_memory_and_a_larger_model_would_not_fit():
    model = model_of("llama")
    task = random_task(model, N)
    small, large = (
        plan(model, task, "eap_ig", allow_chance=True, measure=0, ablation="resample", device_memory=size).fits[1]
        for size in ("40MB", "400MB")
    )
    assert (small.layers, small.parameters, small.tokens) < (large.layers, large.parameters, large.tokens)
    assert small.layers
    assert small.parameters
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
    memory = [rank.memory or 0 for rank in ranks]
    assert memory[0] > memory[1] > memory[2] > 0
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
