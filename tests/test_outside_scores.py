"""Scores that other packages declare: computed, kept, shown and read back like ours; a bad one leaves a sentence."""

import json
import sys
from dataclasses import replace

import pytest
from made_pages import Page
from packages import VERSION, install

from circuitdisc.cli import main
from circuitdisc.errors import BadFile, BadSetting, UnknownName
from circuitdisc.jobs.judge import judge
from circuitdisc.pages.scores import judged, judgement_parts
from circuitdisc.scoring.registry import REGISTRY, SCORES

SOURCE = '''
"""A score, and some that cannot be used."""

from dataclasses import asdict, dataclass

from circuitdisc.errors import BadTask
from circuitdisc.scoring.kind import ScoreDescription, ScoreKind


@dataclass(frozen=True)
class Size:
    edges: int
    seed: int
    n: int
    split: str = "heldout"
    ablation: str = "resample"
    metric: str = "logit_diff"
    confidence: float = 0.95

    def to_dict(self):
        return asdict(self)

    def describe(self):
        rows = [{"edges": self.edges, "seed": self.seed}]
        return ScoreDescription(["Of edges."], rows, "All of them", [f"It has {self.edges} edges."], ["Size is no merit."])


calls = []


def size(model, task, circuit, *, seed, factor=1):
    calls.append(seed)
    return Size(factor * circuit.n_edges, seed, len(task.heldout))


def fails(call):
    raise BadTask("the examples are too plain")


attempts = []


def killed(call):
    attempts.append(call)
    if len(attempts) == 1:
        raise KeyboardInterrupt
    return Size(1, 0, 16)


size_of_circuit = ScoreKind("size_of_circuit", "how many edges", Size, lambda call: call.run(size, factor=2))
failing = ScoreKind("failing", "", Size, fails)
killed_once = ScoreKind("killed_once", "", Size, killed)
lacking = ScoreKind("lacking", "", Size, fails, lambda call: "it is Sunday")
silent = ScoreKind("silent", "", Size, fails, lambda call: "")
misnamed = ScoreKind("other", "", Size, fails)
bare = ScoreKind("bare", "", int, fails)
missing = ScoreKind("missing", "", Size, fails)
number = 3
'''

COMMON = ["model=toys/induction", "task=induction", "task.n=12", "task.n_heldout=16", "ablation=resample", "progress=false"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Declares scores; called with their names. Those of this package are left out, for their time."""
    for name, kind in SCORES.items():
        monkeypatch.setitem(SCORES, name, replace(kind, lacking=lambda call: ""))

    def declare(*names):
        targets = {entry: f"otherlab_scores:{entry}" for entry in names}
        install(monkeypatch, tmp_path / "otherlab", "circuitdisc.scores", targets, SOURCE, "otherlab_scores")

    return declare


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores") / "run"
    assert main(["discover", *COMMON, "algorithm=eap", "algorithm.edges=8", "scoring.n_random=1", f"out={folder}"]) == 0
    return folder


def test_it_is_computed_kept_and_shown(package, run, capsys):
    package("size_of_circuit", "failing", "lacking", "silent", "number")
    assert main(["score", str(run), "--all"]) == 0
    shown = capsys.readouterr().out
    assert "size of circuit\n\nedges  seed\n-----  ----\n16     0\nOn 16 held-out examples; metric logit_diff" in shown
    assert "Of edges." in shown
    for line in ("failing: the examples are too plain", "lacking: it is Sunday", "number: score 'number' of package"):
        assert line in shown
    assert "silent" not in shown
    written = json.loads((run / "judgement.json").read_text())
    assert written["size_of_circuit"]["edges"] == 16
    assert (written["failing"], written["lacking"], written["silent"]) == (None, None, None)
    assert {"It has 16 edges.", "Size is no merit.", "Only 16 examples stand behind it: an interval from so few is rough."} <= {
        *written["verdict"]
    }
    page = Page((run / "report.html").read_text("utf-8")).words
    for words in (
        "Size of circuit Of edges.",
        "All of them",
        "It has 16 edges.",
        "No lacking It could not be computed: it is Sun",
    ):
        assert words in page


def test_what_is_done_is_not_done_again_and_belongs_to_the_version(package, run):
    package("size_of_circuit", "killed_once")
    with pytest.raises(KeyboardInterrupt):
        judge(run, {}, progress=False)
    (unfinished,) = set(run.glob("judgement.*.partial.jsonl")) - set(run.glob("judgement.*.scores.partial.jsonl"))
    assert f"otherlab {VERSION}" in unfinished.read_text()
    found = judge(run, {}, progress=False).results
    assert (found["size_of_circuit"].edges, found["killed_once"].edges) == (16, 1)
    assert sys.modules["otherlab_scores"].calls == [0]
    assert not list(run.glob("judgement.*.partial.jsonl"))


def test_a_page_without_the_package_says_so(package):
    size = {"edges": 2, "seed": 0, "n": 40, "split": "heldout", "ablation": "zero", "metric": "kl", "confidence": 0.9}
    judgement = {"size_of_circuit": size, "missing": {}, **dict.fromkeys(SCORES)}
    part = judgement_parts(judgement)[-1]
    assert (part.title, part.lines) == ("No size_of_circuit", ("No package that is installed here can show it.",))
    assert judged(judgement).lines == ()
    package("size_of_circuit")
    part = judgement_parts(judgement)[-1]
    assert (part.title, part.rows) == ("Size of circuit", (("2", "0"),))
    with pytest.raises(BadFile, match=r"judgement\.json, size_of_circuit: the key 'edges' is missing"):
        judged({"size_of_circuit": {"n": 3}, "missing": {}})


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("number", "score 'number' of package 'otherlab' .* is no score: it must be a ScoreKind"),
        ("misnamed", "is a score named 'other'"),
        ("missing", "is a score named 'missing'"),
        ("bare", r"has a result without to_dict\(\)"),
        ("absent", "cannot be imported"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(package, entry, sentence):
    package(entry)
    with pytest.raises(BadSetting, match=sentence):
        REGISTRY.get(entry)
    with pytest.raises(UnknownName):
        REGISTRY.get("completness")
