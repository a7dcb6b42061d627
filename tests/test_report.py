import shutil
import subprocess
import sys
from urllib.parse import unquote

import made_report
import numpy as np
import pandas as pd
import pytest
from made_report import given
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from ich_kaggle import cache, report
from ich_kaggle.common import metric, paths, run_predictions, storage, tables, windows
from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import pixels, png
from ich_kaggle.html import app, report_studies
from ich_kaggle.scoring import blending


@pytest.fixture(scope="module")
def made(prepared, competition, tmp_path_factory):
    work_dir = made_report.work_folder(prepared, competition, tmp_path_factory.mktemp("report"))
    run(work_dir)
    return work_dir


@pytest.fixture
def work_dir(made, tmp_path):
    shutil.copytree(made, tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "report")
    return tmp_path / "work"


def run(work_dir, *flags) -> None:
    submissions = work_dir.parent / "submissions"
    report.main(["--work-dir", str(work_dir), "--submissions-dir", str(submissions), "--workers", "1", *flags])


def content_of(work_dir) -> dict:
    return given(work_dir / "report" / "data.js")[0]


def training(work_dir) -> tuple:
    table = tables.read_slices(work_dir)
    fold = tables.read_folds(work_dir, table)
    return table[fold >= 0].reset_index(drop=True), fold[fold >= 0]


def refusal(capsys, work_dir, *flags) -> str:
    with pytest.raises(SystemExit) as stop:
        run(work_dir, *flags)
    capsys.readouterr()
    return str(stop.value)


# --- scores ---


def test_the_ensemble_stands_first_with_its_nested_score_and_its_patients(made):
    content = content_of(made)
    names = [source["name"] for source in content["sources"]]
    weights = storage.read_json(paths.ensemble(made, "both") / "weights.json")
    assert names == ["both", "fine", "noisy"]
    assert content["sources"][0]["loss"][0] == pytest.approx(weights["nested_log_loss"])
    assert content["sources"][1]["loss"][0] == pytest.approx(weights["single"]["fine"])
    assert [source["n_patients"] for source in content["sources"]] == [9, 9, 9]
    assert all(low <= value <= high for value, low, high in (source["loss"] for source in content["sources"]))


def test_a_possible_leak_is_marked_at_the_run_and_at_its_ensemble(work_dir):
    record = paths.run(work_dir, "fine") / "run.json"
    storage.write_json(record, storage.read_json(record) | {"possible_leak": "w.pth does not say what it has seen"})
    weights = paths.ensemble(work_dir, "both") / "weights.json"
    storage.write_json(weights, storage.read_json(weights) | {"possible_leak": "as run fine"})
    run(work_dir)
    leaks = {source["name"]: source["leak"] for source in content_of(work_dir)["sources"]}
    assert leaks == {"both": "as run fine", "fine": "w.pth does not say what it has seen", "noisy": ""}


def test_counts_at_every_threshold_are_those_of_a_confusion_matrix(made):
    train, _ = training(made)
    probability = oof_of(made, "noisy")
    content = content_of(made)
    one = next(source for source in content["sources"] if source["name"] == "noisy")
    for label in (0, ANY):
        target, p = tables.targets(train)[:, label], probability[:, label].astype(float)
        found = one["curves"][label]
        assert found["auc"] == pytest.approx(roc_auc_score(target, p))
        assert found["average_precision"] == pytest.approx(average_precision_score(target, p))
        for i in range(0, len(content["thresholds"]), 40):
            (tn, fp), (fn, tp) = confusion_matrix(target, p >= content["thresholds"][i])
            assert (found["tp"][i], found["fp"][i]) == (tp, fp)
            assert (found["n_positive"] - found["tp"][i], found["n_negative"] - found["fp"][i]) == (fn, tn)


def oof_of(work_dir, name: str) -> np.ndarray:
    project = Project(None, work_dir)
    run = project.run(name)
    return blending.raise_any(run_predictions.read_oof(run, run.predicted, project.slices, project.fold))


def test_a_run_of_some_folds_is_scored_on_their_patients_and_stands_behind_whole_ones(work_dir):
    for k in (1, 2):
        shutil.rmtree(paths.fold(work_dir, "fine", k))
    run(work_dir)
    content = content_of(work_dir)
    train, fold = training(work_dir)
    fine = content["sources"][-1]
    probability = oof_of(work_dir, "fine")[fold == 0]
    assert fine["name"] == "fine" and list(fine["folds"]) == ["0"]
    assert fine["n_patients"] == train.patient_id[fold == 0].nunique()
    assert fine["loss"][0] == pytest.approx(metric.log_loss(tables.targets(train)[fold == 0], probability))
    assert content["correlation"]["n_slices"] == (fold == 0).sum()
    assert content["ensembles"][0]["is_stale"]


def test_the_ensemble_of_todays_predictions_is_not_called_stale(made):
    assert content_of(made)["ensembles"][0]["is_stale"] is False


def test_logs_folds_and_submissions_are_on_the_page(made):
    content = content_of(made)
    train, fold = training(made)
    assert [(log["run"], log["fold"], log["valid_loss"][1]) for log in content["logs"]] == [
        ("fine", 0, 0.4),
        ("fine", 1, 0.39),
        ("fine", 2, 0.38),
    ]
    assert [row["slices"] for row in content["data"]["folds"]] == np.bincount(fold).tolist()
    assert content["data"]["rates"] == pytest.approx(tables.targets(train).mean(axis=0).tolist(), abs=1e-5)
    assert [row["name"] for row in content["submissions"]] == ["blend-0", "blend-1"]


# --- which studies ---


def toy() -> tuple:
    """Ten studies of two slices: target (20, 6), loss (20, 6), study (20,)."""
    target, loss = np.zeros((20, 6)), np.full((20, 6), 0.1)
    return target, loss, np.arange(20) // 2


def test_the_worst_missed_and_the_worst_falsely_called_slice_of_a_label_bring_their_studies_in():
    target, loss, study = toy()
    target[8, 2], loss[8, 2] = 1, 9.0  # missed, study 4
    loss[15, 3] = 5.0  # falsely called, study 7
    chosen = report_studies.choose(target, loss, study, n_studies=8, seed=0)
    assert len(chosen) == 8 and {4, 7} <= set(chosen.tolist())
    assert 4 in report_studies.choose(target, loss, study, n_studies=2, seed=0)


def test_explained_studies_come_first():
    target, loss, study = toy()
    loss[:2] = 5.0
    assert {6, 9} <= set(report_studies.choose(target, loss, study, n_studies=4, seed=0, explained=[9, 6]).tolist())
    assert 6 in report_studies.choose(target, loss, study, n_studies=2, seed=0, explained=np.array([6, 9]))


def test_a_quarter_of_the_studies_is_drawn_by_the_seed():
    target, loss, study = toy()
    loss += np.repeat(np.arange(10)[::-1], 2)[:, None]  # study 0 is the worst
    draws = [set(report_studies.choose(target, loss, study, n_studies=4, seed=seed).tolist()) for seed in range(20)]
    assert all({0, 1, 2} <= chosen for chosen in draws)
    assert len(set.union(*draws)) > 5
    assert draws[0] == set(report_studies.choose(target, loss, study, n_studies=4, seed=0).tolist())


def test_without_predictions_all_are_drawn_and_no_more_than_there_are():
    target, _, study = toy()
    nothing = np.full((20, 6), np.nan)
    assert len(report_studies.choose(target, nothing, study, n_studies=3, seed=0)) == 3
    assert report_studies.choose(target, nothing, study, n_studies=99, seed=0).tolist() == list(range(10))


def test_worst_slices_are_sorted_by_loss_and_parted_by_the_truth():
    target, loss, _ = toy()
    target[[1, 2, 3], 0], loss[[1, 2, 3], 0] = 1, [2, 4, 3]
    loss[[10, 11], 0] = [7, 8]
    shown = np.ones(20, bool)
    shown[11] = False
    found = report_studies.worst(target, loss, shown)["epidural"]
    assert found["missed"].tolist() == [2, 3, 1]
    assert found["called"][0] == 10 and 11 not in found["called"] and len(found["called"]) == 12


def test_the_gallery_says_what_the_predictions_say(made):
    train, _ = training(made)
    nested = tables.read_predictions(paths.ensemble(made, "both") / "nested.parquet", train.slice_id)
    for i, label in enumerate(LABELS):
        for kind, truth in (("missed", 1), ("called", 0)):
            cards = content_of(made)["worst"][label][kind]
            losses = [card["loss"] for card in cards]
            assert losses == sorted(losses, reverse=True)
            for card in cards:
                row = train.index[train.study_id == card["study"]][card["slice"]]
                assert train[label][row] == truth and card["p"] == pytest.approx(nested[row, i], abs=1e-5)


# --- pictures ---


def study_of(work_dir, number: int = 0) -> tuple[str, dict]:
    content, files = given(work_dir / "report" / "data.js")
    study_id = content["studies"][number]["id"]
    found, data = given(work_dir / "report" / files[study_id])
    assert found == study_id
    return study_id, data


def test_a_study_has_its_slices_in_order_with_truth_and_predictions(made):
    train, _ = training(made)
    study_id, data = study_of(made)
    rows = train[train.study_id == study_id]
    fine = oof_of(made, "fine")[rows.index]
    assert data["slices"] == rows.slice_id.tolist() and data["position"] == sorted(data["position"])
    assert data["target"] == tables.targets(rows).tolist()
    assert np.array(data["probability"][1]) == pytest.approx(fine, abs=1e-5)


def test_pictures_of_the_cache_are_linked_not_copied(made):
    _, data = study_of(made)
    for reference, slice_id in zip(data["images"]["cached"], data["slices"], strict=True):
        linked = (made / "report" / unquote(reference)).resolve()
        assert linked == paths.cached(paths.cache(made, "64"), slice_id).resolve() and linked.is_file()


def test_the_bone_window_is_rendered_from_the_pixels(made, competition):
    study_id, data = study_of(made)
    train, _ = training(made)
    for row, reference in zip(train[train.study_id == study_id].itertuples(), data["images"]["bone"], strict=True):
        hu = pixels.read_hu(competition / row.path)
        assert np.array_equal(png.read(made / "report" / reference), windows.apply(hu, (windows.BONE,))[..., 0])


def test_the_bone_window_of_a_cropped_cache_shows_the_same_part(work_dir, competition):
    cache.main(["--work-dir", str(work_dir), "--cache-size", "48", "--crop", "study", "--workers", "1"])
    run(work_dir, "--cache", "48-study", "--studies", "2")
    _, data = study_of(work_dir)
    cached = png.read(work_dir / "report" / data["images"]["cached"][2])
    bone = png.read(work_dir / "report" / data["images"]["bone"][2])
    assert bone.shape == cached.shape[:2] == (48, 48)
    assert np.corrcoef(bone.ravel(), cached[..., 2].ravel())[0, 1] > 0.6
    assert content_of(work_dir)["maps"] == []  # those of the run show the whole slice


def test_a_ledger_that_lost_slices_is_named_with_the_command_that_mends_it(work_dir, capsys):
    (path,) = (work_dir / "cache").glob("*/ledger.csv")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert f"{path}: it lacks slice ID_" in (told := refusal(capsys, work_dir))
    assert f"run python -m ich_kaggle.cache --work-dir {work_dir} --verify" in told


def test_without_the_dicom_files_there_is_no_bone_window(work_dir):
    table, settings = tables.read_slices(work_dir), tables.slices_settings(work_dir)
    tables.write_slices(work_dir, table, settings | {"data_dir": str(work_dir / "gone")})
    run(work_dir)
    assert content_of(work_dir)["bone"] is False and list(study_of(work_dir)[1]["images"]) == ["cached"]


def test_explanations_are_those_of_the_model_that_did_not_see_the_study(made):
    train, fold = training(made)
    assert content_of(made)["maps"] == ["fine, gradcam"]
    study_id, data = study_of(made)
    k = fold[train.study_id == study_id][0]
    assert all(f"/runs/fine/fold{k}/explain/gradcam/ID_" in reference for reference in data["maps"][0])


def test_a_report_without_runs_or_cache_has_the_data_and_the_folds(prepared, tmp_path):
    work_dir = tmp_path / "work"
    shutil.copytree(prepared, work_dir, ignore=shutil.ignore_patterns("cache"))
    run(work_dir)
    content = content_of(work_dir)
    assert content["sources"] == [] and content["cache"] is None and content["worst"] == {}
    assert len(content["data"]["folds"]) == 3 and len(content["studies"]) == 9
    paths.folds(work_dir).unlink()
    run(work_dir)
    assert len(content_of(work_dir)["data"]["folds"]) == 3  # made anew


# --- writing ---


def test_an_interrupted_report_leaves_the_old_one(tmp_path):
    folder = tmp_path / "report"
    app.write(folder, {"n": 1}, [])

    def broken():
        yield app.Study("ID_a", {})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        app.write(folder, {"n": 2}, broken())
    assert given(folder / "data.js")[0]["n"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".report.lock", "report"]


def test_a_new_report_replaces_all_of_the_old_one(tmp_path):
    folder = tmp_path / "report"
    app.write(folder, {}, [app.Study("ID_old", {"picture": b"png"})])
    app.write(folder, {}, [app.Study("ID_new", {})])
    assert [path.name for path in (folder / "data").iterdir()] == ["ID_new.js"]
    assert not list((folder / "images").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".report.lock", "report"]


@pytest.mark.parametrize("hostile", ["../../x", "a/b", ".", "", "</script>", "ID_a\n", "é", "x" * 200, "C:\\x"])
def test_an_id_that_is_no_file_name_does_not_become_one(tmp_path, hostile):
    app.write(tmp_path / "report", {}, [app.Study(hostile, {"n": 1})])
    (written,) = (tmp_path / "report" / "data").iterdir()
    assert written.name.startswith("x-") and given(written) == [hostile, {"n": 1}]
    assert app.file_name("ID_0a1b2c3d4") == "ID_0a1b2c3d4" and app.file_name("1.2.840.1") == "1.2.840.1"


def test_json_in_a_script_cannot_end_it():
    text = app.to_json({"<!--": "</script>\u2028<img onerror>é"})
    assert "<" not in text and ">" not in text and text.isascii()


def test_a_number_that_json_has_not_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        app.to_json([float("nan")])


# --- refusals ---


def test_a_run_without_predictions_is_named(work_dir, capsys):
    assert "runs/none/fold0/oof.parquet is missing" in refusal(capsys, work_dir, "--runs", "none")
    assert not (work_dir / "report").exists()


def test_damaged_settings_of_a_run_are_named_with_a_remedy(work_dir, capsys):
    folder = paths.run(work_dir, "fine")
    (folder / "run.json").write_text("{")
    assert f"remove {folder} and make the run anew" in refusal(capsys, work_dir)


def test_a_cache_that_is_not_there_is_named(work_dir, capsys):
    assert "cache/512: no complete cache of the slices" in refusal(capsys, work_dir, "--cache", "512")


def test_explanations_of_other_labels_are_refused(work_dir, capsys):
    path = paths.fold(work_dir, "fine", 0) / "explain" / "gradcam" / "explain.json"
    storage.write_json(path, {"labels": ["any"]})
    assert "explain.json: the labels are not epidural" in refusal(capsys, work_dir)


def test_a_page_that_no_browser_opens_is_refused_and_nothing_stays(work_dir, capsys, monkeypatch):
    monkeypatch.setattr(app, "LARGEST", 1000)
    assert "give fewer --studies" in refusal(capsys, work_dir, "--embed")
    assert not (work_dir / "report").exists() and not list(work_dir.glob(".report.[0-9]*"))


def test_without_plotly_the_extra_is_named(work_dir, capsys, monkeypatch):
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    assert "pip install 'ich_kaggle[report]'" in refusal(capsys, work_dir)


def test_a_report_needs_no_torch(made):
    code = "import sys; from ich_kaggle import report; report.main(sys.argv[1:])\nassert 'torch' not in sys.modules"
    flags = ["--work-dir", str(made), "--studies", "1", "--workers", "1"]
    subprocess.run([sys.executable, "-c", code, *flags], check=True, stdout=subprocess.DEVNULL)
    assert pd.Series(content_of(made)["studies"]).size == 1
