"""Models trained to have a known circuit (strict interchange-intervention training), with weights as training leaves them.

    case = cd.siit.load("induction")
    found = circuitdisc.discover(case.model, case.task, "eap_ig", ablation="resample")
    set(found.top_k(len(case.truth.edges("resample"))).edge_names()) & case.truth.edges("resample")

A new case is a function, a line in `CASES`, and a run of scripts/train_siit.py.
"""

from circuitdisc.known.siit.case import CASES, SiitCase, load
from circuitdisc.known.siit.program import SiitProgram
from circuitdisc.known.siit.truth import SiitTruth

__all__ = ["CASES", "SiitCase", "SiitProgram", "SiitTruth", "load"]
