import numpy as np
import pytest
import torch

from ich_kaggle.second_level import series_dataset

LENGTHS = (1, 7, 400, 30)


def made_inputs(lengths=LENGTHS, n_runs=2, sizes=(5, 3)) -> series_dataset.Inputs:
    rng = np.random.default_rng(0)
    n, numbers = sum(lengths), np.repeat(np.arange(len(lengths)), lengths)
    return series_dataset.Inputs(
        [rng.normal(size=(n, size)).astype(np.float16) for size in sizes],
        rng.normal(size=(n, n_runs, 6)).astype(np.float32),
        rng.normal(size=(n, 6)).astype(np.float32),
        (rng.random((n, 6)) < 0.3).astype(np.float32),
        np.concatenate([np.arange(length) * 5.0 for length in lengths]),
        numbers,
        numbers,
    )


def test_a_batch_is_as_long_as_its_slices_whatever_the_longest_series_is():
    dataset = series_dataset.SeriesDataset(made_inputs(), np.arange(4))
    batch, target, rows = series_dataset.join([dataset[0, i] for i in range(4)])
    assert len(batch.logits) == len(target) == sum(LENGTHS)
    assert batch.length.tolist() == list(LENGTHS)
    assert rows.tolist() == list(range(sum(LENGTHS)))


def test_the_gaps_are_centimetres_to_either_neighbour_and_0_at_the_ends_and_between_repeated_positions():
    inputs = made_inputs((4,))
    inputs.position[:] = [0, 5, 5, 20]
    place = series_dataset.SeriesDataset(inputs, np.arange(1))[0, 0][3]
    assert place[:, 0] == pytest.approx([0, 0.5, 0, 1.5])
    assert place[:, 1] == pytest.approx([0.5, 0, 1.5, 0])
    assert place[:, 2] == pytest.approx([0, 0.25, 0.25, 1])


def test_an_unmoved_series_shows_all_its_slices_in_order():
    rng = np.random.default_rng(0)
    assert series_dataset.draw_rows(3, 9, series_dataset.NONE, rng).tolist() == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    "augment, expected",
    [
        (series_dataset.SeriesAugment(1, 0, 0, 0), {(6, 5, 4, 3, 2)}),
        (series_dataset.SeriesAugment(0, 1, 0, 0), {(2, 4, 6), (3, 5)}),
        (series_dataset.SeriesAugment(0, 0, 1, 0, length=4), {(2, 3, 4, 5), (3, 4, 5, 6)}),
    ],
)
def test_a_series_is_reversed_halved_or_cut_to_a_window(augment, expected):
    rng = np.random.default_rng(0)
    assert {tuple(series_dataset.draw_rows(2, 7, augment, rng).tolist()) for _ in range(50)} == expected


def test_a_series_of_one_slice_is_never_emptied():
    everything = series_dataset.SeriesAugment(1, 1, 1, 1, length=1)
    assert all(len(series_dataset.draw_rows(0, 1, everything, np.random.default_rng(i))) == 1 for i in range(20))


def test_some_run_is_always_kept():
    drawn = [
        series_dataset.draw_dropped(3, series_dataset.SeriesAugment(drop=1), np.random.default_rng(i))
        for i in range(20)
    ]
    assert {int(dropped.sum()) for dropped in drawn} == {2}
    assert not series_dataset.draw_dropped(1, series_dataset.SeriesAugment(drop=1), np.random.default_rng(0)).any()


def test_a_dropped_run_has_no_embedding_and_the_logits_of_the_others():
    inputs = made_inputs((6,))
    dataset = series_dataset.SeriesDataset(inputs, np.arange(1), series_dataset.SeriesAugment(0, 0, 0, drop=1))
    embeddings, logits, *_ = dataset[0, 0]
    gone = [i for i in range(2) if not embeddings[i].any()]
    assert len(gone) == 1
    assert np.array_equal(logits[:, gone[0]], inputs.logits[:, 1 - gone[0]])
    assert np.array_equal(embeddings[1 - gone[0]], inputs.embeddings[1 - gone[0]])


def test_what_is_drawn_for_a_series_follows_from_seed_epoch_and_index_alone():
    dataset = series_dataset.SeriesDataset(made_inputs(), np.arange(4), series_dataset.SeriesAugment(), seed=5)
    looks = [[dataset[epoch, 2][-1].tolist() for epoch in range(8)] for _ in range(2)]
    assert looks[0] == looks[1]
    assert len({tuple(rows) for rows in looks[0]}) > 1


def test_a_draw_leaves_the_inputs_as_they_were():
    inputs, untouched = made_inputs(), made_inputs()
    dataset = series_dataset.SeriesDataset(inputs, np.arange(4), series_dataset.SeriesAugment(1, 1, 1, 1))
    for i in range(4):
        dataset[0, i]
    assert np.array_equal(inputs.logits, untouched.logits)
    assert all(np.array_equal(a, b) for a, b in zip(inputs.embeddings, untouched.embeddings, strict=True))


def test_a_batch_flipped_twice_is_itself():
    dataset = series_dataset.SeriesDataset(made_inputs(), np.arange(4))
    batch, _, _ = series_dataset.join([dataset[0, i] for i in (1, 3)])
    flipped, rows = batch.flip()
    assert rows.tolist() == [*range(6, -1, -1), *range(36, 6, -1)]
    again = flipped.flip()[0]
    assert torch.equal(again.logits, batch.logits)
    assert torch.equal(again.place, batch.place)
    assert torch.equal(flipped.place[:, 0], batch.place[rows, 1])
