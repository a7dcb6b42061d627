import zipfile

import numpy as np
import pytest

from ich_kaggle.common import zip_reader

CONTENT = {
    "a/one.dcm": np.random.default_rng(0).integers(0, 256, 40_000, dtype=np.uint8).tobytes(),
    "a/two.dcm": b"two " * 30_000,
    "a/empty.dcm": b"",
}


@pytest.fixture(params=[zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def path(tmp_path, request):
    with zipfile.ZipFile(tmp_path / "all.zip", "w", request.param) as packed:
        for name, content in CONTENT.items():
            packed.writestr(name, content)
    return tmp_path / "all.zip"


def test_every_member_is_read_by_its_offset_as_zipfile_reads_it(path):
    members = zip_reader.directory(path)
    assert {name: zip_reader.read(path, member) for name, member in members.items()} == CONTENT


@pytest.mark.parametrize("limit", [1, 1000, 1 << 20])
def test_a_limit_gives_the_start_of_a_member(path, limit):
    for name, member in zip_reader.directory(path).items():
        assert zip_reader.read(path, member, limit) == CONTENT[name][:limit]


def test_a_member_behind_an_extra_field_is_found(tmp_path):
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as packed, packed.open("big.dcm", "w", force_zip64=True) as file:
        file.write(b"content")  # behind a header that is longer than the directory says
    assert zip_reader.read(path, zip_reader.directory(path)["big.dcm"]) == b"content"


def test_a_zip_that_was_replaced_is_read_anew(path):
    zip_reader.directory(path)
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("other.dcm", b"other")
    assert list(zip_reader.directory(path)) == ["other.dcm"]


def test_a_damaged_member_is_refused_with_its_name(path):
    member = zip_reader.directory(path)["a/one.dcm"]
    content = bytearray(path.read_bytes())
    content[member.offset + 5000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a/one.dcm (is not what its checksum says|can't be inflated)"):
        zip_reader.read(path, member)


def test_a_member_that_moved_is_refused_with_what_to_do(path):
    member = zip_reader.directory(path)["a/one.dcm"]._replace(offset=7)
    with pytest.raises(ValueError, match="a/one.dcm is not at byte 7: run python -m ich_kaggle.slices --overwrite"):
        zip_reader.read(path, member)


def test_what_is_no_zip_is_refused_with_its_name(tmp_path):
    (tmp_path / "all.zip").write_bytes(b"PK half a download")
    with pytest.raises(ValueError, match="all.zip: not a readable zip .*: download it again"):
        zip_reader.directory(tmp_path / "all.zip")


def test_a_zip_is_checked_whole_and_an_open_file_is_left_at_its_start(tmp_path):
    file = tmp_path / "all.zip"
    with zipfile.ZipFile(file, "w") as content:
        content.writestr("a", b"x" * 1000)
    with file.open("rb") as opened:
        zip_reader.check(opened)
        assert opened.tell() == 0
    damaged = bytearray(file.read_bytes())
    damaged[500] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match="a is not what its checksum says"):
        zip_reader.check(file)
    file.write_bytes(damaged[:-5])
    with pytest.raises(ValueError, match="not a readable zip"):
        zip_reader.check(file)
