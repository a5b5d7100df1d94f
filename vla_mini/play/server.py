"""The page, as a Starlette application: static files, a websocket for each visitor, and what the two other tabs ask for.

    GET /                    the page
    /ws                      one visitor: a Session of its own, in a thread of its own, closed with the tab
    POST /api/NAME           what vla_mini.play.NAME.answer returns, for NAME in TABS; or {"error": a line} with status 400

No other site may use it through the visitor's browser: requests whose Origin is not the page's own address are refused.
"""

import asyncio
import copy
import importlib
import json
import os
import socket
import sys
import threading
import weakref
import webbrowser
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from vla_mini.play.messages import about, answer, view
from vla_mini.play.session import Session
from vla_mini.policy import Policy
from vla_mini.types import Batch
from vla_mini.utils.errors import one_line

STATIC = Path(__file__).with_name("static")
TABS = ("backward", "learning")
MAX_MESSAGE = 1 << 20  # bytes
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Play:
    """What all visitors share. `sessions` are those that are open.

    - make_session: a visitor's own scene; it may raise ValueError
    - policy, make_batch: for the two other tabs; the batch is made when it is first needed
    """

    def __init__(self, make_session: Callable[[], Session], policy: Policy, make_batch: Callable[[], Batch]) -> None:
        self.make_session, self.make_batch = make_session, make_batch
        self.policy = copy.deepcopy(policy)  # apart from that of the visitors, who use it meanwhile
        self.sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._batch: Batch | None = None
        self._one_at_a_time = threading.Lock()

    async def visit(self, socket: WebSocket) -> None:
        """One visitor, from opening the page to closing it."""
        await socket.accept()
        if not is_own_page(socket):
            await socket.close(1008, "requests from other sites are refused")
            return
        # One thread, since simulators draw only in the thread that made them; torch adds none, for which single samples are too
        # small: they would wait for one another.
        loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1, "visitor", torch.set_num_threads, (1,))
        session: Session | None = None
        try:
            session = await loop.run_in_executor(thread, self.make_session)
            self.sessions.add(session)
            await socket.send_json(await loop.run_in_executor(thread, lambda: {"about": about(session), **view(session)}))
            while True:
                text = await socket.receive_text()
                await socket.send_json(await loop.run_in_executor(thread, answer, session, text))
        except WebSocketDisconnect:
            pass
        except ValueError as error:
            await socket.send_json({"error": one_line(error)})
            await socket.close()
        finally:
            if session is not None:
                thread.submit(session.close)
            thread.shutdown(wait=False)

    async def api(self, request: Request) -> Response:
        """What `answer` of the tab's module returns."""
        name = request.path_params["name"]
        if not is_own_page(request):
            return _refusal("requests from other sites are refused", status=403)
        if name not in TABS:
            return _refusal(f"there is no {name!r}", status=404)
        try:
            content = json.loads(await request.body())
            if not isinstance(content, dict):
                raise ValueError("a request is a JSON object")
            # Abandoned where the server ends meanwhile.
            return JSONResponse(await anyio.to_thread.run_sync(self._answer, name, content, abandon_on_cancel=True))
        except asyncio.CancelledError:
            return _refusal("the server has ended", status=503)
        except (ValueError, RecursionError) as error:
            return _refusal(one_line(error))

    def _answer(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        module = importlib.import_module(f"vla_mini.play.{name}")
        with self._one_at_a_time:
            if self._batch is None:
                self._batch = self.make_batch()
            return module.answer(self.policy, self._batch, request)


def application(play: Play) -> Starlette:
    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    return Starlette(
        routes=[
            Route("/", page),
            WebSocketRoute("/ws", play.visit),
            Route("/api/{name}", play.api, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
    )


def is_own_page(connection: HTTPConnection) -> bool:
    """Whether a request comes from the page that this server gave, or from no browser at all. From this machine, the server has
    only this machine's names: others may be another site's, whose address was changed."""
    host, origin = connection.headers.get("host", ""), connection.headers.get("origin")
    try:
        if connection.client and connection.client.host in LOOPBACK and urlsplit(f"//{host}").hostname not in LOOPBACK:
            return False
        return origin is None or urlsplit(origin).netloc == host
    except ValueError:  # no address at all
        return False


def _refusal(line: str, *, status: int = 400) -> JSONResponse:
    return JSONResponse({"error": line}, status_code=status)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. OSError where the port cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128)


def make_server(play: Play) -> uvicorn.Server:
    """`run(sockets=[...])` serves until SIGINT or SIGTERM, which is raised again once all visitors are disconnected."""
    config = uvicorn.Config(
        application(play),
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


def open_page(address: str) -> None:
    """Open the page in a browser. Without a screen none is opened: a browser of the terminal would take it over."""
    if sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
