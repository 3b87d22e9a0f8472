"""What is carried is used if it belongs to the checkout; else the package is built."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
from gpu_run import carry, install
from gpu_run.context import FAILED, OK, Context
from gpu_run.runner import Runner

WHEEL = "fused_attention-0.0.1-py3-none-any.whl"
FACTS = {
    "modules": dict.fromkeys(install.MODULES, True),
    "torch": "2.11.0+cu130",
    "gpu": "Some GPU",
    "triton": "3.6.0",
}


@pytest.fixture
def checkout(tmp_path: Path, context: Context) -> Context:
    """A checkout of one source file, with a carried wheel of it and of one tool."""
    root = tmp_path / "checkout"
    (root / "python" / "fused_attention").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "python" / "fused_attention" / "__init__.py").write_text("def backends(): pass\n")
    context.root = root
    (context.carry / carry.TOOLS).mkdir(parents=True)
    members = {"fused_attention/__init__.py": "", carry.CUDA_LIBRARY: ""}
    write_wheel(context.carry / WHEEL, members)
    write_wheel(
        context.carry / carry.TOOLS / "some_tool-1.0-py3-none-any.whl", {"some_tool.py": ""}
    )
    manifest = {"sources": carry.source_hash(root)}
    (context.carry / carry.MANIFEST).write_text(json.dumps(manifest))
    return context


def write_wheel(path: Path, members: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)


def answer(context: Context, facts: dict) -> None:
    """The Python in use lacks every tool and says `facts`."""
    context.runner.gives("json.dumps([n", prints='["some_tool"]\n')
    context.runner.gives("find_spec", prints=json.dumps(facts) + "\n")


def test_a_carried_wheel_is_unpacked_and_nothing_is_built(checkout):
    answer(checkout, FACTS)
    result = install.install(checkout, 60.0)
    assert result.status == OK and WHEEL in result.what and "torch 2.11.0+cu130" in result.what
    assert not any("make" in command for command in checkout.runner.commands)
    site, tests = checkout.environment["PYTHONPATH"].split(os.pathsep)
    assert (Path(site) / carry.CUDA_LIBRARY).exists()
    assert (Path(site) / "some_tool.py").exists(), "what the Python lacked"
    assert Path(tests) == checkout.root / "tests"
    assert checkout.python == sys.executable


def test_a_stale_wheel_is_not_used(checkout):
    (checkout.root / "python" / "fused_attention" / "new.py").write_text("")
    answer(checkout, FACTS)
    checkout.runner.gives("make")
    result = install.install(checkout, 60.0)
    assert result.status == OK and "built from other sources" in result.what
    command, environment = checkout.runner.commands[0], checkout.runner.environments[0]
    assert command[:2] == ["make", "setup"] and environment["FUSED_ATTENTION_CUDA"] == "1"
    assert environment["FUSED_ATTENTION_CUDA_ARCHS"] == "native"
    assert environment["PIP_FIND_LINKS"] == str(checkout.carry / carry.TOOLS)
    assert checkout.python == str(checkout.root / ".venv" / "bin" / "python")
    assert not (checkout.root / install.SITE / "fused_attention").exists()


@pytest.mark.parametrize("ending", [("exit", 2), ("time", -9)])
def test_a_build_that_fails_is_told(checkout, ending):
    (checkout.carry / WHEEL).unlink()
    checkout.runner.gives("make", code=ending[1], ending=ending[0])
    result = install.install(checkout, 60.0)
    assert result.status == FAILED and "holds no wheel" in result.what


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({**FACTS, "gpu": None}, "torch finds no GPU"),
        ({**FACTS, "modules": {**FACTS["modules"], "torch": False}}, "torch cannot be imported"),
    ],
)
def test_what_is_missing_is_a_failure_with_a_reason(checkout, facts, told):
    answer(checkout, facts)
    result = install.install(checkout, 60.0)
    assert result.status == FAILED and told in result.what


def test_without_pytest_it_goes_on_and_says_so(checkout):
    answer(checkout, {**FACTS, "modules": {**FACTS["modules"], "pytest": False}})
    result = install.install(checkout, 60.0)
    assert result.status == OK and result.what.endswith("without pytest")
    assert checkout.modules["pytest"] is False


def test_tools_of_another_python_are_left_alone(checkout):
    folder = checkout.carry / carry.TOOLS
    for name in ("old-1-cp36-cp36m-linux.whl", "any-1-cp39-abi3-linux.whl"):
        write_wheel(folder / name, {"x.py": ""})
    own = f"own-1-cp3{sys.version_info.minor}-cp3{sys.version_info.minor}-linux.whl"
    write_wheel(folder / own, {"x.py": ""})
    assert carry.tool_wheels(checkout.carry).keys() == {"some_tool", "any", "own"}


def test_reasons_not_to_use_what_is_carried(checkout):
    def why_not():
        return carry.why_not_carried(checkout.root, checkout.carry)

    assert why_not() is None
    write_wheel(checkout.carry / WHEEL, {"fused_attention/__init__.py": ""})
    assert why_not() == f"{WHEEL} has no CUDA library"
    (checkout.carry / carry.MANIFEST).write_text("{")
    assert "has no manifest" in why_not()


def test_the_hash_sees_names_and_contents_of_sources_only(checkout):
    root = checkout.root
    before = carry.source_hash(root)
    (root / "tests" / "test_x.py").write_text("")
    (root / "python" / "fused_attention" / "lib.so").write_text("")
    assert carry.source_hash(root) == before
    (root / "setup.py").write_text("")
    hashes = {before, carry.source_hash(root)}
    for text in ("1", "2"):
        (root / "setup.py").write_text(text)
        hashes.add(carry.source_hash(root))
    assert len(hashes) == 4


def test_the_probe_runs_in_this_python(context):
    """Without a fake: what this Python has, and which backends."""
    context.runner = Runner(60.0)
    context.environment = dict(os.environ)
    facts = install.probe(context, 60.0)
    assert facts["modules"]["torch"] and facts["modules"]["pytest"]
    assert facts["package"].endswith("fused_attention/__init__.py")
    assert "cpu" in {info["name"] for info in facts["backends"]}
    assert install.missing_distributions(context, ["pytest", "no_such_tool"], 60.0) == [
        "no_such_tool"
    ]
    assert install.ask_python(context, "import no_such_module", 60.0) is None


def test_a_folder_without_a_wheel_cannot_be_completed(tmp_path, capsys):
    assert carry.prepare(tmp_path, tmp_path, "3.12") == 1
    assert "make cuda" in capsys.readouterr().err


def test_a_folder_is_completed_and_weighed(checkout, monkeypatch, capsys):
    (checkout.carry / carry.MANIFEST).unlink()
    monkeypatch.setattr(
        carry.subprocess, "run", lambda command, check: type("Done", (), {"returncode": 0})
    )
    assert carry.prepare(checkout.root, checkout.carry, "3.12") == 0
    assert carry.why_not_carried(checkout.root, checkout.carry) is None
    assert "MB" in capsys.readouterr().out
    monkeypatch.setattr(carry, "LARGEST_BYTES", 10)
    assert carry.prepare(checkout.root, checkout.carry, "3.12") == 1
