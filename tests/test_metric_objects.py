"""A metric of one's own is taken wherever a name is: the logit difference under another name gives the same numbers."""

import dataclasses

import numpy as np
import pytest
from examples import random_task
from models import model_of

import circuitdisc as cd
from circuitdisc.checkpoints.transfer.cells import Judge
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.registry import ALGORITHMS
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.metrics import METRICS, Metric, get_metric
from circuitdisc.metrics.logit_diff import logit_diff

MINE = Metric("mine", logit_diff, needs_wrong=True)  # reads all columns, where the logit difference reads the answers' alone
QUICK = {
    "acdc": {"threshold": 0.05}, "bisect": {"threshold": 0.05}, "refine": {"threshold": 0.05},
    "head_ablation": {"threshold": 0.05},
    "edge_pruning": {"steps": 2}, "subnetwork_probing": {"steps": 2}, "soft_topk": {"steps": 2},
}  # fmt: skip
OF_MASKS = ("edge_pruning", "subnetwork_probing", "soft_topk")
SEARCHES = sorted(set(ALGORITHMS) - {"from_file", "path_patching", "information_flow", "random"})


@pytest.fixture(scope="module")
def case():
    model = model_of("gpt2")
    task = random_task(model, 4)
    return model, task, cd.discover(model, task, "eap", ablation="resample", edges=12, allow_chance=True).circuit


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("circuitdisc.stats.RESAMPLES", 20)
        yield


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_takes_it(case, name):
    model, task, _ = case
    settings = {"ablation": "resample", "allow_chance": True, **QUICK.get(name, {})}
    known = ALGORITHMS[name].settings
    settings |= {"loss": "metric"} if "loss" in known else {}
    settings = {key: value for key, value in settings.items() if key in ("ablation", "allow_chance") or key in known}
    ours = cd.discover(model, task, name, metric=MINE, **settings)
    theirs = cd.discover(model, task, name, metric="logit_diff", **settings)
    assert ours.circuit.provenance.metric == "mine"
    assert ours.circuit == theirs.circuit
    if ours.edge_scores is not None and theirs.edge_scores is not None and name not in OF_MASKS:
        np.testing.assert_allclose(ours.edge_scores, theirs.edge_scores, atol=1e-9)


def numbers(value):
    """Every number in a result, in order."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.name != "cost"}
    if isinstance(value, dict):
        return [one for key in value for one in numbers(value[key])]
    if isinstance(value, np.ndarray):
        return [one for one in value.ravel().tolist() if isinstance(one, float)]
    if isinstance(value, list | tuple):
        return [one for part in value for one in numbers(part)]
    return [value] if isinstance(value, float) else []


TOOLS = {
    "score": lambda model, task, circuit, **call: cd.score(model, task, circuit, n_random=1, **call),
    "completeness": lambda model, task, circuit, **call: cd.completeness(model, task, circuit, n_random=1, **call),
    "minimality": lambda model, task, circuit, **call: cd.minimality(model, task, circuit, **call),
    "tests": lambda model, task, circuit, **call: cd.hypothesis_tests(
        model, task, circuit, n_random=2, n_permutations=5, most_members=2, **call
    ),
    "curve": lambda model, task, circuit, **call: cd.curve(
        model, task, cd.discover(model, task, "eap", ablation="resample", edges=12, allow_chance=True), n_random=1, **call
    ),
    "stability": lambda model, task, circuit, **call: cd.stability(
        model, task, "eap", n_bootstrap=2, ablation="resample", allow_chance=True, **call
    ),
    "intervene": lambda model, task, circuit, **call: cd.intervene(
        model, task, [cd.Intervention("a0.h1", scale=0)], n_random=1, **call
    ),
    "path_patch": lambda model, task, circuit, **call: cd.path_patch(model, task, "heads", ["logits"], **call),
    "head_effects": lambda model, task, circuit, **call: cd.heads.head_effects(model, task, **call),
    "knockout": lambda model, task, circuit, **call: cd.heads.knockout_curve(model, task, n_random=1, steps=3, **call),
    "neurons": lambda model, task, circuit, **call: cd.heads.neuron_analysis(model, task, sizes=(4,), n_random=1, **call),
    "localised": lambda model, task, circuit, **call: cd.localised(
        model, task, ["a0.h1"], "offset", epochs=1, n_choose=2, n_random=0, **call
    ),
    "cmap": lambda model, task, circuit, **call: cd.cmap(
        model, model_of("gpt2"), task, n_random=1, attention=False, grow=False, **call
    ),
    "cell": lambda model, task, circuit, metric: Judge(model, task, cd.Ablation("resample"), metric, 1).score(circuit)[:3],
}


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_takes_it(case, name):
    ours, theirs = (numbers(TOOLS[name](*case, metric=metric)) for metric in (MINE, "logit_diff"))
    assert len(ours) == len(theirs) > 0
    np.testing.assert_allclose(ours, theirs, atol=1e-9, equal_nan=True)


def test_a_task_carries_it(case):
    """As the task's own metric it is what a search and, by the name in the circuit, a score measure."""
    model, task, _ = case
    own = dataclasses.replace(task, metric=MINE)
    circuit = cd.discover(model, own, "eap", ablation="resample", edges=12, allow_chance=True).circuit
    assert circuit.provenance.metric == "mine"
    found = cd.score(model, own, circuit, n_random=0)
    assert found.get("faithfulness").metric == "mine"
    assert found.get("faithfulness").value == pytest.approx(
        cd.score(model, task, circuit, metric="logit_diff", n_random=0).get("faithfulness").value
    )
    with pytest.raises(UnknownName, match=r"unknown metric 'mine'.*given as an object"):
        cd.score(model, task, circuit, n_random=0)


def test_what_is_no_metric_is_refused(case):
    model, task, circuit = case
    for bad, words in (
        (3, "is no metric"),
        (Metric("kl", logit_diff), "named 'kl', as one of circuitdisc is"),
        (Metric("flat", lambda logits, labels: logits.sum()), r"gave \(\) for logits of shape"),
        (Metric("number", lambda logits, labels: 1.0), "gave float"),  # pyright: ignore[reportArgumentType]
    ):
        for call in (cd.discover, cd.score):
            args = (model, task, "eap") if call is cd.discover else (model, task, circuit)
            more = {"ablation": "resample", "allow_chance": True} if call is cd.discover else {}
            with pytest.raises(BadSetting, match=words):
                call(*args, metric=bad, **more)  # pyright: ignore[reportArgumentType]


def test_the_first_metric_given_counts():
    assert get_metric(None, "", MINE, "kl") is MINE
    assert get_metric("mine", MINE) is MINE
    assert get_metric(None, "kl", MINE) is METRICS["kl"]
    assert get_metric(dataclasses.replace(METRICS["kl"])) == METRICS["kl"]
    assert get_metric(SearchContext(MINE).metric) is MINE
    with pytest.raises(BadSetting, match="no metric is named"):
        get_metric(None, "")


def test_examples_without_wrong_answers_are_refused_wherever_a_metric_needs_them(case):
    model, task, circuit = case
    bare = [dataclasses.replace(one, wrong=((),) * len(one.positions)) for one in task.heldout]
    lacking = dataclasses.replace(task, heldout=tuple(bare))
    for tool in ("score", "completeness", "minimality", "tests", "intervene", "head_effects"):
        with pytest.raises(BadSetting, match="needs wrong answers"):
            TOOLS[tool](model, lacking, circuit, metric="logit_diff")


@pytest.mark.parametrize("name", ["acdc", "head_ablation", "path_patching"])
def test_a_search_does_not_go_by_values_that_are_not_finite(case, name):
    model, task, _ = case
    lost = Metric("lost", lambda logits, labels: logits[..., 0] * float("nan"))
    with pytest.raises(BadSetting, match=r"not finite on|goes from nan to nan"):
        cd.discover(model, task, name, metric=lost, ablation="resample", allow_chance=True)


def test_a_metric_without_a_gradient_is_refused_by_searches_that_follow_one(case):
    model, task, _ = case
    flat = Metric("flat", lambda logits, labels: logits[..., 0].detach())
    with pytest.raises(BadSetting, match="metric 'flat' has no gradient"):
        cd.discover(model, task, "eap", metric=flat, ablation="resample", allow_chance=True)
