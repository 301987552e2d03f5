"""The site builds without a network, and its pages ask for nothing from one."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts" / "site"))

from links import place_of  # noqa: E402  # pyright: ignore[reportMissingImports]

NEEDS = ("mkdocs", "material", "mkdocstrings", "mkdocs_gen_files")


@pytest.mark.parametrize(
    ("link", "page", "where"),
    [
        ("docs/models.md", "index.md", "models.md"),
        ("CONTRIBUTING.md", "index.md", "contributing.md"),
        ("docs/heads.md", "changelog.md", "heads.md"),
        ("models.md", "tasks.md", "models.md"),
        ("../benchmarks/results/MASKS.md", "masks.md", "results/MASKS.md"),
        ("../README.md", "masks.md", "index.md"),
        ("pictures/a.svg", "real-circuits.md", "pictures/a.svg"),
        ("../../docs/new-algorithm.md", "results/DISCOVERY.md", "new-algorithm.md"),
        ("DISCOVERY.csv", "results/DISCOVERY.md", "results/DISCOVERY.csv"),
        ("../circuitdisc/cli.py", "runs.md", "circuitdisc/cli.py"),
    ],
)
def test_links_of_the_repository_have_a_place_on_the_site(link: str, page: str, where: str) -> None:
    assert place_of(link, page) == where


def test_links_between_files_of_the_repository_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)\s#]+)", page.read_text("utf-8")):
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.slow
def test_the_site_builds_and_asks_for_nothing(tmp_path: Path) -> None:
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed: pip install 'circuitdisc[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    command += ["--config-file", str(ROOT / "scripts" / "site" / "mkdocs.yml")]
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | quiet)
    assert ran.returncode == 0, ran.stderr[-2000:]
    for page in tmp_path.rglob("*.html"):
        if page.parent.name != "gallery":
            assert not re.search(r"<(?:script|img|iframe)[^>]*src=\"https?:", page.read_text("utf-8")), page.name
