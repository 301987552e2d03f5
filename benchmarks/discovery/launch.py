"""Cells as jobs of a Hydra multirun: one after the other, or with another launcher in several processes."""

import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.discovery import table
from benchmarks.discovery.cells import Cell, settings_text
from circuitdisc.errors import BadSetting, CircuitdiscError
from circuitdisc.progress import progress_bar

CONF = Path(__file__).parent / "conf"


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration as plain values.

    Raises:
        BadSetting: Hydra cannot make sense of an override.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            found: Any = OmegaConf.to_container(hydra_compose("config", overrides=list(overrides)), resolve=True)
            return found
    except (HydraException, OmegaConfBaseException) as error:
        raise BadSetting(f"these settings cannot be read: {' '.join(str(error).split())}") from error


def launch(cells: Sequence[tuple[Cell, str]], overrides: Sequence[str], path: Path) -> None:
    """Run cells; a bar counts those that appear in the table, whichever process writes them.

    Args:
        cells: each with its settings as `settings_text` gives them.
        overrides: all settings but the axes, as they were typed.
        path: the table.
    """
    import hydra

    listed = ",".join(f"'{cell}'" for cell, _ in cells)
    typed = sys.argv
    with tempfile.TemporaryDirectory() as scratch, _counted(path, cells):
        sys.argv = ["benchmarks.discovery", "--multirun", *overrides, f"hydra.sweep.dir={scratch}", f"cell={listed}"]
        try:
            hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(job)()
        finally:
            sys.argv = typed


def job(config: Any) -> None:
    """One cell: its row, or one with the sentence of its refusal. A bad algorithm does not end the others."""
    import torch
    from omegaconf import OmegaConf

    from benchmarks.discovery.kept import kept_row
    from benchmarks.discovery.parts import run

    plain: Any = OmegaConf.to_container(config, resolve=True)
    torch.set_num_threads(plain["threads"])
    cell = Cell.parse(plain["cell"])

    def compute() -> dict[str, Any]:
        try:
            return run(cell, plain)
        except CircuitdiscError as error:
            return {"note": _line(error)}

    try:
        columns = kept_row(cell, plain, compute)
    except Exception as error:  # an algorithm of another package may do anything; a mistake is no result that is kept
        columns = {"note": f"failed: {type(error).__name__}: {_line(error)}"}
    table.add(Path(plain["out"]), {**asdict(cell), "settings": settings_text(cell, plain), **columns})


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextmanager
def _counted(path: Path, cells: Sequence[tuple[Cell, str]]) -> Iterator[None]:
    """A progress bar that follows the table."""
    stop, before = threading.Event(), table.read(path)

    def follow() -> None:
        with progress_bar(len(cells), "discovery", "cell") as bar:
            while not stop.wait(1.0):
                now = table.read(path)
                bar.update(sum(now.get(cell) != before.get(cell) for cell, _ in cells) - bar.n)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
