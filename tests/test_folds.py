import shutil

import numpy as np
import pandas as pd
import pytest

from ich_kaggle import folds
from ich_kaggle.common import paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.dicom import slice_table
from ich_kaggle.scoring import leak_check, patient_folds


@pytest.fixture(scope="module")
def scanned(competition, tmp_path_factory):
    """A working folder with the slice table and three folds."""
    work_dir = tmp_path_factory.mktemp("folds")
    folds.main(["--data-dir", str(competition), "--work-dir", str(work_dir), "--folds", "3", "--workers", "1"])
    return work_dir


@pytest.fixture
def work_dir(scanned, tmp_path):
    shutil.copytree(scanned, tmp_path / "work")
    return tmp_path / "work"


def table_of(n_patients: int, seed: int = 0) -> pd.DataFrame:
    """Return a slice table whose patients bleed rarely, each in a stretch of slices."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), rng.integers(20, 60, n_patients))
    rate = np.array([0.01, 0.1, 0.08, 0.1, 0.13])
    target = (rng.random((n_patients, 5)) < rate)[patient] & (rng.random((len(patient), 5)) < 0.3)
    table = pd.DataFrame(np.c_[target, target.any(axis=1)].astype(np.float32), columns=list(LABELS))
    table.insert(0, "patient_id", [f"ID_{i:08x}" for i in patient])
    return table


def run(work_dir, *flags) -> None:
    folds.main(["--work-dir", str(work_dir), "--workers", "1", *flags])


def test_every_label_and_the_slices_are_balanced():
    table = table_of(3000)
    of_patient = patient_folds.assign_folds(table, n_folds=5, seed=0).set_index("patient_id").fold
    by_fold = table.groupby(table.patient_id.map(of_patient))
    assert (by_fold.size() / (len(table) / 5)).to_numpy() == pytest.approx(np.ones(5), abs=2e-3)
    rates = by_fold[list(LABELS)].mean() / table[list(LABELS)].mean()
    assert np.abs(rates - 1).to_numpy().max() < 0.05 and np.abs(rates["any"] - 1).max() < 0.01


def draw(seed: int) -> pd.DataFrame:
    """Return a slice table of the competition's size: in a sick patient, a third of the slices are positive."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(18_938), rng.integers(24, 56, 18_938))
    is_sick = rng.random((18_938, 5)) < (0.012, 0.16, 0.12, 0.15, 0.17)
    target = is_sick[patient] & (rng.random((len(patient), 5)) < 1 / 3)
    table = pd.DataFrame(np.c_[target, target.any(axis=1)].astype(np.float32), columns=list(LABELS))
    return table.assign(patient_id=patient)


def test_no_label_is_more_than_a_third_of_a_percent_off_in_any_fold_at_full_size():
    for seed in range(4):  # 0.3 to 0.44 % without the swaps
        table = draw(seed)
        found = patient_folds.assign_folds(table, n_folds=5, seed=seed)
        fold = found.fold.to_numpy()[table.patient_id]
        rates = table.groupby(fold)[list(LABELS)].mean() / table[list(LABELS)].mean()
        assert np.abs(rates - 1).to_numpy().max() < 0.003
        assert np.unique(fold, return_counts=True)[1] == pytest.approx(np.full(5, len(table) / 5), rel=0.003)


def test_every_patient_has_one_fold_whatever_the_order_of_the_slices():
    table = table_of(100)
    found = patient_folds.assign_folds(table, n_folds=4, seed=0)
    assert sorted(found.patient_id) == sorted(table.patient_id.unique())
    assert found.equals(patient_folds.assign_folds(table.sample(frac=1, random_state=0), n_folds=4, seed=0))


def test_a_seed_gives_the_same_folds_and_another_seed_others():
    table = table_of(400)
    first, again, other = (patient_folds.assign_folds(table, n_folds=5, seed=seed).fold for seed in (0, 0, 1))
    assert first.equals(again) and 0.1 < (first == other).mean() < 0.35


@pytest.mark.parametrize("n_folds", [1, 11])
def test_more_folds_than_patients_or_one_are_refused(n_folds):
    with pytest.raises(ValueError, match=f"{n_folds} folds of 10 patients: choose 2 to 10"):
        patient_folds.assign_folds(table_of(10), n_folds=n_folds, seed=0)


def test_repeats_are_splits_of_other_draws():
    table = table_of(400)
    drawn = [patient_folds.assign_folds(table, n_folds=5, seed=seed).fold for seed in (0, [0, 1], [0, 2])]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert 0.1 < (drawn[a] == drawn[b]).mean() < 0.35


def test_from_takes_what_repeats_wrote_and_repeats_leave_the_folds_alone(work_dir, tmp_path):
    before = paths.folds(work_dir).read_text()
    run(work_dir, "--folds", "3", "--repeats", "3")
    assert paths.folds(work_dir).read_text() == before
    repeat = shutil.copy(work_dir / "folds2.csv", tmp_path / "repeat.csv")
    run(work_dir, "--from", str(repeat), "--overwrite")
    assert pd.read_csv(paths.folds(work_dir)).equals(pd.read_csv(repeat))
    assert tables.folds_settings(work_dir)["from"] == storage.file_hash(tmp_path / "repeat.csv")


@pytest.mark.parametrize("column", ["patient_id", "slice_id"])
def test_from_takes_ids_of_any_form(tmp_path, column):
    train = table_of(8).assign(slice_id=lambda t: [f"1.2.{row}" for row in range(len(t))])
    train["patient_id"] = train.patient_id.str.replace("ID_", "MRN")
    given = train[[column]].assign(fold=pd.factorize(train.patient_id)[0] % 2)
    given.to_csv(tmp_path / "folds.csv", index=False)
    found = patient_folds.adopt(tmp_path / "folds.csv", train)
    assert sorted(found.patient_id) == sorted(train.patient_id.unique()) and set(found.fold) == {0, 1}


def train_of(work_dir) -> pd.DataFrame:
    table = tables.read_slices(work_dir)
    return table[table.split == "train"]


def test_folds_by_slice_id_become_folds_by_patient(scanned, tmp_path):
    train = train_of(scanned)
    number = train.patient_id.map({p: 1 + i % 2 for i, p in enumerate(sorted(train.patient_id.unique()))})
    other = pd.DataFrame({"Image": train.slice_id + ".dcm", "Fold": number, "x": 1.5})
    other.loc[len(train)] = ["ID_fffffffff.dcm", 1, 0]  # a slice that was left out of the table
    other.to_csv(tmp_path / "theirs.csv", index=False)
    found = patient_folds.adopt(tmp_path / "theirs.csv", train).set_index("patient_id").fold
    assert (train.patient_id.map(found) == number - 1).all()


def test_folds_from_elsewhere_that_leak_or_lack_patients_are_refused_by_name(scanned, tmp_path):
    train, path = train_of(scanned), tmp_path / "theirs.csv"
    patients = sorted(train.patient_id.unique())
    given = pd.DataFrame({"slice": train.slice_id, "fold": np.arange(len(train)) % 2})
    given.to_csv(path, index=False)
    with pytest.raises(ValueError, match=rf"theirs.csv: patient ID_\w+ is in folds 0, 1 \({len(patients)} such"):
        patient_folds.adopt(path, train)
    pd.DataFrame({"p": patients[1:], "fold": np.arange(len(patients) - 1) % 2}).to_csv(path, index=False)
    with pytest.raises(ValueError, match=f"no fold for patient {patients[0]} \\(1 such patients\\)"):
        patient_folds.adopt(path, train)
    pd.DataFrame({"p": patients, "fold": 0}).to_csv(path, index=False)
    with pytest.raises(ValueError, match="all patients are in one fold"):
        patient_folds.adopt(path, train)
    pd.DataFrame({"p": ["x"], "fold": 0}).to_csv(path, index=False)
    with pytest.raises(ValueError, match="no id of a training patient or slice"):
        patient_folds.adopt(path, train)
    pd.DataFrame({"p": patients, "k": 0}).to_csv(path, index=False)
    with pytest.raises(ValueError, match="the columns are p, k: one must be fold"):
        patient_folds.adopt(path, train)


def test_other_settings_over_the_same_folds_are_refused_with_both_named(work_dir):
    with pytest.raises(SystemExit, match="was made with folds 3, not 4"):
        run(work_dir, "--folds", "4")


def test_a_clean_split_passes_the_check(work_dir, capsys):
    run(work_dir, "--check")
    assert "nothing shared between folds, or train and test" in capsys.readouterr().out
    before = (work_dir / "fingerprints.parquet").stat().st_mtime_ns
    run(work_dir, "--check")
    assert (work_dir / "fingerprints.parquet").stat().st_mtime_ns == before


def test_the_check_names_a_patient_in_train_and_test_and_fails(work_dir):
    table = tables.read_slices(work_dir)
    patient = table.patient_id[0]
    table.loc[table.split == "test", "patient_id"] = patient
    tables.write_slices(work_dir, table, tables.slices_settings(work_dir))
    with pytest.raises(SystemExit, match=f"1 leaks, the first: patient {patient} is in test and fold"):
        run(work_dir, "--check")


def test_the_check_names_a_study_and_pixels_that_two_folds_share(work_dir):
    table = tables.read_slices(work_dir)
    fold = tables.read_folds(work_dir, table)
    a, b = int((fold == 0).argmax()), int((fold == 1).argmax())
    table.loc[b, "study_id"] = table.study_id[a]
    prints = pd.DataFrame({"pixels": [b"%d" % i for i in range(len(table))], "look": [b""] * len(table)})
    prints.loc[b, "pixels"] = prints.pixels[a]
    found, alike = patient_folds.check(table, fold, prints)
    assert found == [
        f"study {table.study_id[a]} is in fold 0 and fold 1",
        f"identical pixels: {', '.join(f'{table.slice_id[i]} (fold {fold[i]})' for i in sorted((a, b)))}",
    ]
    assert alike == []


def test_a_copied_dicom_is_found_by_its_pixels(competition, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(competition, data)
    train, test = (sorted((data / f"stage_2_{split}").glob("*.dcm")) for split in paths.SPLITS)
    import pydicom

    source, target = pydicom.dcmread(train[0]), pydicom.dcmread(test[0])
    for keyword in ("PixelData", "Rows", "Columns", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(target, keyword, getattr(source, keyword))
    target.save_as(test[0])
    slice_table.make(data_dir=data, work_dir=tmp_path / "work", workers=1)
    run(tmp_path / "work", "--folds", "3")
    with pytest.raises(SystemExit, match=rf"identical pixels: .*{train[0].stem}.*{test[0].stem} \(test\)"):
        run(tmp_path / "work", "--check")


def test_near_duplicates_are_listed_and_do_not_fail(work_dir, capsys):
    table = tables.read_slices(work_dir)
    fold = tables.read_folds(work_dir, table)
    rng = np.random.default_rng(0)
    prints = pd.DataFrame({"pixels": [b"%d" % i for i in range(len(table))]})
    prints["look"] = [rng.bytes(32) for _ in range(len(table))]
    b = int((fold == leak_check.TEST).argmax())
    prints.loc[b, "look"] = prints.look[0]
    found, alike = patient_folds.check(table, fold, prints)
    assert found == [] and len(alike) == 1
    assert table.slice_id[0] in alike[0] and f"{table.slice_id[b]} (test): 0 of 256 bits differ" in alike[0]


def test_real_folds_leak_nothing(real_data, tmp_path, capsys):
    folds.main(["--data-dir", str(real_data), "--work-dir", str(tmp_path), "--folds", "4", "--workers", "1"])
    run(tmp_path, "--check")
    assert "nothing shared" in capsys.readouterr().out
