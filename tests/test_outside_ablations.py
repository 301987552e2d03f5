"""Ablations that other packages declare: used by runs of circuits and by gradients alike, named, and refused in a sentence."""

import re
import sys

import numpy as np
import pytest
from examples import TINY_RUN, random_task
from models import model_of

import circuitdisc as cd
from circuitdisc.ablation import Ablation, get_ablation
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.metrics import METRICS

SOURCE = '''
from circuitdisc.ablation.base import AblationKind
from circuitdisc.ablation.mean import Mean
from circuitdisc.checks import Real, bounded


class Scaled(Mean):
    """The average, scaled."""

    @bounded(factor=Real(0, 2))
    def __init__(self, ablation, *, factor=0.5):
        super().__init__(ablation)
        self.factor = factor

    @property
    def label(self):
        return f"{self.factor:g} x {super().label}"

    def carry(self, fitted, source, batch, write):
        super().carry(fitted, source, batch, lambda site, values: write(site, values * self.factor))


class NoDefault(AblationKind):
    def __init__(self, ablation, *, size):
        super().__init__(ablation)


number = 3
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Declares entry points of a package that pip might have installed; called with {name: target}."""

    def declare(entries):
        (tmp_path / "otherlab_kinds.py").write_text(SOURCE)
        info = tmp_path / "otherlab-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: otherlab\nVersion: 1.5\n")
        lines = [f"{key} = {target}" for key, target in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(["[circuitdisc.ablations]", *lines]))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "otherlab_kinds", raising=False)

    return declare


def test_it_is_used_like_one_of_ours(package):
    """Scaled by 0 it is `zero`, scaled by 1 it is `mean`: circuits, masks, scores of edges."""
    package({"scaled": "otherlab_kinds:Scaled"})
    model = model_of("gpt2")
    task = random_task(model, 4)
    mask = Circuit.from_heads(model.graph, ["a0.h1", "a1.h2"]).mask
    for factor, name in ((0, "zero"), (1, "mean")):
        scaled = {"kind": "scaled", "factor": factor}
        ours, theirs = (
            Patching(model, get_ablation(ablation), task.train).evaluate(task.heldout, {"": mask}, [METRICS["kl"]])[""]["kl"]
            for ablation in (name, scaled)
        )
        np.testing.assert_allclose(theirs, ours, atol=1e-12)
        for algorithm in ("eap", "exact", "acdc"):
            settings = {"metric": "log_prob", "allow_chance": True}
            wanted = cd.discover(model, task, algorithm, ablation=name, **settings)
            found = cd.discover(model, task, algorithm, ablation=scaled, **settings)
            assert found.circuit.edge_names() == wanted.circuit.edge_names()
            if wanted.edge_scores is not None:
                assert found.edge_scores is not None
                np.testing.assert_allclose(found.edge_scores, wanted.edge_scores, atol=1e-9)
            assert found.circuit.provenance.versions["otherlab"] == "1.5"
            assert Circuit.from_dict(found.circuit.to_dict()).provenance.ablation["factor"] == factor
    assert cd.score(model, task, found.circuit, n_random=1).scores[0].ablation == "1 x mean (per group and position)"


def test_the_command_line_knows_it_and_its_settings(package, tmp_path, capsys):
    package({"scaled": "otherlab_kinds:Scaled"})
    assert main(["list", "ablations"]) == 0
    assert "The average, scaled. (of package 'otherlab')" in capsys.readouterr().out
    run = [*TINY_RUN, "ablation=scaled"]
    assert main([*run, "ablation.factor=0.25", f"out={tmp_path / 'run'}"]) == 0
    assert Circuit.load(tmp_path / "run" / "circuit.json").provenance.ablation["factor"] == 0.25
    assert main(["score", str(tmp_path / "run"), "ablation=zero", "scoring.n_random=1"]) == 0
    assert main([*run, "ablation.factr=1"]) == 2
    assert "unknown setting of ablation 'factr'. Did you mean factor" in capsys.readouterr().err


def test_its_settings_are_checked_and_named(package):
    package({"scaled": "otherlab_kinds:Scaled"})
    assert Ablation("scaled").to_dict() == {
        "kind": "scaled", "scope": "group", "prompts": "clean", "target": "output", "factor": 0.5,
    }  # fmt: skip
    with pytest.raises(BadSetting, match="factor=3 must be a number from 0 to 2"):
        Ablation("scaled", settings={"factor": 3})
    with pytest.raises(UnknownName, match=r"unknown ablation setting 'factr'\. Did you mean factor\?"):
        get_ablation({"kind": "scaled", "factr": 1})
    with pytest.raises(UnknownName, match=r"unknown ablation kind 'scald'\. Did you mean scaled\?"):
        get_ablation("scald")


@pytest.mark.parametrize(
    ("entry", "target", "sentence"),
    [
        (
            "mean",
            "otherlab_kinds:Scaled",
            "package 'otherlab' declares an ablation 'mean', which is the name of one of circuitd",
        ),
        ("gone", "otherlab_kinds:Nothing", "ablation 'gone' of package 'otherlab' (otherlab_kinds:Nothing) cannot be imported"),
        ("number", "otherlab_kinds:number", "is no subclass of AblationKind"),
        ("bare", "otherlab_kinds:NoDefault", "has no default for its setting 'size'"),
    ],
)
def test_what_cannot_be_used_names_the_package(package, entry, target, sentence):
    package({entry: target})
    with pytest.raises(BadSetting, match=re.escape(sentence)):
        get_ablation(entry)
