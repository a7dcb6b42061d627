"""A server on 127.0.0.1 that speaks Kaggle's API as the real client does, keeps what it gets and fails on request.

`@route("Service/Method")` adds a call; `server.fail("Method", fault, ...)` makes its next requests fail, a fault each.
The upload of a file is the call "PUT". A test module takes the fixtures it needs by name,
`kaggle_server = fake.kaggle_server`; they keep every other address out of reach.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit

import pytest

SLUG = "rsna-intracranial-hemorrhage-detection"
USER, KEY, TOKEN = "tester", "0123456789abcdef", "KGAT_good"
ROUTES: dict[str, Callable] = {}
SCORES = {"status": "COMPLETE", "publicScore": "0.04732", "privateScore": "0.04891"}


class RefusalError(Exception):
    """An answer of `status` with Kaggle's JSON error."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass
class Dataset:
    files: dict[str, bytes]
    request: dict
    steps: list[str]


@dataclass
class Stored:
    """An object of the storage, from its byte `start` on."""

    content: bytes
    start: int = 0


@dataclass
class Redirect:
    path: str


@dataclass
class Output:
    """What a kernel leaves: its status, files by name, and its log."""

    status: str
    files: dict[str, bytes] = field(default_factory=dict)
    log: str = ""
    failure: str = ""


@dataclass
class Kernel:
    request: dict
    output: Output | None = None


class KaggleServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, dict, dict]] = []  # (call, body, headers) as they came
        self.faults: dict[str, list[Callable]] = defaultdict(list)
        self.uploads: dict[str, bytes] = {}  # by token
        self.files: dict[str, dict] = {}  # StartSubmissionUpload by token
        self.submissions: list[dict] = []
        self.has_entered = True
        self.daily_limit = 5
        self.scores = SCORES
        self.polls_until_scored = 1
        self.data_files: dict[str, bytes] = {}  # of the competition, by name; "" is the zip of all
        self.datasets: dict[str, Dataset] = {}  # by owner/name
        self.dataset_steps = ["BLOBS_RECEIVED", "READY"]  # what a new version's status is asked for, in turn
        self.kernels: dict[str, list[Kernel]] = defaultdict(list)  # versions by owner/name
        self.stored: dict[str, bytes] = {}  # what GET gives, by path
        self.run_kernel: Callable[[Kernel], Output] = lambda kernel: Output("COMPLETE")
        self.running = threading.Lock()  # held while a kernel runs
        self.save_answer: dict = {}  # what SaveKernel answers beside or instead of the usual
        self.clock_skew = timedelta()

    def fail(self, call: str, *faults: Callable) -> None:
        self.faults[call] += faults

    def calls(self, name: str) -> int:
        return sum(call == name for call, _, _ in self.requests)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.clock_skew

    def content(self, submission: dict) -> bytes:
        return self.uploads[submission["token"]]

    def handle_error(self, request, client_address) -> None:
        """Say nothing of clients that went away: tests make them."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: KaggleServer
    disable_nagle_algorithm = True

    def do_POST(self):
        path = urlsplit(self.path).path.removeprefix("/api")  # a proxied request line holds the whole URL
        service, method = path.removeprefix("/v1/").split("/", 1)
        body = json.loads(self.read_body() or b"{}")
        self.answer(method, body, lambda: self.route(f"{service}/{method}", body))

    def do_GET(self):
        url = urlsplit(self.path)
        content = self.server.stored.get(unquote(url.path))
        self.answer("GET", {"path": url.path}, lambda: self.send_file(content))

    def send_file(self, content: bytes | None) -> Stored:
        if content is None:
            raise RefusalError(404, "no such object")
        start = int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
        return Stored(content, start)

    def do_PUT(self):
        token = urlsplit(self.path).path.rsplit("/", 1)[-1]
        self.answer("PUT", {"token": token}, lambda: self.store(token))

    def route(self, name: str, body: dict) -> dict:
        if name != "security.OAuthService/IntrospectToken" and not self.signed_in():
            raise RefusalError(401, "Unauthenticated")
        if name not in ROUTES:
            raise RefusalError(404, "Not Found")
        return ROUTES[name](self.server, body)

    def signed_in(self) -> bool:
        basic = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
        return self.headers.get("Authorization") in (f"Basic {basic}", f"Bearer {TOKEN}")

    def store(self, token: str) -> dict:
        self.server.uploads[token] = self.read_body()
        return {}

    def read_body(self) -> bytes:
        length = int(self.headers.get("Content-Length", 0))
        content = self.rfile.read(length)
        if len(content) < length:
            raise ConnectionError("the client went away")
        return content

    def answer(self, call: str, body: dict, work: Callable) -> None:
        self.server.requests.append((call, body, dict(self.headers)))
        faults = self.server.faults[call]
        if faults:
            faults.pop(0)(self, work)
        else:
            self.finish_work(work)

    def finish_work(self, work: Callable) -> None:
        try:
            result = work()
            if isinstance(result, Redirect):
                self.reply(302, "", Location=f"{self.server.url}{result.path}")
            elif isinstance(result, Stored):
                self.reply_bytes(206 if result.start else 200, result.content[result.start :], etag(result.content))
            else:
                self.reply(200, result)
        except RefusalError as refusal:
            self.reply(refusal.status, {"code": refusal.status, "message": str(refusal)})

    def reply(self, status: int, body: dict | str, **headers: str) -> None:
        kind = "text/html" if isinstance(body, str) else "application/json"
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response_only(status)
        headers = {"Date": format_datetime(self.server.now(), usegmt=True), "Content-Type": kind} | headers
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def reply_bytes(self, status: int, content: bytes, tag: str, n_sent: int | None = None) -> None:
        """Send `content`, or promise all of it and send its first `n_sent` bytes."""
        self.send_response_only(status)
        for name, value in {"ETag": tag, "Accept-Ranges": "bytes", "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content[:n_sent])

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def log_message(self, *args) -> None:
        """Keep the test's output clean."""


def status(code: int, message: str = "", **headers: str) -> Callable:
    """Answer `code`, with Kaggle's JSON error if there is a `message`, and with a gateway's HTML page if not."""

    def fault(handler: Handler, work: Callable) -> None:
        if handler.command == "PUT":
            handler.read_body()
        page = {"code": code, "message": message} if message else f"<html>{code}</html>"
        handler.reply(code, page, **headers)

    return fault


def hang_up(handler: Handler, work: Callable) -> None:
    """Close the connection before anything is done."""
    handler.hang_up()


def lose_reply(handler: Handler, work: Callable) -> None:
    """Do it all, and close the connection in place of the reply."""
    work()
    handler.hang_up()


def cut_body(n_bytes: int) -> Callable:
    """Reset the connection once `n_bytes` of the upload have come."""

    def fault(handler: Handler, work: Callable) -> None:
        handler.rfile.read(n_bytes)
        handler.hang_up()

    return fault


def cut_download(n_bytes: int) -> Callable:
    """Reset the connection once `n_bytes` of the download were sent."""

    def fault(handler: Handler, work: Callable) -> None:
        stored = work()
        handler.reply_bytes(206 if stored.start else 200, stored.content[stored.start :], etag(stored.content), n_bytes)
        handler.hang_up()

    return fault


def etag(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def silence(until: threading.Event, *, then_work: bool = True) -> Callable:
    """Do and answer nothing before `until` is set."""

    def fault(handler: Handler, work: Callable) -> None:
        until.wait(10)
        if then_work:
            handler.finish_work(work)

    return fault


def route(name: str) -> Callable:
    """Register a function (server, body of the request) -> body of the reply."""

    def register(function: Callable) -> Callable:
        ROUTES[name] = function
        return function

    return register


COMPETITIONS = "competitions.CompetitionApiService"


def _enter(server: KaggleServer, body: dict) -> None:
    if body["competitionName"] != SLUG or not server.has_entered:
        raise RefusalError(403, "Permission 'competitions.participate' was denied")


@route("security.OAuthService/IntrospectToken")
def introspect(server: KaggleServer, body: dict) -> dict:
    return {"active": True, "username": USER} if body["token"] == TOKEN else {"active": False}


@route(f"{COMPETITIONS}/GetCompetition")
def competition(server: KaggleServer, body: dict) -> dict:
    return {"ref": f"https://www.kaggle.com/competitions/{SLUG}", "userHasEntered": server.has_entered}


@route(f"{COMPETITIONS}/GetSubmissionLimits")
def limits(server: KaggleServer, body: dict) -> dict:
    _enter(server, body)
    n = len(server.submissions)
    return {"numToday": n, "numTotal": n, "numAllowedNow": server.daily_limit - n} if n else {}


@route(f"{COMPETITIONS}/StartSubmissionUpload")
def start_upload(server: KaggleServer, body: dict) -> dict:
    _enter(server, body)
    token = f"upload{len(server.files)}"
    server.files[token] = body
    return {"token": token, "createUrl": f"{server.url}/upload/secret/{token}"}


@route(f"{COMPETITIONS}/CreateSubmission")
def create(server: KaggleServer, body: dict) -> dict:
    _enter(server, body)
    if len(server.submissions) >= server.daily_limit:
        raise RefusalError(400, "Submission not allowed: your team has used its daily submission allowance")
    token = body["blobFileTokens"]
    ref = 30000001 + len(server.submissions)
    server.submissions.append({
        "ref": ref,
        "token": token,
        "fileName": server.files[token]["fileName"],
        "date": server.now().strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "description": body.get("submissionDescription", ""),
        "totalBytes": len(server.uploads[token]),
        "polls": 0,
    })  # fmt: skip
    return {"message": "Successfully submitted to RSNA Intracranial Hemorrhage Detection", "ref": ref}


def _shown(server: KaggleServer, submission: dict) -> dict:
    is_scored = submission["polls"] > server.polls_until_scored
    facts = {name: value for name, value in submission.items() if name not in ("token", "polls")}
    return facts | (server.scores if is_scored else {"status": "PENDING", "publicScore": "", "privateScore": ""})


@route(f"{COMPETITIONS}/ListSubmissions")
def list_submissions(server: KaggleServer, body: dict) -> dict:
    _enter(server, body)
    return {"submissions": [_shown(server, submission) for submission in reversed(server.submissions)]}


@route(f"{COMPETITIONS}/GetSubmission")
def get_submission(server: KaggleServer, body: dict) -> dict:
    found = [submission for submission in server.submissions if submission["ref"] == body["ref"]]
    if not found:
        raise RefusalError(404, "Submission not found")
    found[0]["polls"] += 1
    return _shown(server, found[0])


@route(f"{COMPETITIONS}/DownloadDataFile")
def download_file(server: KaggleServer, body: dict) -> Redirect:
    _enter(server, body)
    if body["fileName"] not in server.data_files:
        raise RefusalError(404, "Not Found")
    return _storage(server, f"/data/{body['fileName']}", server.data_files[body["fileName"]])


@route(f"{COMPETITIONS}/DownloadDataFiles")
def download_files(server: KaggleServer, body: dict) -> Redirect:
    _enter(server, body)
    return _storage(server, "/data/archive.zip", server.data_files[""])


def _storage(server: KaggleServer, path: str, content: bytes) -> Redirect:
    server.stored[path] = content
    return Redirect(path)


@route("blobs.BlobApiService/StartBlobUpload")
def start_blob(server: KaggleServer, body: dict) -> dict:
    token = f"blob{len(server.files)}"
    server.files[token] = body
    return {"token": token, "createUrl": f"{server.url}/upload/secret/{token}"}


DATASETS = "datasets.DatasetApiService"


@route(f"{DATASETS}/GetDatasetStatus")
def dataset_status(server: KaggleServer, body: dict) -> dict:
    dataset = _dataset(server, body)
    return {"status": dataset.steps.pop(0) if len(dataset.steps) > 1 else dataset.steps[0]}


def _dataset(server: KaggleServer, body: dict) -> Dataset:
    if (name := f"{body['ownerSlug']}/{body['datasetSlug']}") not in server.datasets:
        raise RefusalError(404, "Not Found")
    return server.datasets[name]


def _new_dataset(server: KaggleServer, name: str, request: dict, files: list[dict]) -> dict:
    tokens = [file["token"] for file in files]
    content = {server.files[token]["name"]: server.uploads[token] for token in tokens}
    server.datasets[name] = Dataset(content, request, list(server.dataset_steps))
    return {"ref": name, "url": f"https://www.kaggle.com/datasets/{name}", "status": "ok", "error": ""}


@route(f"{DATASETS}/CreateDataset")
def create_dataset(server: KaggleServer, body: dict) -> dict:
    return _new_dataset(server, f"{body['ownerSlug']}/{body['slug']}", body, body["files"])


@route(f"{DATASETS}/CreateDatasetVersion")
def create_version(server: KaggleServer, body: dict) -> dict:
    if _dataset(server, body).steps != ["READY"]:
        raise RefusalError(403, "Permission 'datasets.update' was denied")
    return _new_dataset(server, f"{body['ownerSlug']}/{body['datasetSlug']}", body, body["body"]["files"])


@route(f"{DATASETS}/ListDatasetFiles")
def list_dataset(server: KaggleServer, body: dict) -> dict:
    names = sorted(_dataset(server, body).files)
    start = int(body.get("pageToken") or 0)
    page = [{"name": n, "totalBytes": len(_dataset(server, body).files[n])} for n in names[start : start + 2]]
    return {"datasetFiles": page, "nextPageToken": str(start + 2) if start + 2 < len(names) else ""}


KERNELS = "kernels.KernelsApiService"


@route(f"{KERNELS}/SaveKernel")
def save_kernel(server: KaggleServer, body: dict) -> dict:
    name, found = body["slug"], {"error": ""}
    if not server.save_answer.get("error"):
        server.kernels[name].append(Kernel(body))
        found["versionNumber"] = len(server.kernels[name])
    missing = [source for source in body.get("datasetDataSources", []) if source not in server.datasets]
    kernels = [source for source in body.get("kernelDataSources", []) if source == name or not server.kernels[source]]
    found |= {"ref": f"/code/{name}", "url": f"https://www.kaggle.com/code/{name}", "invalidDatasetSources": missing}
    found |= {"invalidKernelSources": kernels}
    return found | server.save_answer


def _latest(server: KaggleServer, body: dict) -> Kernel:
    if not server.kernels.get(name := f"{body['userName']}/{body['kernelSlug']}"):
        raise RefusalError(404, "Not Found")
    return server.kernels[name][-1]


@route(f"{KERNELS}/GetKernel")
def get_kernel(server: KaggleServer, body: dict) -> dict:
    request = _latest(server, body).request
    return {"metadata": {"ref": request["slug"]}, "blob": {"source": request["text"], "slug": request["slug"]}}


@route(f"{KERNELS}/GetKernelSessionStatus")
def kernel_status(server: KaggleServer, body: dict) -> dict:
    """Say RUNNING the first time, and run the kernel before the second answer."""
    kernel = _latest(server, body)
    with server.running:
        if kernel.output is None:
            kernel.output = Output("RUNNING")
        elif kernel.output.status == "RUNNING":
            kernel.output = server.run_kernel(kernel)
    return {"status": kernel.output.status, "failureMessage": kernel.output.failure}


@route(f"{KERNELS}/ListKernelSessionOutput")
def list_output(server: KaggleServer, body: dict) -> dict:
    output, start = _latest(server, body).output, int(body.get("pageToken") or 0)
    names = sorted(output.files)
    for name in names:
        server.stored[f"/output/{name}"] = output.files[name]
    page = [{"fileName": n, "url": f"{server.url}/output/{quote(n)}"} for n in names[start : start + 2]]
    log = json.dumps([{"stream_name": "stdout", "time": 0.1, "data": line} for line in output.log.splitlines(True)])
    return {"files": page, "log": log, "nextPageToken": str(start + 2) if start + 2 < len(names) else ""}


@contextlib.contextmanager
def serving():
    server = KaggleServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")
CREDENTIALS = ("KAGGLE_API_TOKEN", "KAGGLE_API_V1_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_ENVIRONMENT")


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """Let no request leave the machine, and no credentials of the machine in."""
    for name in PROXIES + CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(home / ".kaggle"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    return home


@pytest.fixture
def kaggle_server(no_network, monkeypatch):
    """A running server, which the client of this process asks in place of Kaggle, signed in with a key."""
    kaggle_env = pytest.importorskip("kagglesdk.kaggle_env")
    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    with serving() as server:
        for env in kaggle_env.KaggleEnv:
            monkeypatch.setitem(kaggle_env._env_to_endpoint, env, server.url)
        yield server


@pytest.fixture
def proxied_server(no_network, monkeypatch):
    """A running server, which the clients of new processes ask in place of Kaggle."""
    with serving() as server:
        monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
        monkeypatch.setenv("HTTP_PROXY", server.url)
        monkeypatch.setenv("http_proxy", server.url)
        yield server
