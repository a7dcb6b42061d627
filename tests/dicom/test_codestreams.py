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


def box(kind: bytes, content: bytes, *, long: bool = False) -> bytes:
    if long:
        return (1).to_bytes(4, "big") + kind + (16 + len(content)).to_bytes(8, "big") + content
    return (8 + len(content)).to_bytes(4, "big") + kind + content


@pytest.mark.parametrize("long", [False, True])
def test_a_jp2_file_gives_its_code_stream(long):
    before = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    assert codestreams.stream(before + box(b"jp2c", b"stream", long=long) + box(b"xml ", b"x")) == b"stream"
    assert codestreams.stream(before + b"\0\0\0\0jp2c" + b"to the end") == b"to the end"
    assert codestreams.stream(b"stream") == b"stream"
    with pytest.raises(ValueError, match="a JP2 file without a code stream"):
        codestreams.stream(before)


def with_coding(frame: bytes, layers: int, precinct: int | None, *, in_tile: bool = False) -> bytes:
    """Return a JPEG 2000 stream with the number of `layers` and precincts of 2**`precinct` px a side."""
    at = frame.index(b"\xff\x52")
    length = int.from_bytes(frame[at + 2 : at + 4], "big")
    old = frame[at + 4 : at + 2 + length]
    levels = old[5]
    sizes = b"" if precinct is None else bytes([precinct | precinct << 4] * (levels + 1))
    body = bytes([precinct is not None, old[1]]) + layers.to_bytes(2, "big") + old[4:10] + sizes
    new = b"\xff\x52" + (2 + len(body)).to_bytes(2, "big") + body
    if not in_tile:
        return frame[:at] + new + frame[at + 2 + length :]
    tile = frame.index(b"\xff\x90") + 12
    size = int.from_bytes(frame[tile - 6 : tile - 2], "big") + len(new)
    return frame[: tile - 6] + size.to_bytes(4, "big") + frame[tile - 2 : tile] + new + frame[tile:]


@pytest.mark.parametrize("in_tile", [False, True])
@pytest.mark.parametrize("layers, precinct", [(1 << 15, None), (20, 0), (1000, 2)])
def test_a_small_jpeg_2000_of_many_packets_is_refused(layers, precinct, in_tile):
    with pytest.raises(ValueError, match="packets of JPEG 2000"):
        codestreams.frame_shape(with_coding(jpeg_2000(), layers, precinct, in_tile=in_tile))


@pytest.mark.parametrize("layers, precinct", [(1, None), (12, 7), (1, 0)])
def test_usual_layers_and_precincts_are_not(layers, precinct):
    assert codestreams.frame_shape(with_coding(jpeg_2000(), layers, precinct)) == (64, 80, 1)


def test_fragments_are_told_by_their_length_and_a_cut_one_is_named():
    item = b"\xfe\xff\0\xe0"
    pixels = item + bytes(4) + item + (6).to_bytes(4, "little") + b"pixels"
    assert [bytes(part) for part in codestreams.fragments(pixels + b"\xfe\xff\xdd\xe0" + bytes(4))] == [b"", b"pixels"]
    with pytest.raises(ValueError, match="truncated: 5 bytes of a fragment of 6"):
        codestreams.fragments(pixels[:-1])
    with pytest.raises(ValueError, match="no fragment where one should begin"):
        codestreams.fragments(b"12345678")
