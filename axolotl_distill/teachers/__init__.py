"""Sources of teacher signal: models that say what they think of every token."""

from axolotl_distill.teachers.hf import HFTeacher

__all__ = ["HFTeacher"]
