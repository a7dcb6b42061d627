"""Blend runs by the competition's log loss over their out-of-fold predictions.

--method auto tries every way to blend and takes the one with the least nested loss, or equal weights where that gains
no more than one standard error over patients; a calibration for each label, and a clip, are kept by the same rule.
`plain` scores are of the slices that the blend was fitted on; `nested` ones are of folds that no part of it, the choice
included, has seen. In every run `any` is first raised to its largest subtype, so are the scores of single runs.

Reads:   work/runs/<run>/fold<k>/  oof.parquet, test.parquet  (predicted first where they are missing)
Writes:  work/ensemble/<name>/  weights.json, oof.parquet, nested.parquet, test.parquet
         with --export only one file: the models of every run that weighs in it and of those these read, how to blend
         them, thresholds; read by python -m ich_kaggle.predict --dicom
Example: python -m ich_kaggle.ensemble --runs cpu resnet50
         python -m ich_kaggle.ensemble --name cpu+resnet50 --export model.zip
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle import blending, cli, comparison, disk, folds, intervals, metric, packing, paths, selection, tables
from ich_kaggle.labels import LABELS
from ich_kaggle.runs import hash_of, read_oof, read_test, written

METHODS = ("auto", *blending.METHODS)


def fit_weights(target: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the weights, (n_runs,) on the simplex, of the mean of `probabilities` that has the least log loss.

    `target` is (n, 6), `probabilities` (n_runs, n, 6). The loss is convex in the weights: there is one minimum.
    """
    every = np.ones(len(target), np.float32)
    return blending.METHODS["simplex"](target, probabilities, every).weights[:, 0]


def blend(weights: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the mean of `probabilities` (n_runs, n, 6), `any` raised to the largest subtype: float32 (n, 6)."""
    each = np.tile(np.asarray(weights)[:, None], len(LABELS))
    return blending.raise_any(
        blending.combine(blending.Blend("probability", each, np.zeros(len(LABELS))), probabilities)
    )


def nested(target: np.ndarray, probabilities: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return blended predictions (n, 6), each fold's with the simplex weights fitted on the other folds."""
    out = np.empty(target.shape, np.float32)
    data = selection.prepare(target, probabilities, fold, np.arange(len(target)))
    for rows, probability in selection.nested(data, selection.Recipe("simplex")):
        out[rows] = probability
    return out


def constant(target: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the predictions (n, 6) of who knows but the prevalence of each label in the other folds."""
    out = np.empty(target.shape)
    for k in np.unique(fold):
        out[fold == k] = target[fold != k].mean(axis=0)
    return out


def test_predictions(
    work_dir: Path, runs: list[str], table: pd.DataFrame, fold: np.ndarray, pipeline: selection.Pipeline
) -> np.ndarray:
    """Return the ensemble's probabilities of all test slices, float32 (n_test, 6): the mean over the folds.

    Each fold's models are combined as their out-of-fold predictions were.
    """
    per_fold = []
    for k in np.unique(fold[fold >= 0]):
        of_runs = [blending.raise_any(read_test(work_dir, run, table, k)) for run in runs]
        per_fold.append(selection.predict(pipeline, of_runs))
    return blending.raise_any(np.mean(per_fold, axis=0))


def score(
    target: np.ndarray,
    probabilities: np.ndarray,
    fold: np.ndarray,
    runs: list[str],
    *,
    patient: np.ndarray | None = None,
    method: str = "simplex",
    calibrate: bool = False,
    seed: int = 0,
) -> dict:
    """Return the weight and the log loss of each run, and of their blend: plain, nested and per label.

    With them how sure these are, what each run adds, and how to combine. Without `patient` every slice is one.
    """
    patient = np.arange(len(target)) if patient is None else patient
    data = selection.prepare(target, probabilities, fold, patient)
    return _scores(data, runs, method, calibrate, seed)[0]


def _scores(data: selection.Data, runs: list[str], method: str, calibrate: bool, seed: int) -> tuple:
    """Return all that weights.json says, the fitted selection.Pipeline, and its plain and its nested predictions."""
    recipe = selection.choose(data, method, calibrate=calibrate)
    honest = selection.honest(data, method, calibrate=calibrate)
    pipeline = selection.fit_pipeline(data, recipe)
    plain = selection.predict(pipeline, data.probabilities)
    total = comparison.patient_losses(data.target, [*data.probabilities, honest], data.patient)
    size, single = selection.sizes(data), total.sum(axis=0) / len(data.target)
    scores = {
        "runs": dict(zip(runs, (pipeline.blend.weights @ blending.SHARE).tolist(), strict=True)),
        "single": dict(zip(runs, single[:-1].tolist(), strict=True)),
        "oof_log_loss": metric.log_loss(data.target, plain),
        "nested_log_loss": float(single[-1]),
        "label_losses": dict(zip(LABELS, metric.label_losses(data.target, plain).tolist(), strict=True)),
        "nested_label_losses": dict(zip(LABELS, metric.label_losses(data.target, honest).tolist(), strict=True)),
        "constant": metric.log_loss(data.target, constant(data.target, data.fold)),
        "n_slices": len(data.target),
        "n_patients": int((size > 0).sum()),
        **comparison.compare([*runs, "nested"], total, size, n_draws=intervals.N_DRAWS, seed=seed),
        "correlation": comparison.error_correlation(data.target, data.probabilities).round(4).tolist(),
        "left_out": selection.without_each(data, runs, recipe),
        "pipeline": selection.to_json(recipe, pipeline, runs),
    }
    return scores, pipeline, plain, honest


def describe(name: str, scores: dict) -> str:
    rows = [("out-of-fold log loss", "weight", "loss", "95 % interval", "without it")]
    rows += [("constant prevalence", "", f"{scores['constant']:.5f}", "", "")]
    for run, loss in scores["single"].items():
        low, high = scores["intervals"][run]
        without = "{:+.5f} +- {:.5f}".format(*scores["left_out"][run]) if scores["left_out"] else ""
        rows.append((run, f"{scores['runs'][run]:.3f}", f"{loss:.5f}", f"{low:.4f} to {high:.4f}", without))
    for method, tried in scores.get("methods", {}).items():
        gain = "{gain:+.5f} +- {standard_error:.5f} over equal".format(**tried)
        rows.append((f"{method}, nested", "", f"{tried['nested']:.5f}", "", gain))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        f"{row[0]:{widths[0]}}  {row[1]:>6}  {row[2]:>7}  {row[3]:>{widths[3]}}  {row[4]}".rstrip() for row in rows
    ]
    low, high = scores["intervals"]["nested"]
    return "\n".join(
        [
            *lines,
            f"{name}: {recipe_line(scores['pipeline'])}",
            f"plain {scores['oof_log_loss']:.5f}, nested {scores['nested_log_loss']:.5f} ({low:.4f} to {high:.4f}), "
            f"on {scores['n_slices']} slices of {scores['n_patients']} patients",
        ]
    )


def recipe_line(pipeline: dict) -> str:
    curves = [f"{kind} for {label}" for label, kind in pipeline["calibration"].items() if kind != "none"]
    return ", ".join([pipeline["method"], *curves, *([f"clipped at {pipeline['clip']:g}"] if pipeline["clip"] else [])])


def default_name(runs: list[str]) -> str:
    name = "+".join(runs)
    return name if len(name) <= 60 else f"{len(runs)}-runs-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def all_runs(work_dir: Path) -> list[str]:
    """Return the names of the runs there are, sorted. Raises FileNotFoundError if there is none."""
    runs = [run for run in paths.run_names(work_dir) if 0 in paths.run_folds(work_dir, run)]
    if not runs:
        raise FileNotFoundError(f"{work_dir}: no run to blend: run python -m ich_kaggle.train")
    return runs


def need_predictions(data_dir: Path | None, work_dir: Path, run: str, folds_of_run: list[int], workers: int) -> dict:
    """Predict with the folds of `run` that have not; return the hash of each of its files of predictions."""
    hashes = {}
    for k in folds_of_run:
        folder = paths.fold(work_dir, run, k)
        if not (folder / "predict.json").exists():
            disk.require(folder / "model.pt", f"--run {run} --fold {k}")
            from ich_kaggle import predict  # imports torch

            predict.predict(data_dir=data_dir, work_dir=work_dir, run=run, fold=k, workers=workers)
        for name in ("oof.parquet", "test.parquet"):
            path = disk.require(folder / name, f"--run {run} --fold {k} --overwrite")
            hashes[f"{run}/fold{k}/{name}"] = hash_of(path)
    return hashes


def ensemble(
    *,
    data_dir: Path | None,
    work_dir: Path,
    runs: list[str] | None = None,
    name: str | None = None,
    method: str = "auto",
    calibrate: bool = True,
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
) -> Path:
    """Return the folder of the blend of `runs` (None: all there are), blending them where that is not done.

    Raises ValueError naming both states if it was made from other predictions or in another way.
    """
    fold = folds.ensure(data_dir, work_dir, workers)
    table = tables.read_slices(work_dir)
    runs = runs or all_runs(work_dir)
    if len(set(runs)) < len(runs):
        raise ValueError(f"--runs {' '.join(runs)}: a run is named twice")
    folder = paths.ensemble(work_dir, name or default_name(runs))
    made_from = {}
    for run in runs:
        made_from |= need_predictions(data_dir, work_dir, run, np.unique(fold[fold >= 0]).tolist(), workers)
    settings = {"made_from": made_from, "asked": {"method": method, "calibrate": calibrate, "seed": seed}}
    done = folder / "weights.json"
    if done.exists() and not overwrite:
        found, remedy = disk.read_json(done), "give another --name, or run python -m ich_kaggle.ensemble --overwrite"
        for part, wanted in settings.items():
            disk.same_settings(done, found.get(part, {}), wanted, remedy)
        cli.say(f"{folder}{cli.THERE}\n{describe(folder.name, found)}")
        return folder
    done.unlink(missing_ok=True)
    scores = write(folder, work_dir, runs, table, fold, **settings["asked"])
    disk.write_json(done, scores | settings | {"files": written(folder)})
    cli.say(f"{folder}\n{describe(folder.name, scores)}")
    return folder


def write(
    folder: Path,
    work_dir: Path,
    runs: list[str],
    table: pd.DataFrame,
    fold: np.ndarray,
    *,
    method: str,
    calibrate: bool,
    seed: int,
) -> dict:
    """Blend `runs`, write their predictions into `folder`, and return the scores."""
    is_train = fold >= 0
    probabilities = [read_oof(work_dir, run, table, fold) for run in runs]
    target = tables.targets(table[is_train])
    as_predicted = {run: metric.log_loss(target, p) for run, p in zip(runs, probabilities, strict=True)}
    for probability in probabilities:
        blending.raise_any(probability)
    data = selection.prepare(target, probabilities, fold[is_train], table.patient_id[is_train])
    scores, pipeline, plain, honest = _scores(data, runs, method, calibrate, seed)
    scores |= {"as_predicted": as_predicted} | (
        {"methods": selection.try_methods(data)} if method == "auto" and runs[1:] else {}
    )
    test = test_predictions(work_dir, runs, table, fold, pipeline)
    ids = table.slice_id[is_train]
    for file, probability in (("oof.parquet", plain), ("nested.parquet", honest)):
        tables.write_predictions(folder / file, ids, probability)
    tables.write_predictions(folder / "test.parquet", table.slice_id[~is_train], test)
    return scores


def command(*, export: Path | None, **options) -> None:
    if export is None:
        ensemble(**options)
        return
    if options["runs"]:
        raise ValueError("--export packs an ensemble that is there: give its --name, and no --runs")
    folder = packing.choose_ensemble(options["work_dir"], options["name"])
    if export.exists() and not (export.is_file() and options["overwrite"]):
        raise ValueError(f"{export} is there: give another file to --export, or --overwrite")
    packing.export(options["work_dir"], folder, export)
    cli.say(f"{export}: {export.stat().st_size / 1e6:.1f} MB, the models of {folder}")


def build_parser():
    parser = cli.command(__doc__, "--data-dir", "--work-dir", "--seed", "--workers", "--overwrite")
    parser.add_argument("--runs", nargs="+", help="names of folders in work/runs (default: all)")
    parser.add_argument("--name", help="name of the ensemble (default: its runs' names)")
    parser.add_argument("--method", choices=METHODS, default="auto", help="how to blend")
    parser.add_argument("--export", type=Path, metavar="FILE", help="pack the models of an ensemble that is there")
    parser.add_argument("--no-calibrate", dest="calibrate", action="store_false", help="blend, and no more")
    return parser


def main(argv=None):
    cli.run(command, build_parser(), argv)


if __name__ == "__main__":
    main()
