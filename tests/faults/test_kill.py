"""A stage killed at any moment, with all its processes, and run again leaves what an undisturbed one leaves.

ICH_KILLS is how many are killed (12). The moments are drawn from the kill's number, over the time that the undisturbed
stage takes; now and then the run after it is killed too.
"""

import os
import time
from functools import cache

import numpy as np
import pytest
import stages

N_KILLS = int(os.environ.get("ICH_KILLS", "12"))
KILLED = ["slices", "cache", "train", "sequence", "ensemble", "submit", "predict", "phantom", "evaluate", "folds"]
AGAIN = 0.3  # share of the kills after which the next run is killed too
TRIES = 20  # draws of a moment at which the stage has not ended


@cache
def duration(project: stages.Project, name: str, workers: int) -> float:
    """Return the seconds that the undisturbed stage takes."""
    project.reset(name)
    began = time.monotonic()
    project.make(name, workers=workers)
    took = time.monotonic() - began
    assert project.differences(name) == []
    return took


@pytest.mark.slow
@pytest.mark.parametrize("number", range(N_KILLS))
def test_a_killed_stage_run_again_leaves_what_an_undisturbed_one_leaves(project, server, number):
    name, workers = KILLED[number % len(KILLED)], 1 + number // len(KILLED) % 2
    whole = duration(project, name, workers)
    rng = np.random.default_rng(number)
    for moment in rng.uniform(0, whole, TRIES):
        server.submissions.clear()  # of one that ended undisturbed
        project.reset(name)
        process = project.start(name, workers=workers)
        process.join(moment)
        if process.is_alive():
            break
    else:
        pytest.fail(f"{name} ended before each of {TRIES} moments")
    with stages.trial("kill -9", name):
        stages.kill(process)
        again = project.start(name, workers=workers)
        if rng.random() < AGAIN:
            again.join(rng.uniform(0, whole))
            stages.tried["kill -9, the run after it too", name] += again.is_alive()
            stages.kill(again)
            again = project.start(name, workers=workers)
        done = project.end(again)
        # Of two kills the second may have come after the end: then Kaggle has scored what is not sent once more.
        assert done.code == 0 or "Kaggle has these numbers as submission" in done.line, done.err
        assert project.differences(name) == []
        assert len(server.submissions) == (name == "submit")
