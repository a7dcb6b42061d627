"""Compressed pixels of one slice, decoded by pydicom's plug-ins where that takes no more than the pixels warrant."""

import numpy as np
import pydicom
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import RLELossless

from ich_kaggle.dicom import codestreams, tags

MOST_RLE = 6 << 20  # bytes, which expand up to 64 times
SLACK = 1 << 13  # bytes by which a compressed image may exceed twice its pixels
UNDECODED = "the pixels can't be decoded"


def is_encapsulated(pixels: bytes, length: int, is_native: bool) -> bool:
    """Return whether `pixels` are fragments; some writers give those of a compressed syntax an explicit `length`."""
    return length == tags.UNDEFINED or (not is_native and pixels[:4] == codestreams.ITEM)


def frame(source: pydicom.Dataset, number: int, shape: tuple[int, int], name: str) -> bytes:
    """Return the compressed image of the frame `number` of `source`, whose `shape` is (rows, columns) in px.

    Raises ValueError if it is cut short, has another shape, or would take far too much time or memory to decode.
    """
    is_rle = source.file_meta.TransferSyntaxUID == RLELossless
    with tags.reading(name, UNDECODED):
        found = _frame(source.get_item("PixelData").value, number, int(source.get("NumberOfFrames") or 1))
        found = found if is_rle else codestreams.stream(found)
        if len(found) > min(SLACK + 4 * shape[0] * shape[1], MOST_RLE if is_rle else tags.MOST_BYTES):
            raise ValueError(f"{len(found)} bytes of compressed pixels for {shape[0]} x {shape[1]}")
        size = (*shape, 1) if is_rle else codestreams.frame_shape(found)
    if size != (*shape, 1):
        raise ValueError(f"{name}: the compressed pixels are {size}, not {(*shape, 1)}")
    return found


def _frame(pixels: bytes, number: int, n_frames: int) -> bytes:
    _, *parts = codestreams.fragments(pixels)
    if n_frames == 1:
        return b"".join(parts)
    return bytes(parts[number]) if len(parts) == n_frames else get_frame(pixels, number, number_of_frames=n_frames)


def words(dataset: pydicom.Dataset, compressed: bytes, shape: tuple[int, int], name: str) -> np.ndarray:
    """Return the raw 16-bit words, uint16 `shape`, of one compressed image with the header `dataset`.

    Raises ValueError if it is damaged, RuntimeError naming a package that is missing.
    """
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "NumberOfFrames"):  # it is the only frame
        dataset.pop(keyword, None)
    dataset.PixelData = encapsulate([compressed])
    dataset["PixelData"].is_undefined_length = True
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == RLELossless:
        dataset.pixel_array_options(decoding_plugin="pydicom")  # pylibjpeg's panics
    with tags.reading(name, UNDECODED):
        if is_decodable := get_decoder(syntax).is_available:
            found = dataset.pixel_array
    if not is_decodable:
        raise RuntimeError(f"{name}: {syntax.name} needs more packages: pip install 'ich_kaggle[codecs]'")
    if found.shape != shape or found.itemsize != 2:
        raise ValueError(f"{name}: the compressed pixels are {found.dtype} {found.shape}")
    return np.ascontiguousarray(found).view(np.uint16)
