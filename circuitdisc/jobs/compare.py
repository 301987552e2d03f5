"""The command line of `circuitdisc compare`: its settings, and what it prints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadRun, BadSetting, UnknownName
from circuitdisc.jobs.settings import asks_for_help

HELP = """circuitdisc compare RUN_A RUN_B [key=value ...]

Two runs of one architecture: the heads, nodes and edges that their circuits share, each circuit on the other's task, and what
changing heads does to both tasks. Writes compare.json and compare.html.

settings, with their defaults:
    interventions=heads     none: overlap alone, no model is run
    heads=null              heads to change, as [a3.h1,a2.h0]; null: those in both circuits
    scale=null              what the heads' outputs are multiplied by; null: 0, unless attend is given
    attend=null             query:key, the positions that the heads' attention is moved from and to, as end:s2
    share=1                 how much of the attention is moved
    mix=false               true: circuits that were found under different ablations, each judged under its own
    n_random=20             random circuits, and draws of other heads
    confidence=0.95         of the intervals
    seed=0                  of the random circuits and heads
    memory=4GiB             budget for activations
    progress=true           progress bars on stderr
    out=null                folder; null: runs/compare_<A>_<B>_<date and time>"""


def compare_command(args: Sequence[str]) -> str:
    """`circuitdisc compare` with these arguments; returns what it prints."""
    if asks_for_help(args):
        return HELP
    from circuitdisc.jobs.compare_runs import PAGE, compare_runs
    from circuitdisc.pages.comparison import comparison_table

    folders = [arg for arg in args if "=" not in arg or Path(arg).is_dir()]
    if len(folders) != 2:
        raise BadRun(f"which two runs? `circuitdisc compare RUN_A RUN_B` takes two folders of runs, not {len(folders)}")
    settings = parse_settings([arg for arg in args if arg not in folders])
    comparison, folder = compare_runs(*folders, **settings)
    return f"{comparison_table(comparison)}\n\npage  {folder / PAGE}"


def parse_settings(args: Sequence[str]) -> dict[str, Any]:
    """`key=value` settings as `compare_runs` takes them.

    Raises:
        UnknownName: there is no such setting.
        BadSetting: a value cannot be read.
    """
    readers = {
        "interventions": str, "out": str, "memory": str, "heads": _names, "attend": _pair, "scale": _number, "share": _number,
        "confidence": _number, "n_random": _whole, "seed": _whole, "progress": _truth, "mix": _truth,
    }  # fmt: skip
    settings: dict[str, Any] = {}
    for arg in args:
        key, _, value = arg.partition("=")
        if key not in readers:
            raise UnknownName("setting of compare", key, readers)
        if value not in ("", "null"):
            settings[key] = _read(readers[key], key, value)
    return settings


def _read(reader: Any, key: str, value: str) -> Any:
    try:
        return reader(value)
    except ValueError as error:
        raise BadSetting(f"{key}={value!r} cannot be read: {error}") from error


def _names(value: str) -> list[str]:
    names = [name.strip() for name in value.strip("[]() ").split(",") if name.strip()]
    if not names:
        raise ValueError("give names of heads, as in [a3.h1,a2.h0]")
    return names


def _pair(value: str) -> tuple[str, str]:
    query, colon, key = value.partition(":")
    if not colon or not query or not key:
        raise ValueError("give query:key, as in end:s2")
    return query, key


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError("give a number") from None


def _whole(value: str) -> int:
    if not value.isdecimal():
        raise ValueError("give a whole number from 0")
    return int(value)


def _truth(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ValueError("give true or false")
    return value.lower() == "true"
