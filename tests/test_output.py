"""What commands print: the same in words and, with --json, as data; tables and sentences that fit a terminal."""

import json
import sys

import numpy as np
import pytest

from circuitdisc import terminal
from circuitdisc.cli import main
from circuitdisc.jobs.discover import JOB as DISCOVER
from circuitdisc.jobs.discover import _would_run
from circuitdisc.jobs.job import Call
from circuitdisc.jobs.registry import REGISTRY
from circuitdisc.pages.tables import text_table
from circuitdisc.terminal import fitted, folded_table

QUICK = ["task.n=20", "task.n_heldout=20", "progress=false"]
MODEL = ["model=tpp/lightweight", "task=tpp", *QUICK]


def run(capsys, *args):
    """Exit status, stdout and stderr of one command."""
    capsys.readouterr()
    status = main(list(args))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def data_of(capsys, *args):
    """What a command prints with --json; nothing but that may stand on stdout."""
    status, out, err = run(capsys, *args, "--json")
    assert status == 0, err
    data = json.loads(out)
    assert data["command"] == next(name for name in (" ".join(args[:2]), args[0]) if name in REGISTRY.names)
    return data


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs."""
    folder = tmp_path_factory.mktemp("runs")
    for name, threshold in (("a", 0.5), ("b", 0.4)):
        own = [f"algorithm.threshold={threshold}", "scoring.n_random=2", f"out={folder / name}"]
        assert main(["discover", *MODEL, *own]) == 0
    return folder


def test_a_search_as_data_is_what_its_files_hold(runs, tmp_path, capsys):
    own = ["algorithm.threshold=0.5", "scoring.n_random=2", f"out={tmp_path / 'run'}"]
    data = data_of(capsys, "discover", *MODEL, *own)
    assert data["folder"] == str(tmp_path / "run")
    assert data["page"] == str(tmp_path / "run" / "report.html")
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert data["result"].items() <= scores.items()
    _, out, _ = run(capsys, "score", str(tmp_path / "run"))
    assert all(f"  {line}" in out for line in data["verdict"])
    assert all(f"  ! {line}" in out for line in data["caveats"])


@pytest.mark.parametrize(
    "args",
    [
        ["list", "metrics"],
        ["list", "tasks"],
        ["score", "{a}"],
        ["score", "{a}", "ablation=zero", "scoring.n_random=1"],
        ["report", "{a}"],
        ["resume", "{a}"],
        ["export", "{a}", "{new}.json"],
        ["stability", "{a}", "n_samples=2", "progress=false"],
        ["rivals", "{a}", "n=1", "n_random=1", "progress=false"],
        ["specificity", "{a}", "n_random=1", "progress=false"],
        ["certify", "{a}", "n=10", "progress=false"],
        ["compare", "{a}", "{b}", "interventions=none", "n_random=2", "out={new}"],
        ["heads", "effects", *MODEL, "out={new}"],
        ["lens", *MODEL, "out={new}"],
        ["tasks", "check", "model=tpp/lightweight", "tasks=[tpp]", "n=10"],
        ["cmap", "base=tpp/base", "tuned=tpp/lightweight", "task=tpp", "plan=true"],
        ["drift", "checkpoints=[tpp/base,tpp/lightweight]", "task=tpp", "key=c1", *QUICK, "out={new}"],
        ["baselines", "checkpoints=[tpp/base,tpp/lightweight]", "task=tpp", "others=[]", *QUICK, "out={new}"],
    ],
    ids=lambda args: " ".join(args[:2]),
)
def test_commands_as_data(args, runs, tmp_path, capsys):
    names = {"a": runs / "a", "b": runs / "b", "new": tmp_path / "new"}
    data = data_of(capsys, *(arg.format(**names) if "{" in arg else arg for arg in args))
    assert len(data) > 1
    assert "text" not in data, "it has data of its own"
    for key in ("verdict", "caveats"):
        assert all(isinstance(line, str) for line in data.get(key, []))


def test_what_else_prints_is_no_part_of_the_data(capsys, monkeypatch):
    monkeypatch.setattr("circuitdisc.jobs.pipeline.write_page", lambda folder: print("of a library") or folder / "page")
    status, out, err = run(capsys, "report", "x", "--json")
    assert (status, json.loads(out)) == (0, {"command": "report", "folder": "x", "page": "x/page"})
    assert err == "of a library\n"


def test_bad_input_leaves_stdout_empty(capsys):
    status, out, err = run(capsys, "report", "nowhere", "--json")
    assert (status, out) == (2, "")
    assert "nowhere" in err
    assert run(capsys, "discover", "--jsn")[0] == 2


def test_every_command_has_help_with_these_options(capsys):
    for name in REGISTRY.own:
        status, out, _ = run(capsys, *name.split(), "--help")
        assert (status, "--json" in out, "--quiet" in out) == (0, True, True), name


def test_quiet_is_quiet(runs, capsys):
    for args in (["report", str(runs / "a")], ["resume", str(runs / "a")], ["score", str(runs / "a")]):
        assert run(capsys, *args, "--quiet")[2] == ""


def test_a_bare_discover_says_what_it_would_run_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("circuitdisc.jobs.discover.MEASURED", 0)
    monkeypatch.setattr("circuitdisc.jobs.pipeline.start", lambda *_: pytest.fail("it was started"))
    status, out, _ = run(capsys, "discover", "--quiet")
    assert status == 0
    assert "  circuitdisc discover model=tpp/lightweight task=tpp algorithm=acdc ablation=mean\n" in out
    assert "candidates" in out
    assert "activations" in out
    data = data_of(capsys, "discover")
    assert data["started"] is False
    assert data["would_run"] in out
    assert list(tmp_path.iterdir()) == []


def test_a_bare_discover_of_several_processes_is_the_first_ones(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert _would_run(Call(DISCOVER, ())) == ""


# --- the terminal's width ---------------------------------------------------------------------------------------------------


def words_of(generator, at_most=12):
    """A text of random words."""
    words = ["abcdefghi"[: generator.integers(1, 10)] for _ in range(generator.integers(0, at_most + 1))]
    return " ".join(f"{word}{index}" for index, word in enumerate(words))


@pytest.mark.parametrize("seed", range(40))
def test_tables_and_sentences_fit_the_terminal_and_keep_their_words(seed):
    generator = np.random.default_rng(seed)
    n = generator.integers(1, 10)
    rows = [[words_of(generator) for _ in range(n)] for _ in range(4)]
    table = folded_table(rows[0], rows[1:], "l" * n, 80)
    assert all(len(line) <= 80 for line in table.splitlines())
    shown = table.split()
    assert all(shown.count(word) >= 1 for row in rows for cell in row for word in cell.split())
    line = " " * generator.integers(0, 7) + words_of(generator, 40)
    text = fitted(line, 30)
    assert text.split() == line.split()
    assert all(len(part) <= 30 for part in text.splitlines())


def test_what_is_left_of_a_line_stands_below_its_last_column():
    assert (
        fitted("  score RUN     again, with other settings", 30)
        == "  score RUN     again, with\n" + " " * 16 + "other settings"
    )


def test_a_pipe_gets_tables_whole_and_a_terminal_folded(monkeypatch):
    rows = [["a0.h1", "word " * 30, 3.0]]
    assert len(max(text_table(("head", "what it does", "value"), rows).splitlines(), key=len)) > 150
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    assert terminal.width() == 80
    folded = text_table(("head", "what it does", "value"), rows, "llr")
    assert all(len(line) <= 80 for line in folded.splitlines())
    assert folded.count("word") == 30


def test_what_all_rows_have_in_common_stands_below_a_table_that_does_not_fit():
    rows = [[f"score{at}", "a" * 30, "logit_diff" * 2, f"value{at}" * 3] for at in range(3)]
    table = folded_table(["score", "of", "metric", "value"], rows, "llll", 60)
    assert " ".join(table.split()).endswith(f"of: {'a' * 30}; metric: {'logit_diff' * 2}")
    assert table.splitlines()[0].split() == ["score", "value"]
    assert folded_table(["score", "of"], [["a" * 30, "b" * 40]], "ll", 60).splitlines()[1].startswith("  of")


def test_long_names_are_broken_at_their_parts_and_numbers_stay_with_their_percent():
    rows = [["runs/subject_verb_agreement_path_patching", "a" * 30, f"{at}.5 % [{at}.25 %, 8 %]"] for at in range(3)]
    rows[0][1] = "b"
    lines = folded_table(["run", "model", "value"], rows, "lll", 62).splitlines()
    assert max(map(len, lines)) <= 62
    names = "".join(line.split("  ")[0].strip() for line in lines[2:])
    assert names == rows[0][0] * 3
    assert not any(line.split()[:1] == ["%"] for line in lines)
    assert all(f"{at}.5 %" in "".join(lines) for at in range(3))


def test_paragraphs_of_a_help_are_written_anew(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "width", lambda: 80)
    assert run(capsys, "transfer", "--help")[0] == 0
    main(["transfer", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == [
        "Finds the circuit of every checkpoint (or takes circuits that are given) and",
        "  scores each on each of them, on search and on held-out examples, with",
    ]
    assert all(len(line) <= 80 or max(map(len, line.split())) > 30 for line in lines), "but for a command's long words"
