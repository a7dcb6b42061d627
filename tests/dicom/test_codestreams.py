import numpy as np
import pytest
from dicom_files import NOISE, ct, lossless_jpeg
from pydicom.encaps import get_frame
from pydicom.uid import JPEG2000Lossless

from ich_kaggle.dicom import codestreams


def jpeg_2000() -> bytes:
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg, from the extra codecs, is missing")
    dataset = ct(np.pad(NOISE, 20))
    dataset.compress(JPEG2000Lossless)
    return get_frame(dataset.PixelData, 0)


def test_the_size_of_a_jpeg_is_that_of_its_frame():
    assert codestreams.frame_shape(lossless_jpeg(NOISE)) == (24, 40, 1)


def test_the_size_of_a_jpeg_2000_is_that_of_its_image_without_the_offset():
    frame = jpeg_2000()
    assert codestreams.frame_shape(frame) == (64, 80, 1)
    moved = frame[:16] + (30).to_bytes(4, "big") + (4).to_bytes(4, "big") + frame[24:]
    assert codestreams.frame_shape(moved) == (60, 50, 1)


def test_segments_and_fill_bytes_before_the_frame_are_passed():
    frame = lossless_jpeg(NOISE)
    comment = b"\xff\xfe\0\6\xff\xc3\0\0"  # holds what looks like the marker of a frame
    assert codestreams.frame_shape(frame[:2] + comment + b"\xff\xff" + frame[2:]) == (24, 40, 1)


def test_too_many_tiles_are_refused():
    frame = jpeg_2000()
    with pytest.raises(ValueError, match="tiles of 1 x 1 px"):
        codestreams.frame_shape(frame[:24] + b"\0\0\0\1" * 2 + frame[32:])


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
        codestreams.frame_shape(frame)
