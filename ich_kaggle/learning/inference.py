"""The prediction loop: logits and embeddings of all items of a loader, in its order."""

import contextlib
import copy
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from ich_kaggle.common import cli
from ich_kaggle.learning import datasets, devices


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode for the block, then back into its previous mode."""
    mode = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(mode)


@torch.inference_mode()
def _started(model: nn.Module, images, views: Sequence[Callable], device: torch.device) -> tuple:
    """Return logits and embeddings on their way to the host, and the event after which they are there, or None."""
    with devices.autocast(device):
        seen = [model.outputs(view(images)) for view in views] or [model.outputs(images)]
    logits, embeddings = (sum(part.float() for part in parts) / len(seen) for parts in zip(*seen, strict=True))
    is_cuda = device.type == "cuda"
    found = tuple(part.to("cpu", non_blocking=is_cuda) for part in (logits, embeddings.half()))
    return *found, torch.cuda.current_stream(device).record_event() if is_cuda else None


def _arrived(logits: torch.Tensor, embeddings: torch.Tensor, event) -> tuple[np.ndarray, np.ndarray]:
    if event is not None:
        event.synchronize()
    return logits.numpy(), embeddings.numpy()


def outputs(
    model: nn.Module, loader: DataLoader, device: torch.device, views: Sequence[Callable] = (), what: str = "predict"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield logits, float32 (n, 6), and embeddings, float16 (n, d), per batch of `loader`, in its order.

    Both are means over the `views` of the images. The batches go in turn to a copy of `model` on each of the devices
    that compute `together`; a GPU computes the next while the host waits for the last.
    """
    with evaluating(model), cli.progress(None, len(loader.dataset), what) as bar:
        first, *others = devices.together(device)
        models = [(model, first), *((copy.deepcopy(model).to(other), other) for other in others)]
        on_the_way, n_ahead = deque(), len(models) * (first.type == "cuda")
        try:
            for (images, *_), (one, where) in zip(datasets.batches(loader), itertools.cycle(models), strict=False):
                on_the_way.append(_started(one, *devices.moved((images,), where), views, where))
                if len(on_the_way) > n_ahead:
                    yield _told(bar, _arrived(*on_the_way.popleft()))
            while on_the_way:
                yield _told(bar, _arrived(*on_the_way.popleft()))
        except torch.OutOfMemoryError as error:
            raise RuntimeError(f"out of memory: {what} does not fit: give a smaller --batch-size") from error


def _told(bar, found: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    bar.update(len(found[0]))
    return found


def predict(model: nn.Module, loader: DataLoader, device: torch.device, what: str = "predict") -> np.ndarray:
    """Return the logits of all items of `loader`, in its order: float32 (n, 6)."""
    return np.concatenate([logits for logits, _ in outputs(model, loader, device, what=what)])
