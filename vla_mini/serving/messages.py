"""Messages of openpi's policy server: dicts of text, numbers and arrays <-> bytes, by msgpack. No pickle, and no code in them.

An array is {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [2, 3]}, a NumPy scalar {b"__npgeneric__": True,
b"data": number, b"dtype": "<f4"}, as in openpi_client/msgpack_numpy.py.
"""

from typing import Any

import msgpack
import numpy as np

KINDS = "biuf"  # of the arrays: booleans, integers and floats


def pack(message: Any) -> bytes:
    """TypeError for what is neither text, a number, an array, nor a list or dict of these."""
    return msgpack.packb(message, default=_encode)


def unpack(data: bytes) -> Any:
    """ValueError, in one line, for bytes that are no such message. Its arrays are read-only."""
    try:
        return msgpack.unpackb(data, object_hook=_decode, strict_map_key=False)
    except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"{len(data)} bytes are no message of msgpack: {error or type(error).__name__}") from None


def _encode(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in KINDS:
        raise TypeError(f"a value of type {type(value).__name__} cannot be sent")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def _decode(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in found and b"__npgeneric__" not in found:
        return found
    dtype = np.dtype(found[b"dtype"]) if isinstance(found.get(b"dtype"), str) else None
    if dtype is None or dtype.kind not in KINDS:
        raise ValueError(f"an array of dtype {found.get(b'dtype')!r}")
    if b"__npgeneric__" in found:
        return dtype.type(found.get(b"data"))
    return np.frombuffer(found.get(b"data"), dtype).reshape(found.get(b"shape"))
