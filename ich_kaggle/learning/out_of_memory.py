"""The remedy when a training step does not fit into memory: the largest batch that does, found by trying."""

from collections.abc import Callable, Iterator

import torch


def is_lack(error: RuntimeError) -> bool:
    """Return whether `error` says that memory ran out."""
    # From torch on Linux, from torch on Windows, and from oneDNN if it cannot allocate its buffers.
    said = ("can't allocate memory", "not enough memory", "could not create a primitive")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in said)


def halves(n: int) -> Iterator[int]:
    """Yield half of `n`, a quarter and so on, as long as it is one or more."""
    while n := n // 2:
        yield n


def smaller_steps(n: int, wanted: int) -> str:
    """Return the flags that make a step of `wanted` slices from batches of `n`; for 0 those of a smaller model."""
    return f"give --batch-size {n} --accumulate {-(-wanted // n)}" if n else "give a smaller --image-size or --arch"


def n_that_fit(step: Callable[[tuple], object], batch: tuple) -> int:
    """Return the number of items of `batch`, halved until `step` fits into memory; 0 if not even one fits."""
    for n in halves(len(batch[0])):
        torch.cuda.empty_cache()
        try:
            for _ in range(2):  # the moments of the optimizer are allocated at the end of the first step
                step(tuple(part[:n] for part in batch))
            return n
        except RuntimeError as error:
            if not is_lack(error):
                raise
    return 0
