"""Stored responses: read, gone on from, deleted, dropped, and nobody else's."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from deepinfer.server.responses_api.answer import ItemList
from deepinfer.server.responses_api.items import InputText, MessageItem
from deepinfer.server.responses_api.store import ResponseStore, StoredResponse, _measure
from tests.server.serving import MODEL_ID, ServerProcess, client_of, make_echo_engine, serving
from tests.server.test_bad_requests import assert_error
from tests.server.test_responses import PATH

KEYS = ("the-key-of-one", "the-key-of-another")
OWNER, STRANGER = b"owner", b"stranger"


def message(text: str) -> MessageItem:
    return MessageItem(id="msg_1", role="user", content=[InputText(text=text)])


def stored(id_: str, text: str = "") -> StoredResponse:
    return StoredResponse(id_, OWNER, text.encode(), (message(text),), ())


def test_number_of_responses_is_bounded_and_the_longest_unused_goes_first() -> None:
    store = ResponseStore(max_responses=2)
    store.put(stored("a"))
    store.put(stored("b"))
    assert store.find("a", OWNER) is not None
    store.put(stored("c"))
    assert len(store) == 2
    assert store.find("b", OWNER) is None
    assert store.find("a", OWNER) is not None and store.find("c", OWNER) is not None


def test_size_of_responses_is_bounded() -> None:
    size = stored("x", "x" * 1000).size_bytes
    assert size > 2000  # as it was answered, and as input
    store = ResponseStore(max_bytes=2 * size)
    for id_ in "abc":
        store.put(stored(id_, "x" * 1000))
    assert len(store) == 2 and store.find("a", OWNER) is None
    store.put(stored("large", "x" * 3000))
    assert len(store) == 0  # it does not fit beside nothing


def test_one_wide_character_makes_a_whole_text_as_wide_as_it_is_in_memory() -> None:
    narrow, wide = stored("a", "x" * 100_000), stored("a", "x" * 99_999 + "🎉")
    assert wide.size_bytes - narrow.size_bytes > 2.9 * 100_000


def test_size_is_about_what_is_taken_of_memory() -> None:
    texts = [f"message number {i}" for i in range(2_000)]
    for _ in range(2):  # the first time fills caches
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        response = StoredResponse("a", OWNER, b"", tuple(map(message, texts)), ())
        taken = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    assert 0.7 * taken < response.size_bytes < 1.5 * taken


def test_deep_items_are_measured() -> None:
    depth = 100_000
    value: object = "x"
    for _ in range(depth):
        value = [value]
    assert _measure(value) > depth * sys.getsizeof([])


def test_room_of_a_deleted_response_is_free_again() -> None:
    size = stored("a").size_bytes
    store = ResponseStore(max_bytes=size)
    for id_ in "abc":
        store.put(stored(id_))
        store.delete(id_)
    store.put(stored("d"))
    assert len(store) == 1


def test_another_owner_finds_nothing() -> None:
    store = ResponseStore()
    store.put(stored("a"))
    assert store.find("a", STRANGER) is None and store.find("a", OWNER) is not None


def test_stored_response_is_what_was_answered(sdk: openai.OpenAI) -> None:
    answered = sdk.responses.create(model=MODEL_ID, input="hi")
    assert sdk.responses.retrieve(answered.id) == answered
    sdk.responses.delete(answered.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(answered.id)


def test_streamed_response_is_stored_as_well(sdk: openai.OpenAI) -> None:
    with sdk.responses.stream(model=MODEL_ID, input="hi") as stream:
        final = stream.get_final_response()
    assert sdk.responses.retrieve(final.id).output_text == final.output_text


def test_deleting_says_so(http: httpx.Client) -> None:
    id_ = http.post(PATH, json={"input": "hi"}).json()["id"]
    answer = http.delete(f"{PATH}/{id_}").json()
    assert answer == {"id": id_, "object": "response", "deleted": True}
    assert_error(http.delete(f"{PATH}/{id_}"), 404, "not_found", None)


def test_response_that_is_not_to_be_stored_is_not(http: httpx.Client) -> None:
    id_ = http.post(PATH, json={"input": "hi", "store": False}).json()["id"]
    assert_error(http.get(f"{PATH}/{id_}"), 404, "not_found", None)
    assert_error(http.get(f"{PATH}/{id_}/input_items"), 404, "not_found", None)
    response = http.post(PATH, json={"input": "hi", "previous_response_id": id_})
    assert_error(response, 404, "not_found", "previous_response_id")


def test_conversation_goes_on_without_the_earlier_instructions(sdk: openai.OpenAI) -> None:
    first = sdk.responses.create(model=MODEL_ID, instructions="Be brief.", input="one", store=True)
    second = sdk.responses.create(
        model=MODEL_ID, instructions="Be long.", input="two", previous_response_id=first.id
    )
    said = "system: Be brief.\nuser: one\nassistant:"
    assert second.output_text == (
        f"system: Be long.\nuser: one\nassistant: {said}\nuser: two\nassistant:"
    )
    assert second.instructions == "Be long."
    third = sdk.responses.create(
        model=MODEL_ID, input="three", previous_response_id=second.id, max_output_tokens=1
    )
    items = sdk.responses.input_items.list(third.id, order="asc").data
    assert [item.to_dict()["role"] for item in items] == ["user", "assistant"] * 2 + ["user"]


def test_input_items_come_in_pages(http: httpx.Client) -> None:
    texts = [{"role": "user", "content": str(number)} for number in range(5)]
    id_ = http.post(PATH, json={"input": texts, "max_output_tokens": 1}).json()["id"]

    def read(**query: str) -> tuple[list[str], ItemList]:
        answer = http.get(f"{PATH}/{id_}/input_items", params=query)
        page = ItemList.model_validate_json(answer.content, strict=True)
        return [item["content"][0]["text"] for item in answer.json()["data"]], page

    newest, page = read(limit="2")
    assert newest == ["4", "3"] and page.has_more
    following, _ = read(limit="2", after=str(page.last_id))
    assert following == ["2", "1"]
    oldest, page = read(order="asc")
    assert oldest == ["0", "1", "2", "3", "4"] and not page.has_more
    assert page.first_id == page.data[0].id and page.last_id == page.data[-1].id
    nothing, page = read(order="asc", after=str(page.last_id))
    assert nothing == [] and page.first_id is None and not page.has_more


@pytest.mark.parametrize(
    ("path", "code", "param"),
    [
        ("?stream=true", "unsupported_parameter", "stream"),
        ("?starting_after=3", "unsupported_parameter", "starting_after"),
        ("?include=message.output_text.logprobs", "unsupported_parameter", "include"),
        ("/input_items?limit=0", "invalid_value", "limit"),
        ("/input_items?limit=101", "invalid_value", "limit"),
        ("/input_items?limit=two", "invalid_value", "limit"),
        ("/input_items?order=up", "invalid_value", "order"),
        ("/input_items?after=nothing", "invalid_value", "after"),
        ("/input_items?include[]=x", "unsupported_parameter", "include[]"),
    ],
)
def test_query_that_cannot_be_honoured_is_refused(
    http: httpx.Client, path: str, code: str, param: str
) -> None:
    id_ = http.post(PATH, json={"input": "hi", "max_output_tokens": 1}).json()["id"]
    assert_error(http.get(f"{PATH}/{id_}{path}"), 400, code, param)
    assert http.get(f"{PATH}/{id_}?stream=false").status_code == 200


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("locked")
    make_echo_engine(folder / "echo")
    (folder / "keys.txt").write_text("\n".join(KEYS))
    with serving(folder / "echo", "--api-key-file", str(folder / "keys.txt")) as server:
        yield server


def test_one_key_does_not_reach_the_responses_of_another(locked: ServerProcess) -> None:
    ours, theirs = ({"authorization": f"Bearer {key}"} for key in KEYS)
    with client_of(locked) as client:
        id_ = client.post(PATH, json={"input": "secret"}, headers=ours).json()["id"]
        assert client.get(f"{PATH}/{id_}", headers={"x-api-key": KEYS[0]}).status_code == 200
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items")):
            response = client.request(method, f"{PATH}/{id_}{path}", headers=theirs)
            assert_error(response, 404, "not_found", None)
        body = {"input": "go on", "previous_response_id": id_}
        response = client.post(PATH, json=body, headers=theirs)
        assert_error(response, 404, "not_found", "previous_response_id")
        assert "secret" not in response.text
        assert client.get(f"{PATH}/{id_}", headers=ours).status_code == 200
        assert_error(client.get(f"{PATH}/{id_}"), 401, "invalid_api_key", None)
