"""docs/playground/build.py: what it fetches is the package that was tested, and mistakes cost one line."""

import base64
import hashlib
import os
import tarfile

import pytest

from tests.factory import make_policy
from tests.playground.helpers import PAGE
from vla_mini.export.onnx import Exported


@pytest.fixture
def npm(tmp_path, monkeypatch, build):
    """A program npm whose `pack` gives an archive that build.py takes for the right one: its path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in build.FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    with tarfile.open(folder / "archive.tgz", "w:gz") as archive:
        for name in build.FILES:
            archive.add(folder / name, f"package/{name}")
    program = folder / "npm"
    program.write_text(f"#!/bin/sh\ncp {folder}/archive.tgz . && echo archive.tgz\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    digest = hashlib.sha512((folder / "archive.tgz").read_bytes()).digest()
    monkeypatch.setattr(build, "INTEGRITY", base64.b64encode(digest).decode())
    return program


def test_what_the_page_needs_is_taken_from_the_archive(npm, build, tmp_path):
    vendor = tmp_path / "vendor"
    build.fetch_onnxruntime(vendor)
    assert {path.name: path.read_text() for path in vendor.iterdir()} == {
        ours: f"content of {name}" for name, ours in build.FILES.items()
    }
    npm.write_text("#!/bin/sh\nexit 1\n")
    build.fetch_onnxruntime(vendor)  # it is there


def test_another_archive_is_refused(npm, build, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "INTEGRITY", "0" * 88)
    with pytest.raises(ValueError, match="its SHA-512 differs"):
        build.fetch_onnxruntime(tmp_path / "vendor")
    assert not (tmp_path / "vendor").exists()


def test_a_failing_or_missing_npm_is_named(npm, build, tmp_path, monkeypatch):
    npm.write_text("#!/bin/sh\necho 'npm error network\nnpm error down' >&2; exit 1\n")
    with pytest.raises(ValueError, match=r"npm cannot fetch onnxruntime-web@[\d.]+: npm error network npm error down"):
        build.fetch_onnxruntime(tmp_path / "vendor")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="npm, which fetches onnxruntime-web, is missing"):
        build.fetch_onnxruntime(tmp_path / "vendor")


def test_mistakes_cost_one_line(build, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "PAGE", tmp_path)
    other = make_policy()
    other.source = {"env": "vla_mini/PushT-v0"}
    other.save_pretrained(tmp_path / "other")
    for arguments, message in {
        (): "give one policy's folder: make playground POLICY=DIR",
        ("nowhere",): "nowhere",
        (str(tmp_path / "other"),): "was not trained on toy_pick, which the page plays",
    }.items():
        assert build.main([*arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_policy_that_is_too_large_leaves_the_one_that_is_there(build, tmp_path, monkeypatch):
    (tmp_path / "policy").mkdir()
    monkeypatch.setattr(build, "export", lambda *_: Exported(2.01, 0.0))
    with pytest.raises(ValueError, match=r"2.01 MB, more than the 2 MB that a page should load"):
        build.export_policy(make_policy(), tmp_path / "policy")
    assert list(tmp_path.iterdir()) == [tmp_path / "policy"]


def test_nothing_that_is_built_is_committed():
    assert {path.name for path in PAGE.iterdir() if path.is_dir()} <= {"vendor", "policy", "__pycache__"}
    ignored = (PAGE.parents[1] / ".gitignore").read_text().splitlines()
    assert {"/docs/playground/vendor/", "/docs/playground/policy/"} <= set(ignored)
