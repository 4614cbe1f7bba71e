"""An OpenAI-compatible chat server that never costs a token: one process, little CPU.

Each model has its own slots, like an inference server; who finds none free waits in order, and a
client that goes away frees its slot or its place. Latency and text depend only on the request's
body and the seed. Judges rate by the request (`--judge by-request`), or always favour the text that
they are shown first (`first`), or know one true rating for each text (`true`). Judge faults are
drawn from the judged instruction, so that a repeated call meets the same fault. Rules (`POST
/script`) put any reply, or none, in the way of chosen requests.

It counts what the promises are about: `repeated_answered` is the number of requests whose very
body had been answered completely, with status 200, before they arrived: what was paid twice.

It runs by itself (`python tests/llm_server.py --port 0 --latency fixed:0.05 --slots 64`) and as
`LlmServer`, which keeps it in a subprocess; that is why client and server share this one file.
"""

import argparse
import asyncio
import hashlib
import json
import math
import os
import random
import re
import resource
import select
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import uvloop
from aiohttp import web

JUDGE_MARK = b"General Text Quality Assessment"
JUDGE_FAULTS = ("prose", "one_text", "rating_word", "out_of_range", "cut_off")
RULE_KEYS = {"model", "contains", "times", "reply"}
REPLY_KEYS = {
    *("status", "headers", "body", "raw", "content", "finish_reason", "usage", "model"),
    *("hang", "trickle_s", "cut", "drop", "refuse_schema", "refuse"),
}
WORDS = (
    "the model considers each part of this question in turn and gives a short clear answer with "
    "one example then it checks the result against known facts before it explains why that choice "
    "is better than others for most readers who need a practical method that works under limits"
)
START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 5.0

# What tells prompts about the same instruction apart from others, where a prompt has it.
_INSTRUCTION = re.compile(r"<instruction>[^\n]*\n(.*?)\n</instruction>", re.DOTALL)
_TASK = re.compile(r"\bTask \d+\b")
_NONCE = re.compile(r"^<instruction> (\S+)$", re.MULTILINE)
_PROSE = " ".join(random.Random(1).choices(WORDS.split(), k=40_000))


def stable_hash(data: bytes, seed: int = 0) -> int:
    """64 bits that are the same in every process."""
    digest = hashlib.blake2b(data, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "big")


def uniform(number: int) -> float:
    """A 64-bit hash as a number strictly between 0 and 1."""
    return ((number >> 11) + 0.5) / (1 << 53)


def latency(spec: str) -> Callable[[float], float]:
    """`fixed:S` or `lognormal:MEDIAN:SIGMA` (at most 20 medians): from a draw in (0, 1) to s."""
    kind, *numbers = spec.split(":")
    match kind, [float(number) for number in numbers]:
        case "fixed", [seconds]:
            return lambda draw: seconds
        case "lognormal", [median, sigma]:
            quantile = statistics.NormalDist().inv_cdf
            return lambda draw: min(median * math.exp(sigma * quantile(draw)), 20 * median)
    raise ValueError(f"latency {spec!r}: want fixed:S or lognormal:MEDIAN:SIGMA")


@dataclass(frozen=True, slots=True)
class JudgeFaults:
    """Which share of the judged instructions meets which fault, whatever the attempt."""

    http_500: float = 0.0
    malformed: float = 0.0
    equal: float = 0.0

    def of(self, prompt: str) -> str:
        """`http_500`, `equal`, one of `JUDGE_FAULTS`, or the empty string for none.

        The same for a whole judge prompt and for the bare instruction in it.
        """
        if self.http_500 + self.malformed + self.equal == 0:
            return ""
        block = _INSTRUCTION.search(prompt)
        instruction = block[1] if block else prompt
        task = _TASK.search(instruction)
        instruction = task[0] if task else instruction
        number = stable_hash(instruction.encode(), 99)
        draw = uniform(number)
        if draw < self.http_500:
            return "http_500"
        if draw < self.http_500 + self.malformed:
            return JUDGE_FAULTS[number % len(JUDGE_FAULTS)]
        return "equal" if draw < self.http_500 + self.malformed + self.equal else ""


@dataclass(frozen=True, slots=True)
class Call:
    """What a request asks for."""

    model: str
    prompt: str  # the last message; of a judge, which may be asked again, the first
    choices: int
    schema: dict[str, Any] | None  # None: asked as plain text
    is_judge: bool
    logprobs: bool
    fields: frozenset[str]
    number: int  # the body's hash: texts, ratings and latency are made from it
    size: int

    @classmethod
    def parse(cls, raw: bytes, seed: int) -> "Call":
        """Raises: ValueError, KeyError, IndexError, TypeError or AttributeError."""
        asked = json.loads(raw)
        if asked.get("stream"):
            raise ValueError("streaming is not supported")
        form = asked.get("response_format") or {"type": "text"}
        schema = (form.get("json_schema") or {}).get("schema") or {}
        wants_texts = "texts" in schema.get("properties", {})
        is_judge = asked["model"].startswith("judge") or wants_texts or JUDGE_MARK in raw
        prompt = asked["messages"][0 if is_judge else -1]["content"]
        if not isinstance(prompt, str):
            prompt = "".join(part.get("text", "") for part in prompt)
        number = stable_hash(raw, seed)
        return cls(
            asked["model"],
            prompt,
            asked.get("n") or 1,
            None if form["type"] == "text" else schema,
            is_judge,
            bool(asked.get("logprobs")),
            frozenset(asked),
            number,
            len(raw),
        )


def shown_texts(prompt: str) -> list[str]:
    """The texts that a judge was shown, in that order, whatever is written in them."""
    nonce = _NONCE.search(prompt)
    if nonce is None:
        return []
    mark = re.escape(nonce[1])
    block = rf"^<text (\d+)> {mark}\n(.*?)\n</text \1> {mark}$"
    return [text for _, text in re.findall(block, prompt, re.DOTALL | re.MULTILINE)]


def true_rating(text: str) -> int:
    """What the judge that knows thinks of a text, wherever it stands."""
    return 1 + stable_hash(text.strip().encode()) % 5


def judgement(call: Call, fault: str, way: str) -> str:
    """A judge's reply on each text, in the form that was asked for.

    By request any two ratings of up to five texts differ.
    """
    array = (call.schema or {}).get("properties", {}).get("texts", {})
    shown = shown_texts(call.prompt)
    texts = array.get("minItems") or len(shown) or 2
    first = call.number % 5
    rated: list[Any] = [1 + (first if fault == "equal" else first + n) % 5 for n in range(texts)]
    if not fault and way == "first":
        rated = [5] + [2] * (texts - 1)
    elif not fault and way == "true":
        rated = [true_rating(text) for text in shown]
    if fault == "prose":
        return "I am sorry, but all texts look fine to me.\n\nI would rather not grade them."
    if fault == "one_text":
        rated = rated[:1] if texts > 1 else []
    elif fault in ("rating_word", "out_of_range"):
        rated[-1] = "excellent" if fault == "rating_word" else 9
    wants_types = "type" in array.get("items", {}).get("properties", {})
    if call.schema is None:
        wants_types = "\nType:" in call.prompt
    typed = {"type": 1} if wants_types else {}
    said = "It follows the instruction, is mostly accurate and has some gaps"
    rows = [
        {"id": n, **typed, "rationale": f"{said} ({call.number >> n & 0xFFFF:04x}).", "rating": r}
        for n, r in enumerate(rated, 1)
    ]
    reply = json.dumps({"texts": rows}) if call.schema is not None else as_text(rows)
    return reply[: len(reply) // 3] if fault == "cut_off" else reply


def as_text(rows: list[dict[str, Any]]) -> str:
    """A judgement in words and headings; a type comes first, with a rationale of its own."""
    form = "#### Output for Text {id}\nRationale: {rationale}\nRating: {rating}"
    if rows and "type" in rows[0]:
        form = (
            "#### Output for Text {id}\nType: {type}\nRationale: So it is.\n"
            "Rating: {rating}\nRationale: {rationale}"
        )
    return "\n\n".join(form.format(**row) for row in rows)


def logprobs_of(reply: str) -> dict[str, Any]:
    """Tokens of a reply as OpenAI lists them: a digit is as likely as 0.6, its neighbours 0.2.

    At an end of the scale the one neighbour has 0.4.
    """

    def token(text: str) -> dict[str, Any]:
        alternatives = {text: 1.0}
        if text in "12345":
            rating = int(text)
            near = [n for n in (rating - 1, rating + 1) if 1 <= n <= 5]
            alternatives = {text: 0.6, **{str(n): 0.4 / len(near) for n in near}}
        top = [{"token": t, "logprob": math.log(p)} for t, p in alternatives.items()]
        return {"token": text, "logprob": top[0]["logprob"], "top_logprobs": top}

    return {"content": [token(text) for text in re.findall(r"\d|\s*[^\W\d]+|.", reply, re.DOTALL)]}


def generation(call: Call, choice: int, chars: int) -> str:
    """`chars` of text that name the model; hardly a run of words is shared by two of them."""
    number = stable_hash(b"%d" % choice, call.number) if choice else call.number
    start = number % (len(_PROSE) - chars)
    return f"Answer by {call.model} [{number:016x}]. " + _PROSE[start : start + chars]


@dataclass(slots=True)
class Counts:
    """What happened to the requests of one model since the last reset."""

    requests: int = 0
    ok: int = 0
    errors: int = 0
    aborted: int = 0
    repeated_answered: int = 0
    max_active: int = 0
    max_waiting: int = 0
    busy_s: float = 0.0  # slot-seconds held, of requests that ended
    nominal_s: float = 0.0  # slot-seconds that their drawn latencies come to
    t_first: float | None = None
    t_last: float | None = None
    faults: dict[str, int] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    aborted_bodies: set[int] = field(default_factory=set)

    def arrive(self, call: Call) -> None:
        """A request is here."""
        self.requests += 1
        self.seen[call.number] = self.seen.get(call.number, 0) + 1
        self.repeated_answered += call.number in self.answered
        self.t_first = self.t_first or time.time()

    def answer(self, call: Call, status: int, whole: bool) -> None:
        """A request got its reply, `whole` or deliberately not."""
        self.t_last = time.time()
        if status == 200 and whole:
            self.ok += 1
            self.answered.add(call.number)
        else:
            self.errors += 1

    def abort(self, call: Call) -> None:
        """The client went away before its reply was out."""
        self.aborted += 1
        self.aborted_bodies.add(call.number)


class Model:
    """The slots of one model, and its counts."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.held: dict[object, float] = {}
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.counts = Counts()

    def reset(self) -> None:
        """Count afresh; what is in flight keeps its slot, which is busy from now on."""
        self.counts = Counts()
        self.held = dict.fromkeys(self.held, time.perf_counter())

    async def acquire(self) -> object:
        """Take a slot as soon as all who came before have theirs; returns what releases it."""
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        self.call_up()
        if not turn.done():
            self.counts.max_waiting = max(self.counts.max_waiting, len(self.waiting))
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # called up and gone in the same instant
                    self.release(turn)
                elif turn in self.waiting:
                    self.waiting.remove(turn)
                raise
        return turn

    def release(self, turn: object) -> None:
        """Give the slot back."""
        self.counts.busy_s += time.perf_counter() - self.held.pop(turn)
        self.call_up()

    def call_up(self) -> None:
        """Give what is free to the first in the queue."""
        while self.waiting and len(self.held) < self.slots:
            turn = self.waiting.popleft()
            if not turn.cancelled():
                self.held[turn] = time.perf_counter()
                self.counts.max_active = max(self.counts.max_active, len(self.held))
                turn.set_result(None)

    def stats(self) -> dict[str, Any]:
        """The counts as JSON."""
        counts, now = self.counts, time.perf_counter()
        bodies = ("seen", "answered", "aborted_bodies")
        plain = {name: getattr(counts, name) for name in Counts.__slots__ if name not in bodies}
        repeats = [[f"{body:016x}", n] for body, n in counts.seen.items() if n > 1]
        return plain | {
            "busy_s": counts.busy_s + sum(now - since for since in self.held.values()),
            "unique": len(counts.seen),
            "repeated": counts.requests - len(counts.seen),
            "repeats": repeats[:50],
            "aborted_unique": len(counts.aborted_bodies),
            "slots": self.slots,
            "active": len(self.held),
            "waiting": len(self.waiting),
        }


@dataclass(frozen=True, slots=True)
class Reply:
    """What to send, and how badly."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    manner: str = "whole"  # whole, hang, trickle, cut, drop
    interval_s: float = 0.0


def check_rules(rules: Any) -> list[dict[str, Any]]:
    """`rules` if each can be followed; a mistyped key would otherwise make a test pass idly.

    A rule is `{"model": name or null, "contains": part of the last message or null, "times": N or
    null for always, "reply": {...}}`. A reply may say what is sent (`status`, `headers`, `body` as
    JSON or `raw` as it is), what a normal completion is to hold instead (`content`,
    `finish_reason`, `usage`, `model`; null is kept, and no `usage` is sent for it), how it is sent
    (`hang` after the headers, `trickle_s` between bytes, `cut` in the middle, `drop` without a
    byte), `refuse_schema` (400 to whoever sends `response_format`) and `refuse` (400 to whoever
    sends that field). A reply that says what is sent, or gives `content`, also puts drawn judge
    faults aside. Status 4xx takes no slot.

    Raises:
        ValueError: naming the key.
    """
    for rule in rules:
        unknown = (set(rule) - RULE_KEYS) | (set(rule["reply"]) - REPLY_KEYS)
        if unknown:
            raise ValueError(f"unknown keys in rule: {sorted(unknown)}")
    return list(rules)


def take_rule(rules: list[dict[str, Any]], call: Call) -> dict[str, Any]:
    """The reply of the first rule that fits and has times left, used once more; or nothing."""
    for rule in rules:
        fits = rule.get("model") in (None, call.model)
        if fits and (rule.get("contains") or "") in call.prompt and rule.get("times") != 0:
            if rule.get("times"):
                rule["times"] -= 1
            reply: dict[str, Any] = rule["reply"]
            return reply
    return {}


class ChatServer:
    """The HTTP side: one handler for every path."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.seed, self.chars = options.seed, options.chars
        self.draw = latency(options.latency)
        self.way = options.judge
        self.faults = JudgeFaults(options.judge_500, options.judge_malformed, options.judge_equal)
        named = [part.rpartition("=") for spec in options.slots for part in spec.split(",")]
        self.slots = {name: int(number) for name, _, number in named}
        self.default_slots = self.slots.pop("", 64)
        self.models: dict[str, Model] = {}
        self.rules: list[dict[str, Any]] = []
        self.keys: set[str] = set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        match request.method, request.path:
            case "POST", "/v1/chat/completions":
                return await self.chat(request)
            case "GET", "/v1/models":
                return web.json_response(self.list_models())
            case "GET", "/stats":
                return web.json_response(self.stats())
            case "POST", "/reset":
                for model in self.models.values():
                    model.reset()
                self.rules, self.keys = [], set()
                return web.json_response({})
            case "GET", "/script":
                return web.json_response(self.rules)
            case "POST", "/script":
                try:
                    self.rules = check_rules(await request.json())
                except (ValueError, TypeError, KeyError) as error:
                    return web.json_response(failure(str(error)), status=400)
                return web.json_response(self.rules)
        return web.json_response(failure("not found"), status=404)

    def list_models(self) -> dict[str, Any]:
        """The models asked for so far, as OpenAI lists models."""
        models = [{"id": name, "object": "model", "owned_by": "tests"} for name in self.models]
        return {"object": "list", "data": models}

    def stats(self) -> dict[str, Any]:
        """Counts per model, keys seen, and the CPU this process has used so far."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "models": {name: model.stats() for name, model in self.models.items()},
            "keys": sorted(self.keys),
            "cpu_s": used.ru_utime + used.ru_stime,
        }

    async def chat(self, request: web.BaseRequest) -> web.StreamResponse:
        """One chat completion: its turn, its latency, its reply."""
        raw = await request.content.read()  # request.read() stops at 1 MB
        try:
            call = Call.parse(raw, self.seed)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            return web.json_response(failure(f"bad request: {error!r}"), status=400)
        self.keys.add(request.headers.get("Authorization", ""))
        model = self.models.get(call.model)
        if model is None:
            slots = self.slots.get(call.model, self.default_slots)
            model = self.models[call.model] = Model(slots)
        counts = model.counts  # a reset must not be told of what came before it
        counts.arrive(call)
        reply = self.reply(call, take_rule(self.rules, call), counts)
        try:
            if 400 <= reply.status < 500:  # refused at the door
                response = await send(request, reply)
            else:
                response = await self.serve(request, call, model, reply)
                counts.nominal_s += self.latency_s(call)
        except (asyncio.CancelledError, ConnectionError):
            counts.abort(call)
            raise
        counts.answer(call, reply.status, reply.manner in ("whole", "trickle"))
        return response

    async def serve(
        self, request: web.BaseRequest, call: Call, model: Model, reply: Reply
    ) -> web.StreamResponse:
        """Send `reply` after its latency, holding a slot of `model`."""
        turn = await model.acquire()
        try:
            await asyncio.sleep(self.latency_s(call))
            return await send(request, reply)
        finally:
            model.release(turn)

    def latency_s(self, call: Call) -> float:
        """How long this call takes once it has a slot."""
        return self.draw(uniform(call.number * 0x9E3779B97F4A7C15 % (1 << 64)))

    def reply(self, call: Call, rule: dict[str, Any], counts: Counts) -> Reply:
        """The reply to `call`, as `rule` wants it."""
        says_what = {"status", "body", "raw", "content"} & rule.keys()
        fault = self.faults.of(call.prompt) if call.is_judge and not says_what else ""
        if fault:
            counts.faults[fault] = counts.faults.get(fault, 0) + 1
        status = rule.get("status", 500 if fault == "http_500" else 200)
        if rule.get("refuse_schema") and call.schema is not None:
            refusal = "response_format of type json_schema is not supported"
            return Reply(400, dumps(failure(refusal)))
        if rule.get("refuse") in call.fields:
            return Reply(400, dumps(failure(f"unknown field: {rule['refuse']}")))
        if "raw" in rule:
            body = rule["raw"].encode()
        elif "body" in rule or status != 200:
            body = dumps(rule.get("body", failure(f"scripted or drawn: HTTP {status}")))
        else:
            body = dumps(self.completion(call, rule, fault))
        manners = {"hang": "hang", "trickle_s": "trickle", "cut": "cut", "drop": "drop"}
        manner = next((manners[key] for key in manners if rule.get(key)), "whole")
        return Reply(status, body, rule.get("headers", {}), manner, rule.get("trickle_s", 0.0))

    def completion(self, call: Call, rule: dict[str, Any], fault: str) -> dict[str, Any]:
        """A chat completion in OpenAI's form."""
        if "content" in rule:
            texts = [rule["content"]] * call.choices
        elif call.is_judge:
            texts = [judgement(call, fault, self.way)] * call.choices
        else:
            texts = [generation(call, choice, self.chars) for choice in range(call.choices)]
        asked, told = call.size // 5, sum(len(text or "") for text in texts) // 5
        usage = {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told}
        usage = rule.get("usage", usage)
        return {
            "id": f"chatcmpl-{call.number:016x}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": rule.get("model", call.model),
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": text},
                    "logprobs": logprobs_of(text) if call.logprobs and text else None,
                    "finish_reason": rule.get("finish_reason", "stop"),
                }
                for index, text in enumerate(texts)
            ],
        } | ({} if usage is None else {"usage": usage})


def failure(message: str) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": "test_error", "code": None}}


def dumps(value: Any) -> bytes:
    """JSON as UTF-8."""
    return json.dumps(value).encode()


async def send(request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
    """Send `reply` in its manner; when this returns, what is to be sent has been."""
    headers = {"Content-Type": "application/json", **reply.headers}
    response: web.StreamResponse
    if reply.manner == "whole":
        response = web.Response(status=reply.status, body=reply.body, headers=headers)
        await response.prepare(request)
        await response.write_eof()
        return response
    response = web.StreamResponse(status=reply.status, headers=headers)
    response.content_length = len(reply.body)
    if reply.manner != "drop":
        await response.prepare(request)
    if reply.manner == "hang":
        await asyncio.get_running_loop().create_future()
    elif reply.manner == "trickle":
        for at in range(len(reply.body)):
            await asyncio.sleep(reply.interval_s)
            await response.write(reply.body[at : at + 1])
    else:
        if reply.manner == "cut":
            await response.write(reply.body[: len(reply.body) // 2])
        if request.transport is not None:
            request.transport.close()
    return response


async def serve(options: argparse.Namespace) -> None:
    """Listen until SIGTERM, or until standard input closes if that was asked for."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    if options.until_stdin_closes:
        loop.add_reader(sys.stdin, stop.set)
    server = web.Server(ChatServer(options).handle, handler_cancellation=True, access_log=None)
    listener = await loop.create_server(server, "127.0.0.1", options.port, backlog=2048)
    port = listener.sockets[0].getsockname()[1]
    print(f"ready http://127.0.0.1:{port}/v1", flush=True)
    await stop.wait()
    listener.close()
    await server.shutdown(0.1)


class LlmServer:
    """The server in a subprocess of its own; options as on the command line, `_` for `-`."""

    def __init__(
        self, *, latency: str = "fixed:0.0", slots: str | int = 64, **options: float | int | str
    ) -> None:
        chosen = {"latency": latency, "slots": slots, **options}
        self._arguments = [f"--{key.replace('_', '-')}={chosen[key]}" for key in chosen]
        self._http = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._process: subprocess.Popen[str] | None = None
        #: where an OpenAI client points, with /v1
        self.base_url = ""

    def __enter__(self) -> Self:
        # On some machines imports without bytecode take seconds.
        unwanted = "PYTHONDONTWRITEBYTECODE"
        environment = {key: value for key, value in os.environ.items() if key != unwanted}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--until-stdin-closes", *self._arguments],
            stdin=subprocess.PIPE,  # closes with us, however we end
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            self.base_url = self._wait_until_ready(self._process)
        except BaseException:
            self.__exit__()
            raise
        return self

    @staticmethod
    def _wait_until_ready(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], START_DEADLINE_S)
        line = process.stdout.readline() if readable else ""
        if not line.startswith("ready "):
            raise RuntimeError(f"the LLM server did not start: {line!r}")
        return line.split()[1]

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def pid(self) -> int:
        """The subprocess, for tests that stop or kill it."""
        assert self._process is not None
        return self._process.pid

    def stats(self) -> dict[str, Any]:
        """`{"models": {name: counts}, "keys": [Authorization headers], "cpu_s": seconds}`."""
        stats: dict[str, Any] = self._ask("GET", "/stats")
        return stats

    def reset(self) -> None:
        """Forget counts, keys and rules; requests in flight are counted nowhere."""
        self._ask("POST", "/reset")

    def script(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """Put these rules in place of the present ones."""
        self._ask("POST", "/script", list(rules))

    def remaining(self) -> list[dict[str, Any]]:
        """The rules, each with the times it has left."""
        rules: list[dict[str, Any]] = self._ask("GET", "/script")
        return rules

    def _ask(self, method: str, path: str, value: Any = None) -> Any:
        url = self.base_url.removesuffix("/v1") + path
        data = None if value is None else dumps(value)
        request = urllib.request.Request(url, data=data, method=method)
        try:
            with self._http.open(request, timeout=10) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(error.read().decode()) from error


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--port", type=int, default=0, help="0: any free one")
    options.add_argument("--latency", default="fixed:0.0", help="fixed:S, lognormal:MEDIAN:SIGMA")
    options.add_argument(
        "--slots", action="append", default=[], help="N for every model, NAME=N for one of them"
    )
    options.add_argument("--chars", type=int, default=1000, help="length of a generated text")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--judge", default="by-request", choices=("by-request", "first", "true"))
    for fault in ("500", "malformed", "equal"):
        options.add_argument(f"--judge-{fault}", type=float, default=0.0, help="0 to 1")
    options.add_argument("--until-stdin-closes", action="store_true")
    return options


if __name__ == "__main__":
    uvloop.run(serve(parser().parse_args()))
