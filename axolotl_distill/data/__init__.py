"""Axolotl dataset types, and the collator that reads the teacher store."""

TEACHER_POS = "teacher_pos"
"""Pointer column, int64, one value a token: the stored record of the next token; -1 = none."""
