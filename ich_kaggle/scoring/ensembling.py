"""Ensembles: runs blended by the log loss of their out-of-fold predictions, scored plain and nested."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from ich_kaggle.common import cli, metric, paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.common.runs import Run, hash_of, read_oof, read_test, written
from ich_kaggle.scoring import blending, comparison, nested_choice, patient_bootstrap, patient_folds

METHODS = ("auto", *blending.METHODS)
LEAST_FOLDS, N_GROUPS = 3, 5  # runs of fewer folds than the first are nested between that many groups of patients


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
    data = nested_choice.prepare(target, probabilities, fold, np.arange(len(target)))
    for rows, probability in nested_choice.nested(data, nested_choice.Recipe("simplex")):
        out[rows] = probability
    return out


def constant(target: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the predictions (n, 6) of who knows but the prevalence of each label in the other folds."""
    out = np.empty(target.shape)
    for k in np.unique(fold):
        out[fold == k] = target[fold != k].mean(axis=0)
    return out


def groups_of(fold: np.ndarray, target: np.ndarray, patient: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the groups, int (n,), between which fits are nested: the folds, or groups of patients of too few folds.

    To choose on two groups what is scored on another takes three.
    """
    if len(np.unique(fold)) >= LEAST_FOLDS:
        return fold
    table = pd.DataFrame(target, columns=list(LABELS)).assign(patient_id=patient)
    n_groups = min(N_GROUPS, table.patient_id.nunique())
    if n_groups < 2:
        return np.zeros(len(fold), int)
    drawn = patient_folds.assign_folds(table, n_folds=n_groups, seed=seed).set_index("patient_id").fold
    return table.patient_id.map(drawn).to_numpy()


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
    data = nested_choice.prepare(target, probabilities, fold, patient)
    return _scores(data, runs, method, calibrate, seed, metric.log_loss(target, constant(target, fold)))[0]


def _scores(
    data: nested_choice.Data, runs: list[str], method: str, calibrate: bool, seed: int, constant_loss: float
) -> tuple:
    """Return the content of weights.json, the fitted pipeline, and its plain and its nested predictions."""
    recipe = nested_choice.choose(data, method, calibrate=calibrate)
    honest = nested_choice.honest(data, method, calibrate=calibrate)
    pipeline = nested_choice.fit_pipeline(data, recipe)
    plain = nested_choice.predict(pipeline, data.probabilities)
    total = comparison.patient_losses(data.target, [*data.probabilities, honest], data.patient)
    size, single = nested_choice.sizes(data), total.sum(axis=0) / len(data.target)
    scores = {
        "runs": dict(zip(runs, (pipeline.blend.weights @ blending.SHARE).tolist(), strict=True)),
        "single": dict(zip(runs, single[:-1].tolist(), strict=True)),
        "oof_log_loss": metric.log_loss(data.target, plain),
        "nested_log_loss": float(single[-1]),
        "label_losses": dict(zip(LABELS, metric.label_losses(data.target, plain).tolist(), strict=True)),
        "nested_label_losses": dict(zip(LABELS, metric.label_losses(data.target, honest).tolist(), strict=True)),
        "constant": constant_loss,
        "n_slices": len(data.target),
        "n_patients": int((size > 0).sum()),
        **comparison.compare([*runs, "nested"], total, size, n_draws=patient_bootstrap.N_DRAWS, seed=seed),
        "correlation": comparison.error_correlation(data.target, data.probabilities).round(4).tolist(),
        "left_out": nested_choice.without_each(data, runs, recipe),
        "pipeline": nested_choice.to_json(recipe, pipeline, runs),
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


def default_name(runs: list[str], fold: list[int] | None = None) -> str:
    name = "+".join(runs)
    name = name if len(name) <= 60 else f"{len(runs)}-runs-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name if fold is None else f"{name}-fold{'-'.join(map(str, fold))}"


def choose_runs(project: Project, names: list[str] | None, fold: list[int] | None) -> dict[Run, list[int]]:
    """Return the runs called `names`, None for all, with those of their folds that are finished and asked for.

    Raises FileNotFoundError for a named run without any, or if there is no run at all.
    """
    if names:
        return {project.run(name): project.finished(project.run(name), fold) for name in names}
    found = {}
    for run in project.runs():
        if of_run := [k for k in project.chosen(fold) if k in run.finished]:
            found[run] = of_run
        elif run.begun:
            cli.say(f"run {run.name}: left out, no finished fold" + ("" if fold is None else " of those asked for"))
    if not found:
        raise FileNotFoundError(f"{project.work_dir}: no run to blend: run python -m ich_kaggle.train --fold 0")
    return found


def hashes_of(run: Run, of_run: list[int]) -> dict[str, str]:
    """Return the hash of each file of predictions of those folds of `run`."""
    hashes = {}
    for k in of_run:
        for name in ("oof.parquet", "test.parquet"):
            path = storage.require(run.fold(k) / name, f"--run {run.name} --fold {k} --overwrite")
            hashes[f"{run.name}/fold{k}/{name}"] = hash_of(path)
    return hashes


def what_changed(then: dict[str, str], now: dict[str, str]) -> str:
    """Return in words how the files that an ensemble was made from differ from those that exist now."""
    folds_then, folds_now = (list(dict.fromkeys(name.rpartition("/")[0] for name in files)) for files in (then, now))
    parts = {
        "new": [name for name in folds_now if name not in folds_then],
        "no longer read": [name for name in folds_then if name not in folds_now],
        "predicted anew": sorted({name.rpartition("/")[0] for name in then if now.get(name, then[name]) != then[name]}),
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)


def blend_runs(
    project: Project,
    names: list[str] | None = None,
    *,
    name: str | None = None,
    fold: list[int] | None = None,
    method: str = "auto",
    calibrate: bool = True,
    seed: int = 0,
    overwrite: bool = False,
    predict: Callable[[Project, Run, list[int]], None],
) -> Path:
    """Return the folder of the blend of runs (None: all there are), blended anew where their predictions changed.

    `predict` makes predictions of folds that have none. Raises ValueError naming both if it was made of other runs or
    in another way.
    """
    if names and len(set(names)) < len(names):
        raise ValueError(f"--runs {' '.join(names)}: a run is named twice")
    runs = choose_runs(project, names, fold)
    folder = paths.ensemble(project.work_dir, name or default_name([run.name for run in runs], fold))
    made_from = {}
    for run, of_run in runs.items():
        project.check_same(run)
        cli.say(project.describe(run, of_run))
        predict(project, run, of_run)
        made_from |= hashes_of(run, of_run)
    asked = {"method": method, "calibrate": calibrate, "seed": seed}
    wanted = {"asked": asked, "blended": {"runs": [run.name for run in runs], "fold": fold}}
    done = folder / "weights.json"
    if done.exists() and not overwrite:
        found, remedy = storage.read_json(done), "give another --name, or run python -m ich_kaggle.ensemble --overwrite"
        for part, settings in wanted.items():
            storage.same_settings(done, found.get(part, {}), settings, remedy)
        if found["made_from"] == made_from:
            cli.say(f"{folder}{cli.THERE}\n{describe(folder.name, found)}")
            return folder
        cli.say(f"{folder}: blended anew ({what_changed(found['made_from'], made_from)})")
    done.unlink(missing_ok=True)
    scores = write(folder, project, runs, **asked)
    storage.write_json(done, scores | wanted | {"made_from": made_from, "files": written(folder)})
    cli.say(f"{folder}\n{describe(folder.name, scores)}")
    return folder


def shared_rows(probabilities: list[np.ndarray], runs: dict[Run, list[int]]) -> np.ndarray:
    """Return which training slices all runs have out-of-fold predictions of: bool (n_train,).

    Raises ValueError with the folds of each run if there is none.
    """
    has_all = ~np.any([np.isnan(probability[:, 0]) for probability in probabilities], axis=0)
    if not has_all.any():
        listed = "; ".join(f"{run.name} has fold {', '.join(map(str, of_run))}" for run, of_run in runs.items())
        raise ValueError(f"the runs share no finished fold ({listed}): train a fold of all of them, or choose --runs")
    return has_all


def write(
    folder: Path, project: Project, runs: dict[Run, list[int]], *, method: str, calibrate: bool, seed: int
) -> dict:
    """Blend `runs`, write their predictions into `folder`, and return the scores."""
    table, fold = project.slices, project.fold
    train, of_train, names = table[project.is_train], fold[project.is_train], [run.name for run in runs]
    probabilities = [read_oof(run, of_run, table, fold) for run, of_run in runs.items()]
    rows = shared_rows(probabilities, runs)
    target, patient = tables.targets(train)[rows], train.patient_id[rows].to_numpy()
    prevalence = constant(tables.targets(train), of_train)[rows]
    probabilities = [probability[rows] for probability in probabilities]
    as_predicted = {run: metric.log_loss(target, p) for run, p in zip(names, probabilities, strict=True)}
    for probability in probabilities:
        blending.raise_any(probability)
    data = nested_choice.prepare(target, probabilities, groups_of(of_train[rows], target, patient, seed), patient)
    if method not in ("auto", "equal") and len(np.unique(data.fold)) < 2:
        raise ValueError(f"--method {method}: the shared folds hold one patient, and nothing can be fitted to one")
    scores, pipeline, plain, honest = _scores(data, names, method, calibrate, seed, metric.log_loss(target, prevalence))
    scores |= {"as_predicted": as_predicted, "folds": {run.name: of_run for run, of_run in runs.items()}}
    if method == "auto" and names[1:] and len(np.unique(data.fold)) > 1:
        scores["methods"] = nested_choice.try_methods(data)
    test = nested_choice.of_folds(
        pipeline, [{k: read_test(run, k, table) for k in of_run} for run, of_run in runs.items()]
    )
    for file, probability in (("oof.parquet", plain), ("nested.parquet", honest)):
        tables.write_predictions(folder / file, train.slice_id[rows], probability)
    tables.write_predictions(folder / "test.parquet", table.slice_id[~project.is_train], test)
    return scores
