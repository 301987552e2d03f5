"""Bars: on a terminal one line that is written over; in a log a line every ten seconds, and nothing of quick work."""

import io
import sys

import pytest

from circuitdisc import progress
from circuitdisc.progress import SECONDS, finish, hidden, progress_bar, work_bar


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that bars look at, in a list."""
    now = [1000.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


@pytest.fixture
def stderr(monkeypatch):
    def become(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return become


@pytest.mark.parametrize("n_steps", [50, 500, 5000])
def test_a_log_gets_a_line_every_ten_seconds(clock, stderr, n_steps):
    log = stderr(io.StringIO())
    with progress_bar(n_steps, "search", "edge") as bar:
        for step in range(n_steps):
            clock[0] += 100 / n_steps
            bar.set_postfix(kept=step)  # asks for a new drawing each time
            bar.update()
        progress.tqdm.write("a note", file=log)  # beside an open bar
        finish(bar)
    *lines, note = log.getvalue().splitlines()
    assert note == "a note"
    assert "\r" not in log.getvalue()
    assert "\x1b" not in log.getvalue()
    assert 9 <= len(lines) <= 10
    shares = [float(line.partition("search:")[2].partition("%")[0]) for line in lines]
    assert shares == pytest.approx([10 * (1 + index) for index in range(len(lines))], abs=3)
    assert all(len(line) <= 80 and "kept=" in line for line in lines)


def test_a_log_gets_nothing_of_quick_work(clock, stderr):
    log = stderr(io.StringIO())
    for _ in range(500):
        with progress_bar(10, "part", "run") as bar, work_bar(1.0, "inside") as inside:
            for _ in range(10):
                clock[0] += 0.9
                bar.update()
                inside.update(0.1)
                inside.refresh()
    assert log.getvalue() == ""
    assert SECONDS > 9


def test_a_terminal_gets_a_bar_that_is_wiped_away(clock, stderr):
    screen = stderr(Screen())
    with progress_bar(10, "search", "edge") as bar:
        for _ in range(10):
            clock[0] += 1
            bar.update()
    text = screen.getvalue()
    assert text.count("search") > 5
    assert "\n" not in text
    assert text.endswith("\r")


def test_no_bars_where_they_are_hidden(clock, stderr):
    log = stderr(io.StringIO())
    with hidden(), progress_bar(10, "search", "edge") as bar:
        clock[0] += 60
        bar.update()
    with hidden(False), progress_bar(10, "seen", "edge") as bar:
        clock[0] += 60
        bar.update()
    assert "search" not in log.getvalue()
    assert "seen" in log.getvalue()
