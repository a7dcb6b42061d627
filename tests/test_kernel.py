import ast
import base64
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import kaggle_image as image
import kaggle_server as fake
import numpy as np
import packed as made_with
import pandas as pd
import pytest
import torch

from ich_kaggle import kernel, submit
from ich_kaggle.common import cli, paths, storage, tables
from ich_kaggle.common.project import opening
from ich_kaggle.dicom import png, slice_image
from ich_kaggle.kaggle_api import client, kernel_build, kernel_rules, kernels
from ich_kaggle.kaggle_api import wheel as wheel_module
from ich_kaggle.learning import devices, slice_model, tasks
from ich_kaggle.scans import packing, test_set

no_network, kaggle_server, proxied_server = fake.no_network, fake.kaggle_server, fake.proxied_server

KERNELS = Path(__file__).parent.parent / "kernels"
PACKAGE = Path(paths.__file__).parents[1]
NAMES = ("ich-infer", "ich-train", "ich-start", "ich-explore")
RUNS = ("test_efficientnet", "test_resnet")
USER = fake.USER
STATUS, SAVE = "GetKernelSessionStatus", "SaveKernel"


def local_submission(home: Path) -> bytes:
    (path,) = (home / "csv").glob("*-both.csv")
    return path.read_bytes()


def built(name: str, out: Path) -> Path:
    return kernel_build.build(KERNELS / name, out / name, USER)


@pytest.fixture
def run(tmp_path, capfd, monkeypatch):
    """Run the command in this process, its pauses recorded and not waited for; return its output."""
    monkeypatch.chdir(tmp_path)
    run_pauses = []

    def run(*argv: str) -> str:
        connect = functools.partial(client.connect, sleep=run_pauses.append, timeout=image.TIMEOUT)
        options = vars(kernel.build_parser().parse_args([*argv, "--kernels-dir", str(KERNELS)]))
        kernel.kernel(**options, connect=connect)
        return capfd.readouterr().out

    run.pauses = run_pauses
    return run


# What is built.


@pytest.mark.parametrize("name", NAMES)
def test_a_built_kernel_keeps_to_every_rule(tmp_path, name):
    folder = built(name, tmp_path)
    assert kernel_rules.faults(folder) == []


@pytest.mark.parametrize("name", NAMES)
def test_building_twice_gives_the_same_bytes(tmp_path, name):
    first, second = image.files_in(built(name, tmp_path / "a")), image.files_in(built(name, tmp_path / "b"))
    assert first == second
    assert len(first) == 2


@pytest.mark.parametrize("name", NAMES)
def test_all_that_a_kernel_imports_exists(name):
    tree = ast.parse((KERNELS / name / "main.py").read_text())
    ours = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "ich_kaggle" in node.module]
    found = [(node.module, alias.name) for node in ours for alias in node.names]
    assert found
    for module, imported in found:
        if not hasattr(importlib.import_module(module), imported):
            importlib.import_module(f"{module}.{imported}")


def test_a_kernel_holds_the_package(tmp_path):
    (text,) = re.findall(r'WHEEL = """\n(.*?)"""', (built("ich-infer", tmp_path) / "main.py").read_text(), re.DOTALL)
    assert base64.b64decode(text.replace("\n", "")) == wheel_module.wheel()


def test_the_notebook_has_a_kernelspec_and_no_output(tmp_path):
    notebook = json.loads((built("ich-explore", tmp_path) / "ich-explore.ipynb").read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    assert "".join(notebook["cells"][1]["source"]).startswith("# Hemorrhage in head CT")


# What is refused.


def test_without_a_user_the_placeholder_is_named(run, monkeypatch):
    with pytest.raises(ValueError, match="it still contains YOUR_USERNAME: build it with --user"):
        run("check", "ich-infer", "--user", "")
    with pytest.raises(ValueError, match="push: no user name: give --user"):
        run("push", "ich-infer", "--user", "")


def test_a_kernel_that_is_not_there_is_answered_with_those_that_are(run):
    with pytest.raises(
        ValueError, match=r"NAME is \.\./ich-infer: .*has the kernels ich-explore, ich-infer, ich-start, ich-train"
    ):
        run("build", "../ich-infer", "--user", USER)
    with pytest.raises(SystemExit, match="^error: kernels: no kernels: run this in the repository's folder"):
        kernel.main(["train", "--user", USER, "--dry-run"])


# Python and the image.


def test_without_isal_the_pixels_are_the_same(competition, tmp_path):
    path = sorted((competition / "stage_2_test").glob("*.dcm"))[0]
    code = (
        "import hashlib, pathlib, sys; from ich_kaggle.dicom import png, slice_image\n"
        "picture = slice_image.picture(pathlib.Path(sys.argv[1]).read_bytes(), 'x', 64).image\n"
        "content = png.encode(picture); sys.stdout.buffer.write(content)\n"
        "print(png.zlib.__name__, hashlib.sha256(png.decode(content).tobytes()).hexdigest(), file=sys.stderr)"
    )
    env = image.environment(image.hide(tmp_path))
    env["PYTHONPATH"] += f":{PACKAGE.parent}"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False, env=env)
    assert done.returncode == 0, done.stderr.decode()
    picture = slice_image.picture(path.read_bytes(), "x", 64).image
    assert done.stderr.decode().split() == ["zlib", hashlib.sha256(picture.tobytes()).hexdigest()]
    np.testing.assert_array_equal(png.decode(done.stdout), picture)
    assert png.zlib.__name__ == "isal.isal_zlib"


def test_a_gpu_that_can_not_run_this_torch_gives_way_to_the_cpu_in_one_line(monkeypatch, caplog):
    def fail(*args, **options):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices.torch, "zeros", fail)
    caplog.set_level("INFO")
    assert devices.pick_device("auto").type == "cpu"
    (record,) = caplog.records
    assert "no kernel image is available" in record.getMessage()
    assert "\n" not in record.getMessage()


# At Kaggle.


def test_what_is_pushed_arrives_whole_private_and_without_internet(run, kaggle_server, tmp_path):
    kaggle_server.datasets[f"{USER}/ich-models"] = fake.Dataset({}, {}, ["READY"])
    out = run("push", "ich-infer", "--user", USER)
    assert out.endswith("version 1 runs at https://www.kaggle.com/code/tester/ich-infer\n")
    (pushed,) = kaggle_server.kernels["tester/ich-infer"]
    file = tmp_path / "build" / "kernels" / "ich-infer" / "main.py"
    assert pushed.request["text"].encode() == file.read_bytes()
    shown = ("newTitle", "kernelType", "language", "isPrivate", "enableGpu", "enableInternet", "machineShape")
    assert [pushed.request[key] for key in shown] == [
        *("ICH infer", "script", "python", True, True, False, "NvidiaTeslaT4"),
    ]
    assert pushed.request["datasetDataSources"] == ["tester/ich-models"]
    assert pushed.request["competitionDataSources"] == [paths.SLUG]


ANSWERS = {
    "a reason": ({"error": "Maximum batch GPU session count of 2 reached."}, "refused it: Maximum batch GPU session"),
    "a competition": ({"invalidCompetitionSources": ["rsna"]}, "left out competition_sources rsna"),
    "a tag": ({"invalidTags": ["ct"]}, "left out tags ct"),
    "no version": ({"versionNumber": None}, "Kaggle gave no version number: nothing was pushed"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_push_that_kaggle_answers_kindly_and_does_not_take_is_an_error(run, kaggle_server, answer):
    kaggle_server.datasets[f"{USER}/ich-models"] = fake.Dataset({}, {}, ["READY"])
    kaggle_server.save_answer, message = ANSWERS[answer]
    with pytest.raises(RuntimeError, match=f"^tester/ich-infer: .*{re.escape(message)}"):
        run("push", "ich-infer", "--user", USER)


def test_a_dataset_that_is_not_there_is_named_by_the_push(run, kaggle_server):
    with pytest.raises(RuntimeError, match="Kaggle left out dataset_sources tester/ich-models"):
        run("push", "ich-infer", "--user", USER)


def test_a_kernel_that_breaks_a_rule_is_not_pushed(run, kaggle_server):
    with pytest.raises(ValueError, match="id is no name/ich-infer"):
        run("push", "ich-infer", "--user", "no name")
    assert not kaggle_server.requests


def test_a_push_whose_reply_is_lost_is_not_sent_again(run, kaggle_server):
    kaggle_server.datasets[f"{USER}/ich-models"] = fake.Dataset({}, {}, ["READY"])
    kaggle_server.fail(SAVE, fake.lose_reply)
    with pytest.raises(TimeoutError, match="look at https://www.kaggle.com/code/tester/ich-infer before you push"):
        run("push", "ich-infer", "--user", USER)
    assert len(kaggle_server.kernels["tester/ich-infer"]) == 1


def ran(server, output: fake.Output, name: str = "tester/ich-infer") -> None:
    server.kernels[name].append(fake.Kernel({}))
    server.run_kernel = lambda kernel: output


def test_a_kernel_is_waited_for(run, kaggle_server):
    ran(kaggle_server, fake.Output("COMPLETE"))
    kaggle_server.fail(STATUS, fake.status(502), fake.status(429, "slow down", Retry_After="7"))
    assert run("wait", "ich-infer", "--user", USER) == "tester/ich-infer: complete\n"
    assert run.pauses == [1, 7, kernels.POLL_PAUSE]


def test_the_log_is_shown_as_it_grows_and_a_fault_of_it_stops_no_wait(run, kaggle_server, caplog):
    ran(kaggle_server, fake.Output("COMPLETE"))
    outputs = [fake.Output("RUNNING", log="a\nb\n"), fake.Output("RUNNING", log="a\nb\nc\n"), fake.Output("COMPLETE")]
    kaggle_server.run_kernel = lambda kernel: outputs.pop(0)
    caplog.set_level("INFO")
    kaggle_server.fail("ListKernelSessionOutput", fake.status(404, "no session output yet"))
    run("wait", "ich-infer", "--user", USER)
    assert [record.getMessage().strip() for record in caplog.records if record.getMessage()[0] == " "] == [
        "a",
        "b",
        "c",
    ]


@pytest.mark.parametrize("state", ["ERROR", "CANCEL_ACKNOWLEDGED"])
def test_a_kernel_that_failed_is_an_error_with_kaggles_reason(run, kaggle_server, state):
    ran(kaggle_server, fake.Output(state, failure="Your notebook ran out of memory"))
    with pytest.raises(
        RuntimeError, match=rf"{state} \(Your notebook ran out of memory\): see its log: python -m ich_kaggle.kernel"
    ):
        run("wait", "ich-infer", "--user", USER)


def test_a_kernel_that_never_ends_is_left(run, kaggle_server, monkeypatch):
    monkeypatch.setattr(kernels, "POLLS", 3)
    ran(kaggle_server, fake.Output("RUNNING"))
    with pytest.raises(TimeoutError, match="tester/ich-infer: still RUNNING after 0 h"):
        run("wait", "ich-infer", "--user", USER)


def fetched(run, server, output: fake.Output) -> dict[str, bytes]:
    server.kernels["tester/ich-infer"].append(fake.Kernel({}, output))
    run("fetch", "ich-infer", "--user", USER)
    return image.files_in(Path("build/kernels/ich-infer/output"))


def test_the_output_is_fetched_byte_for_byte_with_a_log_in_any_language(run, kaggle_server):
    files = {f"runs/b0/fold{k}/é {k}.bin": bytes(range(256)) * k for k in range(5)}
    found = fetched(run, kaggle_server, fake.Output("COMPLETE", files, "läuft\nfertig ✓\n"))
    assert found == files | {"ich-infer.log": "läuft\nfertig ✓\n".encode()}


def test_an_error_page_is_not_saved_as_a_file(run, kaggle_server):
    kaggle_server.fail("GET", fake.status(503))
    assert fetched(run, kaggle_server, fake.Output("COMPLETE", {"a.csv": b"1"}))["a.csv"] == b"1"
    kaggle_server.fail("GET", fake.status(403))
    with pytest.raises(PermissionError, match=r"a\.csv: Kaggle answered 403"):
        fetched(run, kaggle_server, fake.Output("COMPLETE", {"a.csv": b"2"}))
    assert image.files_in(Path("build/kernels/ich-infer/output")) == {"a.csv": b"1", "ich-infer.log": b""}


def test_nothing_of_the_version_before_stays_beside_what_is_fetched(run, kaggle_server):
    fetched(run, kaggle_server, fake.Output("COMPLETE", {"submission.csv": b"1", "old/more": b"1"}))
    assert fetched(run, kaggle_server, fake.Output("ERROR", {"new": b"2"})).keys() == {"new", "ich-infer.log"}
    assert {path.name for path in Path("build/kernels/ich-infer").iterdir()} == {storage.MARKER, "output"}


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "a\\..\\evil", "."])
def test_a_file_that_would_lie_elsewhere_is_refused(run, kaggle_server, tmp_path, name):
    with pytest.raises(ValueError, match="which would lie outside"):
        fetched(run, kaggle_server, fake.Output("COMPLETE", {name: b"evil"}))
    assert not list(tmp_path.rglob("*evil*"))


# The dataset of models.


def weights(run, home: Path, *more: str, name: str = "ich-models") -> str:
    return run("weights", name, "--user", USER, "--work-dir", str(home), "--ensemble", "both", *more)


def test_two_files_of_one_name_are_refused(run, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.safetensors").write_text(folder)
    with pytest.raises(ValueError, match="two have the same name: rename one"):
        run("weights", "--user", USER, "--file", *(str(tmp_path / folder / "x.safetensors") for folder in "ab"))


def test_models_are_uploaded_whole_and_a_second_time_as_a_version(run, kaggle_server, home, tmp_path):
    extra = tmp_path / "more-1.0-py3-none-any.whl"
    extra.write_bytes(b"wheel")
    weights(run, home)
    created = kaggle_server.datasets["tester/ich-models"]
    assert created.request["isPrivate"] is True
    weights(run, home, "--extra", str(extra))
    version = kaggle_server.datasets["tester/ich-models"]
    assert version.files == image.files_in(tmp_path / "build" / "kernels" / "ich-models")
    assert version.files.keys() == created.files.keys() | {extra.name} and version.files[extra.name] == b"wheel"
    hashes = json.loads(version.files[wheel_module.LISTING])
    assert hashes[extra.name] == hashlib.sha256(b"wheel").hexdigest() and len(hashes) == 2
    models_of_home = {f"{run}.fold{k}.pt": (paths.fold(home, run, k) / "model.pt") for run in RUNS for k in (0, 1)}
    assert {name: version.files[name] for name in models_of_home} == {
        name: path.read_bytes() for name, path in models_of_home.items()
    }
    assert version.files[wheel_module.WHEEL_NAME] == wheel_module.wheel()


def test_ready_is_waited_for_and_a_version_waits_for_the_one_before(run, kaggle_server, home):
    kaggle_server.datasets["tester/ich-models"] = fake.Dataset(
        {}, {}, ["BLOBS_RECEIVED", "BLOBS_DECOMPRESSED", "READY"]
    )
    weights(run, home)
    assert run.pauses == 2 * [kernels.READY_PAUSE]  # for the one before, and for the new one
    assert kaggle_server.calls("CreateDatasetVersion") == 1


def test_a_dataset_that_fails_is_an_error(run, kaggle_server, home):
    kaggle_server.dataset_steps = ["BLOBS_RECEIVED", "FAILED"]
    with pytest.raises(RuntimeError, match="dataset tester/ich-models: FAILED: see https://www.kaggle.com/datasets/"):
        weights(run, home)


def test_a_file_that_kaggle_silently_left_out_is_named(run, kaggle_server, home):
    def lose_a_file(handler, work):
        handler.finish_work(work)
        del kaggle_server.datasets["tester/ich-models"].files["test_resnet.fold1.pt"]

    kaggle_server.fail("CreateDataset", lose_a_file)
    with pytest.raises(RuntimeError, match=r"test_resnet\.fold1\.pt: \d+ bytes here, none at Kaggle \(1 such files\)"):
        weights(run, home)


def test_a_file_whose_upload_fails_for_good_stops_before_the_dataset_is_made(run, kaggle_server, home):
    kaggle_server.fail("PUT", *10 * [fake.status(500)])
    with pytest.raises(ConnectionError, match="the upload: Kaggle answered 500"):
        weights(run, home)
    assert not kaggle_server.datasets
    kaggle_server.faults.clear()
    kaggle_server.fail("PUT", fake.status(500), fake.cut_body(1000))
    weights(run, home)
    assert len(kaggle_server.datasets["tester/ich-models"].files) == 7


@pytest.mark.parametrize("name", ["..", "../..", "/tmp/models", "", "a b/c", "tester/ich-models", "ich-infer", "short"])
def test_the_name_of_a_dataset_leads_nowhere_else(run, home, name):
    with pytest.raises(ValueError, match="^weights: NAME is .*: a (dataset's name is|kernel has this name)"):
        weights(run, home, "--dry-run", name=name)
    assert not Path("build").exists()


def test_a_pack_that_fails_leaves_the_one_before(run, kaggle_server, home, tmp_path):
    weights(run, home)
    folder = Path("build/kernels/ich-models")
    before = image.files_in(folder)
    extra = folder / "more.whl"
    extra.write_bytes(b"wheel")
    weights(run, home, "--extra", str(extra))  # from where it is to go
    with_extra = image.files_in(folder)
    assert with_extra.keys() == before.keys() | {"more.whl"} and with_extra["more.whl"] == b"wheel"
    for name in ("gone.whl", "test_resnet.fold0.pt", test_set.MODELS):
        (tmp_path / name).write_bytes(b"") if name != "gone.whl" else None
        with pytest.raises((ValueError, FileNotFoundError), match=name):
            weights(run, home, "--extra", str(tmp_path / name))
    assert image.files_in(folder) == with_extra
    assert [path.name for path in folder.parent.iterdir()] == ["ich-models"]


def test_a_dry_run_asks_nobody_and_leaves_the_disk_as_it_is(run, kaggle_server, home, tmp_path):
    assert "4 files can be packed" in weights(run, home, "--dry-run")
    with pytest.raises(FileNotFoundError, match="--extra .*gone.whl: no such file"):
        weights(run, home, "--dry-run", "--extra", str(tmp_path / "gone.whl"))
    run("push", "ich-infer", "--dry-run")
    assert not Path("build").exists() and not kaggle_server.requests


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_folder_of_the_users_own_is_never_replaced(run, kaggle_server, home, more):
    for name in ("docs-of-mine", "ich-infer"):
        (Path("build/kernels") / name).mkdir(parents=True)
        (Path("build/kernels") / name / "main.py").write_text("mine")
    with pytest.raises(FileExistsError, match="docs-of-mine exists, made by something else, not by kernel weights"):
        weights(run, home, *more, name="docs-of-mine")
    if not more:
        for action in ("build", "fetch"):
            with pytest.raises(FileExistsError, match="ich-infer exists, made by something else, not by kernel:"):
                run(action, "ich-infer", "--user", USER)
    assert set(image.files_in(Path("build")).values()) == {b"mine"} and not kaggle_server.requests


def test_one_of_several_ensembles_must_be_chosen(home, tmp_path):
    assert packing.choose_ensemble(home, None).name == "both"
    for name in ("a", "b"):
        storage.write_json(paths.ensemble(tmp_path, name) / "weights.json", {})
    with pytest.raises(ValueError, match="has a, b: choose one with --ensemble"):
        packing.choose_ensemble(tmp_path, None, "--ensemble")
    with pytest.raises(
        FileNotFoundError, match="c/weights.json is missing: run python -m ich_kaggle.ensemble --name c"
    ):
        packing.choose_ensemble(tmp_path, "c", "--ensemble")


def test_predict_goes_on_where_it_was_stopped_and_repeats_what_failed(run, kaggle_server, home):
    command = ("predict", "--user", USER, "--work-dir", str(home), "--ensemble", "both")
    outputs = [
        fake.Output("ERROR", failure="out of memory"),
        fake.Output("COMPLETE", {"submission.csv": b"ID,Label\n"}),
    ]
    kaggle_server.run_kernel = lambda kernel: outputs.pop(0)
    kaggle_server.fail(STATUS, fake.status(401, "Unauthenticated"))
    with pytest.raises(PermissionError, match="the credentials are not accepted"):
        run(*command)
    out = run(*command)
    assert out.endswith("next: python -m ich_kaggle.submit --file build/kernels/ich-infer/output/submission.csv\n")
    assert len(kaggle_server.kernels["tester/ich-infer"]) == 2  # one failed
    run(*command)
    assert len(kaggle_server.kernels["tester/ich-infer"]) == 2
    assert Path("build/kernels/ich-infer/output/submission.csv").read_bytes() == b"ID,Label\n"


# The whole way: weights, push, run, fetch, submit, score.


def layouts():
    why = image.why_no_namespaces()
    sandbox = pytest.mark.skipif(bool(why), reason=why)
    return [
        pytest.param(False, "new", id="overrides-new"),
        pytest.param(True, "old", marks=sandbox, id="sandbox-old"),
    ]


@pytest.mark.parametrize(("sandboxed", "layout"), layouts())
def test_weights_to_score(run, kaggle_server, home, competition, n_test, tmp_path, sandboxed, layout):
    weights(run, home)
    run("push", "ich-infer", "--user", USER)

    def run_kernel(pushed: fake.Kernel) -> fake.Output:
        sources = {name: kaggle_server.datasets[name].files for name in pushed.request["datasetDataSources"]}
        inputs = image.lay_out(tmp_path, competition, sources, layout)
        code, log, working = image.run(tmp_path, pushed.request["text"], inputs, sandboxed=sandboxed)
        return fake.Output("ERROR" if code else "COMPLETE", image.files_in(working), log, log[-300:] if code else "")

    kaggle_server.run_kernel = run_kernel
    run("wait", "ich-infer", "--user", USER)
    run("fetch", "ich-infer", "--user", USER)
    output = Path("build/kernels/ich-infer/output")
    left = kaggle_server.kernels["tester/ich-infer"][0].output
    assert image.files_in(output) == left.files | {"ich-infer.log": left.log.encode()}
    assert left.log.startswith("Python ")
    assert {path.split("/")[0] for path in left.files} == {"partial", "submission.csv"}
    assert f"8 of 8 passes over {n_test} slices" in left.log
    ours, theirs = pd.read_csv(output / "submission.csv"), pd.read_csv(next((home / "csv").glob("*-both.csv")))
    assert ours.ID.tolist() == theirs.ID.tolist()
    np.testing.assert_allclose(ours.Label, theirs.Label, atol=1e-5)
    connect = functools.partial(client.connect, sleep=lambda seconds: None)
    argv = ["--file", str(output / "submission.csv"), "--data-dir", str(competition)]
    cli.run(opening(functools.partial(submit.command, connect=connect)), submit.build_parser(), argv)
    (sent,) = kaggle_server.submissions
    assert kaggle_server.content(sent) == left.files["submission.csv"]
    assert "COMPLETE" in Path("submissions/history.csv").read_text()


def test_a_sandbox_has_neither_network_nor_a_writable_input_nor_the_package(tmp_path):
    if why := image.why_no_namespaces():
        pytest.skip(why)
    probe = (
        "import importlib.util, pathlib, socket\n"
        "print(importlib.util.find_spec('ich_kaggle.common') if importlib.util.find_spec('ich_kaggle') else None)\n"
        "for attempt in (lambda: pathlib.Path('/kaggle/input/x').touch(), "
        "lambda: socket.create_connection(('127.0.0.1', 9), 1), lambda: __import__('kaggle')):\n"
        "    try: print('did', attempt())\n"
        "    except (OSError, ImportError) as error: print(type(error).__name__, error)\n"
        "pathlib.Path('made').touch()\n"
    )
    (tmp_path / "input").mkdir()
    code, log, working = image.run(tmp_path, probe, tmp_path / "input", sandboxed=True)
    assert code == 0, log
    first, write, connect, client = log.splitlines()
    assert (first, "Read-only" in write, "did" in connect, "not in the image" in client) == ("None", True, False, True)
    assert list(working.iterdir()) == [working / "made"]


def wheel_of(path: Path, name: str) -> Path:
    path.mkdir(exist_ok=True)
    wheel = path / f"{name}-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel_module._zip({
        f"{name}.py": b"VALUE = 7\n",
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{name}-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{name}-1.0.dist-info/RECORD": f"{name}.py,,\n".encode(),
    }))  # fmt: skip
    return wheel


def unpacked(tmp_path: Path, **constants) -> list[str]:
    """Return what kernels/unpack.py makes importable from the inputs in `tmp_path`."""
    code = (Path(__file__).parents[1] / "kernels" / "unpack.py").read_text()
    names = {"__name__": "unpack"}
    exec(compile(code, "unpack.py", "exec"), names)
    names |= constants
    return sorted(path.name for path in Path(names["unpack"](tmp_path)).glob("*.py"))


def test_a_kernel_installs_what_was_packed_and_the_image_lacks_and_nothing_else(tmp_path, capsys):
    mine, others = tmp_path / "datasets/me/ich-models", tmp_path / "datasets/else/evil"
    mine.mkdir(parents=True)
    wheels = [wheel_of(mine, "more"), wheel_of(mine, "six")]
    (mine / wheel_module.LISTING).write_text(json.dumps(wheel_module.hashes(mine)))
    wheel_of(mine, "unlisted")
    others.mkdir(parents=True)
    wheel_of(others, "evil")
    assert unpacked(tmp_path) == ["more.py"]
    assert "six-1.0-py3-none-any.whl: not installed: the image has version" in capsys.readouterr().out
    assert unpacked(tmp_path, REPLACE=True) == ["more.py", "six.py"]
    wheels[0].write_bytes(wheels[1].read_bytes())
    with pytest.raises(ValueError, match="more-1.0-py3-none-any.whl is not the file that was packed"):
        unpacked(tmp_path)


def test_a_kernel_installs_the_wheels_of_its_dataset(home, competition, tmp_path):
    pack = kernel.pack(tmp_path / "pack", *kernel.gather(home, "both", [wheel_of(tmp_path, "more")]))
    unpacking, found, _ = (built("ich-infer", tmp_path / "built") / "main.py").read_text().partition('\n"""Predict')
    inputs = image.lay_out(tmp_path, competition, {f"{USER}/ich-models": image.files_in(pack)}, "new")
    # In a child too: the workers of a loader import what the kernel does.
    child = "import subprocess\nsubprocess.run([sys.executable, '-c', 'import more; print(more.VALUE)'], check=True)\n"
    code, log, _ = image.run(tmp_path, unpacking + child, inputs)
    assert found and code == 0 and log.splitlines()[-1] == "7", log


@pytest.mark.slow
def test_the_kernel_reads_second_levels_as_they_were_read_at_home(prepared, competition, n_test, tmp_path):
    work = made_with.work_of(prepared)
    pack = kernel.pack(tmp_path / "pack", *kernel.gather(work, "levels"))
    text = (built("ich-infer", tmp_path / "built") / "main.py").read_text()
    inputs = image.lay_out(tmp_path, competition, {f"{USER}/ich-models": image.files_in(pack)}, "new")
    sandboxed = not image.why_no_namespaces()
    code, log, working = image.run(tmp_path, text, inputs, sandboxed=sandboxed)
    assert code == 0, log
    assert f"30 of 30 passes over {n_test} slices" in log
    found = pd.read_csv(working / "submission.csv").Label.to_numpy().reshape(-1, 6)
    ids = tables.read_long(paths.find_data(competition), paths.SAMPLE_CSV)[0]
    expected = tables.read_predictions(work / "ensemble" / "levels" / "test.parquet", ids)
    np.testing.assert_allclose(found, expected, atol=5e-4)


def edited_kernels(tmp_path: Path, name: str, **constants: str) -> Path:
    """Return a copy of kernels/NAME with other values of constants, as a user writes them."""
    shutil.copytree(KERNELS, tmp_path / "kernels")
    path = tmp_path / "kernels" / name / "main.py"
    text = path.read_text()
    for left, value in constants.items():
        text, n = re.subn(
            rf"^{left.replace('__', ', ')} = .*$", f"{left.replace('__', ', ')} = {value}", text, flags=re.M
        )
        assert n == 1, left
    path.write_text(text)
    return path.parent


TINY = """arch = "test_resnet"
image-size = 64
cache-size = 64
batch-size = 16
epochs = 1
workers = 1
"""


@pytest.mark.slow
def test_the_training_kernel_takes_its_weights_from_a_dataset_and_leaves_a_fold_for_home(
    run, kaggle_server, competition, tmp_path
):
    model = slice_model.SliceModel(tasks.slice_config("test_resnet", image_size=64, cache_size=64))
    start = tmp_path / "test_resnet.safetensors"
    importlib.import_module("safetensors.torch").save_file(
        {key: value.contiguous() for key, value in model.backbone.state_dict().items()}, start
    )
    Path("mine.toml").write_text(TINY)
    training = ("train", "--user", USER, "--recipe", "mine.toml", "--fold", "1", "--offline", "--yes")
    with pytest.raises(RuntimeError, match="list_dataset_files: Kaggle answered 404"):
        run(*training)
    Path("other.safetensors").write_bytes(b"other")
    run("weights", "--user", USER, "--file", "other.safetensors")
    with pytest.raises(
        RuntimeError, match=r"ich-weights lacks test_resnet\.safetensors: python -m ich_kaggle\.kernel weig"
    ):
        run(*training)
    run("weights", "--user", USER, "--file", str(start))
    assert kaggle_server.datasets[f"{USER}/ich-weights"].files == {start.name: start.read_bytes()}

    def run_kernel(pushed: fake.Kernel) -> fake.Output:
        assert "enableInternet" not in pushed.request or not pushed.request["enableInternet"]
        files = {name: kaggle_server.datasets[name].files for name in pushed.request["datasetDataSources"]}
        inputs = image.lay_out(tmp_path, competition, files, "new")
        code, log, working = image.run(tmp_path, pushed.request["text"], inputs)
        assert code == 0, log
        return fake.Output("ERROR" if code else "COMPLETE", image.files_in(working), log)

    kaggle_server.run_kernel = run_kernel
    run(*training)
    found = {path.name for path in Path("work/runs/mine/fold1").iterdir()}
    assert {"model.pt", "log.csv", "oof.parquet", "test.parquet", "embeddings.npy"} <= found
    record = storage.read_json(Path("work/runs/mine/run.json"))
    assert record["settings"]["weights"] == "imagenet"
    assert "test_resnet.safetensors does not say on which patients" in record["possible_leak"]  # it has no classifier


@pytest.mark.slow
def test_the_notebook_to_start_with_writes_a_submission(competition, tmp_path):
    for needed in ("papermill", "ipykernel"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"no {needed}")
    source = edited_kernels(tmp_path, "ich-start", ARCH__WEIGHTS__SIZE='"test_resnet", "none", 64')
    notebook = kernel_build.build(source, tmp_path / "built", USER) / "ich-start.ipynb"
    working = papermill(notebook, competition, tmp_path)
    ids = pd.read_csv(competition / "stage_2_sample_submission.csv").ID
    assert set(pd.read_csv(working / "submission.csv").ID) == set(ids)
    assert (working / "runs" / "start" / "fold0" / "model.pt").exists()


def papermill(notebook: Path, competition: Path, tmp_path: Path, datasets: dict | None = None) -> Path:
    """Run the notebook to out.ipynb, and return the working folder that it leaves."""
    inputs = image.lay_out(tmp_path, competition, datasets or {}, "new")
    working = tmp_path / "working"
    working.mkdir()
    command = [sys.executable, "-m", "papermill", str(notebook), str(tmp_path / "out.ipynb"), "--cwd", str(working)]
    with tempfile.TemporaryDirectory(prefix="ich-", ignore_cleanup_errors=True) as scratch:
        env = os.environ | {"KAGGLE_INPUT_DIR": str(inputs), "TMPDIR": scratch, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return working


@pytest.mark.slow
def test_the_notebook_runs_through_papermill(packed, competition, n_test, tmp_path):
    for needed in ("papermill", "ipykernel", "matplotlib"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"no {needed}")
    notebook = built("ich-explore", tmp_path) / "ich-explore.ipynb"
    papermill(notebook, competition, tmp_path, {f"{USER}/ich-models": image.files_in(packed)})
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert any(f"{n_test} test slices of 3 patients" in "".join(output.get("text", "")) for output in outputs)
