"""Runs: a folder with run.json (the settings) and a folder per fold; which folds are finished, and their hashes."""

import shlex
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ich_kaggle import __version__
from ich_kaggle.common import paths, provenance, storage

BEGUN = ("model.pt", "predict.json", "state*.pt")  # files of a fold that holds finished or resumable work


@dataclass(frozen=True)
class Run:
    """A folder in work/runs: the settings that its folds share, and a folder per fold."""

    work_dir: Path
    name: str

    @property
    def folder(self) -> Path:
        return paths.run(self.work_dir, self.name)

    @property
    def path(self) -> Path:
        """The file of the settings."""
        return self.folder / "run.json"

    @property
    def record(self) -> dict:
        """All that run.json holds: the settings, the views of its predictions, versions and commit."""
        return storage.read_json(self.path)

    @property
    def settings(self) -> dict:
        """The settings that all folds share. Raises ValueError if run.json holds none."""
        if not isinstance(found := self.record["settings"], dict):
            raise ValueError(f"{self.path}: damaged, {found!r} where settings should be: {storage.remedy(self.path)}")
        return found

    @property
    def is_second_level(self) -> bool:
        return "on" in self.settings

    @property
    def possible_leak(self) -> str:
        """A line if initial weights of the run, or of one that it reads, may have seen held-out patients, or ""."""
        on = [Run(self.work_dir, name) for name in self.settings.get("on", [])]
        lines = [self.record.get("possible_leak", ""), *(run.possible_leak for run in on if run.path.exists())]
        return next(filter(None, lines), "")

    def fold(self, k: int) -> Path:
        return paths.fold(self.work_dir, self.name, k)

    @property
    def finished(self) -> list[int]:
        """The folds that have a model; of a second level those that are predicted: a smoothing has no model.

        Raises FileNotFoundError if folds exist, and the file of their settings does not.
        """
        if not self.begun:
            return []
        return self.predicted if self.is_second_level else self._folds_with("model.pt")

    @property
    def predicted(self) -> list[int]:
        """The folds whose predictions are complete."""
        return self._folds_with("predict.json")

    @property
    def begun(self) -> list[int]:
        """The folds that are finished, or that can be resumed."""
        return self._folds_with(*BEGUN)

    def _folds_with(self, *files: str) -> list[int]:
        folders = paths.folds_of(self.folder).items()
        return [k for k, folder in folders if any(next(folder.glob(file), None) for file in files)]

    def resume(self, k: int) -> str:
        """Return the command that trains fold `k` with the settings of the run."""
        command = "sequence" if self.path.exists() and self.is_second_level else "train"
        return f"python -m ich_kaggle.{command} --run {shlex.quote(self.name)} --fold {k}"

    def check(self, settings: dict, replaced: list[int] = ()) -> None:
        """Raise ValueError naming both values if folds of the run other than those `replaced` have other `settings`."""
        if set(self.begun) - set(replaced):
            every = " ".join(map(str, sorted({*self.begun, *replaced})))
            remedy = f"give another --run, or --overwrite --fold {every}"
            storage.same_settings(self.path, self.settings, settings, remedy)

    def write(self, settings: dict, **about) -> None:
        """Write run.json, with other facts `about` the run, or check `settings` against the one that exists.

        The views of the predictions outlive folds that were removed: the next predictions are made with them.
        """
        self.check(settings)
        known = self.record if self.path.exists() else {}
        if not self.begun:
            kept = {key: known[key] for key in ("views",) if key in known}
            about |= {"versions": versions(), "commit": provenance.git_commit()}
            storage.write_json(self.path, {"settings": settings, **kept, **about})
        elif known != {**known, **about}:  # the same weights at another path
            storage.write_json(self.path, {**known, **about})

    def remove(self, folds: list[int]) -> None:
        """Remove `folds`, with all that was made of them."""
        for k in folds:
            shutil.rmtree(self.fold(k), ignore_errors=True)


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on most."""
    import cv2

    found = {name: version(name) for name in ("torch", "timm", "numpy")}
    return {"ich_kaggle": __version__, **found, "opencv": cv2.__version__}  # OpenCV's package has several names


def written(folder: Path) -> dict[str, str]:
    """Return the hash of each file of predictions in the folder of a fold or an ensemble."""
    names = ("oof.parquet", "nested.parquet", "test.parquet", "embeddings.npy")
    return {name: storage.file_hash(folder / name) for name in names if (folder / name).exists()}


def hash_of(path: Path) -> str:
    """Return the hash of a file in the folder of a fold or an ensemble.

    Raises ValueError if it is not the one that `written` gave, which predict.json or weights.json holds.
    """
    found = storage.file_hash(path)
    for done in (path.with_name("predict.json"), path.with_name("weights.json")):
        known = storage.read_json(done).get("files", {}).get(path.name, found) if done.exists() else found
        if found != known:
            raise ValueError(f"{path}: damaged or changed, its hash is {found}, not {known}: {storage.remedy(path)}")
    return found
