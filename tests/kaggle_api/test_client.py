import os
import socket
import subprocess
import sys

import pytest
import requests

from ich_kaggle.kaggle_api import client

UNTRUSTED = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate in certificate chain"


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def untrusted(_: int):
    raise requests.exceptions.SSLError(UNTRUSTED)


def refused(port: int, **options):
    return requests.get(f"https://127.0.0.1:{port}/", timeout=5, **options)


@pytest.mark.parametrize(
    "send, remedy",
    [
        (untrusted, "Name the proxy's CA file in REQUESTS_CA_BUNDLE"),
        (lambda port: refused(port, verify="/no/such.pem"), "no such CA file: correct REQUESTS_CA_BUNDLE"),
        (
            lambda port: refused(port, proxies={"https": f"http://me:secret@127.0.0.1:{port}"}),
            "correct HTTPS_PROXY, or",
        ),
        (lambda port: refused(port, proxies={"https": "http:/x"}), "malformed: correct HTTPS_PROXY"),
    ],
)
def test_a_fault_of_this_machine_is_told_at_once_with_its_remedy(send, remedy):
    pauses = []
    with pytest.raises(ConnectionError) as told:
        client.retry(lambda: send(closed_port()), "the upload", client.AGAIN, pauses.append)
    assert remedy in str(told.value) and "later" not in str(told.value) and "secret" not in str(told.value)
    assert not pauses


def test_a_server_that_does_not_answer_is_asked_again():
    pauses = []
    with pytest.raises(ConnectionError, match="run the command again later"):
        client.retry(lambda: refused(closed_port()), "the upload", client.AGAIN, pauses.append)
    assert len(pauses) == client.TRIES - 1


def test_a_home_that_cannot_be_written_to_is_told_with_the_way_around_it():
    gone = {"HOME": "/proc/nobody", "KAGGLE_CONFIG_DIR": ""}
    code = "from ich_kaggle.kaggle_api import client; client.connect()"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | gone, capture_output=True, text=True)
    assert "cannot write to /proc/nobody" in done.stderr and "set KAGGLE_CONFIG_DIR to a folder" in done.stderr


@pytest.mark.parametrize("mode, is_told", [(0o644, True), (0o640, True), (0o600, False)])
@pytest.mark.parametrize("name", ["kaggle.json", "access_token"])
def test_credentials_that_others_can_read_are_told_in_one_line(tmp_path, monkeypatch, caplog, name, mode, is_told):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KAGGLE_CONFIG_DIR", raising=False)
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / name).write_text("{}")
    (tmp_path / ".kaggle" / name).chmod(mode)
    client._warn_of_readers()
    assert [f"chmod 600 {tmp_path}" in line for line in caplog.messages] == [True] * is_told
