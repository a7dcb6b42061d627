import shutil

import numpy as np
import pandas as pd
import pytest
from made_runs import make, synthetic

from ich_kaggle import ensemble
from ich_kaggle.common import metric, paths, run_predictions, runs, storage, tables
from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.scoring import blended_runs, blending, ensembling, nested_choice

TARGET, RUNS, PATIENT, FOLD = synthetic()


@pytest.fixture(scope="module")
def made(competition, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("ensemble")
    make(competition, work_dir, {"fine": 0.5, "noisy": 2.0})
    return work_dir


@pytest.fixture
def work_dir(made, tmp_path):
    shutil.copytree(made, tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(scope="module")
def blended(made, tmp_path_factory):
    """A copy of it with the ensemble of both runs, not to be changed."""
    work_dir = shutil.copytree(made, tmp_path_factory.mktemp("blended") / "work")
    run(work_dir)
    return work_dir


def run(work_dir, *flags) -> None:
    ensemble.main(["--work-dir", str(work_dir), "--workers", "1", *flags])


def folder_of(work_dir, name: str = "fine+noisy"):
    return paths.ensemble(work_dir, name)


def oof_of(work_dir, file: str, name: str = "fine+noisy") -> tuple[np.ndarray, np.ndarray]:
    table = tables.read_slices(work_dir)
    train = table[table.split == "train"]
    return tables.targets(train), tables.read_predictions(folder_of(work_dir, name) / file, train.slice_id.to_numpy())


def test_the_blend_is_the_weighted_mean_with_any_raised():
    weights = np.array([0.5, 0.3, 0.2])
    raw = [np.random.default_rng(i).random((40, 6)).astype(np.float32) for i in range(3)]
    mean = np.tensordot(weights, np.stack(raw), 1)
    found = ensembling.blend(weights, np.stack(raw))
    assert found[:, :ANY] == pytest.approx(mean[:, :ANY], abs=1e-6)
    assert found[:, ANY] == pytest.approx(mean.max(axis=1), abs=1e-6)


def test_the_constant_knows_the_prevalence_of_the_other_folds_only():
    found = ensembling.constant(TARGET, FOLD)
    rest = TARGET[FOLD != 2]
    expected = (rest.sum(axis=0) + 0.5) / (len(rest) + 1)  # never 0
    assert found[FOLD == 2] == pytest.approx(np.tile(expected, ((FOLD == 2).sum(), 1)))


def test_nested_is_worse_than_plain_and_both_beat_the_constant():
    data = nested_choice.prepare(TARGET, RUNS, FOLD, PATIENT)
    fitted = ensembling.fit(data, ensembling.Asked("stack"))
    scores = ensembling.score(data, ["a", "b", "c"], fitted)
    constant = metric.log_loss(TARGET, ensembling.constant(TARGET, FOLD))
    assert scores["oof_log_loss"] <= scores["nested_log_loss"] < constant
    assert scores["oof_log_loss"] <= min(scores["single"].values())
    assert metric.log_loss(TARGET, fitted.nested) == pytest.approx(scores["nested_log_loss"], abs=1e-6)


def test_scores_in_the_file_are_those_of_the_predictions_beside_it(blended):
    scores = storage.read_json(folder_of(blended) / "weights.json")
    for file, key, labels in (
        ("oof.parquet", "oof_log_loss", "label_losses"),
        ("nested.parquet", "nested_log_loss", "nested_label_losses"),
    ):
        target, probability = oof_of(blended, file)
        assert scores[key] == pytest.approx(metric.log_loss(target, probability), abs=1e-6)
        assert list(scores[labels].values()) == pytest.approx(
            metric.label_losses(target, probability).tolist(), abs=1e-6
        )
    assert set(scores["single"]) == set(scores["runs"]) == {"fine", "noisy"}
    assert scores["n_patients"] == 9 and set(scores["methods"]) == set(blending.METHODS)
    for name, (low, high) in scores["intervals"].items():
        assert low <= (scores["single"] | {"nested": scores["nested_log_loss"]})[name] <= high


def test_test_predictions_are_the_fitted_blend_of_each_folds_models_averaged(work_dir):
    run(work_dir, "--method", "stack", "--name", "s")
    scores = storage.read_json(folder_of(work_dir, "s") / "weights.json")
    pipeline = nested_choice.from_json(scores["pipeline"], ["fine", "noisy"])
    table = tables.read_slices(work_dir)
    ids = table.slice_id[table.split == "test"].to_numpy()
    per_fold = []
    for k in range(3):
        each = [
            tables.read_predictions(paths.fold(work_dir, r, k) / "test.parquet", ids).copy() for r in ("fine", "noisy")
        ]
        per_fold.append(nested_choice.predict(pipeline, [blending.raise_any(p) for p in each]))
    found = tables.read_predictions(folder_of(work_dir, "s") / "test.parquet", ids)
    assert found == pytest.approx(np.mean(per_fold, axis=0), abs=1e-6)
    assert (found[:, ANY] >= found.max(axis=1)).all()


def test_plain_predictions_are_the_pipeline_in_the_file_applied(blended):
    table = tables.read_slices(blended)
    fold = tables.read_folds(blended, table)
    pipeline = nested_choice.from_json(
        storage.read_json(folder_of(blended) / "weights.json")["pipeline"], ["fine", "noisy"]
    )
    oof = [
        blending.raise_any(run_predictions.read_oof(runs.Run(blended, r), [0, 1, 2], table, fold))
        for r in ("fine", "noisy")
    ]
    assert oof_of(blended, "oof.parquet")[1] == pytest.approx(nested_choice.predict(pipeline, oof), abs=1e-6)


def test_the_order_of_the_runs_changes_no_prediction(work_dir):
    run(work_dir, "--name", "ab", "--runs", "fine", "noisy", "--method", "stack")
    run(work_dir, "--name", "ba", "--runs", "noisy", "fine", "--method", "stack")
    assert oof_of(work_dir, "oof.parquet", "ab")[1] == pytest.approx(oof_of(work_dir, "oof.parquet", "ba")[1], abs=1e-4)


def test_one_run_alone_is_itself_with_equal_weights(work_dir):
    run(work_dir, "--runs", "fine", "--method", "equal")
    table = tables.read_slices(work_dir)
    fold = tables.read_folds(work_dir, table)
    alone = blending.raise_any(run_predictions.read_oof(runs.Run(work_dir, "fine"), [0, 1, 2], table, fold))
    assert oof_of(work_dir, "oof.parquet", "fine")[1] == pytest.approx(alone, abs=1e-7)


def test_running_again_does_nothing_and_says_so_with_plain_and_nested_side_by_side_and_on_whom(blended, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in folder_of(blended).iterdir()}
    run(blended)
    out = capsys.readouterr().out
    assert "exists: nothing to do" in out
    last = out.strip().splitlines()[-1]
    assert last.startswith("plain ") and ", nested " in last and last.endswith("slices of 9 patients")
    assert before == {path.name: path.stat().st_mtime_ns for path in folder_of(blended).iterdir()}


def test_another_method_over_an_ensemble_is_refused_and_other_predictions_are_blended_anew(work_dir, capsys):
    run(work_dir)
    with pytest.raises(SystemExit, match="was made with method auto, not stack"):
        run(work_dir, "--method", "stack")
    path = paths.fold(work_dir, "fine", 0) / "oof.parquet"
    table = pd.read_parquet(path)
    tables.write_predictions(path, table.slice_id, 1 - table[list(LABELS)].to_numpy())
    capsys.readouterr()
    run(work_dir)
    assert "blended anew (predicted anew: fine/fold0)" in capsys.readouterr().out


def test_an_ensemble_that_exists_keeps_its_runs_and_options_and_names_the_runs_beside_it(work_dir, capsys):
    run(work_dir, "--name", "one", "--runs", "fine", "--method", "equal")
    capsys.readouterr()
    run(work_dir, "--name", "one")
    out = capsys.readouterr().out
    assert "one exists: nothing to do" in out and "not blended: noisy" in out
    run(work_dir, "--name", "one", "--overwrite", "--runs", "noisy")
    found = storage.read_json(folder_of(work_dir, "one") / "weights.json")
    assert found["blended"] == {"runs": ["noisy"], "fold": None}
    assert found["asked"] == {"method": "equal", "seed": 0}


@pytest.mark.parametrize("file", ["oof.parquet", "test.parquet"])
def test_a_run_whose_rows_are_missing_is_named(work_dir, file):
    path = paths.fold(work_dir, "noisy", 1) / file
    table = pd.read_parquet(path)
    tables.write_predictions(path, table.slice_id[1:], table[list(LABELS)].to_numpy()[1:])
    with pytest.raises(SystemExit, match=rf"noisy/fold1/{file}: slice {table.slice_id[0]} is missing \(1 are\)"):
        run(work_dir)
    assert not (folder_of(work_dir) / "weights.json").exists()


def test_a_run_that_is_asked_for_and_has_no_fold_is_named_with_those_that_have(work_dir):
    for k in range(3):
        shutil.rmtree(paths.fold(work_dir, "noisy", k))
    with pytest.raises(SystemExit, match="runs/noisy: no such run: there are fine"):
        run(work_dir, "--runs", "fine", "noisy")


def test_without_runs_there_is_nothing_to_blend(work_dir):
    shutil.rmtree(work_dir / "runs")
    with pytest.raises(SystemExit, match="no run to read: run python -m ich_kaggle.train"):
        run(work_dir)


def test_a_long_list_of_runs_gets_a_short_name():
    name = ensembling.default_name([f"run{i}" for i in range(20)])
    assert name.startswith("20-runs-") and len(name) < 20


def test_a_run_named_twice_is_refused(work_dir):
    with pytest.raises(SystemExit, match="--runs fine fine: a run is named twice"):
        run(work_dir, "--runs", "fine", "fine")


def test_a_folder_that_no_run_can_be_is_passed_over(work_dir):
    runs_before = blended_runs.choose_runs(Project(None, work_dir), None, None)
    (work_dir / "runs" / "a copy" / "fold0").mkdir(parents=True)
    assert blended_runs.choose_runs(Project(None, work_dir), None, None) == runs_before
