"""Ray, where `--executor ray` asks for it: the cluster, and rows streamed through its workers."""

import logging
import os
from collections.abc import Iterator
from typing import Any

from axolotl_distill.errors import ConfigError
from axolotl_distill.extras import pip_install


def connect() -> int:
    """Join the cluster of RAY_ADDRESS, or start one on this machine; returns its number of CPUs.

    Raises ConfigError where Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError(
            f"`--executor ray` needs Ray, on every node: {pip_install('ray')}"
        ) from None
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        local: dict[str, Any] = {} if address else {"include_dashboard": False}
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **local)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def gpus() -> int:
    """How many the connected cluster has."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def gpus_of_a_node() -> int:
    """How many its largest node has."""
    import ray

    return int(max(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]))


def stream(
    items: list[dict[str, Any]],
    worker: type,
    arguments: tuple[Any, ...],
    *,
    workers: int,
    batch_size: int,
    gpus: float = 0.0,
    **remote_args: Any,
) -> Iterator[dict[str, Any]]:
    """The rows that `worker(*arguments)(batch)` makes of `items`, in their order.

    `worker` is built once in each of up to `workers` processes of the cluster and called with
    batches, columns of lists; `remote_args` are those of a Ray actor.
    """
    import ray.data

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    mapped = ray.data.from_items(
        items, override_num_blocks=max(1, len(items) // batch_size)
    ).map_batches(
        worker,
        fn_constructor_args=arguments,
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        num_gpus=gpus,
        **remote_args,
    )
    yield from mapped.iter_rows()
