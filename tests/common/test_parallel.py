import io
import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import joblib
import psutil
import pytest

from ich_kaggle import cache, slices
from ich_kaggle.common import cli, parallel, paths
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import cache_index, picture_cache, slice_table


def squares(numbers: list[int]) -> tuple[list[int], int, int]:
    return [n * n for n in numbers], len(numbers), 1_000_000 * len(numbers)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's")
def test_a_process_that_keeps_its_memory_takes_no_fresh_pages_for_what_it_allocates_again():
    code = "\n".join(
        (
            "import resource",
            "from ich_kaggle.common import parallel",
            "def faults():",
            "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt",
            "    for _ in range(10): bytearray(64 << 20).clear()",
            "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before",
            "freely = faults(); parallel.keep_memory(); faults(); print(freely, faults())",
        )
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    freely, kept = map(int, done.stdout.split())
    assert freely > 100_000 and kept < 1000


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_task_is_done_once_whatever_the_workers(workers):
    tasks = [([n, n + 1],) for n in range(0, 40, 2)]
    found = list(parallel.work(squares, tasks, 40, "square", workers))
    assert sorted(sum(found, [])) == [n * n for n in range(40)]


def test_tasks_are_taken_as_they_are_needed_not_all_at_once():
    taken = []

    def tasks():
        for n in range(1000):
            taken.append(n)
            yield ([n],)

    next(parallel.work(squares, tasks(), 1000, "square", 1))
    assert len(taken) < 10


def test_the_bar_shows_slices_and_megabytes_a_second_and_the_time_left(monkeypatch):
    from tqdm import tqdm

    stream = io.StringIO()
    monkeypatch.setattr(
        cli, "progress", lambda items, total, what: tqdm(items, total=total, desc=what, unit=" slices", file=stream)
    )
    monkeypatch.setattr(parallel, "perf_counter", iter(range(100)).__next__)  # a second from each result to the next
    list(parallel.work(squares, [([1, 2],), ([3, 4],)], 4, "square", 1))
    last = stream.getvalue().split("\r")[-1]
    assert "4/4" in last and " slices/s" in last and "2 MB/s" in last and "<00:00" in last


def test_dask_without_its_packages_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install 'ich_kaggle\[dask\]'"), parallel.using("dask", None):
        pass


def test_a_scheduler_goes_with_dask_only():
    with (
        pytest.raises(ValueError, match="--scheduler tcp://a:1 goes with --backend"),
        parallel.using("loky", "tcp://a:1"),
    ):
        pass


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed", reason="dask, from the extra dask, is missing")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        yield cluster


def test_a_dask_cluster_makes_the_same_table_and_cache(cluster, competition, tmp_path):
    address = cluster.scheduler_address
    assert address.startswith("tcp://127.0.0.1:")
    flags = ["--data-dir", str(competition), "--work-dir", str(tmp_path / "dask"), "--backend", "dask"]
    slices.main([*flags, "--scheduler", address])
    cache.main([*flags, "--scheduler", address, "--cache-size", "64", "--crop", "study"])
    here = picture_cache.ensure(Project(competition, tmp_path / "here", 1), 64, "study")
    there = paths.cache(tmp_path / "dask", here.name)
    assert paths.slices(tmp_path / "dask").read_bytes() == paths.slices(tmp_path / "here").read_bytes()
    names = sorted(f.relative_to(here) for f in here.rglob("*") if f.is_file())
    assert names == sorted(f.relative_to(there) for f in there.rglob("*") if f.is_file())
    assert all((here / name).read_bytes() == (there / name).read_bytes() for name in names)


def test_the_work_is_done_by_the_workers_of_the_cluster(cluster):
    with parallel.using("dask", cluster.scheduler_address):
        pids = set(parallel.work(_pid, [(k,) for k in range(20)], 20, "ask", 1))
    workers = {worker.pid for worker in cluster.workers.values()}
    assert pids and pids <= workers


def test_a_cluster_of_this_machine_has_no_pages_and_works_for_its_owner_alone():
    distributed = pytest.importorskip("distributed", reason="dask, from the extra dask, is missing")
    pytest.importorskip("cryptography", reason="cryptography, from the extra dask, is missing")
    with parallel.using("dask", None):
        address = distributed.get_client().scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert set(parallel.work(_pid, [(k,) for k in range(4)], 4, "ask", 1)) - {os.getpid()}
        for own in (psutil.Process(), *psutil.Process().children(recursive=True)):
            listening = [one.laddr.ip for one in own.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
            assert set(listening) <= {"127.0.0.1"}
        url = f"http://127.0.0.1:{distributed.get_client().scheduler_info()['services']['dashboard']}"
        for page in ("/status", "/api/v1/retire_workers", "/health"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(url + page)
        strangers = {address: distributed.Security.temporary(), address.replace("tls:", "tcp:"): None}
        for door, keys in strangers.items():
            with pytest.raises(OSError):
                distributed.Client(door, security=keys, timeout=1, set_as_default=False)


def _pid(_: int) -> tuple[int, int, int]:
    return os.getpid(), 1, 0


def test_the_backend_is_the_usual_one_again_afterwards():
    with parallel.using("loky", None):
        pass
    assert isinstance(joblib.parallel.get_active_backend()[0], joblib._parallel_backends.LokyBackend)


def test_a_failing_slice_stops_the_work_with_its_own_error(competition, tmp_path):
    data_dir = shutil.copytree(competition, tmp_path / "input")
    slice_table.ensure(Project(data_dir, tmp_path / "work", 1))
    row = slice_table.ensure(Project(None, tmp_path / "work", 1)).iloc[-1]
    (data_dir / row.path).write_bytes(b"damaged since the scan")
    with pytest.raises(
        ValueError, match=f"{row.path} has changed since it was scanned: run python -m ich_kaggle.slices --over"
    ):
        picture_cache.ensure(Project(data_dir, tmp_path / "work", 2), 64)
    assert len(cache_index.read(paths.cache(tmp_path / "work", "64"))) < len(
        slice_table.ensure(Project(None, tmp_path / "work", 1))
    )
