"""Ensembles: runs blended by the log loss of their out-of-fold predictions, scored plain and nested."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ich_kaggle.common import cli, metric, paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.common.run_predictions import read_oof, read_test
from ich_kaggle.common.runs import Run, written
from ich_kaggle.scoring import blended_runs, blending, comparison, nested_choice, patient_bootstrap, patient_folds

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
    asked, runs = Asked(**asked), blended_runs.choose_runs(project, names, fold)
    of_runs = [run.name for run in runs]
    folder = paths.ensemble(project.work_dir, name or default_name(of_runs, fold))
    settings = {"asked": asked._asdict(), "blended": {"runs": of_runs, "fold": fold}}
    made_from, done = blended_runs.predicted(project, runs, predict), folder / "weights.json"
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


def is_current(done: Path, settings: dict, made_from: dict[str, str]) -> bool:
    """Tell whether the ensemble of `done` exists and was made from these very files, and say which it is.

    Raises ValueError naming both if it was made with other `settings`.
    """
    if not done.exists():
        return False
    found, remedy = storage.read_json(done), "give another --name, or the same flags with --overwrite"
    for part, values in settings.items():
        storage.same_settings(done, found.get(part, {}), values, remedy)
    if found["made_from"] == made_from:
        cli.say(f"{done.parent}{cli.THERE}\n{describe(done.parent.name, found)}")
        return True
    cli.say(f"{done.parent}: blended anew ({blended_runs.what_changed(found['made_from'], made_from)})")
    return False


def write(folder: Path, project: Project, runs: dict[Run, list[int]], asked: Asked) -> dict:
    """Blend `runs`, write their predictions into `folder`, and return the content of weights.json."""
    table, names = project.slices, [run.name for run in runs]
    train, of_train = table[project.is_train], project.fold[project.is_train]
    probabilities = [read_oof(run, of_run, table, project.fold) for run, of_run in runs.items()]
    rows = blended_runs.shared_rows(probabilities, runs)
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
