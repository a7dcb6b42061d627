import dataclasses
import functools
import gzip
import hashlib
import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import kaggle_server as fake
import numpy as np
import pandas as pd
import pytest

from ich_kaggle import submit
from ich_kaggle.common import cli, paths, storage, tables
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project, opening
from ich_kaggle.kaggle_api import client, submission_log, submission_requests

no_network, kaggle_server, proxied_server = fake.no_network, fake.kaggle_server, fake.proxied_server

HISTORY = "submissions/history.csv"
REF = 30000001


def probabilities(n: int, seed: int) -> np.ndarray:
    """Return (n, 6) in (0, 0.5), `any` the largest."""
    p = np.random.default_rng(seed).uniform(0.01, 0.5, (n, 6)).astype(np.float32)
    p[:, -1] = p.max(axis=1)
    return p


def write_competition(folder, n_train: int, n_test: int) -> None:
    """Write input/, the slice table, two folds and the ensemble `blend` below `folder`."""
    ids = np.array([f"ID_{i:09x}" for i in range(n_train + n_test)])
    is_train = np.arange(len(ids)) < n_train
    table = pd.DataFrame({"slice_id": ids, "split": np.where(is_train, "train", "test"), "position": 0.0})
    table = table.assign(patient_id=ids, study_id=ids, series_id=ids, path=ids, **dict.fromkeys(LABELS, 0.0))
    data = folder / "input"
    data.mkdir()
    tables.write_slices(folder / "work", table, {"data_dir": str(data)})
    folds = pd.DataFrame({"patient_id": ids[is_train], "fold": np.arange(n_train) % 2})
    tables.write_folds(folder / "work", folds, {})
    sample = ids[~is_train][::-1]  # Kaggle's order is not ours
    lines = [f"{slice_id}_{label},0.5" for slice_id in sample for label in LABELS]
    (data / paths.SAMPLE_CSV).write_text("\n".join(["ID,Label", *lines]) + "\n")
    write_ensemble(folder, "blend", ids, is_train)


def write_ensemble(folder, name: str, ids: np.ndarray, is_train: np.ndarray, seed: int = 0) -> None:
    out = paths.ensemble(folder / "work", name)
    tables.write_predictions(out / "oof.parquet", ids[is_train], probabilities(is_train.sum(), 7))
    tables.write_predictions(out / "test.parquet", ids[~is_train], probabilities((~is_train).sum(), seed))
    blended = {"runs": ["b0", "b4"], "fold": None}
    scores = {"runs": {"b0": 0.75, "b4": 0.25}, "nested_log_loss": 0.0523}
    storage.write_json(out / "weights.json", scores | {"blended": blended})


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder, the current one, with data and an ensemble `blend` in it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_competition(folder, n_train=40, n_test=20)
    return folder


@dataclasses.dataclass
class Outcome:
    code: int
    out: str
    err: str
    pauses: list[float]

    @property
    def error(self) -> str:
        return self.err.splitlines()[-1] if self.err else ""


@pytest.fixture
def run(project, capfd, caplog):
    """Run the command in this process, its pauses recorded and not waited for."""

    caplog.set_level(logging.INFO)

    def run(*argv: str, timeout: float = 5, on_pause=lambda: None) -> Outcome:
        pauses = []

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            on_pause()

        connect = functools.partial(client.connect, sleep=sleep, timeout=timeout)
        code, message = 0, ""
        try:
            cli.run(opening(functools.partial(submit.command, connect=connect)), submit.build_parser(), list(argv))
        except SystemExit as end:
            code, message = 1, str(end.code)
        out, err = capfd.readouterr()
        logged = "".join(f"{record.getMessage()}\n" for record in caplog.records)
        caplog.clear()
        return Outcome(code, out, err + logged + message, pauses)

    return run


def history() -> list[dict[str, str]]:
    return submission_log.read(Path(HISTORY))


def only_csv() -> paths.Path:
    (found,) = [path for path in Path("submissions").glob("*.csv") if path.name != "history.csv"]
    return found


def shell(*argv: str, before: str = "", **env: str) -> subprocess.CompletedProcess:
    """Run the command as a user does, with the folder `before` in front of where Python looks for packages."""
    command = [sys.executable, "-m", "ich_kaggle.submit", *argv]
    if before:
        env["PYTHONPATH"] = os.pathsep.join([before, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, check=False, timeout=60)


BLEND = ("--ensemble", "blend")
TAKEN = "work/ensemble/blend: used as it is, its runs are not in work/runs\n"
START, CREATE, POLL = "StartSubmissionUpload", "CreateSubmission", "GetSubmission"


def test_a_submission_arrives_whole_and_its_scores_are_printed_and_recorded(run, kaggle_server):
    done = run(*BLEND, "-m", "two backbones")
    assert done.code == 0
    assert "public 0.04732  private 0.04891" in done.out.splitlines()
    (sent,) = kaggle_server.submissions
    content = only_csv().read_bytes()
    assert kaggle_server.content(sent) == content
    (row,) = history()
    assert re.fullmatch(r"two backbones \[ich-[0-9a-f]{12}\]", sent["description"])
    assert sent["description"] == f"two backbones [{row['tag']}]"
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert (row["ref"], row["status"], row["public"], row["private"]) == (str(REF), "COMPLETE", "0.04732", "0.04891")
    assert (row["name"], row["file"], row["runs"], row["oof"]) == (
        *("blend", only_csv().name, "b0:0.75 b4:0.25", "0.05230"),
    )
    assert row["note"] == "two backbones"


def test_the_csv_is_in_the_sample_order_and_holds_the_predictions(run, kaggle_server):
    run(*BLEND, "--dry-run")
    found = pd.read_csv(only_csv())
    sample = pd.read_csv(f"input/{paths.SAMPLE_CSV}")
    assert found.ID.tolist() == sample.ID.tolist()
    expected = probabilities(20, 0)[::-1].ravel()
    np.testing.assert_array_equal(found.Label.to_numpy(np.float32), expected)


def test_a_dry_run_asks_nobody_and_needs_neither_credentials_nor_the_client(project, no_network):
    blocked = project / "blocked"
    (blocked / "kaggle").mkdir(parents=True)
    (blocked / "kaggle" / "__init__.py").write_text("raise ImportError('blocked')\n")
    done = shell("--dry-run", *BLEND, before=str(blocked))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{os.path.relpath(only_csv())}: verified, 120 rows" in done.stdout
    assert not Path(HISTORY).exists()


def test_the_same_numbers_are_not_written_again(run, kaggle_server):
    run(*BLEND, "--dry-run")
    first = only_csv()
    again = run(*BLEND, "--dry-run")
    assert only_csv() == first
    assert f"{first} has the same numbers: not written again" in again.out


def test_two_runs_are_blended_and_both_are_in_the_history(run, project, kaggle_server):
    opened = Project(None, Path("work"))
    table, fold = opened.slices, opened.fold
    for seed, name in enumerate(["b0", "b4"]):
        storage.write_json(opened.run(name).path, {"settings": {"arch": "made", **opened.same}})
        for k in (0, 1):
            folder = opened.run(name).fold(k)
            tables.write_predictions(folder / "oof.parquet", table.slice_id[fold == k], probabilities(20, 10 + seed))
            tables.write_predictions(folder / "test.parquet", table.slice_id[fold < 0], probabilities(20, 20 + seed))
            storage.write_json(folder / "predict.json", {})
            (folder / "model.pt").touch()
    assert_arrived_once(run(), kaggle_server)
    (row,) = history()
    assert re.fullmatch(r"b0:[\d.e-]+ b4:[\d.e-]+", row["runs"])
    blended = pd.read_parquet(paths.ensemble(Path("work"), row["name"]) / "test.parquet")
    sent = pd.read_csv(only_csv()).Label.to_numpy(np.float32)
    np.testing.assert_array_equal(sent.reshape(-1, 6), blended[list(LABELS)].to_numpy()[::-1])
    assert only_csv().name.endswith(f"-{row['name']}.csv")


def test_without_a_choice_every_run_is_asked_for(run, kaggle_server, monkeypatch):
    asked = []

    def blend_runs(project, names, *, fold, predict):
        asked.append((names, fold))
        return paths.ensemble(project.work_dir, "blend")

    monkeypatch.setattr(submit.ensembling, "blend_runs", blend_runs)
    monkeypatch.setattr(submit.Project, "need_runs", lambda project: None)
    assert run("--dry-run").code == 0
    assert run("--dry-run", "--run", "b0", "--fold", "1").code == 0
    assert asked == [(None, None), (["b0"], [1])]


def test_an_ensemble_that_is_not_there_is_named_with_its_maker(run):
    done = run("--ensemble", "blnd", "--dry-run")
    assert done.code == 1
    assert done.error == (
        "error: work/ensemble/blnd/weights.json is missing: run python -m ich_kaggle.ensemble --name blnd"
    )


def test_the_folds_of_an_ensemble_can_not_be_narrowed(run):
    done = run(*BLEND, "--fold", "0", "--dry-run")
    assert (done.code, "--fold applies to runs, not to --ensemble" in done.error) == (1, True)


# What the CSV is compared with.


def altered(edit) -> str:
    """Return the path of the sample's own rows with random values, `edit`ed as a list of [id, value] rows."""
    sample = pd.read_csv(f"input/{paths.SAMPLE_CSV}")
    rows = [list(row) for row in zip(sample.ID, map(str, probabilities(20, 3).ravel()), strict=True)]
    rows = edit(rows) or rows
    Path("mine.csv").write_text("\n".join(["ID,Label", *map(",".join, rows)]) + "\n")
    return "mine.csv"


def put(row: int, value: str):
    return lambda rows: rows[row].__setitem__(1, value)


FAULTS = {
    "a row less": (lambda rows: rows[:-1], "mine.csv: ID_000000028_any is missing (missing rows: 1)"),
    "a row twice": (lambda rows: [*rows, rows[4]], "mine.csv: ID_00000003b_subdural appears 2 times"),
    "a slice too many": (
        lambda rows: [*rows, ["ID_abcabcabc_any", "0.1"]],
        "mine.csv: ID_abcabcabc is not in the sample submission",
    ),
    "one row": (lambda rows: rows[:1], "mine.csv: ID_00000003b_intraparenchymal is missing (missing rows: 119)"),
    "above one": (put(0, "1.25"), "mine.csv: ID_00000003b_epidural is 1.25, not in [0, 1]"),
    "below zero": (put(1, "-0.5"), "mine.csv: ID_00000003b_intraparenchymal is -0.5, not in [0, 1]"),
    "infinite": (put(2, "inf"), "mine.csv: ID_00000003b_intraventricular is inf, not in [0, 1]"),
    "not a number": (put(2, "nan"), ": mine.csv: row 4 has no value"),
    "not even that": (put(2, "0.3;"), "mine.csv"),
    "constant": (lambda rows: [[name, "0.5"] for name, _ in rows], "mine.csv: every value is 0.5"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_altered_file_is_not_sent(run, kaggle_server, fault):
    edit, message = FAULTS[fault]
    done = run("--file", altered(edit))
    assert done.code == 1
    assert message in done.error
    assert not kaggle_server.requests
    assert not history()


def pack(path: str, kind: str) -> str:
    """Return the path of a CSV, packed as `kind`; the CSV is gone."""
    content = Path(path).read_bytes()
    Path(path).unlink()
    packed = Path(f"{path}.{kind}" if kind == "gz" else "mine.zip")
    if kind == "gz":
        packed.write_bytes(gzip.compress(content))
    else:
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("out/submission.csv", content)
            archive.writestr("__MACOSX/out/._submission.csv", b"no table")
    return str(packed)


@pytest.mark.parametrize("kind", ["", "gz", "zip"])
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_a_file_of_any_order_and_packing_is_sent_in_the_order_of_the_sample(run, kaggle_server, kind, is_shuffled):
    path = altered(lambda rows: None)
    expected = pd.read_csv(path)
    if is_shuffled:
        expected.sample(frac=1, random_state=0).to_csv(path, index=False)
    done = run("--file", pack(path, kind) if kind else path)
    assert done.code == 0, done.error
    sent = pd.read_csv(io.BytesIO(kaggle_server.content(kaggle_server.submissions[0])))
    assert sent.ID.tolist() == expected.ID.tolist()
    np.testing.assert_allclose(sent.Label, expected.Label, rtol=1e-6)
    assert ("in the order of the sample submission" in done.out) == (is_shuffled or kind != "")
    assert [row["name"] for row in history()] == ["mine"]


@pytest.mark.parametrize("name, content", [("mine.csv.gz", b"no gzip"), ("mine.zip", b"no zip")])
def test_a_damaged_pack_is_named_once(run, kaggle_server, name, content):
    Path(name).write_bytes(content)
    error = run("--file", name).error
    assert error.count(name) == 1 and "cannot be unpacked" in error and error.endswith("give the CSV itself")


def test_any_below_a_subtype_is_a_warning(run, kaggle_server):
    done = run("--file", altered(put(5, "0.001")))
    assert done.code == 0 and len(kaggle_server.submissions) == 1
    assert "WARNING mine.csv: ID_00000003b_any is 0.001, below " in done.err and "(1 such slices)" in done.err


def test_an_empty_file_is_not_sent(run, kaggle_server):
    Path("mine.csv").write_bytes(b"")
    done = run("--file", "mine.csv")
    assert (done.code, "mine.csv: Empty CSV file" in done.error) == (1, True)
    assert not kaggle_server.requests


def test_a_missing_file_is_named(run, kaggle_server):
    assert run("--file", "mine.csv").error == "error: mine.csv is missing: give --file a CSV, or leave it out"


def test_a_file_of_ones_own_is_sent_as_it_is(run, kaggle_server):
    path = altered(lambda rows: None)
    assert run("--file", path).code == 0
    assert kaggle_server.content(kaggle_server.submissions[0]) == Path(path).read_bytes()
    assert [(row["name"], row["oof"]) for row in history()] == [("mine", "")]


def test_a_file_that_changes_after_it_was_verified_is_not_sent(run, kaggle_server):
    def change(handler, work):
        only_csv().write_text("ID,Label\n")
        handler.finish_work(work)

    kaggle_server.fail("GetCompetition", change)
    done = run(*BLEND)
    assert (done.code, "has changed since it was verified" in done.error) == (1, True)
    assert not kaggle_server.uploads


def test_a_mean_far_from_the_out_of_fold_mean_is_a_warning_with_both_numbers(run, kaggle_server):
    folder = paths.ensemble(Path("work"), "blend")
    oof = pd.read_parquet(folder / "oof.parquet")
    tables.write_parquet(folder / "oof.parquet", oof.assign(epidural=np.float32(0.01)))
    done = run(*BLEND, "--dry-run")
    mean = probabilities(20, 0)[:, 0].mean()
    assert done.code == 0
    warnings = [line for line in done.err.splitlines() if line.startswith("WARNING")]
    assert warnings == [f"WARNING {only_csv()}: the mean of epidural is {mean:.4f}, out of fold it is 0.0100"]


# What goes wrong at Kaggle. After each fault: the exit code, the message, the history, the submissions there.


def outcome(done: Outcome, server) -> tuple:
    """Return exit code, number of submissions at Kaggle, and the status of every row of the history."""
    return done.code, len(server.submissions), [row["status"] for row in history()]


def assert_arrived_once(done: Outcome, server) -> None:
    assert outcome(done, server) == (0, 1, ["COMPLETE"])
    assert server.content(server.submissions[0]) == only_csv().read_bytes()
    assert history()[0]["ref"] == str(REF)


RULES = f"accept the rules at https://www.kaggle.com/competitions/{paths.SLUG}/rules"
MISSING, MEND = "check the name and its owner", "correct this and run the command again"
REFUSALS = {
    (401, "Unauthenticated"): f"the credentials are not accepted: {client.NEW_TOKEN}",
    (403, "Permission 'competitions.participate' was denied"): RULES,
    (404, "Not Found"): MISSING,
    (400, "Submission not allowed: daily limit"): MEND,
}


@pytest.mark.parametrize("call", [START, CREATE])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_is_one_line_with_kaggles_reason_and_is_not_tried_again(run, kaggle_server, call, refusal):
    kaggle_server.fail(call, fake.status(*refusal))
    done = run(*BLEND)
    assert outcome(done, kaggle_server) == (1, 0, ["REFUSED"])
    assert f"Kaggle answered {refusal[0]}: {refusal[1]}: {REFUSALS[refusal]}" in done.error
    assert history()[0]["note"].endswith(done.error.removeprefix("error: "))
    assert kaggle_server.calls(call) == 1


def test_a_submission_refused_once_can_be_sent_later(run, kaggle_server):
    kaggle_server.fail(CREATE, fake.status(400, "daily limit"))
    run(*BLEND)
    assert outcome(run(*BLEND), kaggle_server) == (0, 1, ["REFUSED", "COMPLETE"])


def test_rules_that_are_not_accepted_are_seen_before_the_upload(run, kaggle_server):
    kaggle_server.has_entered = False
    done = run(*BLEND)
    assert outcome(done, kaggle_server) == (1, 0, [])
    assert RULES in done.error
    assert not kaggle_server.calls(START)


def test_a_wrong_competition_name_is_answered_like_rules_not_accepted(run, kaggle_server, monkeypatch):
    monkeypatch.setattr(paths, "SLUG", "rsna-intracranial-haemorrhage")
    done = run("--file", altered(lambda rows: None), "--data-dir", "input")
    assert outcome(done, kaggle_server) == (1, 0, [])
    assert "Kaggle gives the same answer for a wrong competition name" in done.error


def test_a_used_up_day_is_seen_before_the_upload(run, kaggle_server):
    for _ in range(5):
        run("--file", altered(lambda rows: None), "--again")
    done = run(*BLEND)
    assert outcome(done, kaggle_server) == (1, 5, ["COMPLETE"] * 5)
    assert done.error == "error: no submission is left today (5 sent): wait until 00:00 UTC"
    assert kaggle_server.calls(START) == 5


def test_preflight_names_the_credentials_the_rules_and_what_is_left(run, kaggle_server):
    first = run("--file", altered(lambda rows: None))
    second = run(*BLEND)
    source = "credentials: the environment variables KAGGLE_USERNAME and KAGGLE_KEY; rules: accepted"
    assert f"{source}; submissions left today: not known" in first.err
    assert f"{source}; submissions left today: 4" in second.err


def test_a_preflight_that_kaggle_does_not_know_stops_nothing(run, kaggle_server):
    kaggle_server.fail("GetCompetition", fake.status(404, "Not Found"))
    kaggle_server.fail("GetSubmissionLimits", fake.status(404, "Not Found"))
    done = run(*BLEND)
    assert_arrived_once(done, kaggle_server)
    assert "rules: not known; submissions left today: not known" in done.err


@pytest.mark.parametrize("code", [500, 502, 503])
@pytest.mark.parametrize("call", [START, "PUT", CREATE, POLL])
def test_a_fault_of_the_server_is_outlived(run, kaggle_server, call, code):
    kaggle_server.fail(call, fake.status(code), fake.status(code))
    done = run(*BLEND)
    assert_arrived_once(done, kaggle_server)
    assert kaggle_server.calls(call) >= 3
    assert done.pauses[0] == 1


@pytest.mark.parametrize("call", [START, "PUT", CREATE, POLL])
def test_too_many_requests_waits_as_long_as_kaggle_asks(run, kaggle_server, call):
    kaggle_server.fail(call, fake.status(429, "Too many requests", Retry_After="37"))
    done = run(*BLEND)
    assert_arrived_once(done, kaggle_server)
    assert done.pauses[0] == 37
    assert "Kaggle answered 429: Too many requests: again in 37 s" in done.err


def test_a_wait_of_hours_is_left_to_the_user(run, kaggle_server):
    kaggle_server.fail(CREATE, fake.status(429, "Too many requests", Retry_After="7200"))
    done = run(*BLEND)
    assert outcome(done, kaggle_server) == (1, 0, ["REFUSED"])
    assert (done.error.endswith("Too many requests: wait 7200 s"), done.pauses) == (True, [])


@pytest.mark.parametrize("hours", [-30, 30])
def test_a_wrong_clock_does_not_double_the_submission(run, kaggle_server, hours):
    kaggle_server.clock_skew = timedelta(hours=hours)
    kaggle_server.fail(CREATE, fake.lose_reply)
    done = run(*BLEND)
    assert_arrived_once(done, kaggle_server)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(history()[0]["time"])) < timedelta(minutes=1)


@pytest.mark.parametrize("call", [START, "PUT"])
def test_an_upload_that_fails_to_the_end_leaves_nothing_behind(run, kaggle_server, call):
    kaggle_server.fail(call, *[fake.status(500)] * client.TRIES)
    done = run(*BLEND)
    assert outcome(done, kaggle_server) == (1, 0, ["REFUSED"])
    assert "Kaggle answered 500: Internal Server Error" in done.error
    assert done.pauses == [1, 2, 4, 8]


def test_an_upload_reset_on_the_way_starts_from_its_first_byte(run, kaggle_server):
    kaggle_server.fail("PUT", *[fake.cut_body(1000)] * 3)
    assert_arrived_once(run(*BLEND), kaggle_server)
    assert kaggle_server.calls("PUT") == 4


@pytest.mark.parametrize("code", [403, 404])
def test_a_refused_upload_is_no_submission(run, kaggle_server, code):
    kaggle_server.fail("PUT", fake.status(code))
    done = run(*BLEND)
    assert outcome(done, kaggle_server) == (1, 0, ["REFUSED"])
    assert done.error.startswith(f"error: the upload: Kaggle answered {code}")
    assert not kaggle_server.calls(CREATE)


def test_the_address_of_an_upload_is_never_shown(run, kaggle_server):
    kaggle_server.fail("PUT", fake.hang_up, fake.status(502), fake.status(403))
    done = run(*BLEND)
    assert "no answer from 127.0.0.1 (ConnectionError)" in done.err
    assert "secret" not in done.out + done.err + Path(HISTORY).read_text()


@pytest.mark.parametrize("call", [START, "PUT", CREATE, POLL])
def test_a_closed_connection_is_outlived(run, kaggle_server, call):
    kaggle_server.fail(call, fake.hang_up)
    assert_arrived_once(run(*BLEND), kaggle_server)


def test_a_submission_whose_reply_is_lost_is_found_and_not_sent_again(run, kaggle_server):
    kaggle_server.fail(CREATE, fake.lose_reply)
    assert_arrived_once(run(*BLEND), kaggle_server)
    assert kaggle_server.calls(CREATE) == 1


def test_a_gateway_fault_after_the_submission_was_made_does_not_double_it(run, kaggle_server):
    def make_and_fail(handler, work):
        work()
        handler.reply(502, "<html>bad gateway</html>")

    kaggle_server.fail(CREATE, make_and_fail)
    assert_arrived_once(run(*BLEND), kaggle_server)
    assert kaggle_server.calls(CREATE) == 1


def test_an_answer_without_a_number_is_no_success(run, kaggle_server):
    def no_number(handler, work):
        handler.reply(200, {"message": "Could not submit to competition"})

    kaggle_server.fail(CREATE, *[no_number] * client.TRIES)
    done = run(*BLEND)
    assert outcome(done, kaggle_server) == (1, 0, ["SENDING"])
    assert "Kaggle's answer has no submission number: Could not submit to competition" in done.error


def test_an_answer_that_makes_no_sense_is_a_lost_reply(run, kaggle_server):
    def nonsense(handler, work):
        work()
        handler.reply(200, "<html>Kaggle is busy</html>")

    kaggle_server.fail(CREATE, nonsense)
    assert_arrived_once(run(*BLEND), kaggle_server)
    assert kaggle_server.calls(CREATE) == 1


def test_an_error_code_inside_a_good_answer_is_an_error(run, kaggle_server):
    def refused(handler, work):
        handler.reply(200, {"code": 403, "message": "denied"})

    kaggle_server.fail(START, refused)
    done = run(*BLEND)
    assert outcome(done, kaggle_server) == (1, 0, ["REFUSED"])
    assert f"Kaggle answered 403: denied: {RULES}" in done.error


def test_a_silent_server_is_left_after_the_time_limit(run, kaggle_server):
    never = threading.Event()
    kaggle_server.fail(START, *[fake.silence(never, then_work=False)] * client.TRIES)
    done = run(*BLEND, timeout=0.1)
    never.set()
    assert outcome(done, kaggle_server) == (1, 0, ["REFUSED"])
    assert "start_submission_upload: no answer from 127.0.0.1 (ReadTimeout)" in done.error


def test_a_silence_shorter_than_the_time_limit_is_waited_for(run, kaggle_server):
    timer = threading.Timer(0.3, (awake := threading.Event()).set)
    timer.start()
    kaggle_server.fail(CREATE, fake.silence(awake))
    done = run(*BLEND)
    assert_arrived_once(done, kaggle_server)
    assert (kaggle_server.calls(CREATE), done.pauses) == (1, [submission_requests.POLL_PAUSE])


def test_a_submission_made_during_a_long_silence_is_waited_for_and_not_doubled(run, kaggle_server):
    awake = threading.Event()

    def on_pause():
        looked = kaggle_server.calls("ListSubmissions")
        if looked == 1:  # the first look found nothing: now the server wakes up
            awake.set()
            while not kaggle_server.submissions:
                threading.Event().wait(0.005)

    kaggle_server.fail(CREATE, fake.silence(awake))
    done = run(*BLEND, timeout=0.2, on_pause=on_pause)
    assert_arrived_once(done, kaggle_server)
    assert (kaggle_server.calls(CREATE), kaggle_server.calls("ListSubmissions")) == (1, 2)


def test_a_command_cut_short_after_the_submission_finds_it_the_next_time(run, kaggle_server):
    kaggle_server.fail(CREATE, fake.lose_reply)
    kaggle_server.fail("ListSubmissions", *[fake.status(500)] * client.TRIES)
    first = run(*BLEND)
    assert outcome(first, kaggle_server) == (1, 1, ["SENDING"])
    assert "may be at Kaggle: run the command again, it looks there before it sends" in first.error
    assert_arrived_once(run(*BLEND), kaggle_server)


def test_a_command_cut_short_before_the_submission_makes_it_the_next_time(run, kaggle_server):
    kaggle_server.fail(CREATE, fake.hang_up)
    kaggle_server.fail("ListSubmissions", *[fake.status(500)] * client.TRIES)
    assert outcome(run(*BLEND), kaggle_server) == (1, 0, ["SENDING"])
    assert_arrived_once(run(*BLEND), kaggle_server)


def held_back(asked: threading.Event, until: threading.Event):
    """Take a request, and do what it asks for only later, whether or not the client is still there."""

    def fault(handler, work):
        asked.set()
        until.wait(60)
        handler.finish_work(work)

    return fault


def test_ctrl_c_while_kaggle_is_slow_and_the_same_command_again_make_one_submission(
    project, proxied_server, no_network
):
    put_key(no_network)
    proxied_server.polls_until_scored = 0
    argv = ("--file", altered(lambda rows: None))
    asked, until = threading.Event(), threading.Event()
    proxied_server.fail(CREATE, held_back(asked, until))
    first = subprocess.Popen(
        [sys.executable, "-m", "ich_kaggle.submit", *argv],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in background
    )
    assert asked.wait(60)
    first.send_signal(signal.SIGINT)
    told = first.communicate(timeout=60)[1]
    assert (first.returncode, told.splitlines()[-1]) == (130, "interrupted: run the same command to resume")
    (row,) = history()
    assert (row["status"], proxied_server.submissions) == ("SENDING", [])

    def not_yet(handler, work):
        handler.finish_work(work)
        until.set()

    proxied_server.fail("ListSubmissions", not_yet)
    again = shell(*argv)
    assert again.returncode == 0, again.stderr
    assert again.stderr == (
        f"submission [{row['tag']}] was being sent at {row['time']}: looking for it at Kaggle, for up to 120 s\n"
    )
    assert "mine.csv: already sent, not sent again" in again.stdout
    assert (len(proxied_server.submissions), proxied_server.calls(CREATE)) == (1, 1)
    assert [(row["status"], row["ref"]) for row in history()] == [("COMPLETE", str(REF))]


def put_sending(ago: timedelta) -> str:
    """Put a command that was cut short `ago` into the history; return the flags that name its file."""
    path = Path(altered(lambda rows: None))
    row = submission_log.new_row(
        "cut short", name="mine", file=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
    )
    submission_log.record(Path(HISTORY), row | {"time": f"{datetime.now(UTC) - ago:%Y-%m-%dT%H:%M:%SZ}"})
    return str(path)


@pytest.mark.parametrize("ago", [timedelta(), timedelta(minutes=20), -timedelta(days=1)])
def test_what_was_just_being_sent_is_looked_for_as_long_as_it_may_arrive_and_then_sent(run, kaggle_server, ago):
    done = run("--file", put_sending(ago))
    assert outcome(done, kaggle_server) == (0, 1, ["COMPLETE"])
    assert sum(done.pauses) == submission_requests.LONGEST_LOOK + submission_requests.POLL_PAUSE
    assert "looking for it at Kaggle, for up to 120 s\n" in done.err
    assert "is not at Kaggle: sending it again\n" in done.err


def test_what_was_being_sent_yesterday_is_looked_for_once_and_then_sent(run, kaggle_server):
    done = run("--file", put_sending(timedelta(days=1)))
    assert outcome(done, kaggle_server) == (0, 1, ["COMPLETE"])
    assert (done.pauses, kaggle_server.calls("ListSubmissions")) == ([submission_requests.POLL_PAUSE], 1)
    assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(history()[0]["time"]) < timedelta(minutes=5)


def test_again_finishes_a_command_that_was_cut_short_before_it_sends_once_more(run, kaggle_server):
    kaggle_server.fail(CREATE, fake.lose_reply)
    kaggle_server.fail("ListSubmissions", *[fake.status(500)] * client.TRIES)
    assert outcome(run(*BLEND, "--again"), kaggle_server) == (1, 1, ["SENDING"])
    assert_arrived_once(run(*BLEND, "--again"), kaggle_server)
    assert outcome(run(*BLEND, "--again"), kaggle_server) == (0, 2, ["COMPLETE", "COMPLETE"])


def test_an_interrupted_upload_is_no_submission_and_is_repeated(run, kaggle_server, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(client.Connection, "put", interrupt)
        assert outcome(run(*BLEND), kaggle_server) == (1, 0, [])
    done = run(*BLEND)
    assert_arrived_once(done, kaggle_server)
    assert not kaggle_server.calls("ListSubmissions")


def test_a_refusal_after_a_lost_reply_says_that_the_submission_may_be_there(run, kaggle_server):
    kaggle_server.fail(CREATE, fake.hang_up, fake.status(400, "daily limit"))
    done = run(*BLEND)
    assert outcome(done, kaggle_server) == (1, 0, ["SENDING"])
    assert "daily limit" in done.error
    assert "may be at Kaggle" in done.error


def test_the_same_file_is_sent_twice_only_on_demand(run, kaggle_server):
    run(*BLEND)
    second = run(*BLEND)
    assert outcome(second, kaggle_server) == (1, 1, ["COMPLETE"])
    assert f"Kaggle has these numbers as submission {REF} (COMPLETE)" in second.error
    assert outcome(run(*BLEND, "--again"), kaggle_server) == (0, 2, ["COMPLETE", "COMPLETE"])
    assert [row["ref"] for row in history()] == [str(REF), str(REF + 1)]


def test_a_submission_that_cannot_be_scored_is_an_error_with_kaggles_reason(run, kaggle_server):
    reason = "Submission contains null values"
    kaggle_server.scores = {"status": "ERROR", "errorDescription": reason, "publicScore": "", "privateScore": ""}
    done = run(*BLEND, "-m", "mine")
    assert outcome(done, kaggle_server) == (1, 1, ["ERROR"])
    assert done.error == f"error: submission {REF}: Kaggle cannot score it: {reason}"
    assert history()[0]["note"] == f"mine: {reason}"


def test_a_message_in_any_language_arrives_and_is_recorded(run, kaggle_server):
    message = 'fünf Falten, 出血, "quoted", 🧠'
    assert_arrived_once(run(*BLEND, "-m", message), kaggle_server)
    assert kaggle_server.submissions[0]["description"].startswith(message)
    assert history()[0]["note"] == message


def test_scores_are_polled_for_until_they_are_there(run, kaggle_server):
    kaggle_server.polls_until_scored = 6
    done = run(*BLEND)
    assert_arrived_once(done, kaggle_server)
    assert done.pauses == [submission_requests.POLL_PAUSE] * 6


def test_scores_that_never_come_are_left_to_status(run, kaggle_server, monkeypatch):
    monkeypatch.setattr(submission_requests, "POLLS", 3)
    kaggle_server.polls_until_scored = 4
    done = run(*BLEND)
    assert outcome(done, kaggle_server) == (1, 1, ["PENDING"])
    assert done.error.startswith(f"error: submission {REF} is at Kaggle, but its scores are unknown")
    kaggle_server.polls_until_scored = 0
    assert run("--status").code == 0
    assert outcome(run("--status"), kaggle_server) == (0, 1, ["COMPLETE"])


def test_a_command_cut_short_while_it_waits_for_scores_goes_on_waiting(run, kaggle_server):
    run(*BLEND, "--no-wait")
    assert_arrived_once(run(*BLEND), kaggle_server)
    assert kaggle_server.calls(CREATE) == kaggle_server.calls(START) == 1
    assert history()[0]["private"] == "0.04891"


def test_a_bit_turned_over_in_the_hash_of_the_history_does_not_double_a_submission(run, kaggle_server):
    run(*BLEND)
    path, digest = Path(HISTORY), history()[0]["sha256"]
    path.write_text(path.read_text().replace(digest, digest[::-1]))
    done = run(*BLEND)
    assert (done.code, len(kaggle_server.submissions)) == (1, 1)
    assert (
        f"was sent with other numbers (sha256 {digest[::-1][:12]}, now {digest[:12]}): mend the history" in done.error
    )


def test_no_wait_leaves_the_scores_to_status(run, kaggle_server):
    done = run(*BLEND, "--no-wait", "-m", "later")
    assert outcome(done, kaggle_server) == (0, 1, ["PENDING"])
    assert not kaggle_server.calls(POLL)
    kaggle_server.submissions[0]["polls"] = 9
    shown = run("--status")
    assert outcome(shown, kaggle_server) == (0, 1, ["COMPLETE"])
    header, line = shown.out.splitlines()
    assert header.split() == ["status", "ref", "date", "public_score", "private_score", "description"]
    assert line.startswith(f"COMPLETE  {REF}")
    assert line.endswith(f"later [{history()[0]['tag']}]")
    assert history()[0]["private"] == "0.04891"


def test_status_finds_a_submission_whose_reply_was_lost(run, kaggle_server):
    kaggle_server.fail(CREATE, fake.lose_reply)
    kaggle_server.fail("ListSubmissions", *[fake.status(500)] * client.TRIES)
    run(*BLEND)
    kaggle_server.submissions[0]["polls"] = 9
    run("--status")
    assert [(row["status"], row["ref"]) for row in history()] == [("COMPLETE", str(REF))]


def test_status_without_any_submission_says_so(run, kaggle_server):
    assert run("--status").out == "no submission yet\n"


def test_offline_is_one_line_with_the_way_through_the_browser(run, no_network, monkeypatch):
    monkeypatch.setenv("KAGGLE_USERNAME", fake.USER)
    monkeypatch.setenv("KAGGLE_KEY", fake.KEY)
    done = run(*BLEND)
    assert (done.code, history()) == (1, [])
    assert "no answer from api.kaggle.com (ProxyError)" in done.error
    assert done.pauses == [] and "correct HTTPS_PROXY" in done.error  # that of `no_network` leads nowhere
    assert only_csv().exists()


def test_offline_with_a_token_is_one_line_too(run, no_network, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", fake.TOKEN)
    done = run(*BLEND)
    assert (done.code, history()) == (1, [])
    assert "no answer from api.kaggle.com (ProxyError)" in done.error
    assert f"or upload {only_csv()} in the browser at" in done.error


@pytest.mark.parametrize("fault", [fake.hang_up, fake.lose_reply])
def test_behind_a_proxy_a_lost_reply_doubles_nothing_either(run, kaggle_server, monkeypatch, fault):
    monkeypatch.setenv("HTTP_PROXY", kaggle_server.url)
    for call in (START, CREATE, POLL):
        kaggle_server.fail(call, fault)
    assert_arrived_once(run(*BLEND), kaggle_server)


# Credentials, each in a process of its own, as the client reads them once.


def put_key(home) -> None:
    (home / ".kaggle").mkdir(exist_ok=True)
    path = home / ".kaggle" / "kaggle.json"
    path.write_text(f'{{"username": "{fake.USER}", "key": "{fake.KEY}"}}')
    path.chmod(0o600)


def put_token(home, token: str) -> None:
    (home / ".kaggle").mkdir(exist_ok=True)
    path = home / ".kaggle" / "access_token"
    path.write_text(token + "\n")
    path.chmod(0o600)


def assert_untold(done: subprocess.CompletedProcess) -> None:
    """Fail if a secret is in what was printed or recorded."""
    told = done.stdout + done.stderr + (Path(HISTORY).read_text() if Path(HISTORY).exists() else "")
    assert not [secret for secret in (fake.KEY, fake.TOKEN, "KGAT_stale") if secret in told]


def test_a_process_of_its_own_submits_with_a_key_and_prints_only_our_lines(project, proxied_server, no_network):
    put_key(no_network)
    proxied_server.polls_until_scored = 0
    done = shell(*BLEND, "-m", "от конца до конца")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        TAKEN.strip(),
        f"{only_csv()}: verified, 120 rows",
        f"{only_csv()}: submission {REF}",
        "public 0.04732  private 0.04891",
    ]
    source = no_network / ".kaggle" / "kaggle.json"
    assert done.stderr == f"credentials: {source}; rules: accepted; submissions left today: not known\n"
    assert proxied_server.submissions[0]["description"].startswith("от конца до конца [ich-")
    assert proxied_server.content(proxied_server.submissions[0]) == only_csv().read_bytes()
    assert_untold(done)


@pytest.mark.parametrize("place", ["the environment variable KAGGLE_API_TOKEN", "~/.kaggle/access_token"])
def test_a_token_wins_over_a_key_and_is_named(project, proxied_server, no_network, place):
    put_key(no_network)
    proxied_server.polls_until_scored = 0
    env = {"KAGGLE_API_TOKEN": fake.TOKEN} if "environment" in place else {}
    if not env:
        put_token(no_network, fake.TOKEN)
    done = shell(*BLEND, **env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"credentials: {place};")
    assert_untold(done)


@pytest.mark.parametrize("place", ["the environment variable KAGGLE_API_TOKEN", "~/.kaggle/access_token"])
def test_a_stale_token_beside_a_good_key_is_named_and_nothing_is_sent(project, proxied_server, no_network, place):
    put_key(no_network)
    env = {"KAGGLE_API_TOKEN": "KGAT_stale"} if "environment" in place else {}
    if not env:
        put_token(no_network, "KGAT_stale")
    done = shell(*BLEND, **env)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    key = no_network / ".kaggle" / "kaggle.json"
    assert f"Kaggle does not accept the token in {place}, which is sent instead of the key in {key}" in done.stderr
    assert not proxied_server.calls(START)
    assert_untold(done)


def test_a_stale_token_alone_is_named(project, proxied_server, no_network):
    put_token(no_network, "KGAT_stale")
    done = shell(*BLEND)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Kaggle does not accept the token in ~/.kaggle/access_token: make a token")
    assert_untold(done)


@pytest.mark.parametrize("token", ["\ufeffKGAT_stale", "KGAT_stäle", "KGAT\n_stale"])
def test_a_token_that_is_no_plain_text_is_named_and_nobody_asked(project, proxied_server, no_network, token):
    put_token(no_network, token)
    done = shell(*BLEND)
    assert done.stderr.startswith(f"error: ~/.kaggle/access_token is not a token in plain text: {client.NEW_TOKEN}")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert not proxied_server.calls("IntrospectToken")
    assert_untold(done)


def test_a_damaged_key_is_named(project, proxied_server, no_network):
    put_key(no_network)
    path = no_network / ".kaggle" / "kaggle.json"
    path.write_text("{broken")
    done = shell(*BLEND)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert f"no readable Kaggle credentials in {path}" in done.stderr


def test_a_token_that_kaggle_refuses_outright_is_named(run, kaggle_server, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_stale")
    kaggle_server.fail("IntrospectToken", *[fake.status(401, "Unauthenticated")] * 9)
    done = run(*BLEND)
    assert outcome(done, kaggle_server) == (1, 0, [])
    assert "the environment variable KAGGLE_API_TOKEN" in done.error
    assert "Kaggle answered 401: Unauthenticated" in done.error


def test_without_credentials_the_csv_is_kept_and_one_line_says_what_to_do(project, proxied_server):
    done = shell(*BLEND)
    assert (done.returncode, done.stdout) == (1, f"{TAKEN}{only_csv()}: verified, 120 rows\n")
    assert done.stderr == (
        f"error: no Kaggle credentials: {client.NEW_TOKEN}; or upload {only_csv()} in the browser at "
        f"https://www.kaggle.com/competitions/{paths.SLUG}/submit\n"
    )


@pytest.mark.parametrize(
    "at_import, message",
    [
        ("import six_is_missing", "No module named 'six_is_missing'"),
        ("print('Authentication required'); exit(1)", "no Kaggle credentials"),
    ],
)
def test_a_client_that_cannot_be_imported_is_one_line(project, no_network, at_import, message):
    (project / "other" / "kaggle").mkdir(parents=True)
    (project / "other" / "kaggle" / "__init__.py").write_text(at_import + "\n")
    done = shell(*BLEND, before=str(project / "other"))
    assert (done.returncode, done.stdout) == (1, f"{TAKEN}{only_csv()}: verified, 120 rows\n")
    assert (message in done.stderr, len(done.stderr.splitlines())) == (True, 1)


def test_a_server_that_is_silent_while_the_client_is_imported_is_left_too(project, proxied_server):
    never = threading.Event()
    proxied_server.fail("IntrospectToken", *[fake.silence(never, then_work=False)] * 9)
    code = "from ich_kaggle.kaggle_api import client; client.connect(timeout=0.1, sleep=lambda seconds: None)"
    env = os.environ | {"KAGGLE_API_TOKEN": fake.TOKEN}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False, timeout=30
    )
    never.set()
    assert proxied_server.calls("IntrospectToken") == 1 + client.TRIES
    assert done.stderr.splitlines()[-1].startswith("ConnectionError: signing in with the token in the environment")
    assert_untold(done)


# The history.


def put_history(*scores: tuple[str, str]) -> None:
    for i, (oof, private) in enumerate(scores):
        row = submission_log.new_row("", name=f"blend{i}", oof=oof, sha256="0")
        submission_log.record(Path(HISTORY), row | {"private": private, "status": "COMPLETE", "ref": str(REF + i)})


def test_every_column_and_status_of_the_history_is_explained():
    text = (Path(__file__).parents[1] / "submissions" / "README.md").read_text()
    explained = re.findall(r"^\| `(\w+)` \| ", text, re.MULTILINE)
    assert explained == [*submission_log.COLUMNS, "SENDING", "REFUSED", "PENDING", "COMPLETE", "ERROR"]


def test_history_shows_the_out_of_fold_loss_beside_the_private_score(run):
    put_history(("0.05230", "0.04891"), ("0.05110", ""))
    header, first, second = run("--history").out.splitlines()
    assert header.split() == ["time", "name", "oof", "public", "private", "status", "ref", "note"]
    assert first.split()[1:] == ["blend0", "0.05230", "-", "0.04891", "COMPLETE", str(REF), "-"]
    assert second.split()[1:] == ["blend1", "0.05110", "-", "-", "COMPLETE", str(REF + 1), "-"]


def test_a_token_may_be_the_path_of_a_file(tmp_path, monkeypatch, no_network):
    (tmp_path / "schlüssel").write_text(f"{fake.TOKEN}\n")
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(tmp_path / "schlüssel"))
    assert client._token_source() == "the environment variable KAGGLE_API_TOKEN"
    (tmp_path / "schlüssel").write_text("schlüssel")
    with pytest.raises(PermissionError, match="is not a token in plain text"):
        client._token_source()


def test_what_a_message_holds_can_not_steer_the_terminal():
    row = dict.fromkeys(submission_log.SHOWN, "") | {"note": "one\n\x1b[31mtwo"}
    assert all(line.isprintable() for line in submission_log.table([row], submission_log.SHOWN).splitlines())
    assert submission_log.table([row], submission_log.SHOWN).splitlines()[1].endswith("one ?[31mtwo")


def test_a_history_of_nothing_says_so(run):
    assert run("--history").out == f"{HISTORY}: no submission yet\n"


@pytest.mark.parametrize("text", ["a,b\n1,2\n", ",".join(submission_log.COLUMNS) + "\n2026,cut"])
def test_a_damaged_history_is_named_and_nothing_is_sent(run, kaggle_server, text):
    Path("submissions").mkdir()
    Path(HISTORY).write_text(text)
    done = run(*BLEND)
    assert (done.code, f"{HISTORY}: damaged" in done.error) == (1, True)
    assert not kaggle_server.requests
    assert Path(HISTORY).read_text() == text


@pytest.mark.slow
def test_a_submission_of_full_size_arrives_byte_for_byte(tmp_path, kaggle_server, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_competition(tmp_path, n_train=2000, n_test=121_232)
    kaggle_server.fail("PUT", fake.cut_body(5_000_000))
    connect = functools.partial(client.connect, sleep=lambda seconds: None)
    cli.run(opening(functools.partial(submit.command, connect=connect)), submit.build_parser(), list(BLEND))
    content = only_csv().read_bytes()
    assert content.count(b"\n") == 727_393
    assert kaggle_server.content(kaggle_server.submissions[0]) == content
    assert f"{only_csv()}: verified, 727392 rows" in capfd.readouterr().out
