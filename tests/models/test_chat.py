"""Chat templates: where they are found, what they are given, how they fail."""

import json

import pytest

from lowrank.models import load_chat_template, render_chat

TEMPLATE = """\
{% for m in messages %}
{% if m.role not in ("user", "assistant") %}{{ raise_exception("odd role") }}{% endif %}
{{ bos }}{{ m.role }}: {{ m.content }}
{% endfor %}
{% if add_generation_prompt %}assistant:{% endif %}"""
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def test_a_folder_holds_the_template_in_one_of_two_files(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no file at '.*tokenizer_config.json'"
    ):
        load_chat_template(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": [{"name": "default"}]}))
    with pytest.raises(ValueError, match=r"load_chat_template: no template in"):
        load_chat_template(tmp_path)
    config.write_text(json.dumps({"chat_template": "old"}))
    assert load_chat_template(tmp_path) == "old"
    (tmp_path / "chat_template.jinja").write_text("new")
    assert load_chat_template(tmp_path) == "new"


def test_a_conversation_becomes_text():
    text = render_chat(TEMPLATE, MESSAGES, bos="<s>")
    assert text == "<s>user: Hi\n<s>assistant: Ho\nassistant:"
    shut = render_chat(TEMPLATE, MESSAGES[:1], add_generation_prompt=False)
    assert shut == "user: Hi\n"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (TEMPLATE, "odd role"),
        ("{% for %}", "Expected"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_fails_is_named(template, reason):
    with pytest.raises(ValueError, match=f"render_chat: the template failed.*{reason}"):
        render_chat(template, [{"role": "robot", "content": "."}])
