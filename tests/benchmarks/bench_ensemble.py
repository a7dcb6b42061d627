"""Blending at full scale: seconds, log loss and peak memory of each method, and of 1,000 bootstrap draws.

The peer of the fit is SLSQP with the exact gradient on one float array; that of the bootstrap takes a draw's rows out
of the table, some draws, scaled. Each measurement is a process of its own; memory is over the predictions' own.
Example: python tests/benchmarks/bench_ensemble.py --auto
"""

import argparse
import multiprocessing
import re
import time
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from ich_kaggle.common import metric
from ich_kaggle.scoring import blending, comparison, nested_choice, patient_bootstrap

OFFSET = np.array([-8.2, -5.4, -5.9, -5.4, -5.0, -3.6])
PEER_DRAWS = 5


def runs(n_slices: int, n_runs: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Return targets (n, 6), predictions of runs of different skill, and the patient of each slice."""
    rng = np.random.default_rng(0)
    patient = np.sort(rng.integers(max(n_slices // 40, 10), size=n_slices))
    patient = np.unique(patient, return_inverse=True)[1]
    sick = rng.normal(size=(patient.max() + 1, 6))[patient] * 1.5
    truth = (sick + rng.normal(size=(n_slices, 6)) * 2 + OFFSET).astype(np.float32)
    target = (rng.random((n_slices, 6), np.float32) < expit(truth)).astype(np.float32)
    out = []
    for _ in range(n_runs):
        noise = rng.standard_normal((n_slices, 6), np.float32) * np.float32(rng.uniform(0.5, 1.5))
        out.append(blending.raise_any(expit(truth * np.float32(rng.uniform(0.8, 1.2)) + noise)))
    return target, out, patient


def peak() -> float:
    """Return the most memory that was in use since `rss` (MB)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**10


def slsqp(target, probabilities) -> np.ndarray:
    stacked = np.stack(probabilities)

    def loss(weights):
        mean = np.clip(np.tensordot(weights, stacked, 1), metric.EPS, 1 - metric.EPS)
        slope = blending.SHARE * (mean - target) / (mean * (1 - mean)) / len(target)
        return metric.log_loss(target, mean), np.tensordot(stacked, slope, 2)

    n_runs = len(stacked)
    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}
    start = np.full(n_runs, 1 / n_runs)
    return minimize(loss, start, jac=True, method="SLSQP", bounds=[(0, 1)] * n_runs, constraints=simplex).x


def fit(name: str, target, probabilities, patient) -> float:
    if name == "peer: SLSQP":
        weights = np.tile(slsqp(target, probabilities)[:, None], 6)
        blend = blending.Blend("probability", weights, np.zeros(6))
    else:
        blend = blending.METHODS[name](target, probabilities, np.ones(len(target), np.float32))
    return metric.log_loss(target, blending.combine(blend, probabilities))


def bootstrap(name: str, target, probabilities, patient) -> float:
    if name == "peer: rows":
        return bootstrap_rows(target, probabilities, patient)
    total = comparison.patient_losses(target, probabilities, patient)
    draws = patient_bootstrap.bootstrap(total, np.bincount(patient), n_draws=1000)
    return float(draws[:, 0].std())


def bootstrap_rows(target, probabilities, patient) -> float:
    rng = np.random.default_rng(0)
    start = np.searchsorted(patient, np.arange(patient.max() + 2))
    scores = []
    for _ in range(PEER_DRAWS):
        drawn = rng.integers(patient.max() + 1, size=patient.max() + 1)
        rows = np.concatenate([np.arange(start[p], start[p + 1]) for p in drawn])
        scores.append([metric.log_loss(target[rows], run[rows]) for run in probabilities])
    return float(np.std(scores, axis=0)[0])


def auto(name: str, target, probabilities, patient) -> float:
    fold = patient % 5
    data = nested_choice.prepare(target, probabilities, fold, patient)
    print(nested_choice.choose(data))
    return metric.log_loss(target, nested_choice.honest(data))


def _timed(function, name, n_slices, n_runs, pipe) -> None:
    arguments = runs(n_slices, n_runs)
    size = sum(run.nbytes for run in arguments[1]) / 2**20
    base = rss()
    began, cpu = time.perf_counter(), time.process_time()
    value = function(name, *arguments)
    pipe.send((time.perf_counter() - began, time.process_time() - cpu, value, 1 + max(peak() - base, 0) / size))


def rss() -> float:
    """Return the memory in use now (MB), with the peak brought down to it."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def measure(function, name: str, n_slices: int, n_runs: int) -> float:
    receive, send = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_timed, args=(function, name, n_slices, n_runs, send))
    process.start()
    seconds, cpu, value, memory = receive.recv()
    process.join()
    print(f"{name:22} {seconds:7.2f} s ({cpu:.2f} s of a core)  {value:.6f}  peak {memory:.2f} x the predictions")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=752_803)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--auto", action="store_true", help="also the whole choice, scored nested over 5 folds")
    options = parser.parse_args()
    size = (options.slices, options.runs)
    print(f"{options.runs} runs x {options.slices} slices x 6 labels: fit, log loss in sample")
    seconds = {name: measure(fit, name, *size) for name in (*blending.METHODS, "peer: SLSQP")}
    print(f"SLSQP takes {seconds['peer: SLSQP'] / seconds['stack']:.1f} x as long as stack")
    print("1,000 bootstrap draws: standard error of the first run")
    ours = measure(bootstrap, "ich_kaggle.scoring.patient_bootstrap", *size)
    theirs = measure(bootstrap, "peer: rows", *size) * 1000 / PEER_DRAWS
    print(f"by rows 1,000 draws would take {theirs:.0f} s, {theirs / ours:.0f} x as long")
    if options.auto:
        measure(auto, "auto, nested", *size)


if __name__ == "__main__":
    main()
