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
from axolotl_distill.teachers.client import RequestRefusedError, ServerClient
from axolotl_distill.trajectories import Journal, read_trajectories

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
    cache: Path,
    questions: Iterable[Question],
    read: Callable[[dict[str, Any]], Any],
    *,
    at_root: bool = False,
) -> Iterator[Reply]:
    """One reply a question, in order; `server.concurrency` requests are under way at once.

    cache    journal of what `read` gave; a question found there is not asked again. It belongs to
             one process at a time
    read     JSON value of an answer. Raises ValueError, KeyError, IndexError or TypeError for one
             that cannot be used: it is asked for again
    at_root  paths are below scheme://host:port and not below base_url

    Raises ServerError when no further request would survive; what was under way is kept first.
    """
    known = {}
    if cache.exists():
        known = {row["key"]: row["value"] for row in read_trajectories(cache)}
    waiting: deque[asyncio.Task[Reply]] = deque()
    with Journal(cache) as journal, asyncio.Runner() as runner:
        client = ServerClient(server)

        def check(answer: dict[str, Any]) -> None:
            try:
                read(answer)
            except (KeyError, IndexError, TypeError) as error:
                raise ValueError(f"it lacks what was asked for ({error!r}): {answer}") from error

        async def reply(question: Question) -> Reply:
            key = question.key
            if key not in known:
                path = client.root + question.path if at_root else question.path
                try:
                    answer = await client.post(path, question.body, check=check, key=key)
                except RequestRefusedError as error:
                    return Reply(None, refused=str(error))
                known[key] = read(answer)
                journal.append([{"key": key, "id": question.id, "value": known[key]}])
            return Reply(known[key])

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
            for task in waiting:
                task.cancel()
            runner.run(settled(waiting))
            runner.run(client.close())
