"""Writes docs/settings.md: every setting of conf/, with its default and what it means, from the YAML files and their comments.

python scripts/settings_page.py          # writes the page; tests/test_settings_page.py holds it to conf/
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
CONF, PAGE = ROOT / "conf", ROOT / "docs" / "settings.md"
HEAD = """# Settings

Every setting of every command, with its default. `python scripts/settings_page.py` writes this page from the files in `conf/`.
Set one as `key=value` on the command line, a setting of a group as `group.key=value` (`task.n=100`), and choose another member
of a group as `group=member` (`algorithm=eap`). `circuitdisc COMMAND --help` shows those of one command.
"""
MACHINERY = {"defaults", "hydra"}  # what Hydra reads for itself


@dataclass(frozen=True)
class Setting:
    """One key of a settings file.

    Args:
        key: dotted, where tables are nested.
        default: as the file has it.
        meaning: the comment beside it.
    """

    key: str
    default: str
    meaning: str


def settings_of(path: Path) -> list[Setting]:
    """The settings of one YAML file, in their order; the one that only repeats the file's own name is left out."""
    text = path.read_text("utf-8")
    root = yaml.compose(text)
    settings = _settings_in(root, text, "") if isinstance(root, yaml.MappingNode) else ()
    return [one for one in settings if (one.key, one.default) not in (("name", path.stem), ("kind", path.stem))]


def _settings_in(table: yaml.MappingNode, text: str, prefix: str) -> Iterator[Setting]:
    for key, value in table.value:
        if not prefix and key.value in MACHINERY:
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _settings_in(value, text, f"{prefix}{key.value}.")
            continue
        end = value.end_mark.index
        comment = text[end:].split("\n", 1)[0].partition("#")[2].strip()
        yield Setting(prefix + key.value, text[value.start_mark.index : end].strip(), comment)


def groups_of(path: Path) -> dict[str, str]:
    """The groups that a command's file draws on, each with the member that is its default."""
    entries = (yaml.safe_load(path.read_text("utf-8")) or {}).get("defaults", [])
    chosen = (item for entry in entries if isinstance(entry, dict) for item in entry.items())
    return {group: str(member) for group, member in chosen if not group.startswith("override ")}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for path in sorted(CONF.glob("*.yaml")):
        groups = ", ".join(f"`{group}={member}`" for group, member in groups_of(path).items())
        parts.append(f"## {path.stem}\n\n" + (f"Groups: {groups}.\n\n" if groups else "") + _table(settings_of(path)))
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir()):
        parts.append(f"## {folder.name}=...\n")
        for path in sorted(folder.glob("*.yaml")):
            parts.append(f"### {folder.name}={path.stem}\n\n" + _table(settings_of(path)))
    return "\n".join(parts)


def _table(settings: list[Setting]) -> str:
    if not settings:
        return "No settings of its own.\n"
    rows = [f"| `{one.key}` | `{_cell(one.default)}` | {_cell(one.meaning)} |" for one in settings]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows]) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
