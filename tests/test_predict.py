import re

import numpy as np
import pandas as pd
import pytest
import torch

from ich_kaggle import folds, predict, train
from ich_kaggle.common import tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.learning import augment, slice_model, tasks
from ich_kaggle.scoring import patient_folds

TINY = ["--arch", "test_resnet", "--weights", "none", "--image-size", "32", "--cache-size", "64", "--epochs", "1"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def trained(work):
    train.main([*TINY, "--work-dir", str(work), "--fold", "0", "--run", "a", "--workers", "0"])
    return work


def run(work, *flags) -> None:
    predict.main(["--work-dir", str(work), "--run", "a", "--fold", "0", "--workers", "0", *flags])


def read(work, name: str) -> pd.DataFrame:
    return pd.read_parquet(work / "runs" / "a" / "fold0" / name)


def by_hand(work, views: list[str]) -> np.ndarray:
    """Return the probabilities of all slices, predicted one at a time."""
    model, table = slice_model.load(work / "runs" / "a" / "fold0" / "model.pt"), tables.read_slices(work)
    loader = tasks.slice_loader(table, work / "cache" / "64", model.config, batch_size=1, workers=0)
    with torch.inference_mode():
        logits = [torch.stack([model(augment.VIEWS[view](images)) for view in views]).mean(0) for images, *_ in loader]
    return torch.sigmoid(torch.cat(logits)).numpy()


@pytest.mark.parametrize("views", [["identity"], ["identity", "hflip"], ["identity", "left", "zoom"]])
def test_predictions_are_the_mean_logits_of_the_views_slice_by_slice(trained, views):
    run(trained, "--views", *views)
    table, fold = tables.read_slices(trained), patient_folds.ensure(Project(None, trained, 1))
    expected = by_hand(trained, views)
    for name, rows in (("oof.parquet", fold == 0), ("test.parquet", (table.split == "test").to_numpy())):
        got = read(trained, name)
        assert got.slice_id.tolist() == table.slice_id[rows].tolist()
        np.testing.assert_allclose(got[list(LABELS)], expected[rows], atol=1e-5)


def test_the_batch_size_changes_nothing(trained):
    run(trained, "--batch-size", "5")
    first = read(trained, "oof.parquet")
    run(trained, "--batch-size", "64", "--overwrite")
    np.testing.assert_allclose(first[list(LABELS)], read(trained, "oof.parquet")[list(LABELS)], atol=1e-6)


def test_embeddings_of_the_other_folds_are_empty_unless_all_are_asked_for(trained):
    path, fold = trained / "runs" / "a" / "fold0" / "embeddings.npy", patient_folds.ensure(Project(None, trained, 1))
    run(trained)
    assert (np.isnan(np.load(path)[:, 0]) == (fold > 0)).all()
    run(trained, "--all-slices", "--overwrite")
    assert not np.isnan(np.load(path)).any()


def test_predicted_again_it_does_nothing_and_says_so(trained, capsys):
    run(trained)
    run(trained)
    assert "oof.parquet exists: nothing to do" in capsys.readouterr().out


def refused(work, *flags) -> str:
    with pytest.raises(SystemExit) as error:
        run(work, *flags)
    return error.value.code


def test_other_views_over_the_same_predictions_are_refused_with_both_named(trained):
    run(trained)
    assert "made with views ['identity', 'hflip'], not ['identity']" in refused(trained, "--views", "identity")


def test_a_fold_without_a_model_is_named_with_the_command_that_makes_it(trained):
    missing = f"fold 2 is not finished: run python -m ich_kaggle.train --work-dir {trained} --run a --fold 2"
    assert missing in refused(trained, "--fold", "2")
    assert missing in refused(trained, "--fold", "0", "2")  # though fold 0 is finished


def test_a_model_fitted_on_other_folds_is_refused(trained):
    folds.main(["--work-dir", str(trained), "--folds", "3", "--seed", "1", "--workers", "1", "--overwrite"])
    assert re.search(r"made with folds \w+, not \w+ \(folds.csv has changed, or is of other data\)", refused(trained))


def test_a_work_folder_without_runs_is_refused_before_anything_is_made(trained, tmp_path):
    run(trained)
    with pytest.raises(
        SystemExit, match=r"typo: no run to read: run .+\.train --work-dir \S+typo --fold 0, or give another"
    ):
        predict.main(["--work-dir", str(tmp_path / "typo")])
    assert not (tmp_path / "typo" / "slices.parquet").exists()


def test_a_misspelt_run_is_named_with_those_that_exist(trained):
    with pytest.raises(SystemExit, match=r"runs/aa: no such run: there are a$"):
        predict.main(["--work-dir", str(trained), "--run", "aa"])
