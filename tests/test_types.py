"""The public API's types, as mypy and pyright see them over programs that use it; and docstrings, for completion."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import hubbub
import hubbub.testing

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


@pytest.mark.slow
def test_mypy_agrees() -> None:
    """Strict; it also finds ignores that are not needed, so what should be an error is one."""
    command = [str(BIN / "mypy"), "tests/types", "examples"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_pyright_agrees() -> None:
    done = subprocess.run([str(BIN / "pyright")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_public_name_exists_and_is_described() -> None:
    for module in (hubbub, hubbub.testing):
        for name in module.__all__:
            value = getattr(module, name)
            assert inspect.getdoc(value), f"{module.__name__}.{name} has no docstring"
            if not inspect.isclass(value) or issubclass(value, Exception | tuple):
                continue
            for member, inner in vars(value).items():
                if member.startswith("_") or not (inspect.isfunction(inner) or isinstance(inner, property)):
                    continue
                assert inspect.getdoc(getattr(value, member)), f"{name}.{member} has no docstring"


def test_importing_hubbub_imports_nothing_heavy() -> None:
    code = "import sys, hubbub; print([name for name in ('fastapi', 'pydantic', 'uvicorn') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
