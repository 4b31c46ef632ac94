"""Axolotl dataset types, and the collator that reads the teacher store."""

TEACHER_POS = "teacher_pos"
"""Pointer column, int64, one value a token: the stored record of the next token; -1 = none."""

LOSS_WEIGHT = "loss_weight"
"""Weight of a token's own loss, float, one value a token; a row without the column weighs 1."""
