"""`circuitdisc runs`: a line for whatever lies below a folder, as its files say, on a page where all of it is text."""

import json
import re
import time
from urllib.parse import unquote

import pytest

from circuitdisc.cli import main
from circuitdisc.jobs.collect import rows_of
from circuitdisc.jobs.runs import all_runs
from circuitdisc.runs import Cells

EVIL = "<script>alert(1)</script>"


def write(folder, name, data):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(data if isinstance(data, str) else json.dumps(data))


def search(folder, name, *, value=0.84, edges=36, day=1, algorithm="acdc", task="tpp", path=None, done=True, jaccard=None):
    """What a search leaves."""
    place = folder / name
    sections = {"model": {"name": "gpt2"}, "task": {"name": task, "n": 5}, "algorithm": {"name": algorithm}}
    sections["task"] |= {"path": path} if path else {}
    started = f"2026-01-{day:02}T10:00:00+00:00"
    write(place, "config.json", {**sections, "ablation": {"kind": "mean"}, "seed": 0, "started": started})
    if done:
        score = {"name": "faithfulness", "split": "heldout", "value": value, "low": value - 0.04, "high": value + 0.05}
        scores = [{**score, "n": 100, "metric": "logit_diff", "confidence": 0.95, "controls": [0.0, 0.1, 0.3]}]
        write(place, "scores.json", {"circuit_edges": edges, "graph_edges": 1000, "scores": scores})
        write(place, "cost.json", {"seconds": 75.5})
        write(place, "report.html", "a page")
    if jaccard is not None:
        write(place, "stability.json", {"table": [{"of": "heads", "Jaccard": 1.0}, {"of": "edges", "Jaccard": jaccard}]})


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "runs"
    search(made, "first", day=1, jaccard=0.63)
    search(made, "second", day=3, value=-0.02, edges=107, algorithm="eap_ig", task="file", path="/data/pairs.jsonl")
    search(made, f"sub #1/{EVIL.replace('/', '')}", day=2, task=EVIL)
    search(made, "begun", day=4, done=False)
    record = {"command": "circuitdisc heads roles model=gpt2 task=ioi", "model": {"name": "gpt2"}, "task": {"name": "ioi"}}
    write(made / "heads", "result.json", {**record, "started": "2026-01-05T10:00:00+00:00"})
    write(made / "heads", "report.html", "a page")
    write(made / "damaged", "config.json", "{not json")
    write(made / "nothing", "notes.txt", "of a person")
    return made


def test_every_run_has_a_line_the_latest_first(folder):
    rows = all_runs(folder)
    assert [row["folder"] for row in rows] == ["heads", "begun", "second", "sub #1/<script>alert(1)<script>", "first"]
    first = rows[-1]
    assert (first["stability"], first["faithfulness"], first["edges"], first["random"]) == (0.63, 0.84, 36, 0.1)
    assert rows[0]["command"] == "heads roles"
    assert (rows[1]["status"], rows[1]["page"]) == ("begun", None)


def test_a_run_that_has_handed_out_units_keeps_its_line(folder):
    Cells(folder / "first").enter("circuitdisc stability first", {"sample 0": []})
    assert "first" in [row["folder"] for row in rows_of(folder)]
    assert "first" in [row["folder"] for row in all_runs(folder)]


def test_the_terminal_and_the_page_say_the_same(folder, capsys):
    assert main(["runs", str(folder)]) == 0
    out = capsys.readouterr().out
    page = (folder / "index.html").read_text()
    for text in (out, page.replace("−", "-")):
        assert "84 %" in text
        assert "[80 %, 89 %]" in text
        assert "36 (3.6 %)" in text
        assert "pairs.jsonl" in text
        assert "/data" not in text
        assert "-2 %" in text
        assert "2026-01-05 10:00" in text
    assert f"5 runs in {folder}" in out
    assert main(["runs", str(folder), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["runs"] == json.loads(json.dumps(all_runs(folder)))


def test_all_of_it_is_text_and_links_lead_to_pages(folder):
    assert main(["runs", str(folder), "--quiet"]) == 0
    page = (folder / "index.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    links = re.findall(r'<th scope="row"[^>]*><a href="([^"]*)"', page)
    assert len(links) == 4
    assert all((folder / unquote(link)).is_file() for link in links)
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)


def deep(n):
    return "[" * n + "]" * n


ODD = ["true", "5", '"words"', "[1]", '{"a": 1}', "null", "NaN", "Infinity", "1e999", "1" * 400, deep(900)]
ODD += ['"\\u001b[31mred"', '"\\u0000"']
"""What may stand in a stranger's file in place of anything."""


@pytest.mark.parametrize("odd", ODD)
def test_a_strangers_records_are_rows(odd, tmp_path, capsys):
    made = tmp_path / "runs"
    keys = ("value", "low", "high", "n", "metric", "confidence", "controls")
    score = ", ".join(f'"{key}": {odd}' for key in keys)
    scores = ", ".join(f'{{"name": "{name}", "split": "heldout", {score}}}' for name in ("faithfulness", "kl"))
    scores = f"[{scores}, {odd}]"
    settings = ", ".join(f'"{key}": {odd}' for key in ("model", "task", "ablation", "seed", "started", "command", "other"))
    named = f'"model": {{"name": {odd}}}, "task": {{"path": {odd}}}, "ablation": {{"kind": {odd}}}, "started": {odd}'
    sizes = f'"circuit_edges": {odd}, "graph_edges": {odd}, "circuit_heads": {odd}'
    costs = ", ".join(f'"{key}": {odd}' for key in ("seconds", "backward_runs", "model_runs", "circuit_runs", "candidates"))
    for name, config in (("a", f'{{"algorithm": {odd}, {settings}}}'), ("b", f'{{"algorithm": {{"name": {odd}}}, {named}}}')):
        write(made / name, "config.json", config)
        write(made / name, "scores.json", f'{{{sizes}, "scores": {odd if name == "a" else scores}}}')
        write(made / name, "cost.json", f"{{{costs}}}")
        write(made / name, "stability.json", f'{{"table": [{{"of": "edges", "Jaccard": {odd}}}, {odd}]}}')
    for name, command in (("c", odd), ("d", '"circuitdisc drift x"')):
        write(made / name, "result.json", f'{{"command": {command}, "checkpoints": {odd}, {named}}}')
        write(made / name, "report.html", "a page")
    search(made, "mine")
    for command in ("runs", "collect"):
        assert main([command, str(made)]) == 0
        out = capsys.readouterr().out
        assert "mine" in out
        assert "\x1b" not in out
        assert main([command, str(made), "--json"]) == 0
        json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


@pytest.mark.parametrize("odd", ODD)
def test_a_strangers_log_of_a_cell_is_a_row(odd, tmp_path, capsys):
    cells = Cells(tmp_path)
    cells.enter("x", {"0": ["discover", "seed=0"], "1": ["no command", odd]})
    for name, last in (("0", "done"), ("1", "begun")):
        write(cells.place(name), ".writer.json", "{}")
        keys = ", ".join(f'"{key}": {odd}' for key in ("pid", "host", "at", "job", "seconds", "error", "stamp"))
        lines = [f'{{"event": "{event}", {keys}}}' for event in ("begun", last)]
        write(cells.place(name), "log.jsonl", "\n".join([*lines, f'{{"event": {odd}}}', odd]))
    assert cells.states(frozenset(["1"]))[0].status == "done"
    for command in ("status", "runs", "collect"):
        assert main([command, str(tmp_path)]) == 0
        assert "Traceback" not in (out := capsys.readouterr().out)
        assert "\x1b" not in out


def test_a_strangers_command_is_read_in_linear_time(tmp_path):
    write(tmp_path / "a", "result.json", {"command": "circuitdisc " + "a" * 100_000 + "!"})
    write(tmp_path / "a", "report.html", "a page")
    write(tmp_path / "b", "result.json", {"command": "circuitdisc " + "a " * 50 + "!"})
    write(tmp_path / "b", "report.html", "a page")
    began = time.process_time()
    assert {row["command"][:13] for row in all_runs(tmp_path)} == {"a" * 13, "a a a a a a a"}
    assert time.process_time() - began < 1


def test_a_transfer_has_a_line(tmp_path):
    write(tmp_path / "t", "transfer.json", {"format": "circuitdisc.transfer", "checkpoints": ["a", "b"]})
    write(tmp_path / "t", "transfer.html", "a page")
    (row,) = all_runs(tmp_path)
    assert (row["command"], row["model"], row["page"]) == ("transfer", "a, b", "transfer.html")


def test_where_nothing_is(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 2
    assert "there is no folder runs" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    assert main(["runs"]) == 2
    assert "there is no run below runs" in capsys.readouterr().err
    assert main(["runs", "a", "b"]) == 2
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slow
def test_a_browser_sorts_and_filters(folder):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright and Debian's chromium")
    assert main(["runs", str(folder), "--quiet"]) == 0
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        errors, requests = [], []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((folder / "index.html").as_uri())

        def column(name):
            return page.eval_on_selector_all(
                f'#runs tbody tr:not([hidden]) [data-name="{name}"]', "cells => cells.map(cell => cell.textContent.trim())"
            )

        page.click('#runs thead [data-name="faithfulness"] button')
        assert column("faithfulness") == ["−2 %", "84 %", "84 %", "", ""]
        page.click('#runs thead [data-name="faithfulness"] button')
        assert column("faithfulness") == ["84 %", "84 %", "−2 %", "", ""]
        page.click('#runs thead [data-name="edges"] button')
        assert column("edges") == ["36 (3.6 %)", "36 (3.6 %)", "107 (10.7 %)", "", ""]
        page.select_option('[data-filter="algorithm"]', "eap_ig")
        assert column("run") == ["second"]
        assert page.inner_text("#count") == "1 of 5 runs"
        page.select_option('[data-filter="algorithm"]', "")
        page.fill('[data-filter="any"]', "GPT2 roles")
        assert column("run") == ["heads"]
        browser.close()
    assert errors == []
    assert all(url.startswith("file:") for url in requests)
