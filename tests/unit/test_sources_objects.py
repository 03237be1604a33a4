# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in an object store, from a server of S3's protocol on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from zpptool.console import Console
from zpptool.errors import ExitCode, ZppError
from zpptool.partition import even_partition
from zpptool.sources.located import stage_model, whole_model
from zpptool.sources.names import ModelName, UrlId
from zpptool.sources.objects import ObjectSource

URL = "s3://models/tiny"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The checkpoint whose files are in the store."""
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "ZPP_CACHE": str(tmp_path / "store"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    model = write_checkpoint(tmp_path / "model", shards=3)
    files = s3fs.S3FileSystem()
    if not files.exists("models"):
        files.mkdir("models")
    files.put(f"{model}/", "models/tiny/", recursive=True)
    files.invalidate_cache()
    yield model
    server.stop()


def test_a_stage_and_the_whole_are_fetched_and_a_change_is_noticed(bucket: Path) -> None:
    model = ModelName(URL)
    stage = stage_model(model, 1, lambda layers: even_partition(layers, 3), Console(quiet=True))
    assert stage.source.startswith(f"{URL}#")
    assert (stage.directory / "tokenizer.json").read_bytes() == (bucket / "tokenizer.json").read_bytes()
    again = stage_model(model, 1, lambda layers: even_partition(layers, 3), Console(quiet=True))
    assert again == stage
    whole = whole_model(model, Console(quiet=True))
    for path in (path for path in bucket.rglob("*") if path.is_file()):
        assert (whole.directory / path.relative_to(bucket)).read_bytes() == path.read_bytes()
    with pytest.raises(ZppError, match="has changed since"):
        ObjectSource(UrlId(URL, "0" * 32))


def test_what_is_not_there_is_named(bucket: Path) -> None:
    with pytest.raises(ZppError, match="holds no checkpoint") as refused:
        ObjectSource(UrlId("s3://models/other"))
    assert refused.value.exit_code is ExitCode.INVALID


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(ZppError, match="gcsfs, which is not installed") as refused:
        ObjectSource(UrlId("gs://models/tiny"))
    assert refused.value.hint == "pip install 'zpptool[gs]'"
