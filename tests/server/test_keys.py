"""With a key set, every route but /health needs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.server.serving import ServerProcess, client_of, make_echo_engine, serving
from tests.server.test_bad_requests import assert_error

KEYS = ("a-key-of-some-length", "another-key")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("locked")
    make_echo_engine(folder / "echo")
    (folder / "keys.txt").write_text("# who is who\n" + "\n".join(KEYS) + "\n\n")
    with serving(folder / "echo", "--api-key-file", str(folder / "keys.txt")) as server:
        yield server


@pytest.fixture(scope="module")
def stranger(locked: ServerProcess) -> Iterator[httpx.Client]:
    with client_of(locked) as client:
        yield client


ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/test/echo"),
    ("GET", "/v1/gpu/info"),
    ("GET", "/version"),
    ("GET", "/metrics"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/openapi.json"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/no-such-route"),
    ("DELETE", "/v1/models"),
    ("GET", "/health/"),
    ("GET", "/health/ready/"),
    ("GET", "//health"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda value: value)
def test_route_needs_a_key(stranger: httpx.Client, method: str, path: str) -> None:
    url = f"{stranger.base_url}".rstrip("/") + path
    response = stranger.request(method, url)
    assert_error(response, 401, "invalid_api_key", None)
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["type"] == "authentication_error"


WRONG = {
    "another": "Bearer nobody-knows-this",
    "shorter": f"Bearer {KEYS[0][:-1]}",
    "longer": f"Bearer {KEYS[0]}x",
    "both": f"Bearer {KEYS[0]} {KEYS[1]}",
    "empty": "Bearer",
    "no scheme": KEYS[0],
    "other scheme": f"Basic {KEYS[0]}",
    "comment": "Bearer # who is who",
    "not ASCII": b"Bearer \xff\xfe",
}


@pytest.mark.parametrize("header", list(WRONG.values()), ids=list(WRONG))
def test_wrong_key_is_refused(stranger: httpx.Client, header: str | bytes) -> None:
    response = stranger.get("/v1/models", headers={"authorization": header})  # type: ignore[dict-item]
    assert_error(response, 401, "invalid_api_key", None)


def test_wrong_key_in_the_other_header_is_refused(stranger: httpx.Client) -> None:
    for header in ("nobody-knows-this", f"Bearer {KEYS[0]}", ""):
        response = stranger.get("/v1/models", headers={"x-api-key": header})
        assert_error(response, 401, "invalid_api_key", None)


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_in_the_other_header(stranger: httpx.Client, key: str) -> None:
    for headers in ({}, {"authorization": "Bearer placeholder"}):
        response = stranger.get("/v1/models", headers={"x-api-key": key, **headers})
        assert response.status_code == 200


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_each_key_opens(stranger: httpx.Client, key: str, scheme: str) -> None:
    response = stranger.get("/v1/models", headers={"authorization": f"{scheme} {key}"})
    assert response.status_code == 200


def test_health_needs_no_key(stranger: httpx.Client) -> None:
    assert stranger.get("/health").status_code == 200


def test_sdk_with_and_without_the_key(locked: ServerProcess) -> None:
    url = f"{locked.url}/v1"
    with openai.OpenAI(base_url=url, api_key=KEYS[1], max_retries=0) as client:
        assert client.completions.create(model="test/echo", prompt="x").choices[0].text == "x"
    with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            client.models.list()
    assert refused.value.code == "invalid_api_key"


def test_keys_are_never_logged(locked: ServerProcess, stranger: httpx.Client) -> None:
    wrong = "Bearer nobody-may-read-this"
    stranger.get("/v1/models", headers={"authorization": wrong, "x-request-id": "wrong-key"})
    locked.wait_for_request("wrong-key")
    assert not any(key in locked.log for key in (*KEYS, "nobody-may-read-this"))
    assert "DEEPINFER_SERVER_API_KEY" in locked.log  # the snippets say where to put it


def test_empty_key_file_is_refused(tmp_path: Path) -> None:
    from deepinfer.config import Setting, load_config, read_api_keys
    from deepinfer.errors import ConfigError

    (tmp_path / "keys").write_text("# nobody yet\n")
    flag = Setting("server.api_key_file", str(tmp_path / "keys"), "option `--api-key-file`")
    config = load_config(None, {}, [flag]).config
    with pytest.raises(ConfigError, match="holds no key"):
        read_api_keys(config)
