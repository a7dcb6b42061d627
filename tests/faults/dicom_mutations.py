"""Damage done to DICOM files: to their structure, element by element, or to their bytes. A number makes each file."""

import io
import zlib
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.encaps import generate_fragments
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

SYNTAXES = [
    *(DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian),
    *(JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless),
    *("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.1.98"),
    *("", "1.2.3", "CT", "1.2.840.10008.1.2.1\0\0\0"),
]
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}  # PS3.5 7.1.2
VRS = [*LONG, b"AE", b"AT", b"CS", b"DA", b"DS", b"FD", b"IS", b"LO", b"PN", b"SH", b"SS", b"UI", b"UL", b"US", b"ZZ"]
UNDEFINED = 0xFFFFFFFF
PIXELS = (0x7FE0, 0x0010)

WORDS = ["Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"]
DECIMALS = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleIntercept", "RescaleSlope"]
TEXTS = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality", "ImageType"]
TEXTS += ["PhotometricInterpretation", "RescaleType", "SpecificCharacterSet"]
WHOLE = [0, 1, 2, 3, 7, 8, 11, 12, 13, 15, 16, 17, 31, 32, 64, 255, 4095, 4096, 4097, 16384, 32767, 32768, 65535]
FIGURES = ["nan", "inf", "-inf", "1e308", "-1e308", "1e-320", "0", "-0", "-1", "1e9", "-1e9", "1e-9", "", " "]
FIGURES += ["abc", "0x10", "1e", "--1", "9" * 400, "1,5", "\N{FULLWIDTH DIGIT ONE}", "1\n", "\0", "1_0", "0.0001"]
SAID = ["", " ", "..", "../../up", "/etc/passwd", "a/b", "a\\b", "\0", "a\nb", "a\r\nb", "\x1b[2Jgone", "=1+1", "NaN"]
SAID += ["x" * 100_000, "\\" * 5000, "<script>", "\N{SNOWMAN}", "CT ", "ct", "ISO 2022 IR 87\\ISO 2022 IR 159", "UTF-8"]


@dataclass
class Element:
    """One data element as it is to stand in the file, whether it can be or not."""

    tag: tuple[int, int]
    vr: bytes
    value: bytes
    length: int | None = None  # what the header says instead of the length of the value

    def encode(self, syntax: str) -> bytes:
        order = "big" if syntax == ExplicitVRBigEndian else "little"
        head = b"".join(part.to_bytes(2, order) for part in self.tag)
        length = len(self.value) if self.length is None else self.length
        if syntax == ImplicitVRLittleEndian:
            return head + length.to_bytes(4, order) + self.value
        if self.vr in LONG:
            return head + self.vr + b"\0\0" + length.to_bytes(4, order) + self.value
        return head + self.vr + (length & 0xFFFF).to_bytes(2, order) + self.value


@dataclass
class File:
    preamble: bytes
    meta: list[Element]
    elements: list[Element]
    syntax: str  # the one in which it is encoded, whatever its header says

    def encode(self) -> bytes:
        meta = b"".join(element.encode(ExplicitVRLittleEndian) for element in self.meta)
        body = b"".join(element.encode(self.syntax) for element in self.elements)
        if self.syntax == DeflatedExplicitVRLittleEndian:
            packer = zlib.compressobj(1, zlib.DEFLATED, -15)
            body = packer.compress(body) + packer.flush()
        return self.preamble + meta + body


@lru_cache(maxsize=64)
def _taken_apart(content: bytes) -> File:
    dataset = pydicom.dcmread(io.BytesIO(content))
    syntax = dataset.file_meta.TransferSyntaxUID
    meta = [Element((e.tag.group, e.tag.element), e.VR.encode(), _bytes(e.value, e.VR)) for e in dataset.file_meta]
    elements = []
    for tag in sorted(dataset.keys()):
        raw = dataset.get_item(tag)
        if not isinstance(raw.value, bytes):
            continue
        vr = (raw.VR or _implicit_vr(tag)).encode()
        tail = b"\xfe\xff\xdd\xe0\0\0\0\0" if raw.length == UNDEFINED else b""
        length = UNDEFINED if raw.length == UNDEFINED else None
        elements.append(Element((tag.group, tag.element), vr, raw.value + tail, length))
    return File(bytes(128) + b"DICM", meta, elements, syntax)


def _implicit_vr(tag) -> str:
    return dictionary_VR(tag)[:2] if dictionary_has_tag(tag) else "UN"


def _bytes(value, vr: str) -> bytes:
    if isinstance(value, bytes):
        return value
    if vr == "UL":
        return int(value).to_bytes(4, "little")
    text = str(value).encode()
    return text + (b"\0" if vr == "UI" else b" ") * (len(text) % 2)


def take_apart(content: bytes) -> File:
    found = _taken_apart(content)
    meta, elements = ([Element(**vars(element)) for element in part] for part in (found.meta, found.elements))
    return File(found.preamble, meta, elements, found.syntax)


# Damage to the structure: each takes a File and a random generator, and changes the file.


def _place(file: File, keyword: str) -> int:
    """Return where the element `keyword` stands, or should."""
    tag = divmod(tag_for_keyword(keyword), 1 << 16)
    return next((i for i, element in enumerate(file.elements) if element.tag >= tag), len(file.elements))


def _put(file: File, keyword: str, vr: bytes, value: bytes) -> None:
    tag, i = divmod(tag_for_keyword(keyword), 1 << 16), _place(file, keyword)
    is_there = i < len(file.elements) and file.elements[i].tag == tag
    file.elements[i : i + is_there] = [Element(tag, vr, value + b" " * (len(value) % 2))]


def _any(file: File, rng) -> int:
    # The header of CT begins with dozens of elements that nothing reads: two thirds go to those that are.
    read = [*WORDS, *DECIMALS, *TEXTS, "PixelData"]
    if rng.random() < 2 / 3:
        return min(_place(file, read[rng.integers(len(read))]), len(file.elements) - 1)
    return int(rng.integers(len(file.elements)))


def remove(file: File, rng) -> None:
    if file.elements:
        del file.elements[_any(file, rng)]


def duplicate(file: File, rng) -> None:
    if file.elements:
        i = _any(file, rng)
        file.elements.insert(i if rng.random() < 0.5 else int(rng.integers(len(file.elements))), file.elements[i])


def reorder(file: File, rng) -> None:
    if file.elements:
        element = file.elements.pop(_any(file, rng))
        file.elements.insert(int(rng.integers(len(file.elements) + 1)), element)


def change_vr(file: File, rng) -> None:
    if file.elements:
        i = _any(file, rng)
        file.elements[i] = Element(file.elements[i].tag, VRS[rng.integers(len(VRS))], file.elements[i].value)


def change_tag(file: File, rng) -> None:
    if file.elements:
        i = _any(file, rng)
        group = [0, 2, 4, 0x28, 0x7FE0, 0xFFFE, 0xFFFF, 0x0011][rng.integers(8)]
        tag = (group, [0, 0x10, 0xE000, 0xE00D, 0xE0DD, 0x0100, 0xFFFF][rng.integers(7)])
        file.elements[i] = Element(tag, file.elements[i].vr, file.elements[i].value)


def change_length(file: File, rng) -> None:
    if file.elements:
        i, e = (i := _any(file, rng)), file.elements[i]
        length = len(e.value)
        lengths = [0, 1, 7, length - 1, length + 1, length // 2, 2 * length, 0xFFFF, 1 << 31, UNDEFINED - 1, UNDEFINED]
        file.elements[i] = Element(e.tag, e.vr, e.value, max(0, lengths[rng.integers(len(lengths))]))


def change_word(file: File, rng) -> None:
    value = int(rng.integers(1 << 16)) if rng.random() < 0.2 else WHOLE[rng.integers(len(WHOLE))]
    order = "big" if file.syntax == ExplicitVRBigEndian else "little"
    vr, n_bytes = [(b"US", 2), (b"US", 2), (b"US", 2), (b"SS", 2), (b"UL", 4), (b"IS", 0), (b"OB", 2)][rng.integers(7)]
    value = str(value).encode() if not n_bytes else value.to_bytes(n_bytes, order)
    _put(file, WORDS[rng.integers(len(WORDS))], vr, value * int(rng.choice([1, 1, 1, 1, 2, 0])))


def change_decimal(file: File, rng) -> None:
    n = int(rng.choice([1, 2, 3, 6, 6, 3, 2, 1, 0, 4000], p=[0.15, 0.15, 0.15, 0.15, 0.1, 0.1, 0.1, 0.05, 0.03, 0.02]))
    pool = FIGURES + ["1", "0", "0.5", "-125", "40"] * 6
    figures = [pool[rng.integers(len(pool))] for _ in range(n)]
    _put(file, DECIMALS[rng.integers(len(DECIMALS))], b"DS", "\\".join(figures).encode())


def change_text(file: File, rng) -> None:
    keyword, said = TEXTS[rng.integers(len(TEXTS))], SAID[rng.integers(len(SAID))].encode()
    vr = b"UI" if keyword.endswith("UID") else b"LO" if keyword == "PatientID" else b"CS"
    said = rng.bytes(int(rng.integers(1, 40))) if rng.random() < 0.15 else said
    _put(file, keyword, b"UT" if len(said) > 1 << 15 else vr, said)


def change_frames(file: File, rng) -> None:
    _put(file, "NumberOfFrames", b"IS", FIGURES[rng.integers(len(FIGURES))].encode())


def change_padding(file: File, rng) -> None:
    order = "big" if file.syntax == ExplicitVRBigEndian else "little"
    vr = [b"US", b"SS", b"OB", b"FD", b"DS"][rng.integers(5)]
    value = int(rng.integers(1 << 16)).to_bytes(2, order) * int(rng.integers(1, 3))
    value = FIGURES[rng.integers(len(FIGURES))].encode() if vr == b"DS" else value
    _put(file, ["PixelPaddingValue", "PixelPaddingRangeLimit"][rng.integers(2)], vr, value)


def nest(file: File, rng) -> None:
    """Put sequences inside sequences, closed or not."""
    depth, order = int(rng.choice([2, 50, 400, 3000])), "big" if file.syntax == ExplicitVRBigEndian else "little"
    item = b"".join(part.to_bytes(2, order) for part in (0xFFFE, 0xE000)) + UNDEFINED.to_bytes(4, order)
    inner = Element((0x0008, 0x1140), b"SQ", item, UNDEFINED).encode(file.syntax)
    ends = ((0xFFFE, 0xE00D), (0xFFFE, 0xE0DD))
    closed = b"".join(b"".join(part.to_bytes(2, order) for part in tag) + bytes(4) for tag in ends)
    body = inner * depth + (closed * depth if rng.random() < 0.7 else b"")
    length = UNDEFINED if rng.random() < 0.7 else None
    place = int(rng.integers(len(file.elements) + 1))
    file.elements.insert(place, Element((0x0008, 0x1140), b"SQ", item + body + closed, length))


def change_syntax(file: File, rng) -> None:
    """Say another transfer syntax than the file is in, or encode it in one that it does not say."""
    other = SYNTAXES[rng.integers(len(SYNTAXES))]
    if rng.random() < 0.3:
        file.syntax = SYNTAXES[rng.integers(4)]
        return
    for element in file.meta:
        if element.tag == (0x0002, 0x0010):
            element.value = other.encode() + b"\0" * (len(other) % 2)


def damage_meta(file: File, rng) -> None:
    kind, i = rng.integers(6), int(rng.integers(max(1, len(file.meta))))
    if kind == 0:
        file.preamble = [b"", b"DICM", bytes(128), bytes(100) + b"DICM", bytes(128) + b"DICN"][rng.integers(5)]
    elif kind == 1 and file.meta:
        del file.meta[i]
    elif kind == 2 and file.meta:
        file.meta[0] = Element((2, 0), b"UL", int(rng.choice([0, 1, 100, 10**6, UNDEFINED])).to_bytes(4, "little"))
    elif kind == 3 and file.meta:
        file.meta[i] = Element(file.meta[i].tag, VRS[rng.integers(len(VRS))], file.meta[i].value)
    elif kind == 4:
        file.meta.insert(i, Element((2, 0x0102), b"OB", bytes(int(rng.choice([10, 10_000])))))
    elif file.meta:
        file.meta[i] = Element(file.meta[i].tag, file.meta[i].vr, file.meta[i].value, UNDEFINED)


def _pixels(file: File) -> Element | None:
    return next((element for element in file.elements if element.tag == PIXELS), None)


def change_pixels(file: File, rng) -> None:
    """Let there be fewer pixels, or more, or pixels under another name."""
    if (element := _pixels(file)) is None:
        return
    kind = rng.integers(6)
    if kind == 0:
        element.value = element.value[: int(rng.integers(len(element.value) + 1))]
    elif kind == 1:
        element.value += bytes(int(rng.choice([1, 2, 1000, 100_000])))
    elif kind == 2:
        element.value = b""
    elif kind == 3:
        element.tag = (0x7FE0, int(rng.choice([0x0001, 0x0008, 0x0009, 0x0011])))
    elif kind == 4:
        element.vr = [b"OB", b"UN", b"OF", b"UT", b"SQ"][rng.integers(5)]
    else:
        element.length = UNDEFINED if element.length is None else None


def _fragments(element: Element) -> list[bytes]:
    try:
        return list(generate_fragments(element.value))
    except (ValueError, TypeError, IndexError):
        return [element.value]


def change_fragments(file: File, rng) -> None:
    """Damage what holds compressed pixels: the offset table, the fragments' number, order, lengths and content."""
    if (element := _pixels(file)) is None:
        return
    parts = _fragments(element) or [b""]
    kind, i = rng.integers(8), int(rng.integers(len(parts)))
    if kind == 0:
        del parts[i]
    elif kind == 1:
        parts.insert(i, parts[int(rng.integers(len(parts)))])
    elif kind == 2:
        parts.reverse()
    elif kind == 3:
        parts[i] = parts[i][: int(rng.integers(len(parts[i]) + 1))]
    elif kind == 4:
        parts[0] = rng.bytes(4 * int(rng.integers(5)))
    elif kind == 5:
        cut = int(rng.integers(len(parts[i]) + 1))
        parts[i : i + 1] = [parts[i][:cut], parts[i][cut:]]
    else:
        parts[i] = (change_frame if kind == 6 else flip)(parts[i], rng)
    lengths = [len(part) for part in parts]
    if rng.random() < 0.3 and parts:
        lengths[int(rng.integers(len(parts)))] = int(rng.choice([0, 1, 7, 1 << 20, 1 << 31, UNDEFINED]))
    items = zip(lengths, parts, strict=True)
    value = b"".join(b"\xfe\xff\x00\xe0" + length.to_bytes(4, "little") + part for length, part in items)
    element.value = value + (b"\xfe\xff\xdd\xe0\0\0\0\0" if rng.random() < 0.9 else b"")


def change_frame(frame: bytes, rng) -> bytes:
    """Let a JPEG, JPEG-LS or JPEG 2000 stream, or RLE, say other sizes than it holds."""
    content = bytearray(frame)
    size = int(rng.choice(WHOLE)).to_bytes(2, "big")
    if frame[:4] == b"\xff\x4f\xff\x51" and len(frame) > 60:  # SIZ, ITU-T T.800 A.5.1: sizes, offsets, tiles
        at = int(rng.choice([8, 12, 16, 20, 24, 28, 32, 36]))
        content[at : at + 4] = bytes([int(rng.choice([0, 0, 1, 127, 255]))]) + b"\0" + size
        if rng.random() < 0.3:
            content[40:42] = size  # components
        return bytes(content)
    at = max(frame.find(bytes([0xFF, kind])) for kind in (0xC0, 0xC3, 0xF7))  # SOF, ITU-T T.81 B.2.2
    if frame[:2] == b"\xff\xd8" and at > 0:
        at += 5 + 2 * int(rng.integers(2))
        content[at : at + 2] = size
        if rng.random() < 0.3:
            content[at : at + 2] = b"\xff\xff"
        return bytes(content)
    at = 4 * int(rng.integers(16))  # the header of RLE, PS3.5 G.5
    content[at : at + 4] = int(rng.choice([0, 1, 2, 3, 15, 64, 1 << 16, 1 << 31, UNDEFINED])).to_bytes(4, "little")
    return bytes(content)


@lru_cache
def zeros(n_megabytes: int) -> bytes:
    """Return `n_megabytes` of zeros, deflated: a thousandth of that."""
    packer, block = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(n_megabytes)) + packer.flush()


def bomb(file: File, rng) -> bytes:
    """Return the file deflated, its pixels, or what follows them, a thousand times as long when inflated."""
    syntax = DeflatedExplicitVRLittleEndian
    for element in file.meta:
        if element.tag == (0x0002, 0x0010):
            element.value = syntax.encode() + b"\0" * (len(syntax) % 2)
    tag = PIXELS if rng.random() < 0.5 else (0x0009, 0x1010)
    file.elements = [element for element in file.elements if element.tag < tag]
    meta = b"".join(element.encode(ExplicitVRLittleEndian) for element in file.meta)
    body = b"".join(element.encode(ExplicitVRLittleEndian) for element in file.elements)
    megabytes = int(rng.choice([20, 600]))
    body += Element(tag, b"OW", b"", megabytes << 20).encode(ExplicitVRLittleEndian)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    return file.preamble + meta + packer.compress(body) + packer.flush(zlib.Z_FULL_FLUSH) + zeros(megabytes)


STRUCTURE = [
    *[remove, duplicate, reorder, change_vr, change_tag, change_length, change_word, change_word, change_word],
    *[change_decimal, change_decimal, change_decimal, change_text, change_text, change_frames, change_padding, nest],
    *[change_syntax, damage_meta, change_pixels, change_fragments, change_fragments],
]


# Damage to the bytes: each takes bytes and a random generator, and returns others.


def flip(content: bytes, rng) -> bytes:
    damaged = np.frombuffer(content, np.uint8).copy()
    n = int(rng.choice([1, 1, 4, 32, 256]))
    # Half of them in the header, which is short beside the pixels.
    end = min(len(damaged), 2000) if rng.random() < 0.5 else len(damaged)
    if end:
        damaged[rng.integers(end, size=n)] ^= (1 << rng.integers(8, size=n)).astype(np.uint8)
    return damaged.tobytes()


def _span(content: bytes, rng, longest: int = 4096) -> tuple[int, int]:
    start = int(rng.integers(min(len(content), 4000) if rng.random() < 0.5 and content else len(content) + 1))
    return start, start + int(rng.integers(longest))


def truncate(content: bytes, rng) -> bytes:
    return content[: _span(content, rng)[0]]


def insert(content: bytes, rng) -> bytes:
    start, stop = _span(content, rng, 64)
    return content[:start] + rng.bytes(stop - start) + content[start:]


def delete(content: bytes, rng) -> bytes:
    start, stop = _span(content, rng)
    return content[:start] + content[stop:]


def overwrite(content: bytes, rng) -> bytes:
    start, stop = _span(content, rng, 64)
    value = bytes([int(rng.choice([0, 255, 127, 128]))]) * (stop - start)
    return content[:start] + value + content[stop:]


def repeat(content: bytes, rng) -> bytes:
    start, stop = _span(content, rng)
    return content[:stop] + content[start:stop] * int(rng.integers(1, 20)) + content[stop:]


def splice(content: bytes, rng, other: bytes) -> bytes:
    return content[: _span(content, rng)[0]] + other[_span(other, rng)[0] :]


BYTES = [flip, flip, truncate, insert, delete, overwrite, repeat]


def mutated(seeds: list[bytes], number: int) -> bytes:
    """Return the file that `number` makes of the `seeds`: always the same."""
    rng = np.random.default_rng(number)
    content = seeds[rng.integers(len(seeds))]
    kind = rng.random()
    if kind < 0.7:
        file = take_apart(content)
        for _ in range(rng.integers(1, 4)):
            STRUCTURE[rng.integers(len(STRUCTURE))](file, rng)
        content = bomb(file, rng) if kind < 0.01 else file.encode()
    if kind > 0.55:
        damages = [*BYTES, partial(splice, other=seeds[rng.integers(len(seeds))])]
        for _ in range(rng.integers(1, 3)):
            content = damages[rng.integers(len(damages))](content, rng)
    return content


def mutated_bytes(content: bytes, number: int) -> bytes:
    """Return what `number` makes of the bytes of a file of any format."""
    rng = np.random.default_rng(number)
    for _ in range(rng.integers(1, 3)):
        content = BYTES[rng.integers(len(BYTES))](content, rng)
    return content
