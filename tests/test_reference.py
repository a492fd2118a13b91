"""The API reference is built from docstrings, and everything public has one."""

import importlib
import inspect
import sys
from pathlib import Path

import pytest

import pan_hf

sys.path.insert(0, str(Path(__file__).parent.parent / "docs"))
reference = importlib.import_module("reference")


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(tmp_path):
    reference.build(tmp_path, ["pan_hf"])
    page = (tmp_path / "pan_hf.html").read_text()
    assert [name for name in pan_hf.__all__ if f'<section id="{name}">' not in page] == []
    assert "a world model" in page  # the package's own docstring


def test_every_public_class_and_function_has_a_docstring():
    bare = []
    for name in reference.modules():
        module = importlib.import_module(name)
        assert module.__doc__, name
        for member, thing in vars(module).items():
            is_documented = inspect.isclass(thing) or inspect.isroutine(thing)
            is_ours = is_documented and thing.__module__ == name and member[0] != "_"
            if is_ours and not thing.__doc__:
                bare.append(f"{name}.{member}")
    assert bare == []
