"""A run is one set of settings and as many folds as are finished; every command works with those, and says so."""

import shlex
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from made_runs import make

from ich_kaggle import ensemble, evaluate, predict, report, sequence, submit, train
from ich_kaggle.common import paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.learning import fit, tasks
from ich_kaggle.scoring import ensembling

TINY = ["--arch", "test_resnet", "--weights", "none", "--image-size", "32", "--cache-size", "64", "--batch-size", "8"]
TINY += ["--epochs", "1", "--workers", "0", "--device", "cpu"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def first_fold(prepared, tmp_path_factory):
    """A work folder in which fold 0 of the run `a` is trained."""
    work = tmp_path_factory.mktemp("first") / "work"
    shutil.copytree(prepared, work)
    train.main([*TINY, "--work-dir", str(work), "--run", "a", "--fold", "0"])
    return work


@pytest.fixture
def one(first_fold, tmp_path):
    return shutil.copytree(first_fold, tmp_path / "work")


@pytest.fixture
def made(competition, tmp_path):
    """A work folder with three folds of the runs `fine` and `noisy`, which no model made."""
    make(competition, tmp_path / "work", {"fine": 0.5, "noisy": 2.0})
    return tmp_path / "work"


def refused(main, *argv) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(part) for part in argv])
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    return stop.value.code


def submit_from(work, *flags) -> None:
    submit.main(["--dry-run", "--work-dir", str(work), "--submissions-dir", str(work.parent / "out"), *flags])


def n_patients(work, *folds) -> int:
    project = Project(None, work)
    return project.slices.patient_id[np.isin(project.fold, folds)].nunique()


def test_one_fold_makes_a_verified_submission_and_more_folds_a_new_blend(one, capsys):
    submit_from(one)
    said = capsys.readouterr().out
    assert f"run a: 1 of 3 folds (0), scored on {n_patients(one, 0)} patients" in said and ": verified, " in said
    first = next((one.parent / "out").glob("*.csv"))
    train.main(["--work-dir", str(one), "--run", "a", "--fold", "1", "2", "--workers", "0"])
    capsys.readouterr()
    submit_from(one)
    said = capsys.readouterr().out
    assert "run a: 3 of 3 folds, scored on 9 patients" in said
    assert "ensemble/a: blended anew (new: a/fold1, a/fold2)" in said and ": verified, " in said
    assert len(list((one.parent / "out").glob("*.csv"))) == 2 and first.exists()


def test_test_predictions_are_the_mean_over_the_folds_there_are(made):
    shutil.rmtree(paths.fold(made, "fine", 1))
    ensemble.main(["--work-dir", str(made), "--runs", "fine"])
    ids = pd.read_parquet(made / "ensemble" / "fine" / "test.parquet")
    each = [pd.read_parquet(paths.fold(made, "fine", k) / "test.parquet")[list(LABELS)].to_numpy() for k in (0, 2)]
    raised = [np.column_stack([p[:, :5], p.max(axis=1)]) for p in each]
    np.testing.assert_allclose(ids[list(LABELS)], np.mean(raised, axis=0), atol=1e-6)


def test_runs_of_different_folds_are_blended_on_the_slices_that_all_have_predicted(made, capsys):
    shutil.rmtree(paths.fold(made, "fine", 0))
    shutil.rmtree(paths.fold(made, "noisy", 2))
    ensemble.main(["--work-dir", str(made)])
    said, project = capsys.readouterr().out, Project(None, made)
    assert "run fine: 2 of 3 folds (1, 2)" in said and "run noisy: 2 of 3 folds (0, 1)" in said
    nested = pd.read_parquet(made / "ensemble" / "fine+noisy" / "nested.parquet")
    assert nested.slice_id.tolist() == project.slices.slice_id[project.fold == 1].tolist()
    scores = storage.read_json(made / "ensemble" / "fine+noisy" / "weights.json")
    assert scores["folds"] == {"fine": [1, 2], "noisy": [0, 1]} and scores["n_patients"] == n_patients(made, 1)


def test_runs_that_share_no_fold_are_refused_with_the_folds_of_each(made):
    shutil.rmtree(paths.fold(made, "fine", 0))
    for k in (1, 2):
        shutil.rmtree(paths.fold(made, "noisy", k))
    line = refused(ensemble.main, "--work-dir", made)
    assert "share no finished fold (fine has fold 1, 2; noisy has fold 0)" in line


def test_a_run_without_a_finished_fold_is_named_and_left_out(made, capsys):
    (paths.fold(made, "begun", 0)).mkdir(parents=True)
    (paths.fold(made, "begun", 0) / "state.pt").touch()
    storage.write_json(made / "runs" / "begun" / "run.json", {"settings": {"arch": "made"}})
    submit_from(made)
    assert "run begun: left out, no finished fold" in capsys.readouterr().out


def test_with_one_fold_a_fit_is_scored_on_patients_it_was_not_fitted_to(made):
    """Groups of patients take the place of folds: no patient's predictions depend on that patient's labels."""
    project = Project(None, made)
    rows = project.fold[project.is_train] == 0
    patient = project.slices.patient_id[project.is_train][rows].to_numpy()
    target = tables.targets(project.slices[project.is_train])[rows]
    groups = ensembling.groups_of(np.zeros(rows.sum(), int), target, patient)
    assert len(np.unique(groups)) == min(5, len(set(patient)))
    assert all(len(set(groups[patient == one])) == 1 for one in set(patient))
    flags = ["--work-dir", str(made), "--fold", "0", "--method", "stack"]
    ensemble.main(flags)
    nested = storage.read_json(made / "ensemble" / "fine+noisy-fold0" / "weights.json")
    assert nested["nested_log_loss"] != nested["oof_log_loss"]


def test_fold_narrows_every_command_downstream(made, capsys):
    common = ["--work-dir", str(made)]
    ensemble.main([*common, "--fold", "0", "2"])
    scores = storage.read_json(made / "ensemble" / "fine+noisy-fold0-2" / "weights.json")
    assert scores["folds"] == {"fine": [0, 2], "noisy": [0, 2]}
    evaluate.main([*common, "--run", "fine", "--fold", "0", "--draws", "20"])
    assert set(storage.read_json(made / "runs" / "fine" / "evaluation" / "metrics.json")["log_loss"]["folds"]) == {"0"}
    sequence.main([*common, "--on", "fine", "--model", "smooth", "--fold", "1"])
    assert [folder.name for folder in (made / "runs" / "smooth-fine").glob("fold*")] == ["fold1"]
    submit_from(made, "--run", "fine", "--fold", "1")
    assert (made / "ensemble" / "fine-fold1").is_dir()
    capsys.readouterr()
    report.main([*common, "--fold", "0", "--runs", "fine", "--no-bone"])
    assert "runs and ensembles" in capsys.readouterr().out
    assert "has the folds 0, 1, 2" in refused(evaluate.main, *common, "--run", "fine", "--fold", "7")
    line = refused(evaluate.main, *common, "--ensemble", "fine-fold1", "--fold", "0")
    assert "fine-fold1 has no predictions of fold 0: train more folds, or choose another --fold" in line


def test_evaluate_scores_a_run_anew_when_it_has_more_folds(made, capsys):
    kept = shutil.move(paths.fold(made, "fine", 2), made / "kept")
    flags = ["--work-dir", str(made), "--run", "fine", "--draws", "20"]
    evaluate.main(flags)
    shutil.move(kept, paths.fold(made, "fine", 2))
    capsys.readouterr()
    evaluate.main(flags)
    assert "scored anew (new: fold2)" in capsys.readouterr().out


def test_an_ensemble_is_blended_anew_before_it_is_scored(made, capsys):
    kept = shutil.move(paths.fold(made, "fine", 2), made / "kept")
    work = ["--work-dir", str(made), "--workers", "1"]
    ensemble.main([*work, "--runs", "fine", "--name", "x"])
    shutil.move(kept, paths.fold(made, "fine", 2))
    capsys.readouterr()
    evaluate.main([*work, "--ensemble", "x", "--draws", "20"])
    assert "x: blended anew (new: fine/fold2)" in capsys.readouterr().out


def test_the_second_level_works_from_one_fold_where_it_can_and_says_what_it_takes_where_not(one, capsys):
    quick = ["--work-dir", str(one), "--on", "a", "--epochs", "1", "--hidden", "8", "--device", "cpu", "--workers", "0"]
    line = refused(sequence.main, *quick, "--features", "oof")
    assert "--features oof takes two folds or more" in line
    assert f"ich_kaggle.train --work-dir {one} --run a --fold 1" in line
    sequence.main([*quick, "--features", "fold"])
    assert pd.read_parquet(paths.fold(one, "gru-a", 0) / "oof.parquet").notna().all(axis=None)


def test_a_second_level_on_fewer_folds_is_fitted_anew_when_there_are_more(made, capsys):
    kept = shutil.move(paths.fold(made, "fine", 2), made / "kept")
    flags = ["--work-dir", str(made), "--on", "fine", "--model", "smooth"]
    sequence.main(flags)
    assert not paths.fold(made, "smooth-fine", 2).exists()
    shutil.move(kept, paths.fold(made, "fine", 2))
    capsys.readouterr()
    sequence.main(flags)
    said = capsys.readouterr().out
    assert said.count("fitted anew, the runs that it reads have other folds now") == 2
    assert len(storage.read_json(paths.fold(made, "smooth-fine", 0) / "predict.json")["reads"]) == 4


def test_a_fold_with_other_settings_is_refused_with_both_before_anything_is_made(one):
    cached = set((one / "cache").iterdir())
    line = refused(
        train.main, "--work-dir", one, "--run", "a", "--fold", "1", "--image-size", "48", "--cache-size", "48"
    )
    assert "runs/a/run.json was made with image_size 32, not 48" in line
    assert set((one / "cache").iterdir()) == cached and not paths.fold(one, "a", 1).exists()
    line = refused(train.main, "--work-dir", one, "--run", "a", "--fold", "1", "--lr", "0.5", "--overwrite")
    assert "was made with lr 0.0002, not 0.5: give another --run, or --overwrite --fold 0 1" in line


def test_a_hint_can_be_pasted_and_resumes_the_run_with_its_own_settings(one, capsys):
    line = refused(predict.main, "--work-dir", one, "--run", "a", "--fold", "1")
    command = line.partition("run python -m ich_kaggle.")[2]
    name, *argv = shlex.split(command)
    assert name == "train"
    train.main([*argv, "--workers", "0"])
    models = [torch.load(paths.fold(one, "a", k) / "model.pt", weights_only=True) for k in (0, 1)]
    assert models[0]["config"] == models[1]["config"]


def test_weights_are_compared_by_content(one, tmp_path):
    first, copy, other = (tmp_path / f"{name}.pth" for name in ("first", "copy", "other"))
    content = torch.load(paths.fold(one, "a", 0) / "model.pt", weights_only=True)["weights"]
    for path in (first, copy):
        torch.save({"state_dict": content}, path)
    torch.save({"state_dict": {key: value + 1 for key, value in content.items()}}, other)
    copy.write_bytes(first.read_bytes())
    flags = [*TINY, "--work-dir", str(one), "--run", "w"]
    train.main([*flags, "--fold", "0", "--weights", str(first)])
    train.main([*flags, "--fold", "1", "--weights", str(copy)])
    assert "was made with weights" in refused(train.main, *flags, "--fold", "2", "--weights", other)
    first.unlink()
    train.main(["--work-dir", str(one), "--run", "w", "--fold", "2"])  # from the copy, as the last fold


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["new_model", "train_step"])
def test_an_aborted_start_leaves_no_run_behind(one, monkeypatch, moment, capsys):
    monkeypatch.setattr(*{"new_model": (tasks, moment), "train_step": (fit.Fit, moment)}[moment], interrupt)
    with pytest.raises(SystemExit):
        train.main([*TINY, "--work-dir", str(one), "--run", "b", "--lr", "0.5"])
    monkeypatch.undo()
    assert not (one / "runs" / "b" / "run.json").exists()
    capsys.readouterr()
    submit_from(one)
    assert "run b" not in capsys.readouterr().out
    train.main([*TINY, "--work-dir", str(one), "--run", "b", "--fold", "0"])


def test_views_are_those_of_the_run(one):
    train.main(["--work-dir", str(one), "--run", "a", "--fold", "1", "--workers", "0"])
    common = ["--work-dir", str(one), "--run", "a", "--workers", "0"]
    predict.main([*common, "--fold", "0", "--views", "identity"])
    predict.main([*common, "--fold", "1"])
    assert storage.read_json(paths.fold(one, "a", 1) / "predict.json")["views"] == ["identity"]
    line = refused(predict.main, *common, "--fold", "1", "--views", "hflip", "--overwrite")
    assert "was made with views ['identity'], not ['hflip']: give the same, or --overwrite --fold 0 1" in line
    predict.main([*common, "--views", "hflip", "--overwrite"])
    assert storage.read_json(paths.fold(one, "a", 0) / "predict.json")["views"] == ["hflip"]
    train.main([*common, "--fold", "0", "1", "--overwrite"])
    predict.main([*common, "--fold", "0"])
    assert storage.read_json(paths.fold(one, "a", 0) / "predict.json")["views"] == ["hflip"]
