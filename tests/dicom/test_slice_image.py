import cv2
import numpy as np
import pydicom
import pytest
from dicom_files import NOISE, content, ct, head
from pydicom.pixels import apply_modality_lut

from ich_kaggle.common import paths, windows, zip_reader
from ich_kaggle.dicom import head_crop, pixels, slice_image, tags

HEAD = (head() + 1024).astype(np.uint16)


def reference(dataset: pydicom.Dataset, size: int) -> np.ndarray:
    """Return the windows in float64, then the resize, from pydicom's HU."""
    hu = apply_modality_lut(dataset.pixel_array, dataset).astype(float)
    gray = [255 * np.clip((hu - w.center) / w.width + 0.5, 0, 1) for w in windows.CACHED]
    image = np.stack(gray, axis=-1)
    if len(image) == size:
        return image
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if len(image) > size else cv2.INTER_LINEAR)


@pytest.mark.parametrize("size", [96, 64, 48, 33, 128, 200])
def test_every_pixel_is_within_1_of_a_float64_reference(size):
    noise = np.random.default_rng(1).normal(0, 30, HEAD.shape).astype(int)
    dataset = ct((HEAD + noise).clip(0).astype(np.uint16))
    image = slice_image.picture(content(dataset), "one.dcm", size).image
    assert image.dtype == np.uint8 and image.shape == (size, size, 3)
    assert np.abs(image - np.rint(reference(dataset, size))).max() <= (0 if size == 96 else 1)


def test_the_one_look_up_is_windowing_of_hu():
    dataset = ct()
    code = pixels.encoding(dataset, "one.dcm")
    assert np.array_equal(
        slice_image.windowed(NOISE, code), windows.apply(pixels.hu_table(code)[NOISE], windows.CACHED)
    )


@pytest.mark.parametrize("rows", [1, slice_image.STRIP - 1, slice_image.STRIP, 3 * slice_image.STRIP + 5])
def test_strips_leave_no_seams(rows):
    words = np.random.default_rng(rows).integers(0, 1 << 16, (rows, 33)).astype(np.uint16)
    code = pixels.Encoding(16, True, 1.0, -1024.0)
    assert np.array_equal(
        slice_image.windowed(words, code), windows.apply(pixels.hu_table(code)[words], windows.CACHED)
    )


def test_big_endian_words_are_looked_up_by_value():
    code = pixels.encoding(ct(), "one.dcm")
    assert np.array_equal(slice_image.windowed(NOISE.astype(">u2"), code), slice_image.windowed(NOISE, code))


def test_a_slice_that_is_not_square_is_padded_with_black_first():
    image = slice_image.resize(np.full((30, 60, 3), 200, np.uint8), 60)
    assert image.shape == (60, 60, 3)
    assert (image[15:45] == 200).all() and not image[:15].any() and not image[45:].any()


def test_a_box_shows_that_part_of_the_slice_at_full_size():
    box = head_crop.Box(18, 18, 60, 60)
    made = slice_image.picture(content(ct(HEAD)), "one.dcm", 60, box)
    assert made.box == box
    assert np.array_equal(made.image, slice_image.picture(content(ct(HEAD)), "one.dcm", 96).image[18:78, 18:78])


@pytest.mark.parametrize(
    "words, defect",
    [
        (HEAD, ""),
        (np.full((8, 8), 1064, np.uint16), "constant: every pixel has one value"),
        (np.where(NOISE > 1 << 15, 10, 20).astype(np.uint16), "blank: the brain window spans 0 of 255 gray levels"),
        (np.where(NOISE > 1 << 15, 1024, 1042).astype(np.uint16), "blank: the brain window spans 57 of 255"),
        (np.where(NOISE > 1 << 15, 1024, 1044).astype(np.uint16), ""),
    ],
)
def test_blank_and_constant_slices_are_told_by_their_pixels(words, defect):
    assert slice_image.picture(content(ct(words)), "one.dcm", 64).defect.startswith(defect)
    assert bool(slice_image.picture(content(ct(words)), "one.dcm", 64).defect) == bool(defect)


def test_the_box_of_a_study_is_that_of_all_its_slices(tmp_path):
    data, members = paths.Data(tmp_path), []
    for i, center in enumerate([(40, 40), (50, 56)]):
        stored = content(ct((head(radius=20, center=center) + 1024).astype(np.uint16)))
        (tmp_path / f"{i}.dcm").write_bytes(stored)
        members.append((zip_reader.Member(f"{i}.dcm", len(stored)), None))
    box = slice_image.study_box(data, members, spacing=2.0)
    # discs of radius 20: rows 21 ... 69 and columns 21 ... 75 together, 2 px of margin, square about the middle
    assert box == (16, 19, 59, 59) and round(head_crop.MARGIN / 2) == 2


def test_a_sheet_shows_each_channel_in_a_row_of_its_own():
    images = [np.full((4, 4, 3), (k, 10 + k, 20 + k), np.uint8) for k in range(3)]
    sheet = slice_image.sheet(images, columns=2)
    assert sheet.shape == (2 * 3 * 4, 2 * 4, 3)
    assert sheet[::4, ::4, 0].tolist() == [[0, 1], [10, 11], [20, 21], [2, 0], [12, 0], [22, 0]]


def test_an_outline_is_drawn_where_the_box_is():
    image = slice_image.outlined(content(ct(HEAD)), "one.dcm", 48, head_crop.Box(10, 20, 60, 60))
    assert (image[5, 10:41] == 255).all() and (image[5:36, 10] == 255).all()


def test_every_real_pixel_is_within_1_of_a_float64_reference(real_data):
    data = paths.find_data(real_data)
    members = [member for split in paths.SPLITS for member in data.members(split)][::4]
    for size in (512, 256):
        for member in members:
            stored = data.read(member)
            dataset = tags.parse(stored, member.path)
            image = slice_image.picture(stored, member.path, size).image
            assert np.abs(image - reference(dataset, size)).max() <= 1, member.path
