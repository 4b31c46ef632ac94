"""The steps of a filter, but for verify, which has a folder of its own."""
