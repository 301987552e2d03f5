"""`python -m circuitdisc.benchmark`: the same as `circuitdisc benchmark`."""

import sys

from circuitdisc.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
