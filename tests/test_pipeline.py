"""The whole pipeline on a tiny competition, command by command, as a user types it."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest

from ich_kaggle import cache, demo, ensemble, folds, predict, slices, submit, train
from ich_kaggle.common import paths, storage, tables
from ich_kaggle.common.labels import ANY, LABELS

TRAIN = ["--arch", "test_resnet", "--weights", "none", "--image-size", "32", "--cache-size", "64", "--epochs", "1"]


@pytest.fixture(scope="module")
def done(competition, tmp_path_factory):
    """A working folder with two finished runs of three folds, and the folder of submissions."""
    folder = tmp_path_factory.mktemp("pipeline")
    work = ["--work-dir", str(folder / "work"), "--workers", "1"]
    folds.main(["--data-dir", str(competition), "--folds", "3", *work])
    train.main([*TRAIN, *work, "--run", "a", "--batch-size", "8"])
    train.main([*TRAIN, *work, "--run", "b", "--batch-size", "8", "--seed", "1"])
    submit.main(["--dry-run", "--work-dir", str(folder / "work"), "--submissions-dir", str(folder / "submissions")])
    return folder


@pytest.fixture
def copy(done, tmp_path):
    """A copy of the finished working folder, to be spoilt."""
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    return tmp_path


def stopped(main, argv) -> str:
    with pytest.raises(SystemExit) as error:
        main([str(part) for part in argv])
    assert isinstance(error.value.code, str), "exit code 1 with one line"
    assert "\n" not in error.value.code
    return error.value.code


def test_the_submission_holds_each_id_once_in_the_samples_order(done, competition):
    submission = pd.read_csv(next((done / "submissions").glob("*.csv")))
    sample = pd.read_csv(competition / paths.SAMPLE_CSV)
    assert submission.ID.tolist() == sample.ID.tolist()
    wide = submission.Label.to_numpy().reshape(-1, len(LABELS))
    assert ((wide >= 0) & (wide <= 1)).all()
    assert (wide[:, ANY] >= wide.max(axis=1)).all()


def test_the_submission_is_the_weighted_mean_of_the_folds_models(done, tmp_path):
    work = done / "work"
    ensemble.main(["--work-dir", str(work), "--name", "plain", "--method", "equal"])
    argv = ["--dry-run", "--work-dir", str(work), "--submissions-dir", str(tmp_path), "--ensemble", "plain"]
    submit.main(argv)
    weights = storage.read_json(paths.ensemble(work, "plain") / "weights.json")["runs"]
    expected = 0
    for run, weight in weights.items():
        per_fold = [pd.read_parquet(paths.fold(work, run, k) / "test.parquet").set_index("slice_id") for k in range(3)]
        of_run = sum(per_fold) / 3
        expected = expected + weight * of_run.assign(any=of_run.max(axis=1))
    submission = pd.read_csv(next(tmp_path.glob("*.csv")))
    got = submission.assign(slice_id=submission.ID.str[:12], label=submission.ID.str[13:])
    got = got.pivot(index="slice_id", columns="label", values="Label")[list(LABELS)]
    np.testing.assert_allclose(got.to_numpy(), expected.loc[got.index, list(LABELS)].to_numpy(), atol=1e-6)


def test_out_of_fold_predictions_are_of_patients_the_model_never_saw(done):
    table = tables.read_slices(done / "work")
    fold = tables.read_folds(done / "work", table)
    for k in range(3):
        oof = pd.read_parquet(paths.fold(done / "work", "a", k) / "oof.parquet")
        patients = set(table.set_index("slice_id").patient_id[oof.slice_id])
        assert patients.isdisjoint(table.patient_id[(fold >= 0) & (fold != k)])
        assert len(oof) == (fold == k).sum()


def test_embeddings_lie_row_for_row_beside_the_slice_table(done):
    table = tables.read_slices(done / "work")
    fold = tables.read_folds(done / "work", table)
    embeddings = np.load(paths.fold(done / "work", "a", 1) / "embeddings.npy")
    assert len(embeddings) == len(table)
    known = ~np.isnan(embeddings).any(axis=1)
    assert known.tolist() == ((fold == 1) | (table.split == "test")).tolist()


def test_every_command_run_again_does_nothing_and_says_so(done, competition, capsys):
    before = {p: p.stat().st_mtime_ns for p in done.rglob("*") if p.is_file()}
    work = ["--work-dir", str(done / "work"), "--workers", "1"]
    slices.main(["--data-dir", str(competition), *work])
    folds.main(["--folds", "3", *work])
    cache.main(["--cache-size", "64", *work])
    train.main([*TRAIN, *work, "--run", "a", "--batch-size", "8"])
    predict.main(["--run", "a", *work])
    ensemble.main(work)
    submit.main(["--dry-run", "--work-dir", str(done / "work"), "--submissions-dir", str(done / "submissions")])
    said = capsys.readouterr().out
    assert said.count("nothing to do") >= 6 + 2 + 2
    assert "not written again" in said
    assert {p: p.stat().st_mtime_ns for p in done.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "main, argv, named",
    [
        (folds.main, ["--folds", "2"], ["folds.csv", "folds 3", "not 2"]),
        (folds.main, ["--folds", "3", "--seed", "5"], ["folds.csv", "seed 0", "not 5"]),
        (
            train.main,
            [*TRAIN, "--run", "a", "--batch-size", "4"],
            ["a/run.json was made with batch_size 8, not 4"],
        ),
        (
            predict.main,
            ["--run", "a", "--views", "identity"],
            ["a/run.json was made with views ['identity', 'hflip'], not ['identity']"],
        ),
    ],
)
def test_other_settings_over_the_same_files_are_refused_with_both_named(done, main, argv, named):
    line = stopped(main, [*argv, "--work-dir", done / "work"])
    assert all(word in line for word in named)


def test_other_data_over_the_same_slice_table_are_refused_with_both_named(done, competition, tmp_path):
    other = shutil.copytree(competition, tmp_path / "other")
    labels = (other / paths.TRAIN_CSV).read_text()
    (other / paths.TRAIN_CSV).write_text(labels[:-2] + {"0": "1", "1": "0"}[labels[-2]] + labels[-1])
    line = stopped(slices.main, ["--data-dir", other, "--work-dir", done / "work"])
    assert f"slices.parquet was made with {paths.TRAIN_CSV} " in line and ", not " in line


def test_without_data_the_ways_to_get_some_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ICH_DATA_DIR", raising=False)
    line = stopped(folds.main, ["--work-dir", tmp_path / "work"])
    assert all(way in line for way in ("--all", "--data-dir", "ICH_DATA_DIR", "ich_kaggle.phantom", "ich_kaggle.demo"))


def remove_csv(data):
    (data / paths.TRAIN_CSV).unlink()
    return paths.TRAIN_CSV


def remove_file(data):
    path = min((data / "stage_2_train").iterdir())
    path.unlink()
    return path.stem


def remove_label_rows(data):
    csv = data / paths.TRAIN_CSV
    rows = csv.read_text().splitlines(keepends=True)
    csv.write_text("".join([rows[0], *rows[7:]]))
    return rows[1][:12]


def truncate_test_slice(data):
    path = min((data / "stage_2_test").iterdir())
    path.write_bytes(path.read_bytes()[:-100])
    return path.stem


def shorten_sample(data):
    csv = data / paths.SAMPLE_CSV
    rows = csv.read_text().splitlines(keepends=True)
    csv.write_text("".join(rows[:-6]))
    return rows[-1][:12]


@pytest.mark.parametrize("spoil", [remove_csv, remove_file, remove_label_rows, truncate_test_slice, shorten_sample])
def test_spoilt_data_stop_the_scan_with_what_is_wrong_named(competition, tmp_path, spoil):
    data = shutil.copytree(competition, tmp_path / "data")
    what = spoil(data)
    line = stopped(folds.main, ["--data-dir", data, "--work-dir", tmp_path / "work", "--workers", "1"])
    assert what in line
    assert not paths.slices(tmp_path / "work").exists()


def test_an_unknown_architecture_is_answered_with_the_nearest_names(done):
    line = stopped(train.main, ["--arch", "resnet5O", "--weights", "none", "--work-dir", done / "work"])
    assert "resnet50" in line


def test_a_fold_that_does_not_exist_is_named_with_those_that_do(done):
    line = stopped(train.main, [*TRAIN, "--run", "c", "--fold", "7", "--work-dir", done / "work"])
    assert "--fold 7" in line and "folds.csv has the folds 0, 1, 2" in line


def test_a_fold_that_is_not_finished_is_named_with_the_command_that_trains_it(copy):
    shutil.rmtree(paths.fold(copy / "work", "a", 2))
    line = stopped(predict.main, ["--run", "a", "--fold", "2", "--work-dir", copy / "work"])
    command = f"python -m ich_kaggle.train --work-dir {copy / 'work'} --run a --fold 2"
    assert line.endswith(f"runs/a: fold 2 is not finished: run {command}")


def test_a_sample_submission_that_does_not_match_stops_the_submission(copy, competition, tmp_path):
    data = shutil.copytree(competition, tmp_path / "other")
    csv = data / paths.SAMPLE_CSV
    csv.write_text(csv.read_text().replace(csv.read_text()[-21:-9], "ID_fffffffff") + "ID_ffffffffe_any,0.5\n")
    argv = ["--dry-run", "--data-dir", data, "--work-dir", copy / "work", "--submissions-dir", tmp_path / "new"]
    assert f"slices.parquet was made with {paths.SAMPLE_CSV} " in stopped(submit.main, argv)
    assert not list((tmp_path / "new").glob("*.csv"))


def test_a_truncated_training_slice_is_listed_and_left_out(competition, tmp_path):
    data = shutil.copytree(competition, tmp_path / "data")
    path = min((data / "stage_2_train").iterdir())
    path.write_bytes(path.read_bytes()[:-100])
    slices.main(["--data-dir", str(data), "--work-dir", str(tmp_path / "work"), "--workers", "1"])
    assert path.stem not in set(tables.read_slices(tmp_path / "work").slice_id)
    defects = pd.read_csv(paths.defects(tmp_path / "work"))
    assert path.stem in set(defects.slice_id)
    assert defects.set_index("slice_id").defect[path.stem].find("truncated") >= 0


@pytest.mark.slow
def test_the_demo_runs_from_nothing_to_a_scored_submission_and_the_report(tmp_path, capsys):
    demo.main(["--demo-dir", str(tmp_path), "--patients", "16", "--folds", "2", "--epochs", "1", "--workers", "1"])
    said = capsys.readouterr().out
    assert "verified" in said and "test log loss: submission" in said
    assert len(list((tmp_path / "submissions").glob("*.csv"))) == 1
    scores = storage.read_json(tmp_path / "work" / "ensemble" / demo.NAME / "weights.json")
    assert set(scores["single"]) == set(demo.SECOND_LEVELS)
    line = r"ensemble (.+), best member (.+) (.+): better by (\S+) \+- (\S+) \(standard error over 13 patients\)"
    loss, best, alone, better, error = re.search(line, said).groups()
    assert float(loss) == round(scores["nested_log_loss"], 4) and float(error) > 0
    assert scores["single"].get(best, float(alone)) == pytest.approx(float(alone), abs=1e-4)
    assert float(better) == pytest.approx(float(alone) - float(loss), abs=2e-4)
    report = tmp_path / "work" / "report" / "index.html"
    assert report.is_file() and said.rstrip().endswith(f"report       {report}")
    assert f"to {scores['single']['smooth-cpu']:.4f}, cpu_both" in said
    hospital = tmp_path / "hospital" / "work" / "runs"
    trained = [
        pd.read_csv(hospital / run / f"fold{k}" / "log.csv").valid_loss.iloc[-1] for run in demo.STARTS for k in (0, 1)
    ]
    line = r"another scanner: .+ ImageNet (\S+), smoothed (\S+), from .+ (\S+), smoothed (\S+); .+ better by (\S+) "
    imagenet, smoothed, start, ours, better = (float(loss) for loss in re.search(line, said).groups())
    trained = [sum(trained[:2]) / 2, sum(trained[2:]) / 2]
    assert [imagenet, start] == pytest.approx(trained, abs=0.02)  # folds differ a bit in size
    assert better == pytest.approx(smoothed - ours, abs=2e-4)
