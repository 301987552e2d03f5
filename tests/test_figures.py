"""Figures for papers: numbers are those of the page, text is text in embedded fonts, and strangers' names stay names."""

import builtins
import json
import re
import zlib
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from made_pages import HOSTILE, SMALL, USUAL, made_up_score, made_up_scores, random_circuit, written

from circuitdisc.checkpoints.transfer.ladder import ladder
from circuitdisc.checkpoints.transfer.matrix import FoundCircuit, Transfer
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.discovery.base import Discovery
from circuitdisc.errors import BadFile, BadSetting, UnknownName
from circuitdisc.figures import figure_of, plot
from circuitdisc.files import write_json
from circuitdisc.graph import ComputationGraph
from circuitdisc.heads.attention import AttentionTo
from circuitdisc.heads.effects import HeadEffects
from circuitdisc.pages.tables import controls_words, valued
from circuitdisc.pages.verdict import plain_text
from circuitdisc.scoring.curves import Curve, Point
from circuitdisc.wording import number

CIRCUIT = random_circuit(SMALL, 40)
SCORES = np.where(SMALL.edge_mask, np.random.default_rng(0).normal(size=SMALL.edge_mask.shape), np.nan)


def a_curve() -> Curve:
    area = made_up_score("cpr", "heldout", 0.81, controls=(0.1, 0.2))
    points = tuple(Point(s, 10, 1.0, f, f - 0.05, f + 0.05, (0.1, 0.3)) for s, f in ((0.01, 0.4), (0.1, 0.9), (1.0, 1.0)))
    return Curve(points, area, replace(area, name="cmd", value=0.12, low=0.1, high=0.15), replace(area, name="overshoot"), 3.4,
                 0.0, 1519, 200, "heldout", "resample", "logit_diff", 0.95, {})  # fmt: skip


def a_transfer(names: tuple[str, ...] = ("tpp/base", "tpp/lightweight")) -> Transfer:
    circuits = tuple(FoundCircuit(name, "own", (name,), CIRCUIT) for name in names)
    cells = {
        (row, column): (made_up_score("accuracy", "heldout", 0.9 if row == column else 0.25, controls=(0.1, 0.2)),)
        for row in names
        for column in names
    }
    return Transfer(names, circuits, cells, ladder(dict.fromkeys(names, CIRCUIT)), "accuracy", "resample")


def some_heads(kind: type = AttentionTo):
    values = np.random.default_rng(1).random((4, 8, 5))
    names, low = tuple(SMALL.heads), values.mean(-1)
    if kind is AttentionTo:
        return AttentionTo(names, values, low, low, "end", HOSTILE, "clean", "heldout", 0.95)
    return HeadEffects(names, values - 0.5, low, low, values[0, 0], "logit_diff", "mean", "train", 0.95)


RESULTS = {
    "graph": lambda: Discovery(CIRCUIT, SCORES),
    "heads of a circuit": lambda: CIRCUIT.as_head_circuit(),
    "scores": lambda: USUAL,
    "curve": a_curve,
    "transfer": a_transfer,
    "attention": some_heads,
    "effects": lambda: some_heads(HeadEffects),
}


def svg_words(path) -> str:
    """All that an SVG file says; it must be well-formed."""
    root = ElementTree.parse(path).getroot()
    return " ".join("".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text"))


def pdf_streams(data: bytes) -> bytes:
    return b"\n".join(
        zlib.decompress(part) for part in re.findall(rb"FlateDecode.*?stream\r?\n(.*?)\r?\nendstream", data, re.S)
    )


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_drawn_at_its_width_in_embedded_fonts_and_the_same_twice(name, tmp_path):
    result = RESULTS[name]()
    drawing = plot(result, tmp_path / "a.pdf", width=8)
    assert drawing.figure.get_figwidth() * 2.54 == pytest.approx(8)
    assert drawing.caption.endswith(".")
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert b"/Type3" not in pdf
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert plot(result, width=8).save(tmp_path / "b.pdf").read_bytes() == pdf
    drawing.save(tmp_path / "a.svg")
    assert svg_words(tmp_path / "a.svg")
    assert drawing._repr_png_()[0].startswith(b"\x89PNG")
    sizes = {float(size) for size in re.findall(r"([0-9.]+)px", (tmp_path / "a.svg").read_text())}
    assert min(sizes) >= 5  # points, at 8 cm


def test_a_graph_has_each_node_of_the_circuit_once_and_an_edge_a_line(tmp_path):
    drawing = plot(CIRCUIT, tmp_path / "a.svg")
    words = svg_words(tmp_path / "a.svg").split()
    assert all(words.count(node) == 1 for node in CIRCUIT.nodes())
    assert not [word for word in words if re.fullmatch(r"a\d+\.h\d+|m\d+", word) and word not in CIRCUIT.nodes()]
    (axes,) = drawing.figure.axes
    assert sum(len(lines.get_paths()) for lines in axes.collections) == CIRCUIT.n_edges
    assert "40 of 1,519 edges (2.6 %), " in drawing.caption


def test_of_a_large_circuit_the_largest_edges_are_drawn_and_it_says_so():
    drawing = plot(Discovery(CIRCUIT, SCORES), edges=7)
    (axes,) = drawing.figure.axes
    assert sum(len(lines.get_paths()) for lines in axes.collections) == 7
    assert "Of these the 7 with the largest |score| are drawn, 33 are left out." in drawing.caption
    for graph in (
        ComputationGraph(30, 9),
        ComputationGraph(2, 3, has_mlp=False),
        ComputationGraph(1, 1, split_embeddings=True),
    ):
        assert plot(Circuit.full(graph), edges=min(300, graph.n_edges)).figure.get_figheight() * 2.54 < 24
    assert plot(Circuit.empty(SMALL)).caption.startswith("The circuit: 0 of 1,519 edges (0 %)")


def test_numbers_are_those_of_the_page(tmp_path):
    """Whatever words the page has for a value, its interval and its controls, a figure has them, too."""
    plot(USUAL, tmp_path / "a.svg")
    words, page = svg_words(tmp_path / "a.svg"), written(tmp_path, CIRCUIT, USUAL).words
    caption = plot(USUAL).caption
    shown = [each for each in USUAL.scores if each.split == "heldout" and each.controls]
    assert [each.name for each in shown] == ["faithfulness", "kl"]
    for each in shown:
        assert f"{each.name}  {valued(each)}" in words
        assert f"{each.name} {valued(each)}, random circuits {controls_words(each)}" in caption
        assert valued(each).partition(" [")[0] in page
    found = some_heads()
    top = found.table()[0]
    assert f"the largest: {top['head']} {number(top['attention'])}." in plot(found).caption
    assert "CPR 0.810" in plot(a_curve()).caption


def test_strangers_names_are_names(tmp_path):
    names = (HOSTILE, r"$\frac{1}{0}$ \input{x} %")
    drawing = plot(a_transfer(names), tmp_path / "a.svg")
    words = svg_words(tmp_path / "a.svg")
    assert HOSTILE[-20:] in words
    assert names[1] in words
    assert "accuracy of each circuit" in drawing.caption
    plot(a_transfer(("\x00\x1b[31mred", "深い")), tmp_path / "b.svg")
    assert "\\x1b[31mred" in svg_words(tmp_path / "b.svg")


def test_what_cannot_be_drawn_gets_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(BadSetting, match="no figure of a Score"):
        plot(USUAL.scores[0])
    with pytest.raises(BadSetting, match=r"\.pdf, \.svg, \.png"):
        plot(CIRCUIT, tmp_path / "a.jpeg")
    with pytest.raises(BadSetting, match="width"):
        plot(CIRCUIT, width=0.1)
    with pytest.raises(UnknownName, match="height"):
        plot(CIRCUIT, height=3)
    with pytest.raises(BadSetting, match="no score 'klm' to draw here: kl"):
        plot(USUAL, score="klm")
    with pytest.raises(BadSetting, match="no score on 'test'"):
        plot(USUAL, split="test")
    own = builtins.__import__

    def without(name, *args, **more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return own(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadSetting, match=r'pip install "circuitdisc\[figures\]"'):
        plot(CIRCUIT)


def test_undefined_scores_are_no_points():
    with pytest.raises(BadSetting, match="no score"):
        plot(made_up_scores(made_up_score("kl", "heldout", None)))
    undefined = replace(a_curve(), points=(Point(0.1, 1, 0.0, None, None, None, ()),))
    with pytest.raises(BadSetting, match="undefined at every size"):
        plot(undefined)


# --- the command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    CIRCUIT.save(folder / "circuit.json")
    write_json(folder / "scores.json", USUAL.to_dict())
    write_json(folder / "judgement.json", {"curve": a_curve().to_dict()})
    return folder


def test_the_command_draws_what_a_folder_holds(folder, tmp_path, capsys):
    for kind, result in (("graph", CIRCUIT), ("scores", USUAL), ("curve", a_curve())):
        assert main(["figure", str(folder), "--kind", kind, "--out", str(tmp_path / "a.svg"), "--width=8"]) == 0
        assert (
            capsys.readouterr().out
            == f"{tmp_path / 'a.svg'}\n\n{plain_text(plot(result, tmp_path / 'b.svg', width=8).caption)}\n"
        )
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert main(["figure", str(folder), f"out={tmp_path / 'c.png'}", "edges=3"]) == 0
    assert "the 3 nearest to the logits are drawn" in capsys.readouterr().out


def test_transfers_and_heads_are_drawn_from_their_files(tmp_path):
    for name, result in (("transfer", a_transfer()), ("attention", some_heads()), ("effects", some_heads(HeadEffects))):
        (tmp_path / name).mkdir()
        data = result.to_dict()
        file = "transfer.json" if name == "transfer" else "result.json"
        write_json(tmp_path / name / file, data if name == "transfer" else {"tool": name, "result": data})
        assert figure_of(tmp_path / name).caption == plot(result).caption


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "which file?"),
        (["--out", "a.jpg"], ".pdf, .svg, .png"),
        (["--out", "a.pdf", "--kind", "grph"], "graph"),
        (["--out", "a.pdf", "--kind", "transfer"], "no transfer.json"),
        (["--out", "a.pdf", "--width", "wide"], "width=wide is not a number"),
        (["--out", "a.pdf", "--width", "900"], "4 to 40"),
        (["--out", "a.pdf", "--edges", "0"], "edges"),
        (["--out", "a.pdf", "--kind", "scores", "--edges", "3"], "edges"),
        (["out=a.pdf", "height=3"], "height"),
    ],
)
def test_wrong_words_get_a_sentence(folder, args, words, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["figure", str(folder), *args]) == 2
    assert words in capsys.readouterr().err
    assert not list(folder.glob("a.*"))


def test_damaged_files_get_a_sentence(folder):
    (folder / "scores.json").write_text(json.dumps(USUAL.to_dict() | {"graph_edges": "many"}))
    with pytest.raises(BadFile, match="graph_edges"):
        figure_of(folder, "scores")
    (folder / "judgement.json").write_text("{}")
    with pytest.raises(BadFile, match="has no curve"):
        figure_of(folder, "curve")
    (folder / "transfer.json").write_text('{"checkpoints": ["a"]}')
    with pytest.raises(BadFile, match=r"transfer\.json"):
        figure_of(folder, "transfer")
    (folder / "result.json").write_text('{"tool": "roles"}')
    with pytest.raises(BadFile, match="no figure of it"):
        figure_of(folder, "attention")


@pytest.mark.parametrize("mean", [[], [[]], [[None, None]]])
def test_heads_without_a_number_get_a_sentence(mean, tmp_path):
    result = {"mean": mean, "n": 3, "split": "heldout", "query": "end", "key": "subject", "prompts": "clean"}
    write_json(tmp_path / "result.json", {"tool": "attention", "result": result})
    with pytest.raises(BadFile, match="no number for any head"):
        figure_of(tmp_path, "attention", tmp_path / "figure.svg")
    assert not (tmp_path / "figure.svg").exists()
