import numpy as np
from scipy.special import expit, logit

from ich_kaggle.scans import resampling


def test_the_second_level_is_asked_at_the_training_spacing_and_answers_between():
    frame = resampling.Frame([np.array([0.0, 5.0, 10.0]), 2.5 * np.arange(5)], 5.0)
    position, number = frame.place()
    assert position.tolist() == [0, 5, 10, 0, 5, 10]
    assert number.tolist() == [0, 0, 0, 1, 1, 1]
    values = np.arange(8, dtype=np.float32)[:, None] ** 2
    assert frame.resample(values).ravel().tolist() == [0, 1, 4, 9, 25, 49]
    probability = np.tile([[0.2], [0.5], [0.8], [0.2], [0.5], [0.8]], (1, 6)).astype(np.float32)
    expected = [0.2, 0.5, 0.8, 0.2, expit(logit(0.2) / 2), 0.5, expit(logit(0.8) / 2), 0.8]
    np.testing.assert_allclose(frame.back(probability)[:, 3], expected, atol=1e-6)
    assert frame.back(probability)[:3].tolist() == probability[:3].tolist()


def test_neighbours_of_several_scans_stay_in_their_own():
    frame = resampling.Frame([np.array([0.0, 5.0]), 2.5 * np.arange(5)], 5.0)
    assert frame.neighbours((-1, 0, 1)).tolist() == [
        [0, 0, 1],
        [0, 1, 1],
        [2, 2, 4],
        [2, 3, 5],
        [2, 4, 6],
        [3, 5, 6],
        [4, 6, 6],
    ]


def test_a_series_shorter_than_a_step_is_read_at_one_position():
    frame = resampling.Frame([np.array([0.0, 0.6, 1.2])], 5.0)
    assert frame.place()[0].tolist() == [0]
    assert frame.resample(np.array([[1.0], [2.0], [3.0]])).tolist() == [[1]]
    np.testing.assert_allclose(frame.back(np.full((1, 6), 0.3, np.float32)), np.full((3, 6), 0.3), atol=1e-6)
