import sys

import pytest
import torch

from ich_kaggle.learning import profiling


@pytest.mark.parametrize(
    "seconds, said", [(0.2, "0 s"), (42, "42 s"), (600, "10 min"), (7200, "2.0 h"), (12600, "3.5 h")]
)
def test_a_duration_is_said_in_seconds_minutes_or_hours(seconds, said):
    assert profiling.duration(seconds) == said


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The seconds that have passed, as gauges sees them."""
    now = [0.0]
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: now[0])
    return now


def passing(clock: list[float], seconds: list[float]):
    """Yield a batch after each of `seconds`."""
    for one in seconds:
        clock[0] += one
        yield one


def test_batches_that_were_loaded_before_the_first_was_asked_for_do_not_count(clock):
    ready = [5.0] + [0.01] * 4  # workers start; what is in their queue comes at once
    assert profiling.seconds_per_batch(passing(clock, ready + [2.0] * 90), lambda _: None, 4) == pytest.approx(2.0)


def test_a_rate_is_of_all_of_a_window_with_the_slow_batches(clock):
    bursts = [0.2, 0.2, 0.2, 3.4] * 90  # a median would say 0.2
    assert profiling.seconds_per_batch(passing(clock, bursts), lambda _: None, 3) == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize("each, n_queued, n", [(0.5, 0, 21), (12.0, 0, 3), (0.001, 4, 10_001 + 4)])
def test_a_measurement_ends_after_its_window_and_at_the_longest_after_half_a_minute(clock, each, n_queued, n):
    seen = []
    assert profiling.seconds_per_batch(passing(clock, [each] * 99_999), seen.append, n_queued) == pytest.approx(each)
    assert len(seen) == pytest.approx(n, abs=2)


def test_the_work_on_a_batch_counts(clock):
    def work(_):
        clock[0] += 1.0

    assert profiling.seconds_per_batch(passing(clock, [0.5] * 40), work, 2) == pytest.approx(1.5)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_batches_are_timed_as_well_as_they_can_be(clock, n):
    assert profiling.seconds_per_batch(passing(clock, [1.0] * n), lambda _: None, 8) == pytest.approx(1.0)


def test_what_a_step_keeps_for_its_gradient_is_counted_once_and_grows_with_the_batch():
    model = torch.nn.Sequential(torch.nn.Linear(100, 1000), torch.nn.Sigmoid(), torch.nn.Linear(1000, 10))
    kept = [profiling.activation_bytes(model, torch.zeros(n, 100)) for n in (2, 4)]
    assert kept == [2 * 4 * (100 + 1000), 4 * 4 * (100 + 1000)]  # the input and what comes out of the sigmoid


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_dot_", ".")).write_text(text)


def test_the_limit_of_a_control_group_counts_with_its_file_cache_free(tmp_path):
    write(tmp_path, memory_dot_max="1000\n", memory_dot_current="900\n", memory_dot_stat="anon 500\nfile 400\n")
    assert profiling._group_room(tmp_path) == [500]
    write(tmp_path, memory_dot_max="max\n")
    assert profiling._group_room(tmp_path) == []
    old = {"memory_dot_limit_in_bytes": "800\n", "memory_dot_usage_in_bytes": "700\n"}
    write(tmp_path / "memory", **old, memory_dot_stat="cache 1\ntotal_cache 20\n")
    assert profiling._group_room(tmp_path) == [120]


def test_free_memory_is_that_of_the_smaller_of_machine_and_group_shared_by_the_processes(monkeypatch):
    whole = profiling.psutil.virtual_memory().total
    assert 0 < profiling.free_memory() <= whole
    monkeypatch.setattr(profiling, "_group_room", lambda root: [1000])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert profiling.free_memory() == 250


def test_the_size_of_a_file_is_that_of_what_is_written():
    assert profiling.size_on_disk(lambda path: path.write_bytes(b"12345")) == 5


def test_the_peak_of_memory_is_at_least_what_is_held():
    held = torch.ones(20_000_000)
    assert profiling.peak_memory(torch.device("cpu")) > held.nbytes


def test_without_tensorboard_the_message_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'ich_kaggle\[tensorboard\]'"):
        profiling.board(tmp_path)
