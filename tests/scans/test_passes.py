import json
import shutil
from pathlib import Path

import numpy as np
import packed as made_with
import pandas as pd
import pytest

from ich_kaggle import infer, kernel
from ich_kaggle.common import paths, storage, tables
from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.kaggle_api import submissions
from ich_kaggle.learning import datasets, slice_model
from ich_kaggle.scans import model_bundle, passes, test_set

TURNS = ("identity", "1-view"), ("hflip", "2-views")


@pytest.fixture(scope="module")
def made(prepared) -> Path:
    return made_with.work_of(prepared)


@pytest.fixture(scope="module")
def packed(made, tmp_path_factory) -> Path:
    """What `kernel weights` packs of the runs b, c and s, which read a and g too."""
    return kernel.pack(tmp_path_factory.mktemp("packed") / "ich-models", *kernel.gather(made, "levels"))


@pytest.fixture
def predict(packed, competition, tmp_path, capsys):
    """Predict in a folder of the test's own; return the probabilities, in the sample's order, and the last line."""

    def predict(name: str = "one", hours: float = 8, workers: int = 0, **more) -> tuple[np.ndarray, str]:
        home = tmp_path / name
        places = dict(models_dir=packed, out=home / "out" / "submission.csv")
        project = Project(competition, home / "work", workers)
        infer.infer(project, hours=hours, batch_size=8, device="cpu", **places, **more)
        line = capsys.readouterr().out.splitlines()[-1]
        submissions.verify(places["out"], paths.find_data(competition))
        return pd.read_csv(places["out"]).Label.to_numpy().reshape(-1, len(LABELS)), line

    return predict


class Stops:
    """A clock that stands still until the `n`-th look at it, when it is too late for anything."""

    def __init__(self, n: int):
        self.n = n

    def __call__(self) -> float:
        self.n -= 1
        return 0.0 if self.n > 0 else 1e9


def test_a_second_level_goes_behind_what_it_reads_and_again_when_that_has_seen_another_view(packed):
    content = test_set.read_models(packed)
    assert content["runs"].keys() == set("bcs")
    planned = passes.plan(content, packed)
    found = [(one.run, one.fold, one.view) for one in planned]
    assert found == [
        (run, k, view if run in "ab" else level) for view, level in TURNS for run in "bagcs" for k in range(3)
    ]
    for one in planned:
        assert {read.fold for read in one.reads} <= {one.fold}
        assert {read.run for read in one.reads} == set({"g": "ab", "c": "ag", "s": "ab"}.get(one.run, ""))
        assert all(planned.index(read) < planned.index(one) for read in one.reads)
    assert len({one.digest for one in planned if one.run in "gcs"}) == 18


def test_a_run_weighs_what_the_second_levels_that_read_it_weigh(packed):
    content = test_set.read_models(packed)
    assert passes.by_weight(content | {"runs": {"b": 0.5, "c": 0.2, "s": 0.3}}) == list("basgc")
    assert passes.by_weight(content | {"runs": {"b": 0.1, "c": 0.9, "s": 0.0}}) == list("abgcs")


def test_with_time_enough_second_levels_say_what_they_say_at_home(predict, made, competition, n_test):
    found, line = predict(workers=1)
    assert line.endswith(f"30 of 30 passes over {n_test} slices")
    ids = tables.read_long(paths.find_data(competition), paths.SAMPLE_CSV)[0]
    expected = tables.read_predictions(made / "ensemble" / "levels" / "test.parquet", ids)
    assert expected[:, :5].std(axis=0).min() > 0.02
    # Embeddings are rounded to float16, at home after the mean over views.
    np.testing.assert_allclose(found, expected, atol=5e-4)


def test_wherever_the_time_was_up_the_same_command_ends_in_the_same_bytes(predict, tmp_path, monkeypatch, n_test):
    monkeypatch.setattr(passes, "CHUNK", 8)  # chunks of two series, and of one
    whole, _ = predict()
    shares = []
    for n_looks in range(10, 260, 50):
        early, line = predict("cut", now=Stops(n_looks))
        shares.append(int(line.split(" of 30 passes")[0].split()[-1]))
        assert np.isfinite(early).all()
        if n_looks % 100 == 10:
            shutil.rmtree(tmp_path / "cut" / "work" / "embeddings", ignore_errors=True)  # as scratch may be gone
        late, line = predict("cut")
        assert line.endswith(f"30 of 30 passes over {n_test} slices")
        assert np.array_equal(late, whole), n_looks
        shutil.rmtree(tmp_path / "cut" / "out")
    assert min(shares) == 0 and len(set(shares)) == 5


def test_a_second_level_waits_for_all_that_it_reads_of_a_series(packed, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "CHUNK", 1)
    content = test_set.read_models(packed)
    planned = passes.plan(content, packed)
    table = tables.read_slices(prepared)
    table = table[table.split == "test"].reset_index(drop=True)
    work = passes.Work(content, planned, table, tmp_path / "partial", tmp_path)
    smooth = next(one for one in planned if (one.run, one.view) == ("s", "2-views"))
    first, second = passes.chunks(table.series_id, 1)[:2]
    for read in smooth.reads:
        rows = slice(None) if read.view == "identity" else slice(second.stop) if read.run == "a" else first
        work.values[read][rows], work.is_lost[read][rows] = 0.5, False
    assert work.make(smooth, passes.Budget(1e9, lambda: 0.0), device="cpu")
    assert work.is_done(smooth).tolist() == [True] * first.stop + [False] * (len(table) - first.stop)
    assert not work.make(smooth, passes.Budget(1e9, lambda: 0.0), device="cpu")
    np.testing.assert_allclose(work.values[smooth][first], 1 / (1 + np.exp(-0.5)), atol=1e-6)


def test_the_last_that_a_second_level_said_counts_and_the_mean_of_a_slice_models_views(packed):
    content = test_set.read_models(packed)
    values = {one: np.full((3, 6), np.nan, np.float32) for one in passes.plan(content, packed)}
    for one, part in values.items():
        is_first = one.view in ("identity", "1-view")
        if one.fold == 1 and one.run in "bs":
            part[: 2 if is_first else 1] = 0.2 if is_first else 0.6
    np.testing.assert_allclose(passes.said(values, "s", 1)[:, 0], [0.6, 0.2, np.nan], rtol=1e-6)
    np.testing.assert_allclose(passes.said(values, "b", 1)[:, 0], 1 / (1 + np.exp([-0.4, -0.2, np.nan])), rtol=1e-6)
    assert np.isnan(passes.said(values, "s", 0)).all()


def test_a_run_that_is_only_read_stands_in_where_no_other_has_seen_a_slice(packed):
    content = test_set.read_models(packed)
    content["runs"] = {"b": 0.25, "c": 0.5, "s": 0.25}
    values = {one: np.full((3, 6), np.nan, np.float32) for one in passes.plan(content, packed)}
    for one, part in values.items():
        if (one.fold, one.view) == (0, "identity"):
            part[: 2 if one.run == "a" else 1] = 1.0 if one.run == "a" else -1.0
    found = test_set.blend(content, values, 3)
    sure, unsure, mean = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), content["mean"]
    np.testing.assert_allclose(found[:2, 0], [unsure, sure], atol=1e-5)
    np.testing.assert_allclose(found[2, :ANY], mean[:ANY], atol=1e-6)


def test_embeddings_that_are_gone_are_made_again_where_they_are_still_to_be_read(packed, prepared, tmp_path):
    content = test_set.read_models(packed)
    planned = passes.plan(content, packed)
    table = tables.read_slices(prepared)
    how = (content, planned, table, tmp_path / "partial", tmp_path)
    for part in passes.Work(*how).values.values():
        part[:] = 0
    first, *rest = passes.chunks(table.series_id, 1)
    assert all(passes.Work(*how).is_whole(one, slice(None)) for one in planned)
    reader = next(one for one in planned if one.run == "g")
    passes.Work(*how).values[reader][first] = np.nan
    again = passes.Work(*how)
    for one in planned:
        assert again.is_whole(one, first) == (one not in (reader, *reader.reads))
        assert all(again.is_whole(one, rows) for rows in rest)
        assert again.is_done(one).all() or one == reader  # what is known is not forgotten


def test_one_output_in_two_work_folders_ends_in_the_same_bytes(
    predict, packed, competition, tmp_path, monkeypatch, n_test
):
    monkeypatch.setattr(passes, "CHUNK", 8)
    whole, _ = predict()
    (tmp_path / "cut").mkdir()
    for n_looks in (60, 110, 160):
        predict("cut", now=Stops(n_looks))
        (tmp_path / "cut" / "work").rename(tmp_path / "cut" / f"kept{n_looks}")
        predict("cut", now=Stops(n_looks + 40))
        shutil.rmtree(tmp_path / "cut" / "work")
        (tmp_path / "cut" / f"kept{n_looks}").rename(tmp_path / "cut" / "work")
        found, line = predict("cut")
        assert line.endswith(f"30 of 30 passes over {n_test} slices")
        assert np.array_equal(found, whole), n_looks
        for folder in ("work", "out"):
            shutil.rmtree(tmp_path / "cut" / folder)


def test_sessions_that_lose_their_scratch_go_on_to_what_is_new(predict, tmp_path, monkeypatch, n_test):
    monkeypatch.setattr(passes, "CHUNK", 8)
    n_done = [0]
    while n_done[-1] < 30:
        _, line = predict("cut", now=Stops(60))
        n_done.append(int(line.split(" of 30 passes")[0].split()[-1]))
        shutil.rmtree(tmp_path / "cut" / "work" / "embeddings", ignore_errors=True)
        assert len(n_done) < 40
        if n_done[-1] == n_done[-2]:  # all that can be made without what was lost
            break
    found, line = predict("cut")
    assert n_done[-1] > 10 and line.endswith(f"30 of 30 passes over {n_test} slices")
    assert np.array_equal(found, predict()[0])


def test_embeddings_are_removed_once_all_have_read_them(predict, tmp_path):
    predict()
    assert list((tmp_path / "one" / "work" / "embeddings").iterdir()) == []


def test_when_the_time_is_up_no_model_is_loaded_for_a_look(predict, monkeypatch):
    loaded = []
    monkeypatch.setattr(slice_model, "load", lambda *args: loaded.append(args))
    predict(hours=0)
    assert not loaded


def test_a_pass_opens_one_loader_for_all_its_chunks(predict, monkeypatch, n_test):
    opened, loader = [], datasets.loader
    monkeypatch.setattr(datasets, "loader", lambda *args, **how: opened.append(how["sizes"]) or loader(*args, **how))
    monkeypatch.setattr(passes, "CHUNK", 1)
    predict()
    assert len(opened) == 2 * 2 * 3  # runs, views, folds
    assert all(len(sizes) == 3 and sum(sizes) == n_test for sizes in opened)


def test_other_weights_change_the_order_and_not_what_a_pass_is(packed):
    content = test_set.read_models(packed)
    digests = {}
    for weights in ({"b": 0.9, "c": 0.1, "s": -0.3}, {"b": 0.1, "c": 0.9, "s": 1.3}):
        planned = passes.plan(content | {"runs": weights}, packed)
        assert all(planned.index(read) < planned.index(one) for one in planned for read in one.reads)
        assert {one.run: {read.run for read in one.reads} for one in planned}["g"] == set("ab")
        digests[str(weights)] = {(one.run, one.fold, one.view): one.digest for one in planned}
    assert len({str(sorted(found.items())) for found in digests.values()}) == 1


def test_a_second_level_follows_the_run_with_the_most_views(packed):
    content = test_set.read_models(packed)
    content["views"]["a"] = ["identity"]
    found = [(one.run, one.view, len(one.reads)) for one in passes.plan(content, packed) if one.fold == 0]
    assert [one for one in found if one[0] in "gs"] == [("g", "1-view", 2), ("s", "1-view", 2)] + [
        ("g", "2-views", 3),
        ("s", "2-views", 3),
    ]


@pytest.mark.parametrize("change", ["options", "widths", "what it reads", "slices"])
def test_a_file_is_named_after_all_that_its_pass_is_made_by(packed, prepared, tmp_path, change):
    content, table = test_set.read_models(packed), tables.read_slices(prepared)

    def names() -> set[str]:
        shutil.rmtree(tmp_path / "partial", ignore_errors=True)
        passes.Work(content, passes.plan(content, packed), table, tmp_path / "partial", tmp_path)
        return {path.name for path in (tmp_path / "partial").glob("s-*")}

    before = names()
    if change == "options":
        content["options"]["s"]["features"] = "fold"
    elif change == "widths":
        for entry in content["models"]["s"]:
            entry["widths"] = [1.0] * len(LABELS)
    elif change == "what it reads":
        for entry in content["models"]["a"]:
            entry["hash"] = "0"
    else:
        table = table.iloc[::-1]
    assert len(before) == 6 and not before & names()


EDITS = {
    "on names nobody": lambda c: c["options"]["g"].update(on=["x"]),
    "on is none": lambda c: c["options"]["g"].update(on=None),
    "reads itself": lambda c: c["options"]["g"].update(on=["g"]),
    "unknown view": lambda c: c["views"].update(a=["upside down"]),
    "no views": lambda c: c.update(views={}),
    "no models": lambda c: c["models"].update(a=None),
    "no model": lambda c: c["models"].update(a=[]),
    "a weight in words": lambda c: c["runs"].update(b="much"),
    "a weight that is none": lambda c: c["runs"].update(b=float("nan")),
    "no mean": lambda c: c.update(mean=None),
    "no pipeline": lambda c: c.pop("pipeline"),
    "a fold is missing": lambda c: c["models"]["g"].pop(),
    "a fold twice": lambda c: [run.append(run[0]) for run in c["models"].values()],
    "no file": lambda c: c["models"]["a"][0].pop("file"),
    "no file of a network": lambda c: c["models"]["g"][0].pop("file"),
    "another order": lambda c: c.update(models=dict(reversed(c["models"].items()))),
    "a run of a path": lambda c: c.update(json.loads(json.dumps(c).replace('"a"', '"../a"'))),
    "no runs": lambda c: c.update(runs={}),
    "runs that are not there": lambda c: c.update(runs={"x": 1.0}),
    "another space": lambda c: c["pipeline"].update(space="log"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_list_of_models_that_does_not_fit_together_is_refused_in_one_line(packed, tmp_path, edit):
    changed = tmp_path / "changed"
    shutil.copytree(packed, changed)
    content = json.loads((changed / test_set.MODELS).read_text())
    EDITS[edit](content)
    (changed / test_set.MODELS).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"models\.json: .*: pack (it|the models) again") as error:
        passes.plan(test_set.read_models(changed), changed)
    assert "\n" not in str(error.value)


def test_runs_of_different_folds_fit_together(packed, tmp_path):
    content = test_set.read_models(packed)
    content["models"]["c"].pop()
    content["models"]["s"].pop(0)
    model_bundle.check(content, packed / test_set.MODELS, passes.AGAIN)
    found = [(one.run, one.fold) for one in passes.plan(content, packed) if one.run in "cs" and one.view == "1-view"]
    assert sorted(found) == [("c", 0), ("c", 1), ("s", 1), ("s", 2)]


@pytest.mark.parametrize("damage", ["cut", "text", "other"])
def test_a_file_of_a_pass_that_is_damaged_is_named(packed, prepared, tmp_path, damage):
    content = test_set.read_models(packed)
    table = tables.read_slices(prepared)
    how = (content, passes.plan(content, packed)[:1], table, tmp_path / "partial", tmp_path)
    passes.Work(*how)
    (path,) = (tmp_path / "partial").iterdir()
    if damage == "other":
        np.save(path, np.zeros((3, 6), np.float32))
    else:
        path.write_bytes(path.read_bytes()[:-8] if damage == "cut" else b"text")
    with pytest.raises(ValueError, match=rf"{path}: .*: remove it and run the same command again"):
        passes.Work(*how)


def test_chunks_are_whole_series():
    series = list("aabbbbcdd")
    assert passes.chunks(series, 3) == [slice(0, 6), slice(6, 9)]
    assert passes.chunks(series, 100) == [slice(0, 9)]
    assert passes.chunks([], 3) == []


def test_a_second_level_that_reads_another_model_than_it_was_fitted_on_is_named(packed, competition, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(packed, changed)
    content = json.loads((changed / test_set.MODELS).read_text())
    content["models"]["g"][0]["reads"] = {"a/fold0/model.pt": "0" * 12}
    storage.write_json(changed / test_set.MODELS, content)
    with pytest.raises(ValueError, match=r"g\.fold0\.pt .*: pack it again with python -m ich_kaggle.kernel weights"):
        places = dict(models_dir=changed, out=tmp_path / "out" / "submission.csv")
        infer.infer(Project(competition, tmp_path / "work", 1), hours=8, batch_size=8, device="cpu", **places)
