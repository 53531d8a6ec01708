"""The root of the project's code has one owner; a digest over no file would be the same for all code."""

import hashlib
from pathlib import Path

from tasks.storage import project
from tests.conftest import REPOSITORY


def test_the_root_holds_the_packages_and_their_digest_every_file() -> None:
    assert project.ROOT == REPOSITORY
    expected = hashlib.sha256()
    for folder in ("models", "tasks"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            expected.update(path.read_bytes())
    assert project.code_digest() == expected.hexdigest() != hashlib.sha256().hexdigest()


def test_nothing_else_counts_folders_up_from_its_own_file() -> None:
    users = {
        str(path.relative_to(REPOSITORY))
        for folder in ("flows", "tasks", "models")
        for path in (REPOSITORY / folder).rglob("*.py")
        if "__file__" in path.read_text()
    }
    assert users == {str(Path(project.__file__).relative_to(REPOSITORY))}
