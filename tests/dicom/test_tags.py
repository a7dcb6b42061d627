import re
import warnings

import numpy as np
import pydicom
import pytest
from dicom_files import NOISE, content, ct
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from ich_kaggle.dicom import tags as tags_module


def header(**tags) -> pydicom.Dataset:
    return tags_module.parse(content(ct(**tags)), "one.dcm", stop_before_pixels=True)


def deflated() -> bytes:
    return content(ct(syntax=DeflatedExplicitVRLittleEndian))


def test_a_deflated_file_is_parsed_to_the_same_elements():
    plain, found = tags_module.parse(content(ct()), "a"), tags_module.parse(deflated(), "b")
    assert found.PixelData == plain.PixelData == NOISE.tobytes()
    assert found.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_a_deflated_file_that_unfolds_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(tags_module, "MOST_BYTES", NOISE.nbytes // 2)
    with pytest.raises(ValueError, match="^one.dcm: truncated, or more than .* bytes when inflated$"):
        tags_module.parse(deflated(), "one.dcm")


@pytest.mark.parametrize("content", [b"", b"text", b"\0" * 300, deflated()[:-40]])
def test_what_is_no_dicom_file_is_refused_with_its_name(content):
    with pytest.raises(ValueError, match="^one.dcm: (not a readable DICOM file, get it again|truncated|can't be infl)"):
        tags_module.parse(content, "one.dcm")


def test_a_header_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(tags_module, "MOST_READS", 10)
    with pytest.raises(ValueError, match="^one.dcm: not a readable DICOM file, .*its header has no end"):
        tags_module.parse(content(ct()), "one.dcm")


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"PatientID": None}, "no PatientID in the header"),
        ({"PatientID": ""}, "no PatientID in the header"),
        ({"PatientID": "x" * (tags_module.LONGEST + 2)}, "PatientID can't be read (a sequence, or too long)"),
    ],
)
def test_a_tag_that_says_nothing_or_too_much_is_named(tags, message):
    with pytest.raises(ValueError, match=f"^one.dcm: {re.escape(message)}$"):
        tags_module.tag(header(**tags), "PatientID", "one.dcm")
    assert tags_module.tag(header(PatientID="A"), "PatientID", "one.dcm") == "A"


def test_numbers_are_finite_and_as_many_as_are_asked_for():
    dataset = header(PixelSpacing=[0.5, 0.25])
    assert tags_module.numbers(dataset, "PixelSpacing", 2, "one.dcm").tolist() == [0.5, 0.25]
    for keyword, n in (("PixelSpacing", 3), ("PatientID", 1)):
        with pytest.raises(ValueError, match=f"^one.dcm: {keyword} is .*, not {n} numbers$"):
            tags_module.numbers(dataset, keyword, n, "one.dcm")
    with pytest.raises(ValueError, match="^one.dcm: PixelSpacing is .*, not a whole number$"):
        tags_module.whole(dataset, "PixelSpacing", "one.dcm")
    assert tags_module.whole(dataset, "Rows", "one.dcm") == NOISE.shape[0]


def test_what_a_file_says_is_printed_short_and_harmless():
    assert tags_module.shown("a\x1b[31m\nb").isprintable()
    assert len(tags_module.shown("x" * 1000)) <= 103


def bare(syntax: str) -> bytes:
    """Return the data set alone."""
    whole = content(ct(syntax=syntax))
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


@pytest.mark.parametrize(
    "found",
    [
        content(ct())[128:],
        content(ct())[132:],
        bare(ExplicitVRLittleEndian),
        bare(ImplicitVRLittleEndian),
        bare(ExplicitVRBigEndian),
    ],
    ids=["no preamble", "no DICM", "explicit", "implicit", "big endian"],
)
def test_a_file_without_preamble_or_meta_information_is_read(found):
    assert tags_module.is_dicom(found[: tags_module.PREAMBLE])
    dataset = tags_module.parse(found, "one.dcm")
    order = ">u2" if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<u2"
    assert np.array_equal(np.frombuffer(dataset.PixelData, order), NOISE.ravel())


@pytest.mark.parametrize("head", [b"", b"text", b"\x08\0 times", b"PK\3\4" + bytes(128), bytes(132), b"\2\0\0\0ab"])
def test_what_is_no_dicom_is_told_by_its_start(head):
    assert not tags_module.is_dicom(head)


@pytest.mark.parametrize("n", range(340, 700, 9))
def test_a_file_cut_in_its_header_is_called_cut_or_lacks_a_tag(n):
    whole = content(ct())[:n]
    try:
        dataset = tags_module.parse(whole, "one.dcm", stop_before_pixels=True)
    except ValueError as error:
        assert str(error) == f"one.dcm: {tags_module.CUT}"
    else:
        assert b"\xe0\x7f\x10\0" in whole or "BitsStored" not in dataset or "RescaleSlope" not in dataset


def test_warnings_are_kept_once_per_kind_and_not_printed(recwarn):
    kinds = []
    with tags_module.warned(kinds):
        for n in (1, 2):
            warnings.warn(f"value {n} of 'x{n}'", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    assert (kinds, len(recwarn)) == (["value ... of ...", "another"], 0)
