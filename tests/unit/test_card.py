"""A store's card shows what came from elsewhere and never obeys it."""

import pytest
import yaml
from support import synthetic

from axolotl_distill.show import as_markdown, without_secrets
from axolotl_distill.store.card import dataset_card

HOSTILE = [
    "<script>alert(1)</script>",
    "x | y |\n# Heading",
    "[click](https://example.org/x)",
    "![image](x.png)",
    "`code` **bold** __under__ ~~gone~~",
    "two\r\n---\nlines: yes",
    "bell\x07 escape\x1b[31m null\x00 right-to-left\u202e",
    "<!-- hidden",
    "https://example.org/<b>",
    "&lt;b&gt;",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_and_terms_are_only_shown(text):
    plain = dataset_card(synthetic.manifest(teacher={"name": "x"}, terms={"duties": ["x"]}))
    card = dataset_card(synthetic.manifest(teacher={"name": text}, terms={"duties": [text]}))
    assert card.count("\n") == plain.count("\n")
    assert all(char.isprintable() or char == "\n" for char in card)
    unescaped = card.replace("\\]", "")
    for sign in ("<", "](", "<!--"):
        assert unescaped.count(sign) == plain.count(sign)
    assert yaml.safe_load(card.split("---")[1]) == {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/*.parquet"}],
            }
        ],
        "tags": ["knowledge-distillation", "axolotl-distill"],
    }
    row = next(line for line in card.splitlines() if line.startswith("| teacher |"))
    assert row.replace("\\|", "").count("|") == 3


def test_markup_is_escaped_to_the_letter():
    assert as_markdown("a_b|<i>*c*</i> & [d]") == r"a\_b\|&lt;i&gt;\*c\*&lt;/i&gt; &amp; \[d\]"
    assert as_markdown("Qwen/Qwen2.5-72B-Instruct") == "Qwen/Qwen2.5-72B-Instruct"


SECRETS = {
    "https://user:pass@host/v1": "https://host/v1",
    "s3://AKIAABCDEFGHIJKLMNOP:abc@bucket/x": "s3://bucket/x",
    "https://host/v1?api_key=abcdef123&x=1": "https://host/v1?api_key=[hidden]&x=1",
    "Authorization: Bearer abcdefgh12345": "Authorization: Bearer [hidden]",
    "sk-abcdefghijklmnopqrstuvwx": "[hidden]",
    "hf_abcdefghijklmnopqrstuvwx": "[hidden]",
    "token=abcdefgh": "token=[hidden]",
    "hf-internal-testing/tiny-random-LlamaForCausalLM": None,
    "a secret garden with 3 tokens": None,
    "./chats@home.jsonl": None,
}


@pytest.mark.parametrize("text", SECRETS)
def test_no_secret_reaches_a_store(tmp_path, text):
    expected = SECRETS[text] if SECRETS[text] is not None else text
    assert without_secrets({"a": [text]}) == {"a": [expected]}
    header = synthetic.manifest(
        teacher={"name": text}, terms={"agreement": text},
        source={**synthetic.about_rows([]), "datasets": [text]},
    )  # fmt: skip
    assert header.teacher["name"] == header.terms["agreement"] == expected
    assert header.source["datasets"] == [expected]
