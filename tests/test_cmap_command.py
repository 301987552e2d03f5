"""Cross-model patching as a command, and what the call and the command refuse."""

import json
from dataclasses import replace

import numpy as np
import pytest
from cross_models import model, task_of
from models import model_of

import circuitdisc as cd
from circuitdisc.checkpoints.attention_difference import attention_difference
from circuitdisc.checkpoints.cmap.cmap import cmap
from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadFile, BadModel, BadSetting, GraphMismatch, UnknownName
from circuitdisc.jobs.cmap import JOB as CMAP

pytestmark = pytest.mark.usefixtures("llama_in_float64")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"what": "outputs"}, UnknownName, "Did you mean output"),
        ({"what": []}, BadSetting, "names nothing"),
        ({"direction": "tuned"}, UnknownName, "tuned_into_base"),
        ({"positions": "s3"}, UnknownName, "s2"),
        ({"groups": {"A": ["a9.h1"]}}, GraphMismatch, "not a head of this graph"),
        ({"groups": {"A": []}}, BadSetting, "no heads"),
        ({"split": "test"}, UnknownName, "heldout"),
        ({"top": -1}, BadSetting, "top"),
        ({"steps": [99]}, BadSetting, "99"),
        ({"cache": "tape"}, UnknownName, "disk"),
    ],
)
def test_bad_settings_get_a_sentence(settings, error, words):
    with pytest.raises(error, match=words):
        cmap(model("gpt2", "base"), model("gpt2", "tuned"), task_of("gpt2"), **settings)


def test_models_that_do_not_fit_are_refused_before_anything_runs():
    with pytest.raises(BadModel, match="share one architecture"):
        cmap(model("gpt2", "base"), model("llama", "base"), task_of("gpt2"))
    hooked = model_of("gpt2", components="hooks")
    with pytest.raises(BadSetting, match="fast components"):
        cmap(hooked, hooked, task_of("gpt2"))


def test_a_key_behind_the_query_is_refused():
    with pytest.raises(BadSetting, match="lies behind"):
        attention_difference(model("gpt2", "base"), model("gpt2", "tuned"), task_of("gpt2"), query="first", keys="s2")


# --- the command ------------------------------------------------------------------------------------------------------------


def settings_of(tmp_path, *more):
    return [
        "base=tpp/base", "tuned=tpp/lightweight", "task=tpp", "task.n=4", "task.n_heldout=6", "n_random=1", "steps=2", "top=2",
        "progress=false", f"out={tmp_path / 'out'}", *more,
    ]  # fmt: skip


def test_the_command_leaves_a_page_and_the_numbers(tmp_path):
    path = tmp_path / "circuit.json"
    graph = cd.load_model("tpp/base").graph
    replace(Circuit.from_heads(graph, ["a3.h1", "a2.h0"]), groups={"A": ("a3.h1",), "<b>": ("a2.h0",)}).save(path)
    text = CMAP(settings_of(tmp_path, f"circuit={path}", "what=output,value", "direction=both"))
    assert "gap of" in text
    assert "all groups" in text
    page = (tmp_path / "out" / "cmap.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    data = json.loads((tmp_path / "out" / "cmap.json").read_text())
    assert [one["direction"] for one in data["result"]["directions"]] == ["tuned_into_base", "base_into_tuned"]
    assert data["result"]["n"] == 6
    with np.load(tmp_path / "out" / "arrays.npz") as arrays:
        metric = arrays["tuned_into_base_output"].mean(-1)
    assert np.allclose(metric, data["result"]["directions"][0]["maps"]["output"]["metric"])
    assert sorted(one.name for one in tmp_path.iterdir()) == ["circuit.json", "out"]


def test_groups_alone_leave_a_page_without_maps(tmp_path):
    text = CMAP(settings_of(tmp_path, "groups={A: [a3.h1]}", "alone=false", "what=output,value", "attention=false"))
    assert "a3.h1" in text
    assert "any other" not in text
    assert "Groups" in (tmp_path / "out" / "cmap.html").read_text()


def test_the_command_s_plan_reads_no_weights_and_foresees_the_run(tmp_path, monkeypatch):
    CMAP(settings_of(tmp_path, "groups={A: [a3.h1]}"))
    ran = json.loads((tmp_path / "out" / "cmap.json").read_text())["result"]
    monkeypatch.setattr("circuitdisc.models.load.load_pretrained", None)
    text = CMAP(settings_of(tmp_path, "groups={A: [a3.h1]}", "plan=true"))
    plan = json.loads(text.splitlines()[-1])
    assert plan == ran["plan"]
    assert ran["cost"]["forwards"] == pytest.approx(plan["total_passes"], rel=0.05)
    assert "memory: peak" in text


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (["model=tpp/base"], BadSetting, "two checkpoints"),
        (["base=null"], BadSetting, "which base"),
        (["base=tpp/bas"], UnknownName, "tpp/base"),
        (["circuit=nowhere"], BadFile, "neither"),
        (["circuit=x", "groups={A: [a0.h1]}"], BadSetting, "one of them"),
        (["groups=[a0.h1]"], BadSetting, "table of lists"),
        (["whatt=output"], UnknownName, "Did you mean what"),
        (["tuned=multitask/base"], BadModel, "one architecture"),
    ],
)
def test_the_command_refuses_bad_input_and_leaves_nothing(tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        CMAP(settings_of(tmp_path, *change))
    assert list(tmp_path.iterdir()) == []
