"""scripts/real_circuits.py on a shipped model: its figures are those of the run's files, and nothing is run twice."""

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "real_circuits.py"))


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- circuits, base -->\nold\n<!-- end of circuits, base -->\nbelow\n", "utf-8")

    def call(only: str) -> tuple[list[str], Path, str]:
        words = ["multitask/base", "--runs", str(tmp_path), "--page", str(page), "--only", only]
        monkeypatch.setattr(sys, "argv", ["real_circuits.py", *words])
        SCRIPT["main"]()
        return page.read_text("utf-8").splitlines(), tmp_path / "base", capsys.readouterr().out

    return call


def test_a_row_has_the_figures_of_the_run(called) -> None:
    lines, runs, said = called("^(ioi|gendered_pronoun)_eap_ig$")
    assert "ioi_eap_ig: done" in said
    assert "gendered_pronoun_eap_ig: refused" in said
    scores = json.loads((runs / "ioi_eap_ig" / "scores.json").read_text())
    (wanted,) = [s for s in scores["scores"] if s["name"] == "faithfulness" and s["split"] == "heldout"]
    (row,) = [line.split(" | ") for line in lines if line.startswith("| `ioi` | `eap_ig`")]
    value, ends = row[3].split(" [")
    assert float(value) == pytest.approx(wanted["value"], abs=0.006)
    assert [float(end) for end in ends.rstrip("]").split(", ")] == pytest.approx([wanted["low"], wanted["high"]], abs=0.006)
    assert f"{scores['circuit_heads']} heads" in row[2]
    assert (lines[0], lines[-1]) == ("above", "below")
    assert "old" not in lines
    assert any(line.startswith("| `gendered_pronoun` | `eap_ig` | refused: ") for line in lines)
    assert "ioi" not in called("^ioi_eap_ig$")[2]


def test_every_command_has_a_name_of_its_own() -> None:
    names = [call.name for call in SCRIPT["calls"]()]
    assert len(set(names)) == len(names)
    assert all("MODEL" in call.words or "RUNS" in call.words for call in SCRIPT["calls"]())
