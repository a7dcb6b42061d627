"""The compressed image of a slice: its fragments put together, and how much decoding it would take.

Nothing is decoded here: a stream that would take far more time or memory than its pixels is refused before.
DICOM PS3.5 A.4; JPEG: ITU-T T.81 B.2, B.3; JPEG-LS: T.87 C.2; JPEG 2000: T.800 A.4 to A.6, B.6, and I.5 (its boxes).
"""

import math
import struct
from collections.abc import Iterator

MOST_TILES = 1024  # of a JPEG 2000 image
MOST_PACKETS = 1 << 16  # of a JPEG 2000 image: layers x precincts of all resolutions; encoders make some hundreds
SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xDE, 0xF7}  # JPEG markers that give the size: SOF, DHP, SOF55
SCAN = 0xDA  # the JPEG marker before the pixels
ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
JPEG_2000 = b"\xff\x4f\xff\x51"  # how a JPEG 2000 stream begins
JP2 = b"\0\0\0\x0cjP  "  # how a file with boxes begins
CODING = {0x52: 4, 0x53: 5}  # JPEG 2000 markers COD, COC -> byte of the style after the marker (one component)
TILE_PART, DATA = 0x90, 0x93  # JPEG 2000 markers SOT, SOD


def fragments(pixels: bytes) -> list[memoryview]:
    """Return the items of encapsulated `pixels`, the offset table first. Raises ValueError if one is cut short."""
    found, at, view = [], 0, memoryview(pixels)
    while at + 8 <= len(pixels) and pixels[at : at + 4] != END:
        length = int.from_bytes(pixels[at + 4 : at + 8], "little")
        if pixels[at : at + 4] != ITEM:
            raise ValueError("no fragment where one should begin")
        if length > len(pixels) - at - 8:
            raise ValueError(f"truncated: {len(pixels) - at - 8} bytes of a fragment of {length}")
        found.append(view[at + 8 : at + 8 + length])
        at += 8 + length
    return found


def stream(frame: bytes) -> bytes:
    """Return the code stream in `frame`, which is that itself, or a JP2 file (T.800 I.5) that holds it in a box."""
    if frame[:8] != JP2:
        return frame
    at = 0
    while at + 8 <= len(frame):
        length, start = int.from_bytes(frame[at : at + 4], "big"), at + 8
        if length == 1:
            length, start = int.from_bytes(frame[at + 8 : at + 16], "big"), at + 16
        if frame[at + 4 : at + 8] == b"jp2c":
            return frame[start : at + length if length else None]
        at += max(length, 8) if length else len(frame)
    raise ValueError("a JP2 file without a code stream")


def frame_shape(frame: bytes) -> tuple[int, int, int]:
    """Return rows and columns (px) and components of a JPEG, JPEG-LS or JPEG 2000 image, which is not decoded.

    Raises ValueError if it does not give them, for more than MOST_TILES tiles or MOST_PACKETS packets.
    """
    try:
        return _jpeg_2000(frame) if frame[:4] == JPEG_2000 else _jpeg(frame)
    except (struct.error, IndexError, ZeroDivisionError) as error:
        raise ValueError("it ends before its size") from error


def _jpeg_2000(frame: bytes) -> tuple[int, int, int]:
    right, bottom, left, top, width, height, *_, components = struct.unpack_from(">8IH", frame, 8)
    tiles = -(-right // width) * -(-bottom // height)
    if tiles > MOST_TILES:
        raise ValueError(f"tiles of {width} x {height} px")
    shape, tile = (bottom - top, right - left), (min(height, bottom), min(width, right))
    for coding in _codings(frame):
        if (packets := tiles * _packets(coding, tile)) > MOST_PACKETS:
            raise ValueError(f"{packets} packets of JPEG 2000")
    return *shape, components


def _codings(frame: bytes) -> Iterator[bytes]:
    """Yield the layers (2 bytes), the style and what follows it of each coding style in a header of the stream."""
    at, end, layers = 2, 0, b"\0\1"  # `end` of the current tile-part
    for _ in range(4 * MOST_TILES):
        if at >= len(frame) - 1 or frame[at] != 0xFF:
            return
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker in CODING:
            first, segment = CODING[marker], frame[at : at + 2 + length]
            layers = segment[6:8] if marker == 0x52 else layers
            yield layers + segment[first : first + 1] + segment[9 if marker == 0x52 else first + 1 :]
        if marker == TILE_PART:
            size = int.from_bytes(frame[at + 6 : at + 10], "big")
            end = at + size if size else len(frame)
        if marker == DATA and end <= at:
            return
        at = end if marker == DATA else at + 2 + length
    raise ValueError(f"more than {4 * MOST_TILES} markers of JPEG 2000")


def _packets(coding: bytes, tile: tuple[int, int]) -> int:
    """Return the number of packets of a tile of (rows, columns): layers times precincts, T.800 B.6 and B.9."""
    layers, style, levels, sizes = int.from_bytes(coding[:2], "big"), coding[2], coding[3], coding[8:]
    if levels > 32:
        raise ValueError(f"{levels} resolutions of JPEG 2000")
    precincts = 0
    for resolution in range(levels + 1):
        size = sizes[resolution] if style & 1 else 0xFF
        sides = (-(-length // (1 << (levels - resolution))) for length in tile)
        exponents = (size >> 4, size & 15)
        precincts += math.prod(-(-n // (1 << exponent)) for n, exponent in zip(sides, exponents, strict=True))
    return layers * precincts


def _jpeg(frame: bytes) -> tuple[int, int, int]:
    if frame[:2] != b"\xff\xd8":
        raise ValueError("it is neither JPEG nor JPEG 2000")
    at = 2
    while frame[at] == 0xFF and frame[at + 1] != SCAN:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker in SIZES:
            return struct.unpack_from(">HHB", frame, at + 5)
        at += 1 if marker == 0xFF else 2 + length  # 0xFF may pad a marker
    raise ValueError("it does not give its size")
