"""Small series of CT slices, written as a test needs them."""

from pathlib import Path

import dicom_files

from ich_kaggle.scans import series_choice, slices

HEAD = dicom_files.head((32, 32), 10, (16, 16))
CORONAL = [1, 0, 0, 0, 0, -1]
MR, SR, LOCALIZER = dict(Modality="MR"), dict(Modality="SR"), dict(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])


def ct(number: int, series: str = "2.25.3", gap: float = 5.0, **tags):
    """Return the slice `number` of a series `gap` mm apart; `tags` are as in `dicom_files.ct`."""
    where = {"ImagePositionPatient": [-125, -125, number * gap], "SOPInstanceUID": f"{series}.{number}"}
    return dicom_files.ct(HEAD, **({"SeriesInstanceUID": series} | where | tags))


def write_series(folder: Path, n: int = 12, series: str = "2.25.3", gap: float = 5.0, **tags) -> None:
    for number in range(n):
        dicom_files.write(folder / f"{series}-{number:03}", ct(number, series, gap, **tags))


def of_pile(path: Path) -> list[series_choice.Series]:
    (series,) = series_choice.studies(slices.read(path)).values()
    return series


def chosen(path: Path, step: float = 5.0) -> tuple[str, dict[str, str]]:
    """Return the series that is read, and why each of the others is not."""
    series = of_pile(path)
    first, *rest = series_choice.rank(series, step)
    for one in rest:
        one.reason = series_choice.compare(first, one, step)
    return first.series, {one.series: one.reason for one in series if one is not first}
