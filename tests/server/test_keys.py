"""With a key set, every route but /health needs it; how keys are written down and read again."""

from __future__ import annotations

import hmac
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from deepinfer.config import LimitsSection, ServeConfig
from deepinfer.config_layers import Setting, load_config
from deepinfer.errors import ConfigError
from deepinfer.server.keys import Key, KeyRing, digest_of, parse_keys, read_keys
from tests.server.serving import ServerProcess, client_of, make_echo_engine, serving
from tests.server.test_bad_requests import assert_error

KEYS = ("a-key-of-some-length", "another-key")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("locked")
    make_echo_engine(folder / "echo")
    (folder / "keys.txt").write_text(f"# who is who\nalice: {KEYS[0]}\n{KEYS[1]}\n\n")
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


def test_log_says_whose_key_it_was(locked: ServerProcess, stranger: httpx.Client) -> None:
    for key, name in ((KEYS[0], "alice"), (KEYS[1], "key-3")):
        headers = {"authorization": f"Bearer {key}", "x-request-id": f"of-{name}"}
        stranger.post("/v1/completions", json={"prompt": "x"}, headers=headers)
        assert f" key={name} " in locked.wait_for_request(f"of-{name}")


def test_hangup_reads_the_file_again_and_keeps_the_keys_when_it_is_broken(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "engines" / "echo")
    file = tmp_path / "keys"
    file.write_text("alice: first\nbob: second\n")

    def may_enter(client: httpx.Client, key: str) -> bool:
        headers = {"authorization": f"Bearer {key}"}
        return client.get("/v1/models", headers=headers).status_code == 200

    options = ("--api-key-file", str(file))
    with serving(tmp_path / "engines", *options) as server, client_of(server) as client:
        assert may_enter(client, "second")
        file.write_text("alice: first\ncarol: third\n")
        server.signal(signal.SIGHUP)
        server.wait_for_log(r"2 keys read again; new: `carol`; gone: `bob`\n")
        assert [may_enter(client, key) for key in ("first", "second", "third")] == [
            True,
            False,
            True,
        ]
        for broken in ("dave: fourth secret stuff\n", "# nobody\n"):
            file.write_text(broken)
            server.signal(signal.SIGHUP)
        server.wait_for_log("the keys stay as they were: ", count=2)
        assert may_enter(client, "third")
        assert not any(key in server.log for key in ("first", "second", "third", "secret"))
        server.signal()
        assert server.wait() == 0


# How a file is read

LIMITS = LimitsSection(requests_per_minute=10, concurrent_requests=2)


def parse(text: str) -> dict[str, Key]:
    return {key.name: key for key in parse_keys(text, "the file", "key", LIMITS)}


LINES = {
    "name: secret": ("name", "secret"),
    "  name   secret  ": ("name", "secret"),
    "secret": ("key-1", "secret"),
    "na:me": ("key-1", "na:me"),
    "secret=1": ("key-1", "secret=1"),
    "name: secret=": ("name", "secret="),
    "name: requests_per_minute": ("name", "requests_per_minute"),
    "a.b_c@d-e: sk-0/+~": ("a.b_c@d-e", "sk-0/+~"),
    "name: sch\u00fcssel": ("name", "sch\u00fcssel"),
}


@pytest.mark.parametrize(("line", "expected"), list(LINES.items()), ids=list(LINES))
def test_line_is_a_key_with_or_without_a_name(line: str, expected: tuple[str, str]) -> None:
    name, key = expected
    assert parse(line) == {name: Key(name, digest_of(key.encode()), LIMITS)}


def test_key_without_a_name_is_called_by_its_line() -> None:
    assert list(parse("# first\n\none\nalice: two\n\tthree\n")) == ["key-3", "alice", "key-5"]


def test_line_may_have_limits_of_its_own() -> None:
    keys = parse(
        "alice: a requests_per_minute=5 tokens_per_minute=600\n"
        "bob b concurrent_requests=none\n"
        "c concurrent_requests=7\n"
    )
    assert [key.limits for key in keys.values()] == [
        LimitsSection(requests_per_minute=5, tokens_per_minute=600, concurrent_requests=2),
        LimitsSection(requests_per_minute=10),
        LimitsSection(requests_per_minute=10, concurrent_requests=7),
    ]


WRONG_LINES = {
    "three words": ("name hidden hidden2", "line 2 is not a name and a key"),
    "name only": ("hidden:", "line 2 is not a name and a key"),
    "odd name": ("hid/den hidden", "line 2: a name has up to 64 letters"),
    "long name": (f"{'hidden' * 11} x", "line 2: a name has up to 64 letters"),
    "quotes": ('name: "hidden"', "line 2: a key stands there as it is sent, without quotes"),
    "control character": ("name: hidden\x07", "line 2: a key stands there as it is sent"),
    "unknown limit": ("name: hidden request_per_minute=5", "line 2: a limit is one of `requests_"),
    "unknown limit of a bare key": ("hidden requests=5", "line 2: a limit is one of `requests_"),
    "no requests": ("name: hidden requests_per_minute=0", "line 2: a limit is one of `requests_"),
    "negative limit": ("name: hidden requests_per_minute=-5", "line 2 is not a name and a key"),
}


@pytest.mark.parametrize(("line", "message"), list(WRONG_LINES.values()), ids=list(WRONG_LINES))
def test_wrong_line_is_named_and_not_shown(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        parse(f"alice: fine\n{line}")
    assert "hidden" not in f"{refused.value.message} {refused.value.hint}"


def config_of(*flags: tuple[str, str]) -> ServeConfig:
    return load_config(None, {}, [Setting(path, value, "test") for path, value in flags]).config


def test_keys_come_from_the_environment_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# first\none\n\n  two  \n")
    in_file = ("server.api_key_file", str(tmp_path / "keys"))
    keys = read_keys(config_of(("server.api_key", "zero"), in_file))
    assert {key.name: key.digest for key in keys} == {
        "api-key-1": digest_of(b"zero"),
        "key-2": digest_of(b"one"),
        "key-4": digest_of(b"two"),
    }
    several = read_keys(config_of(("server.api_key", "alice: a\nbob: b")))
    assert [key.name for key in several] == ["alice", "bob"]
    assert read_keys(ServeConfig()) == []


def test_file_without_a_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# nobody yet\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys(config_of(("server.api_key_file", str(tmp_path / "keys"))))
    with pytest.raises(ConfigError, match="cannot read the key file"):
        read_keys(config_of(("server.api_key_file", str(tmp_path / "absent"))))


def test_two_names_of_one_key_and_two_keys_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two keys are called `alice`"):
        read_keys(config_of(("server.api_key", "alice: a\nalice: b")))
    with pytest.raises(ConfigError, match="`alice` and `bob` are the same key"):
        read_keys(config_of(("server.api_key", "alice: a\nbob: a")))


def test_every_key_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def note(offered: bytes, known: bytes) -> bool:
        compared.append(known)
        return compare(offered, known)

    monkeypatch.setattr("deepinfer.server.keys.hmac.compare_digest", note)
    keys = parse_keys("alice: a\nbob: b\ncarol: c", "x", "x", LIMITS)
    ring = KeyRing(keys)
    for offered, name in ((b"a", "alice"), (b"c", "carol"), (b"d", None)):
        compared.clear()
        found = ring.find(offered)
        assert (found and found.name) == name
        assert compared == [key.digest for key in keys]


def test_nothing_shows_a_key() -> None:
    (key,) = parse_keys("alice: hidden", "x", "x", LIMITS)
    assert "hidden" not in repr(key) and repr(key.digest) not in repr(key)
