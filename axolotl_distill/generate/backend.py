"""Who answers requests: a server, or a model in this process."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from axolotl_distill.config.generate import GenerateArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.generate.request import Completion, Refused, Request


class Backend(Protocol):
    """`concurrency` batches are under way at once; rows name the `teacher`."""

    teacher: str
    concurrency: int

    def batches(self, todo: Iterable[Request]) -> Iterator[list[Request]]:
        """Every request of `todo` once, grouped as they are best asked."""
        ...

    async def complete(self, batch: list[Request]) -> list[Completion | Refused]:
        """One answer a request, in their order.

        Raises DistillError when no other request would be answered either.
        """
        ...

    async def close(self) -> None: ...


def make_backend(teacher: TeacherArgs, args: GenerateArgs, uid: str) -> Backend:
    """`uid` names this generation: a server knows a repeated request by it and the request's id.

    Raises DistillError for a model that cannot be loaded, or that cannot do what `args` asks.
    """
    if teacher.server is not None:
        from axolotl_distill.generate.server_backend import ServerBackend

        return ServerBackend(teacher, args, uid)
    from axolotl_distill.generate.model_backend import ModelBackend

    return ModelBackend(teacher, args)
