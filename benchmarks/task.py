"""``python -m benchmarks.task``: the one task that a process of its own was started for. ``process.run`` starts it."""

import json
import os
import sys

from benchmarks import agreement, measure, one_sample, profile, steps, widgets

TASKS = {
    "time": measure.time,
    "memory": measure.memory,
    "tape": measure.tape,
    "agree": agreement.agree,
    "one sample": one_sample.time,
    "one sample agrees": one_sample.disagreement,
    "profile": profile.times,
    "steps": steps.times,
    "redraw": widgets.redraw,
}


def _limit_memory(fraction: float = 0.6) -> None:
    """A peer that wants more than this part of the machine gets an exception, and the machine stays alive."""
    import resource

    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (int(fraction * physical),) * 2)


def main() -> None:
    _limit_memory()
    arguments = json.loads(sys.argv[1])
    print(json.dumps(TASKS[arguments.pop("task")](**arguments)))


if __name__ == "__main__":
    main()
