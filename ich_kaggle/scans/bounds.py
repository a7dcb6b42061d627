"""The bounds of the numbers in the manifest of a bundle, which may come from elsewhere."""

PX, MOST = (8, 4096), 1e6
# The bounds of the numbers of a bundle, and of those inside them, as of the flags that they come from; else +-MOST.
BOUNDS = {"size": PX, "image_size": PX, "cache_size": PX, "batch_size": (1, 4096), "seed": (0, 2**63 - 1)}
BOUNDS |= {"n_slices": (1, 1e12)}
BOUNDS |= {"fold": (0, 999), "spacing": (0.01, 100), "thresholds": (0, 1), "mean": (0, 1), "widths": (0, 1000)}


def check(content, within: tuple[float, float] = (-MOST, MOST), key: str = "") -> None:
    """Raise ValueError naming a number of `content`, however deep, that is out of its BOUNDS, or of those `within`."""
    if isinstance(content, dict):
        for name, value in content.items():
            check(value, BOUNDS.get(name, within), name)
    elif isinstance(content, list):
        for value in content:
            check(value, within, key)
    elif isinstance(content, int | float) and not within[0] <= content <= within[1]:
        raise ValueError(f"{key} is {content}, not {within[0]:g} to {within[1]:g}")
