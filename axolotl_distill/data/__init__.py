"""Axolotl dataset types, and the collator that reads the teacher store."""

TEACHER_POS = "teacher_pos"
"""Pointer column, int64, one value a token: which stored record predicts the next token; -1 = none."""
