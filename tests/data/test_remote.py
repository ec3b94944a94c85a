"""Data in an object store is fetched once, and again where it has changed."""

import pytest

from configs import base
from vf.config import data
from vf.data import remote
from vf.types import UserError

ADDRESS = "gs://bucket/data/set"


@pytest.fixture
def store(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("VF_DATA_CACHE", str(tmp_path / "cache"))
    bucket |= {
        "bucket/data/set/manifest.json": b"{}",
        "bucket/data/set/train/0.array_record": b"abc",
        "bucket/data/set/train/1.array_record": b"defg",
        "bucket/data/settings": b"a neighbour",
    }
    return bucket


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored_files(store):
    prefix = "bucket/data/set/"
    return {name.removeprefix(prefix): data for name, data in store.items() if name.startswith(prefix)}


def test_a_folder_is_fetched_once_and_what_changes_again(store, monkeypatch):
    folder = remote.local_copy(ADDRESS)
    assert content(folder) == stored_files(store)
    before = (folder / "train/0.array_record").stat().st_mtime_ns
    store["bucket/data/set/train/1.array_record"] = b"longer than it was"
    store["bucket/data/set/train/2.array_record"] = b"new"
    del store["bucket/data/set/train/0.array_record"]
    assert remote.local_copy(f"{ADDRESS}/") == folder
    assert content(folder) == stored_files(store)
    store["bucket/data/set/train/0.array_record"] = b"abc"
    remote.local_copy(ADDRESS)
    after = (folder / "train/0.array_record").stat().st_mtime_ns
    assert after > before
    remote.local_copy(ADDRESS)
    assert (folder / "train/0.array_record").stat().st_mtime_ns == after  # nothing to fetch


def test_data_that_was_prepared_anew_is_fetched_whole(store):
    remote.local_copy(ADDRESS)
    store["bucket/data/set/manifest.json"] = b'{"size": 64}'
    store["bucket/data/set/train/0.array_record"] = b"ABC"  # as long as before
    assert content(remote.local_copy(ADDRESS)) == stored_files(store)


def test_an_interrupted_fetch_resumes(store, monkeypatch):
    from fsspec.spec import AbstractFileSystem

    whole = AbstractFileSystem.get_file

    def broken(self, name, *args, **kwargs):
        if name.endswith("1.array_record"):
            raise OSError("no network")
        return whole(self, name, *args, **kwargs)

    monkeypatch.setattr(AbstractFileSystem, "get_file", broken)
    with pytest.raises(UserError, match=r"stopped \(OSError: no network\): the same command goes on"):
        remote.local_copy(ADDRESS)
    monkeypatch.setattr(AbstractFileSystem, "get_file", whole)
    assert content(remote.local_copy(ADDRESS)) == stored_files(store)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "http_proxy", "all_proxy"])
def test_a_store_that_does_not_answer_behind_a_proxy(store, monkeypatch, name):
    """The proxy is named by its variable; its address may hold a password."""
    from fsspec.spec import AbstractFileSystem

    def closed(*args, **kwargs):
        raise OSError("Cannot connect to host")

    for other in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(other, raising=False)
    for function, parts in (("get_file", "stopped"), ("find", "which cannot be read")):
        monkeypatch.setattr(AbstractFileSystem, function, closed)
        for proxy in ("", "http://me:secret@127.0.0.1:9"):
            with monkeypatch.context() as environment:
                environment.setenv(name if proxy else "NO_PROXY", proxy)
                with pytest.raises(UserError) as raised:
                    remote.local_copy(ADDRESS)
            sentence = str(raised.value)
            assert parts in sentence
            assert sentence.endswith(f"make sure that the proxy that {name} names answers") is bool(proxy)
            assert "secret" not in sentence


def test_an_empty_address_is_reported(store):
    with pytest.raises(UserError, match=r"found nothing there|cannot be read"):
        remote.local_copy("gs://bucket/data/other")


def test_videos_in_a_store_are_a_source(bucket, real_clips, tmp_path, monkeypatch):
    monkeypatch.setenv("VF_DATA_CACHE", str(tmp_path))
    for path in sorted((real_clips / "UCF-101").glob("*/v_*.avi"))[:2]:
        bucket[f"bucket/{path.relative_to(real_clips).as_posix()}"] = path.read_bytes()
    config = base.get_config()
    config.data.source = "gs://bucket/UCF-101"
    assert len(data.source(config)) == 2
    # A plan fetches nothing.
    config.plan.classes = 3
    monkeypatch.setattr(remote, "local_copy", lambda _: pytest.fail("fetched"))
    assert data.plan_source(config).num_classes == 3
