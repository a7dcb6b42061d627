"""The size that a compressed image says it has, read before a decoder makes room for it.

JPEG: ITU-T T.81 B.2 and B.3; JPEG-LS: T.87 C.2; JPEG 2000: T.800 A.5.
"""

import struct

SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xDE, 0xF7}  # the JPEG markers that tell sizes: SOF, DHP, SOF55
SCAN = 0xDA  # the marker that pixels follow
MOST_TILES = 1024


def shape(frame: bytes) -> tuple[int, int, int]:
    """Return rows and columns (px) and components of a JPEG, JPEG-LS or JPEG 2000 image.

    Raises ValueError if it does not tell them, or for more than MOST_TILES tiles.
    """
    try:
        return _jpeg_2000(frame) if frame[:4] == b"\xff\x4f\xff\x51" else _jpeg(frame)
    except (struct.error, IndexError, ZeroDivisionError) as error:
        raise ValueError("it ends before it tells its size") from error


def _jpeg_2000(frame: bytes) -> tuple[int, int, int]:
    right, bottom, left, top, width, height, *_, components = struct.unpack_from(">8IH", frame, 8)
    if -(-right // width) * -(-bottom // height) > MOST_TILES:
        raise ValueError(f"tiles of {width} x {height} px")
    return bottom - top, right - left, components


def _jpeg(frame: bytes) -> tuple[int, int, int]:
    if frame[:2] != b"\xff\xd8":
        raise ValueError("it is neither JPEG nor JPEG 2000")
    at = 2
    while frame[at] == 0xFF and frame[at + 1] != SCAN:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker in SIZES:
            return struct.unpack_from(">HHB", frame, at + 5)
        at += 1 if marker == 0xFF else 2 + length  # a marker may be filled up with 0xFF before it
    raise ValueError("it does not tell its size")
