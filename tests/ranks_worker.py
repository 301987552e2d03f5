"""Started by torchrun: commands of a file, one after the other, each a line of words as JSON."""

import json
import sys
from pathlib import Path

from circuitdisc.cli import main

for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
    if status := main(json.loads(line)):
        sys.exit(status)
