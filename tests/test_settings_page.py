"""docs/settings.md lists every setting of conf/ with its default and its meaning."""

import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "settings_page.py"))
FILES = sorted((ROOT / "conf").rglob("*.yaml"))


def flat(table, prefix=""):
    """Dotted key -> value, as YAML reads it."""
    found = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return found


def test_the_page_is_that_of_the_files():
    now = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert now == SCRIPT["page"](), "a setting is new or has changed: run `python scripts/settings_page.py`"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "conf")))
def test_every_setting_is_listed_with_its_default_and_meaning(path):
    data = {key: value for key, value in (yaml.safe_load(path.read_text()) or {}).items() if key not in ("defaults", "hydra")}
    wanted = {key: value for key, value in flat(data).items() if (key, value) not in (("name", path.stem), ("kind", path.stem))}
    listed = SCRIPT["settings_of"](path)
    assert {one.key: yaml.safe_load(one.default) for one in listed} == wanted
    assert not [one.key for one in listed if not one.meaning], "say what it means in a comment beside it"


def test_a_made_up_file(tmp_path):
    path = tmp_path / "made_up.yaml"
    path.write_text("""\
defaults:
  - task: tpp
  - _self_
name: made_up
steps: [1, 2] # how many
inner:
  deep: "a # b" # a text | of signs
  table: {A: [x]} # of lists
bare: 3
hydra:
  run: x
""")
    rows = [(one.key, one.default, one.meaning) for one in SCRIPT["settings_of"](path)]
    assert rows == [
        ("steps", "[1, 2]", "how many"),
        ("inner.deep", '"a # b"', "a text | of signs"),
        ("inner.table", "{A: [x]}", "of lists"),
        ("bare", "3", ""),
    ]
    assert SCRIPT["groups_of"](path) == {"task": "tpp"}
