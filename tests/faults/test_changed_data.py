"""Data that change under finished work: the command where it matters names both states, and what to do."""

import os

import numpy as np
import pytest
import stages

from ich_kaggle.common import paths

INPUT = f"input/{paths.SLUG}"


def replace_dicom(project: stages.Project) -> str:
    """Change a pixel of a training slice."""
    path = sorted((project.folder / INPUT / "stage_2_train").iterdir())[0]
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    return path.name


def remove_dicom(project: stages.Project) -> str:
    path = sorted((project.folder / INPUT / "stage_2_train").iterdir())[0]
    path.unlink()
    return path.name


def edit(name: str, old: str, new: str):
    def change(project: stages.Project) -> str:
        path = project.folder / INPUT / name
        lines = path.read_text().splitlines()
        row = int(np.flatnonzero([line.endswith(old) for line in lines])[0])
        lines[row] = lines[row].removesuffix(old) + new
        path.write_text("\n".join(lines) + "\n")
        return name

    return change


LABEL, SAMPLE = edit(paths.TRAIN_CSV, "any,0", "any,1"), edit(paths.SAMPLE_CSV, ",0.5", ",0.25")
CHANGES = [
    (replace_dicom, ["slices", "cache"], "bytes, stamp"),
    (remove_dicom, ["slices", "cache"], "is gone"),
    (LABEL, ["slices", "folds", "cache", "train", "submit"], f"was made with {paths.TRAIN_CSV} "),
    (SAMPLE, ["slices", "cache", "submit"], f"was made with {paths.SAMPLE_CSV} "),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, name, words",
    [(change, name, words) for change, names, words in CHANGES for name in names],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_changed_data_are_noticed_where_it_matters_with_both_states_named(project, server, change, name, words):
    project.reset("end")
    changed = change(project)
    before = project.files()
    with stages.trial("changed data", name):
        line = project.run(name).line
        assert changed in line and words in line, line
        assert "run python -m ich_kaggle.slices --overwrite" in line
        assert project.files() == before
        assert not server.submissions


@pytest.mark.slow
def test_a_replaced_slice_goes_its_way_through_the_cache_by_what_each_line_says(project):
    project.reset("end")
    replace_dicom(project)
    with stages.trial("changed data", "followed"):
        assert "slices --overwrite" in project.run("cache").line
        project.make("slices", "--overwrite")
        line = project.run("cache").line
        assert "was cached from a file with checksum" in line and "cache --overwrite" in line
        project.make("cache", "--overwrite")
        assert "slices match their checksums" in project.make("cache", "--verify").out


@pytest.mark.slow
def test_an_edited_label_is_refused_by_what_was_made_from_the_old_one(project):
    project.reset("end")
    LABEL(project)
    with stages.trial("changed data", "followed"):
        project.make("slices", "--overwrite")
        assert "was made with slices" in project.run("folds").line
        project.make("folds", "--overwrite")
        project.make("cache")
        for name in ("train", "predict", "sequence"):
            assert "was made with slices" in project.run(name, "--overwrite" * (name == "predict")).line


@pytest.mark.slow
def test_files_that_were_only_touched_change_nothing(project):
    project.reset("end")
    for path in (project.folder / INPUT).rglob("*.dcm"):
        os.utime(path, ns=(1, 1))
    with stages.trial("changed data", "touched"):
        assert "has changed since it was scanned" in project.run("cache").line
        project.make("slices", "--overwrite")
        for name in stages.NAMES[2:-1]:
            project.make(name)
        changed = set(project.differences("end"))
        # These alone hold the times of the DICOM files.
        assert changed <= {"work/slices.parquet", "work/cache/64/ledger.csv", "work/cache/64/cache.json"}
