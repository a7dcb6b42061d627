"""Ensembles: runs blended by the log loss of their out-of-fold predictions, scored plain and nested."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ich_kaggle.common import cli, metric, paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.common.run_predictions import read_oof, read_test
from ich_kaggle.common.runs import Run, hash_of, written
from ich_kaggle.scoring import blending, comparison, nested_choice, patient_bootstrap, patient_folds

log = logging.getLogger(__name__)

METHODS = ("auto", *blending.METHODS)
LEAST_FOLDS, N_GROUPS = 3, 5  # runs with fewer folds than the first are nested between that many groups of patients


class Asked(NamedTuple):
    """The options of a blend."""

    method: str = "auto"
    seed: int = 0


class Fitted(NamedTuple):
    """A blend that was chosen and fitted, and its predictions of the slices it was fitted to."""

    method: str
    blend: blending.Blend
    plain: np.ndarray  # float32 (n, 6)
    nested: np.ndarray  # float32 (n, 6), of each fold by a blend that was chosen and fitted on the others


def blend(weights: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the mean of `probabilities` (n_runs, n, 6), `any` raised to the largest subtype: float32 (n, 6)."""
    each = np.tile(np.asarray(weights)[:, None], len(LABELS))
    mean = blending.Blend("probability", each, np.zeros(len(LABELS)))
    return blending.raise_any(blending.combine(mean, probabilities))


def constant(target: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return predictions (n, 6) of the prevalence of each label in the other folds."""
    out = np.empty(target.shape)
    for k in np.unique(fold):
        out[fold == k] = blending.prevalence(target, fold != k)
    return out


def groups_of(fold: np.ndarray, target: np.ndarray, patient: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the groups between which fits are nested, int (n,): the folds, or with few folds groups of patients.

    Three are needed: a choice that is scored on one is made by comparing the two others.
    """
    if len(np.unique(fold)) >= LEAST_FOLDS:
        return fold
    table = pd.DataFrame(target, columns=list(LABELS)).assign(patient_id=patient)
    n_groups = min(N_GROUPS, table.patient_id.nunique())
    if n_groups < 2:
        return np.zeros(len(fold), int)
    drawn = patient_folds.assign_folds(table, n_folds=n_groups, seed=seed).set_index("patient_id").fold
    return table.patient_id.map(drawn).to_numpy()


def fit(data: nested_choice.OutOfFold, asked: Asked) -> Fitted:
    method = nested_choice.choose(data) if asked.method == "auto" else asked.method
    fitted = data.fit(method)
    plain = nested_choice.predict(fitted, data.probabilities)
    return Fitted(method, fitted, plain, nested_choice.honest(data, asked.method))


def score(data: nested_choice.OutOfFold, runs: list[str], fitted: Fitted, seed: int = 0) -> dict:
    """Return the weight and the log loss of each run, and the log loss of the blend: plain, nested and per label.

    Also returned: intervals over patients, the gain that each run brings, and the fitted pipeline.
    """
    method, mixed, plain, nested = fitted
    total = comparison.patient_losses(data.target, [*data.probabilities, nested], data.patient)
    size, single = nested_choice.sizes(data), total.sum(axis=0) / len(data.target)
    return {
        "runs": dict(zip(runs, (mixed.weights @ blending.SHARE).tolist(), strict=True)),
        "single": dict(zip(runs, single[:-1].tolist(), strict=True)),
        "oof_log_loss": metric.log_loss(data.target, plain),
        "nested_log_loss": float(single[-1]),
        "label_losses": dict(zip(LABELS, metric.label_losses(data.target, plain).tolist(), strict=True)),
        "nested_label_losses": dict(zip(LABELS, metric.label_losses(data.target, nested).tolist(), strict=True)),
        "n_slices": len(data.target),
        "n_patients": int((size > 0).sum()),
        **comparison.compare([*runs, "nested"], total, size, n_draws=patient_bootstrap.N_DRAWS, seed=seed),
        "correlation": comparison.error_correlation(data.target, data.probabilities).round(4).tolist(),
        "left_out": nested_choice.without_each(data, runs, method),
        "pipeline": nested_choice.to_json(method, mixed, runs),
    }


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
            f"{name}: {scores['pipeline']['method']}",
            f"plain {scores['oof_log_loss']:.5f}, nested {scores['nested_log_loss']:.5f} ({low:.4f} to {high:.4f}), "
            f"on {scores['n_slices']} slices of {scores['n_patients']} patients"
            + (f"; possibly leaked: {scores['possible_leak']}" if scores.get("possible_leak") else ""),
        ]
    )


def default_name(runs: list[str], fold: list[int] | None = None) -> str:
    name = "+".join(runs)
    name = name if len(name) <= 60 else f"{len(runs)}-runs-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name if fold is None else f"{name}-fold{'-'.join(map(str, fold))}"


def choose_runs(project: Project, names: list[str] | None, fold: list[int] | None) -> dict[Run, list[int]]:
    """Return the runs called `names`, None for all, with their finished folds among `fold`, None for all.

    Raises FileNotFoundError for a named run without such a fold, or if no run has one.
    """
    if names:
        return {project.run(name): project.finished(project.run(name), fold) for name in names}
    found = {}
    for run in project.runs():
        if of_run := [k for k in project.chosen(fold) if k in run.finished]:
            found[run] = of_run
        elif run.begun:
            cli.say(f"run {run.name}: left out, no finished fold" + ("" if fold is None else " among those asked for"))
    if not found:
        raise FileNotFoundError(f"{project.work_dir}: no run to blend: run python -m ich_kaggle.train --fold 0")
    return found


def hashes_of(run: Run, of_run: list[int]) -> dict[str, str]:
    """Return the hashes of the predictions of the folds `of_run` of `run`, by file."""
    hashes = {}
    for k in of_run:
        for name in ("oof.parquet", "test.parquet"):
            path = storage.require(run.fold(k) / name, f"--run {run.name} --fold {k} --overwrite")
            hashes[f"{run.name}/fold{k}/{name}"] = hash_of(path)
    return hashes


def what_changed(then: dict[str, str], now: dict[str, str]) -> str:
    """Return in words the differences of the files that were read `then` and of those that exist `now`, by hash."""
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
    overwrite: bool = False,
    predict: Callable[[Project, Run, list[int]], None],
    **asked,
) -> Path:
    """Return the folder of the blend of runs, None for all, blended anew where their predictions have changed.

    `asked` are the fields of `Asked`; `predict` predicts with folds that have no predictions. Raises ValueError naming
    both settings if the ensemble exists with other runs or options.
    """
    if names and len(set(names)) < len(names):
        raise ValueError(f"--runs {' '.join(names)}: a run is named twice")
    asked, runs = Asked(**asked), choose_runs(project, names, fold)
    of_runs = [run.name for run in runs]
    folder = paths.ensemble(project.work_dir, name or default_name(of_runs, fold))
    settings = {"asked": asked._asdict(), "blended": {"runs": of_runs, "fold": fold}}
    made_from, done = predicted(project, runs, predict), folder / "weights.json"
    if not overwrite and is_current(done, settings, made_from):
        return folder
    done.unlink(missing_ok=True)
    scores = write(folder, project, runs, asked)
    storage.write_json(done, scores | settings | {"made_from": made_from, "files": written(folder)})
    cli.say(f"{folder}\n{describe(folder.name, scores)}")
    return folder


def refresh(project: Project, name: str, predict: Callable[[Project, Run, list[int]], None]) -> Path:
    """Return the folder of the ensemble `name`, blended anew with its own options where its runs have changed.

    Without its runs it is used as it is. Raises FileNotFoundError if it does not exist.
    """
    path = storage.require(paths.ensemble(project.work_dir, name) / "weights.json", f"--name {name}")
    found = storage.read_json(path)
    names, fold = found["blended"]["runs"], found["blended"]["fold"]
    if not all(project.run(one).finished for one in names):
        cli.say(f"{path.parent}: used as it is, its runs are not in {project.work_dir / 'runs'}")
        return path.parent
    return blend_runs(project, names, name=name, fold=fold, predict=predict, **asked_of(path, found))


def asked_of(done: Path, found: dict) -> dict:
    """Return the options in weights.json, `done`. Raises ValueError for options that no longer exist."""
    asked = found["asked"]
    if asked.keys() != set(Asked._fields) or asked["method"] not in METHODS:
        name, runs = done.parent.name, " ".join(found["blended"]["runs"])
        again = f"python -m ich_kaggle.ensemble --name {name} --runs {runs} --overwrite"
        raise ValueError(f"{done}: blended by an older version, as {dict(asked)}: run {again}")
    return asked


def predicted(project: Project, runs: dict[Run, list[int]], predict: Callable) -> dict[str, str]:
    """Return the hashes of the predictions of `runs`, by file, predicted first where they do not exist."""
    made_from = {}
    for run, of_run in runs.items():
        project.check_same(run)
        cli.say(project.describe(run, of_run))
        predict(project, run, of_run)
        made_from |= hashes_of(run, of_run)
    say_stale(list(runs))
    return made_from


def say_stale(runs: list[Run]) -> None:
    """Say which folds of second levels among `runs` were fitted on predictions that have changed since."""
    for run in (run for run in runs if run.is_second_level):
        for k in run.predicted:
            reads = storage.read_json(run.fold(k) / "predict.json").get("reads", {})
            # Gigabytes of embeddings need no reading: they are of the model.pt that is read beside them.
            files = {name: run.folder.parent / name for name in reads if not name.endswith("embeddings.npy")}
            if any(path.exists() and storage.file_hash(path) != reads[name] for name, path in files.items()):
                log.warning("WARNING %s was fitted on other predictions: %s --overwrite", run.fold(k), run.resume(k))


def is_current(done: Path, settings: dict, made_from: dict[str, str]) -> bool:
    """Tell whether the ensemble of `done` exists and was made from these very files, and say which it is.

    Raises ValueError naming both if it was made with other `settings`.
    """
    if not done.exists():
        return False
    found, remedy = storage.read_json(done), "give another --name, or run python -m ich_kaggle.ensemble --overwrite"
    for part, values in settings.items():
        storage.same_settings(done, found.get(part, {}), values, remedy)
    if found["made_from"] == made_from:
        cli.say(f"{done.parent}{cli.THERE}\n{describe(done.parent.name, found)}")
        return True
    cli.say(f"{done.parent}: blended anew ({what_changed(found['made_from'], made_from)})")
    return False


def shared_rows(probabilities: list[np.ndarray], runs: dict[Run, list[int]]) -> np.ndarray:
    """Return the training slices for which all runs have out-of-fold predictions: bool (n_train,).

    Raises ValueError with the folds of each run if there are none.
    """
    has_all = ~np.any([np.isnan(probability[:, 0]) for probability in probabilities], axis=0)
    if not has_all.any():
        listed = "; ".join(f"{run.name} has fold {', '.join(map(str, of_run))}" for run, of_run in runs.items())
        raise ValueError(f"the runs share no finished fold ({listed}): train a fold of all of them, or choose --runs")
    return has_all


def write(folder: Path, project: Project, runs: dict[Run, list[int]], asked: Asked) -> dict:
    """Blend `runs`, write their predictions into `folder`, and return the content of weights.json."""
    table, names = project.slices, [run.name for run in runs]
    train, of_train = table[project.is_train], project.fold[project.is_train]
    probabilities = [read_oof(run, of_run, table, project.fold) for run, of_run in runs.items()]
    rows = shared_rows(probabilities, runs)
    probabilities = [probability[rows] for probability in probabilities]
    every_target, patient = tables.targets(train), train.patient_id[rows].to_numpy()
    target = every_target[rows]
    scores = {
        "constant": metric.log_loss(target, constant(every_target, of_train)[rows]),
        "as_predicted": {run: metric.log_loss(target, p) for run, p in zip(names, probabilities, strict=True)},
        "folds": {run.name: of_run for run, of_run in runs.items()},
        "possible_leak": next((run.possible_leak for run in runs if run.possible_leak), ""),
    }
    probabilities = [blending.raise_any(probability) for probability in probabilities]
    group = groups_of(of_train[rows], target, patient, asked.seed)
    can_nest = len(np.unique(group)) > 1
    if asked.method not in ("auto", "equal") and not can_nest:
        raise ValueError(f"--method {asked.method}: the shared folds have one patient, so nothing can be fitted")
    data = nested_choice.prepare(target, probabilities, group, patient)
    fitted = fit(data, asked)
    scores |= score(data, names, fitted, asked.seed)
    if asked.method == "auto" and can_nest:
        scores["methods"] = nested_choice.try_methods(data)
    for file, probability in (("oof.parquet", fitted.plain), ("nested.parquet", fitted.nested)):
        tables.write_predictions(folder / file, train.slice_id[rows], probability)
    of_runs = [{k: read_test(run, k, table) for k in of_run} for run, of_run in runs.items()]
    test = nested_choice.of_folds(fitted.blend, of_runs)
    tables.write_predictions(folder / "test.parquet", table.slice_id[~project.is_train], test)
    return scores
