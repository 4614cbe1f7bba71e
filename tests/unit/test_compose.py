"""What docker-compose.yml, the Dockerfiles and .env.example promise, held to it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from workers.recipe_file import load

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
DOCKERFILES = (ROOT / "Dockerfile", ROOT / "deploy/valkey/Dockerfile")

OURS = sorted(name for name, of in SERVICES.items() if of["image"].startswith("prefmill:"))
HARDENED = [*OURS, "valkey", "postgres", "roles"]
CALLERS = {"generate-cool", "generate-warm", "judge"}
FLEET = {"valkey", "postgres", "llm", "producer", *CALLERS, "sink", "deliver", "beat"}

BASES = r"(python:3\.12-slim|valkey/valkey:\S+|postgres:\S+)"


def _seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60}[unit]


def _environment(name: str) -> dict[str, str]:
    return SERVICES[name].get("environment") or {}


def _holders(part: str) -> set[str]:
    """The services whose environment mentions a variable."""
    return {name for name in SERVICES if f"${{{part}" in str(_environment(name))}


def test_every_process_of_the_fleet_is_a_service() -> None:
    assert set(SERVICES) >= FLEET
    generators = {f"generate-{model.name}" for model in load("compose").generators}
    assert {name for name in SERVICES if name.startswith("generate-")} == generators


@pytest.mark.parametrize("name", HARDENED)
def test_a_container_has_no_rights_and_bounded_resources(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] not in ("root", "0", "0:0")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert {"mem_limit", "cpus", "pids_limit"} <= service.keys()
    assert all("size=" in place for place in service["tmpfs"])


@pytest.mark.parametrize("name", OURS)
def test_our_processes_run_as_a_fixed_user_that_is_not_root(name: str) -> None:
    assert SERVICES[name]["user"] == "10001:10001"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_log_is_rotated_and_every_service_comes_back(name: str) -> None:
    assert SERVICES[name]["logging"]["options"].keys() == {"max-size", "max-file"}
    assert SERVICES[name]["restart"] == ("on-failure" if name == "roles" else "unless-stopped")


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_whoever_is_not_ours_drops_what_it_does_not_need(name: str) -> None:
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


def test_only_web_pages_are_published_and_only_on_loopback() -> None:
    published = {name: of["ports"] for name, of in SERVICES.items() if of.get("ports")}
    assert published.keys() <= {"flower", "argilla", "metrics"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert all(SERVICES[name]["profiles"] == [name] for name in published if name != "metrics")


def test_the_stores_are_reached_from_within_only() -> None:
    networks = yaml.safe_load(COMPOSE)["networks"]
    assert networks["stores"]["internal"] is True
    assert networks["models"]["internal"] is True
    assert SERVICES["valkey"]["networks"] == ["stores"]
    assert SERVICES["postgres"]["networks"] == ["stores"]
    assert SERVICES["roles"]["network_mode"] == "none"
    outside = {name for name in FLEET if "outside" in SERVICES[name]["networks"]}
    assert outside == {*CALLERS, "producer", "deliver"}


def test_each_service_has_the_credentials_it_needs_and_no_other() -> None:
    assert _holders("LLM_API_KEY") == CALLERS
    assert _holders("HF_TOKEN") == {"producer", "deliver"}
    assert _holders("ARGILLA_API_KEY") == {"deliver", "argilla", "argilla-worker"}
    assert _holders("PREFMILL_PRODUCER_PASSWORD") == {"valkey", "producer"}
    assert _holders("PREFMILL_BEAT_PASSWORD") == {"valkey", "beat"}
    assert _holders("PREFMILL_WORKER_PASSWORD") == {"valkey", "sink", "deliver", *CALLERS}
    assert _holders("PREFMILL_READER_PASSWORD") == {"valkey", "metrics"}
    assert _holders("PREFMILL_FLOWER_PASSWORD") == {"valkey", "flower"}
    assert _holders("POSTGRES_PASSWORD") == {"postgres", "roles"}
    assert _holders("PREFMILL_LEDGER_PASSWORD") == {
        "roles",
        "producer",
        "sink",
        "deliver",
        *CALLERS,
    }
    assert _holders("PREFMILL_LEDGER_READER_PASSWORD") == {"roles", "metrics"}


def test_a_default_password_says_that_it_is_one_and_is_no_word_of_ours() -> None:
    # Passwords are masked wherever they stand: a word of ours would be, too.
    passwords = dict(
        re.findall(r"(?<!\$)\$\{(PREFMILL_\w*PASSWORD|POSTGRES_PASSWORD):-([^}]*)\}", COMPOSE)
    )
    assert len(passwords) == 8
    assert all(default.startswith("change-me-") for default in passwords.values())


def test_no_credential_stands_in_a_command_line() -> None:
    lines = [f"{of.get('command')} {of.get('entrypoint')}" for of in SERVICES.values()]
    checks = [str(of.get("healthcheck", {}).get("test")) for of in SERVICES.values()]
    assert not re.findall(r"\$\{\w*(?:PASSWORD|KEY|TOKEN)\b", " ".join(lines + checks))


def test_the_broker_keeps_messages_and_never_evicts() -> None:
    command = " ".join(SERVICES["valkey"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert "--maxmemory $" in command


def test_containers_are_stopped_later_than_their_workers_drain() -> None:
    for name in OURS:
        command = SERVICES[name].get("command", [])
        if command[:1] == ["worker"]:
            grace_s = float(command[command.index("--grace") + 1])
            assert _seconds(SERVICES[name]["stop_grace_period"]) > grace_s + 20, name


def test_every_variable_is_explained_and_has_its_default_in_the_example() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    explained = dict(re.findall(r"^([A-Z][A-Z0-9_]*)=(.*)$", text, re.MULTILINE))
    used = dict(re.findall(r"(?<!\$)\$\{([A-Z][A-Z0-9_]*):-([^}]*)\}", COMPOSE))
    assert explained.keys() == used.keys()
    assert len(re.findall(r"(?<!\$)\$\{", COMPOSE)) == len(re.findall(r"(?<!\$)\$\{\w+:-", COMPOSE))
    exceptions = {"ARGILLA_API_KEY"}  # none for us, a first one for Argilla's own server
    assert {k: explained[k] for k in used.keys() - exceptions} == {
        k: used[k] for k in used.keys() - exceptions
    }
    for line, before in zip(text.splitlines()[1:], text.splitlines(), strict=False):
        if re.match(r"[A-Z]", line):
            assert re.match(r"# .+|[A-Z]+", before), f"nothing said of {line}"


def test_images_come_from_known_bases_and_need_no_buildkit() -> None:
    for path in DOCKERFILES:
        text = path.read_text(encoding="utf-8")
        bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
        assert all(re.fullmatch(BASES, base) for base in bases), bases
        assert not re.search(r"--mount|--chmod|<<|^# syntax", text, re.MULTILINE)
        last = text.rpartition("FROM ")[2]
        assert "USER 10001:10001" in last
        assert not re.search(r"(?i)^(ARG|ENV).*(key|token|password|secret)", text, re.MULTILINE)


def test_an_image_holds_bytecode_and_looks_at_its_workers_progress() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "compileall" in text
    assert 'CMD ["prefmill", "check", "--worker"]' in text


@pytest.mark.parametrize("name", sorted(FLEET))
def test_health_is_looked_at_by_what_a_service_does(name: str) -> None:
    # Without a check of its own a service has the image's, `prefmill check --worker`.
    has_own = "healthcheck" in SERVICES[name]
    assert has_own == (name in {"valkey", "postgres", "llm"})


def test_a_worker_may_call_what_its_scripts_call() -> None:
    # A script runs with the rights of who calls it.
    rules = (ROOT / "deploy/valkey/start.sh").read_text(encoding="utf-8")
    worker = rules.partition("user worker")[2].partition("user beat")[0]
    allowed = set(re.findall(r"\+([a-z|]+)", worker))
    scripts = [path.read_text(encoding="utf-8") for path in (ROOT / "workers/lua").glob("*.lua")]
    called = {found.lower() for text in scripts for found in re.findall(r"call\('(\w+)'", text)}
    assert len(called) > 8
    assert called <= allowed
