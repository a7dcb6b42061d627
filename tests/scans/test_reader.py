import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import packed
import pydicom
import pytest
import torch

from ich_kaggle.common import paths, tables
from ich_kaggle.dicom import png
from ich_kaggle.scans import chosen_series, engine, model_bundle, reader, resampling, series_choice, slices

CPU = torch.device("cpu")
STEP = 30.0  # mm


@pytest.fixture(scope="module")
def made(prepared) -> Path:
    return packed.work_of(prepared)


@pytest.fixture(scope="module", params=packed.ENSEMBLES)
def bundle(made, request) -> model_bundle.Bundle:
    return model_bundle.read(made.parent / f"{request.param}.zip")


def kinds_of(bundle: model_bundle.Bundle) -> list:
    return sorted({(kind["size"], kind["crop"]) for kind in bundle.packed["pictures"].values()})


def test_folder(competition: Path) -> Path:
    return competition / "stage_2_test"


test_folder.__test__ = False


@pytest.fixture(scope="module")
def scanned(competition, bundle) -> list[chosen_series.Scan]:
    """The scans of the test patients, in the order of their studies."""
    pile = slices.read(test_folder(competition))
    return [
        chosen_series.choose(found, kinds_of(bundle), STEP, slices.Wanted())
        for found in series_choice.studies(pile).values()
    ]


def at(scan: chosen_series.Scan, position: np.ndarray, rows: np.ndarray) -> chosen_series.Scan:
    """Return a scan of the slices `rows` of another, at the positions given."""
    moved = [replace(scan.series.slices[row], position=float(p)) for row, p in zip(rows, position, strict=True)]
    series = series_choice.Series(scan.series.study, scan.series.series, moved, [])
    pictures = {kind: [content[row] for row in rows] for kind, content in scan.pictures.items()}
    return chosen_series.Scan(series, [""] * len(rows), np.ones(len(rows), bool), pictures)


def probabilities(bundle: model_bundle.Bundle, scans: list[chosen_series.Scan]) -> list[np.ndarray]:
    load = reader.models_of(bundle, CPU)
    return reader.probabilities(bundle.packed, load, scans, batch_size=16, workers=0, device=CPU)


def regular(scan: chosen_series.Scan) -> chosen_series.Scan:
    n = len(scan.is_read)
    return at(scan, STEP * np.arange(n), np.arange(n))


def spaced(bundle: model_bundle.Bundle, step: float) -> model_bundle.Bundle:
    return replace(bundle, packed=bundle.packed | {"spacing": step})


def test_pictures_are_the_cached_ones_bit_by_bit(scanned, made):
    for scan in scanned:
        for (size, crop), found in scan.pictures.items():
            folder = made / "cache" / (f"{size}" if crop == "none" else f"{size}-{crop}")
            for one, content in zip(scan.series.slices, found, strict=True):
                assert content == paths.cached(folder, one.slice_id).read_bytes()


def test_series_at_the_training_spacing_get_what_the_pipeline_gives(scanned, bundle, made):
    assert all(resampling.is_near(scan.series.gap, bundle.packed["spacing"]) for scan in scanned)
    ids = [one.slice_id for scan in scanned for one in scan.series.slices]
    expected = tables.read_predictions(made / "ensemble" / bundle.packed["ensemble"] / "test.parquet", np.array(ids))
    found = np.concatenate(probabilities(bundle, scanned))
    assert expected[:, :5].std(axis=0).min() > 0.02
    # A batch of another size changes the last bits of embeddings, which second levels read rounded to float16.
    atol = 1e-4 if bundle.packed["ensemble"] == "levels" else 2e-6
    np.testing.assert_allclose(found, expected, atol=atol)


def test_a_scan_is_read_the_same_alone_and_among_others(scanned, bundle):
    together = probabilities(bundle, scanned)
    for scan, expected in zip(scanned, together, strict=True):
        np.testing.assert_allclose(probabilities(bundle, [scan])[0], expected, atol=1e-5)


def test_read_twice_a_scan_gets_the_same_bits(scanned, bundle):
    first, second = (probabilities(bundle, scanned) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("times", [2, 3])
def test_a_series_repeated_at_a_part_of_the_spacing_keeps_its_predictions(scanned, bundle, times):
    bundle, scan = spaced(bundle, STEP), regular(scanned[0])
    n = len(scan.is_read)
    rows = np.repeat(np.arange(n), times)[: times * (n - 1) + 1]
    dense = at(scan, STEP / times * np.arange(len(rows)), rows)
    assert not resampling.is_near(dense.series.gap, STEP)
    expected, found = (probabilities(bundle, [one])[0] for one in (scan, dense))
    np.testing.assert_allclose(found[::times], expected, atol=1e-4)
    as_it_is = probabilities(spaced(bundle, STEP / times), [dense])[0]
    assert np.abs(as_it_is[::times] - expected).max() > 0.01


def test_a_series_made_denser_by_slices_between_keeps_its_predictions(scanned, bundle):
    bundle, scan = spaced(bundle, STEP), regular(scanned[0])
    n = len(scan.is_read)
    dense = at(scan, STEP / 2 * np.arange(2 * n - 1), np.arange(2 * n - 1) // 2)
    images = {kind: [png.decode(content) for content in found] for kind, found in scan.pictures.items()}
    for kind, shown in images.items():
        halfway = [
            png.encode(((a.astype(int) + b) // 2).astype(np.uint8)) for a, b in zip(shown, shown[1:], strict=False)
        ]
        dense.pictures[kind][1::2] = halfway
    expected, found = (probabilities(bundle, [one])[0] for one in (scan, dense))
    np.testing.assert_allclose(found[::2], expected, atol=1e-4)


def test_dense_and_ordinary_scans_can_be_read_together(scanned, bundle):
    bundle = spaced(bundle, STEP)
    scan = regular(scanned[0])
    dense = at(scan, STEP / 2 * np.arange(len(scan.is_read)), np.arange(len(scan.is_read)))
    apart = [probabilities(bundle, [one])[0] for one in (scan, dense)]
    for found, expected in zip(probabilities(bundle, [scan, dense]), apart, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


# Unreadable slices.


@pytest.fixture
def series_folder(competition, tmp_path) -> Path:
    """The test patient with the most slices, twice over: 12 slices or more."""
    pile = slices.read(test_folder(competition))
    found = max(series_choice.studies(pile).values(), key=lambda series: len(series[0].slices))
    for one in found[0].slices:
        shutil.copy(test_folder(competition) / one.file, tmp_path)
    return tmp_path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def chosen(folder: Path, monkeypatch, share: float) -> tuple:
    monkeypatch.setattr(chosen_series, "UNREAD", share)
    pile = slices.read(folder)
    (series,) = series_choice.studies(pile).values()
    return chosen_series.choose(series, [(64, "none"), (48, "study")], STEP, slices.Wanted()), series


def test_a_slice_that_can_not_be_read_is_left_out_and_the_others_are_read_without_it(series_folder, made, monkeypatch):
    bundle = model_bundle.read(made.parent / "levels.zip")
    (series,) = series_choice.studies(slices.read(series_folder)).values()
    broken = series[0].slices[2]
    cut(series_folder / broken.file)
    scan, _ = chosen(series_folder, monkeypatch, 0.2)
    assert scan.is_read.tolist() == [row != 2 for row in range(len(series[0].slices))]
    assert scan.notes[2].startswith("truncated: ")
    found = probabilities(bundle, [scan])[0]
    assert np.isnan(found[2]).all()
    (series_folder / broken.file).unlink()
    without, _ = chosen(series_folder, monkeypatch, 0.2)
    expected = probabilities(bundle, [without])[0]
    assert np.array_equal(found[scan.is_read], expected)


def test_with_more_of_them_the_series_is_refused_and_the_first_is_named(series_folder, monkeypatch):
    (series,) = series_choice.studies(slices.read(series_folder)).values()
    broken = [series[0].slices[row].file for row in (1, 3)]
    for name in broken:
        cut(series_folder / name)
    scan, (refused,) = chosen(series_folder, monkeypatch, 0.2)
    assert scan is None
    n = len(series[0].slices)
    assert refused.reason.startswith(f"2 of {n} slices cannot be read, the first {broken[0]}: truncated: ")


def test_then_the_next_series_of_the_study_is_read(series_folder, monkeypatch):
    (series,) = series_choice.studies(slices.read(series_folder)).values()
    for number, one in enumerate(series[0].slices[1:]):
        dataset = pydicom.dcmread(series_folder / one.file)
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = "ID_zz", f"ID_{number:09}"
        dataset.save_as(series_folder / f"twin{number}")
    for one in series[0].slices:
        cut(series_folder / one.file)
    scan, (refused, read) = chosen(series_folder, monkeypatch, 0.2)
    assert (scan.series, read.series, read.reason) == (read, "ID_zz", "")
    assert "slices cannot be read" in refused.reason


def test_a_blank_slice_is_read_and_noted(series_folder, monkeypatch):
    (series,) = series_choice.studies(slices.read(series_folder)).values()
    path = series_folder / series[0].slices[0].file
    dataset = pydicom.dcmread(path)
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(path)
    scan, _ = chosen(series_folder, monkeypatch, 0.1)
    assert scan.is_read.all()
    assert scan.notes[0] == "constant: every pixel has one value"


def test_each_model_is_loaded_once_for_all_chunks(competition, made, monkeypatch):
    bundle, pile = model_bundle.read(made.parent / "levels.zip"), slices.read(test_folder(competition))
    how = dict(batch_size=4, workers=0, device=CPU)
    whole = reader.read_studies(bundle, pile, **how)
    loaded, load = [], engine.load
    monkeypatch.setattr(engine, "load", lambda *args: loaded.append(args[-2:]) or load(*args))
    monkeypatch.setattr(reader, "CHUNK", 1)
    found = reader.read_studies(bundle, pile, **how)
    assert len(found) == 3
    assert sorted(loaded) == [(run, k) for run in "abcgs" for k in range(3)]
    for one, expected in zip(found, whole, strict=True):
        np.testing.assert_allclose(one.probability, expected.probability, atol=1e-4)


def test_studies_are_read_in_chunks_of_whole_studies(monkeypatch):
    monkeypatch.setattr(reader, "CHUNK", 10)
    sizes = [4, None, 7, 12, 3]
    made = [(size, size and chosen_series.Scan(None, [], np.ones(size, bool), {})) for size in sizes]
    assert [[size for size, _ in part] for part in reader.chunks(iter(made))] == [[4, None, 7], [12], [3]]
