"""Files and folders are complete or absent, whatever happens while they are written; manifests detect every change."""

import json

import pytest

from vla_mini.utils import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_only_when_its_block_ends_well(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "before")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "before"
        raise KeyboardInterrupt
    assert path.read_text() == "before" and names(tmp_path) == ["a.txt"]
    files.write_text(path, "äfter")
    assert path.read_text(encoding="utf-8") == "äfter" and names(tmp_path) == ["a.txt"]


def test_json_is_read_as_it_was_written_and_damage_is_named(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": [1, None, "ä"]}, allow_nan=False)
    assert files.read_json(path) == {"a": [1, None, "ä"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, float("nan"), allow_nan=False)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"a\.json is damaged"):
        files.read_json(path)
    with pytest.raises(ValueError, match=r"b\.json is missing"):
        files.read_json(tmp_path / "b.json")


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "deep" / "policy"
    for name in ("first", "second"):
        with files.replacing_folder(folder) as temporary:
            (temporary / name).write_text(name)
    assert names(folder) == ["second"] and names(folder.parent) == ["policy"]

    def write_third():
        with files.replacing_folder(folder) as temporary:
            (temporary / "third").touch()
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_third()
    assert names(folder) == ["second"] and names(folder.parent) == ["policy"]


def test_an_interrupt_between_the_two_renames_keeps_the_old_folder(tmp_path, monkeypatch):
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "old").touch()
    rename, calls = files.os.rename, []

    def interrupted(source, destination):
        calls.append((source, destination))
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, destination)

    monkeypatch.setattr(files.os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), files.replacing_folder(folder) as temporary:
        (temporary / "new").touch()
    assert len(calls) == 3 and names(tmp_path) == ["policy"] and names(folder) == ["old"]


def test_what_killed_processes_left_is_removed(tmp_path):
    (tmp_path / "run" / ".policy.partial-7").mkdir(parents=True)
    (tmp_path / "run" / ".policy.partial-7" / "config.json").touch()
    (tmp_path / "run" / ".last.ckpt.partial-7").touch()
    (tmp_path / "run" / "policy").mkdir()
    files.remove_temporary(tmp_path)
    assert names(tmp_path / "run") == ["policy"]


def test_a_manifest_detects_missing_and_changed_files_and_its_own_damage(tmp_path):
    paths = [tmp_path / "meta" / "info.json", tmp_path / "data.bin"]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_text(path.name)
    right = files.digests(tmp_path, paths)
    assert list(right) == ["meta/info.json", "data.bin"] and right["data.bin"] == files.digest(tmp_path / "data.bin")
    files.write_manifest(tmp_path, "meta/manifest.json", right)
    files.check_manifest(tmp_path, "meta/manifest.json", right | {"more": "0"}, required=["data.bin"])
    for found, required, message in (
        ({"data.bin": right["data.bin"]}, (), r"meta/info\.json is missing"),
        (right | {"data.bin": "0"}, (), r"data\.bin is damaged: its checksum is not the one in meta/manifest\.json"),
        (right, ["model"], "model is missing"),
        (right | {"model": "0"}, ["model"], "model is damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            files.check_manifest(tmp_path, "meta/manifest.json", found, required=required)
    manifest = tmp_path / "meta" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text())))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged: it is not as it was written"):
        files.check_manifest(tmp_path, "meta/manifest.json", right)


def test_every_byte_counts_in_a_checksum(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CRC_PART", 2**20)
    path = tmp_path / "cache.u8"
    content = bytearray(2**22 + 5)
    path.write_bytes(content)
    right = files.crc32(path)
    assert len(right) == 5 * 8
    files.write_checksum(path, right)
    assert names(tmp_path) == ["cache.u8", files.manifest_of(path).name]
    files.check_checksum(path, files.crc32(path))
    for position in (0, 2**20 - 1, 2**20, 2**22 - 1, 2**22 + 4):
        content[position] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cache\.u8 is damaged"):
            files.check_checksum(path, files.crc32(path))
        content[position] ^= 1
