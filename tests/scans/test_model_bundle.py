import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import packed
import pandas as pd
import pytest

from ich_kaggle import ensemble, evaluate
from ich_kaggle.common import paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.scans import model_bundle, packing, resampling


@pytest.fixture(scope="module")
def made(prepared) -> Path:
    """A work folder with ensembles; not to be written to."""
    return packed.work_of(prepared)


@pytest.fixture
def home(made, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "home")


@pytest.fixture(scope="module")
def bundle(made) -> model_bundle.Bundle:
    return model_bundle.read(made.parent / "levels.zip")


def export(work: Path, name: str = "levels") -> Path:
    packing.export(Project(None, work), paths.ensemble(work, name), work / "out.zip")
    return work / "out.zip"


def test_the_bundle_holds_each_run_that_is_needed_once_behind_those_it_reads(bundle, made):
    assert list(bundle.packed["runs"]) == ["b", "c", "s"]
    assert list(bundle.packed["options"]) == ["b", "a", "g", "c", "s"]
    files = {f"{run}.fold{k}.pt": paths.fold(made, run, k) / "model.pt" for run in "abgc" for k in range(3)}
    assert set(bundle.members) == {*files, model_bundle.MANIFEST}
    for name, path in files.items():
        assert bundle.open(name).read() == path.read_bytes()


def test_what_is_known_of_the_models_is_listed(bundle, made):
    content = bundle.packed
    assert content["pictures"] == {"b": {"size": 48, "crop": "study"}, "a": {"size": 64, "crop": "none"}}
    assert content["views"] == {run: ["identity", "hflip"] for run in "ba"}
    assert set(content["made_with"]["c"]["versions"]) >= {"ich_kaggle", "torch", "timm"}
    assert "not a medical device" in content["intended_use"]
    assert "Apache-2.0" in content["license"]
    assert content["pipeline"] == storage.read_json(made / "ensemble" / "levels" / "weights.json")["pipeline"]
    widths = storage.read_json(made / "runs" / "s" / "fold1" / "widths.json")
    assert content["models"]["s"][1]["widths"] == [widths[label] for label in LABELS]
    assert [entry["fold"] for entry in content["models"]["g"]] == [0, 1, 2]


def test_the_spacing_is_the_median_over_the_training_series(bundle, made):
    table = tables.read_slices(made)
    train = table[table.split == "train"]
    gaps = [np.median(np.diff(part.position)) for _, part in train.groupby("series_id")]
    assert bundle.packed["spacing"] == pytest.approx(np.median(gaps), abs=1e-3)
    assert resampling.is_near(bundle.packed["spacing"], np.median(gaps))


def test_the_thresholds_are_those_of_the_evaluation(bundle, made):
    found = storage.read_json(made / "ensemble" / "levels" / "evaluation" / "thresholds.json")
    assert bundle.packed["thresholds"] == {level: found[level] for level in ("slices", "studies_max")}


def test_packed_again_elsewhere_it_has_the_same_bytes(home, bundle):
    assert export(home).read_bytes() == bundle.path.read_bytes()
    with zipfile.ZipFile(bundle.path) as zipped:
        names = zipped.namelist()
        assert names == sorted(names)
        assert {info.date_time for info in zipped.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def change_weights(work: Path, change) -> None:
    path = work / "ensemble" / "levels" / "weights.json"
    content = storage.read_json(path)
    change(content["pipeline"]["weights"])
    storage.write_json(path, content)


def test_a_run_without_weight_is_not_packed(home):
    change_weights(home, lambda weights: weights.update(c=[0.0] * 6))
    found = model_bundle.read(export(home))
    assert list(found.packed["runs"]) == ["b", "s"]
    assert list(found.packed["models"]) == ["b", "a", "s"]


def test_a_run_that_weighs_in_one_label_is_packed(home):
    change_weights(home, lambda weights: weights.update(c=[0.0] * 5 + [0.1]))
    assert "c" in model_bundle.read(export(home)).packed["runs"]


def refusal(work: Path, *flags: str) -> str:
    with pytest.raises(SystemExit) as stop:
        ensemble.main(["--work-dir", str(work), "--export", str(work / "out.zip"), *flags])
    assert not (work / "out.zip").exists()
    return str(stop.value)


def test_missing_thresholds_are_named_with_the_command_that_makes_them(home):
    path = home / "ensemble" / "levels" / "evaluation" / "thresholds.json"
    path.unlink()
    expected = f"error: {path} is missing: run python -m ich_kaggle.evaluate --work-dir {home} --ensemble levels"
    assert refusal(home, "--name", "levels") == expected


def test_thresholds_of_other_predictions_are_refused(home):
    path = home / "ensemble" / "levels" / "evaluation" / "thresholds.json"
    storage.write_json(path, storage.read_json(path) | {"made_from": {"fold0/nested.parquet": "0123456789ab"}})
    message = refusal(home, "--name", "levels")
    assert "thresholds.json was made with fold0/nested.parquet 0123456789ab, not " in message
    assert message.endswith(f"run python -m ich_kaggle.evaluate --work-dir {home} --ensemble levels --overwrite")


def test_thresholds_of_some_folds_are_refused(home):
    flags = ["--work-dir", str(home), "--workers", "1", "--ensemble", "levels", "--draws", "20"]
    evaluate.main([*flags, "--fold", "0", "1", "--overwrite"])
    message = refusal(home, "--name", "levels")
    assert "thresholds.json was made with fold2/nested.parquet None, not " in message


def test_folds_that_were_finished_after_the_blend_are_named(home, caplog):
    path = home / "ensemble" / "levels" / "weights.json"
    content = storage.read_json(path)
    storage.write_json(path, content | {"folds": content["folds"] | {"b": [0, 1]}})
    export(home)
    command = f"python -m ich_kaggle.ensemble --work-dir {home} --name levels"
    assert f"{path.parent}: blended without fold 2 of run b: {command}" in caplog.text


def test_a_stack_is_refused_by_name_where_it_is_only_read_too(home):
    path = paths.run(home, "g") / "run.json"
    content = storage.read_json(path)
    storage.write_json(path, content | {"settings": content["settings"] | {"model": "stack"}})
    expected = "error: g is a stack, whose boosters aren't kept: blend without it"
    assert refusal(home, "--name", "levels") == expected


def test_a_model_that_was_fitted_anew_since_it_predicted_is_refused(home):
    packed.sharpen(paths.fold(home, "b", 1), 99)
    message = refusal(home, "--name", "slices")
    assert "runs/b/fold1/predict.json was made with model" in message
    assert message.endswith(f"run python -m ich_kaggle.predict --work-dir {home} --run b --fold 1 --overwrite")


def test_predictions_that_changed_since_they_were_blended_are_refused(home):
    path = paths.fold(home, "b", 0) / "test.parquet"
    pd.read_parquet(path).iloc[::-1].to_parquet(path)
    message = refusal(home, "--name", "slices")
    assert "weights.json was made with b/fold0/test.parquet" in message
    assert message.endswith(f"run python -m ich_kaggle.ensemble --work-dir {home} --name slices --overwrite")


def test_a_first_level_that_changed_since_it_was_read_is_refused(home):
    done = paths.fold(home, "g", 0) / "predict.json"
    content = storage.read_json(done)
    storage.write_json(done, content | {"reads": content["reads"] | {"a/fold0/model.pt": "0123456789ab"}})
    message = refusal(home, "--name", "levels")
    assert "g/fold0/predict.json was made with a/fold0/model.pt 0123456789ab, not" in message


def test_a_missing_model_is_named(home):
    (paths.fold(home, "a", 2) / "model.pt").unlink()
    command = f"python -m ich_kaggle.train --work-dir {home} --run a --fold 2"
    assert f"runs/a/fold2/model.pt is missing: run {command}" in refusal(home, "--name", "slices")


def test_the_ensemble_must_be_named_where_there_are_several(home):
    assert refusal(home).endswith("has levels, slices: choose one with --name")
    command = f"python -m ich_kaggle.ensemble --work-dir {home} --name none"
    assert refusal(home, "--name", "none").endswith(f"weights.json is missing: run {command}")


def test_runs_are_not_blended_on_the_way(home):
    assert "--export packs an existing ensemble: give --name instead of --runs" in refusal(home, "--runs", "a")


# Reading.


def rewritten(bundle: model_bundle.Bundle, path: Path, change) -> Path:
    """Write a bundle whose members, by name, `change` has changed."""
    with zipfile.ZipFile(bundle.path) as zipped:
        members = {name: zipped.read(name) for name in zipped.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return path


def test_a_damaged_member_is_named_by_its_hash(bundle, tmp_path):
    content = bytearray(bundle.path.read_bytes())
    start = content.index(b"c.fold1.pt") + 5000
    content[start] ^= 1
    (tmp_path / "damaged.zip").write_bytes(content)
    (entry,) = (entry for entry in bundle.packed["models"]["c"] if entry["fold"] == 1)
    with pytest.raises(ValueError, match=rf"c\.fold1\.pt has hash \w{{12}}, {entry['hash']} was packed: get it again"):
        model_bundle.read(tmp_path / "damaged.zip")


def test_a_missing_member_is_named(bundle, tmp_path):
    path = rewritten(bundle, tmp_path / "less.zip", lambda members: members.pop("a.fold0.pt"))
    with pytest.raises(ValueError, match=r"less\.zip: a\.fold0\.pt is missing: get it again"):
        model_bundle.read(path)


@pytest.mark.parametrize(
    "keys, value, message",
    [
        (("pictures", "a", "size"), 10**9, "size is 1000000000, not 8 to 4096"),
        (("pictures", "a", "size"), 1e400, "size is inf, not 8 to 4096"),
        (("pictures", "a", "size"), "64", "a is not as its options say"),
        (("pictures", "a", "crop"), "../up", "a is not as its options say"),
        (("options", "a", "image_size"), 0, "image_size is 0, not 8 to 4096"),
        (("spacing",), 0, "spacing is 0, not 0.01 to 100"),
        (("thresholds", "slices", "any", "f1"), 2, "f1 is 2, not 0 to 1"),
        (("aggregate", 0, 0), float("nan"), "aggregate is nan, not -1e\\+06 to 1e\\+06"),
        (("views", "a"), ["identity"] * 1000, "a is not as its options say"),
        (("views", "a"), ["upside down"], "the views are .*upside down"),
        (("views", "a"), "identity", "the views are identity"),
        (("spacing",), None, "the spacing None"),
        (("aggregate",), [[0.0, 1.0, 0.0]], "the aggregate is"),
        (("thresholds", "studies_max", "any"), {}, "thresholds of different rules for studies_max"),
        (("thresholds", "slices", "any", "f1"), None, "a threshold for slices is no number"),
        (("thresholds", "slices"), {}, "KeyError"),
    ],
)
def test_a_number_out_of_bounds_is_named(bundle, keys, value, message):
    packed = json.loads(json.dumps(bundle.packed))
    inner = packed
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    with pytest.raises(ValueError, match=f"one.zip: what it lists does not fit together .*{message}.*: again"):
        model_bundle.check(packed, Path("one.zip"), "again")
    model_bundle.check(bundle.packed, Path("one.zip"), "again")


@pytest.mark.parametrize(
    "listing, message",
    [
        (b"{", "models.json is not that of a bundle"),
        (b"[]", "models.json is not that of a bundle"),
        (b"{}", "models.json is not that of a bundle .KeyError"),
        (json.dumps(dict.fromkeys(model_bundle.KEYS, 99)).encode(), "its format is 99, not 2"),
    ],
)
def test_what_is_no_listing_of_a_bundle_is_refused(bundle, tmp_path, listing, message):
    path = rewritten(bundle, tmp_path / "odd.zip", lambda members: members.update({model_bundle.MANIFEST: listing}))
    with pytest.raises(ValueError, match=f"{message}.*make it with python -m ich_kaggle.ensemble --export"):
        model_bundle.read(path)


def test_a_compressed_member_is_not_inflated(bundle, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr(model_bundle.MANIFEST, bytes(1 << 20))
    with pytest.raises(ValueError, match=r"bomb\.zip: models\.json is compressed, which --export doesn't do"):
        model_bundle.read(tmp_path / "bomb.zip")


def test_another_zip_and_what_is_no_file_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as zipped:
        zipped.writestr("a", b"")
    with pytest.raises(ValueError, match=r"other\.zip: no models\.json in it"):
        model_bundle.read(tmp_path / "other.zip")
    with pytest.raises(FileNotFoundError, match="is not a file: make it with python -m ich_kaggle.ensemble --export"):
        model_bundle.read(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="text: not a readable zip"):
        model_bundle.read(tmp_path / "text")


def test_a_file_that_is_there_is_not_replaced_unless_asked_to(home):
    (home / "out.zip").write_bytes(b"mine")
    command = ["--work-dir", str(home), "--export", str(home / "out.zip"), "--name", "levels"]
    with pytest.raises(SystemExit, match="out.zip exists: give another file to --export, or --overwrite"):
        ensemble.main(command)
    assert (home / "out.zip").read_bytes() == b"mine"
    ensemble.main([*command, "--overwrite"])
    assert model_bundle.read(home / "out.zip").packed["ensemble"] == "levels"
