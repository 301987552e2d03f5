"""Run commands one after the other in one process that may take 1 GiB beyond what the program has loaded.

Reads a JSON list of arguments a line from standard input; answers with status, output, error and seconds, a JSON object a line.
"""

import contextlib
import io
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path

GIB = 2**30


def main() -> None:
    import torch

    from circuitdisc.cli import main as command

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")  # the commands' own output must not get between the answers
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    for number, line in enumerate(sys.stdin):
        out, err = io.StringIO(), io.StringIO()
        started = time.process_time()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status: object = command(json.loads(line))
            except BaseException:  # what a user would see as a traceback, whatever it is
                status = "traceback"
                traceback.print_exc()
        seconds = time.process_time() - started
        answer = {"status": status, "out": out.getvalue()[-300:], "err": err.getvalue()[-3000:], "seconds": seconds}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if number == 0:  # the first command has loaded what all of them need
            in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (in_use + GIB, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
