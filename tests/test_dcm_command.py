"""The dcm command prints what Python gives, and refuses bad input without leaving anything."""

import json

import pytest

import circuitdisc as cd
from circuitdisc.cli import main
from circuitdisc.heads.dcm.dcm import dcm
from circuitdisc.tasks.desiderata import of_task

TOY = [
    "model=toys/induction",
    "task=induction",
    "task.length=8",
    "task.n=12",
    "task.n_heldout=12",
    "n_random=2",
    "progress=false",
]


def test_the_command_prints_what_python_gives(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["dcm", *TOY, "penalties=[0.1]", f"out={out}"]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"result.json", "arrays.npz", "report.html", "journal.jsonl"}
    model = cd.load_model("toys/induction")
    task = cd.load_task("induction", model, n=24, n_heldout=12, length=8)
    wanted = dcm(model, of_task(task, 12), penalties=0.1, n_random=2)
    assert json.loads((out / "result.json").read_text())["result"] == json.loads(json.dumps(wanted.to_dict()))
    assert f"{len(wanted.found[0].masked)}" in printed
    assert main(["dcm", *TOY, f"out={out}"]) == 2  # a finished folder is left alone
    assert "holds a result" in capsys.readouterr().err
    (out / "result.json").unlink()  # as if killed before the end: the mask is not trained again
    before = (out / "journal.jsonl").read_text()
    assert main(["dcm", *TOY, "penalties=[0.1]", f"out={out}"]) == 0
    assert (out / "journal.jsonl").read_text() == before
    page = (out / "report.html").read_text()
    assert "Mask for induction" in page
    assert page.index("induction: the mask holds") < page.index("A patched component carries")
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["overr=head"], "unknown setting of dcm 'overr'. Did you mean over"),
        (["over=group"], "over=group needs groups"),
        (["circuit=nowhere"], "circuit=nowhere is neither"),
        (["desiderata=value"], "cannot be chosen: task 'induction' stands for one"),
        (["positions=s7"], "s7"),
        (["task=entity_tracking", "model=multitask/base", "task.corruption=label"], "name it with desiderata=label"),
    ],
)
def test_bad_input_leaves_nothing(args, sentence, tmp_path, capsys):
    base = TOY if not any(arg.startswith("task=") for arg in args) else ["progress=false"]
    assert main(["dcm", *base, *args, f"out={tmp_path / 'out'}"]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
