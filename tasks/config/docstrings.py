"""Sentences of docstrings as descriptions of fields, which Prefect's form, `orchestrion settings` and its page show."""

import inspect
import re
from dataclasses import fields
from types import MappingProxyType


def describe_fields(kind: type) -> None:
    """Give each field of a dataclass the sentence that `Args:` of its docstring has about it.

    `tasks/music` imports no `models`, so its settings cannot be `setting`s with a description.
    """
    _, _, listed = inspect.cleandoc(kind.__doc__ or "").partition("\nArgs:\n")
    sentences = dict[str, str]()
    for names, text in re.findall(r"^ {4}(\w[\w, ]*): ((?:.*\n?)(?:^ {8}.*\n?)*)", listed, re.MULTILINE):
        sentence = " ".join(text.split())
        sentences |= {name.strip(): sentence[0].upper() + sentence[1:] for name in names.split(",")}
    for entry in fields(kind):
        if entry.name in sentences:
            entry.metadata = MappingProxyType({**entry.metadata, "description": sentences[entry.name]})
