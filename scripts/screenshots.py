"""Screenshots of each kind of page, for the docs: desktop and phone width, light and dark.

    python scripts/screenshots.py               # makes the runs in a temporary folder; writes docs/pictures/page-*.png
    python scripts/screenshots.py --times       # only sizes of pages and times to the first drawing

Needs Chromium and Playwright (`pip install playwright`; no browser is downloaded).
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

from circuitdisc.circuit import Circuit, Provenance
from circuitdisc.cli import main as circuitdisc
from circuitdisc.graph import ComputationGraph
from circuitdisc.pages import write_report

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
SEARCH = ("task=tpp", "ablation=mean", "progress=false", "task.n=30", "task.n_heldout=60", "scoring.n_random=5")
SCREENS = {"desktop": {"width": 1200, "height": 900}, "phone": {"width": 390, "height": 844}}
MOST = 2_000_000  # bytes of all pictures
SIZES = ((36, ComputationGraph(4, 8)), (500, ComputationGraph(30, 9)), (5000, ComputationGraph(30, 9)))


def made_pages(folder: Path) -> Iterator[tuple[str, Path]]:
    """A page of each kind, from shipped models."""
    for name, edges in (("small", 40), ("large", 120)):
        run("discover", "model=tpp/lightweight", "algorithm=eap", f"algorithm.edges={edges}", *SEARCH, f"out={folder / name}")
    yield "run", folder / "large" / "report.html"
    run("compare", str(folder / "small"), str(folder / "large"), "progress=false", f"out={folder / 'compare'}")
    yield "compare", folder / "compare" / "compare.html"
    ladder = "checkpoints=[tpp/base,tpp/featherweight,tpp/lightweight]"
    settings = ("algorithm=eap", "algorithm.edges=60", "n_random=2", "allow_chance=true", f"out={folder / 'transfer'}")
    run("transfer", ladder, *settings, *SEARCH[:-1])
    yield "transfer", folder / "transfer" / "transfer.html"
    run("heads", "roles", "model=tpp/lightweight", "task=tpp", "task.n=30", "progress=false", f"out={folder / 'roles'}")
    yield "heads", folder / "roles" / "report.html"


def run(*arguments: str) -> None:
    if circuitdisc(list(arguments)):
        raise SystemExit(f"circuitdisc {' '.join(arguments)} failed")


def random_page(n: int, graph: ComputationGraph, path: Path) -> Path:
    """A page of a circuit of n random edges."""
    generator = np.random.default_rng(0)
    edges, mask = np.argwhere(graph.edge_mask), np.zeros_like(graph.edge_mask)
    mask[tuple(generator.permutation(edges)[:n].T)] = True
    circuit = Circuit(graph, mask, Provenance(model="made up", task="random", algorithm="random"))
    return write_report(path, circuit=circuit, scores=None, run={}, edge_scores=generator.normal(size=mask.shape))


def take(browser: Any, name: str, path: Path) -> None:
    """The head of a page and its explorer, on every screen in both schemes; of an explorer, with a node chosen."""
    for screen, viewport in SCREENS.items():
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport=viewport, color_scheme=scheme)
            page.goto(path.resolve().as_uri())
            if page.query_selector("script[data-plot]"):
                page.wait_for_selector("html[data-drawn]")
            if page.query_selector("[data-explorer]"):
                page.wait_for_selector("[data-ready]")
                page.evaluate(CHOOSE)
                page.wait_for_timeout(300)
            picture = PICTURES / f"page-{name}-{screen}-{scheme}.png"
            page.screenshot(path=picture)
            Image.open(picture).convert("RGB").quantize(256).save(picture, optimize=True)
            page.close()


CHOOSE = """() => {
  const { explorer } = document.querySelector("[data-explorer]");
  const busy = explorer.circuit.nodes.filter(({ kind }) => kind === "head");
  explorer.pick({ node: busy.reduce((a, b) => (b.into.length + b.out.length > a.into.length + a.out.length ? b : a)) });
  document.querySelector(".explorer").scrollIntoView({ block: "start" });
}"""


def times(browser: Any, folder: Path) -> None:
    """Size of the page, and milliseconds from the start of loading to the first drawing (median of 3)."""
    for n, graph in SIZES:
        path = random_page(n, graph, folder / f"random-{n}.html")
        took = []
        for _ in range(3):
            page = browser.new_page(viewport=SCREENS["desktop"])
            page.goto(path.resolve().as_uri())
            page.wait_for_selector("[data-ready]")
            took.append(page.evaluate("Number(document.querySelector('[data-ready]').dataset.ready)"))
            page.close()
        print(f"{n:>5} edges  {path.stat().st_size / 1000:>6,.0f} kB  explorer drawn in {np.median(took):.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", action="store_true", help="only sizes and times")
    only_times = parser.parse_args().times
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as made, sync_playwright() as driver:
        pages = [] if only_times else list(made_pages(Path(made)))
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        times(browser, Path(made))
        for name, path in pages:
            print(f"{name:>9}  {path.stat().st_size / 1000:>6,.0f} kB")
            take(browser, name, path)
        browser.close()
    total = sum(picture.stat().st_size for picture in PICTURES.glob("page-*.png"))
    print(f"pictures   {total / 1000:>6,.0f} kB")
    if total > MOST:
        raise SystemExit(f"the pictures take {total:,} bytes, more than {MOST:,}")


if __name__ == "__main__":
    main()
