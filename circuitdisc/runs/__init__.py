"""Folders of runs: what they hold, who writes in them, and how work that was killed goes on."""

from circuitdisc.runs.calls import recorded as recorded
from circuitdisc.runs.cells import Cells as Cells
from circuitdisc.runs.cells import CellState as CellState
from circuitdisc.runs.folders import check_free as check_free
from circuitdisc.runs.folders import stoppable as stoppable
from circuitdisc.runs.folders import with_out as with_out
from circuitdisc.runs.folders import workspace as workspace
from circuitdisc.runs.folders import writing as writing
from circuitdisc.runs.journal import Journal as Journal
from circuitdisc.runs.memo import Memo as Memo
from circuitdisc.runs.run import Run as Run
from circuitdisc.runs.run import versions as versions
from circuitdisc.runs.shares import computing as computing
from circuitdisc.runs.shares import handing_out as handing_out
from circuitdisc.runs.works import TRANSFER as TRANSFER
from circuitdisc.runs.works import Work as Work
from circuitdisc.runs.works import is_transfer as is_transfer
from circuitdisc.runs.works import moved as moved
from circuitdisc.runs.works import works_in as works_in
