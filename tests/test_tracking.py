"""Loggers: three methods that are called with what bars and results show; none can spoil a command."""

import json
import os
import sys
import warnings
from contextlib import nullcontext

import pytest
from packages import install

from circuitdisc import tracking
from circuitdisc.cli import main
from circuitdisc.errors import BadSetting, CircuitdiscWarning, UnknownName
from circuitdisc.jobs.job import Job
from circuitdisc.tracking import VARIABLE, log_figures, tracked

SEARCH = [
    "model=tpp/lightweight",
    "task=tpp",
    "algorithm=head_ablation",
    "task.n=20",
    "task.n_heldout=20",
    "scoring.n_random=2",
]

STUB = '''
"""A logger that remembers."""

CALLS = []


class Stub:
    """Remembers what it is told."""

    def start(self, name, settings):
        CALLS.append(("start", name, dict(settings)))

    def log(self, values, step):
        CALLS.append(("log", dict(values), step))

    def finish(self):
        CALLS.append(("finish",))


class Broken(Stub):
    def log(self, values, step):
        raise RuntimeError("the disk\\nis full")


number = 3
'''


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A package with the loggers `stub`, `broken` and one that is none; what the first was told."""
    targets = {"stub": "stublab:Stub", "broken": "stublab:Broken", "none": "stublab:number"}
    install(monkeypatch, tmp_path / "stublab", "circuitdisc.loggers", targets, STUB, "stublab")
    import stublab  # pyright: ignore[reportMissingImports]

    return stublab.CALLS


def test_a_search_is_logged_as_it_goes_and_at_its_end(calls, tmp_path):
    out = tmp_path / "run"
    assert main(["discover", *SEARCH, "log=stub", "progress=false", f"out={out}"]) == 0
    (_, name, settings), *logged, last = calls
    assert name.startswith("discover_")
    assert settings["algorithm"] == "head_ablation"
    assert "log" not in settings
    assert last == ("finish",)
    assert [step for _, _, step in logged] == list(range(len(logged)))
    during = [values for _, values, _ in logged if "head_ablation on tpp/lightweight/metric" in values]
    assert len(during) > 10
    kept = [values["head_ablation on tpp/lightweight/kept"] for values in during]
    assert kept == sorted(kept, reverse=True)
    scores = {
        f"{score['split']}/{score['name']}": score["value"] for score in json.loads((out / "scores.json").read_text())["scores"]
    }
    assert logged[-1][1] == {name: value for name, value in scores.items() if value is not None}
    assert "log" not in json.loads((out / "config.json").read_text())
    assert VARIABLE not in os.environ


def test_the_variable_counts_for_every_command(calls, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "stub")
    assert main(["list", "loggers"]) == 0
    assert [kind for kind, *_ in calls] == ["start", "finish"]
    assert "Remembers what it is told. (of package 'stublab')" in capsys.readouterr().out
    assert os.environ[VARIABLE] == "stub"


def test_a_logger_that_fails_is_left(calls):
    with warnings.catch_warnings(record=True) as said, tracked("broken", "discover", []):
        warnings.simplefilter("always", CircuitdiscWarning)
        for _ in range(5):
            log_figures({"metric": 1.0})
    (note,) = said
    assert str(note.message) == "nothing more is logged: log=broken failed (RuntimeError: the disk is full)"
    assert calls == [("start", calls[0][1], {}), ("finish",)]


def test_a_command_that_fails_ends_its_logger(calls):
    assert main(["report", "nowhere", "log=stub"]) == 2
    assert [kind for kind, *_ in calls] == ["start", "finish"]


def test_cells_are_logged_each_by_itself_and_commands_within_others_are_not(calls, tmp_path):
    out = tmp_path / "many"
    quick = ["algorithm=random", "task.n=8", "task.n_heldout=8", "progress=false"]
    assert main(["discover", "-m", *SEARCH, *quick, "seed=0,1", "log=stub", f"out={out}"]) == 0
    assert [kind for kind, *_ in calls if kind != "log"] == ["start", "finish"] * 2
    assert [call[2]["seed"] for call in calls if call[0] == "start"] == ["0", "1"]
    calls.clear()
    with tracked("stub", "resume", []), tracked(None, "transfer", []):
        log_figures({"metric": 1.0})
    assert [kind for kind, *_ in calls] == ["start", "log", "finish"]


def test_null_is_no_logger_whatever_is_set(calls, monkeypatch):
    monkeypatch.setenv(VARIABLE, "stub")
    assert main(["list", "metrics", "log=null"]) == 0
    with tracked("null", "discover", []), tracked(None, "discover", []):
        log_figures({"metric": 1.0})
        assert not os.environ[VARIABLE]
    assert calls == []
    assert os.environ[VARIABLE] == "stub"


def test_of_several_processes_the_first_is_logged(calls, monkeypatch):
    monkeypatch.setenv(VARIABLE, "stub")
    monkeypatch.setattr("circuitdisc.jobs.job.ranked", lambda spreads: nullcontext(True))
    for rank in (1, 0):
        assert calls == []
        monkeypatch.setattr("circuitdisc.jobs.job.speaks", lambda rank=rank: rank == 0)
        Job(name="x", by_ranks=True, work=lambda call: log_figures({"metric": 1.0}) or "done")([])
    assert [kind for kind, *_ in calls] == ["start", "log", "finish"]


def test_what_cannot_log_gets_a_sentence(calls, monkeypatch, capsys):
    assert main(["list", "metrics", "log=tensorbord"]) == 2
    assert "unknown logger 'tensorbord'. Did you mean tensorboard" in capsys.readouterr().err
    with pytest.raises(BadSetting, match="has not the three methods start, log and finish"), tracked("none", "list", []):
        pass
    with pytest.raises(UnknownName), tracked("nobody", "list", []):
        pass
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert main(["list", "metrics", "log=mlflow"]) == 2
    assert "log=mlflow needs a package that is not installed: pip install mlflow" in capsys.readouterr().err


class Module:
    """Stands for a package: remembers every call of any of its functions."""

    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def __getattr__(self, name):
        return Module(self.calls, f"{self.name}.{name}")

    def __call__(self, *args, **settings):
        self.calls.append((self.name, args, settings))
        return self


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_packages_are_called_by_their_own_names(name, monkeypatch):
    made = []
    monkeypatch.setattr(tracking, "import_module", lambda module: Module(made, module))
    with warnings.catch_warnings(), tracked(name, "discover", ["model=gpt2"]):
        warnings.simplefilter("error")
        log_figures({"a:b": 0.5, "words": "no number", "yes": True})
    title = made[0][2].get("name") or made[1][2]["run_name"]
    wanted = {
        "wandb": [
            ("wandb.init", (), {"project": "circuitdisc", "name": title, "config": {"model": "gpt2"}}),
            ("wandb.init.log", ({"a:b": 0.5},), {"step": 0}),
            ("wandb.init.finish", (), {}),
        ],
        "mlflow": [
            ("mlflow.set_experiment", ("circuitdisc",), {}),
            ("mlflow.start_run", (), {"run_name": title}),
            ("mlflow.log_params", ({"model": "gpt2"},), {}),
            ("mlflow.log_metrics", ({"a_b": 0.5},), {"step": 0}),
            ("mlflow.end_run", (), {}),
        ],
    }
    assert made == wanted[name]


def test_tensorboard_for_real(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
        EventAccumulator,
    )

    monkeypatch.chdir(tmp_path)
    with tracked("tensorboard", "discover", ["model=gpt2"]):
        for value in (0.5, 0.25):
            log_figures({"metric": value})
    (folder,) = (tmp_path / "runs" / "tensorboard").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("metric")] == [(0, 0.5), (1, 0.25)]
