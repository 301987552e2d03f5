"""Metrics and tasks that other packages declare: used by name, listed with their package, and refused with a sentence."""

import sys

import pytest
import torch
from examples import random_task
from models import model_of
from packages import VERSION, install

import circuitdisc as cd
from circuitdisc.bound import identity_of_scores
from circuitdisc.cli import main
from circuitdisc.discovery.registry import search_identity
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.identity import package_version
from circuitdisc.metrics import METRICS, get_metric
from circuitdisc.metrics import REGISTRY as METRIC_NAMES
from circuitdisc.tasks import TASKS, load_task
from circuitdisc.tasks.registry import REGISTRY as TASK_NAMES

torch.set_num_threads(1)
MODULE = "otherlab_things"
SOURCE = '''
"""A metric, a task, and some that cannot be used."""

import circuitdisc as cd
from circuitdisc.metrics.logit_diff import logit_diff
from circuitdisc.tasks.library import induction

twice = cd.Metric("twice", lambda logits, labels: 2 * logit_diff(logits, labels), "answers", True, "logit difference, twice")
misnamed = cd.Metric("other", logit_diff)
argless = cd.Metric("argless", lambda: 0)
number = 3


def echo(model, *, n, n_heldout, seed, length=9, prepend_bos=None):
    """Random tokens said twice, with prompts of another length."""
    return induction.build(model, n=n, n_heldout=n_heldout, seed=seed, length=length, prepend_bos=prepend_bos)


def unseeded(model, *, n, n_heldout):
    return None


def no_task(model, *, n, n_heldout, seed):
    return 7
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Declares entry points of one kind; called with the kind and the names."""

    def declare(kind, *names, name="otherlab", module=MODULE):
        targets = {entry: f"{module}:{entry}" for entry in names}
        install(monkeypatch, tmp_path / name, f"circuitdisc.{kind}s", targets, SOURCE, module)

    return declare


def test_a_metric_is_used_by_name_everywhere(package):
    package("metric", "twice")
    assert METRIC_NAMES.names == [*METRICS, "twice"]
    assert MODULE not in sys.modules, "nothing is imported before it is asked for"
    model = model_of("attention_only")
    task = random_task(model, 4)
    settings = {"ablation": "resample", "allow_chance": True}
    circuits = {name: cd.discover(model, task, "eap", metric=name, **settings).circuit for name in ("logit_diff", "twice")}
    assert circuits["twice"] == circuits["logit_diff"]
    assert circuits["twice"].provenance.metric == "twice"
    assert circuits["twice"].provenance.versions["otherlab"] == VERSION
    means = [cd.score(model, task, circuit, n_random=0).means["heldout"]["full"] for circuit in circuits.values()]
    assert means[1] == pytest.approx(2 * means[0])
    with pytest.raises(UnknownName, match="Did you mean twice"):
        get_metric("twise")


def test_results_belong_to_the_version_of_the_metrics_package(package):
    package("metric", "twice")
    model = model_of("attention_only")
    task = random_task(model, 4)
    config = {"ablation": {"kind": "zero"}, "metric": {"name": "twice"}, "scoring": {}, "seed": 0}
    whole = cd.Circuit.full(model.graph)
    wanted = f"{package_version()}, otherlab {VERSION}"
    assert search_identity(model, task, "eap", "zero", "twice", 0, {}).version == wanted
    assert search_identity(model, task, "eap", "zero", "kl", 0, {}).version == package_version()
    assert identity_of_scores(config, model, task, whole).version == wanted


def test_a_task_is_loaded_by_name_with_its_settings(package):
    package("task", "echo")
    assert TASK_NAMES.names == [*TASKS, "echo"]
    assert MODULE not in sys.modules
    model = cd.load_model("toys/induction")
    task, ours = (load_task(name, model, n=5, length=6, seed=2) for name in ("echo", "induction"))
    assert (task.train, task.heldout) == (ours.train, ours.heldout)
    assert len(load_task("echo", model).train) == 200
    with pytest.raises(UnknownName, match="Did you mean length"):
        load_task("echo", model, lenght=3)
    with pytest.raises(UnknownName, match="Did you mean echo"):
        load_task("ecko", model)


def test_the_command_line_knows_both(package, tmp_path, capsys):
    package("task", "echo")
    package("metric", "twice", name="thirdlab", module="thirdlab_things")
    assert main(["list", "tasks"]) == 0
    assert "Random tokens said twice, with prompts of another length. (of package 'otherlab')" in capsys.readouterr().out
    assert main(["list", "metrics"]) == 0
    assert "logit difference, twice (of package 'thirdlab')" in capsys.readouterr().out
    out = tmp_path / "run"
    run = ["discover", "model=toys/induction", "algorithm=eap", "algorithm.edges=8", "scoring.n_random=1", "progress=false"]
    echo = ["task=echo", "task.n=8", "task.n_heldout=8", "task.length=5", "ablation=resample"]
    assert main([*run, *echo, "metric=twice", f"out={out}"]) == 0
    circuit = cd.Circuit.load(out / "circuit.json")
    assert (circuit.provenance.task, circuit.provenance.metric) == ("induction", "twice")
    assert main(["score", str(out), "metric=logit_diff", "task=echo", "task.length=7", "scoring.n_random=1"]) == 0
    capsys.readouterr()
    assert main([*run, *echo, "task.lenght=3"]) == 2
    assert "Did you mean length" in capsys.readouterr().err
    assert main([*run, *echo, "metric=twise"]) == 2
    assert "Did you mean twice" in capsys.readouterr().err
    assert main([*run, "task=ecko"]) == 2
    assert "unknown task 'ecko'. Did you mean echo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "entry", "sentence"),
    [
        ("metric", "kl", "package 'otherlab' declares a metric 'kl', which is the name of one of circuitdisc's own"),
        ("metric", "gone", r"metric 'gone' of package 'otherlab' \(.*\) cannot be imported .AttributeError"),
        ("metric", "number", "is no metric: it must be a cd.Metric of the entry point's name"),
        ("metric", "misnamed", "is a metric named 'other'"),
        ("metric", "argless", "takes 0 positional arguments"),
        ("task", "ioi", "declares a task 'ioi', which is the name of one of circuitdisc's own"),
        ("task", "number", "is no function: it must be a function .model, ., n, n_heldout, seed"),
        ("task", "unseeded", "does not take 'seed'"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_and_leaves_the_list(package, kind, entry, sentence):
    package(kind, entry)
    names = METRIC_NAMES if kind == "metric" else TASK_NAMES
    with pytest.raises(BadSetting, match=sentence):
        names.get(entry)
    listed = dict(names.described())
    assert listed.pop(entry).startswith("cannot be used: ")
    assert listed == {name: one.summary for name, one in names.own.items() if name != entry}


def test_what_gives_no_task_is_refused(package):
    package("task", "no_task")
    with pytest.raises(BadSetting, match="task 'no_task' gave a int: it must give a Task"):
        load_task("no_task", cd.load_model("toys/induction"))


def test_a_metric_of_your_own_has_a_name_of_its_own(package):
    package("metric", "twice")
    assert get_metric(get_metric("twice")) == get_metric("twice")
    with pytest.raises(BadSetting, match="named 'twice', as one of circuitdisc is"):
        get_metric(cd.Metric("twice", lambda logits, labels: logits[..., 0]))
