"""CT slices in DICOM, made as a test needs them."""

import io
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

NOISE = np.random.default_rng(0).integers(0, 1 << 16, (24, 40)).astype(np.uint16)


def ct(words: np.ndarray = NOISE, syntax: str = ExplicitVRLittleEndian, **tags) -> Dataset:
    """Return a CT slice that stores the 16-bit `words` (h, w); `tags` replace those of its header, None removes one."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, "2.25.1"
    meta.TransferSyntaxUID = syntax
    syntax = meta.TransferSyntaxUID
    order = dict(is_implicit_VR=syntax.is_implicit_VR, is_little_endian=syntax.is_little_endian)
    dataset = FileDataset(None, Dataset(), file_meta=meta, preamble=bytes(128), **order)
    header = dict(
        SOPClassUID=CTImageStorage,
        SOPInstanceUID="2.25.1",
        Modality="CT",
        PatientID="ID_0a",
        StudyInstanceUID="2.25.2",
        SeriesInstanceUID="2.25.3",
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        ImagePositionPatient=[-125, -125, 40],
        PixelSpacing=[0.5, 0.5],
        Rows=words.shape[0],
        Columns=words.shape[1],
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        BitsAllocated=16,
        BitsStored=16,
        HighBit=15,
        PixelRepresentation=1,
        RescaleIntercept=-1024,
        RescaleSlope=1,
        PixelData=words.astype("<u2" if syntax.is_little_endian else ">u2").tobytes(),
    )
    for keyword, value in (header | tags).items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OW"
    return dataset


def content(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def write(path: Path, dataset: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(dataset))
    return path


def head(shape: tuple[int, int] = (96, 96), radius: float = 30, center: tuple[float, float] = (48, 48)) -> np.ndarray:
    """Return a round head of 40 HU in a skull of 1000 HU in air: int16 HU."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    distance = np.hypot(y - center[0], x - center[1])
    return np.select([distance < radius - 4, distance < radius], [40, 1000], -1000).astype(np.int16)


def lossless_jpeg(words: np.ndarray) -> bytes:
    """Return 16-bit `words` (h, w) as lossless JPEG, process 14, first predictor (ITU-T T.81, annex H)."""
    height, width = words.shape
    before = np.concatenate([np.r_[1 << 15, words[:-1, 0].astype(int)][:, None], words[:, :-1].astype(int)], axis=1)
    bits = []
    for difference in ((words.astype(int) - before + (1 << 15) - 1) % (1 << 16) - (1 << 15) + 1).ravel().tolist():
        size = abs(difference).bit_length()
        bits.append(f"{size:05b}")  # 17 categories, all of five bits
        if 0 < size < 16:
            bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    entropy = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = b"\xff\xc3\0\x0b\x10" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\1\1\x11\0"
    table = b"\xff\xc4" + (2 + 17 + 17).to_bytes(2, "big") + bytes([0, 0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))
    scan = b"\xff\xda\0\x08\1\1\0\1\0\0"
    return b"\xff\xd8" + frame + table + scan + entropy + b"\xff\xd9"


def compressed(words: np.ndarray, syntax: str, frame: bytes, **tags) -> Dataset:
    """Return a CT slice whose pixels are the one compressed `frame`."""
    dataset = ct(words, **tags)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    return dataset
