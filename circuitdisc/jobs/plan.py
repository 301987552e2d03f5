"""`circuitdisc plan`. Its work, which needs torch, is in `planned.py`."""

from circuitdisc.jobs.job import Call, Job


def _work(call: Call) -> str:
    from circuitdisc.jobs.planned import work

    return work(call)


JOB = Job(
    name="plan",
    arguments=("[discover|transfer|score RUN]",),
    summary="what a run will count, and take in memory and in time, before it is run",
    text="""What a run will count (passes, candidates, node evaluations), take in memory on each rank and in time, before it is
run. The words after it are those of the command that is planned; `discover` may be left out. Where the weights are here, a
plain forward, the first steps of the search itself and the first circuits that are scored are timed, for two minutes at most.
A folder with config.json alone is planned from its shapes; speed=GFLOP/s then gives a time. Nothing is written unless out=
names a folder.

  circuitdisc plan model=gpt2 task=ioi algorithm=acdc algorithm.threshold=0.02 ablation=resample ranks=8
  circuitdisc plan model=FOLDER task=ioi algorithm=eap_ig model.dtype=bfloat16 device_memory=80GiB speed=200000
  circuitdisc plan transfer checkpoints=[tpp/featherweight,tpp/lightweight] task=tpp algorithm=head_ablation
  circuitdisc plan score runs/mine""",
    config="plan",
    work=_work,
)
