import json
import shutil

import numpy as np
import pandas as pd
import pytest
from made_runs import make
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from ich_kaggle import evaluate
from ich_kaggle.common import metric, paths, run_predictions, runs, storage, tables
from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.scans import on_demand
from ich_kaggle.scoring import blending, ensembling, evaluation, thresholds

WANTED = {"beta": 2.0, "recall": 0.8, "confidence": 0.9}


@pytest.fixture(scope="module")
def made(competition, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("evaluate")
    make(competition, work_dir, {"fine": 0.8, "noisy": 2.0})
    ensembling.blend_runs(Project(None, work_dir), name="both", predict=on_demand.predict)
    evaluate.main(["--work-dir", str(work_dir), "--run", "fine", "--draws", "200"])
    return work_dir


@pytest.fixture
def work_dir(made, tmp_path):
    shutil.copytree(made, tmp_path / "work")
    return tmp_path / "work"


def run(work_dir, *flags) -> None:
    evaluate.main(["--work-dir", str(work_dir), "--draws", "200", *flags])


def folder_of(work_dir, name: str = "fine"):
    return paths.run(work_dir, name) / "evaluation"


def training(work_dir, name: str = "fine") -> tuple:
    table = tables.read_slices(work_dir)
    fold = tables.read_folds(work_dir, table)
    folds = np.unique(fold[fold >= 0]).tolist()
    probability = blending.raise_any(run_predictions.read_oof(runs.Run(work_dir, name), folds, table, fold))
    train = table[fold >= 0]
    return train, tables.targets(train), probability, fold[fold >= 0]


def scores_of(work_dir, name: str = "fine") -> dict:
    return json.loads((folder_of(work_dir, name) / "metrics.json").read_text(), parse_constant=pytest.fail)


def test_scores_are_those_of_the_out_of_fold_predictions(made):
    _, target, probability, fold = training(made)
    scores = scores_of(made)
    losses = scores["log_loss"]
    assert losses["total"][0] == pytest.approx(metric.log_loss(target, probability))
    assert [losses[label][0] for label in LABELS] == pytest.approx(metric.label_losses(target, probability).tolist())
    assert losses["folds"]["1"] == pytest.approx(metric.log_loss(target[fold == 1], probability[fold == 1]))
    assert scores["slices"]["any"]["auc"][0] == pytest.approx(roc_auc_score(target[:, ANY], probability[:, ANY]))
    assert scores["n_patients"] == 9


def test_every_interval_holds_its_score(made):
    for level in ("slices", "studies_max", "studies_aggregate"):
        for label in LABELS:
            for name in ("auc", "average_precision", "brier", "f1", "sensitivity", "specificity"):
                value, low, high = scores_of(made)[level][label][name]
                assert value is None or low - 0.02 <= value <= high + 0.02, (level, label, name)


def test_a_study_is_positive_where_a_slice_is_and_scores_its_largest(made):
    train, target, probability, fold = training(made)
    patient = np.unique(train.patient_id, return_inverse=True)[1]
    found = evaluation.studies(train, target, probability, patient, fold)
    for i, study in enumerate(np.unique(train.study_id)):
        rows = (train.study_id == study).to_numpy()
        assert np.array_equal(found[0][i], target[rows].max(axis=0))
        assert found[1][i] == pytest.approx(probability[rows].max(axis=0))
        assert (found[3][i], found[4][i]) == (patient[rows][0], fold[rows][0])


def population(n_patients: int = 200, seed: int = 0) -> tuple:
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), 10)
    truth = rng.normal(-1, 2, n_patients)[patient] + rng.normal(size=len(patient))
    return (
        (rng.random(len(patient)) < expit(truth)).astype(float),
        expit(truth + rng.normal(size=len(patient))),
        patient,
    )


def test_thresholds_of_a_fold_are_chosen_without_it():
    target, probability, patient = population()
    fold = patient % 4
    clean = evaluation.nested_thresholds(target, probability, patient, fold, **WANTED)
    spoilt = np.where(fold == 2, 1 - target, target)
    other = evaluation.nested_thresholds(spoilt, probability, patient, fold, **WANTED)
    for name in clean:
        assert np.array_equal(clean[name][fold == 2], other[name][fold == 2]), name
        assert not np.array_equal(clean[name][fold != 2], other[name][fold != 2]), name


def test_the_aggregate_of_a_fold_is_fitted_without_it():
    rng = np.random.default_rng(0)
    target = (rng.random((80, 6)) < 0.4).astype(float)
    largest = np.clip(rng.random((80, 6)) * 0.5 + 0.4 * target, 0, 1)
    fold = np.arange(80) % 4
    clean = evaluation.aggregate(target, largest, largest / 2, fold)
    spoilt = evaluation.aggregate(np.where((fold == 1)[:, None], 1 - target, target), largest, largest / 2, fold)
    assert np.array_equal(clean[fold == 1], spoilt[fold == 1]) and not np.array_equal(clean, spoilt)


def test_the_aggregate_is_better_calibrated_than_the_maximum():
    target, probability, patient = population(400)
    study = pd.DataFrame({"t": target, "p": probability}).groupby(patient)
    of_study = [np.tile(column.to_numpy()[:, None], 6) for column in (study.t.max(), study.p.max(), study.p.mean())]
    found = evaluation.aggregate(*of_study, np.arange(400) % 5)
    assert metric.log_loss(of_study[0], found) < metric.log_loss(of_study[0], of_study[1])


def test_thresholds_on_file_are_those_chosen_on_all(made):
    train, target, probability, _ = training(made)
    patient = np.unique(train.patient_id, return_inverse=True)[1]
    content = json.loads((folder_of(made) / "thresholds.json").read_text())
    wanted = {"beta": 2.0, "recall": 0.95, "confidence": 0.95}
    assert content["wanted"] == wanted and set(content["slices"]) == set(content["studies_max"]) == set(LABELS)
    assert content["slices"]["any"] == thresholds.choose(target[:, ANY], probability[:, ANY], patient, **wanted)


def test_recall_promised_on_some_patients_holds_on_others():
    kept = []
    for seed in range(60):
        target, probability, patient = population(300, seed)
        fitted = patient < 150
        curve = thresholds.miss_curve(target[fitted], probability[fitted], patient[fitted])
        threshold = thresholds.confident(curve, 0.2, 0.9)
        missed = pd.Series(probability[~fitted] < threshold)[target[~fitted] > 0]
        kept.append(missed.groupby(patient[~fitted][target[~fitted] > 0]).mean().mean() <= 0.2)
    assert np.mean(kept) >= 0.9


def test_an_ensemble_is_scored_on_its_nested_predictions(work_dir):
    run(work_dir, "--ensemble", "both")
    folder = paths.ensemble(work_dir, "both")
    scores = json.loads((folder / "evaluation" / "metrics.json").read_text())
    nested = storage.read_json(folder / "weights.json")["nested_log_loss"]
    assert scores["log_loss"]["total"][0] == pytest.approx(nested, abs=1e-6)


def test_an_ensemble_is_scored_anew_on_other_folds(work_dir, capsys):
    run(work_dir, "--ensemble", "both")
    capsys.readouterr()
    run(work_dir, "--ensemble", "both", "--fold", "0", "1")
    assert "scored anew (no longer read: fold2)" in capsys.readouterr().out
    path = paths.ensemble(work_dir, "both") / "evaluation" / "metrics.json"
    assert set(storage.read_json(path)["log_loss"]["folds"]) == {"0", "1"}


def test_running_again_does_nothing_and_other_wishes_are_refused(work_dir, capsys):
    before = (folder_of(work_dir) / "metrics.json").stat().st_mtime_ns
    run(work_dir, "--run", "fine")
    assert "exists: nothing to do" in capsys.readouterr().out
    assert (folder_of(work_dir) / "metrics.json").stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match=r"'recall': 0.95.* not .*'recall': 0.9.*: give --overwrite"):
        run(work_dir, "--run", "fine", "--recall", "0.9")


def test_the_comparison_of_train_and_test_is_written(work_dir, capsys):
    run(work_dir, "--run", "fine", "--shift")
    assert "9 train and 3 test patients: too few" in capsys.readouterr().out
    features = json.loads((folder_of(work_dir) / "shift.json").read_text())["features"]
    assert {"tilt", "slices", "predicted any"} <= {row["feature"] for row in features}


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--run", "none"], "runs/none: no such run: there are fine, noisy"),
        (
            ["--ensemble", "none"],
            "weights.json is missing: run python -m ich_kaggle.ensemble --work-dir .+ --name none",
        ),
        (["--run", "fine", "--recall", "1.5"], "--recall 1.5: give a number between 0 and 1"),
        (["--run", "fine", "--confidence", "0"], "--confidence 0.0: give a number between 0 and 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(made, flags, message):
    with pytest.raises(SystemExit, match=message):
        run(made, *flags)


def test_the_report_says_on_whom(made, capsys):
    run(made, "--run", "fine")
    last = capsys.readouterr().out.strip().splitlines()[-1]
    n = Project(None, made).is_train.sum()
    assert last.startswith(f"on {n} slices, 9 studies, 9 patients")
