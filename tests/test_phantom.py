import zipfile

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest

from ich_kaggle import phantom
from ich_kaggle.common import cli, paths, storage
from ich_kaggle.common.labels import LABELS
from ich_kaggle.synthetic import competition, dicom_writer, patients, studies

dicom_writer.allow_short_ids()
SETTINGS = dict(patients=12, slices=8, size=64, defects=0.01, label_noise=0.5, prevalence=0.8, masks=True)
KINDS = list(LABELS[:5])


def make(out, **changes):
    phantom.phantom(out=out, **SETTINGS | changes)
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("phantom") / "made", zip=True)


@pytest.fixture(scope="module")
def truth(made):
    return pd.read_parquet(made / competition.TRUTH)


@pytest.fixture(scope="module")
def headers(made):
    files = sorted(made.glob("stage_2_*/*.dcm"))
    return {file.stem: pydicom.dcmread(file) for file in files}


@pytest.fixture(scope="module")
def train(made):
    table = pd.read_csv(made / paths.TRAIN_CSV)
    table[["slice_id", "label"]] = table.ID.str.rsplit("_", n=1, expand=True)
    return table


@pytest.fixture(scope="module")
def read(train):
    return train.drop_duplicates().pivot(index="slice_id", columns="label", values="Label")


def content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def hu_of(dicom):
    return dicom.pixel_array.astype(np.int32) + int(dicom.RescaleIntercept)


def cut_short(dicom):
    return len(dicom.PixelData) < 2 * dicom.Rows * dicom.Columns


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_bytes_for_any_number_of_workers(made, tmp_path, workers):
    again = make(tmp_path / "again", zip=True, workers=workers)
    assert content(again) == content(made)
    assert competition.zip_of(again).read_bytes() == competition.zip_of(made).read_bytes()


def test_another_seed_gives_other_files(made, tmp_path):
    other = make(tmp_path / "other", patients=2, seed=1)
    assert not {file.name for file in other.glob("*/*.dcm")} & {file.name for file in made.glob("*/*.dcm")}


def noise(folder):
    """The standard deviation of neighbouring pixels of brain, in HU, over all slices."""
    found = []
    for hu in (hu_of(pydicom.dcmread(file)) for file in sorted(folder.glob("stage_2_train/*.dcm"))):
        pairs = hu[:, 1:], hu[:, :-1]
        inside = np.logical_and.reduce([(half > 0) & (half < 60) for half in pairs])
        found.append((pairs[0] - pairs[1])[inside])
    return np.concatenate(found).std() / np.sqrt(2)


def test_a_shifted_phantom_is_of_a_noisier_scanner_and_not_mixed_with_a_plain_one(made, tmp_path):
    quiet = dict(masks=False, defects=0)
    plain, shifted = (make(tmp_path / name, variety=name, **quiet) for name in ("plain", "shifted"))
    assert noise(shifted) > 1.2 * noise(plain)
    with pytest.raises(ValueError, match="shifted"):
        make(plain, variety="shifted", **quiet)


def test_a_phantom_that_does_not_say_its_variety_is_plain(tmp_path, capsys):
    mark = make(tmp_path / "old", patients=2) / competition.SETTINGS
    settings = storage.read_json(mark)
    storage.write_json(mark, {key: value for key, value in settings.items() if key != "variety"})
    capsys.readouterr()
    make(tmp_path / "old", patients=2)
    assert "exists: nothing to do" in capsys.readouterr().out


def test_tables_list_six_labels_of_every_slice_in_kaggles_order(made, train):
    sample = pd.read_csv(made / paths.SAMPLE_CSV)
    assert (made / paths.TRAIN_CSV).read_text().startswith("ID,Label\nID_")
    assert (sample.Label == 0.5).all()
    for table, split in ((train, "train"), (sample, "test")):
        ids = table.ID.str[:12].to_numpy().reshape(-1, 6)
        assert (ids == ids[:, :1]).all()
        assert (table.ID.str[13:].to_numpy().reshape(-1, 6) == LABELS).all()
        assert set(ids[:, 0]) == {file.stem for file in (made / f"stage_2_{split}").iterdir()}


def test_any_is_the_highest_of_the_five_after_reading_errors_too(truth, read):
    assert (truth["any"] == truth[KINDS].max(axis=1)).all()
    assert (read["any"] == read[KINDS].max(axis=1)).all()


def test_the_truth_covers_both_splits_and_no_patient_is_in_two(made, truth):
    assert set(truth.slice_id) == {file.stem for file in made.glob("stage_2_*/*.dcm")}
    assert (truth.groupby("patient_id").split.nunique() == 1).all()
    assert truth.groupby("split").patient_id.nunique().to_dict() == {"train": 10, "test": 2}


def test_a_slice_is_labelled_by_the_area_of_its_blood(truth, headers):
    area = np.array([float(headers[i].PixelSpacing[0]) ** 2 for i in truth.slice_id])
    for kind in KINDS:
        assert ((truth[f"{kind}_px"] * area >= studies.SMALLEST) == truth[kind]).all()


def test_masks_hold_a_bit_for_every_kind_of_blood(made, truth):
    for row in truth.to_dict("records"):
        file = made / "masks" / f"{row['slice_id']}.png"
        counts = [row[f"{kind}_px"] for kind in KINDS]
        assert file.exists() == any(counts)
        if any(counts):
            mask = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
            assert [np.count_nonzero(mask & (1 << k)) for k in range(5)] == counts


def test_reading_errors_move_only_the_ends_of_a_lesion():
    labels = np.zeros((30, 5), np.int8)
    labels[10:20, 4] = labels[0:5, 1] = labels[29, 0] = 1
    seen = np.zeros_like(labels)
    for seed in range(200):
        seen |= patients.read_errors(np.random.default_rng(seed), labels, 1.0) != labels
    assert {tuple(place) for place in np.argwhere(seen)} == {
        (9, 4),
        (10, 4),
        (19, 4),
        (20, 4),
        (0, 1),
        (4, 1),
        (5, 1),
        (28, 0),
    }
    assert (patients.read_errors(np.random.default_rng(0), labels, 0.0) == labels).all()


def test_the_labels_read_differ_from_the_truth_by_the_noise_alone(tmp_path, truth, read):
    true = truth.set_index("slice_id").loc[read.index, KINDS]
    assert 0 < (read[KINDS] != true).to_numpy().mean() < 0.1
    quiet = make(tmp_path / "quiet", patients=4, label_noise=0.0)
    labels = pd.read_csv(quiet / paths.TRAIN_CSV).drop_duplicates().Label.to_numpy().reshape(-1, 6)
    rows = pd.read_parquet(quiet / competition.TRUTH).query("split == 'train'")
    assert (labels == rows[list(LABELS)].to_numpy()).all()


def test_every_complete_slice_is_a_head_in_hu(headers):
    for dicom in headers.values():
        if cut_short(dicom):
            continue
        hu = hu_of(dicom)
        if not dicom.RescaleIntercept and dicom.BitsStored == 12 and not dicom.PixelRepresentation:
            raw = dicom.pixel_array.astype(np.int32) + 1000
            hu = np.where(raw >= 4096, raw - 4096, raw) - 1000
        assert hu.shape == (dicom.Rows, dicom.Columns)
        assert -3024 <= hu.min() <= -900
        assert hu.max() <= 3095
        top = hu[0, hu.shape[1] // 3 : -(hu.shape[1] // 3)]
        assert abs(np.median(top[top > -2000]) + 1000) < 40  # less is padding


def test_slices_lie_one_above_the_other_along_the_tilted_table(headers):
    for study in {dicom.StudyInstanceUID for dicom in headers.values()}:
        slices = [dicom for dicom in headers.values() if dicom.StudyInstanceUID == study]
        positions = np.array([dicom.ImagePositionPatient for dicom in slices], float)
        assert np.ptp(positions[:, :2], axis=0).max() == 0
        assert len({tuple(dicom.ImageOrientationPatient) for dicom in slices}) == 1
        right, back = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
        assert np.allclose(np.linalg.norm(back), 1, atol=1e-5)
        depth = np.sort(positions @ np.cross(right, back))
        assert np.allclose(np.diff(depth)[np.diff(depth) > 0.01], np.diff(depth).max(), atol=0.01)


def test_headers_hold_what_the_real_ones_hold(headers):
    names = """SOPInstanceUID Modality PatientID StudyInstanceUID SeriesInstanceUID StudyID ImagePositionPatient
        ImageOrientationPatient SamplesPerPixel PhotometricInterpretation Rows Columns PixelSpacing BitsAllocated
        BitsStored HighBit PixelRepresentation WindowCenter WindowWidth RescaleIntercept RescaleSlope PixelData"""
    for slice_id, dicom in headers.items():
        assert {element.keyword for element in dicom} == set(names.split())
        assert dicom.SOPInstanceUID == slice_id
        assert (len(dicom.PatientID), len(dicom.StudyInstanceUID), len(dicom.SeriesInstanceUID)) == (11, 13, 13)


def test_the_defects_of_the_real_data_are_there(made, headers, train):
    in_train = [dicom for i, dicom in headers.items() if (made / "stage_2_train" / f"{i}.dcm").exists()]
    assert sum(cut_short(dicom) for dicom in in_train) == 1
    assert any(d.BitsStored == 12 and d.RescaleIntercept == 0 and not d.PixelRepresentation for d in in_train)
    assert any(d.BitsStored == 12 and d.RescaleIntercept == -1024 for d in in_train)
    assert any(d.BitsStored == 16 and d.pixel_array.min() == -2000 for d in in_train if not cut_short(d))
    assert any(d.Rows != 64 for d in in_train)
    assert {d["WindowCenter"].VM for d in in_train} == {1, 2}
    assert {d.file_meta.TransferSyntaxUID.is_implicit_VR for d in in_train} == {True, False}
    studies = pd.DataFrame([(d.PatientID, d.StudyInstanceUID, d.ImagePositionPatient[2]) for d in in_train])
    assert studies.groupby(0)[1].nunique().max() == 2
    assert studies.groupby(1)[2].apply(lambda z: z.duplicated().any()).any()
    assert train.duplicated().sum() == 24


def test_test_slices_are_all_readable(made, headers):
    for file in (made / "stage_2_test").iterdir():
        assert headers[file.stem].pixel_array.size
        assert headers[file.stem].RescaleIntercept in (-1024, -1000) or headers[file.stem].PixelRepresentation


def test_without_defects_there_are_none(tmp_path):
    clean = make(tmp_path / "clean", patients=6, defects=0.0)
    dicoms = [pydicom.dcmread(file) for file in clean.glob("*/*.dcm")]
    assert {(d.Rows, d.Columns) for d in dicoms} == {(64, 64)}
    assert not any(cut_short(d) for d in dicoms)
    assert not pd.read_csv(clean / paths.TRAIN_CSV).ID.duplicated().any()
    assert len({d.StudyInstanceUID for d in dicoms}) == 6


def test_the_zip_holds_kaggles_files_and_no_others(made):
    with zipfile.ZipFile(competition.zip_of(made)) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    hidden = (competition.TRUTH, competition.SETTINGS, "masks")
    files = {name: data for name, data in content(made).items() if not name.startswith(hidden)}
    assert inside == {f"{paths.SLUG}/{name}": data for name, data in files.items()}
    assert len(paths.find_data(competition.zip_of(made)).members("train")) == len(
        list((made / "stage_2_train").iterdir())
    )


def test_more_patients_bleed_with_more_prevalence_and_every_kind_comes_first():
    for prevalence, n_blood in ((0.0, 0), (0.5, 50), ("real", 42), (1.0, 100)):
        planned = patients.plan(patients.Settings(patients=125, prevalence=prevalence))
        assert sum(p.kind is not None for p in planned if p.split == "train") == n_blood
    assert {p.kind for p in planned} == set(KINDS)


def test_ids_of_different_slices_never_meet():
    assert len({patients.hashed(i, 4, 7) for i in range(16**4)}) == 16**4


def test_the_same_settings_again_change_nothing(made, capsys):
    before = {file: file.stat().st_mtime_ns for file in made.rglob("*")}
    make(made, zip=True)
    assert str(made) + cli.THERE in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in made.rglob("*")} == before


def test_other_settings_are_refused_with_both_named(made):
    with pytest.raises(ValueError, match="made with seed 0, not 5: give another --out"):
        make(made, zip=True, seed=5)


def test_a_folder_that_no_phantom_made_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is no phantom: give another --out"):
        make(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_a_zip_that_the_phantom_did_not_write_is_never_touched(tmp_path):
    out, archive = tmp_path / "data", tmp_path / "data.zip"
    make(out, patients=2)
    archive.write_text("a download of hours")
    make(out, patients=3, overwrite=True)
    (out / "phantom.json").write_text("damaged")
    make(out, patients=2, overwrite=True)
    with pytest.raises(FileExistsError, match=r"data.zip exists already: remove it, or give another --out"):
        make(out, patients=2, zip=True, overwrite=True)
    assert archive.read_text() == "a download of hours"
    archive.unlink()
    make(out, patients=2, zip=True, overwrite=True)
    make(out, patients=2, overwrite=True)
    assert not archive.exists()  # its own


def test_an_interrupted_phantom_does_not_look_finished_and_is_made_anew(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    out = tmp_path / "data"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(competition, "_write_tables", stop)
        make(out, patients=2)
    with pytest.raises(FileNotFoundError, match="no competition data"):
        paths.find_data(out)
    make(out, patients=3)
    assert len(paths.find_data(out).members("test")) > 0


@pytest.mark.parametrize(
    "flag, value", [("--patients", "1"), ("--size", "8"), ("--prevalence", "2"), ("--defects", "-1")]
)
def test_impossible_settings_are_named(tmp_path, capsys, flag, value):
    with pytest.raises(SystemExit) as stop:
        phantom.main(["--out", str(tmp_path / "no"), f"{flag}={value}"])
    assert stop.value.code == 2 and f"argument {flag}: {value} is not" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_help_names_every_setting():
    text = " ".join(phantom.build_parser().format_help().split())
    assert all(flag in text for flag in ("--prevalence", "--label-noise", "--defects", "default: 120"))
