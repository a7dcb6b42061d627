"""Two processes at one stage in one work folder: both end well, and leave what one leaves.

ICH_PAIRS is how often each stage is run twice at once (2): once from the same moment, then the second from a drawn one.
"""

import os

import numpy as np
import pytest
import stages
from test_kill import duration

N_PAIRS = int(os.environ.get("ICH_PAIRS", "2"))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(N_PAIRS))
@pytest.mark.parametrize("name", stages.NAMES)
def test_two_at_one_stage_end_well_and_leave_what_one_leaves(project, server, name, number):
    delay = np.random.default_rng(number).uniform(0, duration(project, name, 1)) if number else 0
    server.submissions.clear()
    project.reset(name)
    with stages.trial("two at once", name):
        first = project.start(name)
        first.join(delay)
        second = project.start(name)
        ends = [project.end(process) for process in (first, second)]
        # A submission that Kaggle has scored is not sent once more: that is what the second is told.
        told = [end.line for end in ends if end.code]
        assert all(name == "submit" and "Kaggle has these numbers as submission" in line for line in told), told
        assert len(told) < 2
        assert project.differences(name) == []
        assert len(server.submissions) == (name == "submit")
