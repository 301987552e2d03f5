"""Cells handed to a launcher, as those of `circuitdisc COMMAND -m` are: one after the other, or in several processes."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.discovery import table
from benchmarks.discovery.cells import Cell, settings_text
from benchmarks.discovery.kept import folder_of_cells
from circuitdisc.errors import BadSetting, CircuitdiscError
from circuitdisc.files import make_folder
from circuitdisc.jobs import spread
from circuitdisc.progress import progress_bar
from circuitdisc.runs import Cells

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


def launch(cells: Sequence[tuple[Cell, str]], overrides: Sequence[str], path: Path, launcher: Sequence[str] = ()) -> None:
    """Run cells; a bar counts those that appear in the table, whichever process writes them.

    Args:
        cells: each with its settings as `settings_text` gives them.
        overrides: all settings but the axes, as they were typed.
        path: the table.
        launcher: what was typed for the launcher.
    """
    folder = folder_of_cells(path)
    make_folder(folder)
    with (listed := Cells(folder)).listing():
        listed.enter("python -m benchmarks.discovery", {str(cell): () for cell, _ in cells})
    with _counted(path, cells):
        spread.launch(
            "benchmarks.discovery.launch:run_cells",
            folder,
            [str(cell) for cell, _ in cells],
            launcher,
            json.dumps([*overrides]),
        )


def run_cells(folder: Path, names: Sequence[str], overrides: str) -> None:
    """Cells, one after the other; one that another process runs is left to it."""
    import torch

    config, cells = compose(json.loads(overrides)), Cells(folder)
    torch.set_num_threads(config["threads"])
    for name in names:
        with cells.claim(name) as state:
            if state is not None:
                clock = time.perf_counter()
                cells.begin(name)
                job({**config, "cell": name})
                cells.finish(name, time.perf_counter() - clock)


def job(config: dict[str, Any]) -> None:
    """One cell: its row, or one with the sentence of its refusal. A bad algorithm does not end the others."""
    from benchmarks.discovery.kept import kept_row
    from benchmarks.discovery.parts import run

    cell = Cell.parse(config["cell"])

    def compute() -> dict[str, Any]:
        try:
            return run(cell, config)
        except CircuitdiscError as error:
            return {"note": _line(error)}

    try:
        columns = kept_row(cell, config, compute)
    except Exception as error:  # an algorithm of another package may do anything; a mistake is no result that is kept
        columns = {"note": f"failed: {type(error).__name__}: {_line(error)}"}
    table.add(Path(config["out"]), {**asdict(cell), "settings": settings_text(cell, config), **columns})


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
