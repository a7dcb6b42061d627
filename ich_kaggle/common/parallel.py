"""Parallel work on slices: on the cores of this machine, or on a Dask cluster, through joblib's backends."""

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter

import joblib

from ich_kaggle.common import cli

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def keep_memory() -> None:
    """Let this process keep the memory that it frees, on glibc; its size stays at its peak.

    Images and activations are allocated anew at every step, and getting fresh pages takes up to a quarter of a step.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def work(function: Callable, tasks: Iterable[tuple], total: int, what: str, workers: int) -> Iterator:
    """Yield the results of `function(*task)` as they are ready, with a progress bar `what` in slices/s and MB/s.

    `function` returns its result, the number of slices done, of `total`, and the number of bytes read for them.
    With one worker, or none, this process does the work.
    """
    calls = (joblib.delayed(function)(*task) for task in tasks)
    n_read, start = 0, perf_counter()
    with cli.progress(None, total, what) as bar:
        for result, n_slices, n_bytes in joblib.Parallel(max(1, workers), return_as="generator_unordered")(calls):
            n_read += n_bytes
            bar.set_postfix_str(f"{n_read / 1e6 / (perf_counter() - start):.0f} MB/s", refresh=False)
            bar.update(n_slices)
            yield result


@contextlib.contextmanager
def using(backend: str, scheduler: str | None) -> Iterator[None]:
    """Let joblib use `backend` inside; dask uses the cluster of `scheduler`, or starts one on this machine.

    The latter listens on the loopback alone, has no web pages, and takes work only from this process, by certificates
    made for it: whoever reaches a scheduler can run code as its owner. Raises ImportError naming the extra if dask is
    not installed, OSError if the scheduler does not answer.
    """
    if backend != "dask":
        if scheduler is not None:
            raise ValueError(f"--scheduler {scheduler} goes with --backend dask, not {backend}")
        yield
        return
    try:
        import dask
        from distributed import Client, LocalCluster, Security

        local = dict(host="127.0.0.1", dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False})
        own = {} if scheduler else local | {"security": Security.temporary()}
    except ImportError as error:
        raise ImportError("--backend dask needs more packages: pip install 'ich_kaggle[dask]'") from error
    without_pages = dict.fromkeys(("distributed.scheduler.http.routes", "distributed.worker.http.routes"), [])
    with dask.config.set(without_pages), contextlib.ExitStack() as stack:
        cluster = stack.enter_context(LocalCluster(**own)) if own else scheduler
        stack.enter_context(Client(cluster))
        stack.enter_context(joblib.parallel_config("dask"))
        yield
