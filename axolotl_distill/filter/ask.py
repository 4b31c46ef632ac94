"""Asking a server about many rows: in order, some at once, and nothing paid for twice."""

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_distill.config.server import ServerArgs
from axolotl_distill.filter.answers import Answers

WAITING_PER_SLOT = 4


@dataclass(frozen=True)
class Question:
    """A request about the row `id`, to be sent to `model`."""

    model: str
    id: str
    path: str
    body: dict[str, Any]

    @property
    def key(self) -> str:
        text = json.dumps([self.model, self.id, self.path, self.body], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Reply:
    """What was read from an answer; or None, and why the server refused the request."""

    value: Any
    refused: str = ""


def ask(
    server: ServerArgs,
    folder: Path | None,
    questions: Iterable[Question],
    read: Callable[[dict[str, Any]], Any],
    *,
    at_root: bool = False,
) -> Iterator[Reply]:
    """One reply a question, in order; `server.concurrency` requests are under way at once.

    folder   for `Answers`: what `read` gave is kept there, and what is there is not asked again
    read     JSON value of an answer. Raises ValueError, KeyError, IndexError or TypeError for one
             that cannot be used: it is asked for again
    at_root  paths are below scheme://host:port and not below base_url

    Raises ServerError when no further request would survive; what was under way is kept first.
    """
    from axolotl_distill.teachers.client import RequestRefusedError, ServerClient

    assert folder is not None
    waiting: deque[asyncio.Task[Reply]] = deque()
    with Answers(folder) as answers, asyncio.Runner() as runner:
        client = ServerClient(server)

        def check(answer: dict[str, Any]) -> None:
            try:
                read(answer)
            except (KeyError, IndexError, TypeError) as error:
                raise ValueError(f"it lacks what was asked for ({error!r}): {answer}") from error

        async def reply(question: Question) -> Reply:
            key = question.key
            value = answers.get(key)
            if value is None:
                path = client.root + question.path if at_root else question.path
                try:
                    answer = await client.post(path, question.body, check=check, key=key)
                except RequestRefusedError as error:
                    return Reply(None, refused=str(error))
                value = read(answer)
                answers.put(key, question.id, value)
            return Reply(value)

        async def settled(tasks: Iterable[asyncio.Task[Reply]]) -> None:
            await asyncio.gather(*tasks, return_exceptions=True)

        async def result(task: asyncio.Task[Reply]) -> Reply:
            return await task

        try:
            for question in questions:
                waiting.append(runner.get_loop().create_task(reply(question)))
                if len(waiting) >= WAITING_PER_SLOT * server.concurrency:
                    yield runner.run(result(waiting.popleft()))
            while waiting:
                yield runner.run(result(waiting.popleft()))
        except Exception:
            runner.run(settled(waiting))
            raise
        finally:
            # A signal that came just as a run ended left that run's stop for the next to trip over.
            loop = runner.get_loop()
            loop.call_soon(loop.stop)
            loop.run_forever()
            for task in waiting:
                task.cancel()
            runner.run(settled(waiting))
            runner.run(client.close())
