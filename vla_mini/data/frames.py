"""Encoded images in data files -> one memory-mapped file of uint8 frames (n, k, c, h, w), made once and kept.

The file is named after the dataset's fingerprint: a changed dataset is decoded again, a second start decodes nothing. Its
manifest is beside it and is checked at every start: frames that were damaged since are decoded again.
Frames stay on the disk and are loaded page by page, so a dataset larger than memory trains too. Channels come before
pixels, as in the policy's input, so that a batch is a single gather.
"""

import io
import math
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from einops import rearrange
from PIL import Image

from vla_mini.utils import files
from vla_mini.utils.errors import as_value_error, one_line

# Rows decoded together: enough for all cores, few enough for the memory.
BLOCK = 1024
SLICE = 64


def map_frames(cache: Path, *, data_files: list[Path], columns: list[str], shape: tuple[int, ...]) -> np.ndarray:
    """The frames in the file `cache`; where it is missing, it is decoded first from the image `columns` of `data_files`.

    `shape` is (n, k, c, h, w). The mapping is copy-on-write: writing to the array changes neither the file nor what other
    processes see.

    Raises ValueError, naming the file, for an image that does not decode or has another size, and for a `cache` that
    cannot be written.
    """
    if not is_intact(cache):
        with as_value_error(f"{cache.parent} cannot be written, to keep decoded frames", OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(cache) as temporary:
                with temporary.open("wb") as file:
                    file.writelines(_decode(data_files, columns=columns, shape=shape[1:]))
                assert temporary.stat().st_size == math.prod(shape)
                files.write_checksum(cache, files.crc32(temporary))
    return np.memmap(cache, dtype=np.uint8, mode="c", shape=shape)


def is_intact(cache: Path) -> bool:
    """Whether the frames in `cache` are those that were written. Warns where they no longer are."""
    if not (cache.is_file() and files.manifest_of(cache).is_file()):
        return False
    with suppress(ValueError):
        files.check_checksum(cache, files.crc32(cache))
        return True
    warnings.warn(f"{cache} is damaged: its images are decoded again", stacklevel=3)
    return False


def _decode(data_files: list[Path], *, columns: list[str], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Frames (rows, k, c, h, w), SLICE after SLICE. Pillow releases Python's lock while it decodes, so threads suffice."""
    with ThreadPoolExecutor() as pool:
        for file in data_files:
            first = 0
            with (
                as_value_error(f"{file} is damaged or cut short", pa.ArrowException, OSError, KeyError),
                pq.ParquetFile(file, page_checksum_verification=True) as parquet,
            ):
                for rows in parquet.iter_batches(BLOCK, columns=columns):
                    decode = partial(_decode_slice, rows.select(columns), file=file, first=first, shape=shape)
                    yield from pool.map(decode, range(0, rows.num_rows, SLICE))
                    first += rows.num_rows


def _decode_slice(rows: pa.RecordBatch, start: int, *, file: Path, first: int, shape: tuple[int, ...]) -> np.ndarray:
    """The frames (SLICE, k, c, h, w) that begin at `start` of `rows`, which has a column {bytes, path} for each camera."""
    rows = rows.slice(start, SLICE)
    frames = np.empty((rows.num_rows, *shape), np.uint8)
    for camera, column in enumerate(rows.columns):
        images = []
        for row, encoded in enumerate(column.field("bytes").to_pylist(), start=first + start):
            try:  # not `as_value_error`, which would take a tenth of the time
                image = Image.open(io.BytesIO(encoded))
                images.append(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))
            except Exception as error:  # whatever Pillow raises
                raise ValueError(f"{file}, row {row}: its image cannot be decoded: {one_line(error)}") from error
            if images[-1].shape[:2] != shape[2:]:
                raise ValueError(f"{file}, row {row}: an image of {images[-1].shape[:2]} pixels instead of {shape[2:]}")
        frames[:, camera] = rearrange(images, "rows h w c -> rows c h w")
    return frames
