"""What every response carries, which pages may read one, and what a certificate changes."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from deepinfer.config import ServeConfig
from deepinfer.errors import ConfigError
from deepinfer.server.keys import KeyRing, parse_keys
from deepinfer.server.tls import open_tls
from tests.server.serving import DEADLINE_S, make_echo_engine, serving, starting
from tests.server.watched import client_for, make_state

PAGE = "https://chat.example"
ASKING = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


# Every response

PATHS = ["/health", "/metrics", "/v1/models", "/openapi.json", "/no-such-route"]


@pytest.mark.parametrize("path", PATHS)
def test_response_is_kept_by_nobody_and_is_what_it_says(http: httpx.Client, path: str) -> None:
    headers = http.get(path).headers
    assert headers.get_list("cache-control") == ["no-store"]
    assert headers.get_list("x-content-type-options") == ["nosniff"]
    assert "server" not in headers


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_answer_is_kept_by_nobody(http: httpx.Client, is_stream: bool) -> None:
    response = http.post("/v1/completions", json={"prompt": "x", "stream": is_stream})
    assert response.status_code == 200
    assert response.headers.get_list("cache-control") == ["no-store"]
    assert response.headers["x-content-type-options"] == "nosniff"


# Pages


def test_no_page_may_read_anything_unless_it_is_named(http: httpx.Client) -> None:
    asked = http.options("/v1/chat/completions", headers=ASKING)
    assert asked.status_code == 405
    answer = http.get("/v1/models", headers={"origin": PAGE})
    for response in (asked, answer):
        assert not [name for name in response.headers if name.startswith("access-control-")]


async def test_named_page_may_ask_without_a_key_and_send_one(tmp_path: Path) -> None:
    config = ServeConfig.model_validate({"server": {"cors_origins": [PAGE]}})
    keys = KeyRing(parse_keys("a-key", "x", "x", config.limits))
    state, _ = make_state(tmp_path / "echo", config=config, keys=keys)
    async with client_for(state) as client:
        asked = await client.options("/v1/chat/completions", headers=ASKING)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == PAGE
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert "authorization" in asked.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in asked.headers
        for headers, status in (({}, 401), ({"authorization": "Bearer a-key"}, 200)):
            answer = await client.get("/v1/models", headers={"origin": PAGE, **headers})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert "x-request-id" in answer.headers["access-control-expose-headers"]


async def test_other_page_may_not(tmp_path: Path) -> None:
    config = ServeConfig.model_validate({"server": {"cors_origins": [PAGE]}})
    state, _ = make_state(tmp_path / "echo", config=config)
    async with client_for(state) as client:
        other = {**ASKING, "origin": "https://chat.example.evil"}
        asked = await client.options("/v1/chat/completions", headers=other)
        answer = await client.get("/v1/models", headers={"origin": other["origin"]})
    assert asked.status_code == 400
    for response in (asked, answer):
        assert "access-control-allow-origin" not in response.headers


async def test_star_is_any_page(tmp_path: Path) -> None:
    config = ServeConfig.model_validate({"server": {"cors_origins": "*"}})
    state, _ = make_state(tmp_path / "echo", config=config)
    async with client_for(state) as client:
        answer = await client.get("/v1/models", headers={"origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == "*"


# TLS

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A certificate for localhost, its key, that key encrypted, and the key of another."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("own", "other"):
        subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl("req", "-x509", *curve, *subject, *files, "-days", "2")
    openssl("pkey", "-in", "own.key", "-aes256", "-passout", "pass:x", "-out", "encrypted.key")
    (folder / "both.pem").write_text(
        (folder / "own.key").read_text() + (folder / "own.pem").read_text()
    )
    (folder / "noise").write_text("not a certificate\n")
    yield folder


@needs_openssl
def test_server_with_a_certificate_speaks_https_only(tmp_path: Path, certificates: Path) -> None:
    make_echo_engine(tmp_path / "echo")
    options = (
        "--tls-certificate",
        f"{certificates}/own.pem",
        "--tls-key",
        f"{certificates}/own.key",
    )
    with serving(tmp_path, *options) as server:
        url = server.wait_ready()
        trust = ssl.create_default_context(cafile=f"{certificates}/own.pem")
        with httpx.Client(base_url=url, verify=trust, timeout=DEADLINE_S) as client:
            assert client.get("/health").status_code == 200
            sdk = openai.OpenAI(base_url=f"{url}/v1", api_key="x", http_client=client)
            stream = sdk.completions.create(model="test/echo", prompt="abc", stream=True)
            assert "".join(chunk.choices[0].text for chunk in stream) == "abc"
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http") + "/health", timeout=DEADLINE_S)


WRONG = {
    "absent certificate": (("absent", "own.key"), "cannot read the TLS certificate `.*`: No such"),
    "absent key": (("own.pem", "absent"), "cannot read the TLS key `.*`: No such file"),
    "not a certificate": (("noise", "own.key"), "the certificate `.*noise` and the key .* cannot"),
    "key of another": (("own.pem", "other.key"), "cannot be used: key values mismatch"),
    "no key in it": (("own.pem", None), "the certificate `.*own.pem` cannot be used: "),
    "encrypted key": (("own.pem", "encrypted.key"), "the key for the certificate .* is encrypted"),
    "key alone": ((None, "own.key"), "`server.tls_key` is set without a certificate"),
}


@needs_openssl
@pytest.mark.parametrize(("files", "message"), list(WRONG.values()), ids=list(WRONG))
def test_wrong_file_is_one_line(
    certificates: Path, files: tuple[str | None, str | None], message: str
) -> None:
    certificate, key = (certificates / name if name else None for name in files)
    with pytest.raises(ConfigError, match=message) as refused:
        open_tls(certificate, key)
    assert "\n" not in refused.value.message
    assert refused.value.hint is not None or "cannot read" in refused.value.message


@needs_openssl
def test_one_file_may_hold_both(certificates: Path) -> None:
    assert open_tls(certificates / "both.pem", None) is not None
    assert open_tls(None, None) is None


def test_server_with_a_wrong_certificate_does_not_start(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo")
    with starting(tmp_path, "--tls-certificate", str(tmp_path / "absent.pem")) as server:
        assert server.wait() == 1
    assert "error: cannot read the TLS certificate `" in server.log
    assert "Traceback" not in server.log
