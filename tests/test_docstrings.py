"""Every public function and class explains itself: each parameter named, an example, methods in a sentence.

The examples are executed as doctests (`make units`); here it is only checked that they exist.
"""

import importlib
import inspect
import pkgutil
import re

import pytest

import data_prep
import wsss_lib


def modules():
    for package in (wsss_lib, data_prep):
        yield package.__name__
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not any(part.startswith("_") for part in found.name.split(".")):
                yield found.name


def public_objects():
    for name in modules():
        module = importlib.import_module(name)
        for key, value in vars(module).items():
            own = getattr(value, "__module__", None) == name
            if own and not key.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)):
                yield pytest.param(value, id=f"{name}.{key}")


def parameters(thing):
    """Names of what a caller passes; for a class, to its constructor if it has one of its own."""
    if inspect.isclass(thing):
        if issubclass(thing, BaseException):
            return []
        if hasattr(thing, "_fields"):
            return list(thing._fields)
        if "__init__" not in vars(thing) and not hasattr(thing, "__dataclass_fields__"):
            return []
    signature = inspect.signature(thing)
    return [name for name in signature.parameters if name not in ("self", "cls")]


def overrides_documented(cls, name):
    bases = [base for base in cls.__mro__[1:] if name in vars(base)]
    return name != "forward" and any(inspect.getdoc(vars(base)[name]) for base in bases)


@pytest.mark.parametrize("name", list(modules()))
def test_module_says_what_it_is(name):
    assert (importlib.import_module(name).__doc__ or "").strip()


@pytest.mark.parametrize("thing", list(public_objects()))
def test_public_thing_has_a_docstring_with_its_parameters_and_an_example(thing):
    doc = inspect.getdoc(thing) if inspect.isfunction(thing) else inspect.cleandoc(thing.__doc__ or "")
    assert doc, "no docstring"
    unnamed = [name for name in parameters(thing) if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", doc)]
    assert not unnamed, f"does not name {', '.join(unnamed)}"
    assert ">>> " in doc, "no example"


@pytest.mark.parametrize("thing", [p for p in public_objects() if inspect.isclass(p.values[0])])
def test_public_methods_have_at_least_a_sentence(thing):
    silent = []
    for name, value in vars(thing).items():
        if name.startswith("_"):
            continue
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if inspect.isfunction(value) and not inspect.getdoc(value) and not overrides_documented(thing, name):
            silent.append(name)
    assert not silent
