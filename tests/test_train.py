import multiprocessing
import os
import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from ich_kaggle import predict, train
from ich_kaggle.common import metric, paths, tables, windows
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.common.runs import Run
from ich_kaggle.dicom import png
from ich_kaggle.learning import datasets, fit, neighbours, profiling, slice_model, tasks, training_options
from ich_kaggle.scoring import patient_folds

TINY = ["--arch", "test_resnet", "--weights", "none", "--image-size", "32", "--cache-size", "64", "--batch-size", "8"]
TINY += ["--epochs", "2", "--workers", "0", "--device", "cpu"]
LEFT = {"log.csv", "model.pt"}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def run(work, *flags, fold=0, name="a") -> pd.DataFrame:
    """Train a fold of a tiny model; return its log."""
    train.main([*TINY, "--work-dir", str(work), "--fold", str(fold), "--run", name, *flags])
    return pd.read_csv(work / "runs" / name / f"fold{fold}" / "log.csv")


def refused(work, *flags) -> str:
    with pytest.raises(SystemExit) as error:
        train.main([*TINY, "--work-dir", str(work), "--run", "a", *flags])
    assert isinstance(error.value.code, str) and "\n" not in error.value.code
    return error.value.code


def weights_of(work, name="a", fold=0) -> dict:
    return torch.load(work / "runs" / name / f"fold{fold}" / "model.pt", weights_only=True)["weights"]


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_finished_fold_leaves_its_model_and_log_and_nothing_else(work):
    run(work)
    assert {path.name for path in (work / "runs" / "a" / "fold0").iterdir()} == LEFT


def test_without_workers_a_missing_cache_is_still_made(work):
    run(work, "--cache-size", "48")
    assert (work / "cache" / "48" / "cache.json").exists()


def test_the_log_scores_all_held_out_slices_at_once(work):
    log = run(work, "--batch-size", "7")
    predict.main(["--work-dir", str(work), "--run", "a", "--fold", "0", "--views", "identity", "--workers", "0"])
    table = tables.read_slices(work).set_index("slice_id")
    oof = pd.read_parquet(work / "runs" / "a" / "fold0" / "oof.parquet")
    target, probability = tables.targets(table.loc[oof.slice_id]), oof[list(LABELS)].to_numpy()
    assert log.valid_loss.iloc[-1] == pytest.approx(metric.log_loss(target, probability), abs=1e-5)
    assert log[list(LABELS)].iloc[-1].tolist() == pytest.approx(metric.label_losses(target, probability), abs=1e-5)


def test_the_same_seed_gives_the_same_model_and_another_seed_another(work):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        run(work, "--seed", seed, name=name)
    assert equal(weights_of(work, "a"), weights_of(work, "b"))
    assert not equal(weights_of(work, "a"), weights_of(work, "c"))


def test_workers_change_nothing(work):
    run(work)
    run(work, "--workers", "2", name="b")
    assert equal(weights_of(work, "a"), weights_of(work, "b"))


def test_all_folds_run_in_turn_and_finished_ones_are_skipped(work, capsys):
    run(work, fold=1)
    train.main([*TINY, "--work-dir", str(work), "--fold", "all", "--run", "a"])
    told = capsys.readouterr().out
    assert "fold1/model.pt exists: nothing to do" in told
    assert {path.name for path in (work / "runs" / "a").glob("[!.]*")} == {"run.json", "fold0", "fold1", "fold2"}


def test_other_settings_over_a_begun_fold_are_refused_with_both_named(work):
    run(work)
    assert "made with rotate 30.0, not 10.0" in refused(work, "--fold", "0", "--rotate", "10")
    assert "made with context windows, not both" in refused(work, "--fold", "0", "--context", "both")


def test_a_slice_of_the_cache_that_is_damaged_stops_the_run_with_the_command_that_mends_it(work):
    fold = patient_folds.ensure(Project(None, work, 1))
    path = paths.cached(work / "cache" / "64", tables.read_slices(work).slice_id[(fold >= 0) & (fold != 0)].iloc[0])
    path.write_bytes(path.read_bytes()[:100])
    said = refused(work, "--fold", "0")
    command = f"python -m ich_kaggle.cache --work-dir {work} --cache-size 64"
    assert str(path) in said and f"{command} --verify" in said


def test_a_loss_that_is_no_number_names_the_slices_of_the_batch(work, monkeypatch):
    monkeypatch.setattr(tasks, "slice_loss", lambda model, batch, **_: model(batch[0]).sum() * float("nan"))
    said = refused(work, "--fold", "0")
    named = set(said.split("in the batch ")[1].split(":")[0].split(", "))
    table = tables.read_slices(work)
    assert len(named) >= 7 and named <= set(table.slice_id[table.split == "train"])
    assert not (work / "runs" / "a" / "fold0" / "model.pt").exists()


@pytest.mark.parametrize("context, n_channels", [("windows", 3), ("slices", 3), ("both", 9)])
def test_each_context_trains_and_predicts_from_the_one_cache(work, context, n_channels):
    run(work, "--context", context, "--epochs", "1", *(["--stride", "2"] if context != "windows" else []))
    predict.main(["--work-dir", str(work), "--run", "a", "--fold", "0", "--workers", "0"])
    model = slice_model.load(work / "runs" / "a" / "fold0" / "model.pt")
    assert next(model.backbone.parameters()).shape[1] == n_channels
    assert pd.read_parquet(work / "runs" / "a" / "fold0" / "oof.parquet").notna().all(axis=None)


def test_a_run_on_the_cropped_cache_trains_and_predicts_from_that_cache_alone(work):
    run(work, "--crop", "study", "--epochs", "1")
    predict.main(["--work-dir", str(work), "--run", "a", "--fold", "0", "--workers", "0"])
    assert {path.name for path in (work / "cache").glob("[!.]*")} == {"64", "64-study"}  # the fixture made the first
    settings = Run(work, "a").settings
    assert (settings["crop"], settings["cache_size"]) == ("study", 64)
    assert slice_model.load(work / "runs" / "a" / "fold0" / "model.pt").config.crop == "study"
    assert "made with crop study, not none" in refused(work, "--fold", "0", "--crop", "none")


def test_a_batch_of_three_slices_is_the_window_of_each_neighbour(work):
    table = tables.read_slices(work)
    config = tasks.slice_config("test_resnet", image_size=64, cache_size=64, context="slices", window="subdural")
    loader = tasks.slice_loader(table, work / "cache" / "64", config, batch_size=len(table), workers=0)
    images = next(iter(loader))[0].numpy()
    beside = neighbours.neighbours(table.series_id, table.position, (-1, 0, 1))
    for row, image in enumerate(images):
        for channel, other in enumerate(beside[row]):
            cached = png.read(paths.cached(work / "cache" / "64", table.slice_id[other]))
            assert (image[..., channel] == cached[..., windows.CACHED.index(windows.SUBDURAL)]).all()


def test_learning_the_neighbours_labels_leaves_a_model_of_six(work):
    run(work, "--context", "slices", "--side-weight", "0.2", "--swap", "0.5")
    assert slice_model.load(work / "runs" / "a" / "fold0" / "model.pt").head.out_features == 6


def test_the_loss_of_three_targets_is_the_weighted_mean_of_theirs():
    logits, target = torch.randn(4, 3, 6), torch.randint(0, 2, (4, 3, 6)).float()
    each = [fit.bce(logits[:, i], target[:, i]).item() for i in range(3)]
    got = tasks.slice_loss(lambda images: logits, (None, target, None), side_weight=0.25).item()
    assert got == pytest.approx((each[1] + 0.25 * (each[0] + each[2])) / 1.5, rel=1e-5)


EVERYTHING = ["--sampler", "study", "--per-study", "3", "--cutout", "0.5", "--random-crop", "0.7", "--soften", "0.1"]
EVERYTHING += ["--focal", "1", "--accumulate", "2", "--freeze", "1", "--layer-decay", "0.7", "--drop-path", "0.1"]


def test_every_option_of_training_runs_and_is_recorded(work):
    run(work, *EVERYTHING, "--vflip", "0.1", "--clip", "0.5", "--warmup", "0.3", "--weight-decay", "0.1")
    options = Run(work, "a").settings
    assert (options["sampler"], options["freeze"], options["layer_decay"], options["soften"]) == ("study", 1, 0.7, 0.1)


def test_an_unknown_setting_is_a_mistake_of_the_caller(work):
    with pytest.raises(TypeError, match="epoch"):
        train.train(data_dir=None, work_dir=work, arch="test_resnet", epoch=3)


def test_a_dry_run_tells_time_and_memory_and_leaves_nothing(work, capsys):
    train.main([*TINY, "--work-dir", str(work), "--run", "a", "--dry-run"])
    first, told = capsys.readouterr().out.splitlines()
    assert first == "dry run: timing training, then validation, for up to 30 s each"
    assert all(
        word in told for word in ("img/s", "per epoch", "per fold of 2 epochs", "GB of memory", "folds to fit: 3")
    )
    assert not (work / "runs").exists()


def test_a_dry_run_times_the_whole_network_and_the_head_and_counts_open_folds(work, capsys, monkeypatch):
    flags = ["--freeze", "1", "--accumulate", "9"]
    run(work, *flags)
    updated = []
    update = fit.Fit._update
    monkeypatch.setattr(profiling, "LONGEST", 0.0)  # after the first batch
    monkeypatch.setattr(fit.Fit, "_update", lambda fit: updated.append(fit.is_frozen) or update(fit))
    train.main([*TINY, "--work-dir", str(work), "--run", "a", *flags, "--dry-run"])
    assert updated == [False, True]
    told = capsys.readouterr().out
    assert "while only the head learns" in told and "folds to fit: 2" in told


def test_a_dry_run_says_how_long_loading_takes_where_that_is_slower_than_training(work, capsys, monkeypatch):
    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock, read = Clock(), datasets.SliceDataset.read

    def slow(dataset, row):
        clock.now += 0.5
        return read(dataset, row)

    monkeypatch.setattr(profiling, "time", clock)
    monkeypatch.setattr(datasets.SliceDataset, "read", slow)
    train.main([*TINY, "--work-dir", str(work), "--run", "a", "--fold", "0", "--dry-run"])
    assert ", 2 img/s;" in capsys.readouterr().out


def test_settings_that_made_nothing_yet_may_be_changed(work, monkeypatch):
    monkeypatch.setattr(tasks, "new_model", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(work, "--lr", "0.5")
    monkeypatch.undo()
    run(work)
    options = Run(work, "a").settings
    assert options["lr"] == 2e-4


def test_a_run_that_was_begun_goes_on_with_settings_that_do_nothing(work, monkeypatch):
    monkeypatch.setattr(training_options, "check", lambda settings: None)
    run(work, "--swap", "0.5")
    monkeypatch.undo()
    run(work, "--swap", "0.5", fold=1)
    assert "--swap 0.5 does nothing" in refused(work, "--swap", "0.5", "--overwrite")


def test_no_log_is_written_before_an_epoch_has_ended(tmp_path):
    fit.write_log(tmp_path / "log.csv", [])
    assert not (tmp_path / "log.csv").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--side-weight 0.9", "--side-weight 0.9 does nothing without --context slices or both"),
        ("--stride 2", "--stride 2 does nothing without --context slices or both"),
        ("--swap 0.5", "--swap 0.5 does nothing without --context slices or both"),
        ("--window brain --context both", "--window brain does nothing without --context slices"),
        ("--per-study 9", "--per-study 9 does nothing without --sampler study"),
        ("--weights nope.pth", "nope.pth: no such weights"),
        ("--arch vgg11 --drop-path 0.1", "timm has no vgg11 with drop_path_rate 0.1"),
        ("--device cuda:77", "--device cuda:77: "),
        ("--device gpu", "--device gpu: "),
    ],
)
def test_what_can_not_be_is_said_before_anything_is_cached(work, flags, message):
    cached = set((work / "cache").iterdir())
    assert message in refused(work, "--cache-size", "32", *flags.split())
    assert set((work / "cache").iterdir()) == cached and not (work / "runs").exists()


def test_a_clip_of_0_does_not_clip(work):
    log = run(work, "--clip", "0", "--lr", "0.01", name="free")
    assert not equal(
        weights_of(work, "free"), run(work, "--lr", "0", name="still") is not None and weights_of(work, "still")
    )
    assert log.equals(run(work, "--clip", "1e9", "--lr", "0.01", name="loose"))


def test_an_architecture_of_a_fixed_size_is_made_for_the_size_asked_for(work):
    run(work, "--arch", "test_vit", "--epochs", "1")
    assert slice_model.load(work / "runs" / "a" / "fold0" / "model.pt").backbone.patch_embed.img_size == (32, 32)


def test_what_a_killed_process_left_half_written_is_removed(work):
    folder = work / "runs" / "a" / "fold0"
    folder.mkdir(parents=True)
    gone = subprocess.Popen(["true"])
    gone.wait()
    (folder / f".state.pt.{gone.pid}.{16 * '0'}").write_bytes(b"half")
    run(work)
    assert {path.name for path in folder.iterdir()} == LEFT


def test_tensorboard_gets_the_log(work):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = run(work, "--tensorboard")
    events = EventAccumulator(str(work / "runs" / "a" / "fold0" / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("valid_loss")] == pytest.approx(log.valid_loss.tolist())


def test_tensorboard_gets_each_epoch_once_of_a_run_gone_on_from(work, monkeypatch):
    told, save = [], slice_model.save
    monkeypatch.setattr(profiling, "summary_writer", lambda: None)  # is installed
    monkeypatch.setattr(profiling, "board", lambda folder: lambda row: told.append(row["epoch"]))
    monkeypatch.setattr(slice_model, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(work, "--tensorboard")
    monkeypatch.setattr(slice_model, "save", save)
    run(work, "--tensorboard")
    assert told == [0, 1]


def test_the_state_that_a_killed_process_was_writing_goes_with_the_last_one(work, monkeypatch):
    """Killed in the last write of the state, and again between the next write and its sweep."""
    save, left = slice_model.save, f".state.pt.{2**31 - 1}.0123456789abcdef"  # no process has this number
    monkeypatch.setattr(slice_model, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(work)
    monkeypatch.setattr(slice_model, "save", save)
    folder = work / "runs" / "a" / "fold0"
    for _ in range(2):  # a fold to be finished, and a finished one
        (folder / left).touch()
        run(work)
        assert {path.name for path in folder.iterdir()} == LEFT


KILLED = [*TINY, "--checkpoint-every", "0", "--accumulate", "2"]


def _train_and_end(work: str, name: str) -> None:
    # In a process of its own, forked from a server that has imported torch and never used it.
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    train.main([*KILLED, "--work-dir", work, "--fold", "0", "--run", name])


@pytest.mark.slow
def test_a_run_killed_at_any_moment_and_started_again_ends_bit_identical(work):
    """At least ten real SIGKILLs, at moments drawn from a seed, over as many runs as that takes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ich_kaggle.train"])

    def start(name: str):
        process = context.Process(target=_train_and_end, args=(str(work), name))
        process.start()
        return process

    start("warm").join()
    began = time.monotonic()
    start("whole").join()
    whole = time.monotonic() - began
    files = {name: (work / "runs" / "whole" / "fold0" / name).read_bytes() for name in ("model.pt", "log.csv")}
    rng, n_killed, n_runs = np.random.default_rng(0), 0, 0
    while n_killed < 12:
        name, n_runs = f"killed{n_runs}", n_runs + 1
        for moment in rng.uniform(0, whole, 3):
            process = start(name)
            process.join(moment)
            n_killed += process.is_alive()
            process.kill()
            process.join()
        start(name).join()
        folder = work / "runs" / name / "fold0"
        assert {path.name for path in folder.iterdir()} == LEFT
        assert equal(weights_of(work, "whole"), weights_of(work, name))
        assert all((folder / file).read_bytes() == content for file, content in files.items())
        assert n_runs < 12, "the runs end before they can be killed"


def test_a_command_whose_hours_are_over_takes_a_step_and_exits_to_be_resumed_bit_for_bit(work, capsys):
    run(work, "--epochs", "1", name="whole")
    codes = []
    while not codes or codes[-1]:
        try:
            run(work, "--epochs", "1", "--hours", "0")
            codes.append(0)
        except SystemExit as stop:
            codes.append(stop.code)
    told = capsys.readouterr().out.splitlines()
    n = int(told[-2].split(" of ")[1].split(":")[0])
    folder = work / "runs" / "a" / "fold0"
    assert codes == [*n * [75], 0]
    assert told[1:-1] == [
        f"{folder}/state.pt: stopped at step {k} of {n}: to be resumed by the same command" for k in range(1, n + 1)
    ]
    assert all((folder / name).read_bytes() == (work / "runs" / "whole" / "fold0" / name).read_bytes() for name in LEFT)


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_folds_whose_hours_are_over_are_resumed_later(work, device, capsys):
    flags = [*TINY, "--work-dir", str(work), "--run", "a", "--fold", "0", "1", "--device", device]
    with pytest.raises(SystemExit, match="75"):
        train.main([*flags, "--hours", "0"])
    assert "to be resumed by the same command" in capsys.readouterr().out
    train.main(flags)
    assert Run(work, "a").finished == [0, 1]


@pytest.mark.slow
def test_folds_side_by_side_end_as_each_alone_and_one_that_fails_stops_no_other(work, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = [*TINY, "--work-dir", str(work), "--run", "both", "--fold", "all"]
    train.main([*flags, "--device", "cpu,cpu"])
    told = capsys.readouterr().out
    assert all(f"fold {k}, cpu: {work / 'runs' / 'both' / f'fold{k}'}: log loss 0." in told for k in range(3))
    for fold in (0, 2):
        run(work, fold=fold, name="alone")
        names = [work / "runs" / name / f"fold{fold}" for name in ("both", "alone")]
        assert all(len({(folder / file).read_bytes() for folder in names}) == 1 for file in LEFT)
    for fold in (0, 1):
        (work / "runs" / "both" / f"fold{fold}" / "model.pt").unlink()
    (work / "runs" / "both" / "fold0" / "state.pt").write_bytes(b"damaged")
    with pytest.raises(SystemExit, match="^error: fold 0 failed, see its lines above; the other folds are finished$"):
        train.main([*flags, "--device", "cpu,cpu"])
    told = capsys.readouterr().out
    assert f"fold 0, cpu: error: {work / 'runs' / 'both' / 'fold0' / 'state.pt'}: not a state of this run" in told
    assert "fold2/model.pt exists: nothing to do" in told
    assert (work / "runs" / "both" / "fold1" / "model.pt").exists()


RANKS = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]


def torchrun(work, *flags) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    argv = [
        sys.executable,
        *RANKS,
        "-m",
        "--",
        "ich_kaggle.train",
        *TINY,
        "--work-dir",
        str(work),
        "--fold",
        "0",
        *flags,
    ]
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("held-out patients") == 1, "the first process speaks for all"


HUNGRY = """
import sys, torch
from ich_kaggle import train
from ich_kaggle.learning import ddp, tasks
loss = tasks.slice_loss
def hungry(model, batch, **options):
    if ddp.shard()[0] == 1:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return loss(model, batch, **options)
tasks.slice_loss = hungry
train.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_when_one_of_two_processes_runs_out_of_memory_both_stop_with_the_remedy(work, tmp_path):
    (tmp_path / "hungry.py").write_text(HUNGRY)
    flags = [*TINY, "--work-dir", str(work), "--fold", "0", "--run", "a"]
    argv = [sys.executable, *RANKS, "--", str(tmp_path / "hungry.py"), *flags]
    done = subprocess.run(argv, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    said = r"error: out of memory at step 0: (\d) at once do not fit: give --batch-size (\d) --accumulate \d"
    told = re.findall(said, done.stderr)
    assert done.returncode != 0 and len(told) == 1 and int(told[0][1]) < int(told[0][0])


@pytest.mark.slow
def test_two_processes_score_the_held_out_slices_as_one_does(work):
    run(work, "--lr", "0", "--ema", "0", "--freeze", "2", name="one")
    torchrun(work, "--run", "two", "--lr", "0", "--ema", "0", "--freeze", "2")
    one, two = (pd.read_csv(work / "runs" / name / "fold0" / "log.csv") for name in ("one", "two"))
    columns = ["valid_loss", *LABELS]
    np.testing.assert_allclose(one[columns], two[columns], atol=1e-5, rtol=0)
    np.testing.assert_allclose(one.train_loss, two.train_loss, rtol=0.05)  # halves of a batch may differ in size
    assert {path.name for path in (work / "runs" / "two" / "fold0").iterdir()} == LEFT
    assert equal(weights_of(work, "one"), weights_of(work, "two"))


@pytest.mark.slow
def test_two_processes_train_and_their_model_predicts(work):
    torchrun(work, "--run", "two", "--lr", "0.01", "--freeze", "1")
    log = pd.read_csv(work / "runs" / "two" / "fold0" / "log.csv")
    predict.main(["--work-dir", str(work), "--run", "two", "--fold", "0", "--views", "identity", "--workers", "0"])
    oof = pd.read_parquet(work / "runs" / "two" / "fold0" / "oof.parquet")
    target = tables.targets(tables.read_slices(work).set_index("slice_id").loc[oof.slice_id])
    loss = metric.log_loss(target, oof[list(LABELS)].to_numpy())
    assert log.valid_loss.iloc[-1] == pytest.approx(loss, abs=1e-5)
