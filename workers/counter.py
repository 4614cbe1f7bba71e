"""Questions to scripts on the Redis server, asked together.

While one round trip is under way, further questions queue up and share the next one: at hundreds of
calls a second this costs a fraction of a round trip each.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

#: Questions that share one round trip at most.
TOGETHER = 256


@dataclass(slots=True)
class _Question:
    script: str
    keys: Sequence[str]
    arguments: Sequence[Any]
    answer: "asyncio.Future[Any]"


class Counter:
    """Asks the scripts in `workers/lua`, by name."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._waiting: list[_Question] = []
        self._asking: asyncio.Task[None] | None = None
        self._scripts: dict[str, tuple[str, str]] = {}

    async def ask(self, script: str, *, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """What a script answers. Raises: RedisError, OSError."""
        question = _Question(script, keys, args, asyncio.get_running_loop().create_future())
        self._waiting.append(question)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask_all())
        return await question.answer

    async def _ask_all(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
            try:
                answers = await self._round_trip(some)
            except (RedisError, OSError) as exc:
                answers = [exc] * len(some)
            for question, answer in zip(some, answers, strict=True):
                if question.answer.done():
                    continue  # whoever asked was cancelled
                if isinstance(answer, BaseException):
                    question.answer.set_exception(answer)
                else:
                    question.answer.set_result(answer)

    async def _round_trip(self, questions: Sequence[_Question]) -> list[Any]:
        answers = await self._pipeline(questions)
        unknown = [n for n, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            for name in {questions[n].script for n in unknown}:
                await self._redis.script_load(self._script(name)[1])
            again = await self._pipeline([questions[n] for n in unknown])
            for n, answer in zip(unknown, again, strict=True):
                answers[n] = answer
        return answers

    async def _pipeline(self, questions: Sequence[_Question]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for question in questions:
                digest, _ = self._script(question.script)
                keys = question.keys
                pipe.evalsha(digest, len(keys), *keys, *question.arguments)
            answers: list[Any] = await pipe.execute(raise_on_error=False)
            return answers

    def _script(self, name: str) -> tuple[str, str]:
        """A script's digest and text."""
        if name not in self._scripts:
            text = (files("workers") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
            digest = sha1(text.encode(), usedforsecurity=False).hexdigest()
            self._scripts[name] = digest, text
        return self._scripts[name]
