"""A record of everything that circuitdisc computes on fixed inputs, and the comparison of two such records.

    python scripts/effects.py record before.json.gz          # about ten minutes on one core
    python scripts/effects.py record after.json.gz           # after a change that should change no number
    python scripts/effects.py compare before.json.gz after.json.gz

A record holds, by name:

    algorithms/   every algorithm under every ablation, on random models of six families and on two shipped models, in float64:
                  circuit, edge scores, decisions, and what they cost (passes, node evaluations, candidates)
    scores/       every score of one circuit of a shipped model
    commands/     every command on shipped models: all files that it leaves (JSON, arrays, journals, figures of its page) and
                  what it prints

Circuits, words and names must be equal; numbers may differ by `--tolerance` relative to the larger of them and 1 (by
`--tolerance32` in what fine-tuning leaves, which trains in float32); costs may go down but not up. Dates, seconds, versions,
paths and commands are left out.
"""

import argparse
import base64
import contextlib
import gzip
import io
import json
import math
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

VOLATILE = {
    "seconds", "started", "versions", "command", "folder", "out", "rebuild", "identity", "identities", "created", "host", "pid",
}  # fmt: skip
COSTS = {"model_runs", "circuit_runs", "candidates", "node_evaluations", "backward_runs"}
FAMILIES = ("gpt2", "llama", "gemma2", "gpt_neox", "parallel", "attention_only")
ABLATIONS = ("zero", "mean", "resample")
SHORT: dict[str, dict[str, Any]] = {name: {"steps": 12} for name in ("edge_pruning", "subnetwork_probing", "soft_topk")}


# --- what is recorded ----------------------------------------------------------------------------------------------------


def algorithms() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every algorithm x ablation on random models of several families and on shipped ones."""
    from examples import random_task  # pyright: ignore[reportMissingImports] - of the tests
    from models import model_of  # pyright: ignore[reportMissingImports]

    import circuitdisc as cd
    from circuitdisc.discovery.registry import ALGORITHMS

    def search(model: Any, task: Any, name: str, ablation: str, **settings: Any) -> Any:
        found = cd.discover(model, task, name, ablation=ablation, allow_chance=True, seed=1, **settings)
        return {
            "circuit": found.circuit.edge_names(),
            "groups": {group: list(heads) for group, heads in found.circuit.groups.items()},
            "edge_scores": array(found.edge_scores),
            "node_scores": array(found.node_scores),
            "trace": plain(found.trace),
            "cost": plain(found.cost_dict()),
        }

    names = [name for name in ALGORITHMS if name != "from_file"]
    for family in FAMILIES:
        model = model_of(family)
        task = random_task(model, 6)
        for name in names:
            for ablation in ABLATIONS:
                settings = SHORT.get(name, {})
                yield (
                    f"{family}/{name}/{ablation}",
                    lambda n=name, a=ablation, m=model, t=task, s=settings: search(m, t, n, a, **s),
                )
    for shipped, task_name in (("tpp/lightweight", "tpp"), ("multitask/base", "ioi")):
        model = cd.load_model(shipped, dtype="float64")
        task = cd.load_task(task_name, model, n=8, n_heldout=8)
        for name in names:
            yield f"{shipped}/{name}", lambda n=name, m=model, t=task: search(m, t, n, "resample", **SHORT.get(n, {}))


def scores() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every score of one circuit."""
    import circuitdisc as cd

    model = cd.load_model("tpp/lightweight", dtype="float64")
    task = cd.load_task("tpp", model, n=12, n_heldout=24)
    found = cd.discover(model, task, "eap_ig", ablation="resample", edges=60)
    heads = cd.discover(model, task, "head_ablation", ablation="mean", threshold=0.05)
    for name, circuit in (("edges", found.circuit), ("heads", heads.circuit)):
        yield f"{name}/score", lambda c=circuit: cd.score(model, task, c, n_random=5).to_dict()
        yield f"{name}/completeness", lambda c=circuit: cd.completeness(model, task, c, n_random=4, greedy_size=2).to_dict()
        yield f"{name}/minimality", lambda c=circuit: cd.minimality(model, task, c).to_dict()
        yield f"{name}/tests", lambda c=circuit: cd.hypothesis_tests(model, task, c, n_random=10).to_dict()
    yield "edges/curve", lambda: cd.curve(model, task, found).to_dict()
    yield "edges/stability", lambda: cd.stability(model, task, "eap_ig", n_bootstrap=4, ablation="resample", edges=60).to_dict()
    yield "overlap", lambda: plain(cd.overlap(found.circuit, heads.circuit, mix=True))
    yield "intervene", lambda: plain(cd.intervene(model, task, [cd.Intervention("a1.h2", scale=0.0)]))


SMALL = "task.n=12 task.n_heldout=24 progress=false"
TASK = f"{SMALL} model.dtype=float64"  # so that only what computes otherwise differs
COMMANDS: dict[str, str] = {
    "acdc": "discover model=tpp/lightweight task=tpp algorithm.threshold=0.5 scoring.n_random=4 {task} out={at}/acdc",
    "heads": (
        "discover model=multitask/base task=ioi algorithm=path_patching ablation=resample scoring.n_random=4 {task} "
        "out={at}/heads"
    ),
    "score": "score {at}/acdc ablation=zero scoring.n_random=2",
    "score_all": "score {at}/acdc --all",
    "stability": "stability {at}/acdc n_samples=3 progress=false",
    "report": "report {at}/acdc",
    "export": "export {at}/acdc {at}/exported.json",
    "compare": "compare {at}/acdc {at}/acdc",
    "transfer": (
        "transfer checkpoints=[tpp/featherweight,tpp/lightweight] task=tpp algorithm=head_ablation n_random=3 {task} "
        "out={at}/transfer"
    ),
    "baselines": "baselines checkpoints=[tpp/base,tpp/lightweight] task=tpp n_others=20 others=[] {task} out={at}/baselines",
    "drift": "drift checkpoints=[tpp/base,tpp/lightweight] task=tpp {task} out={at}/drift",
    "lens": "lens model=multitask/base task=ioi {task} out={at}/lens",
    "cmap": (
        "cmap base=multitask/base tuned=multitask/boxes_full task=entity_tracking n_random=4 steps=3 top=2 {task} out={at}/cmap"
    ),
    "dcm": "dcm model=multitask/base task=ioi penalties=[0.1] epochs=1 n_random=4 {task} out={at}/dcm",
    "localise": "localise model=multitask/base task=ioi heads=[a3.h1,a2.h0] epochs=1 n_random=1 {task} out={at}/localise",
    "finetune": (
        "finetune model=multitask/base task=ioi fractions=[1.0] epochs=1 n_pool=64 others=[] batch_size=16 {small} "
        "out={at}/finetune"
    ),
    **{
        f"heads_{tool}": f"heads {tool} model=multitask/base task=ioi {more} {{task}} out={{at}}/heads_{tool}"
        for tool, more in {
            "roles": "", "attention": "", "logits": "", "effects": "", "knockout": "n_random=2 steps=4",
            "neurons": "layers=[3] sizes=[10] n_random=1 top=3",
        }.items()
    },
}  # fmt: skip


def commands() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every command: what it prints, and every file that it leaves."""
    with tempfile.TemporaryDirectory() as at:
        for name, line in COMMANDS.items():
            words = line.format(at=at, task=TASK, small=SMALL).split()
            yield name, partial(_command, words, Path(at))


def _command(words: list[str], at: Path) -> Any:
    from circuitdisc.cli import main

    before = {path: path.stat().st_mtime_ns for path in at.rglob("*") if path.is_file()}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        status = main(words)
    files = {}
    for path in sorted(path for path in at.rglob("*") if path.is_file()):
        if before.get(path) != path.stat().st_mtime_ns and (content := _file(path)) is not None:
            files[str(path.relative_to(at))] = _without(content, str(at))
    text = re.sub(r"\d+(\.\d+)? (s|ms|min|h)\b", "TIME", printed.getvalue().replace(str(at), "AT"))
    return {"status": status, "printed": text.splitlines(), "files": files}


def _file(path: Path) -> Any:
    import numpy as np

    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: array(arrays[name]) for name in arrays}
    if path.suffix == ".html":
        specs = re.findall(
            r'<script type="application/json"[^>]*data-plot="([^"]*)"[^>]*>(.*?)</script>', path.read_text(), re.S
        )
        return {name: json.loads(spec) for name, spec in specs}
    return None


# --- plain values --------------------------------------------------------------------------------------------------------


def array(values: Any) -> Any:
    """Shape and numbers of an array; None of None."""
    import numpy as np

    if values is None:
        return None
    values = np.asarray(values)
    return {"shape": list(values.shape), "values": plain(values.ravel().tolist())}


def plain(value: Any) -> Any:
    """As JSON has it; what has no place there by its `repr`."""
    import numpy as np

    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items() if str(key) not in VOLATILE}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, np.ndarray):
        return array(value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if is_dataclass(value) and not isinstance(value, type):
        return plain({item.name: getattr(value, item.name) for item in fields(value)})
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float | bool) else re.sub(r" at 0x\w+", "", repr(value))


def _without(value: Any, at: str) -> Any:
    """Without what changes from call to call."""
    import numpy as np

    if isinstance(value, dict) and {"dtype", "bdata"} <= set(value):  # plotly's packed arrays
        return array(np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"])))
    if isinstance(value, dict):
        return {key: _without(item, at) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [_without(item, at) for item in value]
    return value.replace(at, "AT") if isinstance(value, str) else plain(value)


PARTS = {"algorithms": algorithms, "scores": scores, "commands": commands}


def record(parts: list[str]) -> dict[str, Any]:
    """Run everything; what ends in an error is recorded by its sentence."""
    import torch

    found: dict[str, Any] = {}
    for part in parts:
        for name, compute in PARTS[part]():
            torch.manual_seed(0)
            print(f"{part}/{name}", file=sys.stderr, flush=True)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found[f"{part}/{name}"] = json.loads(json.dumps(plain(compute())))
            except Exception as error:  # a refusal is a result, too
                found[f"{part}/{name}"] = {"refused": f"{type(error).__name__}: {error}"}
                if type(error).__module__ != "circuitdisc.errors":
                    traceback.print_exc()
    return found


# --- comparison ----------------------------------------------------------------------------------------------------------


def differences(before: Any, after: Any, tolerance: float, where: str = "") -> Iterator[str]:
    """Every difference beyond the tolerance, as `place: before -> after`."""
    name = where.rsplit(".", 1)[-1]
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            if key not in before or key not in after:
                yield f"{where}.{key}: only {'before' if key in before else 'after'}"
            else:
                yield from differences(before[key], after[key], tolerance, f"{where}.{key}")
    elif isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            yield f"{where}: {len(before)} entries -> {len(after)}"
        for index, (left, right) in enumerate(zip(before, after, strict=False)):
            yield from differences(left, right, tolerance, f"{where}[{index}]")
    elif _is_number(before) and _is_number(after) and name in COSTS:
        if after > before + 1e-6 * max(1.0, abs(before)):
            yield f"{where}: costs more, {before:.6g} -> {after:.6g}"
    elif _is_number(before) and _is_number(after):
        if abs(before - after) > tolerance * max(1.0, abs(before), abs(after)):
            yield f"{where}: {before!r} -> {after!r}"
    elif isinstance(before, str) and isinstance(after, str):
        if _words(before) != _words(after):
            yield f"{where}: {before[:120]!r} -> {after[:120]!r}"
        else:
            yield from differences(_numbers(before), _numbers(after), max(tolerance, 1e-6), where)
    elif before != after:
        yield f"{where}: {str(before)[:120]!r} -> {str(after)[:120]!r}"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


_NUMBER = re.compile(r"[-−]?\d+(?:\.\d+)?(?:e[-+−]?\d+)?")


def _words(text: str) -> str:
    return _NUMBER.sub("#", text)


def _numbers(text: str) -> list[float]:
    return [float(number.replace("−", "-")) for number in _NUMBER.findall(text)]


def compare(before: dict[str, Any], after: dict[str, Any], tolerance: float, tolerance32: float) -> int:
    """Print what differs, entry by entry; returns the number of entries that do."""
    bad = 0
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before or name not in after:
            print(f"{name}: only {'before' if name in before else 'after'}")
            bad += 1
            continue
        allowed = tolerance32 if name == "commands/finetune" else tolerance
        rows = list(differences(before[name], after[name], allowed))
        if rows:
            bad += 1
            print(f"{name}: {len(rows)} differences")
            for row in rows[:5]:
                print(f"    {row}")
    print(f"{len(before)} entries before, {len(after)} after; {bad} differ")
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    recorder = actions.add_parser("record")
    recorder.add_argument("file", type=Path)
    recorder.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    comparer = actions.add_parser("compare")
    comparer.add_argument("before", type=Path)
    comparer.add_argument("after", type=Path)
    comparer.add_argument("--tolerance", type=float, default=1e-9)
    comparer.add_argument("--tolerance32", type=float, default=1e-5)
    given = parser.parse_args()
    if given.action == "record":
        found = record(given.only)
        with gzip.open(given.file, "wt", encoding="utf-8") as file:
            json.dump(found, file)
        refused = sum("refused" in entry for entry in found.values() if isinstance(entry, dict))
        print(f"{len(found)} entries ({refused} refusals) in {given.file}")
        return 0
    loaded = []
    for path in (given.before, given.after):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            loaded.append(json.load(file))
    return 1 if compare(loaded[0], loaded[1], given.tolerance, given.tolerance32) else 0


if __name__ == "__main__":
    sys.exit(main())
