import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import second_level
import torch

from ich_kaggle import ensemble, folds, predict, sequence, train
from ich_kaggle.common import cli, metric, paths, run_predictions, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.common.runs import Run
from ich_kaggle.learning import fit as learning_fit
from ich_kaggle.learning import slice_model
from ich_kaggle.second_level import fit as second_level_fit
from ich_kaggle.second_level import fold_fitting, sequence_models

LENGTHS = [1, 12, 9, 20, 40, 12, 9, 20, 14, 12, 9, 11, 12, 13, 14]
SAME_OPTIONS = {"seed": 0, "seeds": 1, "epochs": 2, "batch_size": 4, "lr": 1e-3, "ema": 0.9, "hidden": 8}
OPTIONS = {**SAME_OPTIONS, "dropout": 0.3, "rounds": 10, "augment": {}}
QUICK = ["--epochs", "2", "--batch-size", "4", "--hidden", "8", "--rounds", "20", "--device", "cpu"]
MODELS = list(sequence.SETTINGS)


@pytest.fixture(scope="module")
def first_level(tmp_path_factory):
    """A work folder with slices, folds and two runs, a and b; not to be written into."""
    work_dir = tmp_path_factory.mktemp("first") / "work"
    second_level.write_slices(work_dir, LENGTHS)
    for seed, run in enumerate("ab"):
        second_level.write_run(work_dir, run, seed)
    return work_dir


@pytest.fixture
def work_dir(first_level, tmp_path):
    """A copy of it."""
    return shutil.copytree(first_level, tmp_path / "work", copy_function=os.link)


def run_sequence(work_dir, *flags, on=("a", "b"), run="second", quick=QUICK):
    sequence.main(["--work-dir", str(work_dir), "--run", run, "--on", *on, *quick, *flags])


def refusal(work_dir, capsys, *flags, **how) -> str:
    with pytest.raises(SystemExit) as stop:
        run_sequence(work_dir, *flags, **how)
    return str(stop.value)


def read(work_dir, features="oof", k=0, on=("a", "b")):
    project = Project(None, work_dir)
    part = fold_fitting.part_of(project, project.folds)
    return fold_fitting.read_inputs([project.run(run) for run in on], k, features, project.folds, part), part.fold


def fit(inputs, fitted, folder, model):
    """Return the predictions of the slices that aren't fitted, and what was kept of the fit."""
    options = OPTIONS | {"model": model}
    how = dict(options=options, reads={}, device="cpu", tell=lambda rows: None)
    answers = second_level_fit.second_level(inputs, fitted, folder, **how)
    if model == "smooth":
        return answers, storage.read_json(folder / "widths.json")
    if model == "stack":
        return answers, None
    (network,) = sequence_models.load(folder / "model.pt", {})
    return answers, {name: value.tolist() for name, value in network.state_dict().items()}


def poisoned(inputs, rows):
    """Return `inputs` with other labels, logits and embeddings of `rows`."""
    target, logits = inputs.target.copy(), inputs.logits.copy()
    target[rows], logits[rows] = 1 - target[rows], 9 - logits[rows]
    embeddings = [np.array(part) for part in inputs.embeddings]
    for part in embeddings:
        part[rows] = 7
    return replace(inputs, target=target, logits=logits, embeddings=embeddings)


@pytest.mark.parametrize("features", ["oof", "fold"])
@pytest.mark.parametrize("model", MODELS)
def test_nothing_of_the_scored_fold_touches_what_is_fitted_for_it(first_level, tmp_path, model, features):
    inputs, fold = read(first_level, features)
    fitted, is_test = (fold >= 0) & (fold != 0), (fold < 0)[fold <= 0]
    before, kept = fit(inputs, fitted, tmp_path / "before", model)
    after, kept_after = fit(poisoned(inputs, fold == 0), fitted, tmp_path / "after", model)
    assert kept_after == kept
    assert np.array_equal(after[is_test], before[is_test])
    assert not np.array_equal(after[~is_test], before[~is_test])


@pytest.mark.parametrize("model", MODELS)
def test_what_is_fitted_does_depend_on_the_other_folds(first_level, tmp_path, model):
    inputs, fold = read(first_level)
    fitted, is_test = (fold >= 0) & (fold != 0), (fold < 0)[fold <= 0]
    before, kept = fit(inputs, fitted, tmp_path / "before", model)
    after, kept_after = fit(poisoned(inputs, fold == 1), fitted, tmp_path / "after", model)
    assert model == "stack" or kept_after != kept
    assert not np.array_equal(after[is_test], before[is_test])


@pytest.mark.parametrize("model", MODELS)
def test_a_run_leaves_what_the_ensemble_reads(work_dir, model, capsys):
    run_sequence(work_dir, "--model", model)
    table = tables.read_slices(work_dir)
    fold = tables.read_folds(work_dir, table)
    for k in range(second_level.N_FOLDS):
        folder = paths.fold(work_dir, "second", k)
        for name, rows in (("oof.parquet", fold == k), ("test.parquet", fold < 0)):
            assert pd.read_parquet(folder / name).slice_id.tolist() == table.slice_id[rows].tolist()
            probability = tables.read_predictions(folder / name, table.slice_id[rows].to_numpy())
            assert ((probability > 0) & (probability < 1)).all()
        assert not list(folder.glob("state*"))
    written = {path: path.stat().st_mtime_ns for path in (work_dir / "runs").rglob("*") if path.is_file()}
    ensemble.main(["--work-dir", str(work_dir), "--runs", "a", "second"])
    assert written == {path: path.stat().st_mtime_ns for path in (work_dir / "runs").rglob("*") if path.is_file()}
    assert "second" in capsys.readouterr().out


@pytest.mark.parametrize("model", MODELS)
def test_a_noisy_first_level_is_bettered(work_dir, model):
    run_sequence(work_dir, "--model", model, quick=["--epochs", "10", "--batch-size", "4", "--hidden", "16"])
    table = tables.read_slices(work_dir)
    fold = tables.read_folds(work_dir, table)
    target = tables.targets(table[fold >= 0])
    losses = {
        run: np.mean([metric.log_loss(target[fold[fold >= 0] == k], oof(work_dir, run, k)) for k in range(3)])
        for run in ("a", "b", "second")
    }
    assert losses["second"] < min(losses["a"], losses["b"])


def oof(work_dir, run, k):
    return pd.read_parquet(paths.fold(work_dir, run, k) / "oof.parquet")[list(LABELS)].to_numpy()


def test_a_fold_reads_test_slices_through_its_own_chain_alone(first_level):
    for features in ("oof", "fold"):
        names = run_predictions.files(["a"], 1, features, [0, 1, 2])
        assert [name for name in names if "test" in name or "embeddings" in name or "model" in name] == (
            ["a/fold1/test.parquet"] if features == "oof" else ["a/fold1/model.pt", "a/fold1/embeddings.npy"]
        )
    inputs, fold = read(first_level, k=1)
    table = tables.read_slices(first_level)
    seen = 1 / (1 + np.exp(-inputs.logits[:, 0].astype(float)))
    for k, path in ((-1, "a/fold1/test.parquet"), (0, "a/fold0/oof.parquet"), (2, "a/fold2/oof.parquet")):
        ids = table.slice_id[fold == k].to_numpy()
        assert seen[fold == k] == pytest.approx(tables.read_predictions(first_level / "runs" / path, ids), abs=2e-6)


def test_embeddings_of_other_folds_are_not_looked_at(work_dir):
    for k in (0, 2):
        shutil.rmtree(paths.fold(work_dir, "a", k))
    run_sequence(work_dir, "--features", "fold", "--fold", "1", on=["a"])
    assert (paths.fold(work_dir, "second", 1) / "predict.json").exists()


def test_the_embeddings_are_memory_mapped_and_give_the_logits_of_the_slice_model(first_level):
    inputs, _ = read(first_level, "fold", on=["a"])
    assert isinstance(inputs.embeddings[0], np.memmap)
    model = slice_model.load(paths.fold(first_level, "a", 0) / "model.pt")
    expected = model.head(torch.from_numpy(inputs.embeddings[0].astype(np.float32)))
    assert inputs.logits[:, 0] == pytest.approx(expected.detach().numpy(), abs=1e-4)


@pytest.mark.parametrize("features", ["oof", "fold"])
def test_several_seeds_are_the_mean_of_their_single_runs(work_dir, features):
    for run, seed, seeds in (("zero", 0, 1), ("one", 1, 1), ("both", 0, 2)):
        flags = ["--features", features, "--fold", "0", "--seed", str(seed), "--seeds", str(seeds)]
        run_sequence(work_dir, *flags, run=run)
    zero, one, both = (oof(work_dir, run, 0) for run in ("zero", "one", "both"))
    assert both == pytest.approx((zero + one) / 2, abs=1e-6)
    assert not np.allclose(zero, one, atol=1e-4)
    log = pd.read_csv(paths.fold(work_dir, "both", 0) / "log.csv")
    assert log.seed.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("rows_written", [1, 3])
def test_an_interrupted_run_goes_on_to_the_same_weights(work_dir, monkeypatch, rows_written):
    flags = ["--fold", "0", "--seeds", "2"]
    run_sequence(work_dir, *flags, run="whole")

    def interrupt(path, rows):
        if len(rows) == rows_written:
            raise KeyboardInterrupt

    monkeypatch.setattr(learning_fit, "write_log", interrupt)
    with pytest.raises(SystemExit) as stop:
        run_sequence(work_dir, *flags)
    assert stop.value.code == 130
    monkeypatch.undo()
    run_sequence(work_dir, *flags)
    whole, resumed = (
        torch.load(paths.fold(work_dir, run, 0) / "model.pt", weights_only=True)["weights"]
        for run in ("whole", "second")
    )
    for a, b in zip(whole, resumed, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert np.array_equal(oof(work_dir, "whole", 0), oof(work_dir, "second", 0))


def test_only_the_predictions_are_made_where_the_networks_are_there(work_dir, monkeypatch):
    run_sequence(work_dir, "--fold", "0")
    before = oof(work_dir, "second", 0)
    (paths.fold(work_dir, "second", 0) / "predict.json").unlink()
    monkeypatch.setattr(learning_fit, "fit", None)
    run_sequence(work_dir, "--fold", "0")
    assert np.array_equal(oof(work_dir, "second", 0), before)


@pytest.mark.parametrize("model", MODELS)
def test_the_same_command_again_does_nothing_and_made_again_gives_the_same(work_dir, model, capsys):
    flags = ["--model", model, "--fold", "0"]
    run_sequence(work_dir, *flags)
    before = oof(work_dir, "second", 0)
    run_sequence(work_dir, *flags)
    assert capsys.readouterr().out.strip().endswith(cli.THERE.strip())
    run_sequence(work_dir, *flags, "--overwrite")
    assert np.array_equal(oof(work_dir, "second", 0), before)


@pytest.mark.parametrize("features, name", [("oof", "fold2/oof.parquet"), ("fold", "fold0/embeddings.npy")])
def test_a_changed_run_is_refused_by_name(work_dir, capsys, features, name):
    run_sequence(work_dir, "--features", features, "--fold", "0")
    path = work_dir / "runs" / "b" / name
    old = storage.file_hash(path)
    if features == "oof":
        ids = pd.read_parquet(path).slice_id.to_numpy()
        tables.write_predictions(path, ids, np.full((len(ids), len(LABELS)), 0.5))
    else:
        second_level.write_embeddings(path, np.load(path) + 1)
    message = refusal(work_dir, capsys, "--features", features, "--fold", "0")
    assert f"was made with b/{name} {old}, not {storage.file_hash(path)}: give another --run, or --overwrite" in message
    run_sequence(work_dir, "--features", features, "--fold", "0", "--overwrite")


def test_other_options_are_refused_by_name_but_those_of_other_models(work_dir, capsys):
    run_sequence(work_dir, "--fold", "0")
    run_sequence(work_dir, "--fold", "0", "--rounds", "99")
    assert "made with lr 0.001, not 0.1" in refusal(work_dir, capsys, "--fold", "0", "--lr", "0.1")
    assert "made with model gru, not conv" in refusal(work_dir, capsys, "--fold", "0", "--model", "conv")
    assert "made with on ['a', 'b'], not ['a']" in refusal(work_dir, capsys, "--fold", "0", on=["a"])


@pytest.mark.parametrize("features", ["oof", "fold"])
def test_a_fold_that_a_run_lacks_is_left_out_and_refused_by_name_where_it_is_asked_for(work_dir, capsys, features):
    shutil.rmtree(paths.fold(work_dir, "b", 2))
    message = refusal(work_dir, capsys, "--features", features, "--fold", "2")
    folder = paths.fold(work_dir, "b", 2)
    command = f"python -m ich_kaggle.train --work-dir {work_dir} --run b --fold 2"
    assert message == f"error: {folder} is not finished: run {command}"
    run_sequence(work_dir, "--features", features)
    assert Run(work_dir, "second").finished == [0, 1]


def test_missing_embeddings_are_refused_with_the_command_that_makes_them(work_dir, capsys):
    path = paths.fold(work_dir, "a", 0) / "embeddings.npy"
    embeddings = np.load(path)
    embeddings[[3, 7]] = np.nan
    second_level.write_embeddings(path, embeddings)
    remedy = f"run python -m ich_kaggle.predict --work-dir {work_dir} --run a --fold 0 --all-slices"
    third = tables.read_slices(work_dir).slice_id[3]
    assert refusal(work_dir, capsys, "--features", "fold") == (
        f"error: {path}: slice {third} has no embedding (2 slices have none): {remedy} --overwrite"
    )
    path.unlink()
    assert refusal(work_dir, capsys, "--features", "fold") == f"error: {path} is missing: {remedy} --overwrite"
    second_level.write_embeddings(path, np.nan_to_num(embeddings))
    run_sequence(work_dir, "--features", "fold")


def test_nothing_is_overwritten_before_all_inputs_can_be_read(work_dir, capsys):
    run_sequence(work_dir, "--features", "fold")
    path = paths.fold(work_dir, "a", 1) / "embeddings.npy"
    embeddings = np.load(path)
    embeddings[3] = np.nan
    second_level.write_embeddings(path, embeddings)
    assert "has no embedding" in refusal(work_dir, capsys, "--features", "fold", "--overwrite")
    assert Run(work_dir, "second").finished == [0, 1, 2]


def test_a_run_on_other_slices_or_folds_is_refused(work_dir, capsys):
    path = work_dir / "runs" / "b" / "run.json"
    record = storage.read_json(path)
    storage.write_json(path, record | {"settings": record["settings"] | {"folds": "other"}})
    remedy = f"python -m ich_kaggle.train --work-dir {work_dir} --run b --fold 0 1 2 --overwrite fits it anew"
    assert re.search(rf"b/run.json was made with folds other, not .*: {remedy}", refusal(work_dir, capsys))


def test_a_second_level_is_read_by_its_logits_only_and_never_by_itself(work_dir, capsys):
    run_sequence(work_dir, "--model", "smooth", run="smooth-a", on=["a"])
    run_sequence(work_dir, "--model", "stack", on=["smooth-a", "b"], run="third")
    message = refusal(work_dir, capsys, "--features", "fold", on=["smooth-a"])
    assert message == "error: smooth-a is a second level and has no embeddings: read it with --features oof"
    assert refusal(work_dir, capsys, run="a", on=["a"]) == "error: a can't read itself: give another --run"


def test_an_unfinished_second_level_is_not_predicted_as_a_slice_run(work_dir, capsys):
    run_sequence(work_dir, on=["a"])
    (paths.fold(work_dir, "second", 1) / "predict.json").unlink()
    message = refusal(work_dir, capsys, "--fold", "1", on=["second"], run="third")
    command = f"python -m ich_kaggle.sequence --work-dir {work_dir} --run second --fold 1"
    assert message.endswith(f"second/fold1 is not finished: run {command}")


def test_the_name_of_a_run_is_its_model_and_what_it_reads(work_dir):
    sequence.main(["--work-dir", str(work_dir), "--on", "a", "b", "--model", "smooth"])
    assert (work_dir / "runs" / "smooth-a-b" / "fold2" / "predict.json").exists()


@pytest.mark.parametrize("features", ["oof", "fold"])
@pytest.mark.parametrize("model", MODELS)
def test_odd_series_have_answers_like_any_other(tmp_path, model, features):
    work_dir = tmp_path / "work"
    table = second_level.write_slices(work_dir, [1, 400, 8, 8, 12, 12, 9, 1])
    position = table.position.to_numpy(copy=True)
    position[401:409] = position[401]  # one position, eight times
    series_id, study_id = table.series_id.to_numpy(copy=True), table.study_id.to_numpy(copy=True)
    study_id[409:417], series_id[409:413] = "ID_s003", "ID_t003-a"  # a study with two series
    table = table.assign(position=position, series_id=series_id, study_id=study_id)
    tables.write_slices(work_dir, table, {})
    second_level.write_run(work_dir, "a")
    run_sequence(work_dir, "--model", model, "--features", features, on=["a"])
    for k in range(second_level.N_FOLDS):
        assert np.isfinite(oof(work_dir, "second", k)).all()
        assert (
            np.isfinite(pd.read_parquet(paths.fold(work_dir, "second", k) / "test.parquet")[list(LABELS)]).all().all()
        )


def test_two_series_of_a_study_are_read_apart(first_level, tmp_path):
    inputs, fold = read(first_level)
    rows = np.flatnonzero(inputs.series == inputs.series[fold == 0][-1])
    half = rows[: len(rows) // 2]
    number = inputs.series.copy()
    number[rows[-1] + 1 :] += 1
    number[rows[len(half) :]] += 1
    split = replace(inputs, series=number)
    fitted = (fold >= 0) & (fold != 0)
    place = np.flatnonzero(~fitted).searchsorted(half)
    before = fit(split, fitted, tmp_path / "before", "gru")[0][place]
    after = fit(poisoned(split, rows[len(half) :]), fitted, tmp_path / "after", "gru")[0][place]
    assert before == pytest.approx(after, abs=1e-6)


def test_what_has_not_been_predicted_is_predicted_and_said_so(competition, tmp_path, caplog):
    work_dir = tmp_path / "work"
    place = ["--data-dir", str(competition), "--work-dir", str(work_dir), "--workers", "1"]
    folds.main([*place, "--folds", "2"])
    slice_flags = ["--arch", "test_resnet", "--image-size", "32", "--cache-size", "64", "--epochs", "1"]
    train.main([*place, "--run", "slices", *slice_flags, "--weights", "none", "--device", "cpu"])
    with caplog.at_level("INFO"):
        sequence.main([*place, "--on", "slices", "--features", "fold", *QUICK, "--run", "second"])
    assert "runs/slices: fold 0, 1 is not predicted yet" in caplog.text
    written = (paths.fold(work_dir, "slices", 1) / "predict.json").stat().st_mtime_ns
    sequence.main([*place, "--on", "slices", "--features", "oof", "--model", "smooth", "--run", "smoothed"])
    assert (paths.fold(work_dir, "slices", 1) / "predict.json").stat().st_mtime_ns == written
    ensemble.main([*place, "--runs", "slices", "second", "smoothed"])


def test_embeddings_give_the_predictions_that_were_written(competition, tmp_path):
    work_dir = tmp_path / "work"
    place = ["--data-dir", str(competition), "--work-dir", str(work_dir), "--workers", "1"]
    folds.main([*place, "--folds", "2"])
    slice_flags = ["--arch", "test_resnet", "--image-size", "32", "--cache-size", "64", "--epochs", "1"]
    train.main([*place, "--run", "slices", *slice_flags, "--weights", "none", "--device", "cpu", "--fold", "1"])
    predict.main([*place, "--run", "slices", "--fold", "1", "--all-slices"])
    inputs, fold = read(work_dir, "fold", k=1, on=["slices"])
    seen = 1 / (1 + np.exp(-inputs.logits[fold == 1, 0].astype(float)))
    assert seen == pytest.approx(oof(work_dir, "slices", 1), abs=2e-3)


def test_a_second_level_is_not_predicted_again_as_if_it_were_a_slice_model(work_dir):
    from ich_kaggle import predict

    run_sequence(work_dir, "--model", "gru", "--fold", "0")
    done = paths.fold(work_dir, "second", 0) / "predict.json"
    before = done.read_bytes()
    with pytest.raises(SystemExit) as stop:
        predict.main(["--work-dir", str(work_dir), "--run", "second", "--fold", "0", "--overwrite"])
    command = f"python -m ich_kaggle.sequence --work-dir {work_dir} --run second"
    assert f"is a second level: run {command}" in stop.value.code
    assert done.read_bytes() == before
