import re

import pydicom
import pytest
from dicom_files import NOISE, content, ct
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

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
