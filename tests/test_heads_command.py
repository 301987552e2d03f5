"""`circuitdisc heads`: what each tool prints and leaves, that it is what Python gives, and a sentence for every wrong input."""

import inspect
import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

import circuitdisc as cd
from circuitdisc.cli import main
from circuitdisc.jobs.config import compose, groups_of, own_keys
from circuitdisc.jobs.registry import REGISTRY

TOY = ["model=toys/induction", "task=induction", "task.length=8", "task.n=20", "task.n_heldout=30", "progress=false"]
TPP = ["model=tpp/lightweight", "task=tpp", "task.n=10", "task.n_heldout=10", "progress=false"]
QUICK = {
    "roles": TOY,
    "attention": [*TOY, "query=end", "key=-2"],
    "logits": TOY,
    "effects": TOY,
    "knockout": [*TOY, "n_random=3"],
    "neurons": [*TPP, "knock_out=a3.h1,a2.h0", "layers=[3]", "sizes=[5,20]", "n_random=2", "top=3", "n_tokens=4"],
    "weights": ["model=toys/linear_regression", "inputs=0,1", "progress=false"],
}


FUNCTIONS = {
    "roles": "head_roles", "attention": "attention_to", "logits": "logit_attribution", "effects": "head_effects",
    "knockout": "knockout_curve", "neurons": "neuron_analysis", "weights": "head_matrices",
}  # fmt: skip


def run(capsys, *args):
    """Exit status, stdout and stderr of one command."""
    status = main(["heads", *args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def toy():
    model = cd.load_model("toys/induction")
    return model, cd.load_task("induction", model, n=20, n_heldout=30, length=8)


@pytest.mark.parametrize("tool", QUICK)
def test_every_tool_prints_a_table_and_leaves_a_page(tool, tmp_path, capsys):
    out = tmp_path / "out"
    status, printed, _ = run(capsys, tool, *QUICK[tool], f"out={out}")
    assert status == 0
    assert {path.name for path in out.iterdir()} == {"result.json", "arrays.npz", "report.html"}
    record = json.loads((out / "result.json").read_text())
    assert record["tool"] == tool
    assert record["command"].startswith(f"circuitdisc heads {tool} model=")
    assert record["versions"]["torch"]
    page = (out / "report.html").read_text()
    assert "default-src 'none'" in page  # the page may load nothing
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)
    figures = re.findall(r'data-plot="([^"]+)">(.*?)</script>', page, re.DOTALL)
    assert figures
    for name, spec in figures:
        assert f'id="{name}"' in page
        assert json.loads(spec)["data"]
    assert str(out / "report.html") in printed


def test_what_is_printed_is_what_python_gives(toy, tmp_path, capsys):
    model, task = toy
    status, printed, _ = run(capsys, "roles", *TOY, f"out={tmp_path / 'roles'}")
    assert status == 0
    assert re.search(r"^induction +30 +a1\.h0, a1\.h1$", printed, re.MULTILINE)
    assert re.search(r"^previous_token +30 +a0\.h1$", printed, re.MULTILINE)
    found = cd.heads.head_roles(model, task)
    assert json.loads((tmp_path / "roles/result.json").read_text())["result"] == json.loads(json.dumps(found.to_dict()))
    run(capsys, "knockout", *TOY, "n_random=3", "seed=4", "ablation=zero", "metric=log_prob", f"out={tmp_path / 'curve'}")
    arrays = np.load(tmp_path / "curve/arrays.npz")
    drawn = cd.load_task("induction", model, n=20, n_heldout=30, length=8, seed=4)
    curve = cd.heads.knockout_curve(model, drawn, n_random=3, seed=4, ablation="zero", metric="log_prob")
    assert np.array_equal(arrays["random"], curve.random)
    assert np.array_equal(arrays["values"], curve.values)


def test_repeated_tokens_need_no_task(tmp_path, capsys):
    args = ["model=toys/induction", "prompts=repeated", "n=20", "length=8", "progress=false", f"out={tmp_path / 'r'}"]
    status, printed, _ = run(capsys, "roles", *args)
    assert status == 0
    assert "random tokens said twice" in printed
    assert "a1.h0, a1.h1" in printed


def test_a_settings_file_for_every_tool():
    tools = {name.partition(" ")[2]: job for name, job in REGISTRY.own.items() if name.startswith("heads ")}
    assert set(tools) == set(QUICK)
    for name, job in tools.items():
        assert job.config is not None
        kept = own_keys(job.config)
        composed: Any = OmegaConf.to_container(compose([], job.config))
        function = getattr(cd.heads, FUNCTIONS[name])
        parameters = inspect.signature(function).parameters.values()
        own = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
        groups = set(groups_of(job.config)) - {"model", "task"}
        taken = {*own_keys("common"), *groups, "effects"}  # an array: Python alone can give it
        expected = {key: list(value) if isinstance(value, tuple) else value for key, value in own.items() if key not in taken}
        assert {key: composed[key] for key in kept if key != "out"} == expected
        assert all(f"{setting}" in (inspect.getdoc(function) or "") for setting in own)
        assert groups == {"ablation", "metric"} & set(own)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["rolse"], "unknown tool of heads 'rolse'. Did you mean roles"),
        (["--fast"], "unknown tool of heads '--fast'"),
        (["roles", *TOY, "treshold=0.3"], "unknown setting of heads roles 'treshold'. Did you mean threshold"),
        (["roles", *TOY, "ablation=mean"], "unknown setting of heads roles 'ablation'"),
        (["roles", *TOY, "threshold=high"], "threshold='high' is not a number"),
        (["roles", *TOY, "roles=inducton"], "unknown role 'inducton'. Did you mean induction"),
        (["roles", *TOY, "fast"], "'fast' is not a setting"),
        (["roles", *TOY, "task.lenght=3"], "unknown setting of task 'lenght'. Did you mean length"),
        (["attention", *TOY, "key=s9"], "s9"),
        (["attention", *TOY, "query=first", "key=end"], "use query=end key=first"),
        (["knockout", *TOY, "order=[a0.h9]"], "'a0.h9' is not a head"),
        (["knockout", *TOY, "order=[a0.h0"], "these settings cannot be read"),
        (["knockout", *TOY, "steps=[0,99]"], "asks for 99 ablated heads"),
        (["neurons", *TOY], "has no MLPs"),
        (["neurons", *TPP, "ablation=resample"], "neurons cannot be ablated by resample"),
        (["logits", *TOY, "model=toys/inducton"], "unknown model 'toys/inducton'. Did you mean toys/induction"),
        (
            ["weights", "model=toys/induction", "label=99"],
            "label=99 is no axis of toys/induction: give a number from -64 to 63",
        ),
        (["weights", "model=toys/induction", "task=tpp"], "unknown setting of heads weights 'task'"),
        (["logits", *TOY, "threads=0"], "threads=0 must be a whole number"),
    ],
)
def test_bad_input_gets_a_sentence(args, sentence, tmp_path, capsys):
    out = tmp_path / "out"
    status, _, err = run(capsys, *args, *([f"out={out}"] if len(args) > 1 else []))
    assert status == 2
    assert sentence in err
    assert "Traceback" not in err
    assert not out.exists()


def test_an_existing_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").write_text("kept")
    status, _, err = run(capsys, "logits", *TOY, f"out={tmp_path}")
    assert status == 2
    assert "already exists" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_help_needs_no_torch():
    calls = "main(['heads']); [main(['heads', tool, '--help']) for tool in ('roles', 'knockout')]"
    imports = "from circuitdisc.cli import main"
    code = f"import sys; {imports}; {calls}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("False"), done.stderr
    assert "n_random=20" in done.stdout
