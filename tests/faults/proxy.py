"""A TCP proxy that fails on request: it cuts, swallows, or delays what passes.

Runs on a loop in a thread of the test process. Connections that met a black hole stay dead when it
is healed, as half-open connections do; new ones work.
"""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Self


class Proxy:
    """Listens on 127.0.0.1 and forwards to a unix socket or to `host:port`."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._pipes: set[_Pipe] = set()
        self._port = 0
        self._mode = "open"
        self._delay_s = 0.0
        #: Connections that were accepted so far.
        self.accepted = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    @property
    def port(self) -> int:
        """The port it listens on; the same throughout."""
        return self._port

    @property
    def redis_url(self) -> str:
        """What a Redis client connects to."""
        return f"redis://127.0.0.1:{self._port}/0"

    def cut(self) -> None:
        """Reset every connection, and every new one until `heal`."""
        self._mode = "cut"
        self._loop.call_soon_threadsafe(self._drop_all)

    def black_hole(self) -> None:
        """Forward nothing and say nothing: to both sides the other one has fallen silent."""
        self._mode = "hole"
        for pipe in list(self._pipes):
            pipe.dead = True

    def delay(self, seconds: float) -> None:
        """Hold back whatever passes for a while."""
        self._delay_s = seconds

    def heal(self) -> None:
        """Serve new connections again; those that met a black hole stay silent."""
        self._mode, self._delay_s = "open", 0.0

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._drop_all()
        await asyncio.sleep(0)
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _drop_all(self) -> None:
        for pipe in list(self._pipes):
            pipe.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._mode == "cut":
            writer.transport.abort()
            return
        if self._mode == "hole":
            pipe = _Pipe([writer], dead=True)
            self._pipes.add(pipe)
            return
        try:
            there = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        pipe = _Pipe([writer, there[1]])
        self._pipes.add(pipe)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(reader, there[1], pipe))
                group.create_task(self._forward(there[0], writer, pipe))
        finally:
            if not pipe.dead:
                pipe.abort()
                self._pipes.discard(pipe)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.startswith("/"):
            return await asyncio.open_unix_connection(self._target)
        host, _, port = self._target.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pipe: "_Pipe"
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                if pipe.dead:
                    continue
                writer.write(data)
                await writer.drain()
        if not pipe.dead:
            pipe.abort()


class _Pipe:
    """Both sides of one connection."""

    def __init__(self, writers: list[asyncio.StreamWriter], *, dead: bool = False) -> None:
        self._writers = writers
        self.dead = dead

    def abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
