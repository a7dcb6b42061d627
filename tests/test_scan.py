import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import packed
import pandas as pd
import pydicom
import pytest

from ich_kaggle import scan
from ich_kaggle.common import storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.scans import chosen_series, reader, results

FILES = ("predictions.json", "slices.csv", "studies.csv")


@pytest.fixture(scope="module")
def made(prepared) -> Path:
    return packed.work_of(prepared)


@pytest.fixture(scope="module")
def model(made) -> Path:
    return made.parent / "levels.zip"


@pytest.fixture(scope="module")
def test_files(competition) -> list[Path]:
    return sorted((competition / "stage_2_test").iterdir())


test_files.__test__ = False


@pytest.fixture
def study(test_files, tmp_path) -> Path:
    """A folder with the slices of one test patient."""
    by_study = {}
    for path in test_files:
        by_study.setdefault(pydicom.dcmread(path).StudyInstanceUID, []).append(path)
    (tmp_path / "study").mkdir()
    for path in max(by_study.values(), key=len):
        shutil.copy(path, tmp_path / "study")
    return tmp_path / "study"


def run(pile: Path, model: Path, out: Path, *flags: str) -> pd.DataFrame:
    """Predict a pile; return its slices."""
    scan.main(["--dicom", str(pile), "--models", str(model), "--out", str(out), "--workers", "0", *flags])
    return pd.read_csv(out / "slices.csv")


def refusal(*flags) -> str:
    with pytest.raises(SystemExit) as stop:
        scan.main([*map(str, flags), "--workers", "0"])
    return str(stop.value)


def story(out: Path) -> dict:
    return json.loads((out / "predictions.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", packed.ENSEMBLES)
def test_test_patients_get_the_predictions_of_the_ensemble(competition, made, tmp_path, name, capsys):
    found = run(competition / "stage_2_test", made.parent / f"{name}.zip", tmp_path / "out")
    expected = tables.read_predictions(made / "ensemble" / name / "test.parquet", found.slice.to_numpy())
    assert len(found) == (tables.read_slices(made).split == "test").sum()
    np.testing.assert_allclose(found[list(LABELS)], expected, atol=2e-6)
    said = capsys.readouterr().out
    assert f"{len(found)} slices of 3 of 3 studies; 0 files passed over" in said
    assert "not a medical device" in said


def test_flags_and_studies_follow_from_the_slices_and_the_thresholds_of_the_rule(competition, made, model, tmp_path):
    slices = run(competition / "stage_2_test", model, tmp_path / "out", "--threshold-rule", "recall_0.95_expected")
    thresholds = storage.read_json(made / "ensemble" / "levels" / "evaluation" / "thresholds.json")
    studies = pd.read_csv(tmp_path / "out" / "studies.csv").set_index("study")
    for label in LABELS:
        at = {level: thresholds[level][label]["recall_0.95_expected"] for level in ("slices", "studies_max")}
        assert slices[f"{label}_flag"].tolist() == (slices[label] >= at["slices"]).astype(int).tolist()
        largest = slices.groupby("study")[label].max()
        np.testing.assert_allclose(studies[f"{label}_max"][largest.index], largest)
        assert studies[f"{label}_flag"][largest.index].tolist() == (largest >= at["studies_max"]).astype(int).tolist()
        assert studies[f"{label}_aggregate"].between(0, 1).all()


def test_the_same_input_gives_the_same_bytes(competition, model, tmp_path):
    for name in "ab":
        run(competition / "stage_2_test", model, tmp_path / name)
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(FILES)


def test_how_the_files_are_named_ordered_nested_and_zipped_changes_nothing(test_files, competition, model, tmp_path):
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "pile.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for number, path in zip(rng.permutation(len(test_files)), reversed(test_files), strict=True):
            zipped.write(path, f"{number % 3}/IM{number:04}")
    expected = run(competition / "stage_2_test", model, tmp_path / "a").drop(columns="file")
    found = run(tmp_path / "pile.zip", model, tmp_path / "b").drop(columns="file")
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def twin(study: Path, name: str, **tags) -> None:
    """Write a copy of every slice as another series, `name`, with other tags."""
    for number, path in enumerate(sorted(study.glob("*.dcm"))):
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = name, f"{name}{number}"
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        (study / name).mkdir(exist_ok=True)
        dataset.save_as(study / name / f"{number}")


def test_of_a_mixed_pile_the_brain_series_is_read_and_everything_else_is_listed_with_its_reason(study, model, tmp_path):
    expected = run(study, model, tmp_path / "alone")
    twin(study, "zz_bone", ConvolutionKernel="H70h")
    twin(study, "zz_scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    twin(study, "zz_mr", Modality="MR")
    twin(study, "zz_dose", Modality="SR")
    (study / "notes.txt").write_text("hello")
    found = run(study, model, tmp_path / "mixed")
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    content = story(tmp_path / "mixed")
    n = len(expected)
    reasons = {one["series"]: one["reason"] for one in content["studies"][0]["series"]}
    assert reasons == {
        expected.series[0]: "",
        "zz_bone": f"{expected.series[0]} is preferred: this one has a kernel less fit for the brain",
        "zz_scout": f"ImageType says LOCALIZER: not a CT slice ({n} of {n} files)",
        "zz_mr": f"Modality is MR, not CT: not a CT slice ({n} of {n} files)",
        "zz_dose": f"Modality is SR, not CT: not a CT slice ({n} of {n} files)",
    }
    assert content["passed_over"] == [{"file": "notes.txt", "reason": "not DICOM"}]


def test_the_story_says_by_what_the_predictions_were_made(study, model, tmp_path):
    run(study, model, tmp_path / "out")
    content = story(tmp_path / "out")
    assert "not a medical device" in content["intended_use"]
    assert content["bundle"]["sha256"].startswith(storage.file_hash(model))
    assert content["bundle"]["ensemble"] == "levels"
    assert set(content["versions"]) == {"ich_kaggle", "torch", "timm", "numpy", "pydicom", "opencv"}
    assert content["thresholds"]["rule"] == "f1"


def test_a_slice_that_can_not_be_read_is_a_row_without_a_probability(study, model, tmp_path, monkeypatch):
    monkeypatch.setattr(chosen_series, "UNREAD", 0.2)
    path = sorted(study.iterdir())[0]
    path.write_bytes(path.read_bytes()[:-50])
    found = run(study, model, tmp_path / "out").set_index("file")
    assert found.loc[path.name, [*LABELS, *(f"{label}_flag" for label in LABELS)]].isna().all()
    assert found.loc[path.name, "note"].startswith("truncated: ")
    assert found.drop(path.name)[list(LABELS)].notna().all(axis=None)
    assert pd.read_csv(tmp_path / "out" / "studies.csv").n_unread.tolist() == [1]


def test_nothing_of_a_header_becomes_a_formula_or_a_path(study, model, tmp_path):
    for number, path in enumerate(sorted(study.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = f"=1+{number}"
        dataset.SeriesInstanceUID = "../../up"
        dataset.StudyInstanceUID = "@study\x1b"
        dataset.save_as(path)
    before = {path for path in tmp_path.rglob("*") if tmp_path / "out" not in path.parents}
    assert "no axial head CT series" in refusal("--dicom", study, "--models", model, "--out", tmp_path / "out")
    for path in study.iterdir():  # what steers a terminal is no id; without it they can be read
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID = "@study"
        dataset.save_as(path)
    found = run(study, model, tmp_path / "out")
    assert found.slice.str.startswith("'=1+").all()
    assert set(found.study) == {"'@study"}
    assert set(found.series) == {"../../up"}
    assert {path for path in tmp_path.rglob("*") if path.parent != tmp_path / "out"} == before | {tmp_path / "out"}


def test_one_file_can_be_predicted(study, model, tmp_path):
    found = run(sorted(study.iterdir())[0], model, tmp_path / "out")
    assert len(found) == 1
    assert found[list(LABELS)].notna().all(axis=None)


# Which series is read, and what is said of it.


def test_a_head_stored_from_the_back_up_and_upside_down_gets_the_same_probabilities(study, model, tmp_path):
    expected = run(study, model, tmp_path / "usual")
    for path in study.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PixelData = np.ascontiguousarray(dataset.pixel_array[::-1]).tobytes()
        directions = np.array(dataset.ImageOrientationPatient, float)
        dataset.ImageOrientationPatient = [*directions[:3], *-directions[3:]]
        dataset.save_as(path)
    found = run(study, model, tmp_path / "up")
    assert found.slice.tolist() == expected.slice.tolist()
    np.testing.assert_array_equal(found[list(LABELS)], expected[list(LABELS)])
    np.testing.assert_allclose(found.position_mm, expected.position_mm, atol=0.001)


def test_contrast_medium_is_noted_in_csv_json_page_and_on_the_screen_and_the_files_are_private(
    study, model, tmp_path, capsys
):
    for path in study.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.ContrastBolusAgent = "ULTRAVIST 370"
        dataset.save_as(path)
    run(study, model, tmp_path / "out", "--report")
    note = "may show contrast medium: ContrastBolusAgent is ULTRAVIST 370"
    assert pd.read_csv(tmp_path / "out" / "studies.csv").note.tolist() == [note]
    assert story(tmp_path / "out")["studies"][0]["series"][0]["notes"] == [note]
    (data,) = (tmp_path / "out" / "report" / "data").iterdir()
    assert note in data.read_text() and note in capsys.readouterr().out
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert (modes, (tmp_path / "out").stat().st_mode & 0o777) == ({0o600}, 0o700)


def test_a_dry_run_says_what_would_be_read_and_leaves_nothing(study, model, tmp_path, capsys):
    twin(study, "zz_bone", ConvolutionKernel="H70h")
    before = sorted(tmp_path.rglob("*"))
    flags = ["--dicom", str(study), "--models", str(model), "--out", str(tmp_path / "out"), "--dry-run"]
    scan.main(flags)
    read, refused, files = capsys.readouterr().out.splitlines()[-3:]
    assert "slices): read" in read and "zz_bone" in refused and "not read: " in refused
    assert files == "0 files passed over" and sorted(tmp_path.rglob("*")) == before


def test_a_series_that_is_named_or_no_head_is_read_if_asked(study, model, tmp_path):
    twin(study, "zz_knee", BodyPartExamined="KNEE")
    for number, flags in enumerate((["--series", "zz_knee"], ["--any-body-part", "--series", "zz_knee"])):
        assert set(run(study, model, tmp_path / f"{number}", *flags).series) == {"zz_knee"}
    for path in study.glob("*.dcm"):
        path.unlink()
    message = refusal("--dicom", study, "--models", model, "--out", tmp_path / "none")
    assert "BodyPartExamined is KNEE: not a head" in message
    assert set(run(study, model, tmp_path / "any", "--any-body-part").series) == {"zz_knee"}


# Refusals, each in one line; and nothing is left.


@pytest.mark.parametrize("given, missing", [("--dicom", "--models"), ("--models", "--dicom")])
def test_the_scans_and_the_models_must_both_be_named(study, given, missing, capsys):
    assert refusal(given, study) == "2"
    assert f"error: the following arguments are required: {missing}" in capsys.readouterr().err


def test_a_rule_that_the_models_lack_is_named_before_anything_is_read(study, model, tmp_path):
    message = refusal("--dicom", study, "--models", model, "--out", tmp_path / "out", "--threshold-rule", "best")
    known = "f1, f2, recall_0.95_expected, recall_0.95"
    assert message == f"error: --threshold-rule best: the models come with {known}"
    assert not (tmp_path / "out").exists()


def test_predictions_that_are_there_are_kept_unless_overwritten(study, model, tmp_path):
    run(study, model, tmp_path / "out")
    message = refusal("--dicom", study, "--models", model, "--out", tmp_path / "out")
    assert message == f"error: {tmp_path / 'out' / 'predictions.json'} exists: give another --out, or --overwrite"
    run(study, model, tmp_path / "out", "--overwrite")


def test_a_pile_without_a_head_scan_is_told_with_the_first_reasons(study, model, tmp_path):
    twin(study, "zz_mr", Modality="MR")
    for path in study.glob("*.dcm"):
        path.unlink()
    (study / "notes.txt").write_text("hello")
    message = refusal("--dicom", study, "--models", model, "--out", tmp_path / "out")
    assert message.startswith(f"error: {study}: no axial head CT series: 1 series refused, the first series zz_mr: ")
    assert "Modality is MR, not CT: not a CT slice" in message
    assert message.endswith("; 1 files passed over, the first notes.txt: not DICOM")
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_told(model, tmp_path):
    (tmp_path / "empty").mkdir()
    message = refusal("--dicom", tmp_path / "empty", "--models", model, "--out", tmp_path / "out")
    assert message == f"error: {tmp_path / 'empty'}: no axial head CT series: no files"


def test_a_damaged_bundle_is_told_by_the_hash_of_its_member(study, model, tmp_path):
    content = bytearray(model.read_bytes())
    content[content.index(b"a.fold0.pt") + 9000] ^= 1
    (tmp_path / "damaged.zip").write_bytes(content)
    message = refusal("--dicom", study, "--models", tmp_path / "damaged.zip", "--out", tmp_path / "out")
    assert f"{tmp_path / 'damaged.zip'}: a.fold0.pt has hash " in message


def test_a_pile_that_is_not_there_is_named(model, tmp_path):
    message = refusal("--dicom", tmp_path / "gone", "--models", model, "--out", tmp_path / "out")
    assert message == f"error: {tmp_path / 'gone'} is missing: give a folder, a zip or a file"


def test_interrupted_it_leaves_nothing(study, model, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "slice_rows", stop)
    with pytest.raises(SystemExit):
        run(study, model, tmp_path / "out")
    assert list((tmp_path / "out").glob("*")) == []


# Real slices.


def test_real_studies_are_read_out_of_kaggles_zip(real_data, model, tmp_path):
    found = run(real_data, model, tmp_path / "out", "--batch-size", "128")
    assert (len(found), found.study.nunique()) == (335, 10)
    assert found[list(LABELS)].notna().all(axis=None)
    assert {Path(one["file"]).suffix for one in story(tmp_path / "out")["passed_over"]} == {".csv"}


def test_seven_encodings_of_one_slice_are_one_slice(real_data, model, tmp_path):
    folder = Path(real_data).with_name("odd_dicom")
    if not folder.is_dir():
        pytest.skip("no odd_dicom beside ICH_REAL_DATA")
    anything = "--any-body-part"  # it is a slice of a chest
    found = {path.name: run(path, model, tmp_path / path.name, anything) for path in sorted(folder.iterdir())}
    assert len(found) == 7
    for one in found.values():
        pd.testing.assert_frame_equal(one.drop(columns="file"), found["RLELossless.dcm"].drop(columns="file"))
    run(folder, model, tmp_path / "all", anything)
    assert len(story(tmp_path / "all")["passed_over"]) == 6


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(reader.model_bundle, "read", None)  # nothing may be read before
    for place in ("file", "file/inside"):
        with pytest.raises(OSError, match=r"file: can't be written to \(.*\): give another --out"):
            reader.predict(tmp_path, tmp_path / "bundle.zip", tmp_path / place, rule="f1", wanted=None)
