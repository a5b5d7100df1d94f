"""The client of a policy server, ours or openpi's: observation -> actions. No torch."""

import ssl
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from vla_mini.serving.keys import RESET
from vla_mini.serving.messages import pack, unpack


class Client:
    """A connection to a policy server; use it in a `with` statement, or `close` it.

    - address: such as ws://127.0.0.1:8000, or wss:// for TLS
    - api_key: what the server asks for
    - tls: for wss://, where the system's certificates are not enough

    `metadata` is what the server says of its policy. Raises OSError where there is no server, PermissionError for a wrong key.
    """

    def __init__(self, address: str = "ws://127.0.0.1:8000", *, api_key: str | None = None, tls: ssl.SSLContext | None = None):
        options = {"additional_headers": {"Authorization": f"Api-Key {api_key}"}} if api_key else {}
        options |= {"ssl": tls} if tls else {}
        self._stack = ExitStack()
        try:
            self._connection = self._stack.enter_context(connect(address, compression=None, max_size=None, **options))
        except InvalidStatus as error:
            raise PermissionError(f"{address}: {error.response.body.decode().strip()}") from None
        self.metadata: dict[str, Any] = self._receive()
        self._begins = False

    def infer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """openpi's way: a message with the server's own keys -> {"actions": (t, a), "policy_timing", "server_timing"}.

        Raises RuntimeError, with what the server says, for a message that it refuses; the connection has ended then.
        """
        self._connection.send(pack(dict(message)))
        return self._receive()

    def step(self, observation: Mapping[str, Any]) -> np.ndarray:
        """An environment's observation {"images", "state", "instruction"} -> actions, float32 (t, a), for vla-mini's server."""
        values = {**observation["images"], "state": observation["state"], "instruction": observation["instruction"]}
        message = {self.metadata["keys"].get(name, [name])[0]: value for name, value in values.items()}
        begins, self._begins = self._begins, False
        return self.infer(message | ({RESET: True} if begins else {}))["actions"]

    def reset(self) -> None:
        """The next `step` is the first one of an episode: the server forgets observations and chunks."""
        self._begins = True

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> Any:
        try:
            message = self._connection.recv()
        except ConnectionClosed as error:
            raise RuntimeError(f"the server has ended the connection: {error}") from None
        if isinstance(message, str):
            raise RuntimeError(message)
        return unpack(message)
