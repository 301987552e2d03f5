"""Circuits and scores in other programs' formats: what is read back is what was written, whatever strangers call things."""

import csv
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import networkx as nx
import numpy as np
import pytest
from made_pages import HOSTILE, SMALL, USUAL, random_circuit

from circuitdisc.circuit import Provenance
from circuitdisc.cli import main
from circuitdisc.errors import BadSetting
from circuitdisc.exchange.graphs import write_graph
from circuitdisc.exchange.tables import edge_rows, head_rows, latex, write_table
from circuitdisc.files import write_json
from circuitdisc.pages.tables import valued

NASTY = HOSTILE + '\x00\x1b]0;x\n\\"; } \\N'
CIRCUIT = replace(
    random_circuit(SMALL, 60),
    provenance=Provenance(model=NASTY, task="=1+1", algorithm="eap", metric="logit_diff"),
    groups={NASTY: ("a0.h0", "a1.h1", "a3.h1"), "second": ("a3.h1",)},
)
SCORES = np.where(SMALL.edge_mask, np.random.default_rng(0).normal(size=SMALL.edge_mask.shape), np.nan)
TRUTH = {name: SCORES[SMALL.parse_edge(name)] for name in CIRCUIT.edge_names()}


def read_dot(text: str) -> tuple[str, dict[str, dict[str, str]], list[tuple[str, str, dict[str, str]]]]:
    """Name, nodes and edges of a digraph, token by token as Graphviz's grammar has them; anything else is an error."""
    token = re.compile(r'\s*("(?:[^"\\]|\\.)*"|->|[A-Za-z_]\w*|[{}\[\];,=])', re.S)
    words, at = [], 0
    while text[at:].strip():
        match = token.match(text, at)
        assert match, text[at : at + 40]
        words.append(match[1])
        at = match.end()

    def name(word: str) -> str:
        return re.sub(r"\\(.)", r"\1", word[1:-1]) if word[0] == '"' else word

    def attributes() -> dict[str, str]:
        found = {}
        if words[0] == "[":
            words.pop(0)
            while words[0] != "]":
                key, equals, value = (words.pop(0) for _ in range(3))
                assert equals == "="
                found[name(key)] = name(value)
                if words[0] == ",":
                    words.pop(0)
            words.pop(0)
        return found

    assert words.pop(0) == "digraph"
    title = name(words.pop(0))
    assert words.pop(0) == "{"
    nodes, edges = {}, []
    while words[0] != "}":
        first = words.pop(0)
        if first == "{":  # a rank
            while words.pop(0) != "}":
                pass
        elif words[0] == "=":
            del words[:2]
            assert words.pop(0) == ";"
        elif words[0] == "->":
            words.pop(0)
            edges.append((name(first), name(words.pop(0)), attributes()))
            assert words.pop(0) == ";"
        else:
            nodes[name(first)] = attributes()
            assert words.pop(0) == ";"
    return title, nodes, edges


@pytest.mark.parametrize("ending", ["graphml", "gexf"])
def test_networkx_reads_the_same_edges_and_weights(ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    write_graph(path, CIRCUIT, SCORES)
    graph = nx.read_gexf(path) if ending == "gexf" else nx.read_graphml(path, force_multigraph=True)
    edges = [(sender, receiver, data) for sender, receiver, data in graph.edges(data=True)]
    assert {data["name"]: data["score"] for *_, data in edges} == TRUTH
    assert len(edges) == len(TRUTH)
    assert all(data["weight"] == abs(data["score"]) for *_, data in edges)
    for sender, receiver, data in edges:
        edge = SMALL.edge(*SMALL.parse_edge(data["name"]))
        assert (sender, receiver, data["input"]) == (edge.sender.name, edge.receiver.node.name, edge.receiver.kind)
    assert list(graph.nodes) == CIRCUIT.nodes()
    assert graph.nodes["a3.h1"]["group"].endswith("\\N, second")
    assert HOSTILE in graph.nodes["a3.h1"]["group"]
    ids = [each.get("id") for each in ElementTree.parse(path).iter() if each.tag.endswith("}edge")]
    assert len(set(ids)) == len(TRUTH)  # a reader may take edges of one id for one


def test_dot_says_the_same(tmp_path):
    write_graph(tmp_path / "a.dot", CIRCUIT, SCORES)
    title, nodes, edges = read_dot((tmp_path / "a.dot").read_text())
    assert title.startswith(HOSTILE)
    assert title.endswith('\\"; } \\N, =1+1')
    assert {data["id"]: float(data["score"]) for *_, data in edges} == TRUTH
    assert all(float(data["weight"]) == abs(float(data["score"])) for *_, data in edges)
    assert {data["id"].partition("->")[0] == sender for sender, _, data in edges} == {True}
    assert [name for name in nodes if name not in ("rankdir", "node")] == CIRCUIT.nodes()


def test_a_circuit_without_scores_has_no_weights(tmp_path):
    write_graph(tmp_path / "a.gv", CIRCUIT)
    assert not [data for *_, data in read_dot((tmp_path / "a.gv").read_text())[2] if "weight" in data]
    write_graph(tmp_path / "a.graphml", CIRCUIT)
    assert not [data for *_, data in nx.read_graphml(tmp_path / "a.graphml").edges(data=True) if "score" in data]
    missing = SCORES.copy()
    missing[CIRCUIT.mask] = np.nan
    with pytest.raises(BadSetting, match="finite"):
        write_graph(tmp_path / "b.dot", CIRCUIT, missing)
    with pytest.raises(BadSetting, match=r"\.gexf"):
        write_graph(tmp_path / "b.net", CIRCUIT)


def test_csv_has_all_digits_and_no_formulas(tmp_path):
    rows = edge_rows(CIRCUIT, SCORES)
    assert [abs(row["score"]) for row in rows] == sorted((abs(score) for score in TRUTH.values()), reverse=True)
    write_table(tmp_path / "a.csv", rows)
    with open(tmp_path / "a.csv", newline="") as file:
        assert {row["edge"]: float(row["score"]) for row in csv.DictReader(file)} == TRUTH
    write_table(tmp_path / "b.csv", [{"model": "=1+1", "note": 'a "b", c', "n": -1, "none": None}])
    with open(tmp_path / "b.csv", newline="") as file:
        assert list(csv.reader(file)) == [["model", "note", "n", "none"], ["'=1+1", 'a "b", c', "-1", ""]]


def test_heads_are_counted():
    for row in head_rows(CIRCUIT):
        edges = [edge for edge in CIRCUIT.edges() if edge.receiver.node.name == row["head"]]
        assert [row[f"into {kind}"] for kind in "qkv"] == [sum(e.receiver.kind == kind for e in edges) for kind in "qkv"]
        assert row["out"] == sum(edge.sender.name == row["head"] for edge in CIRCUIT.edges()) > 0
    assert [row["head"] for row in head_rows(CIRCUIT)] == CIRCUIT.heads()


def unescaped(text: str) -> str:
    """What LaTeX sets of a text; an escape that it does not know, or a bare special character, is an error."""
    known = {
        r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<",
        r"\textgreater{}": ">", r"\textbar{}": "|", r"\textquotedbl{}": '"', r"\ensuremath{-}": "−", "{-}": "-", "~": "\u00a0",
        **{f"\\{letter}": letter for letter in "{}$&#%_"},
    }  # fmt: skip
    pattern = re.compile("|".join(re.escape(name) for name in sorted(known, key=len, reverse=True)))
    assert not re.search(r"[\\{}$&#%_^<>|\"]", pattern.sub("", text))
    return pattern.sub(lambda match: known[match[0]], text)


def test_latex_sets_what_is_there(tmp_path):
    for text in ("input->a3.h5<q>", r"\input{x} 100 % & $\alpha$ #1 _a^b~c|d \\ {}", "−3.2 -- 'a'", '"<b>"'):
        assert unescaped(latex(text)) == text
    assert unescaped(latex(NASTY)).startswith(HOSTILE)
    rows = edge_rows(CIRCUIT, SCORES)[:5]
    write_table(tmp_path / "a.tex", rows, f"{NASTY}\n\\evil")
    lines = (tmp_path / "a.tex").read_text().splitlines()
    assert lines[:2] == [r"% needs \usepackage{booktabs}", "% " + " ".join(f"{NASTY} \\evil".split())]
    assert lines[2] == r"\begin{tabular}{llllr}"
    body = [[unescaped(cell) for cell in line.removesuffix(r" \\").split(" & ")] for line in lines[6:-2]]
    assert [cells[0] for cells in body] == [row["edge"] for row in rows]
    assert [float(cells[-1].replace("−", "-")) for cells in body] == [float(f"{row['score']:.3g}") for row in rows]


# --- the command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "eap"
    quick = ["task.n=20", "task.n_heldout=20", "scoring.n_random=2", "progress=false"]
    search = ["algorithm=eap", "algorithm.edges=40", "ablation=mean"]
    assert main(["discover", "model=tpp/lightweight", "task=tpp", *search, *quick, f"out={folder}"]) == 0
    return folder


def test_a_run_is_written_in_every_format(run, tmp_path, capsys):
    edges = json.loads((run / "circuit.json").read_text())["edges"]
    for name in ("a.dot", "a.graphml", "a.gexf", "a.csv", "a.tex", "a.json"):
        capsys.readouterr()
        assert main(["export", str(run), str(tmp_path / name)]) == 0
        assert capsys.readouterr().out == f"{tmp_path / name}\n"
    assert {data["id"] for *_, data in read_dot((tmp_path / "a.dot").read_text())[2]} == set(edges)
    graph = nx.read_graphml(tmp_path / "a.graphml", force_multigraph=True)
    assert {data["name"] for *_, data in graph.edges(data=True)} == set(edges)
    assert len((tmp_path / "a.csv").read_text().splitlines()) == len(edges) + 1
    assert main(["export", str(run), str(tmp_path / "b.tex"), "table=edges", "rows=3"]) == 0
    assert f"the first 3 of {len(edges)} rows" in (tmp_path / "b.tex").read_text()
    assert main(["export", str(run), str(tmp_path / "heads.csv"), "table=heads"]) == 0
    assert (tmp_path / "heads.csv").read_text().startswith("head,layer,into q,into k,into v,out,group\n")


def test_tables_of_scores_are_those_of_the_page(run, tmp_path):
    write_json(run / "scores.json", json.loads((run / "scores.json").read_text()) | {"scores": USUAL.to_dict()["scores"]})
    assert main(["export", str(run), str(tmp_path / "a.csv"), "table=scores"]) == 0
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows] == ["0.97", "0.01278", "", "0.985", "0.01134"]
    assert main(["export", str(run), str(tmp_path / "a.tex"), "table=scores"]) == 0
    assert latex(valued(USUAL.get("faithfulness"))) in (tmp_path / "a.tex").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "which file?"),
        (["a.xyz"], ".graphml"),
        (["a.csv", "b.csv"], "which file?"),
        (["a.csv", "table=nodes"], "table 'nodes'"),
        (["a.csv", "rows=0"], "rows"),
        (["a.csv", "rows=few"], "rows=few is not a whole number"),
        (["a.gexf", "prune=true"], "setting of export to .gexf 'prune'"),
        (["a.json", "table=edges"], "table"),
    ],
)
def test_wrong_words_get_a_sentence(run, args, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), *args]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
