import tempfile

import numpy as np
import pytest
import torch

from ich_kaggle.common import paths
from ich_kaggle.dicom import png
from ich_kaggle.learning import datasets
from ich_kaggle.learning.datasets import Batches, SliceDataset

IDS = [f"ID_{i:09x}" for i in range(6)]


def still(image, rng):
    return image


@pytest.fixture
def folder(tmp_path):
    """Six cached slices of 8 px; channel c of slice i is 10 i + c."""
    for i, slice_id in enumerate(IDS):
        path = paths.cached(tmp_path / "8", slice_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        png.write(path, np.full((8, 8, 3), 10 * i, np.uint8) + np.arange(3, dtype=np.uint8))
    return tmp_path / "8"


TARGET = np.arange(36, dtype=np.float32).reshape(6, 6)


def dataset(folder, move=still, target=TARGET, **options) -> SliceDataset:
    return SliceDataset(folder, IDS, target, move, **options)


def test_an_item_is_the_image_the_target_and_the_row(folder):
    image, target, row = dataset(folder)[0, 4]
    assert image.dtype == torch.uint8 and image[0, 0].tolist() == [40, 41, 42]
    assert target.tolist() == list(range(24, 30))
    assert row == 4


def test_a_context_is_the_chosen_channels_of_each_neighbour_in_turn(folder):
    beside = np.array([[1, 2, 2]] * 6)
    assert dataset(folder, beside=beside, channels=[1])[0, 0][0][0, 0].tolist() == [11, 21, 21]
    assert dataset(folder, beside=beside)[0, 0][0][0, 0].tolist() == [10, 11, 12, 20, 21, 22, 20, 21, 22]
    assert dataset(folder, beside=beside, channels=[2, 0])[0, 0][0][0, 0].tolist() == [12, 10, 22, 20, 22, 20]
    assert dataset(folder, channels=[1])[0, 3][0].tolist() == [[[31]] * 8] * 8


def test_the_labels_of_the_neighbours_come_with_them_and_turn_round_with_them(folder):
    beside = np.array([[0, 1, 2]] * 6)
    options = dict(beside=beside, channels=[0], target=TARGET[beside])
    image, target, _ = dataset(folder, **options)[0, 1]
    assert image[0, 0].tolist() == [0, 10, 20] and target[:, 0].tolist() == [0, 6, 12]
    image, target, _ = dataset(folder, **options, swap=1.0)[0, 1]
    assert image[0, 0].tolist() == [20, 10, 0] and target[:, 0].tolist() == [12, 6, 0]


def test_what_is_drawn_for_a_slice_depends_on_seed_epoch_and_row_alone(folder):
    def noise(image, rng):
        return rng.integers(0, 256, image.shape, np.uint8)

    def draw(seed, epoch, row):
        return dataset(folder, noise, seed=seed)[epoch, row][0].tolist()

    assert draw(0, 1, 2) == draw(0, 1, 2)
    assert len({str(draw(*which)) for which in ((0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3))}) == 4


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_damaged_slice_names_itself_and_the_command_that_mends_it(folder, workers, damage):
    path = paths.cached(folder, IDS[3])
    content = path.read_bytes()
    path.write_bytes(content[:60] if damage == "cut" else b"")
    if damage == "gone":
        path.unlink()
    loader = datasets.loader(dataset(folder), 2, workers)
    with pytest.raises(ValueError) as error:
        list(datasets.batches(loader))
    assert str(error.value).startswith(f"{path} can't be read")
    assert "python -m ich_kaggle.cache --cache-size 8" in str(error.value)
    assert "\n" not in str(error.value)


def test_workers_that_are_started_anew_load_the_same(folder, monkeypatch):
    def epoch(workers):
        return [batch[0] for batch in datasets.loader(dataset(folder), 4, workers)]

    monkeypatch.setenv("ICH_START_METHOD", "spawn")
    loader = datasets.loader(dataset(folder), 4, 1)
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    assert all(torch.equal(one, other) for one, other in zip(epoch(1), epoch(0), strict=True))


@pytest.mark.parametrize(
    "told",
    [
        "DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that it lacks shared memory.",
        "Traceback:\nRuntimeError: unable to write to file </torch_9_1_0>: No space left on device (28)",
    ],
)
def test_a_small_dev_shm_is_told_in_one_line_with_the_remedy(told):
    def loader():
        raise RuntimeError(told)
        yield

    with pytest.raises(RuntimeError, match="^/dev/shm is too small .*: give the container --shm-size 8g or") as error:
        list(datasets.batches(loader()))
    assert "\n" not in str(error.value)


def rows(batches) -> list[int]:
    return [row for batch in batches for _, row in batch]


def test_without_a_seed_the_rows_come_in_order():
    assert rows(Batches(7, 3)) == list(range(7))


def test_an_epoch_shows_every_row_once_and_the_next_in_another_order():
    batches = Batches(50, 8, seed=0)
    first = rows(batches)
    batches.epoch = 1
    second = rows(batches)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert rows(Batches(50, 8, seed=0)) == first


def test_the_batches_of_an_epoch_are_of_nearly_one_size():
    sizes = {len(batch) for batch in Batches(101, 10, seed=0)}
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= 10


def test_an_epoch_taken_up_again_goes_on_with_the_batches_it_had_left():
    batches = Batches(50, 8, seed=3)
    whole = list(batches)
    batches.start = 4
    assert list(batches) == whole[4:]
    assert len(batches) == len(whole)


def test_a_sampler_says_which_rows_an_epoch_shows():
    batches = Batches(50, 4, seed=0, draw=lambda rng: rng.choice(50, 10, replace=False))
    assert len(batches) == 3
    assert len(rows(batches)) == 10


@pytest.mark.parametrize("n", [2, 7, 8, 9, 50])
def test_two_processes_share_every_batch_and_neither_is_left_without(n):
    whole = [set(batch) for batch in Batches(n, 4, seed=0)]
    shards = [[set(batch) for batch in Batches(n, 4, seed=0, shard=(k, 2))] for k in range(2)]
    assert all(a and b and not a & b for a, b in zip(*shards, strict=True))
    assert set.union(*shards[0], *shards[1]) == set.union(*whole)


@pytest.mark.parametrize("n", [0, 1, 7, 8])
def test_two_processes_predict_every_row_once(n):
    shards = [rows(Batches(n, 3, shard=(k, 2))) for k in range(2)]
    assert sorted(shards[0] + shards[1]) == list(range(n))


def test_workers_give_what_one_process_gives(folder):
    def noise(image, rng):
        return rng.integers(0, 256, image.shape, np.uint8)

    alone, helped = (datasets.loader(dataset(folder, noise), 2, workers, seed=0) for workers in (0, 2))
    for a, b in zip(alone, helped, strict=True):
        assert all((one == other).all() for one, other in zip(a, b, strict=True))


def test_making_a_loader_draws_nothing_from_the_global_generator(folder):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(datasets.loader(dataset(folder), 2, 0, seed=0))
    assert (torch.get_rng_state() == before).all()


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 5, 1], [4, 8]])
def test_no_batch_crosses_from_a_part_to_the_next_and_each_part_has_the_batches_that_it_has_alone(sizes):
    found, start = datasets.in_parts(sizes, 3), 0
    for size in sizes:
        alone = list(Batches(size, 3))
        assert found[: len(alone)] == [[(0, start + row) for _, row in batch] for batch in alone]
        found, start = found[len(alone) :], start + size
    assert not found


def test_a_folder_for_temporary_files_whose_path_is_too_long_for_sockets_is_refused(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 90)
    assert datasets.in_processes([0], [[0]], 0)  # no worker, no socket
    with pytest.raises(ValueError, match="TMPDIR /tmp/x+ is too long for the loader's workers: set"):
        datasets.in_processes([0], [[0]], 1)
