"""From raw CT slices to a verified submission: RSNA Intracranial Hemorrhage Detection."""

import os
import sys

__version__ = "0.1.0"

os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # read when torch is imported: the CPU does what MPS lacks


def _say_interrupted(kind: type, error: BaseException, trace) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
    else:
        sys.__excepthook__(kind, error, trace)


if sys.argv[:1] == ["-m"]:  # a command, still looking for its module: Ctrl-C during its imports is no bug
    sys.excepthook = _say_interrupted
