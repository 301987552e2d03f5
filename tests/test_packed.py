"""What an installed copy has: the folders that the wheel packs into the package, laid out as it does, away from the source."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = ["part=truth", "case=histogram", "algorithm=eap", "ablation=resample", "metric=logit_diff", "seed=0"]
SMALL += ["truth.n=6", "truth.n_heldout=6", "truth.distractors=0"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package as pyproject.toml packs it."""
    site = tmp_path_factory.mktemp("site")
    (site / "circuitdisc").mkdir()
    for path in (ROOT / "circuitdisc").iterdir():
        (site / "circuitdisc" / path.name).symlink_to(path)
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source, target in wheel["force-include"].items():
        (site / target).parent.mkdir(parents=True, exist_ok=True)
        (site / target).symlink_to(ROOT / source)
    return site


def test_the_benchmark_runs_from_an_installed_copy(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "circuitdisc.benchmark", *SMALL, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)["files"]
    folder = tmp_path / "runs" / "benchmark"
    assert {path.name for path in folder.iterdir() if path.is_file()} >= {"DISCOVERY.csv", "DISCOVERY.md", "DISCOVERY.html"}
    assert all((tmp_path / name).is_file() for name in files)
    assert "truth,histogram,resample,logit_diff,eap,0" in (folder / "DISCOVERY.csv").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_a_copy_without_it_says_so(tmp_path, capsys, monkeypatch):
    from circuitdisc.cli import main
    from circuitdisc.jobs import benchmark

    monkeypatch.setattr(benchmark, "__file__", str(tmp_path / "circuitdisc" / "jobs" / "benchmark.py"))
    assert main(["benchmark", "part=truth"]) == 2
    assert "there is no benchmark in" in capsys.readouterr().err
