"""Models compiled from programs, so that their circuits are known by construction.

    case = cd.compiled.build("induction", rotate=0, distractors=2)
    found = circuitdisc.discover(case.model, case.task, "acdc", threshold=0.001, ablation="resample")
    set(found.circuit.edge_names()) == case.truth.edges("resample")

A new program is a function and a line in `PROGRAMS`.
"""

from circuitdisc.known.compiled.case import PROGRAMS, CompiledCase, build
from circuitdisc.known.compiled.truth import CompiledTruth

__all__ = ["PROGRAMS", "CompiledCase", "CompiledTruth", "build"]
