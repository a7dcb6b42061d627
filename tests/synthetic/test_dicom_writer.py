import numpy as np
import pydicom
import pytest

from ich_kaggle.synthetic.dicom_writer import FORMATS, WRONG_INTERCEPT, allow_short_ids, geometry, header, store, write

HU = np.array([[-1000, -1, 0], [1, 40, 2047]], np.float32)


@pytest.mark.parametrize("form", FORMATS)
def test_raw_values_and_intercept_give_hu_back(form):
    raw = store(HU, form._replace(padding=None))
    assert (raw + np.int32(form.intercept) == HU).all()


def test_the_known_repair_gives_hu_back_where_the_intercept_is_wrong():
    raw = store(HU, WRONG_INTERCEPT).astype(np.int32)
    assert raw.max() > 3000
    raw += 1000
    raw[raw >= 4096] -= 4096
    assert (raw - 1000 == HU).all()


def test_padding_is_outside_the_circle_that_is_measured():
    form = next(form for form in FORMATS if form.padding == -2000)
    raw = store(np.zeros((9, 9), np.float32), form)
    assert (raw[0, 0], raw[0, 4], raw[4, 4]) == (-2000, 1024, 1024)


def test_a_written_slice_reads_back_and_has_the_same_bytes_again(tmp_path):
    allow_short_ids()
    dicom = header(FORMATS[0], "ID_0123abcd", "ID_0123456789", "ID_abcdef0123")
    geometry(dicom, HU.shape, 0.5, 0.1)
    data = store(HU, FORMATS[0]).tobytes()
    for name in ("a.dcm", "b.dcm"):
        write(tmp_path / name, dicom, "ID_000000000", (-1, -2, 3), data)
    found = pydicom.dcmread(tmp_path / "a.dcm")
    assert (found.pixel_array == store(HU, FORMATS[0])).all()
    assert list(found.ImagePositionPatient) == [-1, -2, 3]
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
