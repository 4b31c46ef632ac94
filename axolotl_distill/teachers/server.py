"""A teacher behind a server: asked for the log-probabilities of a text that is already there."""

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, Self

import numpy as np
import openai
import torch
from distill_kernels import SparseTeacher

from axolotl_distill.config.server import ServerArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import CaptureError, DistillError, ServerError
from axolotl_distill.signal.signal import Signal, Want
from axolotl_distill.store.tokenizer import added_tokens
from axolotl_distill.teachers.client import Answer, RequestRefusedError, ServerClient
from axolotl_distill.teachers.engines import ENGINES
from axolotl_distill.teachers.temperature import (
    HONOURED,
    LIKELIEST,
    PROSE,
    contradicts,
    reading,
    seems_tempered,
)
from axolotl_distill.teachers.tokenizer import (
    SharedVocabulary,
    check_reading,
    probe_texts,
    share,
)
from axolotl_distill.teachers.top import TopLogprobs, top_logprobs

GRACE = 10.0
Task = asyncio.Task[Signal]


class ServerTeacher:
    """A Teacher as a vLLM or SGLang server serves it. Only its likeliest tokens can be had.

    `vocab_size` is the number of real token ids; ids beyond it are left out. A context manager: it
    holds an event loop and the connections in it.
    """

    def __init__(self, teacher: TeacherArgs, *, vocab_size: int):
        assert teacher.server is not None
        self.name = teacher.model
        self.vocab_size = vocab_size
        self._client = ServerClient(teacher.server)
        self._engine = ENGINES[teacher.server.engine]
        self._runner = asyncio.Runner()
        self._tempered = teacher.tempered
        self.note = ""
        """What `check` found of its temperature."""

    def check(self, tokenizer: Any, longest: int) -> SharedVocabulary:
        """Refuse a server that could not give the records, before it is asked for the first.
        Returns what its vocabulary shares with the student's `tokenizer`.

        longest   tokens of the longest row

        Raises CaptureError when it does not serve the model or its context is too short, and
        TokenizerMismatchError when it reads ordinary text as other tokens than `tokenizer`.
        """
        served = served_models(self._client.server)
        if self.name not in served:
            raise CaptureError(
                f"{self._client.server.base_url} does not serve a model `{self.name}` "
                f"(`teacher.model`); it serves {', '.join(served) or 'none'}."
            )
        context = served[self.name]
        if context is not None and longest >= context:
            raise CaptureError(
                f"The longest row has {longest} tokens, and `{self.name}` is served with a context "
                f"of {context}, of which one token is for its answer. Start the server with a "
                f"context of {longest + 1} or more (`--max-model-len` of vLLM, `--context-length` "
                "of SGLang), or lower `sequence_len`."
            )
        shared = share(tokenizer, self._runner.run(self._foreign(tokenizer)))
        self._runner.run(self._check_temperature(tokenizer, shared, context or longest + 1))
        return shared

    async def _check_temperature(
        self, tokenizer: Any, shared: SharedVocabulary, context: int
    ) -> None:
        """Whether the model is tempered as is said, as far as plain prose tells, and whether the
        temperature of a request counts. Raises CaptureError where it contradicts."""
        ids = tokenizer(PROSE, add_special_tokens=False)["input_ids"][: context - 1]
        ids = list(takewhile(shared.reads, ids))
        positions = range(len(ids) - 1)
        if not positions:
            return
        want = Want(likeliest=min(LIKELIEST, self.vocab_size))
        try:
            plain = await self._top_logprobs(ids, positions, want)
            other = await self._top_logprobs(ids, positions, want, temperature=0.5)
        except CaptureError:
            return  # it gives fewer; what is asked for in earnest will be told apart
        moved = float(np.abs(plain.logprobs[:, 0] - other.logprobs[:, 0]).max())
        follows = "follow" if moved > HONOURED else "do not follow"
        found, said = reading(plain, ids[1:]), self._tempered
        self.note = (
            f"The log-probabilities that {self._client.server.base_url} gives of a text {follows} "
            f"the temperature of a request; it is asked at 1, which is the teacher's {said:g}."
        )
        if found.is_telling:
            self.note += f" Plain prose is likeliest with them times {found.scale:.2f}."
        if contradicts(said, found):
            raise CaptureError(
                f"`teacher.tempered: {said:g}` says that `{self.name}` was written by `axolotl "
                f"distill temper --temperature {said:g}`. On plain prose it reads as a model that "
                f"was not: its text is likeliest with log-probabilities times {found.scale:.2f}, "
                f"and of a tempered one that would be about {said:g}. Serve the tempered "
                "checkpoint, or remove the key."
            )
        if seems_tempered(said, found):
            self.note += (
                f" That is much for one that was tempered with {said:g}: is it another one, and "
                "`teacher.tempered` to be set?"
            )

    def grade(
        self, rows: Mapping[int, Sequence[int]], positions: Mapping[int, np.ndarray], want: Want
    ) -> Iterator[tuple[int, slice, Signal]]:
        """See Teacher. All rows are asked for at once, and each comes whole: `want.likeliest`
        tokens, likeliest first, as a SparseTeacher without a tail; one more where the realised
        token is wanted, -1 where it is among them.

        Raises CaptureError when the server refuses, ServerError when it gives no usable answer;
        what is under way then has GRACE seconds to arrive.
        """
        assert want.likeliest is not None, "a server has no whole distributions"
        loop = self._runner.get_loop()
        tasks = {
            loop.create_task(self._row(number, ids, positions[number], want)): number
            for number, ids in rows.items()
        }
        pending, fault = set(tasks), None
        try:
            while pending and fault is None:
                done, pending = self._runner.run(_wait(pending, asyncio.FIRST_COMPLETED, None))
                fault = next((task.exception() for task in done if task.exception()), None)
                if fault is not None and pending:
                    late, _ = self._runner.run(_wait(pending, asyncio.ALL_COMPLETED, GRACE))
                    done |= late
                for task in done:
                    if task.exception() is None:
                        number = tasks[task]
                        yield number, slice(0, len(positions[number])), task.result()
        finally:
            for task in tasks:
                task.cancel()
        if fault is not None:
            raise fault

    async def _row(
        self, number: int, input_ids: Sequence[int], positions: np.ndarray, want: Want
    ) -> Signal:
        try:
            top = await self._top_logprobs(input_ids, positions.tolist(), want)
        except DistillError as error:
            raise type(error)(f"Row {number} ({len(input_ids)} tokens): {error}") from error
        return Signal(SparseTeacher(torch.from_numpy(top.ids), torch.from_numpy(top.logprobs)))

    async def _top_logprobs(
        self,
        input_ids: Sequence[int],
        positions: Sequence[int],
        want: Want,
        temperature: float = 1.0,
    ) -> TopLogprobs:
        """An answer without one of the positions is asked for again."""
        k, found = want.likeliest or 0, list[TopLogprobs]()
        size = k + 1 if want.realised else k

        def check(answer: Answer) -> None:
            try:
                rows = self._engine.rows(answer, k, want.realised)
                if len(rows) != len(input_ids):
                    raise ValueError(f"it has {len(rows)} rows for {len(input_ids)} tokens of text")
                wanted = [rows[position + 1] for position in positions]
                found.append(top_logprobs(wanted, k=size, vocab_size=self.vocab_size))
            except (AttributeError, KeyError, IndexError, TypeError) as error:
                # Rows that are no rows are no answer, whatever they are instead.
                raise ValueError(
                    f"a row of it is not what such a server writes "
                    f"({type(error).__name__}: {error}). Is `server.engine` what the server is?"
                ) from error

        path = self._engine.path(self._client.root)
        body = self._engine.body(self.name, [int(token) for token in input_ids], k, temperature)
        try:
            await self._client.post(path, body, check=check)
        except RequestRefusedError as error:
            hint = "Look at that row, or at the server's log."
            if "logprobs" in str(error):
                hint = f"{self._engine.too_many.format(k=k)}, or lower `k` (nucleus: `max_k`)."
            raise CaptureError(f"{error}\n{hint}") from error
        return found[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    async def _foreign(self, tokenizer: Any) -> set[int]:
        """The ids of tokens added to the student's tokenizer that the server reads otherwise."""
        for text in probe_texts(tokenizer):
            check_reading(self.name, text, await self._read(text), tokenizer)
        added = sorted(added_tokens(tokenizer).items(), key=lambda item: item[1])

        async def differs(text: str) -> bool:
            return await self._read(text) != tokenizer(text, add_special_tokens=False)["input_ids"]

        if not added or not await differs("x".join(token for token, _ in added)):
            return set()
        found = await asyncio.gather(*(differs(token) for token, _ in added))
        return {number for (_, number), foreign in zip(added, found, strict=True) if foreign}

    async def _read(self, text: str) -> list[int]:
        body = {"model": self.name, "prompt": text, "add_special_tokens": False}
        try:
            answer = await self._client.post(
                f"{self._client.root}/tokenize", body, check=_has_tokens
            )
        except ServerError as error:
            raise ServerError(
                f"Whether the server reads text as the student does cannot be checked: {error} "
                "Make its /tokenize reachable."
            ) from error
        return answer["tokens"]


def served_models(server: ServerArgs) -> dict[str, int | None]:
    """The names that a server serves, each with its context in tokens where the server says so.

    Raises ServerError when it cannot be asked.
    """
    key = os.environ.get(server.api_key_env) or "none"
    try:
        with openai.OpenAI(
            base_url=server.base_url,
            api_key=key,
            max_retries=server.retries,
            timeout=server.timeout,
        ) as client:
            return {
                model.id: getattr(model, "max_model_len", None) for model in client.models.list()
            }
    except (openai.OpenAIError, ValueError) as error:
        raise ServerError(
            f"{server.base_url}/models does not say what is served: "
            f"{error.__cause__ or error}. Is the server up, and `base_url` right (it ends in /v1)?"
        ) from error


async def _wait(tasks: set[Task], when: str, seconds: float | None) -> tuple[set[Task], set[Task]]:
    return await asyncio.wait(tasks, return_when=when, timeout=seconds)


def _has_tokens(answer: Answer) -> None:
    if not isinstance(answer.get("tokens"), list):
        raise ValueError("it has no list `tokens`")
