"""Training at Kaggle in sessions: `kernel train` against the server, which runs what is pushed and kills some of it."""

import functools
import json
import os
import random
import shutil
import signal
import sys
from multiprocessing import get_context
from pathlib import Path

import kaggle_image as image
import kaggle_server as fake
import pytest

from ich_kaggle import folds, kernel, predict, submit, train
from ich_kaggle.common import cli, paths, storage
from ich_kaggle.common.runs import Run
from ich_kaggle.kaggle_api import client, kernel_build, kernel_sessions
from ich_kaggle.learning import handover

no_network, kaggle_server = fake.no_network, fake.kaggle_server

KERNELS = Path(__file__).parents[1] / "kernels"
TINY = """arch = "test_resnet"
weights = "none"
image-size = 32
cache-size = 64
batch-size = 8
epochs = 2
workers = 0
device = "cpu"
checkpoint-every = 0
"""
RUN = ("train", "--user", fake.USER, "--recipe", "tiny.toml", "--folds", "3", "--kernels-dir", str(KERNELS))
SANDBOX = pytest.mark.skipif(bool(image.why_no_namespaces()), reason=image.why_no_namespaces())


@pytest.fixture
def laptop(tmp_path, monkeypatch):
    """The current folder of the laptop, with the recipe tiny.toml."""
    folder = tmp_path / "laptop"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "tiny.toml").write_text(TINY)
    return folder


def run(*argv: str) -> None:
    """Run the command without its pauses."""
    connect = functools.partial(client.connect, sleep=lambda seconds: None, timeout=image.TIMEOUT)
    kernel.kernel(**vars(kernel.build_parser().parse_args(argv)), connect=connect)


def sessions(server) -> list[dict]:
    """Return the settings of all sessions that were pushed, in order."""
    pushed = [one for versions in server.kernels.values() for one in versions]
    found = [kernel_build.settings_in(one.request["text"]) for one in pushed]
    return sorted(found, key=lambda settings: settings["session"])


def local_run(folder: Path, competition: Path) -> Path:
    """Return the work folder of an undisturbed run of the recipe on this machine."""
    shared = ["--work-dir", str(folder / "work"), "--workers", "0"]
    (folder / "tiny.toml").write_text(TINY)
    folds.main([*shared, "--data-dir", str(competition), "--folds", "3"])
    train.main([*shared, "--recipe", str(folder / "tiny.toml")])
    predict.main([*shared, "--run", "tiny"])
    return folder / "work"


@pytest.fixture(scope="module")
def undisturbed(competition, tmp_path_factory):
    return local_run(tmp_path_factory.mktemp("undisturbed"), competition)


class Image:
    """Runs each kernel that is pushed, in a folder of its own; the plan says how the first sessions end.

    A number: killed at that file; 0: its hours are over at once; None and beyond the plan: undisturbed.
    """

    def __init__(self, server, folder: Path, competition: Path, plan: list, layout: str = "new", mounts_failed=True):
        self.server, self.folder, self.competition = server, folder, competition
        self.plan, self.layout, self.mounts_failed = plan, layout, mounts_failed
        self.ended: list[str] = []

    def output_of(self, name: str) -> dict[str, bytes]:
        """Return what Kaggle mounts of a kernel: of its last version, or of the last one that succeeded."""
        ended = [one.output for one in self.server.kernels[name] if one.output and one.output.status != "RUNNING"]
        found = [output for output in ended if self.mounts_failed or output.status == "COMPLETE"]
        return found[-1].files if found else {}

    def __call__(self, pushed: fake.Kernel) -> fake.Output:
        n, text = len(self.ended), pushed.request["text"]
        end = self.plan[n] if n < len(self.plan) else None
        folder = self.folder / f"session{n}"
        folder.mkdir()
        attached = {name: self.output_of(name) for name in pushed.request.get("kernelDataSources", [])}
        inputs = image.lay_out(folder, self.competition, {}, self.layout, attached)
        if end == 0:
            text = text.replace('"hours": 10.0', '"hours": 0.0')
        code, log, working = image.run(folder, text, inputs, sandboxed=True, kill_at=end or 0)
        state = "ERROR" if code else "COMPLETE"
        self.ended.append("killed" if code in (137, -9) else state)
        files = image.files_in(working)
        shutil.rmtree(folder)
        return fake.Output(state, files, log, "Your notebook was killed" if code else "")


def same_folds(work: Path, undisturbed: Path) -> None:
    """Assert that the folds of both are equal, byte for byte, and that nothing else is left."""
    ours, theirs = (image.files_in(folder / "runs" / "tiny") for folder in (work, undisturbed))
    shown = [{name for name in files if not name.startswith(".")} for files in (ours, theirs)]
    assert shown[0] == shown[1]
    assert [name for name in shown[0] if name != "run.json" and ours[name] != theirs[name]] == []
    assert Run(work, "tiny").settings == Run(undisturbed, "tiny").settings


@SANDBOX
@pytest.mark.slow
@pytest.mark.parametrize(("layout", "mounts_failed"), [("new", True), ("old", False)])
def test_sessions_that_are_killed_end_in_the_folds_of_one_undisturbed_run(
    kaggle_server, laptop, competition, undisturbed, tmp_path, layout, mounts_failed
):
    rng = random.Random(layout)
    plan = [rng.randrange(2, 9), rng.randrange(20, 35), 0, rng.randrange(20, 35), rng.randrange(20, 35)]
    runs = kaggle_server.run_kernel = Image(kaggle_server, tmp_path, competition, plan, layout, mounts_failed)
    run(*RUN, "--fold", "all", "--yes", "--sessions", "9")
    assert runs.ended[:5].count("killed") == 4 and runs.ended[2] == "COMPLETE"
    assert [one["session"] for one in sessions(kaggle_server)] == list(range(1, len(runs.ended) + 1))
    same_folds(laptop / "work", undisturbed)
    for name in (paths.TRAIN_CSV, paths.SAMPLE_CSV):  # all that a laptop has
        (laptop / paths.DEFAULT).mkdir(parents=True, exist_ok=True)
        shutil.copy2(competition / name, laptop / paths.DEFAULT / name)
    submit.main(["--run", "tiny", "--dry-run"])
    assert len(list((laptop / "submissions").glob("*-tiny.csv"))) == 1


def doomed(n: int) -> None:
    """Run the command in this process, and kill it at its event number `n`: a file or a connection."""
    left = n

    def hook(event: str, args: tuple) -> None:
        nonlocal left
        if event in ("os.rename", "os.mkdir", "os.remove", "shutil.copyfile", "socket.connect", "shutil.rmtree"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    run(*RUN, "--yes", "--sessions", "9")


@SANDBOX
@pytest.mark.slow
def test_a_laptop_that_is_killed_at_any_moment_doubles_and_loses_nothing(
    kaggle_server, laptop, competition, undisturbed, tmp_path
):
    rng, n_kills, n_killed = random.Random(0), int(os.environ.get("ICH_LAPTOP_KILLS", "8")), 0
    runs = kaggle_server.run_kernel = Image(kaggle_server, tmp_path, competition, [5, 25, 0, 30, 30])
    while n_killed < n_kills:
        if Run(laptop / "work", "tiny").predicted == [0, 1, 2]:
            shutil.rmtree(laptop / "work")  # another machine goes on
        process = get_context("fork").Process(target=doomed, args=(rng.randrange(1, 60),))
        process.start()
        process.join()
        n_killed += process.exitcode == -signal.SIGKILL
    run(*RUN, "--yes", "--sessions", "9")
    print(f"{n_killed} kills, {len(runs.ended)} sessions: {runs.ended}")
    assert [one["session"] for one in sessions(kaggle_server)] == list(range(1, len(runs.ended) + 1))
    assert len(runs.ended) >= 5
    same_folds(laptop / "work", undisturbed)


# Faults of the client, against canned sessions: the first leaves fold 0, the second all.


@pytest.fixture
def canned(kaggle_server, undisturbed):
    files = image.files_in(undisturbed / "runs")
    files = {f"runs/{name}": content for name, content in files.items() if "/." not in name}
    files |= {f"tables/{path.name}": path.read_bytes() for path in undisturbed.iterdir() if path.is_file()}

    def run_kernel(pushed: fake.Kernel) -> fake.Output:
        n = kernel_build.settings_in(pushed.request["text"])["session"]
        left = {name: content for name, content in files.items() if n > 1 or "fold0" in name or "fold" not in name}
        note = {"session": n, "ready": True}
        return fake.Output("COMPLETE", left | {"session.json": json.dumps(note).encode()}, "epoch 1\n")

    kaggle_server.run_kernel = run_kernel
    return kaggle_server


def fine(handler, work) -> None:
    handler.finish_work(work)


CALLS = ("GetKernel", "SaveKernel", "GetKernelSessionStatus", "ListKernelSessionOutput", "GET")
FAULTS = {
    "401": fake.status(401, "Unauthenticated"),
    "403": fake.status(403, "Permission was denied"),
    "429": fake.status(429, "slow down", Retry_After="9999"),
    "500": fake.status(500),
    "hang-up": fake.hang_up,
    "no JSON": lambda handler, work: handler.reply(200, "<html>maintenance</html>"),
    "lost reply": fake.lose_reply,
}


@pytest.mark.parametrize("after", [0, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("call", CALLS)
def test_each_fault_of_each_call_is_a_line_or_nothing_and_the_same_command_goes_on(
    canned, laptop, undisturbed, call, after
):
    met = {}
    for name, fault in FAULTS.items():
        if call == "GetKernel" and name == "403":  # the answer for a kernel that does not exist
            continue
        canned.kernels.clear()
        shutil.rmtree("work", ignore_errors=True)
        canned.faults[call] = [*after * [fine], *12 * [fault]]
        try:
            run(*RUN, "--yes")
        except (OSError, RuntimeError, ValueError) as error:
            met[name] = cli.one_line(error)
        canned.faults.clear()
        run(*RUN, "--yes")
        assert [one["session"] for one in sessions(canned)] == [1, 2], name
        same_folds(laptop / "work", undisturbed)
    print(met)
    assert after or len(met) >= 5
    assert all("\n" not in line and len(line) < 400 for line in met.values())


# Refusals, and sessions that end badly.


def test_nothing_is_pushed_unasked_or_with_a_recipe_that_train_refuses(canned, laptop, capsys):
    with pytest.raises(ValueError, match="no terminal to ask on: give --yes"):
        run(*RUN)
    assert "up to 5 sessions of 10 h on Kaggle's GPUs" in capsys.readouterr().out
    for text, message in (
        ("epoch = 1", "unrecognized arguments: --epoch=1"),
        ("window = 'brain'", "does nothing without"),
    ):
        (laptop / "tiny.toml").write_text(f'{text}\narch = "test_resnet"\n')
        with pytest.raises(ValueError, match=message):
            run(*RUN, "--yes")
    (laptop / "tiny.toml").write_text(TINY)
    with pytest.raises(ValueError, match="--fold 3: the folds are 0 to 2"):
        run(*RUN, "--yes", "--fold", "3")
    assert not sessions(canned)


def test_the_number_of_sessions_is_a_limit_and_other_settings_are_no_next_session(canned, laptop):
    with pytest.raises(RuntimeError, match="1 sessions are over, fold 1, 2 is not complete: run the same command"):
        run(*RUN, "--yes", "--sessions", "1")
    (laptop / "tiny.toml").write_text(TINY + "seed = 1\n")
    with pytest.raises(ValueError, match="ich-train-tiny-a was made with recipe [0-9a-f]{12}, not .*or another --run"):
        run(*RUN, "--yes")
    assert len(sessions(canned)) == 1


def left(n: int, **note) -> dict[str, bytes]:
    return {"session.json": json.dumps({"session": n, **note}).encode()}


def test_a_session_that_fails_by_itself_is_the_last_until_the_command_is_repeated(canned, laptop, undisturbed):
    run_kernel = canned.run_kernel
    canned.run_kernel = lambda pushed: fake.Output("ERROR", left(1, ready=True, error="error: no ImageNet weights"))
    with pytest.raises(RuntimeError, match="session 1 at .*ich-train-tiny-a failed: no ImageNet weights .log: build/"):
        run(*RUN, "--yes")
    assert len(sessions(canned)) == 1
    canned.run_kernel = run_kernel
    run(*RUN, "--yes")
    assert [one["attached"] for one in sessions(canned)] == [[], ["ich-train-tiny-a"]]
    same_folds(laptop / "work", undisturbed)


def test_sessions_that_bring_nothing_further_are_given_up(canned, laptop):
    canned.run_kernel = lambda pushed: fake.Output("ERROR", failure="Your notebook ran out of memory")
    with pytest.raises(RuntimeError, match="3 sessions in a row brought no fold further: see build/"):
        run(*RUN, "--yes")
    assert [one["slug"] for one in sessions(canned)] == 3 * ["ich-train-tiny-a"]  # none had begun: the same again


def test_the_last_session_that_was_not_killed_stays_attached():
    chain = kernel_sessions.Sessions(None, "u", "b0+b4", Path("ich-train"), Path())
    wanted = {"run": "b0+b4", "toml": "", "folds": 5, "seed": 0}
    last, attached = {}, []
    for state in ("", "COMPLETE", "ERROR", "ERROR (killed)", "COMPLETE"):
        last = chain.next(last, kernel_sessions.End(state, is_good=bool(state)), wanted)
        attached.append((last["slug"][-1], [slug[-1] for slug in last["attached"]]))
        assert last["slug"].startswith("ich-train-b0-b4-")
    assert attached == [("a", []), ("b", ["a"]), ("c", ["b", "a"]), ("b", ["c", "a"]), ("a", ["b"])]


def test_an_earlier_session_that_kaggle_still_shows_is_not_taken_for_this_one(canned, laptop, undisturbed):
    def stale(handler, work):
        handler.reply(200, {"files": [{"fileName": "session.json", "url": f"{canned.url}/old"}], "log": "[]"})

    canned.stored["/old"] = left(0, ready=True)["session.json"]
    canned.fail("ListKernelSessionOutput", fine, stale, stale)
    run(*RUN, "--yes")
    assert [one["session"] for one in sessions(canned)] == [1, 2]
    same_folds(laptop / "work", undisturbed)


def test_other_folds_at_home_are_refused(canned, laptop, prepared):
    shutil.copytree(prepared, laptop / "work")
    run(*RUN, "--yes")  # the same folds
    folds.main(["--work-dir", "work", "--folds", "3", "--seed", "1", "--overwrite", "--workers", "1"])
    shutil.rmtree("work/runs")
    with pytest.raises(ValueError, match="ich-train-tiny-b was made with seed 0, not 1: give the same"):
        run(*RUN, "--yes")
    assert not Path("work/runs").exists()


def test_a_fold_is_taken_over_only_where_it_is_further(undisturbed, tmp_path):
    source, home = undisturbed / "runs" / "tiny", Run(tmp_path, "tiny")
    shutil.copytree(source, tmp_path / "other")
    (tmp_path / "other" / "fold1" / "predict.json").unlink()
    (tmp_path / "other" / "fold2" / ".state.pt.7").write_bytes(b"left by a killed process")
    assert handover.take(tmp_path / "other", home) == [0, 1, 2]
    assert handover.take(source, home) == [1]
    assert not (home.fold(2) / ".state.pt.7").exists()
    record = storage.read_json(source / "run.json")
    storage.write_json(tmp_path / "other" / "run.json", record | {"settings": record["settings"] | {"lr": 1.0}})
    with pytest.raises(ValueError, match=r"made with lr 0\.0002, not 1\.0"):
        handover.take(tmp_path / "other", home)
