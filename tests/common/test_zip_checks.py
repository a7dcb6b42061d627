import zipfile

import numpy as np
import pytest
from zip_files import patched, zipped

from ich_kaggle.common import zip_checks


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
        ("a", zipfile.ZIP_LZMA, (), r"'a' is packed in another way \(method 14\) than deflate"),
        ("a", zipfile.ZIP_DEFLATED, (8, 1, 2), "'a' is encrypted"),
        ("a", zipfile.ZIP_DEFLATED, (24, 10), "'a' is larger packed than it says it is"),
    ],
)
def test_a_member_that_no_honest_zip_has_refuses_the_zip(tmp_path, member, method, patch, fault):
    path = zipped(tmp_path / "pile.zip", (member, np.random.default_rng(0).bytes(9000)), method=method)
    if patch:
        patched(path, *patch)
    with pytest.raises(ValueError, match=f"pile.zip: member {fault}: not read"):
        zip_checks.members(path)


def test_a_member_that_is_there_twice_refuses_the_zip(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "pile.zip", ("a", b"1"), ("a", b"2"))
    with pytest.raises(ValueError, match="pile.zip: a is in it twice"):
        zip_checks.members(path)


def test_members_that_overlap_refuse_the_zip(tmp_path):
    path = zipped(tmp_path / "pile.zip", ("a", bytes(9000)), ("b", bytes(9000)))
    content = bytearray(path.read_bytes())
    second = content.index(b"PK\1\2", content.index(b"PK\1\2") + 4)
    content[second + 42 : second + 46] = bytes(4)  # the second member lies where the first does
    path.write_bytes(content)
    with pytest.raises(ValueError, match="member 'b' overlaps another"):
        zip_checks.members(path)


def test_a_zip_that_says_it_holds_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_checks, "MOST_TOTAL", 1000)
    with pytest.raises(ValueError, match="pile.zip: 1001 bytes when inflated, more than 1000: give a part of it"):
        zip_checks.members(zipped(tmp_path / "pile.zip", ("a", bytes(1001))))


def test_a_damaged_zip_is_named(tmp_path):
    (tmp_path / "pile.zip").write_bytes(b"PK and no more")
    with pytest.raises(ValueError, match="pile.zip: not a readable zip"):
        zip_checks.members(tmp_path / "pile.zip")
