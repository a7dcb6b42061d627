"""An Enhanced CT file, made of slices (PS3.3 A.38)."""

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

SHARED = {
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
    "CTReconstructionSequence": ("ConvolutionKernel",),
}
OF_FRAME = {"PlanePositionSequence": ("ImagePositionPatient",), "CTImageFrameTypeSequence": ("FrameType",)}
CLASS = "1.2.840.10008.5.1.4.1.1.2.1"


def _groups(slice_: Dataset, groups: dict[str, tuple[str, ...]]) -> Dataset:
    item = Dataset()
    for group, keywords in groups.items():
        part = Dataset()
        for keyword in keywords:
            if keyword in slice_:
                setattr(part, keyword, slice_[keyword].value)
        setattr(item, group, Sequence([part]))
    return item


def enhanced(slices: list[Dataset], frame_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "VOLUME", "NONE")) -> Dataset:
    """Return the file whose frames are `slices`, uncompressed ones; the first one gives what they share."""
    found = slices[0]
    for one in slices:
        one.FrameType = list(frame_type)
    frames = [_groups(one, OF_FRAME) for one in slices]
    found.PixelData = b"".join(one.PixelData for one in slices)
    found.SharedFunctionalGroupsSequence = Sequence([_groups(found, SHARED)])
    found.PerFrameFunctionalGroupsSequence = Sequence(frames)
    for keyword in (keyword for groups in (SHARED, OF_FRAME) for part in groups.values() for keyword in part):
        if keyword in found:
            delattr(found, keyword)
    found.NumberOfFrames = len(slices)
    found.ImageType = list(frame_type)
    found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = CLASS
    return found
