import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from ich_kaggle.dicom import png

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)
IMAGES = [NOISE, NOISE[..., 0], NOISE[:1, :1], np.zeros((64, 64, 3), np.uint8), NOISE[:, ::-1], NOISE[..., ::-1]]


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_written_is_read_back(image, tmp_path):
    png.write(tmp_path / "one.png", image)
    assert np.array_equal(png.read(tmp_path / "one.png"), image)


@pytest.mark.parametrize("image", IMAGES)
def test_pillow_opencv_and_torchvision_see_the_same_pixels(image):
    torch = pytest.importorskip("torch")
    from torchvision.io import decode_png

    content = png.encode(image)
    assert np.array_equal(np.array(Image.open(io.BytesIO(content))), image)
    seen = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(seen[..., ::-1] if image.ndim == 3 else seen, image)
    seen = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8)).numpy()
    assert np.array_equal(np.moveaxis(seen, 0, -1).reshape(image.shape), image)


@pytest.mark.parametrize("filters", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("image", IMAGES[:2])
def test_files_that_opencv_and_pillow_wrote_are_read(image, filters):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=filters)
    assert np.array_equal(png.decode(stream.getvalue()), image)
    bgr = image[..., ::-1] if image.ndim == 3 else image
    content = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, filters])[1].tobytes()
    assert np.array_equal(png.decode(content), image)


def test_the_standard_zlib_stands_in_for_isal(monkeypatch):
    content = png.encode(NOISE)
    monkeypatch.setattr(png, "zlib", zlib)
    monkeypatch.setattr(png, "LEVEL", 1)
    assert np.array_equal(png.decode(content), NOISE)
    assert np.array_equal(png.decode(png.encode(NOISE)), NOISE)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 4), np.uint8)])
def test_what_a_png_cannot_hold_is_refused(image):
    with pytest.raises(ValueError, match=r"a PNG takes uint8 \(h, w\) or \(h, w, 3\)"):
        png.encode(image)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_a_damaged_file_is_refused_with_its_name(damage, tmp_path):
    whole = bytearray(png.encode(NOISE))
    flipped = bytes(whole[:60]) + bytes(byte ^ 0xFF for byte in whole[60:90]) + bytes(whole[90:])
    content = {"empty": b"", "text": b"not an image", "cut": bytes(whole[:-200]), "flipped": flipped}[damage]
    (tmp_path / "one.png").write_bytes(content)
    with pytest.raises(ValueError, match="one.png"):
        png.read(tmp_path / "one.png")


@pytest.mark.parametrize("image", [NOISE[:5, :7], NOISE[:5, :7, 0]])
def test_a_bit_that_flips_is_noticed_or_changes_nothing(image):
    whole = png.encode(image)
    end = len(whole) - 12  # the last chunk says nothing
    for bit in range(8 * end):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        try:
            found = png.decode(bytes(content))
        except ValueError:
            continue
        assert bit < 8 * png.START and np.array_equal(found, image), bit


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_size_that_the_packed_pixels_cannot_have_is_refused_before_memory_is_taken():
    header = struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 8, png.RGB, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 99)) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="damaged PNG .* can't hold 1073741824 x 1073741824 px"):
        png.decode(png.SIGNATURE + content)


@pytest.mark.parametrize(("depth", "interlaced"), [(16, 0), (8, 1)])
def test_what_others_pack_otherwise_is_left_to_opencv(depth, interlaced):
    rows = np.zeros((4, 1 + 4 * 3 * depth // 8), np.uint8)
    header = struct.pack(">IIBBBBB", 4, 4, depth, png.RGB, 0, 0, interlaced)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    assert png._decode_plain(png.SIGNATURE + content) is None
