# SPDX-License-Identifier: Apache-2.0
"""The Batch API of a front, used with the openai package."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from batches import AnsweringServer, answering_server, request
from fronts import RunningGateway, gateway_of

from zpptool.batch.api.extension import BatchApi
from zpptool.errors import ZppError

KEYS = ("first-secret", "second-secret")
WAIT_S = 30


@pytest.fixture
def answering() -> Iterator[AnsweringServer]:
    with answering_server() as server:
        yield server


@contextmanager
def front(answering: AnsweringServer, directory: Path, keys: tuple[str, ...] = ()) -> Iterator[RunningGateway]:
    """A front with the Batch API before a server."""
    with closing(BatchApi(directory)) as api, gateway_of([answering], keys=keys, extension=api) as gateway:
        yield gateway


def client_of(gateway: RunningGateway, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def client(answering: AnsweringServer, tmp_path: Path) -> Iterator[openai.OpenAI]:
    with front(answering, tmp_path / "batches") as gateway, client_of(gateway) as made:
        yield made


def upload(client: openai.OpenAI, *entries: object) -> str:
    text = "".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries)
    return client.files.create(file=("in.jsonl", text.encode()), purpose="batch").id


def create(client: openai.OpenAI, file_id: str, **more: object) -> str:
    return client.batches.create(input_file_id=file_id, endpoint="/v1/completions", completion_window="24h", **more).id  # type: ignore[arg-type]


def until(client: openai.OpenAI, batch_id: str, *statuses: str) -> openai.types.Batch:
    deadline = time.monotonic() + WAIT_S
    while (batch := client.batches.retrieve(batch_id)).status not in statuses:
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


def test_a_batch_goes_from_its_file_to_its_results(client: openai.OpenAI, answering: AnsweringServer) -> None:
    answering.refused = {"prompt 3"}
    file_id = upload(client, *(request(n) for n in range(12)), "not JSON")
    made = client.batches.create(
        input_file_id=file_id, endpoint="/v1/completions", completion_window="24h", metadata={"for": "a test"}
    )
    assert made.status == "validating"
    batch = until(client, made.id, "completed", "failed")
    assert batch.status == "completed"
    assert batch.metadata == {"for": "a test"}
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 13, "completed": 11, "failed": 2}
    assert batch.completed_at is not None
    assert batch.in_progress_at is not None
    assert batch.expires_at == batch.created_at + 24 * 3600
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    results = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(each["custom_id"] for each in results) == sorted(f"request-{n}" for n in range(12) if n != 3)
    assert {each["response"]["body"]["created"] for each in results} == {batch.created_at}
    errors = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
    assert {each["custom_id"] for each in errors} == {"request-3", None}
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"


def test_files_are_listed_by_page_and_deleted(client: openai.OpenAI) -> None:
    ids = [upload(client, request(n)) for n in range(5)]
    file = client.files.retrieve(ids[0])
    assert (file.filename, file.purpose, file.status) == ("in.jsonl", "batch", "processed")
    assert client.files.content(ids[0]).text == json.dumps(request(0)) + "\n"
    assert file.bytes == len(json.dumps(request(0))) + 1
    assert {each.id for each in client.files.list(limit=2)} == set(ids), "the client asks for page after page"
    assert client.files.delete(ids[1]).deleted
    assert {each.id for each in client.files.list()} == {*ids} - {ids[1]}
    for missing in (ids[1], "file-../../x", "batch_" + "0" * 32):
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(missing)


def test_a_batch_is_cancelled_and_keeps_its_results(client: openai.OpenAI, answering: AnsweringServer) -> None:
    answering.delay_s = 0.3
    file_id = upload(client, *(request(n) for n in range(200)))
    batch_id = create(client, file_id)
    until(client, batch_id, "in_progress")
    while len(answering.seen) < 10:
        time.sleep(0.02)
    with pytest.raises(openai.ConflictError):
        client.files.delete(file_id)
    assert client.batches.cancel(batch_id).status == "cancelling"
    batch = until(client, batch_id, "cancelled")
    assert batch.output_file_id is not None
    assert batch.request_counts is not None
    assert 0 < batch.request_counts.completed < 200
    assert len(client.files.content(batch.output_file_id).text.splitlines()) == batch.request_counts.completed
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch_id)


def test_a_batch_that_waits_for_another_is_cancelled_at_once(client: openai.OpenAI, answering: AnsweringServer) -> None:
    answering.delay_s = 1.0
    first, second = (create(client, upload(client, *(request(n) for n in range(100)))) for _ in range(2))
    until(client, first, "in_progress")
    assert client.batches.cancel(second).status == "cancelled"
    client.batches.cancel(first)
    until(client, first, "cancelled")
    until(client, create(client, upload(client, request(1))), "completed")
    assert client.batches.retrieve(second).request_counts.total == 0  # type: ignore[union-attr]


def test_batches_are_computed_in_their_order_and_listed(client: openai.OpenAI) -> None:
    ids = [create(client, upload(client, request(n))) for n in range(3)]
    for batch_id in ids:
        until(client, batch_id, "completed")
    assert {batch.id for batch in client.batches.list(limit=1)} == set(ids)
    page = client.batches.list(limit=2)
    assert page.has_more
    assert len(page.data) == 2


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([request(1), request(1)], "have the same custom_id"),
        ([request(1), {**request(2), "url": "/v1/embeddings"}], "is for /v1/embeddings"),
        ([" "], "has no lines"),
    ],
)
def test_a_faulty_input_fails_the_batch_by_name(client: openai.OpenAI, entries: list[object], words: str) -> None:
    batch = until(client, create(client, upload(client, *entries)), "failed", "completed")
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert words in (batch.errors.data[0].message or "")


def test_wrong_requests_are_refused(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id = upload(client, request(1))
    soon = {"anchor": "created_at", "seconds": 5}
    batch = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}

    def post(path: str, body: object) -> None:
        client.post(path, body=body, cast_to=object)

    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: create(client, "file-absent"), "input_file_id"),
        (lambda: client.files.create(file=("a", b"x"), purpose="fine-tune"), "purpose"),
        (lambda: client.files.create(file=("a", b"x"), purpose="batch", expires_after=soon), "expires_after"),
        (lambda: post("/batches", {**batch, "endpoint": "/v1/other"}), "endpoint"),
        (lambda: post("/batches", {**batch, "completion_window": "1h"}), "completion_window"),
        (lambda: post("/batches", {**batch, "output_expires_after": soon}), "expires_after"),
        (lambda: create(client, file_id, metadata={"a": "b" * 600}), "metadata"),
        (lambda: post("/batches", [1]), "object"),
        (lambda: client.get("/batches?limit=0", cast_to=object), "limit"),
    ]
    for call, words in wrong:
        with pytest.raises(openai.BadRequestError, match=words):
            call()
    for path, content_type, status in (
        ("/files", "text/plain", 415),
        ("/files", "application/json", 400),
        ("/batches", "text/plain", 415),
        ("/files", "multipart/form-data", 400),
        ("/files", "multipart/form-data; boundary=b", 400),
    ):
        answer = httpx.post(f"{client.base_url}{path[1:]}", content=b"{}", headers={"content-type": content_type})
        assert (answer.status_code, "error" in answer.json()) == (status, True)
    monkeypatch.setattr("zpptool.batch.api.uploads.MAX_FILE_BYTES", 1000)
    monkeypatch.setattr("zpptool.batch.api.uploads._MARGIN_BYTES", 500)
    for size in (1200, 100_000):
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=("a", b"x" * size), purpose="batch")
        assert caught.value.status_code == 413
    assert len(list(client.files.list())) == 1


def test_a_front_that_is_started_again_goes_on_with_its_batches(answering: AnsweringServer, tmp_path: Path) -> None:
    answering.delay_s = 0.2
    with front(answering, tmp_path / "b") as gateway, client_of(gateway) as client:
        batch_id = create(client, upload(client, *(request(n) for n in range(120))))
        while len(answering.seen) < 20:
            time.sleep(0.02)
    answering.delay_s = 0.0
    with front(answering, tmp_path / "b") as gateway, client_of(gateway) as client:
        batch = until(client, batch_id, "completed")
        assert batch.output_file_id is not None
        results = client.files.content(batch.output_file_id).text.splitlines()
        assert len({json.loads(line)["custom_id"] for line in results}) == len(results) == 120


def test_a_batch_whose_window_is_over_has_an_error_for_every_line_left(
    answering: AnsweringServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zpptool.batch.api.routes.WINDOW_S", 2)
    answering.delay_s = 1.0
    with front(answering, tmp_path / "b") as gateway, client_of(gateway) as client:
        batch = until(client, create(client, upload(client, *(request(n) for n in range(200)))), "expired")
        assert batch.error_file_id is not None
        assert batch.request_counts is not None
        assert batch.request_counts.completed + batch.request_counts.failed == 200
        errors = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
        assert {each["error"]["code"] for each in errors} == {"batch_expired"}
        assert len(errors) == batch.request_counts.failed > 100


def test_a_client_sees_only_what_belongs_to_its_key(answering: AnsweringServer, tmp_path: Path) -> None:
    with ExitStack() as stack:
        gateway = stack.enter_context(front(answering, tmp_path / "b", KEYS))
        first, second, stranger = (stack.enter_context(client_of(gateway, key)) for key in (*KEYS, "wrong"))
        file_id = upload(first, request(1))
        batch_id = create(first, file_id)
        until(first, batch_id, "completed")
        assert list(second.files.list()) == []
        assert list(second.batches.list()) == []
        for call in (
            lambda: second.files.content(file_id),
            lambda: second.files.delete(file_id),
            lambda: second.batches.cancel(batch_id),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        with pytest.raises(openai.BadRequestError):
            create(second, file_id)
        with pytest.raises(openai.AuthenticationError):
            upload(stranger, request(1))


def test_files_expire(tmp_path: Path) -> None:
    from zpptool.batch.api.objects import BatchObject, FileObject, with_status
    from zpptool.batch.api.store import BatchStore, new_id
    from zpptool.batch.file_operations import FileOperations

    store = BatchStore(tmp_path, FileOperations())
    content = store.incoming()
    content.write_text("x")
    file = FileObject(new_id("file-"), 1, 100, 200, "a", "batch", "")
    store.add_file(file, content)
    over = BatchObject(new_id("batch_"), "/v1/completions", file.id, 100, 200, "")
    running = BatchObject(new_id("batch_"), "/v1/completions", file.id, 100, 200, "")
    store.put_batch(with_status(over, "completed", 150))
    store.put_batch(running)
    store.incoming().write_text("left over")
    for again in (store, BatchStore(tmp_path, FileOperations())):
        again.expire(199, 1000)
        assert again.file(file.id, "") == file
        assert len(again.batches_of(None)) == 2
    store.expire(1200, 1000)
    for again in (store, BatchStore(tmp_path, FileOperations())):
        assert again.file(file.id, "") is None
        assert again.batches_of(None) == [running]
    assert {path.name for path in tmp_path.iterdir()} == {"files", "batches"}


def test_one_front_uses_a_directory_at_a_time(tmp_path: Path) -> None:
    with closing(BatchApi(tmp_path)), pytest.raises(ZppError, match="another front uses"):
        BatchApi(tmp_path)
    BatchApi(tmp_path).close()


def test_the_status_shows_batches_that_are_not_over(answering: AnsweringServer, tmp_path: Path) -> None:
    answering.delay_s = 0.3
    with front(answering, tmp_path / "b") as gateway, client_of(gateway) as client:
        batch_id = create(client, upload(client, *(request(n) for n in range(100))))
        until(client, batch_id, "in_progress")
        while len(answering.seen) < 5:
            time.sleep(0.02)
        (shown,) = httpx.get(f"{gateway.url}/pipeline/status").json()["batches"]
        assert (shown["id"], shown["status"], shown["total"]) == (batch_id, "in_progress", 100)
        assert 'zpp:batch_lines{state="total"} 100.0' in httpx.get(f"{gateway.url}/metrics").text
        client.batches.cancel(batch_id)
        until(client, batch_id, "cancelled")
        assert httpx.get(f"{gateway.url}/pipeline/status").json()["batches"] == []
