"""YAML as people write it and as disks leave it: what is read, and what is said of the rest."""

import subprocess
import sys

import pytest
import yaml
from support.yaml_files import CONFIG, written

from axolotl_distill.commands.recipe import load_recipe
from axolotl_distill.config.reading import check_config_file
from axolotl_distill.config.yaml_file import read_yaml
from axolotl_distill.errors import ConfigError

FILTER = "output: ./d, input: ./t"


def test_scalars_of_yaml_1_2(tmp_path):
    text = (
        "a: no\nb: on\nc: true\nd: 1e-4\ne: 010\nf: 1:30\ng: 2026-01-01\nh: 0x10\ni: ~\nj:\n"
        "k: -1.5e3\nl: 1_000\nm: .5\nn: 'true'\no: 0\np: +5\n"
    )
    assert read_yaml(written(tmp_path, text)) == {
        "a": "no", "b": "on", "c": True, "d": 1e-4, "e": "010", "f": "1:30", "g": "2026-01-01",
        "h": 16, "i": None, "j": None, "k": -1500.0, "l": 1000, "m": 0.5, "n": "true", "o": 0,
        "p": 5,
    }  # fmt: skip


def test_anchors_merges_and_a_byte_order_mark(tmp_path):
    text = "a: &x {p: 1, q: 2}\nb: {<<: *x, p: 3}\nc: {<<: *x}\nd: [*x, *x]\n"
    found = read_yaml(written(tmp_path, b"\xef\xbb\xbf" + text.encode()))
    assert found["b"] == {"p": 3, "q": 2} and found["c"] == found["a"] == found["d"][1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", ["line 5", "`c`", "in line 3"]),
        ("a: {x: &k 1, x: 2}", ["line 1", "`x`"]),
        ("a: é\nb: ö".encode("latin-1"), ["line 1", "not UTF-8", "0xe9", "Save it as UTF-8"]),
        ("a: 1".encode("utf-16"), ["UTF-16", "Save it as UTF-8"]),
        ("a: 1".encode("utf-32"), ["UTF-32"]),
        ("a:\n\t- b", ["line 2", "spaces, not with tabs"]),
        ("a: [1, 2\nb: 3\n", ["line 2", "not YAML"]),
        ("a: 1\n b: 2", ["line 2, column 3", "\n     b: 2"]),
        ("a: 'x", ["not YAML"]),
        ("a: \0", ["line 1", "U+0000"]),
        ("- 1", ["a list", "key: value"]),
        ("just words", ["a str", "key: value"]),
        ("", ["is empty"]),
        ("# nothing\n", ["is empty"]),
        ("a: 1\n---\nb: 2\n", ["line 2", "another document"]),
        ("a: !!python/object/apply:os.system [x]", ["not YAML", "constructor"]),
        ("{[1]: 2}", ["unhashable"]),
        ("a: " + "9" * 5000, ["cannot read"]),
        ("a: " + "[" * 5000, ["nested too deeply"]),
        ("a: !!int ''", ["cannot read"]),
        ("a: !!bool maybe", ["cannot read"]),
        ("a: *nobody", ["undefined alias"]),
        ("\x1b[31mred: [", ["U+001B"]),
    ],
)
def test_what_is_no_yaml(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        read_yaml(written(tmp_path, text))
    for words in ("file.yml", *said):
        assert words in str(caught.value)


def test_no_file(tmp_path):
    for path in (tmp_path / "no.yml", tmp_path / "a\0b"):
        with pytest.raises(ConfigError, match="no such file"):
            read_yaml(path)
    with pytest.raises(ConfigError, match="is a folder"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("generate: [..]", ["`generate`: must be a mapping"]),
        ("filter: []", ["`filter`: must be a mapping"]),
        ("filter: {%s, split: []}", ["`filter.split`: must be a mapping"]),
        ("filter: {%s, steps: {format: x}}", ["`filter.steps`: must be a list"]),
        ("filter: {%s, max_drop: .inf}", ["`filter.max_drop` must be a finite number"]),
        ("filter: {%s, max_drop: 1e999}", ["`filter.max_drop` must be a finite number"]),
        ("filter: {%s, max_drop: .nan}", ["finite"]),
        ("filter: {%s, max_drop: '0.5'}", ["`filter.max_drop`: must be a number", "'0.5'"]),
        ("filter: {%s, max_drop: true}", ["must be a number", "True"]),
        ("filter: {%s, shard_rows: 10.0}", ["must be a whole number", "10.0"]),
        ("filter: {%s, shard_rows: yes}", ["must be a whole number", "'yes'"]),
        ("filter: {%s, shard_rows: 99999999999999999999}", ["64 bits"]),
        ("filter: {%s, format: mesages}", ["did you mean `messages`?"]),
        ("filter: {%s, steps: [{format: {boxed: yes}}]}", ["true or false", "'yes'"]),
        ("filter: {%s, steps: [{format: {boxed: 1}}]}", ["true or false"]),
        ("filter: {%s, steps: [{format: {boxed: 'false'}}]}", ["true or false"]),
        ("filter: {%s, steps: [{format: {match: 'a{99999999999}'}}]}", ["regular expression"]),
        ("filter: {%s, steps: [{length: {max_chars: 9, name: ../x}}]}", ["name", "letters"]),
        ("filter: {%s, steps: &s [*s]}", ["holds itself"]),
        ("filter: {output: ''}", ["`filter.output`: must be a path"]),
        ("filter: {output: d, input: $NOT_SET_HERE/x}", ["`NOT_SET_HERE` is not set"]),
        ("filter: {output: d, input: d}", ["is what `input` reads"]),
        ("filter: {output: d, input: d/data}", ["a folder around it"]),
        ("filter: {output: d}", ["`filter.input`"]),
        ("filter:", ["no `filter:` block"]),
        ("{base_model: m, distill: {}}", ["an Axolotl config and not a recipe"]),
        ("{teacher: {model: t, sever: {}}, filter: {%s}}", ["did you mean `server`?"]),
        ("{true: 1, filter: {%s}}", ["the key True", "quotes"]),
    ],
)
def test_a_recipe_that_is_refused(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        load_recipe(written(tmp_path, text.replace("%s", FILTER)), "filter")
    for words in said:
        assert words in str(caught.value)


def test_a_key_of_a_server_is_not_shown(tmp_path):
    url = "http://ann:pa55word@[::1/v1"
    text = f"teacher: {{model: t, server: {{base_url: '{url}', api_key_env: abcd1234-efgh}}}}"
    with pytest.raises(ConfigError) as caught:
        load_recipe(written(tmp_path, text), "filter")
    said = str(caught.value)
    assert "api_key_env`: must be the name of an environment variable" in said
    assert "abcd1234" not in said and "pa55word" not in said


def test_paths_of_a_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("DATA", "/data")
    recipe = load_recipe(
        written(
            tmp_path,
            "teacher: {model: ~/models/t}\n"
            "generate: {prompts: [$DATA/p.jsonl, '~/q.parquet'], output: '${DATA}/t'}\n"
            "filter: {output: ~/d, tokenizer: ~/tok}\n",
        )
    )
    assert recipe.teacher.model == "/home/ann/models/t"
    assert [source.path for source in recipe.generate.prompts] == [
        "/data/p.jsonl",
        "/home/ann/q.parquet",
    ]
    assert recipe.rows == recipe.generate.output == "/data/t"
    assert (recipe.filter.output, recipe.filter.tokenizer) == ("/home/ann/d", "/home/ann/tok")
    config = {**CONFIG, "distill": {"capture": {"teacher": "~/t", "output": "$DATA/s"}}}
    config["distill"]["capture"]["datasets"] = [{"path": "~/a.jsonl", "type": "chat_template"}]
    capture = check_config_file(written(tmp_path, yaml.safe_dump(config))).capture
    assert (capture.teacher.model, capture.output) == ("/home/ann/t", "/data/s")
    assert capture.datasets[0]["path"] == "/home/ann/a.jsonl"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plugins: [axolotl_distill]\ndistil: {alpha: 0.5}", ["Is `distil:` meant?"]),
        ("plugins: [axolotl_distill]\nDistill: {alpha: 0.5}", ["Is `Distill:` meant?"]),
        ("plugins: [axolotl_distill]", ["no `distill:` block", "Add one"]),
        ("distill: {}", ["no `plugins:`", "plugins: [axolotl_distill]"]),
        ("plugin: [axolotl_distill]\ndistill: {}", ["but `plugin:`"]),
        ("plugins: axolotl_distill\ndistill: {}", ["must be a list"]),
        ("plugins: [axolotl_distil]\ndistill: {}", ["Is `axolotl_distil` meant to be it?"]),
        ("plugins: [3, liger]\ndistill: {}", ["does not list axolotl_distill"]),
        ("plugins: [axolotl_distill]\ndistill: []", ["`distill`: must be a mapping"]),
        ("plugins: [axolotl_distill]\ndistill: {alfa: 1}", ["did you mean `alpha`?"]),
        ("teacher: {}\ngenerate: {}", ["a recipe and not an Axolotl config"]),
    ],
)
def test_a_config_that_is_refused(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        check_config_file(written(tmp_path, text))
    for words in said:
        assert words in str(caught.value)


def test_numbers_as_axolotl_reads_them(tmp_path):
    """Its reader takes 1e-1 for text; the block means the number all the same."""
    config = {**CONFIG, "distill": {**CONFIG["distill"], "alpha": "1e-1", "support": None}}
    path = written(tmp_path, yaml.safe_dump(config))
    assert check_config_file(path).alpha == 0.1
    for name in ("axolotl_distill.DistillPlugin", "axolotl_distill:DistillPlugin"):
        written(tmp_path, yaml.safe_dump({**CONFIG, "plugins": ["liger", name]}))
        check_config_file(path)


def test_refused_before_anything_heavy_is_imported(tmp_path):
    """Of the whole command, in the process that a user starts."""
    config = written(tmp_path, "plugins: [axolotl_distill]\ndistill: {alfa: 1}")
    code = (
        "import sys\nfrom axolotl_distill.cli import distill\n"
        "try:\n    distill(sys.argv[1:])\n"
        "finally:\n"
        "    heavy = {'torch', 'axolotl', 'transformers', 'datasets', 'numpy', 'openai'}\n"
        "    print(sorted(heavy & set(sys.modules)))\n"
    )
    recipe = tmp_path / "recipe.yml"
    recipe.write_text("filter: {outpt: x}\ngenerate: {outpt: x}\nteacher: {model: t}")
    for args in (
        ["capture", config],
        ["import", config, "s", "--output", "o"],
        ["verify", "s", "--config", config],
        ["generate", recipe],
        ["filter", recipe],
        ["--help"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True
        )
        assert done.returncode == (0 if args == ["--help"] else 1)
        assert done.stdout.endswith("[]\n"), done.stdout
        assert args == ["--help"] or "did you mean" in done.stderr
