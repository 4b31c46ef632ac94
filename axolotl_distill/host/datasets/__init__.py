"""The dataset types that a YAML names."""
