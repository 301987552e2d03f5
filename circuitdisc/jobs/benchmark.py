"""`circuitdisc benchmark`: every discovery algorithm on every case; benchmarks/discovery, also from an installed copy."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from circuitdisc.errors import BadRun
from circuitdisc.jobs.job import Call, Job
from circuitdisc.jobs.output import Output

RESULTS, TABLE = Path("benchmarks", "results"), "runs/benchmark/DISCOVERY.csv"


def load_benchmark() -> ModuleType:
    """The module benchmarks.discovery.__main__, of a source tree or packed into an installed copy.

    Raises:
        BadRun: neither is there.
    """
    package = Path(__file__).parents[1]
    packed = package / "packed"
    home = packed if packed.is_dir() else package.parent
    if not (home / "benchmarks" / "discovery").is_dir():
        raise BadRun(f"there is no benchmark in {home}: install circuitdisc again, or run it in its source tree")
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))  # a launcher's jobs
    return import_module("benchmarks.discovery.__main__")


def placed(args: Sequence[str]) -> list[str]:
    """The words, with a table in runs/ where none is named and this is no source tree."""
    named = any(arg.startswith("out=") for arg in args) or RESULTS.is_dir()
    return [*args] if named else [*args, f"out={TABLE}"]


def _work(call: Call) -> str:
    files = load_benchmark().benchmark(placed(call.args))
    return Output("\n".join(map(str, files)), {"files": files})


JOB = Job(
    name="benchmark",
    arguments=("[report]", "[key=value ...]"),
    summary="every discovery algorithm on every case whose circuit is known, and on shipped models",
    text="""Runs every discovery algorithm, those of other packages included, on every case. Finished cells are not run again.
Leaves a table with a line a cell, its page and figures; with `report` these are made again from the table alone.

  circuitdisc benchmark part=truth case=induction,reverse algorithm=acdc,eap_ig ablation=resample
  circuitdisc benchmark launcher=joblib hydra.launcher.n_jobs=4
  circuitdisc benchmark scores=mine.json case=multitask/base:ioi out=mine.csv
  circuitdisc benchmark preset=board real.model=FOLDER out=board.csv

part=       truth (models whose circuit is known), shipped (shipped models and tasks), real (tasks of the model in the
            folder real.model), stability (bootstrap and seeds)
case=       a compiled program; siit/NAME; tracr/NAME; model:task
ablation=   zero, mean, resample
metric=     logit_diff, kl, accuracy, ...
algorithm=  a name of `circuitdisc list algorithms`; all
seed=       0, 1, ...
out=        the table, FILE.csv""",
    own_words=True,
    work=_work,
)
