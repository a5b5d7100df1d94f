"""Where a dataset's images lie -> all frames as one array uint8 (n, k, c, h, w), of the size that the policy takes.

    Footage of each camera ──decoded once, in parallel──▶ a file in the cache ──memory-mapped──▶ the array
                           └─decoded when asked for──────────────────────────▶ `StreamedFrames`, which is indexed as the array

The file is named after everything that its content depends on. Decoding that was interrupted continues where it stopped. A
manifest is beside the file: frames that were damaged since are decoded again. Channels come before pixels, as in the policy's
input, so that a batch is a single gather.
"""

import hashlib
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from einops import rearrange
from filelock import FileLock
from tqdm import tqdm

from vla_mini.data import images
from vla_mini.data.lerobot import videos
from vla_mini.utils import files
from vla_mini.utils.errors import as_value_error
from vla_mini.utils.features import Resize

UNIT = 1024  # frames that one thread decodes at a time; what an interruption may lose
CHECKED_BYTES = 4 * 2**30  # a larger file of decoded frames is not read as a whole at every start


class Footage(NamedTuple):
    """Where the n frames of one camera lie."""

    feature: str  # name of the camera's feature: the column of its images, where they are in data files
    is_video: bool
    files: tuple[Path, ...]
    file: np.ndarray  # (n,) which of the files a frame is in
    frame: np.ndarray  # (n,) its number in the video, or its row in the data file
    size: tuple[int, int]  # height and width that the dataset announces
    lengths: tuple[int, ...]  # of each video, the frames that it must have
    exact: bool  # whether a video may have no more frames than that


def decode_to_file(
    path: Path, footage: Sequence[Footage], *, size: tuple[int, int], resize: Resize, verify: bool
) -> np.ndarray:
    """All frames, from the file `path`; where it is missing or damaged it is decoded first.

    The mapping is copy-on-write: writing to the array changes neither the file nor what other processes see.

    Raises ValueError, naming the file, for what cannot be decoded, and for a folder that cannot be written or has no room.
    """
    shape = (len(footage[0].file), len(footage), 3, *size)
    with as_value_error(
        f"{path.parent} cannot be written, to keep decoded frames (data.cache=DIR keeps them elsewhere)", OSError
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        size_in_bytes = math.prod(shape)
        if not is_intact(path, size_in_bytes, whole=verify or size_in_bytes <= CHECKED_BYTES):
            with FileLock(path.with_name(f".{path.name}.lock")):
                if not is_intact(path, size_in_bytes, whole=True):  # another process may have decoded meanwhile
                    if path.is_file() and files.manifest_of(path).is_file():
                        warnings.warn(f"{path} is damaged: its images are decoded again", stacklevel=3)
                    _decode_all(path, footage, shape=shape, resize=resize)
    return np.memmap(path, dtype=np.uint8, mode="c", shape=shape)


def is_intact(path: Path, num_bytes: int, *, whole: bool) -> bool:
    """Whether the frames in `path` are those that were written: their number, and as a `whole` their checksum."""
    if not (path.is_file() and path.stat().st_size == num_bytes and files.manifest_of(path).is_file()):
        return False
    with suppress(ValueError):
        if whole:
            files.check_checksum(path, files.crc32(path))
        return True
    return False


def _decode_all(path: Path, footage: Sequence[Footage], *, shape: tuple[int, ...], resize: Resize) -> None:
    partial_file, journal = (path.with_name(f".{path.name}.{kind}") for kind in ("partial", "done"))
    units = [(camera, *unit) for camera, each in enumerate(footage) for unit in _units(each)]
    done = set(journal.read_text().split()) if journal.is_file() and partial_file.is_file() else set()
    descriptor = os.open(partial_file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            _allocate(descriptor, math.prod(shape))
        except OSError as error:
            partial_file.unlink()
            raise ValueError(
                f"{path.parent}: {math.prod(shape) / 2**30:.2f} GiB of decoded frames do not fit: {error}"
            ) from error

        def decode(unit: tuple[int, int, int]) -> tuple[str, int]:
            camera, start, stop = unit
            rows = np.arange(start, stop)
            for row, image in zip(rows.tolist(), read(footage[camera], rows, size=shape[3:], resize=resize), strict=True):
                os.pwrite(descriptor, image.tobytes(), (row * shape[1] + camera) * math.prod(shape[2:]))
            os.fsync(descriptor)
            return f"{camera}:{start}:{stop}", stop - start

        todo = [unit for unit in units if ":".join(map(str, unit)) not in done]
        total, left = shape[0] * shape[1], sum(stop - start for _, start, stop in todo)
        title = f"decoding {math.prod(shape) / 1e9:.2f} GB to {path.parent}"
        with (
            ThreadPoolExecutor() as pool,
            journal.open("a") as finished,
            tqdm(desc=title, unit=" frames", total=total, initial=total - left, disable=None, leave=False) as bar,
        ):
            futures = [pool.submit(decode, unit) for unit in todo]
            try:
                for future in as_completed(futures):
                    name, number = future.result()
                    finished.write(f"{name}\n")
                    finished.flush()
                    bar.update(number)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        os.close(descriptor)
    checksum = files.crc32(partial_file)
    files.sync(partial_file)
    os.replace(partial_file, path)
    files.write_checksum(path, checksum)
    journal.unlink(missing_ok=True)


def _allocate(descriptor: int, num_bytes: int) -> None:
    """Take the room for a file of that size. OSError where there is not enough; macOS finds out while writing."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
    else:
        os.ftruncate(descriptor, num_bytes)


def _units(footage: Footage) -> Iterator[tuple[int, int]]:
    """Ranges of frames that follow one another in one file, at most UNIT each."""
    breaks = np.flatnonzero((np.diff(footage.file) != 0) | (np.diff(footage.frame) <= 0)) + 1
    for start, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), len(footage.file)], strict=True):
        yield from ((first, min(first + UNIT, stop)) for first in range(start, stop, UNIT))


def read(
    footage: Footage, rows: np.ndarray, *, size: tuple[int, int], resize: Resize, preview: bool = False
) -> Iterator[np.ndarray]:
    """The frames of these rows, uint8 (c, *size), which lie in one file, in rising order.

    - preview: of a video, pixels are picked and not averaged, as far as they can be: to look at, and faster
    """
    file, numbers = footage.files[footage.file[rows[0]]], footage.frame[rows]
    reduction = max(1, min(footage.size[0] // size[0], footage.size[1] // size[1])) if preview and footage.is_video else 1
    expected = (footage.size[0] // reduction, footage.size[1] // reduction)
    if footage.is_video:
        check_length(footage, int(footage.file[rows[0]]))
        found = videos.read_frames(file, numbers, reduction=reduction)
    else:
        found = _read_stills(file, footage.feature, numbers)
    for number, image in zip(numbers.tolist(), found, strict=True):
        if image.shape[:2] != expected:
            place = f"frame {number}" if footage.is_video else f"row {number}"
            raise ValueError(f"{file}, {place}: an image of {image.shape[:2]} pixels instead of {expected}, as info.json says")
        yield np.ascontiguousarray(rearrange(images.resize(image, size, resize), "h w c -> c h w"))


def check_length(footage: Footage, file: int) -> None:
    """ValueError for a video that has fewer frames than its episodes need; or others, where it holds one episode."""
    found, needed = len(videos.read_index(footage.files[file]).times), footage.lengths[file]
    if found < needed or (footage.exact and found > needed):
        raise ValueError(f"{footage.files[file]} has {found} frames, but its episode says {needed}")


def _read_stills(file: Path, column: str, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The images of these rows, of a column {bytes, path} or of bytes."""
    with (
        as_value_error(f"{file} is damaged or cut short", pa.ArrowException, OSError, KeyError),
        pq.ParquetFile(file, page_checksum_verification=True) as parquet,
    ):
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = np.searchsorted(ends, rows, side="right")
        for group in np.unique(groups).tolist():
            values = parquet.read_row_group(group, columns=[column])[column].combine_chunks()
            first = int(ends[group]) - sizes[group]
            for row in rows[groups == group].tolist():
                yield _decode_still(file, row, values[row - first].as_py())


def _decode_still(file: Path, row: int, value: Any) -> np.ndarray:
    encoded = value.get("bytes") if isinstance(value, dict) else value
    if encoded is None and isinstance(value, dict) and value.get("path"):
        raise ValueError(
            f"{file}, row {row}: its image is kept in another file, {value['path']!r}: only images inside are read"
        )
    if not isinstance(encoded, bytes):
        raise ValueError(f"{file}, row {row}: there is no encoded image, but {type(encoded).__name__}")
    try:
        return images.decode(encoded)
    except ValueError as error:
        raise ValueError(f"{file}, row {row}: {error}") from error


class LazyFrames(ABC):
    """Frames that are not in one piece of memory, indexed as an array uint8 (n, k, c, h, w)."""

    dtype = np.dtype(np.uint8)
    decoded: bool  # whether they are kept decoded
    shape: tuple[int, ...]

    @abstractmethod
    def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        """As `numpy.take` along the first axis."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        return self.take(np.asarray(np.arange(len(self))[rows]))


Frames = np.ndarray | LazyFrames


class StreamedFrames(LazyFrames):
    """Frames that are decoded when they are asked for, each once, those of one file in their order."""

    decoded = False

    def __init__(self, footage: Sequence[Footage], *, size: tuple[int, int], resize: Resize, preview: bool = False) -> None:
        self.footage, self._resize = tuple(footage), resize
        self._read = partial(read, size=size, resize=resize, preview=preview)
        self.shape = (len(footage[0].file), len(footage), 3, *size)

    def preview(self, size: tuple[int, int]) -> "StreamedFrames":
        """The same frames in another `size` (height, width), to look at and not to train on."""
        return StreamedFrames(self.footage, size=size, resize=self._resize, preview=True)

    def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        assert axis == 0
        needed, inverse = np.unique(rows, return_inverse=True)
        found = np.empty((len(needed), *self.shape[1:]), np.uint8)
        for camera, footage in enumerate(self.footage):
            order = np.lexsort((footage.frame[needed], footage.file[needed]))
            for group in np.split(order, np.flatnonzero(np.diff(footage.file[needed][order])) + 1):
                for place, image in zip(group, self._read(footage, needed[group]), strict=True):
                    found[place, camera] = image
        return found[inverse.reshape(np.shape(rows))]


def is_decoded(frames: Frames) -> bool:
    """Whether a frame is read from memory or from the cache, and not decoded when it is asked for."""
    return isinstance(frames, np.ndarray) or frames.decoded


def cache_name(fingerprint: str, *parts: Any) -> str:
    """The name of the file of decoded frames that depends on a dataset's fingerprint and on `parts`."""
    return f"{hashlib.sha256(repr((fingerprint, parts)).encode()).hexdigest()}.u8"
