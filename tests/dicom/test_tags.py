import re

import numpy as np
import pydicom
import pytest
from dicom_files import NOISE, content, ct, lossless_jpeg
from pydicom.encaps import get_frame
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless

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


def jpeg_2000() -> bytes:
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg, from the extra codecs, is missing")
    dataset = ct(np.pad(NOISE, 20))
    dataset.compress(JPEG2000Lossless)
    return get_frame(dataset.PixelData, 0)


def test_the_size_of_a_jpeg_is_that_of_its_frame():
    assert tags_module.frame_shape(lossless_jpeg(NOISE)) == (24, 40, 1)


def test_the_size_of_a_jpeg_2000_is_that_of_its_image_without_the_offset():
    frame = jpeg_2000()
    assert tags_module.frame_shape(frame) == (64, 80, 1)
    moved = frame[:16] + (30).to_bytes(4, "big") + (4).to_bytes(4, "big") + frame[24:]
    assert tags_module.frame_shape(moved) == (60, 50, 1)


def test_segments_and_fill_bytes_before_the_frame_are_passed():
    frame = lossless_jpeg(NOISE)
    comment = b"\xff\xfe\0\6\xff\xc3\0\0"  # holds what looks like the marker of a frame
    assert tags_module.frame_shape(frame[:2] + comment + b"\xff\xff" + frame[2:]) == (24, 40, 1)


def test_too_many_tiles_are_refused():
    frame = jpeg_2000()
    with pytest.raises(ValueError, match="tiles of 1 x 1 px"):
        tags_module.frame_shape(frame[:24] + b"\0\0\0\1" * 2 + frame[32:])


@pytest.mark.parametrize(
    "frame, message",
    [
        (b"", "neither JPEG nor JPEG 2000"),
        (b"\xff\xd8", "ends before its size"),
        (b"\xff\xd8\xff\xc3\0\x0b", "ends before its size"),
        (b"\xff\xd8\xff\xda\0\2" + bytes(20), "does not give its size"),
        (b"\xff\xd8" + bytes(20), "does not give its size"),
        (b"\xff\x4f\xff\x51" + bytes(60), "ends before its size"),
        (b"\xff\x4f\xff\x51" + bytes(8), "ends before its size"),
    ],
)
def test_what_does_not_tell_its_size_is_refused(frame, message):
    with pytest.raises(ValueError, match=message):
        tags_module.frame_shape(frame)
