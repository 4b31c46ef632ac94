"""Every YAML block of ours as pydantic models. Imports nothing heavy."""
