import sys

import pytest
import torch

from ich_kaggle import gauges


@pytest.mark.parametrize(
    "seconds, said", [(0.2, "0 s"), (42, "42 s"), (600, "10 min"), (7200, "2.0 h"), (12600, "3.5 h")]
)
def test_a_duration_is_said_in_seconds_minutes_or_hours(seconds, said):
    assert gauges.duration(seconds) == said


def test_only_the_first_batches_are_worked_on():
    seen = []
    assert gauges.seconds_per_batch(iter(range(10)), seen.append, n=3) >= 0
    assert seen == [0, 1, 2]


def test_the_size_of_a_file_is_that_of_what_is_written():
    assert gauges.size_on_disk(lambda path: path.write_bytes(b"12345")) == 5


def test_the_peak_of_memory_is_at_least_what_is_held():
    held = torch.ones(20_000_000)
    assert gauges.peak_memory(torch.device("cpu")) > held.nbytes


def test_without_tensorboard_the_message_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'ich_kaggle\[tensorboard\]'"):
        gauges.board(tmp_path)
