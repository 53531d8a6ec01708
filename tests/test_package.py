"""What a wheel holds: all code of the three packages, and every file beside it as package data."""

import tomllib
from pathlib import Path

import pytest
from setuptools import Distribution

ROOT = Path(__file__).resolve().parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
PACKAGES = ("flows", "tasks", "models")


def files_of(package: str) -> set[Path]:
    return {path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_data_file_is_package_data(package: str) -> None:
    patterns = SETUPTOOLS["package-data"].get(package, [])
    packaged = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
    assert {path for path in files_of(package) if path.suffix != ".py"} <= packaged


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_with_code_is_a_package(package: str) -> None:
    folders = {path.parent for path in files_of(package) if path.suffix == ".py"}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_wheel_holds_every_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PLAT", "")  # setuptools sets it
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files()
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    built = {str(Path(path).relative_to(command.build_lib)) for path in command.get_outputs(include_bytecode=False)}
    kept = {path for package in PACKAGES for path in files_of(package)}
    assert built == {str(path.relative_to(ROOT)) for path in kept}


def test_nothing_else_is_installed() -> None:
    assert SETUPTOOLS["packages"]["find"]["include"] == [f"{package}*" for package in PACKAGES]
