"""Whatever a YAML file holds: a config or a recipe, or a ConfigError that names the file."""

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.yaml_files import CONFIG, written

from axolotl_distill.commands.recipe import load_recipe
from axolotl_distill.config.reading import check_config_file
from axolotl_distill.errors import ConfigError

RECIPE = {
    "teacher": {"model": "t", "server": {"base_url": "http://h:1/v1", "api_key_env": "K"}},
    "generate": {
        "prompts": [{"path": "p.jsonl", "prompt": "q", "limit": 3}],
        "output": "./t",
        "n": 2,
        "temperature": None,
        "examples": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "budget": {"tokens": 10, "usd": 1.5},
        "price": {"input": 1.0, "output": 2},
        "extra": {"top_k": 20, "logit_bias": {50256: -100}},
    },
    "filter": {
        "output": "./d",
        "steps": [
            "format",
            {"verify": {"method": "exact", "answer": ["a", "b"], "name": "strict"}},
            {"length": {"max_chars": 9}},
            {"language": {"allow": ["en"]}},
            {"judge": {"model": "m", "server": {"base_url": "http://h:1/v1"}, "min_score": 2}},
            {"best_of_n": {"by": "judge"}},
        ],
        "split": {"eval": 0.1, "seed": 3},
    },
}


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.dates(),
    st.sampled_from(
        [
            "",
            "no",
            "~",
            "$X",
            "1e999",
            "\x1b[31m",
            "\ud800",
            "a" * 5000,
            "((",
            10**400,
            -1,
            0,
            1e308,
        ]
    ),
    st.lists(st.integers() | st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3) | st.integers() | st.booleans(), st.integers(), max_size=2),
)


def _places(value, at=()):
    yield at
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(part, (*at, key))


def _copy(value):
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value


@st.composite
def damaged(draw, valid):
    """A valid file with one to three values replaced, removed or put under another key, or with
    its bytes or lines changed."""
    values = _copy(valid)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from([at for at in _places(values) if at]))
        parent = values
        for key in place[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "replace", "remove", "rename", "add"]))
        if action == "replace":
            parent[place[-1]] = draw(ODD)
        elif action == "remove":
            del parent[place[-1]]
        elif isinstance(parent, dict):
            new = draw(st.text(max_size=4) | st.integers() | st.none() | st.booleans())
            parent[new] = parent.pop(place[-1]) if action == "rename" else draw(ODD)
        if not isinstance(values, dict) or not values:
            break
    try:
        raw = yaml.dump(values, allow_unicode=True).encode(errors="surrogatepass")
    except (yaml.YAMLError, TypeError, ValueError):  # what cannot be written, nobody wrote
        raw = b"a: 1"
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(raw)))
        kind = draw(st.sampled_from(["cut", "insert", "twice", "none"]))
        if kind == "cut":
            raw = raw[:at]
        elif kind == "insert":
            raw = raw[:at] + draw(st.binary(max_size=3)) + raw[at:]
        elif kind == "twice":
            lines = raw.splitlines(keepends=True)
            line = draw(st.sampled_from(lines)) if lines else b""
            raw = raw.replace(line, line + line, 1)
    return raw


@pytest.mark.parametrize(
    ("read", "valid"),
    [(load_recipe, RECIPE), (check_config_file, CONFIG)],
    ids=["recipe", "config"],
)
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_file_makes_anything_but_a_config_error(tmp_path, read, valid, data):
    path = written(tmp_path, data.draw(damaged(valid)))
    try:
        read(path)
    except ConfigError as error:
        assert str(path) in str(error)
        str(error).encode()


def test_the_valid_ones_are_valid(tmp_path):
    load_recipe(written(tmp_path, yaml.safe_dump(RECIPE)), "teacher", "generate", "filter")
    check_config_file(written(tmp_path, yaml.safe_dump(CONFIG)))
