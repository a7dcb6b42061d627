"""Folds: the split of the patients, its balance, and the check for leaks."""

from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle.common import cli, parallel, paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.common.zip_reader import Member
from ich_kaggle.dicom import pixels, slice_table
from ich_kaggle.scoring import leak_check

BATCH = 64  # slices per task of a worker
SHOWN = 10  # printed pairs that look the same
SWAPS, PAIRS, TRIES = 200, 1000, 20  # at most; tried for each of them; without a gain, before the end
FINE = 1e-3  # a fold whose share of a label is this close to even, as a fraction, is not improved


def assign_folds(slices: pd.DataFrame, *, n_folds: int, seed: int | list[int]) -> pd.DataFrame:
    """Return the folds (patient_id, fold), one row per patient, balanced in every label and in the number of slices.

    Patients with the largest share of a rare label go first, each to the fold that has least of the patient's labels;
    then pairs of patients are swapped, as long as that helps the label that is farthest from even. Raises ValueError
    for fewer patients than folds.
    """
    counts = slices.assign(n_slices=1).groupby("patient_id")[["n_slices", *LABELS]].sum()
    if not 2 <= n_folds <= len(counts):
        raise ValueError(f"{n_folds} folds of {len(counts)} patients: choose 2 to {len(counts)}")
    share = counts.to_numpy(float) / np.maximum(counts.to_numpy(float).sum(axis=0), 1)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(share))
    order = order[np.argsort(-share[order].max(axis=1), kind="stable")]
    held = np.zeros((n_folds, share.shape[1]))
    fold = np.empty(len(share), int)
    for patient in order:
        # The fold where the sum of squared shares grows least.
        fold[patient] = k = (held @ share[patient]).argmin()
        held[k] += share[patient]
    _swap(fold, share * n_folds, held * n_folds - share.sum(axis=0), rng)
    return pd.DataFrame({"patient_id": counts.index, "fold": fold})


def _swap(fold: np.ndarray, share: np.ndarray, off: np.ndarray, rng: np.random.Generator) -> None:
    """Swap patients between the folds (n,), in place, until `off`, how far each fold is from even, is fine.

    `share` (n, columns) and `off` (folds, columns) are fractions of what a fold should hold.
    """
    failed = 0
    for _ in range(SWAPS):
        column = np.abs(off).max(axis=0).argmax()
        if failed == TRIES or np.abs(off[:, column]).max() < FINE:
            return
        rich, poor = off[:, column].argmax(), off[:, column].argmin()
        has_any = share[:, column] > 0
        one = rng.choice(np.flatnonzero((fold == rich) & has_any), PAIRS)
        other = rng.choice(np.flatnonzero(fold == poor), PAIRS)
        if len(alike := np.flatnonzero((fold == poor) & has_any)):
            other[::2] = rng.choice(alike, PAIRS // 2)  # a rare label needs patients with almost as much of it
        change = share[other] - share[one]
        cost = ((off[rich] + change) ** 2 + (off[poor] - change) ** 2).sum(axis=1)
        best = cost.argmin()
        if cost[best] >= (off[[rich, poor]] ** 2).sum():
            failed += 1
            continue
        failed = 0
        fold[one[best]], fold[other[best]] = poor, rich
        off[rich] += change[best]
        off[poor] -= change[best]


def adopt(path: Path, train: pd.DataFrame) -> pd.DataFrame:
    """Return the folds (patient_id, fold) of another CSV, numbered from 0; ids that are not in `train` are ignored.

    Raises ValueError for a patient in two folds or in none, and for a file without ids or folds.
    """
    given = tables.read_csv(path).rename(columns=lambda column: column.strip().lower())
    if "fold" not in given or len(given.columns) < 2:
        raise ValueError(
            f"{path}: the columns are {', '.join(given.columns)}: one must be fold, one must hold patient or slice ids"
        )
    if len(empty := np.flatnonzero(given.fold.str.strip() == "")):
        raise ValueError(f"{path}: row {empty[0] + 2} has no fold")
    of_patient = dict(zip(train.patient_id, train.patient_id, strict=True))
    patient_of = of_patient | dict(zip(train.slice_id, train.patient_id, strict=True))
    columns = [given[column].str.strip() for column in given if column != "fold"]
    # An id may be part of a file's name, or of a row of the competition's tables.
    inside = [column.where(column.isin(patient_of), column.str.extract(r"(ID_[0-9a-f]+)")[0]) for column in columns]
    patient = max((column.map(patient_of) for column in inside), key=lambda found: found.notna().sum())
    known = pd.DataFrame({"patient_id": patient, "fold": given.fold})[patient.notna()].drop_duplicates()
    if known.empty:
        raise ValueError(f"{path}: it has no id of a training patient or slice")
    if len(leaked := known[known.patient_id.duplicated()]):
        first = leaked.patient_id.iloc[0]
        where = ", ".join(sorted(known.fold[known.patient_id == first].astype(str)))
        raise ValueError(f"{path}: patient {first} is in folds {where} ({leaked.patient_id.nunique()} such patients)")
    if len(lost := sorted(set(train.patient_id) - set(known.patient_id))):
        raise ValueError(f"{path}: no fold for patient {lost[0]} ({len(lost)} such patients)")
    numbers = sorted(known.fold.unique(), key=lambda text: (len(text), text))
    if len(numbers) < 2:
        raise ValueError(f"{path}: all patients are in one fold")
    return known.assign(fold=known.fold.map(numbers.index)).sort_values("patient_id", ignore_index=True)


def describe(train: pd.DataFrame, fold: np.ndarray) -> str:
    by_fold = train.assign(fold=fold).groupby("fold")
    table = by_fold[list(LABELS)].mean().map("{:.2%}".format)
    table.insert(0, "slices", by_fold.size())
    table.insert(0, "patients", by_fold.patient_id.nunique())
    return table.to_string()


def ensure(project: Project) -> np.ndarray:
    """Return the fold of every slice, int (n,), -1 for test slices, made with the defaults if they do not exist."""
    if not (path := paths.folds(project.work_dir)).exists():
        made = {"folds": 5, "seed": 0} | tables.folds_settings(project.work_dir)  # of earlier folds
        if "from" in made:
            raise FileNotFoundError(
                f"{path} is missing: run {storage.MAKERS[path.name]} --from with the file that it was taken from"
            )
        make(project, n_folds=made["folds"], seed=made["seed"])
    return project.fold


def _fingerprints(data: paths.Data, first: int, members: list[Member]) -> tuple:
    found = []
    for member in members:
        dataset, words = pixels.read_slice(data.read(member), member.path)
        found.append(leak_check.fingerprint(words, pixels.hu_table(pixels.encoding(dataset, member.path))[words]))
    return (first, found), len(members), sum(member.size for member in members)


def fingerprints(project: Project, table: pd.DataFrame) -> pd.DataFrame:
    """Return the fingerprint of every slice in `table`, row by row, read from fingerprints.parquet if it is current."""
    path, settings = project.work_dir / "fingerprints.parquet", {"slices": tables.slices_hash(table)}
    if path.exists() and tables.settings_of(path) == settings:
        with storage.reading(path, f"remove it and run {storage.MAKERS['folds.csv']} --check"):
            return pd.read_parquet(path)
    data = slice_table.data_of(project)
    members = [place.member for place in slice_table.places(table)]
    tasks = ((data, i, members[i : i + BATCH]) for i in range(0, len(members), BATCH))
    found = dict(parallel.work(_fingerprints, tasks, len(table), "fingerprints", project.workers))
    prints = pd.DataFrame([one for first in sorted(found) for one in found[first]]).assign(slice_id=table.slice_id)
    tables.write_parquet(path, prints, settings)
    return prints


def check(table: pd.DataFrame, fold: np.ndarray, prints: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return a line per leak between folds or between train and test, and a line per pair that looks alike."""
    places = [f"{slice_id} ({leak_check.name(k)})" for slice_id, k in zip(table.slice_id, fold, strict=True)]
    found = []
    for what, keys in (("patient", table.patient_id), ("study", table.study_id)):
        for key, groups in leak_check.shared(keys.to_numpy(str), fold):
            found.append(f"{what} {key} is in {' and '.join(map(leak_check.name, groups))}")
    pixels = np.array([value.hex() for value in prints.pixels])
    for key, _ in leak_check.shared(pixels, fold):
        found.append("identical pixels: " + ", ".join(places[i] for i in np.flatnonzero(pixels == key)))
    alike = [
        f"{places[a]} looks like {places[b]}: {distance} of {leak_check.SIDE**2} bits differ"
        for a, b, distance in leak_check.near(prints.look.tolist(), fold)
        if pixels[a] != pixels[b]
    ]
    return found, alike


def run_check(project: Project) -> None:
    """Print the pairs that look alike. Raises ValueError naming the leaks between folds, or train and test."""
    fold, table, path = ensure(project), project.slices, paths.folds(project.work_dir)
    found, alike = check(table, fold, fingerprints(project, table))
    for line in alike[:SHOWN]:
        cli.say(line)
    if found:
        for line in found:
            cli.say(line)
        raise ValueError(f"{path}: {len(found)} leaks, the first: {found[0]}")
    cli.say(f"{path}: nothing shared between folds, or train and test; {len(alike)} pairs look alike")


def make(
    project: Project, *, n_folds: int, seed: int, repeats: int = 1, source: Path | None = None, overwrite: bool = False
) -> None:
    path, table = paths.folds(project.work_dir), slice_table.ensure(project)
    train = table[table.split == "train"]
    settings = {"folds": n_folds, "seed": seed, "slices": tables.slices_hash(table)}
    if source is not None:
        taken = adopt(source, train)
        settings |= {"folds": int(taken.fold.max()) + 1, "seed": None, "from": storage.file_hash(source)}
    if is_there := path.exists() and not overwrite:
        remedy = "give the same, or --overwrite, after which runs made with the old folds are refused"
        storage.same_settings(path, tables.folds_settings(project.work_dir), settings, remedy)
    else:
        taken = assign_folds(train, n_folds=n_folds, seed=seed) if source is None else taken
        tables.write_folds(project.work_dir, taken, settings)
    for i in range(1, repeats):
        with storage.writing(path.with_name(f"folds{i}.csv")) as temporary:
            assign_folds(train, n_folds=n_folds, seed=[seed, i]).to_csv(temporary, index=False)
    fold = project.fold[: len(train)]
    cli.say(f"{path}{cli.THERE if is_there else ''}\n{describe(train, fold)}")
