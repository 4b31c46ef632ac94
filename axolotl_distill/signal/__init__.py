"""The batch: its columns, the shift from t to t + 1, and where a teacher's signal comes from."""
