"""The frames of an Enhanced CT file, each as the header of one slice (PS3.3 A.38; functional groups: C.7.6.16)."""

import re

import pydicom
from pydicom.dataset import FileDataset

from ich_kaggle.dicom import tags

GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
MOST_BYTES = 1 << 31  # of a file: 2,000 frames of the usual size
MOST_READS = 2_000_000  # of values and their tags in its header
MOST_FRAMES = 4096


def is_enhanced(head: bytes) -> bool:
    """Return whether a SOP class in `head` is Enhanced CT or Legacy Converted Enhanced CT, PS3.4 B.5."""
    return re.search(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.2\.[12](?![.\d])", head) is not None


def headers(dataset: pydicom.Dataset, name: str) -> list[FileDataset]:
    """Return a header for each frame of `dataset`, as that of a single slice. Raises ValueError naming a damaged file.

    Pixels are left out: `pixels.stored_words` takes them from `dataset`.
    """
    with tags.reading(name, "its functional groups can't be read"):
        shared, per_frame = (dataset.get(keyword) or [] for keyword in GROUPS)
        n = int(dataset.get("NumberOfFrames") or 1)
        if not n == len(per_frame) <= MOST_FRAMES:
            raise ValueError(f"{n} frames, of which {len(per_frame)} are described")
        common = _common(dataset)
        for item in shared:
            _add(common, item)
        return [_header(common, item, dataset.file_meta) for item in per_frame]


def _common(dataset: pydicom.Dataset) -> pydicom.Dataset:
    found = pydicom.Dataset()
    found.set_original_encoding(*dataset.original_encoding, dataset.original_character_set)
    found.update({tag: dataset.get_item(tag) for tag in sorted(dataset.keys()) if tag.group < 0x5000})
    agents = dataset.get("ContrastBolusAgentSequence") or []
    found.ContrastBolusAgent = " ".join(str(one.get("CodeMeaning", "")) for one in agents)
    for keyword in (*GROUPS, "NumberOfFrames"):
        found.pop(keyword, None)
    return found


def _header(common: pydicom.Dataset, item: pydicom.Dataset, meta: pydicom.Dataset) -> FileDataset:
    found = FileDataset(None, {tag: common.get_item(tag) for tag in common.keys()}, file_meta=meta)  # noqa: SIM118
    found.set_original_encoding(*common.original_encoding, common.original_character_set)
    _add(found, item)
    if frame_type := found.get("FrameType"):
        found.ImageType = frame_type
    if found.get("ContrastBolusAgentAdministered") == "NO":
        found.ContrastBolusAgent = ""
    return found


def _add(header: pydicom.Dataset, item: pydicom.Dataset) -> None:
    """Add the elements of the functional groups in `item`; each group is a sequence of one item, or of some."""
    for group in item:
        for part in group.value if group.VR == "SQ" else ():
            for element in part:
                header[element.tag] = element
                if element.keyword == "AnatomicRegionSequence" and element.value:
                    header.BodyPartExamined = str(element.value[0].get("CodeMeaning", ""))
