import io
import zipfile

import numpy as np
import pytest
from zip_files import patched, zipped

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


def test_a_member_that_one_call_does_not_read_whole_is_read_on(path, monkeypatch):
    class Short(io.FileIO):  # as the system for more than 2 GB
        def read(self, size: int = -1) -> bytes:
            return super().read(min(size, 1000))

    members = zip_reader.directory(path)
    monkeypatch.setattr(zip_reader.Path, "open", lambda path, *_, **__: Short(path))
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


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


@pytest.mark.parametrize(
    "member, method, patch, fault",
    [
        ("../up", zipfile.ZIP_DEFLATED, (), "'../up' has a path that leads out of the zip"),
        ("a/../../up", zipfile.ZIP_DEFLATED, (), "'.*' has a path that leads out of the zip"),
        ("/etc/passwd", zipfile.ZIP_DEFLATED, (), "'.*' has a path that leads out of the zip"),
        ("C:\\x", zipfile.ZIP_DEFLATED, (), "'.*' has a path that leads out of the zip"),
        ("..\\up", zipfile.ZIP_DEFLATED, (), "'.*' has a path that leads out of the zip"),
        (link(), zipfile.ZIP_DEFLATED, (), "'link' is a link"),
        ("a", zipfile.ZIP_LZMA, (), r"'a' is compressed with method 14, not with deflate"),
        ("a", zipfile.ZIP_DEFLATED, (8, 1, 2), "'a' is encrypted"),
        ("a", zipfile.ZIP_DEFLATED, (24, 10), "'a' is larger compressed than inflated"),
    ],
)
def test_a_member_that_no_honest_zip_has_refuses_the_zip(tmp_path, member, method, patch, fault):
    path = zipped(tmp_path / "pile.zip", (member, np.random.default_rng(0).bytes(9000)), method=method)
    if patch:
        patched(path, *patch)
    with pytest.raises(ValueError, match=f"pile.zip: member {fault}: not read"):
        zip_reader.untrusted(path)


def test_two_members_of_one_name_are_both_read_from_a_zip_from_elsewhere_and_refuse_the_competitions(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "pile.zip", ("d/", b""), ("d/", b""), ("d/a", b"1"), ("d/a", b"2"))
    assert [zip_reader.read(path, member) for member in zip_reader.untrusted(path)] == [b"1", b"2"]
    with pytest.raises(ValueError, match="pile.zip: d/a is in it twice"):
        zip_reader.directory(path)


def test_a_folder_that_is_listed_twice_is_no_fault(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "pile.zip", ("d/", b""), ("d/", b""), ("d/a", b"1"))
    assert list(zip_reader.directory(path)) == ["d/a"]


def test_members_that_overlap_refuse_the_zip(tmp_path):
    path = zipped(tmp_path / "pile.zip", ("a", bytes(9000)), ("b", bytes(9000)))
    content = bytearray(path.read_bytes())
    second = content.index(b"PK\1\2", content.index(b"PK\1\2") + 4)
    content[second + 42 : second + 46] = bytes(4)  # the second member lies where the first does
    path.write_bytes(content)
    with pytest.raises(ValueError, match="member 'b' overlaps another"):
        zip_reader.untrusted(path)


def test_a_zip_that_says_it_holds_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_reader, "MOST_TOTAL", 1000)
    with pytest.raises(ValueError, match="pile.zip: 1001 bytes when inflated, more than 1000: give a part of it"):
        zip_reader.untrusted(zipped(tmp_path / "pile.zip", ("a", bytes(1001))))


def test_a_damaged_zip_is_named(tmp_path):
    (tmp_path / "pile.zip").write_bytes(b"PK and no more")
    with pytest.raises(ValueError, match="pile.zip: not a readable zip"):
        zip_reader.untrusted(tmp_path / "pile.zip")
