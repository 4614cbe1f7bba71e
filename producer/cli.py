"""The command line: arguments in, exit codes out, and the only place that prints.

    0 done    1 more failed than --max-failed, or it broke    2 usage or configuration
    130 interrupted (143 by SIGTERM): a second `run` resumes

One function a command, which makes the module long. What a command does lies elsewhere and is
imported when it is called: a worker must not pay for what an export needs.
"""

import json
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from workers import logs
from workers.errors import (
    ConfigurationError,
    Interrupted,
    PrefmillError,
    RecipeError,
    SettingsError,
)
from workers.masking import hide, masked

if TYPE_CHECKING:
    from celery import Celery

    from workers.ledger import Counts, Ledger
    from workers.recipe import Recipe
    from workers.settings import Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


class _Shown(Console):
    """A console whose texts cannot act on a terminal, and hold no secret that we know."""

    def render_str(self, text: str, **options: Any) -> Text:
        """A text as it is printed."""
        lines = masked(text).split("\n")
        return super().render_str("\n".join(map(logs.plain, lines)), **options)


out = _Shown(soft_wrap=True, highlight=False, emoji=False)
err = _Shown(stderr=True, soft_wrap=True, highlight=False, emoji=False)


class LogFormat(StrEnum):
    """Forms of a log line."""

    text = "text"
    json = "json"


class Form(StrEnum):
    """Forms of an exported file."""

    parquet = "parquet"
    jsonl = "jsonl"


class Configuration(StrEnum):
    """Configurations of the dataset."""

    default = "default"
    full = "full"
    human = "human"
    reward = "reward"
    kto = "kto"


#: How long a producer may be at one row, in seconds: a Hub dataset takes its time to open.
PATIENCE_S = 600.0

#: Calls that wait in a worker for each call that may be made at a time.
CALLS_A_SLOT = 6

DESTINATIONS = ("argilla", "hub")

RecipeArgument = Annotated[
    str | None, typer.Argument(help="A path, or the name of a shipped recipe.", show_default=False)
]
RecipeOption = Annotated[str | None, typer.Option("--recipe", help="A path or shipped name.")]
Database = Annotated[str | None, typer.Option("--database", help="URL of the ledger.")]
Logging = Annotated[LogFormat, typer.Option("--log-format", help="Form of log lines.")]
AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Go on with a recipe that changed.")
]


@app.callback()
def _main(
    _version: Annotated[
        bool | None,
        typer.Option("--version", callback=lambda asked: _show_version(asked), is_eager=True),
    ] = None,
) -> None:
    """A mill for preference data: prompts go in, DPO/ORPO rows come out."""


def _show_version(asked: bool | None) -> None:
    if asked:
        out.print(f"prefmill {version('prefmill')}")
        raise typer.Exit


@app.command()
def run(
    recipe: RecipeArgument = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts to accept at most.")] = None,
    folder: Annotated[
        Path, typer.Option("--out", help="Folder of this run: ledger, dataset.")
    ] = Path("prefmill-data"),
    max_failed: Annotated[
        str, typer.Option(help="Share of failed prompts above which the exit code is 1.")
    ] = "50%",
    accept_changes: AcceptChanges = False,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Instead of the recipe's seed.")
    ] = None,
    database: Database = None,
    log_format: Logging = LogFormat.text,
) -> None:
    """The whole mill on one machine, until the source is done."""
    from producer.local import LocalRun
    from producer.owner import DATASET
    from producer.progress import Display
    from workers.ledger import Ledger

    share = _share(max_failed)
    settings, loaded = _begin(recipe, database, log_format)
    if seed is not None:
        loaded = loaded.model_copy(update={"seed": seed})
    started = time.monotonic()
    one = LocalRun(
        loaded,
        settings,
        folder,
        limit,
        accept_changes,
        log_format.value,
        say=_say,
    )
    one.run(lambda total: Display(err, total))
    ledger = Ledger(one.database_url)
    _write_dataset(ledger, loaded.name, folder / DATASET)
    trouble = one.deliver(ledger)
    counts = ledger.counts(loaded.name, loaded.destinations)
    _summary(loaded, counts, ledger, folder, time.monotonic() - started)
    command = f"prefmill status {recipe or settings.recipe} --database {one.shown_database}"
    out.print(f"\nstatus:  {command}", markup=False)
    failed = sum(counts.failed.values())
    if counts.accepted and failed / counts.accepted > share:
        err.print(f"prefmill: {failed} of {counts.accepted} prompts failed, over {max_failed}")
        raise typer.Exit(1)
    if trouble is not None:
        err.print(
            f"prefmill: not all is delivered, `prefmill sync` goes on: {trouble}", markup=False
        )
        raise typer.Exit(2 if isinstance(trouble, ConfigurationError) else 1)


@app.command()
def init(
    recipe: RecipeArgument = None, database: Database = None, log_format: Logging = LogFormat.text
) -> None:
    """Write a shipped recipe here, to edit."""
    from workers.recipe_file import SHIPPED, load, shipped

    settings = _settings(None, database, log_format)
    name = recipe or settings.recipe
    if name not in shipped():
        raise RecipeError(f"recipe {name!r} is not shipped; accepted: {', '.join(shipped())}")
    target = Path(f"{name}.yaml")
    if target.exists():
        raise SettingsError(f"{target} exists already; move it away first")
    source = load(name).source.file
    if source is not None and source.is_relative_to(SHIPPED):
        samples = Path(source.relative_to(SHIPPED))
        if not samples.exists():
            samples.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, samples)
            out.print(f"wrote {samples}", markup=False)
    shutil.copyfile(SHIPPED / f"{name}.yaml", target)
    out.print(
        f"wrote {target}: edit it, then `prefmill run {target} --out {name}-data`", markup=False
    )


@app.command()
def enqueue(
    recipe: RecipeArgument = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more; never end.")] = False,
    accept_changes: AcceptChanges = False,
    database: Database = None,
    log_format: Logging = LogFormat.text,
) -> None:
    """Accept prompts from the source and publish them, never more than the window."""
    from producer.feed import Feed, left_out_line
    from producer.rebuild import warnings
    from workers.app import make_app
    from workers.ledger import Ledger
    from workers.liveness import Liveness

    settings, loaded = _begin(recipe, database, log_format)
    broker_url = settings.require_broker()
    ledger = Ledger(settings.require_database())
    ledger.open_run(loaded.name, loaded.hash, loaded.fingerprint(), accept_changes=accept_changes)
    for warning in warnings(ledger, loaded):
        err.print(f"warning: {warning}", markup=False)
    before = ledger.accepted(loaded.name)
    celery_app = make_app(broker_url, settings.visibility_timeout)
    feed = Feed(celery_app, ledger, loaded, follow=follow, on_skip=_show_skip)
    feed.on_left_out = lambda *told: _say(left_out_line(*told))
    liveness = Liveness(broker_url, loaded.name, uuid.uuid4().hex[:12], settings.visibility_timeout)
    feed.on_round = liveness.moved
    liveness.begin("enqueue", patience_s=PATIENCE_S)
    with _stopped_by_signals(feed.stopping.set) as stopped, _heartbeat(ledger, loaded.name):
        feed.run()
    liveness.close()
    accepted = ledger.accepted(loaded.name)
    err.print(f"accepted {accepted - before} prompts, {accepted} in all", markup=False)
    if stopped and not feed.ended:
        raise typer.Exit(128 + stopped[0])


@app.command()
def worker(
    queues: Annotated[list[str], typer.Argument(metavar="QUEUE...", show_default=False)],
    recipe: RecipeOption = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Batches at a time; default: enough for the cap.")
    ] = None,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that calls may go on after SIGTERM.")
    ] = 30.0,
    database: Database = None,
    log_format: Logging = LogFormat.text,
) -> None:
    """Work on queues: generate.<name>, judge, sink, deliver."""
    from workers import worker as process
    from workers.messages import queue
    from workers.settings import check_destinations

    settings, loaded = _begin(recipe, database, log_format)
    for name in queues:
        if name not in loaded.queues:
            raise SettingsError(f"queue {name!r}; accepted: {', '.join(loaded.queues)}")
    if "deliver" in queues:
        check_destinations(loaded)
    process.open_worker(settings, queues)
    process.GRACE_S = grace
    work = _celery(settings).Worker(
        hostname=f"{queues[0]}@{gethostname()}",
        queues=[queue(loaded.name, name) for name in queues],
        pool_cls="threads",
        concurrency=concurrency or sum(_threads(loaded, name) for name in queues),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel="INFO",
        quiet=True,
    )
    work.start()
    raise typer.Exit(work.exitcode or 0)


@app.command()
def beat(
    recipe: RecipeOption = None, database: Database = None, log_format: Logging = LogFormat.text
) -> None:
    """Look for lost work on a timer. One for each run."""
    from workers import worker as process

    settings, _ = _begin(recipe, database, log_format)
    process.open_worker(settings, ())
    _celery(settings).Beat(loglevel="INFO", quiet=True).run()


@app.command()
def status(
    recipe: RecipeArgument = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
    database: Database = None,
    log_format: Logging = LogFormat.text,
) -> None:
    """What became of the prompts: accepted = in flight + paired + rejected + failed."""
    from producer.status import dumped, lines, obstacles
    from workers.ledger import Ledger

    settings, loaded = _begin(recipe, database, log_format)
    broker_url = settings.require_broker() if settings.broker_url else None
    ledger = Ledger(settings.require_database(), must_exist=True)
    while True:
        counts = ledger.counts(loaded.name, loaded.destinations)
        if as_json:
            sys.stdout.write(dumped(loaded, counts) + "\n")
            sys.stdout.flush()
        else:
            if watch and out.is_terminal:
                out.clear()
            _print_lines(lines(loaded, counts, obstacles(ledger, loaded, broker_url)))
        if not watch:
            return
        time.sleep(2.0)


@app.command()
def failures(
    recipe: RecipeArgument = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Put all failed prompts back in flight.")
    ] = False,
    database: Database = None,
    log_format: Logging = LogFormat.text,
) -> None:
    """Failed prompts and messages set aside: reason, attempts, last error."""
    from producer import failures as listing
    from workers.ledger import Ledger

    settings, loaded = _begin(recipe, database, log_format)
    broker_url = settings.require_broker() if settings.broker_url else None
    ledger = Ledger(settings.require_database(), must_exist=True)
    if not retry:
        found, aside = ledger.failures(loaded.name), listing.look(broker_url, loaded)
        if as_json:
            sys.stdout.write(listing.as_json(loaded.name, found, aside) + "\n")
        else:
            _print_lines(listing.lines(found, aside))
        return
    ledger.open_run(loaded.name, loaded.hash, loaded.fingerprint())
    done = listing.retry(
        ledger,
        loaded,
        broker_url,
        settings.visibility_timeout,
        lambda number: err.print(f"put back in flight: {number}"),
    )
    later = "" if broker_url else "; they go out with the next `prefmill run`"
    err.print(f"{done} prompts are in flight again{later}", markup=False)


@app.command()
def pause(
    recipe: RecipeArgument = None, database: Database = None, log_format: Logging = LogFormat.text
) -> None:
    """Begin no LLM call and accept no prompt until `resume`. Calls under way end."""
    _set_pause(recipe, database, log_format, paused=True)


@app.command()
def resume(
    recipe: RecipeArgument = None, database: Database = None, log_format: Logging = LogFormat.text
) -> None:
    """Go on after `pause`, and try endpoints that turned calls away again at once."""
    _set_pause(recipe, database, log_format, paused=False)


@app.command(name="try")
def try_(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", show_default=False)],
    recipe: RecipeArgument = None,
    database: Database = None,
    log_format: Logging = LogFormat.text,
) -> None:
    """Each step of one prompt, printed. Nothing is stored."""
    from producer.trial import trial

    _, loaded = _begin(recipe, database, log_format)
    if not prompt.strip():
        raise SettingsError("PROMPT is empty; accepted: a text that says something")
    with _local_model(loaded) as ready:
        for step, value in trial(ready, prompt):
            out.print(f"[bold]{escape(step)}[/bold]")
            out.print(_indented(value), markup=False)


@app.command()
def export(
    recipe: RecipeArgument = None,
    config: Annotated[Configuration, typer.Option(help="Which rows.")] = Configuration.default,
    form: Annotated[
        Form | None,
        typer.Option("--format", help="Form of the file; default: by the name in --out."),
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option("--out", help="The file to write: .parquet, .jsonl or .ndjson."),
    ] = None,
    database: Database = None,
    log_format: Logging = LogFormat.text,
) -> None:
    """Rows of a run into one file, Parquet unless something else is said."""
    from producer.export import export as export_rows
    from producer.export import form_of, no_rows

    written = form_of(path, form.value if form else None)
    ledger, loaded = _begun(recipe, database, log_format)
    target = path or Path(f"{loaded.name}-{config.value}.{written}")
    rows = export_rows(ledger, loaded.name, config.value, written, target)
    why = "" if rows else f"0 rows: {no_rows(ledger, loaded.name, config.value)}; "
    out.print(f"{why}wrote {rows} rows to {target}", markup=False)


@app.command()
def rebuild(
    recipe: RecipeArgument = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what changes.")] = False,
    database: Database = None,
    log_format: Logging = LogFormat.text,
) -> None:
    """Pairs again from stored judgements, by the recipe's `pairs`. No LLM is called.

    Shows the difference first. On a terminal it asks before it writes: the ledger, and the run's
    dataset beside it.
    """
    from producer import rebuild as again
    from workers.ledger import Ledger

    settings, loaded = _begin(recipe, database, log_format)
    ledger = Ledger(settings.require_database(), must_exist=True)
    again.check(ledger, loaded)
    found = again.difference(ledger, loaded)
    _print_lines(found.lines())
    if dry_run:
        return
    if found.changed and not yes and sys.stdin.isatty():
        typer.confirm("Write this?", abort=True)
    done = again.rebuild(ledger, loaded)
    out.print(f"pairs of {done} prompts were made again", markup=False)
    _write_dataset_again(ledger, settings, loaded)


@app.command()
def sync(
    recipe: RecipeArgument = None,
    destination: Annotated[
        str | None,
        typer.Argument(metavar="[argilla|hub]", help="One of them alone.", show_default=False),
    ] = None,
    database: Database = None,
    log_format: Logging = LogFormat.text,
) -> None:
    """Deliver now what waits for Argilla and the Hub."""
    from producer.delivering import deliver, summary
    from producer.rebuild import check as check_run

    if destination is None and recipe in DESTINATIONS:
        recipe, destination = None, recipe
    ledger, loaded = _begun(recipe, database, log_format)
    names = _destinations(loaded, destination)
    check_run(ledger, loaded)
    with _ended_by_signals():
        try:
            deliver(ledger, loaded, names, _say)
        finally:
            _print_lines(summary(ledger, loaded, names))


@app.command()
def compact(
    recipe: RecipeArgument = None, database: Database = None, log_format: Logging = LogFormat.text
) -> None:
    """Replace changed pairs and many small shards on the Hub by few, in one commit.

    Delivers again what someone deleted there, and removes shards that the ledger does not know.
    """
    from producer.delivering import deliver, summary
    from producer.rebuild import check as check_run

    ledger, loaded = _begun(recipe, database, log_format)
    names = _destinations(loaded, "hub")
    check_run(ledger, loaded)
    with _ended_by_signals():
        try:
            deliver(ledger, loaded, names, _say, compact=True)
        finally:
            _print_lines(summary(ledger, loaded, names))


@app.command()
def pull(
    recipe: RecipeArgument = None, database: Database = None, log_format: Logging = LogFormat.text
) -> None:
    """People's ratings back from Argilla, and the pairs that follow from them."""
    from producer import curation
    from producer.rebuild import check as check_run

    settings, loaded = _begin(recipe, database, log_format)
    ledger = _ledger_of(settings, loaded)
    _destinations(loaded, "argilla")
    check_run(ledger, loaded)
    pulled = curation.pull(ledger, loaded, _say)
    _print_lines(pulled.lines())
    if pulled.changed:
        _write_dataset_again(ledger, settings, loaded)


@app.command()
def check(
    recipe: RecipeArgument = None,
    worker: Annotated[
        bool, typer.Option("--worker", help="Only: do this machine's workers get on?")
    ] = False,
    database: Database = None,
    log_format: Logging = LogFormat.text,
) -> None:
    """Recipe, variables, source, ledger, broker, endpoints, planned calls."""
    settings, loaded = _begin(recipe, database, log_format)
    if worker:
        # Alone: health checks run every minute in every container.
        from producer.health import check_workers

        out.print(check_workers(settings.require_broker(), loaded), markup=False)
        return
    from producer.checks import checks

    well = True
    for finding in checks(loaded, settings):
        well = well and finding.well
        mark = "[green]ok[/green]  " if finding.well else "[red]FAIL[/red]"
        out.print(f"{mark}  {escape(finding.what):<24} {escape(finding.said)}")
    if not well:
        raise typer.Exit(2)


@app.command()
def metrics(
    recipe: RecipeArgument = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any.")] = 9464,
    database: Database = None,
    log_format: Logging = LogFormat.text,
) -> None:
    """Serve the figures of a run to Prometheus, at /metrics."""
    import threading

    from producer.metrics import MetricsServer

    settings, loaded = _begin(recipe, database, log_format)
    server = MetricsServer(loaded, settings, host, port)
    stopping = threading.Event()
    with _stopped_by_signals(stopping.set) as stopped:
        _say(f"metrics of {loaded.name} at {server.url}")
        server.run(stopping)
    raise typer.Exit(128 + stopped[0])


def _set_pause(
    recipe: str | None, database: str | None, log_format: LogFormat, *, paused: bool
) -> None:
    from workers.doors import Doors

    settings, loaded = _begin(recipe, database, log_format)
    ledger = _ledger_of(settings, loaded)
    (ledger.pause if paused else ledger.resume)(loaded.name)
    if settings.broker_url is not None:
        doors = Doors(settings.require_broker(), loaded)
        doors.pause(paused)
        if not paused:
            doors.open()
    out.print(f"{loaded.name} is paused" if paused else f"{loaded.name} goes on", markup=False)


def _write_dataset(ledger: "Ledger", run: str, folder: Path, *, patience_s: float = 5.0) -> int:
    from producer.export import export_dataset
    from producer.guards import locked, signals

    with locked(folder.parent, patience_s), signals():
        return export_dataset(ledger, run, folder)


def _write_dataset_again(ledger: "Ledger", settings: "Settings", recipe: "Recipe") -> None:
    """The dataset folder that is known of holds the ledger's pairs, or it is said what does it."""
    from producer.owner import beside
    from workers.database import shown
    from workers.errors import FolderBusy

    url = settings.require_database()
    folder = beside(url, recipe.name, ledger.identity(recipe.name))
    if folder is None:
        command = f"prefmill run {settings.recipe} --out DIR --database {shown(url)}"
        out.print(f"no dataset folder of this run is known; `{command}` writes one", markup=False)
        return
    try:
        rows = _write_dataset(ledger, recipe.name, folder, patience_s=0)
    except FolderBusy:
        text = f"{folder} holds the earlier pairs until the run ends that works in {folder.parent}"
        out.print(text, markup=False)
    else:
        out.print(f"wrote {rows} rows to {folder}", markup=False)


def _begun(
    recipe: str | None, database: str | None, log_format: LogFormat
) -> tuple["Ledger", "Recipe"]:
    """The ledger and the recipe of a run that was begun."""
    settings, loaded = _begin(recipe, database, log_format)
    return _ledger_of(settings, loaded), loaded


def _ledger_of(settings: "Settings", recipe: "Recipe") -> "Ledger":
    from workers.ledger import Ledger

    ledger = Ledger(settings.require_database(), must_exist=True)
    if ledger.recipe_hash(recipe.name) is None:
        raise SettingsError(f"no run {recipe.name!r} in this ledger; accepted: one that was begun")
    return ledger


def _destinations(recipe: "Recipe", only: str | None) -> list[str]:
    """The configured destinations, or that one, with everything there that they need."""
    from workers.settings import check_destinations

    if only is not None and only not in DESTINATIONS:
        raise SettingsError(f"destination {only!r}; accepted: {', '.join(DESTINATIONS)}")
    names = [name for name in recipe.destinations if only in (None, name)]
    if not names:
        wanted = f"`{only}`" if only else "`argilla` or `hub`"
        raise RecipeError(f"recipe {recipe.name!r} has no {wanted}; accepted: one that has")
    check_destinations(recipe, names)
    return names


# -- shared by the commands --------------------------------------------------------------------


def _settings(recipe: str | None, database: str | None, log_format: LogFormat) -> "Settings":
    """The environment, with what the command line says instead."""
    from workers.settings import read_settings

    logs.configure(log_format.value)
    for name, value in (("PREFMILL_RECIPE", recipe), ("PREFMILL_DATABASE_URL", database)):
        if value is not None:
            os.environ[name] = value
    return read_settings()


def _begin(
    recipe: str | None, database: str | None, log_format: LogFormat
) -> tuple["Settings", "Recipe"]:
    from workers.recipe_file import load
    from workers.settings import secrets

    settings = _settings(recipe, database, log_format)
    settings.require_database()
    loaded = load(settings.recipe)
    hide(secrets(loaded))
    return settings, loaded


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise SettingsError(f"--max-failed {text!r}; accepted: a percentage from 0% to 100%")
    return share


def _threads(recipe: "Recipe", name: str) -> int:
    """Enough batches to keep a model's slots busy while long calls hold some batches back.

    A batch of 32 ends with its slowest call, which takes four times the mean (log-normal, sigma
    0.8): with three times the slots in calls 68 % of 64 slots were busy, with six times 99 %. Two
    batches at least: while the last calls of one are waited for, the next one begins.
    """
    caps = {f"generate.{model.name}": recipe.cap(model) for model in recipe.generators}
    caps["judge"] = sum(recipe.cap(judge) for judge in recipe.judges)
    # One prompt keeps so many calls of this queue going at once.
    each = {f"generate.{model.name}": model.samples for model in recipe.generators}
    each["judge"] = recipe.judgements
    if name not in caps:
        return 4
    return max(2, -(-CALLS_A_SLOT * caps[name] // (each[name] * recipe.fleet.batch_size)))


def _celery(settings: "Settings") -> "Celery":
    """The app, to start a part of it. Its own command line would import every extension's."""
    os.environ["PREFMILL_BROKER_URL"] = settings.require_broker()
    from workers.app import app as celery_app

    return celery_app


def _say(text: str) -> None:
    err.print(logs.plain(text), markup=False)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A signal ends the block as an exception: what was not done waits for the next time."""
    from producer.guards import signals

    with signals():
        yield


def _show_skip(row: Any) -> None:
    _say(f"skipped {row.where}: {row.reason}: {row.detail}")


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Collects the signals that asked to stop; a second one ends the process at once."""
    seen: list[int] = []

    def handle(number: int, _frame: Any) -> None:
        seen.append(number)
        stop()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    yield seen


@contextmanager
def _heartbeat(ledger: "Ledger", run: str) -> Iterator[None]:
    """A line now and then while prompts are enqueued, when it says something new."""
    import threading

    done = threading.Event()

    def line() -> str:
        counts = ledger.counts(run)
        paused = ", paused" if ledger.paused(run) else ""
        return (
            f"accepted {counts.accepted}, in flight {counts.in_flight}, "
            f"finished {counts.finished}{paused}"
        )

    def tell() -> None:
        said = ""
        while not done.wait(5.0):
            with suppress(PrefmillError):  # whoever feeds says that the ledger is away
                if (found := line()) != said:
                    said = found
                    err.print(said, markup=False)

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextmanager
def _local_model(recipe: "Recipe") -> Iterator["Recipe"]:
    """The recipe with a local model server running, if it asks for one."""
    import tempfile

    from producer.children import stop
    from producer.local import with_local_model
    from producer.model_server import start_model_server
    from workers.recipe import LOCAL_MODEL_URL

    if all(endpoint.base_url != LOCAL_MODEL_URL for endpoint in recipe.endpoints.values()):
        yield recipe
        return
    with tempfile.TemporaryDirectory(prefix="prefmill-") as folder:
        err.print("starting the local model server …")
        model = start_model_server(Path(folder), Path(folder) / "model-server.log")
        try:
            yield with_local_model(recipe, model.base_url)
        finally:
            stop([model.child], grace_s=5)


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        out.print(logs.plain(line), markup=False)


def _indented(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    return "\n".join(f"  {line}" for line in text.split("\n"))


def _summary(
    recipe: "Recipe", counts: "Counts", ledger: "Ledger", folder: Path, elapsed_s: float
) -> None:
    from producer.status import lines
    from workers.rows import default_row

    _print_lines([*lines(recipe, counts), f"in {elapsed_s:.0f} s"])
    judged = next((one for one in ledger.pairs(recipe.name) if not one.pair.tie), None)
    if judged is None:
        out.print(f"\nno pairs, so {folder / 'dataset'} holds its README alone", markup=False)
        return
    out.print("\none pair:", markup=False)
    out.print(_indented(default_row(judged.prompt, judged.pair)), markup=False)
    out.print(f"\ndataset: datasets.load_dataset({str(folder / 'dataset')!r})", markup=False)


def main() -> None:
    """The `prefmill` script."""
    # What has nothing to wind up ends at once; `run`, `enqueue` and workers have their own way.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    try:
        app(standalone_mode=True)
    except Interrupted as exc:
        err.print("prefmill: interrupted; run again to go on", markup=False)
        raise SystemExit(128 + exc.signal) from None
    except ConfigurationError as exc:
        err.print(f"prefmill: {exc}", markup=False)
        raise SystemExit(2) from None
    except PrefmillError as exc:
        err.print(f"prefmill: {exc}", markup=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
