"""`circuitdisc compare`: two small runs side by side; each figure is that of the call that makes it, each slip a sentence."""

import json
import re
import shutil

import pytest
from made_pages import Page

import circuitdisc as cd
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.errors import BadRun, BadSetting
from circuitdisc.jobs.compare_runs import compare_runs
from circuitdisc.jobs.job import Call
from circuitdisc.jobs.registry import REGISTRY
from circuitdisc.pages.comparison import comparison_table, draw_heads, headline
from circuitdisc.runs import Run
from circuitdisc.scoring import Scores
from circuitdisc.scoring.overlap import HEADS_DECIDE

INDUCTION = ["model=toys/induction", "task=induction", "ablation=resample", "task.n=20", "task.n_heldout=20",
             "scoring.n_random=2", "progress=false"]  # fmt: skip
TPP = ["model=tpp/lightweight", "task=tpp", "algorithm.threshold=0.5", "task.n=20", "task.n_heldout=20",
       "scoring.n_random=1", "progress=false"]  # fmt: skip
QUICK = {"n_random": 2, "progress": False}


def run(capsys, *args):
    """Exit status, stdout and stderr of one command."""
    capsys.readouterr()
    status = main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs: two tasks of one toy, one of another toy model, and one whose search was not finished."""
    folder = tmp_path_factory.mktemp("runs")
    for name, settings in {
        "short": [*INDUCTION, "task.length=6", "algorithm.threshold=1.0"],
        "long": [*INDUCTION, "task.length=8", "algorithm=eap", "algorithm.edges=8"],
        "heads": [*INDUCTION, "task.length=8", "algorithm=head_ablation", "algorithm.threshold=0.1"],
        "tpp": TPP,
    }.items():
        assert main(["discover", *settings, f"out={folder / name}"]) == 0
    shutil.copytree(folder / "short", folder / "unfinished")
    (folder / "unfinished" / "circuit.json").unlink()
    return folder


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory):
    return compare_runs(runs / "short", runs / "long", out=tmp_path_factory.mktemp("out") / "c", **QUICK)


def model_and_task(folder):
    config = Run.open(folder).config
    model = cd.load_model(**config["model"])
    settings = dict(config["task"])
    return model, cd.load_task(settings.pop("name"), model, seed=config["seed"], **settings)


def copy_of(run, folder, **changes):
    """A run as another one, with a changed configuration, that does not say what its files belong to."""
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    for section, settings in changes.items():
        config[section] |= settings
    (folder / "config.json").write_text(json.dumps(config))
    circuit = json.loads((folder / "circuit.json").read_text())
    circuit["provenance"]["identity"] = {}
    (folder / "circuit.json").write_text(json.dumps(circuit))
    (folder / "scores.json").write_text(json.dumps({**json.loads((folder / "scores.json").read_text()), "identity": {}}))
    return folder


def test_two_ablations_are_not_mixed_unless_asked(runs, tmp_path):
    other = copy_of(runs / "long", tmp_path / "zero", ablation={"kind": "zero"})
    with pytest.raises(BadSetting, match="resample and zero"):
        compare_runs(runs / "short", other, out=tmp_path / "c", **QUICK)
    assert not (tmp_path / "c").exists()
    comparison, _ = compare_runs(runs / "short", other, out=tmp_path / "c", mix=True, **QUICK)
    assert any("different ablations" in note for note in comparison.notes)


# --- the figures ---------------------------------------------------------------------------------------------------------


def test_each_figure_is_that_of_its_own_call(runs, compared):
    comparison, _ = compared
    circuits = {label: Circuit.load(runs / name / "circuit.json") for label, name in (("A", "short"), ("B", "long"))}
    assert comparison.overlaps == cd.overlap(circuits["A"], circuits["B"])
    assert comparison.overlaps["heads"].n_shared > 0
    assert [(one.circuit, one.task) for one in comparison.crossings] == [("A", "A"), ("B", "A"), ("A", "B"), ("B", "B")]
    for task, name in (("A", "short"), ("B", "long")):
        model, examples = model_and_task(runs / name)
        other = "B" if task == "A" else "A"
        wanted = cd.score(model, examples, circuits[other], ablation="resample", metric="logit_diff", n_random=2)
        found = {(one.circuit, one.task): one.scores for one in comparison.crossings}
        assert found[other, task] == wanted
        assert found[task, task] == Scores.from_dict(json.loads((runs / name / "scores.json").read_text()))
        changes = [cd.Intervention(head, scale=0.0) for head in comparison.overlaps["heads"].shared]
        assert comparison.effects[task][0] == cd.intervene(model, examples, changes, n_random=2)
        assert comparison.effects[task][1] == cd.intervene(model, examples, changes, metric="accuracy", n_random=2)


def test_the_folder_holds_the_same(runs, compared):
    comparison, folder = compared
    assert sorted(path.name for path in folder.iterdir()) == ["compare.html", "compare.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["c"]
    written = json.loads((folder / "compare.json").read_text())
    assert written == json.loads(json.dumps(comparison.to_dict()))
    assert written["sides"]["A"]["heads"] == Circuit.load(runs / "short" / "circuit.json").heads()
    assert written["settings"]["n_random"] == 2
    assert written["settings"]["versions"]["torch"]


def test_the_page_says_what_the_tables_say(compared):
    comparison, folder = compared
    page = Page((folder / "compare.html").read_text("utf-8"))
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "base", "object", "form")
        assert not attributes.keys() & {"src", "href", "srcset", "action"}
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    assert sum(tag == "table" for tag, _ in page.tags) == sum(tag == "caption" for tag, _ in page.tags) == 5
    assert set(page.figures) == {"plot-heads"}
    words = page.words.replace("−", "-")
    assert headline(comparison) in page.words
    for line in comparison_table(comparison).splitlines()[2:]:
        for cell in re.split(r"  +|^verdict$|! |heads in both: |changed at once: ", line):
            assert cell in words or set(cell) <= {"-"}, cell
    assert "None" not in page.words
    assert "nan" not in page.words.lower().split()


def test_the_grid_colours_every_head_once(compared):
    comparison, _ = compared
    heads = comparison.overlaps["heads"]
    drawn = {trace.name.split(":")[0]: set(trace.text or ()) for trace in draw_heads(comparison).data}  # type: ignore[attr-defined]  # a scatter
    assert drawn["in both"] == set(heads.shared)
    assert drawn["only in A"] == set(heads.only_a)
    assert drawn["only in B"] == set(heads.only_b)
    assert set().union(*drawn.values()) == {"a0.h0", "a0.h1", "a1.h0", "a1.h1"}
    assert sum(len(names) for names in drawn.values()) == 4


def test_heads_asked_for_are_changed_as_asked(runs, tmp_path, capsys):
    folders = (runs / "short", runs / "heads")
    status, out, err = run(capsys, "compare", *folders, "heads=[a1.h0, a0.h1]", "attend=end:b1", "share=0.5", "scale=2",
                           "n_random=1", "progress=false", f"out={tmp_path / 'c'}")  # fmt: skip
    assert (status, err) == (0, "")
    assert "changed at once: a1.h0 a0.h1: 0.5 of the attention from end to b1, output x 2" in out
    assert HEADS_DECIDE in out
    assert str(tmp_path / "c" / "compare.html") in out
    written = json.loads((tmp_path / "c" / "compare.json").read_text())
    done = [{"head": head, "scale": 2.0, "attend": ["end", "b1"], "share": 0.5} for head in ("a1.h0", "a0.h1")]
    for effect in (*written["effects"]["A"], *written["effects"]["B"]):
        assert effect["interventions"] == done
        assert len(effect["controls"]) == 1


def test_without_interventions_no_model_is_run(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("circuitdisc.jobs.compare_runs.load_model", None)
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, "compare", runs / "short", runs / "long", "interventions=none")
    assert status == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"compare_short_long_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
    written = json.loads((folder / "compare.json").read_text())
    assert (written["crossings"], written["effects"], written["notes"]) == ([], {}, [])
    assert "heads in both" in out
    assert "faithfulness" not in (folder / "compare.html").read_text("utf-8").split("<script")[0]


def test_each_task_is_run_in_its_own_runs_model(runs, tmp_path):
    """The same run, said to come from another checkpoint."""
    other = copy_of(runs / "tpp", tmp_path / "other", model={"name": "tpp/featherweight"})
    comparison, _ = compare_runs(runs / "tpp", other, out=tmp_path / "c", heads=["a1.h0"], n_random=0, progress=False)
    assert any("different checkpoints" in note for note in comparison.notes)
    model, task = model_and_task(other)
    wanted = cd.intervene(model, task, [cd.Intervention("a1.h0", scale=0.0)], n_random=0)
    assert comparison.effects["B"][0] == wanted
    assert comparison.effects["A"][0].before != wanted.before
    assert comparison.overlaps["edges"].jaccard == 1


def test_a_position_that_one_task_lacks_is_a_note(runs, tmp_path):
    comparison, _ = compare_runs(runs / "short", runs / "long", out=tmp_path / "c", attend=("end", 13), **QUICK)
    assert list(comparison.effects) == ["B"]
    (note,) = comparison.notes
    assert "no head was changed on task A: position '13' is outside a prompt of 12 tokens" in note


def test_circuits_that_share_no_head(runs, tmp_path):
    empty = copy_of(runs / "short", tmp_path / "empty")
    Circuit.empty(cd.load_model("toys/induction").graph).save(empty / "circuit.json")
    comparison, folder = compare_runs(empty, runs / "long", out=tmp_path / "c", **QUICK)
    assert comparison.effects == {}
    assert any("no head is in both circuits" in note for note in comparison.notes)
    assert comparison.overlaps["heads"].precision == 0
    assert comparison.overlaps["heads"].recall is None
    assert "heads in both: none" in comparison_table(comparison)
    assert (folder / "compare.html").is_file()


# --- slips ---------------------------------------------------------------------------------------------------------------

SLIPS = {
    "one run": (["short"], r"which two runs\?.*not 1"),
    "three runs": (["short", "long", "tpp"], r"which two runs\?.*not 3"),
    "no run": (["short", "nowhere"], r"there is no run folder .*nowhere"),
    "not a run": (["short", "."], "is not a run"),
    "no circuit": (["short", "unfinished"], r"unfinished has no circuit yet: `circuitdisc resume"),
    "other architecture": (["short", "tpp"], "different graphs have nothing to share: 2 layers x 2 heads.* and 4 layers x 8"),
    "unknown head": (["short", "long", "heads=[a1.h5]"], r"unknown head 'a1\.h5'\. Did you mean a1\.h"),
    "unknown role": (["short", "long", "attend=end:b3"], r"unknown position 'b3'\. Did you mean b1"),
    "later key": (["short", "long", "heads=a1.h0", "attend=b1:end"], "cannot attend from 'b1'"),
    "unknown setting": (["short", "long", "head=[a1.h0]"], r"unknown setting of compare 'head'\. Did you mean heads"),
    "no pair": (["short", "long", "attend=end"], "attend='end' cannot be read: give query:key"),
    "no number": (["short", "long", "scale=twice"], "scale='twice' is not a number"),
    "no finite number": (["short", "long", "scale=inf"], "scale=inf is not finite"),
    "contradiction": (["short", "long", "scale=2", "interventions=none"], "scale= changes heads, but interventions=none"),
    "unknown choice": (["short", "long", "interventions=head"], r"unknown interventions 'head'\. Did you mean heads"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_gets_a_sentence_and_leaves_nothing(slip, runs, tmp_path, capsys):
    args, sentence = SLIPS[slip]
    args = [arg if "=" in arg else runs / arg for arg in args]
    status, out, err = run(capsys, "compare", *args, "n_random=1", "progress=false", f"out={tmp_path / 'c'}")
    assert (status, out) == (2, "")
    assert re.search(sentence, err), err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_taken_is_left_alone(runs, tmp_path, capsys):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("mine")
    status, _, err = run(capsys, "compare", runs / "short", runs / "long", "interventions=none", f"out={tmp_path / 'c'}")
    assert status == 2
    assert "already exists" in err
    assert [path.name for path in tmp_path.rglob("*")] == ["c", "mine.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRun, match="cannot make the folder"):
        compare_runs(runs / "short", runs / "long", interventions="none", out=tmp_path / "file" / "c")


def test_a_failed_write_leaves_nothing(runs, tmp_path, monkeypatch):
    def fail(*_):
        raise BadRun("the disk is full")

    monkeypatch.setattr("circuitdisc.jobs.compare_runs.write_comparison", fail)
    with pytest.raises(BadRun, match="the disk is full"):
        compare_runs(runs / "short", runs / "long", interventions="none", out=tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_settings_of_the_command_line(runs, capsys):
    args = ("heads=a1.h0,a0.h1", "attend=s2+1:end-2", "scale=-1e-1", "progress=False", "out=null", "n_random=0")
    settings = Call(REGISTRY.own["compare"], args).settings
    assert settings["heads"] == ["a1.h0", "a0.h1"]
    assert (settings["attend"], settings["scale"], settings["out"]) == ("s2+1:end-2", -0.1, None)
    for bad in ("n_random=-1", "progress=maybe", "attend=:end", "nonsense=1", "interventions=some"):
        status, _, err = run(capsys, "compare", runs / "short", runs / "long", bad)
        assert status == 2
        assert re.search(rf"{bad.partition('=')[0]}", err)


def test_help(capsys):
    status, out, _ = run(capsys, "compare", "--help")
    assert status == 0
    for name in ("interventions", "heads", "scale", "attend", "share", "n_random", "confidence", "seed", "memory", "out"):
        assert f"    {name}=" in out
