"""A page in headless Chromium, driven by Playwright; tests that need it are skipped with a sentence where either is missing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A browser that is closed at the end."""
    playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need Playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("browser tests need Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Tab:
    """A page that is open, with what it said on the console and what it asked of the network."""

    def __init__(self, opened: Any, path: Path, **options: Any) -> None:
        self.page = opened.new_page(**{"viewport": {"width": 1200, "height": 900}} | options)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.resolve().as_uri())
        if self.page.query_selector("[data-explorer]"):
            self.page.wait_for_selector("[data-explorer][data-ready]")
        if self.page.query_selector("script[data-plot]"):
            self.page.wait_for_selector("html[data-drawn]")
        self.requests = [url for url in self.requests if url != path.resolve().as_uri()]

    def of_explorer(self, code: str) -> Any:
        """What a JavaScript expression gives, in which `explorer` is the page's first."""
        return self.page.evaluate(
            f"() => {{ const {{ explorer }} = document.querySelector('[data-explorer]'); return {code}; }}"
        )

    def place(self, node: str) -> tuple[float, float]:
        """Where a node stands in the window."""
        self.page.eval_on_selector(".explorer canvas", "canvas => canvas.scrollIntoView({block: 'center'})")
        return tuple(
            self.of_explorer(
                f"(([x, y], box) => [x + box.left, y + box.top])(explorer.view.transform.apply("
                f"(node => [node.x, node.y])(explorer.view.placed.get('{node}'))), explorer.canvas.getBoundingClientRect())"
            )
        )

    @property
    def panel(self) -> str:
        return str(self.page.inner_text(".ex-panel"))
