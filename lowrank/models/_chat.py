"""Conversations as the text that a chat model was trained on."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lowrank._files import read_json
from lowrank.models._gguf import read_gguf

TEMPLATE = "chat_template"


def load_chat_template(path: str | os.PathLike[str]) -> str:
    """Read the chat template of a checkpoint.

    Args:
        path: A folder with `chat_template.jinja`, or with `tokenizer_config.json` whose
            entry `chat_template` it is; or a GGUF file that holds one.

    Returns:
        The Jinja template.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the checkpoint has no template.

    Example:
        >>> import pathlib, tempfile
        >>> from lowrank.models import load_chat_template
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "chat_template.jinja")
        ...     _ = file.write_text("{{ messages[0].content }}")
        ...     load_chat_template(folder)
        '{{ messages[0].content }}'

    References:
        The Jinja template language.
    """
    path = Path(path)
    if path.is_dir():
        file = path / f"{TEMPLATE}.jinja"
        if file.is_file():
            return file.read_text("utf-8")
        found = read_json("load_chat_template", path / "tokenizer_config.json")
        template = found.get(TEMPLATE)
    else:
        metadata = read_gguf("load_chat_template", path).metadata
        template = metadata.get(f"tokenizer.{TEMPLATE}")
    if not isinstance(template, str):
        raise ValueError(
            f"load_chat_template: no template in '{path}': expected one string, got "
            f"{template!r}. Write the prompt as the model's authors describe it."
        )
    return template


def render_chat(
    template: str,
    messages: Iterable[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    r"""Write a conversation as text, by the template of a checkpoint.

    The template is run in a sandbox, which lets it read what it is given and nothing
    else, with block tags trimmed, as the templates expect.

    Args:
        template: See `load_chat_template`.
        messages: `{"role": ..., "content": ...}`, oldest first.
        add_generation_prompt: End with what opens the model's answer.
        **variables: What else the template reads, such as `bos_token`.

    Returns:
        The text, control tokens included.

    Raises:
        ValueError: If the template fails or refuses the messages.

    Example:
        >>> from lowrank.models import render_chat
        >>> render_chat("{% for m in messages %}{{ m.role }}: {{ m.content }}\n"
        ...     "{% endfor %}", [{"role": "user", "content": "Hello."}])
        'user: Hello.\n'

    References:
        The Jinja template language.
    """

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        return environment.from_string(template).render(
            messages=list(messages),
            add_generation_prompt=add_generation_prompt,
            raise_exception=refuse,
            **variables,
        )
    except (TemplateError, TypeError) as error:
        raise ValueError(
            "render_chat: the template failed: expected messages that it accepts, "
            f"got: {str(error).rstrip('.')}. Pass roles and variables as the model's "
            "authors describe."
        ) from error
