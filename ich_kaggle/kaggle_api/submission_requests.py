"""Requests about submissions: allowed or not, uploaded, made once even if a reply is lost, scored."""

import logging
from collections.abc import Callable
from typing import Any

from ich_kaggle.common import paths
from ich_kaggle.kaggle_api import client

log = logging.getLogger(__name__)

LOOKS = (1, 2, 4, 8, 15, 30, 30, 30)  # s before each further look for a submission whose reply was lost
LONGEST_LOOK = sum(LOOKS)  # s that Kaggle may take for a submission after its client has disconnected
POLLS, POLL_PAUSE = 360, 10  # times, s


def preflight(kaggle: client.Connection) -> str:
    """Return a line with the credentials in use, the rules' acceptance and the submissions left today.

    Raises PermissionError or RuntimeError if Kaggle would refuse a submission.
    """
    competition = _ask(kaggle, kaggle.competitions.get_competition)
    limits = _ask(kaggle, kaggle.competitions.get_submission_limits)
    if competition and not competition.user_has_entered:
        raise PermissionError(f"{kaggle.source}: this account has not joined the competition: {client.RULES}")
    # For an account that has never submitted, Kaggle reports 0 sent and 0 left.
    if limits and limits.num_total and not limits.num_allowed_now:
        raise RuntimeError(f"no submission is left today ({limits.num_today} sent): wait until 00:00 UTC")
    rules = "accepted" if competition else "not known"
    left = limits.num_allowed_now if limits and limits.num_total else "not known"
    return f"credentials: {kaggle.source}; rules: {rules}; submissions left today: {left}"


def _ask(kaggle: client.Connection, method: Callable) -> Any:
    try:
        return kaggle.call(method, hint=client.RULES, competition_name=paths.SLUG)
    except RuntimeError as error:
        log.info("%s", error)  # advice only: the submission goes on
        return None


def submissions(kaggle: client.Connection) -> list[Any]:
    """Return the team's latest submissions, the newest first, as kagglesdk.ApiSubmission."""
    fields = dict(competition_name=paths.SLUG, page=1, page_size=50)
    return kaggle.call(kaggle.competitions.list_submissions, hint=client.RULES, **fields).submissions or []


def find(kaggle: client.Connection, tag: str) -> int:
    """Return the ref of the submission whose message contains `tag`; 0 without one."""
    return next((found.ref for found in submissions(kaggle) if tag in (found.description or "")), 0)


def upload(kaggle: client.Connection, name: str, content: bytes, modified: float) -> str:
    """Return the token of `content`, uploaded as the file `name` modified at `modified` (s since 1970)."""
    fields = dict(competition_name=paths.SLUG, file_name=name, content_length=len(content))
    start = kaggle.competitions.start_submission_upload
    answer = kaggle.call(start, hint=client.RULES, last_modified_epoch_seconds=int(modified), **fields)
    kaggle.put(answer.create_url, content)
    return answer.token


def create(kaggle: client.Connection, token: str, message: str, tag: str) -> int:
    """Return the ref of a new submission of an uploaded file, never doubled: its `message` contains the unique `tag`.

    Raises PermissionError or RuntimeError if Kaggle refuses it, and TimeoutError if Kaggle may have accepted it.
    """
    fields = dict(competition_name=paths.SLUG, blob_file_tokens=token, submission_description=message)
    problem: Exception | None = None
    try:
        for attempt in range(client.TRIES):
            try:
                answer = kaggle.call(kaggle.competitions.create_submission, safe=False, hint=client.RULES, **fields)
                if answer.ref:
                    return answer.ref
                problem = RuntimeError(f"Kaggle's answer has no submission number: {answer.message}")
            except ConnectionError as error:
                problem = error
            log.info("submission [%s] was not confirmed: looking for it at Kaggle, for up to %d s", tag, LONGEST_LOOK)
            kaggle.sleep(min(client.delay(problem.__cause__, attempt), client.LONGEST_PAUSE))
            if ref := look(kaggle, tag):
                return ref
    except (OSError, RuntimeError) as error:
        if problem is None:
            raise
        problem = error
    raise TimeoutError(
        f"submission [{tag}] may be at Kaggle: {client.AGAIN}, it looks there before it sends ({problem})"
    )


def look(kaggle: client.Connection, tag: str) -> int:
    """Return like `find`, after waiting as long as a submission that Kaggle is still processing may take to appear."""
    if ref := find(kaggle, tag):
        return ref
    for seconds in LOOKS:
        kaggle.sleep(seconds)
        if ref := find(kaggle, tag):
            return ref
    return 0


def wait(kaggle: client.Connection, ref: int) -> Any:
    """Return submission `ref` (kagglesdk.ApiSubmission) once it is COMPLETE or ERROR. Raises TimeoutError after 1 h."""
    for _ in range(POLLS):
        submission = kaggle.call(kaggle.competitions.get_submission, ref=ref)
        if submission.status.name != "PENDING":
            return submission
        kaggle.sleep(POLL_PAUSE)
    raise TimeoutError(f"no score within {POLLS * POLL_PAUSE // 60} min")
