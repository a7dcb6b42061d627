"""A training at Kaggle: session after session, each with the output of the one before attached.

A session is a version of one of three kernels, whose code holds its number and the names of the kernels attached: all
that another machine needs to go on. A session is good once it has taken over what was attached; one that ends before
that is repeated. After one that was killed, the last that was not is attached as well, because Kaggle does not promise
the output of a version that failed. A session never runs as a kernel that it reads.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ich_kaggle.common import storage
from ich_kaggle.kaggle_api import kernel_build, kernel_rules, kernels
from ich_kaggle.kaggle_api.client import Connection

LETTERS = "abc"
LOOKS = 5  # for a pushed session, or its output, before it counts as missing


def same(settings: dict) -> dict:
    """Return the settings that all sessions of a run share, the recipe by its hash."""
    recipe = hashlib.sha256(settings["toml"].encode()).hexdigest()[:12]
    return {"recipe": recipe} | {key: settings[key] for key in ("run", "folds", "seed")}


@dataclass(frozen=True)
class End:
    """The end of a session."""

    state: str = ""  # Kaggle's, with a reason
    is_good: bool = False  # had taken over what was attached
    error: str = ""  # its own


@dataclass(frozen=True)
class Sessions:
    """The sessions of the run called `run` at Kaggle, and where they are built and fetched to."""

    kaggle: Connection
    user: str
    run: str
    source: Path  # of the kernel
    out: Path

    def slugs(self) -> list[str]:
        stem = re.sub("[^a-z0-9]+", "-", self.run.lower()).strip("-")[:30].rstrip("-")
        return [f"{self.source.name}-{stem}-{letter}" for letter in LETTERS]

    def last(self, wanted: dict) -> dict:
        """Return the settings of the session that was pushed last; {} if there is none.

        Raises ValueError naming a setting that it has and that the sessions `wanted` have otherwise.
        """
        codes = (kernels.source(self.kaggle, f"{self.user}/{slug}") for slug in self.slugs())
        found = [settings for code in codes if "slug" in (settings := kernel_build.settings_in(code))]
        last = max(found, key=lambda settings: settings["session"], default={})
        if last:
            storage.same_settings(
                self.page(last), same(last), same(wanted), "give the same --recipe and --folds, or another --run"
            )
        return last

    def next(self, last: dict, end: End, wanted: dict) -> dict:
        """Return the settings of the session after `last`, which had this `end`: those `wanted`, its number, its kernel
        and the kernels attached.
        """
        slug, attached = last.get("slug", self.slugs()[0]), last.get("attached", [])
        if end.is_good:
            attached = [slug] if end.state == "COMPLETE" else [slug, *attached[-1:]]
            slug = next(slug for slug in self.slugs() if slug not in attached)
        return wanted | {"session": last.get("session", 0) + 1, "slug": slug, "attached": attached}

    def page(self, settings: dict) -> str:
        return f"https://www.kaggle.com/code/{self.user}/{settings['slug']}"

    def log_path(self, settings: dict) -> Path:
        return self.out / settings["slug"] / "output" / f"{settings['slug']}.log"

    def build(self, settings: dict, **changes) -> Path:
        """Return the folder of the session's kernel, built and checked."""
        slug = settings["slug"]
        changes |= {"id": f"{kernel_rules.PLACEHOLDER}/{slug}", "title": slug.replace("-", " ")}
        changes["kernel_sources"] = [f"{self.user}/{name}" for name in settings["attached"]]
        folder = kernel_build.build(self.source, self.out / slug, self.user, settings, **changes)
        kernel_rules.check(folder)
        return folder

    def push(self, settings: dict, folder: Path) -> None:
        """Push the session. Raises like kernels.push; a reply that is lost is an error only if no session runs."""
        try:
            kernels.push(self.kaggle, folder)
        except TimeoutError as error:
            for _ in range(LOOKS):
                if self.last(settings).get("session") == settings["session"]:
                    return
                self.kaggle.sleep(kernels.READY_PAUSE)
            raise error

    def output(self, settings: dict, is_wanted: Callable[[str], bool]) -> tuple[Path, End]:
        """Wait for the session; return the folder of its fetched output, and its end.

        Raises TimeoutError if Kaggle does not show it.
        """
        name = f"{self.user}/{settings['slug']}"
        folder = self.out / settings["slug"] / "output"
        for _ in range(LOOKS):
            state, found = kernels.ended(self.kaggle, name), {}
            kernels.fetch(self.kaggle, name, folder, is_wanted)
            if (path := folder / "session.json").exists():
                found = storage.read_json(path)
            if found.get("session") == settings["session"]:
                return folder, End(state, found.get("ready", False), found.get("error", ""))
            self.kaggle.sleep(kernels.POLL_PAUSE)  # Kaggle may still show the version before
        if state == "COMPLETE":
            raise TimeoutError(f"{name}: Kaggle still shows an earlier session: look at {self.page(settings)}")
        return folder, End(state)
