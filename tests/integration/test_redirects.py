"""Keys and prompts go to the one host that was named: no redirect, proxy or netrc leads elsewhere.

Each test counts what the other host saw.
"""

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.hub_server import WRITE_TOKEN, HubServer, hub_environment
from tests.llm_server import LlmServer
from tests.mill import Mill, eventually, mill, recipe, write_prompts
from workers.chat import complete, open_client
from workers.destinations.hub import HubRepository
from workers.errors import CallFailed, DestinationAway, DestinationRefused

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

STATUSES = (301, 302, 303, 307, 308)
KEY = "sk-canary-of-the-endpoint"
REFUSED = r"HF_ENDPOINT: .* on to 127\.0\.0\.1"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}


class Host:
    """A server that answers everything alike and keeps what it was sent."""

    def __init__(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.status, self.headers = status, headers or {}
        self.seen: list[str] = []
        self.http: ThreadingHTTPServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"


@contextmanager
def host(status: int = 200, headers: dict[str, str] | None = None) -> Iterator[Host]:
    one = Host(status, headers)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            one.seen.append(f"{self.command} {self.path}\n{self.headers}\n{body!r}")
            self.send_response(one.status)
            for name, value in one.headers.items():
                self.send_header(name, value)
            reply = json.dumps({"choices": [{"message": {"content": "elsewhere"}}]}).encode()
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        do_GET = do_POST = do_HEAD = do_PUT = do_CONNECT = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    one.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=one.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield one
    finally:
        one.http.shutdown()
        one.http.server_close()
        thread.join()


def ask(url: str) -> str:
    async def one_call() -> str:
        async with open_client(f"{url}/v1", KEY, connections=1) as client:
            return (await complete(client, BODY, timeout_s=5)).text

    return asyncio.run(one_call())


@pytest.mark.parametrize("status", STATUSES)
def test_an_endpoint_that_redirects_is_not_followed(status: int) -> None:
    with (
        host() as other,
        host(status, {"Location": f"{other.url}/v1/chat/completions"}) as first,
        pytest.raises(CallFailed) as failed,
    ):
        ask(first.url)
    assert (failed.value.reason, failed.value.retriable) == ("redirected", False)
    assert len(first.seen) == 1
    assert other.seen == []


def test_the_environment_leads_no_call_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password of-the-netrc\n")
    netrc.chmod(0o600)
    with host() as proxy, host() as first:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.lower(), proxy.url)
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert ask(first.url) == "elsewhere"
    assert proxy.seen == []
    (seen,) = first.seen
    assert f"authorization: Bearer {KEY}" in seen
    assert "Basic" not in seen


@pytest.mark.parametrize("status", STATUSES)
def test_a_hub_that_redirects_a_delivery_is_refused(status: int) -> None:
    with HubServer(WRITE_TOKEN) as hub, host() as other:
        parent = hub.put("me/rows", {"README.md": b"x"})
        repository = HubRepository(
            "me/rows", private=False, token=WRITE_TOKEN, endpoint=hub.endpoint
        )
        for pattern in ("POST .*/commit/", "POST .*/preupload/", "POST .*/objects/batch"):
            hub.fail(pattern, status=status, headers={"Location": f"{other.url}/x"})
            with pytest.raises((DestinationRefused, DestinationAway), match=REFUSED):
                repository.commit(parent, add=[("data/a.parquet", b"row")], message="m")
        hub.fail("GET /api/datasets", status=status, headers={"Location": f"{other.url}/x"})
        with pytest.raises(DestinationRefused, match=REFUSED):
            repository.head()
    assert other.seen == []


def test_a_hub_may_redirect_within_its_own_host() -> None:
    with HubServer(WRITE_TOKEN) as hub:
        sha = hub.put("me/rows", {"README.md": b"x"})
        repository = HubRepository(
            "me/old-name", private=False, token=WRITE_TOKEN, endpoint=hub.endpoint
        )
        there = f"{hub.endpoint}/api/datasets/me/rows"
        hub.fail("GET /api/datasets/me/old-name", status=307, headers={"Location": there})
        assert repository.head() == sha


def test_a_source_that_sends_its_files_elsewhere_shows_no_token_there(tmp_path: Path) -> None:
    program = """
import sys
from producer.sources import read
from workers.recipe import Source
for item in read(Source(hub=sys.argv[1])):
    print(item)
"""
    with HubServer("hf_source_canary") as hub, host() as other:
        hub.put("me/prompts", {"data/train-00000-of-00001.parquet": b"PAR1"})
        hub.fail("/resolve/", times=99, status=302, headers={"Location": f"{other.url}/file"})
        done = subprocess.run(
            [sys.executable, "-c", program, "me/prompts"],
            env={**os.environ, **hub_environment(hub, tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode != 0
    assert "hf_source_canary" not in "".join(other.seen) + done.stdout + done.stderr


def test_a_proxy_in_the_recipe_is_the_one_way_and_gets_no_key_in_its_own_headers() -> None:
    with host() as proxy, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        unreachable = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"

        async def one_call() -> str:
            async with open_client(unreachable, KEY, connections=1, proxy=proxy.url) as client:
                return (await complete(client, BODY, timeout_s=5)).text

        assert asyncio.run(one_call()) == "elsewhere"
    (seen,) = proxy.seen
    assert seen.startswith(f"POST {unreachable}/chat/completions")
    assert "Proxy-Authorization" not in seen


def test_a_message_that_names_an_address_or_a_key_is_set_aside_and_nobody_is_called(
    tmp_path: Path, llm: LlmServer, broker_url: str
) -> None:
    queue = "mill.v1.generate.a"
    data = recipe(llm.base_url, {"file": str(write_prompts(tmp_path / "p.jsonl", 1))})
    path = broker_url.removeprefix("redis+socket://")
    with (
        host() as other,
        redis.Redis(unix_socket_path=path) as client,
        mill(tmp_path / "mill", data, PREFMILL_BROKER_URL=broker_url) as one,
    ):
        assert one.call("enqueue").returncode == 0
        real = json.loads(client.lindex(queue, 0))
        client.delete(queue)
        way = {"base_url": other.url, "api_key": KEY}
        for changed in _changed(real, way):
            client.lpush(queue, json.dumps(changed))
        one.start("worker", "generate.a")
        one.start("worker", "sink")
        listed = eventually(lambda: _aside(one, 5), within_s=30, what=f"5 set aside\n{one.logs()}")
        assert one.status()["in_flight"] == 1
        asked = llm.stats()["models"]
    assert {entry["queue"] for entry in listed} == {queue}
    reasons = [entry["reason"] for entry in listed]
    for found in ("another version", "other arguments", "by name", "the generator", "header"):
        assert sum(found in reason for reason in reasons) == 1, reasons
    assert other.seen == []
    assert not sum(model["requests"] for model in asked.values())


def _changed(real: dict[str, Any], way: dict[str, str]) -> Iterator[dict[str, Any]]:
    """A message with an address and a key in its batch, its arguments and its headers."""
    (batch, name), _, embedded = json.loads(base64.b64decode(real["body"]))
    bodies: list[Any] = [
        [[{**batch, **way}, name], {}, embedded],
        [[batch, name, way], {}, embedded],
        [[batch, name], way, embedded],
        [[batch, way["base_url"]], {}, embedded],
    ]
    for body in bodies:
        packed = base64.b64encode(json.dumps(body).encode()).decode()
        yield {**real, "body": packed}
    yield {**real, "headers": {**real["headers"], **way}}


def _aside(one: Mill, number: int) -> list[dict[str, Any]] | None:
    listed = json.loads(one.call("failures", "--json").stdout)["set_aside"]
    return listed if len(listed) == number else None
