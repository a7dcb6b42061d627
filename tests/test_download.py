import functools
import io
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import kaggle_server as fake
import pytest

from ich_kaggle import download
from ich_kaggle.common import paths
from ich_kaggle.kaggle_api import client, competition_files

no_network, kaggle_server, proxied_server = fake.no_network, fake.kaggle_server, fake.proxied_server

SAMPLE, TRAIN = b"ID,Label\nID_000000001_any,0.5\n", b"ID,Label\n" + b"ID_000000002_any,1\n" * 200_000
FILE, ALL = "DownloadDataFile", "DownloadDataFiles"


@pytest.fixture
def server(kaggle_server, tmp_path, monkeypatch):
    kaggle_server.data_files = {paths.SAMPLE_CSV: SAMPLE, paths.TRAIN_CSV: TRAIN, "": zipped("a/b.dcm", TRAIN)}
    monkeypatch.chdir(tmp_path)
    return kaggle_server


def zipped(name: str, content: bytes, *others: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member in (name, *others):
            archive.writestr(member, content)
    return buffer.getvalue()


@pytest.fixture
def get(server):
    """Download in this process, pauses not waited for; return what was written, by name."""

    def get(data_dir: str = "data", *, whole: bool = False) -> dict[str, bytes]:
        connect = functools.partial(client.connect, sleep=lambda seconds: None, timeout=5)
        download.download(data_dir=paths.Path(data_dir), whole=whole, connect=connect)
        folder = paths.Path(data_dir if not whole else ".")
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    return get


def test_the_tables_arrive_byte_for_byte_and_no_more_is_asked_for(get, server):
    assert get() == {paths.SAMPLE_CSV: SAMPLE, paths.TRAIN_CSV: TRAIN}
    assert (server.calls(FILE), server.calls(ALL)) == (2, 0)


def test_the_command_fetches_into_the_default_folder(server, capsys, monkeypatch):
    monkeypatch.delenv("ICH_DATA_DIR", raising=False)
    download.main([])
    assert (paths.Path("input") / paths.SLUG / paths.TRAIN_CSV).read_bytes() == TRAIN
    assert f"input/{paths.SLUG}/{paths.TRAIN_CSV}: {len(TRAIN)} bytes" in capsys.readouterr().out
    assert not paths.Path("work").exists()


def test_the_tables_that_came_first_do_not_hide_the_zip_of_everything(server, capsys, monkeypatch):
    monkeypatch.delenv("ICH_DATA_DIR", raising=False)
    server.data_files[""] = zipped(f"{paths.SLUG}/{paths.TRAIN_CSV}", TRAIN, f"{paths.SLUG}/stage_2_test/ID_a.dcm")
    download.main([])
    assert paths.find_data().root == paths.Path("input") / paths.SLUG
    download.main(["--all"])
    path = paths.Path("input") / f"{paths.SLUG}.zip"
    assert path.read_bytes() == server.data_files[""]
    assert capsys.readouterr().out.endswith(f"now run python -m ich_kaggle.slices --data-dir {path}\n")
    assert paths.find_data() == paths.Data(path, f"{paths.SLUG}/")


def test_what_is_downloaded_is_where_the_other_commands_look(server, monkeypatch):
    monkeypatch.setenv("ICH_DATA_DIR", "mine")
    download.main([])
    assert paths.find_data().root == paths.Path("mine")


def test_the_command_in_a_process_of_its_own_says_why_it_can_not(no_network):
    command = [sys.executable, "-m", "ich_kaggle.download"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no Kaggle credentials: make a token")


def test_what_is_there_is_not_fetched_again(get, server, capsys):
    get()
    n = len(server.requests)
    get()
    assert [call for call, _, _ in server.requests[n:]] == []
    assert f"data/{paths.TRAIN_CSV} exists: nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("whole", [False, True])
def test_a_phantom_does_not_pass_for_the_real_data(get, server, tmp_path, monkeypatch, whole):
    folder = tmp_path / paths.SLUG
    folder.mkdir()
    for name in ("phantom.json", paths.SAMPLE_CSV, paths.TRAIN_CSV):
        (folder / name).touch()
    with pytest.raises(FileExistsError, match=f"{paths.SLUG} holds a phantom"):
        get(paths.SLUG, whole=whole)
    assert server.calls(FILE) == server.calls(ALL) == 0


def test_a_table_that_kaggle_sends_zipped_is_unzipped(get, server):
    server.data_files[paths.TRAIN_CSV] = zipped(paths.TRAIN_CSV, TRAIN)
    assert get()[paths.TRAIN_CSV] == TRAIN


def test_a_zip_without_the_table_is_refused(get, server):
    server.data_files[paths.SAMPLE_CSV] = zipped("../evil.csv", b"", "other.csv")
    with pytest.raises(ValueError, match=r"holds \.\./evil\.csv, other\.csv, not one stage_2_sample"):
        get()
    assert not paths.Path("evil.csv").exists()


def test_a_table_in_the_inner_folder_is_found(get, server):
    server.data_files = {f"{paths.SLUG}/{name}": content for name, content in server.data_files.items()}
    assert get() == {paths.SAMPLE_CSV: SAMPLE, paths.TRAIN_CSV: TRAIN}


def ranges(server) -> list[str]:
    return [headers["Range"] for call, _, headers in server.requests if call == "GET" and "Range" in headers]


@pytest.mark.parametrize("whole", [False, True])
def test_a_cut_download_goes_on_from_its_last_byte(get, server, whole):
    n_before = 1 if whole else 3  # a file is asked for twice: for its headers, and for its bytes
    server.fail("GET", *n_before * [fake.Handler.finish_work], fake.cut_download(1_500_000))
    found = get(whole=whole)
    assert (server.data_files[""] if whole else TRAIN) in found.values()
    assert ranges(server)[-1] == f"bytes={competition_files.BLOCK}-"


def test_another_command_goes_on_where_a_killed_one_stopped(get, server):
    part = 2_000_000
    server.fail("GET", *3 * [fake.Handler.finish_work], *6 * [fake.cut_download(0)])
    with pytest.raises(ConnectionError, match=r"stage_2_train\.csv: no answer from Kaggle"):
        get()
    assert not (paths.Path("data") / paths.TRAIN_CSV).exists()
    (found,) = paths.Path("data").glob(f".{paths.TRAIN_CSV}.*.part")
    found.write_bytes(TRAIN[:part])
    server.faults["GET"].clear()
    assert get()[paths.TRAIN_CSV] == TRAIN
    assert ranges(server)[-1] == f"bytes={part}-"


def test_the_start_of_a_file_that_has_changed_since_is_not_gone_on_from(get, server):
    get()
    path = paths.Path("data") / paths.TRAIN_CSV
    path.unlink()
    (paths.Path("data") / f".{paths.TRAIN_CSV}.0123456789ab.part").write_bytes(b"old" * 1000)
    assert get() == {paths.SAMPLE_CSV: SAMPLE, paths.TRAIN_CSV: TRAIN}


def test_a_download_outlives_more_cuts_than_tries_as_long_as_something_comes(get, server):
    server.fail("GET", *3 * [fake.Handler.finish_work], *12 * [fake.cut_download(1 << 20)])
    assert get()[paths.TRAIN_CSV] == TRAIN


def test_a_full_disk_is_named_before_the_download(get, server, monkeypatch):
    monkeypatch.setattr(competition_files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000))
    with pytest.raises(RuntimeError, match=r"data\.zip: 0 GB to download, 0 GB free: make room on the disk"):
        get(whole=True)


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((403, "Permission 'competitions.participate' was denied"), r"Kaggle answered 403: .*: accept the rules at"),
        ((401, "Unauthenticated"), "the credentials are not accepted"),
    ],
)
def test_a_refusal_is_one_line_and_not_asked_again(get, server, refusal, message):
    server.fail(FILE, fake.status(*refusal))
    with pytest.raises(PermissionError, match=message):
        get()
    assert server.calls(FILE) == 1


def test_a_table_that_kaggle_does_not_have_is_named(get, server):
    server.data_files = {}
    with pytest.raises(RuntimeError, match="download_data_file: Kaggle answered 404"):
        get()
