"""The signal of a teacher store."""

from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.store import TeacherStore


def resolve_support(store: TeacherStore, args: DistillArgs) -> str:
    """The support asked for, or the one that the store's records are made for."""
    return args.support or store.manifest.method.supports[0]
