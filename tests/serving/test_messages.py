"""Messages: what openpi's packer writes is read, arrays come back as they were, and other bytes are refused in one line."""

from contextlib import suppress

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_mini.serving.messages import pack, unpack

ARRAYS = [
    np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    np.float32([[1.5, -2], [np.inf, 0]]),
    np.zeros((0, 3), np.int64),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array(True),
]


@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_arrays_come_back_as_they_were(array):
    found = unpack(pack({"a": {"b": [array]}}))["a"]["b"][0]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_scalars_and_text_come_back_as_they_were():
    message = {"prompt": "pick up the 🧊", "n": 3, "x": 0.5, "none": None, "scalar": np.float32(0.1)}
    found = unpack(pack(message))
    assert found == message and isinstance(found["scalar"], np.float32)


def test_a_message_of_openpis_packer_is_read():
    """As packed by msgpack_numpy.py of openpi-client 0.1.2."""
    array = {b"__ndarray__": True, b"data": np.float32([1, 2]).tobytes(), b"dtype": "<f4", b"shape": (2,)}
    np.testing.assert_array_equal(unpack(msgpack.packb({"observation/state": array}))["observation/state"], np.float32([1, 2]))


def test_a_number_beyond_its_type_is_refused():
    with pytest.raises(ValueError, match="bytes are no message of msgpack: "):
        unpack(msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|i1"}))


@pytest.mark.parametrize("value", [object(), np.array(["text"]), np.array([object()]), np.zeros(2, complex)], ids=range(4))
def test_other_values_are_not_sent(value):
    with pytest.raises(TypeError, match="cannot be sent"):
        pack({"a": value})


ARRAY = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}


@pytest.mark.parametrize(
    "changes",
    [
        {b"dtype": "|O"},
        {b"dtype": "|V8"},
        {b"dtype": "<c8"},
        {b"dtype": 3},
        {b"dtype": "nonsense"},
        {b"shape": [3]},
        {b"shape": [-1, -2]},
        {b"shape": [1 << 62, 1 << 62]},
        {b"shape": [(1 << 64) - 1]},
        {b"shape": "ab"},
        {b"shape": [0.5, 4]},
        {b"data": "text"},
        {b"data": None},
    ],
    ids=str,
)
def test_arrays_that_are_none_are_refused(changes):
    with pytest.raises(ValueError, match="bytes are no message of msgpack: ") as refused:
        unpack(msgpack.packb({"a": ARRAY | changes}))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"hello", msgpack.packb({"a": 1})[:-1], b"\x91" * 100_000, pack({"a": 1}) + b"x"]
)
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(ValueError, match="bytes are no message of msgpack: "):
        unpack(data)


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data):
    with suppress(ValueError):
        unpack(data)
