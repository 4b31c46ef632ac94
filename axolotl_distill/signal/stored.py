"""The signal of a teacher store."""

from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.store import TeacherStore


def resolve_support(store: TeacherStore, args: DistillArgs) -> str:
    """The support asked for, or the one that the store's records are made for."""
    sampled = store.manifest.method["kind"] == "sampled"
    return args.support or ("sampled" if sampled else "tail_bucket")
