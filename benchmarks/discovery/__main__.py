"""python -m benchmarks.discovery [key=value ...] runs every discovery algorithm on every case.

    python -m benchmarks.discovery                                     all parts; goes on where it was stopped
    python -m benchmarks.discovery part=truth case=induction,reverse algorithm=acdc,eap_ig ablation=resample
    python -m benchmarks.discovery launcher=joblib hydra.launcher.n_jobs=4            several processes
    python -m benchmarks.discovery launcher=submitit cells_per_job=20                 jobs of a Slurm cluster; `circuitdisc
                                                       status FILE.cells` says what is waiting, running and done
    python -m benchmarks.discovery scores=mine.json case=multitask/base:ioi           a file of edge scores as an algorithm
    python -m benchmarks.discovery report                              page and figures again, from the table alone
    python -m benchmarks.discovery preset=board real.model=FOLDER      the overview, results/BOARD.md: variants of algorithms in
                                                       rows of their own, and tasks of a Hugging Face model of yours

axes, each one value or several with commas; those not given have the values of each part in conf/config.yaml:
    part=       truth (models whose circuit is known), shipped (shipped models and tasks), real (tasks of the model that
                real.model or CIRCUITDISC_REAL_MODEL names), stability (bootstrap and seeds)
    case=       induction, ...: a compiled program; siit/NAME; tracr/NAME; model:task
    ablation=   zero, mean, resample
    metric=     logit_diff, kl, accuracy, ...
    algorithm=  a name of `circuitdisc list algorithms`, those of other packages included; all
    seed=       0, 1, ...

other settings of conf/config.yaml and conf/settings.yaml:
    out=FILE.csv   the table (benchmarks/results/DISCOVERY.csv); rows appear as cells finish, finished cells are not run again
                   (each is kept beside it, in FILE.cells/)
    tracr=FOLDER   models that tracr has compiled, one folder a program
    truth.n=32, shipped.n_heldout=100, settings.truth.acdc.threshold=0.01, ..."""

import sys
from collections.abc import Sequence
from pathlib import Path

from circuitdisc.errors import BadSetting, CircuitdiscError

BAD_INPUT, INTERRUPTED = 2, 130


def main(args: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    if {"-h", "--help"} & set(args):
        print(__doc__)
        return 0
    try:
        print(*benchmark(args), sep="\n")
        return 0
    except CircuitdiscError as error:
        print(f"benchmarks.discovery: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it was", file=sys.stderr)
        return INTERRUPTED


def benchmark(args: Sequence[str]) -> list[Path]:
    """Run what is missing in the table, then write its page and figures; gives their paths."""
    from benchmarks.discovery import table
    from benchmarks.discovery.board import write_board
    from benchmarks.discovery.cells import cells, settings_text
    from benchmarks.discovery.kept import identity_of_cell
    from benchmarks.discovery.launch import compose, launch
    from benchmarks.discovery.page import write_page
    from circuitdisc.checks import check_choice
    from circuitdisc.jobs.spread import check_launch, launch_words

    launcher, rest = launch_words([arg for arg in args if arg != "report"])
    check_launch(launcher)
    axes, overrides = split(rest)
    config = compose(overrides)
    path, writers = Path(config["out"]), {"discovery": write_page, "board": write_board}
    check_choice("page", config["page"], tuple(writers))
    if "report" not in args:
        asked = [(cell, settings_text(cell, config)) for cell in cells(config, axes)]
        if not asked:
            raise BadSetting("no cell fits these settings: a part has cases of its own, see --help")
        table.start(path)
        missing = table.to_do(path, asked, lambda cell: identity_of_cell(cell, config).digest)
        print(f"{len(asked)} cells, {len(asked) - len(missing)} of them in {path} already", flush=True)
        if missing:
            launch(missing, overrides, path, launcher)
    return list(writers[config["page"]](path))


def split(args: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """What was chosen on the axes, and the other settings.

    Raises:
        BadSetting: Hydra cannot make sense of an argument, or an axis has no value.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from benchmarks.discovery.cells import AXES

    axes: dict[str, list[str]] = {}
    others: list[str] = []
    try:
        for override in OverridesParser.create().parse_overrides(list(args)):
            if override.key_or_group not in AXES:
                others.append(str(override.input_line))
            else:
                values = override.sweep_iterator() if override.is_sweep_override() else [override.value()]
                axes[override.key_or_group] = [str(getattr(value, "text", value)) for value in values]
    except HydraException as error:
        raise BadSetting(f"these settings cannot be read: {' '.join(str(error).split())}") from error
    return axes, others


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
