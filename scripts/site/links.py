"""Links of files of the repository, as they are on the site.

Files of docs/ link to each other and to files beside docs/; README and the other files of the root link into docs/. On the site
all of them lie together: `../benchmarks/results/X.md` is `results/X.md`. What is not on the site becomes plain text.
"""

import re
from pathlib import PurePosixPath
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
ROOT_FILES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Every link, as seen from this page."""
    known = {file.src_uri for file in files}

    def rewritten(match: re.Match[str]) -> str:
        text, target = match.groups()
        if target.startswith(("http:", "https:", "mailto:", "#")):
            return match[0]
        path, hash_sign, anchor = target.partition("#")
        where = place_of(path, page.file.src_uri)
        if where not in known:
            return text
        return f"[{text}]({_relative(where, page.file.src_uri)}{hash_sign}{anchor})"

    return LINK.sub(rewritten, markdown)


def place_of(path: str, page: str) -> str:
    """Where a file of the repository lies on the site.

    Args:
        path: as the page has it.
        page: the page's own place on the site.
    """
    base = {**{site: PurePosixPath(".") for site in ROOT_FILES.values()}}.get(page)
    if page.startswith("results/"):
        base = PurePosixPath("benchmarks/results")
    parts: list[str] = []
    for part in (base or PurePosixPath("docs") / PurePosixPath(page).parent).joinpath(path).parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    where = "/".join(parts)
    if where in ROOT_FILES:
        return ROOT_FILES[where]
    return where.removeprefix("docs/").replace("benchmarks/results/", "results/", 1)


def _relative(target: str, page: str) -> str:
    up = len(PurePosixPath(page).parts) - 1
    return "../" * up + target
