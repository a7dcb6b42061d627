import numpy as np
import pandas as pd
import pytest

from ich_kaggle.dicom import cache_index

LINES = [
    cache_index.Line(f"ID_{i:09x}", 10**18 + i, i, 2**32 - 1 - i, 1, 2, 3, 4, "blank: x" * (i % 2)) for i in range(4)
]


def test_lines_that_were_appended_are_read_back(tmp_path):
    with cache_index.appending(tmp_path) as append:
        append(LINES[:1])
        append(LINES[1:])
    table = cache_index.read(tmp_path)
    assert [cache_index.Line(*row) for row in table.reset_index().itertuples(index=False)] == LINES
    assert table.stamp.dtype == np.int64


def test_what_was_appended_is_on_disk_at_once(tmp_path):
    with cache_index.appending(tmp_path) as append:
        append(LINES[:2])
        assert list(cache_index.read(tmp_path).index) == [line.slice_id for line in LINES[:2]]


@pytest.mark.parametrize("cut", [1, 5, 30, 46])
def test_a_last_line_without_its_end_does_not_count_and_is_not_built_upon(tmp_path, cut):
    with cache_index.appending(tmp_path) as append:
        append(LINES[::2])
    path = cache_index.path_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(cache_index.read(tmp_path).index) == [LINES[0].slice_id]
    with cache_index.appending(tmp_path) as append:
        append(LINES[1:2])
    assert list(cache_index.read(tmp_path).index) == [LINES[0].slice_id, LINES[1].slice_id]


def test_the_last_line_of_a_slice_counts(tmp_path):
    with cache_index.appending(tmp_path) as append:
        append([LINES[0], LINES[0]._replace(source=7)])
    assert cache_index.read(tmp_path).source.tolist() == [7]


def test_a_folder_without_a_ledger_holds_nothing(tmp_path):
    assert not len(cache_index.read(tmp_path))


@pytest.mark.parametrize("content", ["", "slice_id,st"])
def test_a_ledger_cut_in_its_first_line_holds_nothing(tmp_path, content):
    cache_index.path_of(tmp_path).write_text(content)
    assert not len(cache_index.read(tmp_path))


@pytest.mark.parametrize("content", ["a,b\n1,2\n", cache_index.HEAD + "ID_0,x,y,z\n"])
def test_a_damaged_ledger_is_refused_with_what_to_do(tmp_path, content):
    cache_index.path_of(tmp_path).write_text(content)
    with pytest.raises(ValueError, match="ledger.csv: damaged .*: run python -m ich_kaggle.cache --overwrite"):
        cache_index.read(tmp_path)


def test_the_hash_of_sources_changes_with_a_file_but_not_with_a_label():
    slices = pd.DataFrame({"slice_id": ["ID_a", "ID_b"], "stamp": [1, 2], "any": [0.0, 1.0]})
    first = cache_index.sources_hash(slices)
    assert cache_index.sources_hash(slices.assign(any=1.0)) == first
    assert cache_index.sources_hash(slices.assign(stamp=[1, 3])) != first
    assert cache_index.sources_hash(slices[:1]) != first
