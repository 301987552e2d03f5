"""Malformed inputs: status 2, one sentence, no traceback, little time and memory, and every file as it was.

A sample runs with the other tests; all of them with `pytest -m slow tests/test_malformed.py`.
"""

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from malformed import Case
from malformed_cases import BASE, SHORT, TASK_LINE, all_cases

from circuitdisc.cli import main

SECONDS, CHARACTERS, LEAST_CASES = 5, 500, 1000
SAMPLE = 25  # one in so many runs with the other tests


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    """Two finished runs, one of them judged, and a task file."""
    folder = tmp_path_factory.mktemp("good")
    assert main(["discover", *SHORT, f"out={folder / 'run'}"]) == 0
    assert main(["score", str(folder / "run"), "--all"]) == 0
    assert main(["stability", str(folder / "run"), "n_samples=2", "progress=false"]) == 0
    assert main(["discover", *BASE, "algorithm=eap", "algorithm.edges=40", f"out={folder / 'scored'}"]) == 0
    for report in folder.rglob("report.html"):
        report.unlink()
    (folder / "task.jsonl").write_text(TASK_LINE + "\n", encoding="utf-8")
    return folder


# --- running them ---------------------------------------------------------------------------------------------------------


class Worker:
    """A process that runs commands; started again if one of them ends it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def run(self, args: list[str], patience: float = 60) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            self.close()
            path = Path(__file__).with_name("malformed_worker.py")
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen([sys.executable, str(path)], text=True, env=environment, **pipes)
            self._ask(["list", "algorithms"], 300)
        return self._ask(args, patience)

    def _ask(self, args: list[str], patience: float) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(args) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], patience)[0]:
            self.process.kill()
            return {"status": "no end", "err": "", "seconds": patience}
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"status": f"died {self.process.wait()}", "err": "", "seconds": 0}

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()  # closes its pipes


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file's content; of what is no file, that it is there. A journal may be cut back to its last mark."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and path.stat().st_size < 2**28 else "no file"
        for path in sorted(folder.rglob("*"))
        if "journal" not in path.name and "partial" not in path.name
    }


def faults(worker: Worker, case: Case, good: Path, folder: Path) -> str:
    """What is wrong with how a case ended; nothing if it ended as it must."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    case.make(folder)
    before = snapshot(folder)
    answer = worker.run([arg.replace("{}", str(folder), 1) if arg.count("{}") else arg for arg in case.args])
    err = answer["err"].strip()
    sentence = err.rpartition("circuitdisc: ")[2]
    wrong = []
    if answer["status"] != 2:
        wrong.append(f"status {answer['status']}")
    if "Traceback" in err:
        wrong.append("a traceback")
    if not 10 < len(sentence) <= CHARACTERS:
        wrong.append(f"{len(sentence)} characters")
    if answer["seconds"] > SECONDS:
        wrong.append(f"{answer['seconds']:.1f} s")
    if snapshot(folder) != before:
        wrong.append("files have changed")
    return f"{case.name} ({' '.join(case.args)[:80]}): {', '.join(wrong)}; {err[-300:]}" if wrong else ""


def run_all(worker: Worker, cases: list[Case], good: Path, folder: Path) -> list[str]:
    return [fault for case in cases if (fault := faults(worker, case, good, folder))]


def test_a_sample_of_malformed_inputs_gets_a_sentence_each(worker, good, tmp_path):
    assert run_all(worker, all_cases(good)[::SAMPLE], good, tmp_path / "case") == []


@pytest.mark.slow
def test_every_malformed_input_gets_a_sentence(worker, good, tmp_path):
    cases = all_cases(good)
    assert len(cases) >= LEAST_CASES
    found = run_all(worker, cases, good, tmp_path / "case")
    assert found == [], f"{len(found)} of {len(cases)}:\n" + "\n".join(found)


@pytest.mark.slow
def test_some_in_a_process_of_their_own(good, tmp_path):
    """As a user runs them: the console's status and both streams."""
    folder = tmp_path / "case"
    for case in all_cases(good)[7::150]:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        case.make(folder)
        args = [arg.replace("{}", str(folder), 1) for arg in case.args]
        if any("\x00" in arg for arg in args):
            continue  # no shell can pass it
        done = subprocess.run([sys.executable, "-m", "circuitdisc.cli", *args], capture_output=True, text=True, timeout=300)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), f"{case.name}: {done.stderr}"
        assert len(done.stderr.rpartition("circuitdisc: ")[2].strip()) <= CHARACTERS
