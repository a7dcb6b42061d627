import os

import pytest

from ich_kaggle.common import storage
from ich_kaggle.scans import output, results


def test_files_that_scan_made_are_replaced_only_if_asked_and_others_never(tmp_path):
    output.check(tmp_path, overwrite=False, report=True)
    for name, start in output.MADE.items():
        (tmp_path / name).write_bytes(start + b"...")
        with pytest.raises(ValueError, match=f"{name} exists: give another --out, or --overwrite"):
            output.check(tmp_path, overwrite=False, report=False)
        output.check(tmp_path, overwrite=True, report=False)
        (tmp_path / name).write_text("mine")
        with pytest.raises(ValueError, match=f"{name} was not made by scan, and is not replaced: give another --out"):
            output.check(tmp_path, overwrite=True, report=False)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("inside", ["index.html", "data.js", "notes.txt"])
def test_a_folder_report_that_scan_did_not_make_is_never_replaced(tmp_path, inside):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / inside).write_text("mine")
    with pytest.raises(FileExistsError, match="report exists, made by something else, not by report: remove or rename"):
        output.check(tmp_path, overwrite=True, report=True)


def test_a_page_that_scan_made_is_replaced_if_asked(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").touch()
    (tmp_path / "report" / storage.MARKER).write_text("report")
    output.check(tmp_path, overwrite=True, report=True)


def test_the_marks_are_those_of_the_files(tmp_path):
    results._write_csv(tmp_path / "slices.csv", results.slice_rows([], {}))
    results._write_csv(tmp_path / "studies.csv", results.study_rows([], {}, []))
    assert all((tmp_path / name).read_bytes().startswith(output.MADE[name]) for name in ("slices.csv", "studies.csv"))


def test_files_are_for_this_user_only_and_the_rest_of_the_process_goes_on_as_before(tmp_path):
    before = os.umask(0o022)
    try:
        with output.private():
            (tmp_path / "a").mkdir()
            (tmp_path / "a" / "b").touch()
        (tmp_path / "c").touch()
    finally:
        os.umask(before)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b", "c")}
    assert modes == {"a": 0o700, "a/b": 0o600, "c": 0o644}
