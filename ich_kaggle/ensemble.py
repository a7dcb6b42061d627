"""Blend runs by the competition's log loss over their out-of-fold predictions.

Reads:   work/runs/<run>/fold<k>/  oof.parquet, test.parquet  (predicted first where they are missing)
Writes:  work/ensemble/<name>/  weights.json, oof.parquet, test.parquet
Example: python -m ich_kaggle.ensemble --runs cpu resnet50
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from ich_kaggle import cli, folds, metric, paths, tables
from ich_kaggle.labels import ANY, LABELS, WEIGHTS


def fit_weights(target: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the weights, (n_runs,) on the simplex, of the mean of `probabilities` that has the least log loss.

    `target` is (n, 6), `probabilities` (n_runs, n, 6). The loss is convex in the weights: there is one minimum.
    """
    n_runs = len(probabilities)
    share = np.asarray(WEIGHTS) / sum(WEIGHTS) / len(target)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mean = np.clip(np.tensordot(weights, probabilities, 1), metric.EPS, 1 - metric.EPS)
        slope = share * (mean - target) / (mean * (1 - mean))
        return float((share * metric.losses(target, mean)).sum()), np.tensordot(probabilities, slope, 2)

    equal = np.full(n_runs, 1 / n_runs)
    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}
    found = minimize(loss, equal, jac=True, method="SLSQP", bounds=[(0, 1)] * n_runs, constraints=simplex)
    weights = np.clip(found.x, 0, None)
    return weights / weights.sum()


def blend(weights: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the mean of `probabilities` (n_runs, n, 6), `any` raised to the largest subtype: float64 (n, 6)."""
    mean = np.tensordot(weights, probabilities.astype(np.float64), 1)
    mean[:, ANY] = mean.max(axis=1)
    return mean


def nested(target: np.ndarray, probabilities: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return blended predictions (n, 6), each fold's with the weights fitted on the other folds."""
    out = np.empty(target.shape)
    for k in np.unique(fold):
        held_out = fold == k
        weights = fit_weights(target[~held_out], probabilities[:, ~held_out])
        out[held_out] = blend(weights, probabilities[:, held_out])
    return out


def constant(target: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the predictions (n, 6) of who knows but the prevalence of each label in the other folds."""
    out = np.empty(target.shape)
    for k in np.unique(fold):
        out[fold == k] = target[fold != k].mean(axis=0)
    return out


def read_oof(work_dir: Path, run: str, table: pd.DataFrame, fold: np.ndarray) -> np.ndarray:
    """Return the out-of-fold probabilities of all training slices in table order: float32 (n_train, 6).

    Raises FileNotFoundError naming a fold that has none.
    """
    out = np.empty((int((fold >= 0).sum()), len(LABELS)), np.float32)
    for k in np.unique(fold[fold >= 0]):
        path = paths.fold(work_dir, run, k) / "oof.parquet"
        ids = table.slice_id[fold == k].to_numpy()
        out[fold[fold >= 0] == k] = tables.read_predictions(path, ids, f"--run {run} --fold {k}")
    return out


def read_test(work_dir: Path, run: str, table: pd.DataFrame, fold: np.ndarray) -> np.ndarray:
    """Return the probabilities of all test slices, the mean over the folds' models: float32 (n_test, 6)."""
    ids = table.slice_id[table.split == "test"].to_numpy()
    per_fold = [
        tables.read_predictions(paths.fold(work_dir, run, k) / "test.parquet", ids, f"--run {run} --fold {k}")
        for k in np.unique(fold[fold >= 0])
    ]
    return np.mean(per_fold, axis=0)


def score(target: np.ndarray, probabilities: np.ndarray, fold: np.ndarray, runs: list[str]) -> dict:
    """Return the fitted weight and the log loss of each run, and of their blend: plain, nested and per label."""
    weights = fit_weights(target, probabilities)
    mixed = blend(weights, probabilities)
    return {
        "runs": dict(zip(runs, weights.tolist(), strict=True)),
        "single": {run: metric.log_loss(target, p) for run, p in zip(runs, probabilities, strict=True)},
        "oof_log_loss": metric.log_loss(target, mixed),
        "nested_log_loss": metric.log_loss(target, nested(target, probabilities, fold)),
        "label_losses": dict(zip(LABELS, metric.label_losses(target, mixed).tolist(), strict=True)),
        "constant": metric.log_loss(target, constant(target, fold)),
    }


def describe(name: str, scores: dict) -> str:
    rows = [("constant prevalence", "", scores["constant"])]
    rows += [(run, f"{scores['runs'][run]:.3f}", loss) for run, loss in scores["single"].items()]
    rows += [(f"{name}, plain", "", scores["oof_log_loss"]), (f"{name}, nested", "", scores["nested_log_loss"])]
    width = max(len(row[0]) for row in rows)
    lines = [f"{'out-of-fold log loss':{width}}  weight     loss"]
    lines += [f"{what:{width}}  {weight:>6}  {loss:.5f}" for what, weight, loss in rows]
    return "\n".join([*lines, f"on {scores['n_slices']} slices of {scores['n_patients']} patients"])


def default_name(runs: list[str]) -> str:
    name = "+".join(runs)
    return name if len(name) <= 60 else f"{len(runs)}-runs-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def all_runs(work_dir: Path) -> list[str]:
    """Return the names of the runs there are, sorted. Raises FileNotFoundError if there is none."""
    runs = sorted(folder.parent.name for folder in paths.run(work_dir, "any").parent.glob("*/fold0"))
    if not runs:
        raise FileNotFoundError(f"{work_dir}: no run to blend: run python -m ich_kaggle.train")
    return runs


def need_predictions(data_dir: Path | None, work_dir: Path, run: str, folds_of_run: list[int], workers: int) -> dict:
    """Predict with the folds of `run` that have not; return the hash of each of its files of predictions."""
    hashes = {}
    for k in folds_of_run:
        folder = paths.fold(work_dir, run, k)
        if not (folder / "predict.json").exists():
            paths.require(folder / "model.pt", f"--run {run} --fold {k}")
            from ich_kaggle import predict  # imports torch

            predict.predict(data_dir=data_dir, work_dir=work_dir, run=run, fold=k, workers=workers)
        for name in ("oof.parquet", "test.parquet"):
            path = paths.require(folder / name, f"--run {run} --fold {k} --overwrite")
            hashes[f"{run}/fold{k}/{name}"] = paths.file_hash(path)
    return hashes


def ensemble(
    *,
    data_dir: Path | None,
    work_dir: Path,
    runs: list[str] | None = None,
    name: str | None = None,
    workers: int = 1,
    overwrite: bool = False,
) -> Path:
    """Return the folder of the blend of `runs` (None: all there are), blending them where that is not done.

    Raises ValueError naming both states if it was made from other predictions.
    """
    fold = folds.ensure(data_dir, work_dir, workers)
    table = tables.read_slices(work_dir)
    runs = runs or all_runs(work_dir)
    folder = paths.ensemble(work_dir, name or default_name(runs))
    made_from = {}
    for run in runs:
        made_from |= need_predictions(data_dir, work_dir, run, np.unique(fold[fold >= 0]).tolist(), workers)
    done = folder / "weights.json"
    if done.exists() and not overwrite:
        remedy = "give another --name, or run python -m ich_kaggle.ensemble --overwrite"
        paths.same_settings(done, paths.read_json(done)["made_from"], made_from, remedy)
        cli.say(f"{folder}{cli.THERE}\n{describe(folder.name, paths.read_json(done))}")
        return folder
    done.unlink(missing_ok=True)
    is_train = fold >= 0
    probabilities = np.stack([read_oof(work_dir, run, table, fold) for run in runs])
    scores = score(tables.targets(table[is_train]), probabilities, fold[is_train], runs)
    scores |= {"n_slices": int(is_train.sum()), "n_patients": int(table.patient_id[is_train].nunique())}
    weights = np.array(list(scores["runs"].values()))
    test = blend(weights, np.stack([read_test(work_dir, run, table, fold) for run in runs]))
    tables.write_predictions(folder / "oof.parquet", table.slice_id[is_train], blend(weights, probabilities))
    tables.write_predictions(folder / "test.parquet", table.slice_id[~is_train], test)
    paths.write_json(done, scores | {"made_from": made_from})
    cli.say(f"{folder}\n{describe(folder.name, scores)}")
    return folder


def build_parser():
    parser = cli.command(__doc__, "--data-dir", "--work-dir", "--workers", "--overwrite")
    parser.add_argument("--runs", nargs="+", help="names of folders in work/runs (default: all)")
    parser.add_argument("--name", help="name of the ensemble (default: its runs' names)")
    return parser


def main(argv=None):
    cli.run(ensemble, build_parser(), argv)


if __name__ == "__main__":
    main()
