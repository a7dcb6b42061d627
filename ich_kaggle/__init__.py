"""From raw CT slices to a verified submission: RSNA Intracranial Hemorrhage Detection."""

__version__ = "0.1.0"
