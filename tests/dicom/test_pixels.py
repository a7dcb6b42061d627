import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import NOISE, compressed, content, ct, lossless_jpeg, write
from pydicom.pixels import apply_modality_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from ich_kaggle.common import paths
from ich_kaggle.dicom import geometry, pixels, tags

UNCOMPRESSED = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]
ENCODINGS = [
    dict(BitsStored=16, HighBit=15, PixelRepresentation=1, RescaleIntercept=-1024),
    dict(BitsStored=16, HighBit=15, PixelRepresentation=1, RescaleIntercept=0),
    dict(BitsStored=16, HighBit=15, PixelRepresentation=0, RescaleIntercept=-32768),
    dict(BitsStored=12, HighBit=11, PixelRepresentation=0, RescaleIntercept=-1024),
    dict(BitsStored=12, HighBit=11, PixelRepresentation=1, RescaleIntercept=0),
    dict(BitsStored=14, HighBit=13, PixelRepresentation=1, RescaleIntercept=-100, RescaleSlope="0.25"),
    dict(BitsStored=13, HighBit=12, PixelRepresentation=0, RescaleIntercept=3071, RescaleSlope="-1"),
]


def hu_of(dataset, name: str = "one.dcm") -> np.ndarray:
    words, code = pixels.read_words(content(dataset), name)
    return pixels.hu_table(code)[words]


def peer(path_or_dataset) -> np.ndarray:
    """Return HU by pydicom alone, what lies at or below the padding limit turned to air."""
    dataset = pydicom.dcmread(path_or_dataset) if isinstance(path_or_dataset, Path) else path_or_dataset
    hu = apply_modality_lut(dataset.pixel_array, dataset)
    return np.where(hu <= pixels.PADDING_BELOW, pixels.AIR, hu)


def fits(code: dict, words: np.ndarray = NOISE) -> np.ndarray:
    """Return words that hold no bits above BitsStored, sign extended, as a correct writer stores them."""
    shift = 16 - code["BitsStored"]
    kind = np.int16 if code["PixelRepresentation"] else np.uint16
    return ((words << shift).view(kind) >> shift).view(np.uint16)


def test_a_path_may_be_text(tmp_path):
    path = write(tmp_path / "one.dcm", ct(NOISE))
    for given in (path, str(path)):
        assert np.array_equal(pixels.read_hu(given), hu_of(ct(NOISE)))


@pytest.mark.parametrize("code", ENCODINGS)
@pytest.mark.parametrize("syntax", UNCOMPRESSED)
def test_hu_equals_pydicoms_modality_lut_in_every_uncompressed_syntax(code, syntax, tmp_path):
    path = write(tmp_path / "one.dcm", ct(fits(code), syntax, **code))
    hu = pixels.read_hu(path)
    assert np.array_equal(hu, peer(path))
    assert hu.dtype == (np.float32 if code.get("RescaleSlope") == "0.25" or hu.max() > 32767 else np.int16)


def test_bits_above_bits_stored_are_ignored():
    code = ENCODINGS[3]
    dirty = NOISE | 0xF000
    assert np.array_equal(hu_of(ct(dirty, **code)), (NOISE & 0x0FFF).astype(int) - 1024)


def test_a_negative_12_bit_value_is_sign_extended():
    words = np.array([[0x0FFF, 0x0800, 0x07FF]], np.uint16)  # -1, -2048, 2047
    hu = hu_of(ct(words, BitsStored=12, HighBit=11, RescaleIntercept=100))
    assert hu.tolist() == [[99, -1948, 2147]]


def test_the_wrong_intercept_of_12_bit_unsigned_slices_is_repaired():
    # -1000 (air), 0 (water) and 70 HU (blood), shifted by 1000 and wrapped at 4096
    hu = np.array([-1000, 0, 70, 3095])
    words = ((hu + 1000 - 1000) % 4096).astype(np.uint16)[None]
    for intercept in (0, 1):
        code = dict(BitsStored=12, HighBit=11, PixelRepresentation=0, RescaleIntercept=intercept)
        assert hu_of(ct(words, **code)).tolist() == [hu.tolist()]


def test_minus_2000_padding_becomes_air_and_minus_1999_stays():
    words = np.array([[-2000, -977, -975, 24]], np.int16).view(np.uint16)
    assert hu_of(ct(words)).tolist() == [[pixels.AIR, pixels.AIR, -1999, -1000]]


@pytest.mark.parametrize("value", [-2000, 63536])
def test_pixel_padding_becomes_air_however_its_sign_is_written(value):
    words = np.array([[-2000, 1064]], np.int16).view(np.uint16)
    dataset = ct(words)
    dataset.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
    dataset.RescaleIntercept = 0
    assert hu_of(dataset).tolist() == [[pixels.AIR, 1064]]


def test_a_range_of_padding_becomes_air_from_end_to_end():
    words = np.arange(8, dtype=np.uint16)[None]
    dataset = ct(words, RescaleIntercept=-1003, PixelPaddingValue=2, PixelPaddingRangeLimit=4)
    assert hu_of(dataset).tolist() == [[-1003, -1002, pixels.AIR, pixels.AIR, pixels.AIR, -998, -997, -996]]


@pytest.mark.parametrize("tags", [dict(PixelPaddingValue=0), dict(PixelPaddingValue=0, PixelPaddingRangeLimit=100)])
def test_a_padding_that_is_tissue_is_none_for_air_is_not_0_hu(tags):
    words = np.array([[-1000, 0, 40]], np.int16).view(np.uint16)
    assert hu_of(ct(words, RescaleIntercept=0, **tags)).tolist() == [[-1000, 0, 40]]


def test_a_negative_value_whose_sign_the_header_denies_is_negative():
    words = np.array([[-1024, -1, 0, 40]]).astype(np.uint16)
    code = pixels.Encoding(16, False, 1.0, 0.0)
    assert pixels.hu_table(code)[words].tolist() == [[-1024, -1, 0, 40]]
    table = pixels.hu_table(code._replace(intercept=-1024.0))  # of 32768, a usual padding, and of -1
    assert table[[32768, 65535, 0, 1064, 31743]].tolist() == [pixels.AIR, -1025, -1024, 40, 30719]
    shifted = pixels.hu_table(code._replace(intercept=-32768.0))
    assert shifted[[31744, 32808, 65535]].tolist() == [-1024, 40, 32767]


def test_more_rows_or_columns_than_the_header_says_are_warned_of():
    for wrong in (dict(Rows=NOISE.shape[0] - 1), dict(Columns=NOISE.shape[1] - 1)):
        with pytest.warns(UserWarning, match=pixels.LONGER):
            pixels.read_words(content(ct(**wrong)), "one.dcm")


def test_of_two_padding_values_the_first_is_meant():
    dataset = ct(np.array([[0, 7, 1064]], np.uint16))
    dataset.add_new("PixelPaddingValue", "SS", [7, -2000])
    assert hu_of(dataset).tolist() == [[-1024, pixels.AIR, 40]]


def joined(said: str, stored: str, after: bytes = b"") -> bytes:
    """Return a file whose meta information is that of the transfer syntax `said`, its data set as of `stored`."""
    parts = []
    for syntax in (said, stored):
        whole = content(ct(NOISE, syntax))
        start = 144 + int.from_bytes(whole[140:144], "little")
        parts.append((whole[:start], whole[start:]))
    return parts[0][0] + parts[1][1] + after


@pytest.mark.parametrize("after", [b"", bytes(72)])
@pytest.mark.parametrize(
    "said, stored",
    [
        (ExplicitVRLittleEndian, ImplicitVRLittleEndian),
        (ImplicitVRLittleEndian, ExplicitVRLittleEndian),
        (ExplicitVRBigEndian, ExplicitVRLittleEndian),
        (ExplicitVRBigEndian, ImplicitVRLittleEndian),
        (ExplicitVRLittleEndian, ExplicitVRBigEndian),
    ],
)
def test_the_encoding_that_is_stored_is_read_whatever_is_said(said, stored, after, tmp_path):
    (tmp_path / "one.dcm").write_bytes(whole := joined(said, stored, after))
    assert np.array_equal(pixels.read_slice(whole, "one.dcm")[1], NOISE)
    head, start = pixels.read_head(paths.Data(tmp_path), paths.Member("one.dcm", len(whole)))
    plain = pixels.Plain(start, *NOISE.shape, pixels.encoding(head, "one.dcm"))
    assert np.array_equal(pixels.read_words(whole, "one.dcm", plain)[0], NOISE)


@pytest.mark.parametrize("tags", [dict(NumberOfFrames=0), dict(NumberOfFrames=1)])
@pytest.mark.parametrize("said", ["HU", "Hounsfield", "HOUNSFIELD UNITS", "hu ", "US", "unspecified"])
def test_what_others_write_for_one_frame_in_hu_is_read(tags, said):
    assert np.array_equal(hu_of(ct(RescaleType=said, **tags)), hu_of(ct()))


def test_monochrome1_has_the_same_hu_for_only_a_display_turns_it_round():
    dataset = ct(fits(ENCODINGS[3]), **ENCODINGS[3], PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(hu_of(dataset), peer(dataset))
    assert np.array_equal(hu_of(dataset), hu_of(ct(fits(ENCODINGS[3]), **ENCODINGS[3])))


def test_an_inverted_slice_comes_right_through_its_negative_slope():
    hu = np.array([[-1000, 0, 70, 1000]])
    dataset = ct((3000 - hu).astype(np.uint16), RescaleSlope=-1, RescaleIntercept=3000)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    assert hu_of(dataset).tolist() == hu.tolist()


def test_without_a_rescale_stored_values_are_hu_only_where_the_header_says_so():
    dataset = ct(RescaleIntercept=None, RescaleSlope=None, RescaleType="HU")
    assert np.array_equal(hu_of(dataset), np.where(NOISE.view(np.int16) <= -2000, pixels.AIR, NOISE.view(np.int16)))
    with pytest.raises(
        ValueError, match="one.dcm: no RescaleSlope in the header, so pixel values cannot be converted to HU"
    ):
        hu_of(ct(RescaleIntercept=None, RescaleSlope=None))


@pytest.mark.parametrize(
    "tags, message",
    [
        (dict(RescaleIntercept=None), "no RescaleIntercept"),
        (dict(RescaleSlope=0), "RescaleSlope is 0"),
        (dict(RescaleType="OD"), "RescaleType is OD, not HU or US"),
        (dict(Modality="MR"), "Modality is MR, not CT"),
        (dict(Modality="SR", PixelData=None), "Modality is SR, not CT"),
        (dict(PixelData=None), "no PixelData"),
        (dict(NumberOfFrames=3), "NumberOfFrames is 3, not 1"),
        (dict(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0), "SamplesPerPixel is 3"),
        (dict(BitsAllocated=8), "BitsAllocated is 8, not 16"),
        (dict(PhotometricInterpretation="PALETTE COLOR"), "PhotometricInterpretation is PALETTE COLOR"),
        (dict(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "ImageType says LOCALIZER"),
        (dict(HighBit=14), "BitsStored 16 with HighBit 14"),
        (dict(BitsStored=None), "no BitsStored"),
        (dict(Rows=25), "truncated: 1920 bytes of pixels, 2000 expected"),
        (dict(Rows=0), "0 rows and 40 columns"),
    ],
)
def test_what_is_not_one_ct_slice_is_refused_with_the_reason(tags, message):
    with pytest.raises(ValueError, match=f"one.dcm: .*{message}"):
        hu_of(ct(**tags))


@pytest.mark.parametrize("syntax", UNCOMPRESSED[:3])
def test_plainly_stored_pixels_are_mapped_without_a_copy(syntax):
    stored = content(ct(NOISE, syntax))
    words = pixels.read_slice(stored, "one.dcm")[1]
    assert np.shares_memory(words, np.frombuffer(stored, np.uint8))


@pytest.mark.parametrize("syntax", UNCOMPRESSED)
def test_what_the_scan_tells_maps_the_pixels_as_the_header_does(syntax, tmp_path):
    path = write(tmp_path / "one.dcm", ct(NOISE, syntax, PixelPaddingValue=5))
    found, start = pixels.read_head(paths.Data(tmp_path), paths.Member("one.dcm", path.stat().st_size))
    assert bool(start) == (syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian))
    plain = pixels.Plain(start, *NOISE.shape, pixels.encoding(found, "one.dcm"))
    words, code = pixels.read_words(path.read_bytes(), "one.dcm", plain)
    expected, encoding = pixels.read_words(path.read_bytes(), "one.dcm")
    assert np.array_equal(words, expected) and code == encoding == plain.code


@pytest.mark.parametrize("cut", [0, 100, 131, 200, 600, 1500])
@pytest.mark.parametrize("syntax", UNCOMPRESSED)
def test_a_file_cut_anywhere_is_refused_with_its_name(cut, syntax, tmp_path):
    whole = content(ct(NOISE, syntax))
    (tmp_path / "one.dcm").write_bytes(whole[:cut])
    member = paths.Member("one.dcm", cut)
    with pytest.raises(ValueError, match="one.dcm: "):
        pixels.read_head(paths.Data(tmp_path), member)
    with pytest.raises(ValueError, match="one.dcm: "):
        pixels.read_slice(whole[:cut], "one.dcm")


def test_a_header_longer_than_the_first_read_is_still_read(tmp_path):
    dataset = ct(PatientComments="x" * pixels.HEAD_BYTES)
    path = write(tmp_path / "one.dcm", dataset)
    head, _ = pixels.read_head(paths.Data(tmp_path), paths.Member("one.dcm", path.stat().st_size))
    assert geometry.read_header(head, "one.dcm").patient_id == "ID_0a"


def test_rle_needs_no_other_package():
    dataset = ct(NOISE)
    dataset.compress(RLELossless)
    assert np.array_equal(hu_of(dataset), peer(ct(NOISE)))


def test_jpeg_without_its_decoders_names_the_extra(monkeypatch):
    from pydicom.pixels.decoders import JPEGLosslessSV1Decoder

    monkeypatch.setattr(JPEGLosslessSV1Decoder, "_available", {})
    monkeypatch.setattr(JPEGLosslessSV1Decoder, "_unavailable", {"gdcm": ("gdcm>=3",)})
    dataset = compressed(NOISE, JPEGLosslessSV1, lossless_jpeg(NOISE))
    with pytest.raises(RuntimeError, match=r"one.dcm: JPEG Lossless.* needs more packages: pip install .*codecs"):
        hu_of(dataset)


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1])
@pytest.mark.parametrize("code", ENCODINGS[:4])
def test_lossless_jpeg_is_decoded_through_the_codecs(syntax, code):
    pytest.importorskip("libjpeg", reason="pylibjpeg-libjpeg, from the extra codecs, is missing")
    words = fits(code)
    assert np.array_equal(hu_of(compressed(words, syntax, lossless_jpeg(words), **code)), peer(ct(words, **code)))


def test_jpeg_2000_is_decoded_through_the_codecs():
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg, from the extra codecs, is missing")
    dataset = ct(np.pad(NOISE, 20))
    dataset.compress(JPEG2000Lossless)
    assert np.array_equal(hu_of(dataset), peer(ct(np.pad(NOISE, 20))))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLosslessSV1])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_compressed_file_cut_in_its_pixels_is_refused(syntax, share):
    dataset = compressed(NOISE, syntax, lossless_jpeg(NOISE))
    if syntax == RLELossless:
        dataset = ct(NOISE)
        dataset.compress(RLELossless)
    whole = content(dataset)
    start = whole.index(b"\xe0\x7f\x10\0")
    with pytest.raises(ValueError, match="one.dcm: "):
        pixels.read_slice(whole[: start + int(share * (len(whole) - start))], "one.dcm")


def rle() -> bytes:
    dataset = ct(NOISE)
    dataset.compress(RLELossless)
    return content(dataset)


def test_compressed_pixels_without_their_end_are_read_and_said_to_be_cut():
    whole, kinds = rle(), []
    with tags.warned(kinds):
        assert np.array_equal(pixels.read_slice(whole[:-8], "one.dcm")[1], NOISE)
    assert tags.UNENDED in kinds
    with pytest.raises(ValueError, match="one.dcm: .*truncated"):
        pixels.read_slice(whole[:-20], "one.dcm")


def test_compressed_pixels_of_explicit_length_are_read():
    whole = rle()
    start = whole.index(b"\xe0\x7f\x10\0") + 8
    n = (len(whole) - start - 4).to_bytes(4, "little")
    assert np.array_equal(pixels.read_slice(whole[:start] + n + whole[start + 4 :], "one.dcm")[1], NOISE)


def test_broken_rle_is_a_defect_of_the_file():
    dataset = ct(NOISE)
    dataset.compress(RLELossless)
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0)
    dataset.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) // 4 * 2]])
    with pytest.raises(ValueError, match="one.dcm: the pixels can't be decoded"):
        hu_of(dataset)


def test_position_is_measured_along_the_slice_normal_and_tilt_from_the_z_axis():
    tilt = np.deg2rad(20)
    dataset = ct(
        ImageOrientationPatient=[1, 0, 0, 0, round(np.cos(tilt), 6), round(-np.sin(tilt), 6)],
        ImagePositionPatient=[5, 10, 100],
    )
    found = geometry.read_header(dataset, "one.dcm")
    # the normal is (0, sin 20, cos 20): 10 * 0.34202 + 100 * 0.93969
    assert found.position == pytest.approx(97.389, abs=0.001)
    assert found.tilt == pytest.approx(20, abs=0.001)


def test_slices_at_one_place_tie_though_their_headers_round_otherwise():
    positions = ([0, 0, "59.443224"], [0, 0, "59.4432236"])
    first, second = (geometry.read_header(ct(ImagePositionPatient=p), "one.dcm").position for p in positions)
    assert first == second == 59.443


def test_spacing_and_shape_are_kept_row_first():
    found = geometry.read_header(ct(PixelSpacing=["0.4", "0.6"]), "one.dcm")
    assert (found.rows, found.columns, found.row_spacing, found.column_spacing) == (24, 40, 0.4, 0.6)


@pytest.mark.parametrize(
    "tags, message",
    [
        (dict(PatientID=None), "no PatientID"),
        (dict(ImagePositionPatient=None), "no ImagePositionPatient"),
        (dict(ImagePositionPatient=[1, 2]), "ImagePositionPatient is .*, not 3 numbers"),
        (dict(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "ImageOrientationPatient .* is not two directions"),
        (dict(PixelSpacing=None), "no PixelSpacing"),
    ],
)
def test_a_header_that_cannot_be_sorted_is_refused_with_its_tag(tags, message):
    with pytest.raises(ValueError, match=f"one.dcm: {message}"):
        geometry.read_header(ct(**tags), "one.dcm")


def test_every_real_slice_has_the_hu_of_pydicoms_modality_lut(real_data):
    data = paths.find_data(real_data)
    members = [member for split in paths.SPLITS for member in data.members(split)]
    for member in members:
        stored = data.read(member)
        words, code = pixels.read_words(stored, member.path)
        hu = pixels.hu_table(code)[words]
        assert np.array_equal(hu, peer(tags.parse(stored, member.path))), member.path


def test_the_cts_that_pydicom_ships_have_the_hu_of_its_modality_lut():
    folder, n = Path(pydicom.__file__).parent / "data" / "test_files", 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            dataset = pydicom.dcmread(path)
            if dataset.Modality != "CT" or "LOCALIZER" in dataset.ImageType:
                continue
        except (AttributeError, pydicom.errors.InvalidDicomError):  # no image, or not DICOM
            continue
        padding = dataset.get("PixelPaddingValue")
        found, expected = pixels.read_hu(path), apply_modality_lut(dataset.pixel_array, dataset)
        kept = (dataset.pixel_array != padding) & (expected > pixels.PADDING_BELOW)
        assert np.array_equal(found[kept], expected[kept]), path
        n += 1
    assert n >= 10


def odd_files() -> list:
    folder = os.environ.get("ICH_ODD_DICOM")
    files = sorted(Path(folder).glob("*.dcm")) if folder else []
    return files or [pytest.param(None, marks=pytest.mark.skip(reason="ICH_ODD_DICOM names no folder of DICOM files"))]


@pytest.mark.parametrize("path", odd_files(), ids=lambda path: path.stem if path else "none")
def test_one_slice_in_many_syntaxes_has_the_same_hu(path):
    if pydicom.dcmread(path).file_meta.TransferSyntaxUID not in [*UNCOMPRESSED, RLELossless]:
        pytest.importorskip("pylibjpeg", reason="pylibjpeg, from the extra codecs, is missing")
    hu = pixels.read_hu(path)
    dataset = pydicom.dcmread(path)
    expected = apply_modality_lut(dataset.pixel_array, dataset)
    padding = (dataset.pixel_array == dataset.PixelPaddingValue) | (expected <= pixels.PADDING_BELOW)
    assert np.array_equal(hu, np.where(padding, pixels.AIR, expected))
    first = pixels.read_hu(sorted(path.parent.glob("LittleEndianExplicit.dcm"))[0])
    assert np.array_equal(hu, first)
