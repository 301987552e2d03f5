"""What the jobs share that measure a list of checkpoints on one task."""

from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from circuitdisc.errors import BadSetting
from circuitdisc.jobs.job import Answer, Call


def measured(function: str) -> Callable[[Call, Path, Any], Answer]:
    """The `find` of a job that calls `function(checkpoints, task, **settings)`.

    Args:
        function: its place, as `module:name`; it is imported when the job runs.
    """

    def find(call: Call, folder: Path, journal: Any) -> Answer:
        settings = call.own
        checkpoints = settings.pop("checkpoints")
        if not checkpoints:
            raise BadSetting("which checkpoints? Give checkpoints=[tpp/base,tpp/lightweight], or the folder of a ladder")
        result = resolve_name(function)(
            checkpoints, call.settings["task"], model_settings=call.model_settings, **settings, **call.shared
        )
        names = list(result.checkpoints)
        return Answer(
            result,
            f"{', '.join(names)}; task {call.task_words}",
            record={"model": call.model_settings, "checkpoints": names, "settings": settings},
        )

    return find
