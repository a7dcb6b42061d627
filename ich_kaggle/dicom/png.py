"""Fast 8-bit PNG files: ISA-L deflate without row filters, which would not make windowed CT smaller.

Any viewer opens them. PNGs from other programs are read through OpenCV.
PNG specification: https://www.w3.org/TR/png-3/
"""

import struct
from pathlib import Path

import cv2
import numpy as np

try:
    from isal import isal_zlib as zlib

    LEVEL = 2
except ImportError:  # Kaggle's image has no isal
    import zlib

    LEVEL = 1

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB = 0, 2  # colour types
START = len(SIGNATURE) + 25  # bytes up to the first chunk after IHDR
RATIO = 1032  # the highest compression ratio of deflate
RAW = -15  # zlib's wbits of a stream without header and checksum


def encode(image: np.ndarray) -> bytes:
    """Return the PNG file of `image`: uint8 (h, w) or (h, w, 3), RGB."""
    if image.dtype != np.uint8 or image.shape[2:] not in ((), (3,)):
        raise ValueError(f"a PNG takes uint8 (h, w) or (h, w, 3), not {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    rows = np.empty((height, 1 + image[0].size), np.uint8)
    rows[:, 0] = 0  # the filter of each row
    rows[:, 1:] = image.reshape(height, -1)
    color = RGB if image.ndim == 3 else GRAY
    return b"".join(
        (
            SIGNATURE,
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(rows.data, LEVEL)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return b"".join(
        (struct.pack(">I", len(content)), kind, content, struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))
    )


def decode(content: bytes) -> np.ndarray:
    """Return the image of a PNG file: uint8 (h, w) or (h, w, 3), RGB. Raises ValueError if it is damaged."""
    image = _decode_plain(content)
    if image is not None:
        return image
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    if image is None:
        raise ValueError("not a readable PNG")
    return np.ascontiguousarray(image[..., ::-1]) if image.ndim == 3 else image


def _decode_plain(content: bytes) -> np.ndarray | None:
    """Return the image of a PNG such as `encode` writes, one IDAT chunk of rows with filter 0; None for others."""
    if content[:8] != SIGNATURE or content[START + 4 : START + 8] != b"IDAT":
        return None
    packed = memoryview(content)
    if zlib.crc32(packed[12 : START - 4]) != struct.unpack_from(">I", content, START - 4)[0]:
        raise ValueError("damaged PNG (the checksum of its header is wrong)")
    width, height, depth, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", content, 16)
    start = START + 8
    end = start + struct.unpack_from(">I", content, START)[0]
    channels = 3 if color == RGB else 1
    size = height * (1 + width * channels)
    if depth != 8 or color not in (GRAY, RGB) or interlaced or content[end + 8 : end + 12] != b"IEND":
        return None
    if size > RATIO * (end - start):
        raise ValueError(f"damaged PNG ({end - start} bytes can't hold {width} x {height} px)")
    # The checksum of the compressed bytes suffices; that of the inflated ones takes ten times as long.
    if zlib.crc32(packed[START + 4 : end]) != struct.unpack_from(">I", content, end)[0]:
        raise ValueError("damaged PNG (its checksum is wrong)")
    try:
        rows = np.frombuffer(zlib.decompress(packed[start + 2 : end - 4], wbits=RAW, bufsize=size), np.uint8)
    except zlib.error as error:
        raise ValueError(f"damaged PNG ({error})") from error
    rows = rows.reshape(height, -1) if rows.size == size else np.ones((1, 1))
    if rows[:, 0].any():
        return None
    return rows[:, 1:].reshape((height, width, channels) if channels == 3 else (height, width))


def write(path: str | Path, image: np.ndarray) -> None:
    """Write `image`, uint8 (h, w) or (h, w, 3), RGB."""
    Path(path).write_bytes(encode(image))


def read(path: str | Path) -> np.ndarray:
    """Return the image in `path`: uint8 (h, w) or (h, w, 3), RGB. Raises ValueError naming a damaged file."""
    try:
        return decode(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
