"""`python -m circuitdisc`: the same as the command `circuitdisc`."""

from circuitdisc.cli import run

run()
