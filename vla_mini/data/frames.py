"""Encoded images in data files -> one memory-mapped file of uint8 frames (n, k, c, h, w), made once and kept.

The file is named after the dataset's fingerprint: a changed dataset is decoded anew, a second start decodes nothing. Its
checksum is kept beside it (.crc32) and verified by every start: frames that were damaged since are decoded anew.
Frames stay on the disk and come in page by page, so a dataset larger than memory trains too. Channels come before
pixels, as policies want them, so that a batch is a single gather.
"""

import io
import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from einops import rearrange
from PIL import Image

from vla_mini.files import write_text

# Rows decoded together: enough to keep every core busy, little enough to keep in memory.
BLOCK = 1024
SLICE = 64
# Bytes of the cache that one thread checks at a time.
PART = 2**26

Progress = Callable[[int, int], None]  # (done, total)


def map_frames(
    cache: Path, *, files: list[Path], columns: list[str], shape: tuple[int, ...], progress: Progress | None = None
) -> np.ndarray:
    """The frames in the file `cache`; where it is missing, it is decoded first from the image `columns` of `files`.

    `shape` is (n, k, c, h, w); `progress(done, total)` counts frames. The mapping is copy-on-write: writing to the
    array changes neither the file nor what other processes see.

    Raises ValueError, naming the file, for an image that does not decode or has another size, and for a `cache` that
    cannot be written.
    """
    if not _is_whole(cache, size=int(np.prod(shape))):
        _fill(cache, blocks=_decode(files, columns=columns, shape=shape), total=shape[0], progress=progress)
    return np.memmap(cache, dtype=np.uint8, mode="c", shape=shape)


def _is_whole(cache: Path, *, size: int) -> bool:
    """Whether the frames in `cache` are those that were written; a warning where they no longer are."""
    checksum = _checksum_file(cache)
    if not (cache.is_file() and checksum.is_file()):
        return False
    if cache.stat().st_size == size and checksum.read_bytes() == _checksum(cache, cache.name).encode():
        return True
    warnings.warn(f"{cache} is damaged: its images are decoded anew", stacklevel=3)
    return False


def _checksum(path: Path, name: str) -> str:
    """`name`, and the CRC-32 of each PART: it tells damage, and a SHA-256 of so many bytes would take thrice as long."""
    parts = range(0, path.stat().st_size, PART)
    with ThreadPoolExecutor() as pool:
        return "".join(f"{crc:08x}\n" for crc in pool.map(partial(_crc, path), parts)) + f"{name}\n"


def _crc(path: Path, start: int) -> int:
    crc, buffer = 0, memoryview(bytearray(2**20))
    with path.open("rb") as file:
        file.seek(start)
        for _ in range(PART // len(buffer)):
            crc = zlib.crc32(buffer[: file.readinto(buffer)], crc)
    return crc


def _checksum_file(cache: Path) -> Path:
    return cache.with_suffix(".crc32")


def _fill(cache: Path, *, blocks: Iterator[np.ndarray], total: int, progress: Progress | None) -> None:
    """Write beside `cache`, which gets its name only when it is whole and on the disk."""
    temporary = cache.with_name(f"{cache.name}.partial-{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise ValueError(f"{cache.parent} cannot be written, to keep decoded frames: {error.strerror}") from error
    try:
        with temporary.open("wb") as file:
            done = 0
            for block in blocks:
                file.write(block)
                done += len(block)
                if progress is not None:
                    progress(done, total)
            file.flush()
            os.fsync(file.fileno())
        assert done == total, (done, total)
        write_text(_checksum_file(cache), _checksum(temporary, cache.name))
        os.replace(temporary, cache)
    finally:
        temporary.unlink(missing_ok=True)


def _decode(files: list[Path], *, columns: list[str], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Frames (rows, k, c, h, w), block after block. Pillow decodes outside Python's lock: threads suffice."""
    with ThreadPoolExecutor() as pool:
        for file in files:
            first = 0
            for rows in _image_rows(file, columns):
                frames = np.empty((rows.num_rows, *shape[1:]), np.uint8)
                starts = range(0, rows.num_rows, SLICE)
                decode = partial(_decode_slice, frames, rows=rows, file=file, first=first)
                list(pool.map(decode, starts))
                yield frames
                first += rows.num_rows


def _image_rows(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            for rows in parquet.iter_batches(BLOCK, columns=columns):
                yield rows.select(columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{file} is damaged or cut short: {error}") from error


def _decode_slice(frames: np.ndarray, start: int, *, rows: pa.RecordBatch, file: Path, first: int) -> None:
    """Fill SLICE of `frames` (rows, k, c, h, w) from the structs {bytes, path} of `rows`, a column a camera."""
    size = frames.shape[3:]
    for camera, column in enumerate(rows.slice(start, SLICE).columns):
        images = []
        for row, encoded in enumerate(column.field("bytes").to_pylist(), first + start):
            try:
                with Image.open(io.BytesIO(encoded)) as image:
                    images.append(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))
            except (OSError, SyntaxError, TypeError) as error:  # what Pillow raises for broken or missing images
                raise ValueError(f"{file}, row {row}: its image cannot be decoded: {error}") from error
            if images[-1].shape[:2] != size:
                raise ValueError(f"{file}, row {row}: an image of {images[-1].shape[:2]} pixels instead of {size}")
        frames[start : start + SLICE, camera] = rearrange(images, "rows h w c -> rows c h w")
