"""Without Triton, as on macOS and Windows, what needs it is left out, and pytest says so."""

import importlib.util

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("triton"):
        return
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if params.get("backend") == "triton" or item.get_closest_marker("needs_triton"):
            item.add_marker(pytest.mark.skip(reason="triton is not installed"))
