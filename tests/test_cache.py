import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dicom_files import content, ct, head

from ich_kaggle import cache
from ich_kaggle.common import paths, tables, windows
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import cache_index, head_crop, picture_cache, pixels, png, slice_image, slice_table

SIZE = 64


@pytest.fixture
def data_dir(competition, tmp_path):
    """A copy of the competition that a test may change."""
    return shutil.copytree(competition, tmp_path / "input")


@pytest.fixture
def work(tmp_path):
    return tmp_path / "work"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def make(data_dir: Path, work: Path, crop: str = "none", size: int = SIZE) -> Path:
    return picture_cache.ensure(Project(data_dir, work, 1), size, crop)


def command(data_dir: Path, work: Path, *flags: str) -> list[str]:
    return ["--data-dir", str(data_dir), "--work-dir", str(work), "--cache-size", str(SIZE), "--workers", "1", *flags]


def process(data_dir: Path, work: Path, *flags: str, code: str = "") -> subprocess.Popen:
    """Start the command in a process of its own, after `code`."""
    code = f"import os, resource, signal\nfrom ich_kaggle import cache; from ich_kaggle.dicom import png\n{code}\n"
    code += f"cache.main({command(data_dir, work, *flags)!r})"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# Kills the process, or stops it, when the n-th PNG is about to be encoded.
AT = """
encode, seen = png.encode, []
def encode_until(image):
    seen.append(1)
    if len(seen) == {n}:
        {what}
    return encode(image)
png.encode = encode_until
"""


@pytest.mark.parametrize("crop_by", ["none", "study"])
def test_a_cached_slice_is_its_three_windows(data_dir, work, crop_by):
    folder = make(data_dir, work, crop_by)
    held = cache_index.read(folder)
    for row in tables.read_slices(work).iloc[::5].itertuples():
        hu = pixels.read_hu(data_dir / row.path)
        box = head_crop.Box(*held.loc[row.slice_id, list(head_crop.Box._fields)])
        expected = slice_image.resize(windows.apply(box.cut(hu), windows.CACHED), SIZE)
        assert np.array_equal(png.read(paths.cached(folder, row.slice_id)), expected)


def test_the_study_crop_has_one_square_box_a_series_that_holds_the_head(data_dir, work):
    folder = make(data_dir, work, "study")
    assert folder.name == f"{SIZE}-study"
    table = tables.read_slices(work).set_index("slice_id").join(cache_index.read(folder).drop(columns="stamp"))
    boxes = table.groupby("series_id")[list(head_crop.Box._fields)]
    assert (boxes.nunique() == 1).all(axis=None)
    assert (table.height == table.width).all()
    assert table.height.between(40, 64).all()


def test_a_second_run_does_nothing_and_says_so(data_dir, work, capsys):
    cache.main(command(data_dir, work))
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.png")}
    assert len(before) == len(tables.read_slices(work))
    capsys.readouterr()
    cache.main(command(data_dir, work))
    assert "exists: nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.png")} == before


def test_the_size_of_the_cache_has_its_own_flag_and_no_other(data_dir, work, capsys):
    with pytest.raises(SystemExit) as stopped:
        cache.main(["--data-dir", str(data_dir), "--work-dir", str(work), "--image-size", "64"])
    assert stopped.value.code == 2 and "unrecognized arguments: --image-size 64" in capsys.readouterr().err


def disk_of(monkeypatch, free: float) -> None:
    usage = shutil.disk_usage("/")._replace(free=int(free))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_a_disk_without_room_is_refused_with_both_numbers_before_anything_is_cached(data_dir, work, monkeypatch):
    slice_table.ensure(Project(data_dir, work, 1))
    n = len(tables.read_slices(work))
    disk_of(monkeypatch, 1e6)
    with pytest.raises(SystemExit) as stopped:
        cache.main(["--data-dir", str(data_dir), "--work-dir", str(work), "--cache-size", "512", "--workers", "1"])
    said = stopped.value.code
    assert "\n" not in said and f"the disk has 0.0 GB free, and the {n} slices still to cache take about" in said
    assert f"{n * 99 / 1e6:.1f} GB (99 KB per slice at 512 px)" in said
    assert "give a --work-dir on another disk, or a smaller --cache-size (256 px: 40 KB)" in said
    assert not (work / "cache" / "512").exists()


def test_room_is_needed_only_for_the_slices_that_are_not_cached_yet(data_dir, work, monkeypatch):
    folder = make(data_dir, work)
    last = cache_index.read(folder).iloc[:-1]
    cache_index.write(folder, last)
    (folder / "cache.json").unlink()
    disk_of(monkeypatch, 2.5 * 1e3 * picture_cache.kb_per_slice(SIZE, "none"))
    assert len(cache_index.read(make(data_dir, work))) == len(last) + 1


@pytest.mark.parametrize(
    "px, crop_by, kb", [(512, "none", 99), (256, "none", 40), (2048, "none", 4 * 513), (512, "study", 173)]
)
def test_a_cached_slice_takes_as_much_as_was_measured_on_real_slices(px, crop_by, kb):
    assert picture_cache.kb_per_slice(px, crop_by) == pytest.approx(kb)


def test_a_larger_cached_slice_is_estimated_larger_wherever_slices_are_resampled():
    sizes = [picture_cache.kb_per_slice(px, "none") for px in range(8, 4096, 8) if px != 512]
    assert sizes == sorted(sizes) and sizes[0] > 0


def test_the_zip_and_two_workers_give_the_same_bytes(data_dir, work, tmp_path):
    packed = Path(shutil.make_archive(str(tmp_path / "all"), "zip", data_dir))
    pngs = [
        {name: png for name, png in tree(folder).items() if name.endswith(".png")}
        for folder in (make(data_dir, work), picture_cache.ensure(Project(packed, tmp_path / "other", 2), SIZE))
    ]
    assert pngs[0] == pngs[1]


@pytest.mark.parametrize("crop_by", ["none", "study"])
@pytest.mark.parametrize("n", [1, 7, 40])
def test_a_killed_run_goes_on_to_the_same_bytes(data_dir, work, tmp_path, crop_by, n):
    whole = tree(make(data_dir, tmp_path / "whole", crop_by))
    killed = process(
        data_dir, work, "--crop", crop_by, code=AT.format(n=n, what="os.kill(os.getpid(), signal.SIGKILL)")
    )
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    folder = picture_cache.folder_of(work, SIZE, crop_by)
    assert "n_slices" not in json.loads((folder / "cache.json").read_text())
    (folder / "00").mkdir(exist_ok=True)
    (folder / "00" / ".ID_000000000.png.123").write_bytes(b"half")
    assert tree(make(data_dir, work, crop_by)) == whole
    assert not list(folder.rglob(".*"))


def test_an_interrupted_run_says_so_and_goes_on_to_the_same_bytes(data_dir, work, tmp_path):
    whole = tree(make(data_dir, tmp_path / "whole"))
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # which a job in the background does not
    stopped = process(data_dir, work, code=heard + AT.format(n=5, what="os.kill(os.getpid(), signal.SIGINT)"))
    _, error = stopped.communicate()
    assert stopped.returncode == 130 and error.endswith("interrupted: run the same command to resume\n")
    assert not list(work.rglob(".*.png.*"))
    assert tree(make(data_dir, work)) == whole


def test_a_full_disk_is_one_line_and_goes_on_to_the_same_bytes(data_dir, work, tmp_path):
    whole = tree(make(data_dir, tmp_path / "whole"))
    sizes = sorted(len(content) for name, content in whole.items() if name.endswith(".png"))
    slice_table.ensure(Project(data_dir, work, 1))
    # The kernel cuts every file at a size that most PNGs have.
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({sizes[len(sizes) // 4]},) * 2)"
    full = process(data_dir, work, code=limit)
    _, error = full.communicate()
    assert full.returncode == 1 and error.count("\n") == 1
    assert error.startswith("error: ") and "File too large" in error
    assert not list(work.rglob(".*.png.*"))
    assert tree(make(data_dir, work)) == whole


def test_two_processes_on_one_cache_end_with_one_whole_cache(data_dir, work, tmp_path):
    whole = tree(make(data_dir, tmp_path / "whole"))
    slice_table.ensure(Project(data_dir, work, 1))
    # The first stops itself while it holds the lock, and goes on when the second waits for it.
    first = process(data_dir, work, code=AT.format(n=5, what="os.kill(os.getpid(), signal.SIGSTOP)"))
    os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
    second = process(data_dir, work)
    assert second.stderr.readline().endswith("another process is working on it: waiting\n")
    os.kill(first.pid, signal.SIGCONT)
    assert "exists: nothing to do" in second.communicate()[0]
    assert "slices of 64 px" in first.communicate()[0]
    assert first.returncode == second.returncode == 0
    assert tree(paths.cache(work, str(SIZE))) == whole


def take_away(data_dir: Path, n: int) -> dict[str, bytes]:
    """Remove the `n` last train files and their label rows; return them to be put back."""
    names = sorted(path.name for path in (data_dir / "stage_2_train").iterdir())[-n:]
    taken = {f"stage_2_train/{name}": (data_dir / "stage_2_train" / name).read_bytes() for name in names}
    labels = pd.read_csv(data_dir / paths.TRAIN_CSV)
    taken[paths.TRAIN_CSV] = (data_dir / paths.TRAIN_CSV).read_bytes()
    labels[~labels.ID.str[:12].isin([name[:12] for name in names])].to_csv(data_dir / paths.TRAIN_CSV, index=False)
    for name in names:
        (data_dir / "stage_2_train" / name).unlink()
    return taken


@pytest.mark.parametrize("crop_by", ["none", "study"])
def test_new_slices_are_cached_without_redoing_the_rest(data_dir, work, tmp_path, crop_by, monkeypatch):
    taken = take_away(data_dir, 6)
    make(data_dir, work, crop_by)
    for name, stored in taken.items():
        (data_dir / name).write_bytes(stored)
    slice_table.make(data_dir=data_dir, work_dir=work, workers=1, overwrite=True)
    made, encode = [], png.encode
    monkeypatch.setattr(png, "encode", lambda image: made.append(image) or encode(image))
    grown = tree(make(data_dir, work, crop_by))
    monkeypatch.undo()
    table = tables.read_slices(work)
    new = table.slice_id.isin([Path(name).stem for name in taken])
    redone = new if crop_by == "none" else table.series_id.isin(table.series_id[new])
    assert len(made) == redone.sum() < len(table)
    assert grown == tree(make(data_dir, tmp_path / "whole", crop_by))


def test_slices_that_left_the_table_stay_in_the_cache(data_dir, work):
    folder = make(data_dir, work)
    gone = [Path(name).stem for name in take_away(data_dir, 2) if name.endswith(".dcm")]
    slice_table.make(data_dir=data_dir, work_dir=work, workers=1, overwrite=True)
    make(data_dir, work)
    assert cache_index.read(folder).index.tolist()[-2:] == gone
    assert all(paths.cached(folder, slice_id).exists() for slice_id in gone)


def changed(data_dir: Path, work: Path) -> str:
    """Change the pixels of one DICOM, not its size; return the slice."""
    row = tables.read_slices(work).iloc[3]
    stored = bytearray((data_dir / row.path).read_bytes())
    stored[-2] ^= 1
    (data_dir / row.path).write_bytes(stored)
    return row.slice_id


def test_changed_pixels_are_refused_with_both_checksums(data_dir, work):
    make(data_dir, work)
    before = cache_index.read(paths.cache(work, str(SIZE)))
    slice_id = changed(data_dir, work)
    slice_table.make(data_dir=data_dir, work_dir=work, workers=1, overwrite=True)
    with pytest.raises(ValueError, match=f"{slice_id} was cached from a file with checksum") as refused:
        make(data_dir, work)
    assert f"{before.source[slice_id]:08x}, but {data_dir}: " in str(refused.value)
    assert "give another --work-dir, or run python -m ich_kaggle.cache --overwrite" in str(refused.value)
    cache.main(command(data_dir, work, "--overwrite"))
    assert cache_index.read(paths.cache(work, str(SIZE))).source[slice_id] != before.source[slice_id]


def test_files_that_were_only_touched_are_checked_and_kept(data_dir, work, monkeypatch):
    folder = make(data_dir, work)
    for path in data_dir.glob("stage_2_train/*.dcm"):
        os.utime(path, ns=(1, 1))
    slice_table.make(data_dir=data_dir, work_dir=work, workers=1, overwrite=True)
    monkeypatch.setattr(png, "encode", None)  # nothing may be made again
    assert make(data_dir, work) == folder
    assert (cache_index.read(folder).stamp == 1).any()


def test_other_windows_are_refused_with_both_named(data_dir, work, monkeypatch):
    make(data_dir, work)
    monkeypatch.setattr(windows, "CACHED", (windows.BRAIN, windows.SUBDURAL, windows.BONE))
    with pytest.raises(ValueError, match=r"cache.json was made with windows .*40, 380.*, not .*600, 2800.*: give ano"):
        make(data_dir, work)


def test_verify_names_what_is_damaged_and_the_next_run_mends_it(data_dir, work, capsys):
    folder = make(data_dir, work)
    whole = tree(folder)
    cache.main(command(data_dir, work, "--verify"))
    assert f"{len(whole) - 2} slices match their checksums" in capsys.readouterr().out
    first, *_, last = sorted(folder.rglob("*.png"))
    first.write_bytes(first.read_bytes()[:-20])
    last.unlink()
    with pytest.raises(SystemExit) as stopped:
        cache.main(command(data_dir, work, "--verify"))
    assert f"2 of {len(whole) - 2} slices are missing or damaged, the first {first.stem}" in stopped.value.code
    cache.main(command(data_dir, work))
    assert tree(folder) == whole


def test_verify_and_overwrite_together_are_refused_and_the_cache_stays(data_dir, work):
    cache.main(command(data_dir, work))
    before = sorted((work / "cache").rglob("*"))
    with pytest.raises(SystemExit, match="--overwrite removes the cache, --verify reads it: give one of them"):
        cache.main(command(data_dir, work, "--verify", "--overwrite"))
    assert sorted((work / "cache").rglob("*")) == before


def test_verify_without_a_cache_names_the_command_that_makes_it(data_dir, work):
    with pytest.raises(SystemExit) as stopped:
        cache.main(command(data_dir, work, "--verify"))
    assert "cache.json is missing: run python -m ich_kaggle.cache" in stopped.value.code


def test_a_png_that_was_removed_with_the_state_is_made_again(data_dir, work):
    folder = make(data_dir, work)
    whole = tree(folder)
    next(iter(folder.rglob("*.png"))).unlink()
    (folder / "cache.json").unlink()
    assert tree(make(data_dir, work)) == whole


def test_blank_and_constant_slices_are_added_to_the_defects(data_dir, work, capsys):
    row = slice_table.ensure(Project(data_dir, work, 1)).iloc[2]
    tags = dict(PatientID=row.patient_id, StudyInstanceUID=row.study_id, SeriesInstanceUID=row.series_id)
    (data_dir / row.path).write_bytes(content(ct(np.full((64, 64), 24, np.uint16), **tags)))
    slice_table.make(data_dir=data_dir, work_dir=work, workers=1, overwrite=True)
    make(data_dir, work)
    found = slice_table.read_defects(work).set_index("slice_id")
    assert found.loc[row.slice_id, ["path", "defect", "action"]].tolist() == [
        row.path,
        "constant: every pixel has one value",
        "kept",
    ]
    capsys.readouterr()
    slice_table.make(data_dir=data_dir, work_dir=work, workers=1)
    assert f"constant   kept       1 {row.slice_id}" in capsys.readouterr().out
    before = paths.defects(work).read_bytes()
    cache.main(command(data_dir, work))
    assert paths.defects(work).read_bytes() == before


def test_what_is_left_beside_a_truncated_slice_is_cached(data_dir, work):
    path = next((data_dir / "stage_2_train").iterdir())
    path.write_bytes(path.read_bytes()[:-100])
    folder = make(data_dir, work)
    assert sorted(file.stem for file in folder.rglob("*.png")) == sorted(tables.read_slices(work).slice_id)
    assert path.stem not in cache_index.read(folder).index


def test_a_cache_of_test_slices_alone_needs_no_table_of_defects(data_dir, work):
    table = slice_table.ensure(Project(data_dir, work, 1))
    table = table[table.split == "test"].reset_index(drop=True)
    tables.write_slices(work, table, tables.slices_settings(work))
    paths.defects(work).unlink()
    folder = picture_cache.ensure(Project(None, work, 1), SIZE)
    assert len(list(folder.rglob("*.png"))) == len(table)


@pytest.mark.parametrize("crop_by, rows", [("none", 3), ("study", 4)])
def test_a_contact_sheet_shows_a_study_in_order(data_dir, work, crop_by, rows, capsys):
    study = slice_table.ensure(Project(data_dir, work, 1)).study_id.iloc[0]
    cache.main(command(data_dir, work, "--crop", crop_by, "--show", study))
    path = paths.sheet(work, study)
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    n = (tables.read_slices(work).study_id == study).sum()
    image = png.read(path)
    assert image.shape == (rows * picture_cache.TILE * -(-n // 12), picture_cache.TILE * min(n, 12), 3)
    first = png.read(paths.cached(picture_cache.folder_of(work, SIZE, crop_by), tables.read_slices(work).slice_id[0]))
    assert np.array_equal(
        image[: picture_cache.TILE, : picture_cache.TILE, 0], slice_image.resize(first, picture_cache.TILE)[..., 0]
    )


def test_a_study_that_is_not_there_is_refused_with_one_that_is(data_dir, work):
    first = slice_table.ensure(Project(data_dir, work, 1)).study_id.iloc[0]
    with pytest.raises(SystemExit) as stopped:
        cache.main(command(data_dir, work, "--show", "ID_0"))
    assert f"no study ID_0 in {paths.slices(work)}; the first is {first}" in stopped.value.code


def test_slices_that_are_not_square_or_of_two_sizes_share_no_box(tmp_path, work):
    root = tmp_path / "mixed"
    rows = ["ID,Label"]
    for k, shape in enumerate([(96, 96), (96, 96), (60, 90)]):
        slice_id = f"ID_{k:09x}"
        hu = head(shape, 26, (shape[0] // 2, shape[1] // 2))
        path = root / ("stage_2_test" if k == 2 else "stage_2_train") / f"{slice_id}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        tags = dict(ImagePositionPatient=[0, 0, k], PixelSpacing=[2, 2])
        path.write_bytes(content(ct((hu + 1024).astype(np.uint16), **tags)))
        rows += [f"{slice_id}_{label},0" for label in LABELS]
    (root / paths.TRAIN_CSV).write_text("\n".join(rows[:13]) + "\n")
    (root / paths.SAMPLE_CSV).write_text("\n".join([rows[0], *rows[13:]]) + "\n")
    held = cache_index.read(make(root, work, "study"))
    boxes = held[list(head_crop.Box._fields)].to_numpy().tolist()
    assert boxes[0] == boxes[1] == [21, 21, 55, 55]
    assert boxes[2] == [3, 18, 55, 55]


def test_real_studies_are_cropped_to_heads_that_stay_whole(real_data, work):
    folder = picture_cache.ensure(Project(real_data, work, 1), 128, "study")
    table = tables.read_slices(work).set_index("slice_id").join(cache_index.read(folder).drop(columns="stamp"))
    assert (table.groupby("study_id")[list(head_crop.Box._fields)].nunique() == 1).all(axis=None)
    mm = table.height * table.row_spacing
    assert mm.between(170, 255).all()  # a head from the front of the nose to the back, tilted or not
    assert (table.defect.str.startswith("blank") | (table.defect == "")).all()
