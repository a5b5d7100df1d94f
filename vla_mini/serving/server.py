"""A saved policy behind a websocket, by openpi's protocol: observations in, actions out.

    client ──observation──▶ keys ──▶ its Controller ──▶ one call of the policy for all that wait ──actions──▶ client

On connecting, a client gets the metadata; then each message is an observation, and is answered by {"actions", "policy_timing",
"server_timing"}. A mistake is answered by a text frame, and ends its connection with the close code 1011.
"""

import asyncio
import hmac
import itertools
import logging
import signal
import ssl
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, Literal

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from vla_mini.acting import ActingPolicy, Controller, frame_images, predict_together
from vla_mini.serving.keys import RESET, understood_keys
from vla_mini.serving.messages import pack, unpack
from vla_mini.utils.errors import one_line

MAX_BATCH = 64  # observations in one call of the policy
SEND_TIMEOUT = 20.0  # seconds until a client that reads nothing is disconnected
FAILED = 1011  # the close code after a mistake


class PolicyServer:
    """What a server answers.

    - policy: in eval mode
    - execute: None: each observation is answered by a whole chunk, (t, a). A number: by the next action, (1, a), and the policy
      is asked again after so many
    - ensemble: see `Controller`
    - keys: our name (a camera, state, instruction) -> the key of a message; see `understood_keys`
    - seed: of the noise of sampling heads; connections differ
    - debug: whether mistakes are answered with their traceback
    """

    def __init__(
        self,
        policy: ActingPolicy,
        *,
        execute: int | None = None,
        ensemble: float | Literal["none"] | None = None,
        keys: Mapping[str, str] = {},
        seed: int = 0,
        debug: bool = False,
    ) -> None:
        self._policy, self._whole_chunks, self._debug = policy, execute is None, debug
        self._acting = {"execute": 1, "ensemble": "none"} if execute is None else {"execute": execute, "ensemble": ensemble}
        Controller(policy, **self._acting)  # refuses what does not fit the policy
        self._keys, self._seeds = understood_keys(policy.features, keys), ((seed, number) for number in itertools.count())
        self._waiting: list[tuple[Controller, dict[str, Any], asyncio.Future]] = []
        self._thread, self._working = ThreadPoolExecutor(1), None  # the policy is called in a thread of its own
        features = policy.features
        self.metadata = {
            "cameras": {camera: [*features.image_size, 3] for camera in features.cameras},
            "state": list(features.state),
            "action": list(features.action),
            "fps": features.fps,
            "actions_shape": [policy.horizon if self._whole_chunks else 1, features.action_size],
            "keys": {name: self._keys.of(name) for name in (*features.cameras, "state", "instruction")},
        }

    async def handle(self, connection: ServerConnection) -> None:
        """One client, from connecting to its end."""
        try:
            controller, previous = Controller(self._policy, **self._acting, seed=next(self._seeds)), None
            await self._send(connection, pack(self.metadata))
            async for message in connection:
                start = time.perf_counter()
                answer = await self._answer(controller, message)
                answer["server_timing"] = {"infer_ms": _milliseconds(start)}
                if previous is not None:
                    answer["server_timing"]["prev_total_ms"] = previous
                await self._send(connection, pack(answer))
                previous = _milliseconds(start)
        except (ConnectionClosed, TimeoutError):  # the client is gone, or reads nothing
            connection.transport.abort()
        except Exception as error:
            await self._refuse(connection, error)

    async def _answer(self, controller: Controller, message: str | bytes) -> dict[str, Any]:
        """ValueError for a message that is no observation of the policy, FloatingPointError for actions that are not finite."""
        if isinstance(message, str):
            raise ValueError("an observation is a binary message of msgpack, not text")
        unpacked = unpack(message)
        observation = self._keys.observation(unpacked)
        observation["images"] = dict(zip(self._policy.features.cameras, frame_images(observation, self._policy), strict=True))
        if unpacked.get(RESET):
            controller.reset()
        start = time.perf_counter()
        await self._predict(controller, observation)
        action = controller.next_action()
        actions = controller.chunk() if self._whole_chunks else action[None]
        return {"actions": actions, "policy_timing": {"infer_ms": _milliseconds(start)}}

    async def _predict(self, controller: Controller, observation: dict[str, Any]) -> None:
        """Wait for a call of the policy whose batch contains this request."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((controller, observation, done))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        await done

    async def _work(self) -> None:
        """Call the policy for batches of all waiting requests, until none is waiting."""
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            controllers, observations, futures = zip(*batch, strict=True)
            error = None
            try:
                call = asyncio.get_running_loop().run_in_executor(self._thread, predict_together, controllers, observations)
                await call
            except Exception as raised:
                error = raised
            for future in futures:
                if not future.done():
                    future.set_result(None) if error is None else future.set_exception(error)

    async def _send(self, connection: ServerConnection, message: str | bytes) -> None:
        await asyncio.wait_for(connection.send(message), SEND_TIMEOUT)

    async def _refuse(self, connection: ServerConnection, error: Exception) -> None:
        expected = isinstance(error, (ValueError, FloatingPointError))
        text = one_line(error) if expected else f"the server failed: {type(error).__name__}"
        if not expected:
            traceback.print_exception(error)  # in the server's own log
        if self._debug:
            text = "".join(traceback.format_exception(error))
        try:
            await self._send(connection, text)
            await connection.close(FAILED, "the message before says why")
        except (ConnectionClosed, TimeoutError):
            connection.transport.abort()


async def run(
    server: PolicyServer,
    *,
    host: str,
    port: int,
    api_key: str | None,
    max_message_size: int,
    tls: ssl.SSLContext | None = None,
    started: Callable[[int], None] = lambda port: None,
    until: asyncio.Future,
) -> None:
    """Serve until `until` is done; then all connections are closed with code 1001.

    - port: 0: one that is free
    - api_key: what clients have to send as `Authorization: Api-Key ...`; None: everyone is let in
    - max_message_size: bytes
    - started: called with the port once clients can connect

    Raises OSError where the port cannot be had.
    """

    def before_opening(connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        given = request.headers.get("Authorization", "")
        if api_key is not None and not hmac.compare_digest(given.encode(), f"Api-Key {api_key}".encode()):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "send the header Authorization: Api-Key KEY\n")
        return None

    silent = logging.Logger("vla_mini.serving")  # no traceback for each connection that is not HTTP
    silent.addHandler(logging.NullHandler())
    options = {"compression": None, "max_size": max_message_size, "ssl": tls, "logger": silent}
    async with serve(server.handle, host, port, process_request=before_opening, **options) as listening:
        started(listening.sockets[0].getsockname()[1])
        await until


async def run_until_a_signal(server: PolicyServer, **options: Any) -> None:
    """`run` until SIGINT or SIGTERM, which is raised again once all connections are closed."""
    loop = asyncio.get_running_loop()
    until, handlers = loop.create_future(), {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        loop.add_signal_handler(number, lambda number=number: until.done() or until.set_result(number))
    try:
        await run(server, **options, until=until)
    finally:
        for number, handler in handlers.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
    signal.raise_signal(until.result())


def _milliseconds(start: float) -> float:
    return 1000 * (time.perf_counter() - start)
