"""The points of the five systems: complete, shown by tests and commands that exist, and the page made of them."""

import ast
from pathlib import Path
from typing import Any

import pytest

from tests.made_pages import SYSTEMS, SYSTEMS_PAGE, VERDICTS, read_points, systems_page, verdict
from tests.test_readme import ROOT, check_command

N_POINTS = {"S000": 18, "S001": 17, "S002": 18, "S003": 19, "S004": 20}
POINTS = read_points()


def functions_of(path: Path) -> set[str]:
    """Return the functions and methods of a test file, without importing it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


def absent_tests(points: list[dict[str, Any]], root: Path = ROOT) -> list[str]:
    """Return a line for each named test that does not exist."""
    functions: dict[str, set[str]] = {}
    absent = []
    for point in points:
        for test in point["tests"]:
            path, _, name = test.partition("::")
            if path not in functions:
                functions[path] = functions_of(root / path) if (root / path).is_file() else set()
            if not name.startswith("test_") or name.partition("[")[0] not in functions[path]:
                absent.append(f"{point['system']}.{point['number']}: {test}")
    return absent


def test_every_point_is_there_and_says_what_it_lacks() -> None:
    assert sum(N_POINTS.values()) == 92
    assert [(point["system"], point["number"]) for point in POINTS] == [
        (system, number) for system, n_points in N_POINTS.items() for number in range(1, n_points + 1)
    ]
    assert list(N_POINTS) == list(SYSTEMS)
    for point in POINTS:
        assert set(point) - {"command"} == {"system", "number", "point", "tests", "result"}, point
        assert point["point"].endswith("."), point
        assert "|" not in point["point"] + point["result"], point
        name, _, remark = point["result"].partition(": ")
        assert name in VERDICTS, point
        assert point["tests"] if name == "holds" else remark, point


def test_every_named_test_exists() -> None:
    assert absent_tests(POINTS) == []
    assert all(len(set(point["tests"])) == len(point["tests"]) for point in POINTS)


def test_a_wrong_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("import not_there\n\ndef helper(): ...\n\ndef test_one(): ...\n")
    named = ["test_a.py::test_one", "test_a.py::test_one[3-x]"]
    wrong = ["test_a.py::test_two", "test_a.py::helper", "test_b.py::test_one", "test_a.py", "test_a.py::test_on"]
    point = {"system": "S000", "number": 3, "tests": [*named, *wrong]}
    assert absent_tests([point], tmp_path) == [f"S000.3: {test}" for test in wrong]
    planted = [{**POINTS[0], "tests": [*POINTS[0]["tests"], "tests/test_systems.py::test_planted"]}, *POINTS[1:]]
    assert absent_tests(planted) == ["S000.1: tests/test_systems.py::test_planted"]


@pytest.mark.parametrize("command", [point["command"] for point in POINTS if "command" in point])
def test_every_command_is_one(command: str) -> None:
    assert command.startswith("orchestrion ")
    check_command(command)


@pytest.mark.parametrize(
    "command", ["orchestrion dance", "orchestrion stats a.mid --loud", "orchestrion train --set x=1"]
)
def test_a_wrong_command_is_found(command: str) -> None:
    with pytest.raises(Exception, match=r"dance|--loud|unknown key 'x'"):
        check_command(command)


def test_the_page_is_up_to_date() -> None:
    assert SYSTEMS_PAGE.read_text() == systems_page(POINTS), "write it by `make docs`"


def test_the_page_counts_each_verdict() -> None:
    rows = [line.split(" | ") for line in systems_page(POINTS).splitlines() if line.startswith("| S00")]
    counted = [sum(int(row[place].strip(" |")) for row in rows) for place in (1, 2, 3, 4)]
    assert counted == [92, *([verdict(point) for point in POINTS].count(name) for name in VERDICTS)]
