"""Kaggle's client, wrapped: lazy import, sign-in, timeouts, retries, one-line errors.

By itself (kaggle 2.2.4) it prints, asks the server and may exit while it is imported, waits without limit, retries
nothing, and reports a failed upload as a success.
"""

import contextlib
import io
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ich_kaggle.common import paths

log = logging.getLogger(__name__)

TIMEOUT = 60  # s without a byte
TRIES = 5
LONGEST_PAUSE = 600  # s; a longer wait that the server asks for is left to the user

AGAIN = "run the command again"
LOCAL_FAULTS = {  # of this machine or its network, by a part of the error: its remedy; such a request is not repeated
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted: is there a proxy with one of its own? Name the "
    "proxy's CA file in REQUESTS_CA_BUNDLE",
    "TLS CA certificate bundle": "no such CA file: correct REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE",
    "Unable to connect to proxy', N": "the proxy cannot be reached: correct HTTPS_PROXY, or unset it",
    "Please check proxy URL": "the proxy's address is malformed: correct HTTPS_PROXY",
    "407 Proxy": "the proxy wants a name and a password: put them into HTTPS_PROXY, as http://NAME:PASSWORD@HOST:PORT",
}
LONGEST_PATH = 255  # characters
TOKEN_FILES = ("~/.kaggle/access_token", "~/.kaggle/access_token.txt")
NEW_TOKEN = f"make a token at https://www.kaggle.com/settings and save it as {TOKEN_FILES[0]}"
SITE = f"https://www.kaggle.com/competitions/{paths.SLUG}"
RULES = f"accept the rules at {SITE}/rules (Kaggle gives the same answer for a wrong competition name)"
DENIED = "this account has no access: check the name and its owner"


@dataclass(frozen=True)
class Connection:
    """Kaggle's client, signed in."""

    client: Any  # kagglesdk.KaggleClient
    source: str  # of its credentials
    sleep: Callable[[float], None] = time.sleep  # s
    timeout: float = TIMEOUT  # s

    @property
    def competitions(self) -> Any:
        return self.client.competitions.competition_api_client

    def call(self, method: Callable, *, safe: bool = True, hint: str = DENIED, **fields) -> Any:
        """Return Kaggle's answer to `method` of the client, called with the request `fields`.

        After a server error or a lost reply only a `safe` call is repeated: an unsafe one may have had its effect.
        `hint` ends the error message if the account is refused (403). Raises PermissionError (401, 403), RuntimeError
        (any other refusal) and ConnectionError (no answer, or a server error).
        """
        request = method.__annotations__["request"]()
        for name, value in fields.items():
            setattr(request, name, value)
        send = _tamed(self.timeout)(lambda: method(request))
        return retry(send, method.__name__, hint, self.sleep, safe)

    def put(self, url: str, content: bytes) -> None:
        """Upload `content` to `url`; every attempt starts at its first byte. Raises like `call`."""
        import requests

        def send():
            # A file is sent in small blocks, each with its own time limit; bytes have one limit for all of them.
            response = requests.put(url, data=io.BytesIO(content), timeout=self.timeout)
            if response.status_code not in (200, 201):
                raise requests.HTTPError(response=response)

        retry(send, "the upload", AGAIN, self.sleep)


def connect(*, sleep: Callable[[float], None] = time.sleep, timeout: float = TIMEOUT) -> Connection:
    """Return Kaggle's client, signed in with the credentials that take precedence; its `source` names them.

    Raises ImportError without the client, PermissionError without usable credentials, ConnectionError offline.
    """
    found = _token_source()
    _warn_of_readers()
    try:
        with _tamed(timeout):
            from kaggle.api.kaggle_api_extended import KaggleApi
        api = KaggleApi()
        what = f"signing in with the token in {found}" if found else "signing in"
        retry(_tamed(timeout)(api.authenticate), what, NEW_TOKEN, sleep)
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        if error.filename is None:
            raise
        fault = f"Kaggle's client cannot write to {error.filename} ({error.strerror})"
        raise OSError(f"{fault}: set KAGGLE_CONFIG_DIR to a folder that it can") from error
    except ImportError as error:
        raise ImportError(f"cannot import Kaggle's client ({error}): pip install 'kaggle>=2.2.4,<3' six") from error
    except SystemExit:
        fault = f"no readable Kaggle credentials in {_key_file()}" if _key_file() else "no Kaggle credentials"
        fault = f"Kaggle does not accept the token in {found}" if found else fault
        raise PermissionError(f"{fault}: {NEW_TOKEN}") from None
    if found and api.config_values["auth_method"] == "LEGACY_API_KEY":
        # The client falls back on the key, but still sends the token.
        raise PermissionError(
            f"Kaggle does not accept the token in {found}, which is sent instead of the key in {_source(api)}: "
            f"remove that token, or {NEW_TOKEN}"
        )
    return Connection(api.build_kaggle_client(), _source(api), sleep, timeout)


@contextlib.contextmanager
def _tamed(timeout: float) -> Iterator[None]:
    """Silence the client's prints, and give each of its requests the time limit that it does not set."""
    from requests.adapters import HTTPAdapter

    send = HTTPAdapter.send

    def send_in_time(self, request, **options):
        return send(self, request, **options | {"timeout": options.get("timeout") or timeout})

    HTTPAdapter.send = send_in_time
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        HTTPAdapter.send = send


def _token_source() -> str:
    """Return the place of the access token, which takes precedence over any key; empty without a token.

    Raises PermissionError if it is not plain text.
    """
    given = os.environ.get("KAGGLE_API_TOKEN", "")  # a token, or the path of a file that holds it
    places = {"the environment variable KAGGLE_API_TOKEN": os.fsencode(given)}
    if given and len(given) < LONGEST_PATH and Path(given).is_file():
        places["the environment variable KAGGLE_API_TOKEN"] = Path(given).read_bytes().strip()
    for name in TOKEN_FILES:
        file = Path(name).expanduser()
        places[name] = file.read_bytes().strip() if file.is_file() else b""
    found = next((place for place, token in places.items() if token), "")
    if found and not (places[found].isascii() and places[found].decode("ascii", "replace").isprintable()):
        raise PermissionError(f"{found} is not a token in plain text: {NEW_TOKEN}")
    return found


def _key_file() -> str:
    """Return the key file that the client would read; empty if none exists."""
    folders = (os.environ.get("KAGGLE_CONFIG_DIR", ""), "~/.kaggle", "~/.config/kaggle")
    files = [Path(folder).expanduser() / "kaggle.json" for folder in folders if folder]
    return next((str(file) for file in files if file.is_file()), "")


def _warn_of_readers() -> None:
    """Warn of credentials that other users of this machine can read; the client's own warning is silenced."""
    for file in (Path(name).expanduser() for name in (*TOKEN_FILES, _key_file()) if name):
        if os.name == "posix" and file.is_file() and file.stat().st_mode & 0o077:
            log.warning("%s: other users can read it: chmod 600 %s", file, file)


def _source(api: Any) -> str:
    match api.config_values["auth_method"]:
        case "ACCESS_TOKEN":
            return _token_source() or "this notebook"
        case "LEGACY_API_KEY" if os.environ.get("KAGGLE_KEY"):
            return "the environment variables KAGGLE_USERNAME and KAGGLE_KEY"
        case "LEGACY_API_KEY":
            return api.config
        case _:
            return "~/.kaggle/credentials.json"


def retry(send: Callable, what: str, hint: str, sleep: Callable[[float], None], safe: bool = True) -> Any:
    """Return the result of `send`, repeated until it succeeds. Raises like `Connection.call`, naming `what` failed."""
    for attempt in range(TRIES):
        try:
            return send()
        except (OSError, KeyError, TypeError, ValueError) as error:  # the last three: an undecodable answer
            pause = delay(error, attempt)
            if attempt == TRIES - 1 or pause > LONGEST_PAUSE or not _worth_again(error, safe):
                raise _explained(error, what, hint) from error
            log.info("%s: %s: again in %d s", what, _reason(error), pause)
            sleep(pause)
    return None


def _worth_again(error: Exception, safe: bool) -> bool:
    status = _status(error)
    if _local_remedy(error):
        return False
    return status == 429 or (safe and (status is None or status == 308 or status >= 500))


def _local_remedy(error: Exception) -> str:
    return next((remedy for part, remedy in LOCAL_FAULTS.items() if part in str(error)), "")


def delay(error: Exception | None, attempt: int) -> float:
    """Return the seconds to wait after `error`: those that the server asks for, else 1, 2, 4, ... by `attempt`."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    after = headers.get("Retry-After", "")
    return int(after) if after.isdigit() else 2**attempt


def _body(error: Exception) -> dict:
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        return dict(error.response.json())
    return {}


def _status(error: Exception) -> int | None:
    """Return the HTTP status of `error`, None without an answer. Kaggle may answer 200 with the real code inside."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return _body(error).get("code", status) if status == 200 else status


def is_missing(error: Exception, statuses: tuple[int, ...] = (404,)) -> bool:
    """Return whether `Connection.call` raised `error` because Kaggle answered one of the `statuses`."""
    return _status(error.__cause__) in statuses


def _reason(error: Exception) -> str:
    status = _status(error)
    if status is None:
        # Not the error's own text, which may hold the upload's address, a secret.
        host = urlsplit(getattr(getattr(error, "request", None), "url", None) or "").hostname
        return f"no answer from {host or 'Kaggle'} ({type(error).__name__})"
    return f"Kaggle answered {status}: {_body(error).get('message') or error.response.reason}"


def _explained(error: Exception, what: str, hint: str) -> Exception:
    status = _status(error)
    hints = {401: f"the credentials are not accepted: {NEW_TOKEN}", 429: f"wait {delay(error, TRIES):.0f} s"}
    hints |= {403: hint, 404: "check the name and its owner"}
    if status is None or status >= 500:
        return ConnectionError(f"{what}: {_reason(error)}: {_local_remedy(error) or f'{AGAIN} later'}")
    kind = PermissionError if status in (401, 403) else RuntimeError
    return kind(f"{what}: {_reason(error)}: {hints.get(status, f'correct this and {AGAIN}')}")
