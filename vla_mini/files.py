"""Files that are whole or not there at all: written beside their place, brought to the disk, then renamed.

And folders that say what is in them: a manifest, {"name": "SHA-256 in hexadecimal digits"}, of every file.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; what was written takes the place of `path` once the block ends well.

    Whenever the power fails, `path` is what it was before or what it is to be. OSError where the disk is full, the folder gone.
    """
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, as a whole."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def digest(path: Path) -> str:
    """The SHA-256 of a file's contents, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Name within `folder` -> SHA-256. In threads, since hashing needs no Python lock."""
    paths = list(paths)
    with ThreadPoolExecutor() as pool:
        return dict(zip((path.relative_to(folder).as_posix() for path in paths), pool.map(digest, paths), strict=True))


def manifest_text(digests: Mapping[str, Any]) -> str:
    return json.dumps(dict(digests), indent=2) + "\n"


def check_manifest(folder: Path, manifest: str, found: Mapping[str, str], *, required: Iterable[str] = ()) -> None:
    """ValueError, naming the file, where one that `manifest` in `folder` names is missing or is not what was written.

    `found`: the digests of what is there. `required`: names that the manifest may not leave out.
    """
    try:
        text = (folder / manifest).read_text(encoding="utf-8")
        written = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / manifest} is damaged: {error}") from error
    if not isinstance(written, dict) or text != manifest_text(written):
        raise ValueError(f"{folder / manifest} is damaged: it is not as it was written")
    for name in [*required, *written]:
        if name not in found:
            raise ValueError(f"{folder / name} is missing")
        if found[name] != written.get(name):
            raise ValueError(f"{folder / name} is damaged: its checksum is not the one in {manifest}")


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
