"""Path patching in rounds: plans, groups, thresholds, resume."""

import json

import numpy as np
import pytest
from examples import random_task
from models import model_of

import circuitdisc as cd
from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadFile, BadRun, BadSetting, CircuitdiscError, UnknownName
from circuitdisc.pages.rounds import round_rows

PLAN = """
rounds:
  - group: late
    receivers: logits
    positions: end
    top: 2
  - group: through_values
    receivers: [late, a1.h3]
    input: v
    positions: all
    threshold: 0.001
    by: absolute
  - group: into_an_mlp
    receivers: m1
    top: 1
"""


@pytest.fixture(scope="module")
def toy():
    model = model_of("gpt2")
    return model, random_task(model, 6)


def search(toy, journal=None, **settings):
    model, task = toy
    return cd.discover(model, task, "path_patching", ablation="resample", allow_chance=True, journal=journal, **settings)


def test_a_plan_from_a_file(toy, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    found = search(toy, plan=str(path))
    model, task = toy
    direct = cd.path_patch(model, task, receiver_positions="end")
    order = [direct.senders[index] for index in np.argsort(direct.absolute)]
    assert list(found.circuit.groups["late"]) == order[:2]
    receivers = sorted({f"{head}<v>" for head in (*order[:2], "a1.h3")}, key=model.graph.receiver_index.__getitem__)
    values = cd.path_patch(model, task, receivers=receivers)
    expected = {name for name, change in zip(values.senders, values.relative, strict=True) if abs(change) >= 0.001}
    assert set(found.circuit.groups["through_values"]) == expected
    assert found.trace[1]["receivers"] == receivers
    assert len(found.circuit.groups["into_an_mlp"]) == 1
    everyone = {head for heads in found.circuit.groups.values() for head in heads}
    assert found.circuit == Circuit.from_heads(model.graph, everyone)
    effects = found.trace[0]["effects"]
    assert [effects[name]["absolute"] for name in direct.senders] == pytest.approx(direct.absolute)
    spread = direct.patched[0] - direct.clean
    assert effects["a0.h0"]["standard_error"] == pytest.approx(spread.std(ddof=1) / len(spread) ** 0.5)


def test_groups_survive_json(toy, tmp_path):
    found = search(toy, threshold=0.02)
    found.circuit.save(tmp_path / "circuit.json")
    again = Circuit.load(tmp_path / "circuit.json")
    assert again.groups == found.circuit.groups
    assert again == found.circuit
    old = json.loads((tmp_path / "circuit.json").read_text())
    del old["groups"]  # files from before there were groups
    assert Circuit.from_dict(old).groups == {}


def test_auto_plans_its_own_rounds(toy):
    found = search(toy, threshold=0.02, max_depth=3)
    groups = found.circuit.groups
    rounds = [line["round"] for line in found.trace]
    assert rounds[:4] == ["direct", "direct.q", "direct.k", "direct.v"]
    members = [head for heads in groups.values() for head in heads]
    assert len(members) == len(set(members)), "a head belongs to the first group that finds it"
    for name in rounds[1:]:
        parent = name.rpartition(".")[0]
        assert groups.get(parent), "only found groups become receivers"
    assert max(name.count(".") for name in rounds) <= 2
    assert search(toy, plan="direct", threshold=0.02).circuit.groups == {"direct": groups["direct"]}


def test_signed_keeps_falls_alone(toy):
    model, task = toy
    direct = cd.path_patch(model, task)
    falls = {name for name, change in zip(direct.senders, direct.relative, strict=True) if change <= -0.01}
    either = {name for name, change in zip(direct.senders, direct.relative, strict=True) if abs(change) >= 0.01}
    assert falls != either
    assert set(search(toy, plan="direct", threshold=0.01).circuit.groups["direct"]) == falls
    assert set(search(toy, plan="direct", threshold=0.01, by="absolute").circuit.groups["direct"]) == either


def test_a_killed_search_goes_on(toy, tmp_path, open_journal):
    whole = search(toy, threshold=0.02)
    lines = [json.dumps(line) for line in search(toy, open_journal(tmp_path / "whole.jsonl"), threshold=0.02).trace]
    text = (tmp_path / "whole.jsonl").read_text()
    for cut in (0, 2, 5):  # after so many lines, and in the middle of the next
        path = tmp_path / f"cut{cut}.jsonl"
        kept = text.splitlines(keepends=True)
        path.write_text("".join(kept[:cut]) + kept[cut][:10])
        again = search(toy, open_journal(path), threshold=0.02)
        assert again.circuit == whole.circuit
        assert again.circuit.groups == whole.circuit.groups
        assert [json.dumps(line) for line in again.trace] == lines
    with pytest.raises(BadRun, match=r"another algorithm\.threshold \(0\.02, now 0\.03\)"):
        search(toy, open_journal(tmp_path / "whole.jsonl"), threshold=0.03)


def test_the_induction_toy_in_rounds():
    model = cd.load_model("toys/induction", dtype="float64")
    found = cd.discover(model, cd.load_task("induction", model, n=40), "path_patching", ablation="resample")
    assert found.circuit.groups == {"direct": ("a1.h0", "a1.h1"), "direct.k": ("a0.h1",)}


def test_the_page_shows_every_round(toy, tmp_path):
    found = search(toy, threshold=0.02)
    rows = round_rows(found.circuit.graph, found.trace)
    assert [row.name for row in rows] == [line["round"] for line in found.trace]
    cd.report(found, None, tmp_path)
    page = (tmp_path / "report.html").read_text()
    first = found.trace[0]
    strongest = first["found"][0]
    change = 100 * first["effects"][strongest]["relative"]
    for words in ("direct.q", "a1.h0", f"{strongest} {change:+.1f} %"):
        assert words in page
    assert page.count('id="plot-round') == sum(row.figure is not None for row in rows)


@pytest.mark.parametrize(
    ("plan", "error", "words"),
    [
        ("aut", UnknownName, "auto"),
        ("missing.yaml", BadFile, "missing.yaml"),
        ({"rounds": []}, BadFile, "rounds"),
        ({"rounds": [{"group": "a"}]}, BadFile, "no receivers"),
        ({"rounds": [{"receivers": "logits", "inputs": "q"}]}, UnknownName, "input"),
        ({"rounds": [{"receivers": "logits", "top": 0}]}, BadSetting, "top=0"),
        ({"rounds": [{"receivers": "logits", "threshold": -1}]}, BadSetting, "threshold=-1"),
        ({"rounds": [{"receivers": "logits", "top": None, "threshold": None}]}, BadSetting, "neither"),
        ({"rounds": [{"receivers": "a1.h0", "top": 1}]}, BadSetting, "give input"),
        ({"rounds": [{"receivers": "movers", "top": 1, "input": "q"}]}, UnknownName, "movers"),
        ({"rounds": [{"receivers": "logits", "top": 1, "positions": "s2"}]}, UnknownName, "s2"),
        ({"rounds": [{"receivers": "logits", "top": 1}] * 2, "x": 1}, UnknownName, "x"),
        ({"rounds": [{"group": "a", "receivers": "logits", "top": 1}] * 2}, BadFile, "own group name"),
    ],
)
def test_bad_plans_get_a_sentence(toy, plan, error, words):
    with pytest.raises(error, match=words):
        search(toy, plan=plan)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threshold": -0.1}, "threshold"),
        ({"max_depth": 0}, "max_depth"),
        ({"by": "size"}, "by"),
        ({"metric": "kl"}, "clean value"),
    ],
)
def test_bad_settings_get_a_sentence(toy, settings, words):
    with pytest.raises(CircuitdiscError, match=words):
        search(toy, **settings)


def test_metrics_without_a_clean_value_take_the_best_few(toy):
    found = search(toy, metric="kl", threshold=None, top=2, plan="direct")
    assert len(found.circuit.groups["direct"]) == 2
