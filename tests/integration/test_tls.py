"""A fleet whose broker speaks TLS; the certificate is checked."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.llm_server import LlmServer
from tests.mill import eventually, mill, recipe, write_prompts

AUTHORITY = trustme.CA()


async def _pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    except OSError:
        pass
    finally:
        target.close()


@pytest.fixture
def tls_port(broker_url: str) -> Iterator[int]:
    """A port of localhost that speaks TLS and passes on to the broker."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("localhost").configure_cert(context)
    socket_path = broker_url.removeprefix("redis+socket://")
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_broker, to_broker = await asyncio.open_unix_connection(socket_path)
        for source, target in ((reader, to_broker), (from_broker, writer)):
            running.add(asyncio.create_task(_pipe(source, target)))

    async def stop() -> None:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    starting = asyncio.start_server(serve, "localhost", 0, ssl=context)
    server = asyncio.run_coroutine_threadsafe(starting, loop).result()
    yield server.sockets[0].getsockname()[1]
    asyncio.run_coroutine_threadsafe(stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_fleet_works_over_tls_and_refuses_a_certificate_that_nobody_vouches_for(
    tmp_path: Path, llm: LlmServer, tls_port: int
) -> None:
    authority = tmp_path / "authority.pem"
    AUTHORITY.cert_pem.write_to_path(authority)
    write_prompts(tmp_path / "prompts.jsonl", 8)
    data = recipe(llm.base_url, {"file": "prompts.jsonl"})
    url = f"rediss://localhost:{tls_port}/0"
    with mill(tmp_path, data, PREFMILL_BROKER_URL=url) as unknown:
        refused = unknown.call("check")
        assert refused.returncode == 2
        assert "certificate verify failed" in refused.stdout
    with mill(tmp_path, data, PREFMILL_BROKER_URL=f"{url}?ssl_ca_certs={authority}") as fleet:
        assert fleet.call("enqueue").returncode == 0
        for queue in ("generate.a", "generate.b", "judge", "sink"):
            fleet.start("worker", queue)
        eventually(lambda: fleet.status()["paired"] == 8, within_s=60, what=fleet.logs())
