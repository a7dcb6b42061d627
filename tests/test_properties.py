"""What holds for all inputs, tried on those that Hypothesis finds. Each docstring states the invariant."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import log_loss as sklearn_log_loss

from ich_kaggle.common import cli, labels, metric, paths, series_rows, tables, windows
from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.dicom import png
from ich_kaggle.kaggle_api import submissions
from ich_kaggle.learning import neighbours
from ich_kaggle.scans import passes
from ich_kaggle.scoring import blending, patient_folds, thresholds

settings.register_profile(
    "bounded", max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("bounded")
few = settings(max_examples=40)

N_LABELS = len(LABELS)
SEEDS = st.integers(0, 1 << 32)
PROBABILITY = st.floats(0, 1, width=32)
MEANS = ["equal", "shrunk"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("properties")


def ids_of(n: int) -> np.ndarray:
    return np.array([f"ID_{(7919 * i) % 16**9:09x}" for i in range(n)], object)


# Labels


@st.composite
def wide_tables(draw) -> np.ndarray:
    return draw(arrays.arrays(np.float32, (draw(st.integers(1, 8)), N_LABELS), elements=PROBABILITY))


def long_of(wide: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return slice index, label index and value of each cell of `wide`, in `order`."""
    slice_index, label_index = np.divmod(order, N_LABELS)
    return slice_index, label_index, wide.ravel()[order]


@given(wide_tables(), SEEDS)
def test_wide_to_long_and_back_is_the_same_in_every_order_and_with_rows_repeated(wide, seed):
    """to_wide(long(W) in any order, any of its rows twice) = W."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(wide.size)
    order = np.append(order, rng.choice(order, rng.integers(5)))
    assert np.array_equal(labels.to_wide(*long_of(wide, order), ids_of(len(wide))), wide)


@given(wide_tables(), SEEDS)
def test_a_row_that_is_missing_or_says_otherwise_is_refused(wide, seed):
    """Neither a table without one of its rows, nor one with a row repeated with another value, becomes a wide one."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(wide.size)
    slice_index, label_index, values = long_of(wide, order)
    with pytest.raises(ValueError, match="no row for"):
        labels.to_wide(slice_index[1:], label_index[1:], values[1:], ids_of(len(wide)))
    again = [np.append(part, part[0]) for part in (slice_index, label_index, values)]
    again[2][-1] = 1 - again[2][-1] if again[2][-1] != 0.5 else 0
    with pytest.raises(ValueError, match="different values"):
        labels.to_wide(*again, ids_of(len(wide)))


@given(st.binary(max_size=300) | st.text("ID_0123456789abcdefany,epdural.\n\r\"'\0-", max_size=300).map(str.encode))
def test_whatever_a_long_table_holds_it_is_read_or_refused_by_name(folder, content):
    """read_long(any bytes) gives a table, or ValueError naming the file."""
    (folder / "x.csv").write_bytes(content)
    try:
        slice_ids, slice_index, label_index, values = tables.read_long(paths.Data(folder), "x.csv")
    except ValueError as error:
        assert "x.csv" in str(error)
    else:
        assert len(slice_index) == len(label_index) == len(values) and len(set(slice_ids)) == len(slice_ids)


# Folds


@st.composite
def patients(draw) -> pd.DataFrame:
    """Return a table of slices: 2 to 12 patients of 1 to 6 slices, any labels."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=12))
    target = draw(arrays.arrays(np.float32, (sum(sizes), N_LABELS), elements=st.sampled_from([0, 1])))
    table = pd.DataFrame(target, columns=list(LABELS))
    return table.assign(patient_id=np.repeat([f"p{i:02}" for i in range(len(sizes))], sizes))


@given(patients(), st.integers(2, 5), st.integers(0, 9))
def test_every_patient_is_in_one_fold_whatever_the_order_of_the_rows(table, n_folds, seed):
    """Folds are a function of the patients and the seed: one fold a patient, all patients, none of an empty fold."""
    n_folds = min(n_folds, table.patient_id.nunique())
    made = patient_folds.assign_folds(table, n_folds=n_folds, seed=seed)
    assert sorted(made.patient_id) == sorted(table.patient_id.unique()) and made.patient_id.is_unique
    assert set(made.fold) == set(range(n_folds))
    shuffled = table.sample(frac=1, random_state=seed)
    pd.testing.assert_frame_equal(patient_folds.assign_folds(shuffled, n_folds=n_folds, seed=seed), made)


@given(patients(), st.integers(2, 5), st.integers(0, 9))
def test_folds_are_at_least_as_balanced_as_random_ones_are_expected_to_be(table, n_folds, seed):
    """With s_p the shares a patient has of each label and of the slices, over folds k and patients p,

    sum_k |sum_(p in k) s_p|^2 <= sum_p |s_p|^2 + (|sum_p s_p|^2 - sum_p |s_p|^2) / K,

    the mean over all assignments: each patient goes where the sum grows least, so at most as much as on average.
    """
    n_folds = min(n_folds, table.patient_id.nunique())
    counts = table.assign(n_slices=1).groupby("patient_id")[["n_slices", *LABELS]].sum()
    share = counts.to_numpy(float) / np.maximum(counts.to_numpy(float).sum(axis=0), 1)
    fold = (
        patient_folds.assign_folds(table, n_folds=n_folds, seed=seed)
        .set_index("patient_id")
        .fold[counts.index]
        .to_numpy()
    )
    held = np.stack([share[fold == k].sum(axis=0) for k in range(n_folds)])
    own, whole = (share**2).sum(), (share.sum(axis=0) ** 2).sum()
    assert (held**2).sum() <= own + (whole - own) / n_folds + 1e-9


@given(st.lists(st.integers(1, 6), min_size=2, max_size=12), st.integers(2, 5), st.integers(0, 9))
def test_without_a_label_folds_differ_by_no_more_slices_than_a_patient_has(sizes, n_folds, seed):
    """max_k n_k - min_k n_k <= max_p n_p where slices are all there is to balance."""
    n_folds = min(n_folds, len(sizes))
    table = pd.DataFrame({"patient_id": np.repeat([f"p{i:02}" for i in range(len(sizes))], sizes)})
    made = patient_folds.assign_folds(table.assign(**dict.fromkeys(LABELS, 0.0)), n_folds=n_folds, seed=seed)
    held = table.patient_id.map(made.set_index("patient_id").fold).value_counts()
    assert held.max() - held.min() <= max(sizes)


# Metric


@st.composite
def scored(draw) -> tuple[np.ndarray, np.ndarray]:
    shape = (draw(st.integers(1, 10)), N_LABELS)
    target = draw(arrays.arrays(np.float32, shape, elements=st.sampled_from([0, 1])))
    return target, draw(arrays.arrays(np.float64, shape, elements=st.floats(0, 1)))


@given(scored())
def test_the_metric_is_sklearns_log_loss_of_each_label_any_counted_twice(pair):
    """score = (sum of five labels + 2 any) / 7, each sklearn's log_loss of what is clipped to [1e-15, 1 - 1e-15]."""
    target, probability = pair
    clipped = np.clip(probability, metric.EPS, 1 - metric.EPS)
    peer = [sklearn_log_loss(target[:, i], clipped[:, i], labels=[0, 1]) for i in range(N_LABELS)]
    np.testing.assert_allclose(metric.label_losses(target, probability), peer, rtol=1e-9, atol=1e-12)
    assert metric.log_loss(target, probability) == pytest.approx((sum(peer) + peer[ANY]) / 7, rel=1e-9)


@given(scored(), st.integers(0, 10))
def test_the_metric_is_additive_over_slices_and_finite(pair, cut):
    """n score(A and B) = n_A score(A) + n_B score(B), and no prediction in [0, 1] costs more than -log(1e-15)."""
    target, probability = pair
    cut = min(cut, len(target))
    parts = [slice(0, cut), slice(cut, None)]
    total = sum(metric.losses(target[rows], probability[rows]).sum(axis=0) for rows in parts)
    np.testing.assert_allclose(total / len(target), metric.label_losses(target, probability), rtol=1e-12)
    assert (metric.losses(target, probability) <= -np.log(metric.EPS) + 1e-3).all()


@given(scored(), st.sampled_from([np.nan, np.inf, -1e-9, 1 + 1e-9, -np.inf]))
def test_the_metric_refuses_what_is_no_probability(pair, value):
    """A prediction outside [0, 1] is never clipped into it."""
    target, probability = pair
    probability[-1, -1] = value
    with pytest.raises(ValueError, match="not a number in"):
        metric.log_loss(target, probability)


# Blending


@st.composite
def run_sets(draw, most: int = 4) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return labels (n, 6) and the probabilities of 2 to `most` runs, `any` of each raised."""
    n_runs, n, seed = draw(st.integers(2, most)), draw(st.integers(8, 40)), draw(SEEDS)
    rng = np.random.default_rng(seed)
    target = (rng.random((n, N_LABELS)) < 0.3).astype(np.float32)
    target[:, ANY] = target.max(axis=1)
    noise = rng.uniform(0.2, 3, n_runs)
    logits = [3 * target - 2 + spread * rng.normal(size=target.shape) for spread in noise]
    return target, [blending.raise_any((1 / (1 + np.exp(-x))).astype(np.float32)) for x in logits]


def blend(method: str, target: np.ndarray, probabilities: list) -> blending.Blend:
    return blending.METHODS[method](target, probabilities, np.ones(len(target), np.float32))


def score(made: blending.Blend, target: np.ndarray, probabilities: list) -> float:
    return metric.log_loss(target, blending.combine(made, probabilities))


@few
@given(runs=run_sets())
def test_weights_are_on_the_simplex_and_an_equal_blend_stays_between_its_runs(runs):
    """w >= 0 and sum w = 1 for each label; min over runs <= blend <= max over runs for each slice and label."""
    target, probabilities = runs
    made = blend("equal", target, probabilities)
    assert (made.weights >= -1e-9).all() and not made.bias.any()
    np.testing.assert_allclose(made.weights.sum(axis=0), 1, atol=1e-6)
    stack, mixed = np.stack(probabilities), blending.combine(made, probabilities)
    low, high = stack.min(axis=0), stack.max(axis=0)
    assert ((low - 1e-5 <= mixed) & (mixed <= high + 1e-5)).all()


@pytest.mark.parametrize("method", MEANS)
@few
@given(runs=run_sets())
def test_any_stays_the_largest_in_a_blend_with_one_set_of_weights(method, runs):
    """any >= each subtype in every run implies any >= each subtype in the blend."""
    target, probabilities = runs
    mixed = blending.combine(blend(method, target, probabilities), probabilities)
    assert (mixed[:, ANY] >= mixed.max(axis=1) - 1e-6).all()


@pytest.mark.parametrize("method", list(blending.METHODS))
@few
@given(runs=run_sets(), seed=SEEDS)
def test_the_order_of_the_runs_says_nothing(method, runs, seed):
    """score(blend of the runs in any order) is the same, to what one more Newton step would gain."""
    target, probabilities = runs
    order = np.random.default_rng(seed).permutation(len(probabilities))
    shuffled = [probabilities[i] for i in order]
    here = score(blend(method, target, probabilities), target, probabilities)
    assert here == pytest.approx(score(blend(method, target, shuffled), target, shuffled), abs=1e-4)


@given(arrays.arrays(np.float32, (5, N_LABELS), elements=PROBABILITY))
def test_raising_any_twice_is_raising_it_once_and_touches_nothing_else(probability):
    """raise(raise(p)) = raise(p), any >= each subtype, and the subtypes stay."""
    raised = blending.raise_any(probability.copy())
    assert np.array_equal(blending.raise_any(raised.copy()), raised)
    assert (raised[:, ANY] == probability.max(axis=1)).all() and np.array_equal(raised[:, :ANY], probability[:, :ANY])


# Submissions


@few
@given(st.integers(2, 8), SEEDS)
def test_a_written_submission_verifies_and_gives_every_probability_back_in_the_samples_order(folder, n, seed):
    """read(write(p)) = p as float32, bit for bit; the ids are the sample's, row by row; verify accepts it."""
    rng = np.random.default_rng(seed)
    slice_ids = ids_of(n)
    probability = rng.random((n, N_LABELS)).astype(np.float32) ** int(rng.integers(1, 9))
    probability = blending.raise_any(probability)
    rows = [f"{slice_id}_{label},0.5" for slice_id in slice_ids for label in LABELS]
    rng.shuffle(rows)
    (folder / paths.SAMPLE_CSV).write_text("ID,Label\n" + "\n".join(rows) + "\n")
    tables.write_submission(folder / "out.csv", paths.Data(folder), slice_ids, probability)
    submissions.verify(folder / "out.csv", paths.Data(folder))
    written = (folder / "out.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in written[1:]] == [row.split(",")[0] for row in rows]
    found, slice_index, label_index, values = tables.read_long(paths.Data(folder), "out.csv")
    back = labels.to_wide(slice_index, label_index, values, found)
    assert np.array_equal(back[pd.Index(found).get_indexer(slice_ids)], probability)


# Pictures


@given(
    arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=20))
    | arrays.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3)))
)
def test_any_image_comes_back_from_its_png_and_another_reader_sees_the_same(image):
    """decode(encode(x)) = x, and OpenCV decodes the same pixels."""
    content = png.encode(image)
    assert np.array_equal(png.decode(content), image)
    seen = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(seen[..., ::-1] if image.ndim == 3 else seen, image)


@given(
    st.lists(st.integers(-32768, 32767), min_size=2, max_size=30),
    st.floats(-2000, 3000),
    st.floats(1, 4000),
    st.sampled_from([np.int16, np.float32]),
)
def test_a_window_never_falls_as_hu_rise_and_is_black_below_and_white_above(hu, center, width, kind):
    """HU a <= b implies gray(a) <= gray(b); gray = 0 up to center - width/2 and 255 from center + width/2."""
    hu = np.sort(np.array(hu, kind))[None]
    gray = windows.apply(hu, (windows.Window(center, width),))[0, :, 0].astype(int)
    assert (np.diff(gray) >= 0).all()
    clipped = np.clip(hu[0], windows.LOWEST, windows.HIGHEST)
    assert (gray[clipped <= center - width / 2] == 0).all() and (gray[clipped >= center + width / 2] == 255).all()


# Series


@st.composite
def series_of(draw) -> tuple[np.ndarray, np.ndarray]:
    """Return series ids that stand together, and ascending positions in each."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=8))
    steps = [
        draw(st.lists(st.sampled_from([0.0, 0.005, 2.5, 5.0, 1000.0]), min_size=n, max_size=n).map(np.cumsum))
        for n in sizes
    ]
    return np.repeat([f"s{i}" for i in range(len(sizes))], sizes), np.concatenate(steps)


@given(series_of())
def test_spans_part_the_table_and_places_run_from_0_to_1(series):
    """The spans follow on each other, cover all rows, and hold one series each; relative places rise from 0 to 1."""
    ids, position = series
    numbers = series_rows.number(ids)
    start, stop = series_rows.bounds(numbers)
    assert start[0] == 0 and stop[-1] == len(ids) and np.array_equal(start[1:], stop[:-1])
    place = series_rows.relative(numbers, position)
    for a, b in zip(start, stop, strict=True):
        assert len(set(ids[a:b])) == 1 and (np.diff(place[a:b]) >= 0).all()
        ends = (0.5, 0.5) if position[a] == position[b - 1] else (0, 1)
        assert (place[a], place[b - 1]) == ends


@given(series_of(), st.integers(1, 12))
def test_chunks_part_the_table_into_whole_series(series, size):
    """Chunks follow on each other, cover all rows, cut no series, and have `size` rows or more, all but the last."""
    ids, _ = series
    found = passes.chunks(ids, size)
    assert [row for rows in found for row in range(rows.start, rows.stop)] == list(range(len(ids)))
    assert all(ids[rows.stop - 1] != ids[rows.stop] for rows in found[:-1])
    assert all(rows.stop - rows.start >= size for rows in found[:-1])


@given(series_of(), st.integers(-3, 3))
def test_neighbours_are_of_the_same_series_and_on_the_right_side(series, offset):
    """beside(row, d) is in row's series, at or above it for d > 0, at or below for d < 0, and row itself for d = 0."""
    ids, position = series
    beside = neighbours.neighbours(ids, position, (offset, 0))
    assert np.array_equal(beside[:, 1], np.arange(len(ids))) and (ids[beside[:, 0]] == ids).all()
    assert (np.sign(offset) * (position[beside[:, 0]] - position) >= -6 * neighbours.SAME).all()


# Thresholds


@st.composite
def predicted(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = draw(st.integers(1, 25))
    target = draw(arrays.arrays(np.float32, n, elements=st.sampled_from([0, 1])))
    probability = draw(arrays.arrays(np.float64, n, elements=st.sampled_from(np.linspace(0, 1, 9).tolist())))
    return target, probability, draw(arrays.arrays(np.int64, n, elements=st.integers(0, 4)))


@given(predicted(), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_the_more_may_be_missed_the_higher_the_threshold_and_it_keeps_its_promise(predicted, one, other):
    """Miss rates rise with thresholds; alpha <= beta implies t(alpha) <= t(beta); (n R(t) + 1) / (n + 1) <= alpha."""
    target, probability, patient = predicted
    curve = thresholds.miss_curve(target, probability, patient)
    assert (np.diff(curve[1]) >= 0).all()
    low, high = sorted((one, other))
    for choose in (thresholds.expected, lambda curve, alpha: thresholds.confident(curve, alpha, 0.9)):
        assert choose(curve, low) <= choose(curve, high)
    if (threshold := thresholds.expected(curve, low)) > 0:
        positive = target > 0
        missed = [(probability[positive & (patient == who)] < threshold).mean() for who in np.unique(patient[positive])]
        assert (sum(missed) + 1) / (len(missed) + 1) <= low + 1e-12


@given(predicted(), st.floats(0.25, 4))
def test_the_best_f_is_the_best_of_all_thresholds(predicted, beta):
    """F-beta at the threshold chosen is the largest over all of them."""
    target, probability, _ = predicted

    def f(threshold: float) -> float:
        called = probability >= threshold
        return (1 + beta**2) * (called & (target > 0)).sum() / max(called.sum() + beta**2 * target.sum(), 1e-9)

    assert f(thresholds.best_f(target, probability, beta)) == pytest.approx(max(map(f, [*probability, 1.0])))


# Words that become paths and lines


@given(st.text(max_size=40) | st.text("./\\ID_0aZ-~\0\n", max_size=12))
def test_a_name_leads_into_its_folder_or_nowhere(name):
    """The path made of any run, ensemble, study or slice lies below its folder, or is refused."""
    root = Path("/root/of/all")
    for make in (paths.run, paths.ensemble, paths.sheet, paths.cached):
        try:
            path = make(root, name)
        except ValueError:
            continue
        assert ".." not in path.parts and path.is_relative_to(root) and path != root


@given(st.text(), st.integers(4, 60))
def test_what_is_printed_is_one_line_that_steers_no_terminal(text, longest):
    """printable(any text) has no line end, no control character, and at most `longest` characters."""
    line = cli.printable(text, longest)
    assert line.isprintable() and len(line) <= longest
