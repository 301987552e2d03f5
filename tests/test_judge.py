"""All scores of a run at once: the same as each one alone, a verdict that says what they say, one file."""

import json
from typing import Any

import pytest

import circuitdisc as cd
from circuitdisc.cli import main
from circuitdisc.jobs.discover import rescore
from circuitdisc.jobs.judge import judge
from circuitdisc.wording import percent

COMMON = ["model=toys/induction", "task=induction", "task.n=20", "task.n_heldout=30", "ablation=resample", "progress=false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge") / "run"
    search = ["algorithm=eap", "algorithm.edges=8", "scoring.n_random=3", f"out={folder}"]
    assert main(["discover", *COMMON, *search]) == 0
    return folder


def test_it_is_the_scores_one_by_one(run):
    judged = judge(run, {}, progress=False)
    assert judged.scores.to_dict() == rescore(run, {}, progress=False).to_dict()
    model = cd.load_model("toys/induction")
    task = cd.load_task("induction", model, n=20, n_heldout=30, seed=0)
    circuit = cd.Circuit.load(run / "circuit.json")
    settings: dict[str, Any] = {"ablation": "resample", "metric": "logit_diff"}
    assert judged.results["completeness"].gaps == cd.completeness(model, task, circuit, **settings).gaps
    assert judged.results["minimality"].needs == cd.minimality(model, task, circuit, **settings).needs
    assert judged.missing == {}
    data = json.loads((run / "judgement.json").read_text())
    assert data["verdict"] == judged.verdict()
    assert data["minimality"]["n_passed"] == judged.results["minimality"].n_passed


def test_the_verdict_says_what_the_scores_say(run):
    judged = judge(run, {}, progress=False)
    text = " ".join(judged.verdict())
    faithfulness = judged.scores.get("faithfulness").value
    assert faithfulness is not None
    assert f"has a faithfulness of {percent(faithfulness)} (" in text
    for part in (judged.results["minimality"], judged.results["minimality_of_edges"]):
        assert part is not None
        idle = sum(not need.passes for need in part.needs)
        assert f"{idle or 'None'} of its {len(part.needs)} {part.by}s change" in text
    for test in judged.results["tests"].tests:
        before, after = text.split("against it:")
        assert test.name in (before if test.for_circuit else after)


def test_from_the_command_line(run, capsys):
    assert main(["score", str(run), "--all"]) == 0
    shown = capsys.readouterr().out
    for words in ("completeness by node", "minimality by node", "hypothesis tests", "faithfulness over size", "verdict"):
        assert words in shown
    (run / "judgement.json").unlink()
    assert main(["score", str(run), "--all", "metric=accuracy", "task.n_heldout=20"]) == 0
    assert not (run / "judgement.json").exists(), "other settings are printed, not saved"
    assert main(["score", str(run.parent), "--all"]) == 2


def test_a_score_that_cannot_be_had_does_not_take_the_others_with_it(run):
    judged = judge(run, {"metric": {"name": "kl"}}, progress=False)
    assert judged.results["minimality"] is None
    assert "minimality" in judged.missing
    assert "minimality: " in judged.text()
