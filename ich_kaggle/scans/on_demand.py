"""Predictions of folds that have none yet; torch is imported only then."""

from ich_kaggle.common.project import Project
from ich_kaggle.common.runs import Run


def predict(project: Project, run: Run, folds: list[int]) -> None:
    """Predict with those `folds` of `run` that have not been."""
    if set(folds) - set(run.predicted):
        from ich_kaggle.learning import predictions

        predictions.ensure(project, run, folds)
