"""What builds in these tests leave out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def lean_builds() -> Iterator[None]:
    """A `dbt build` without dbt's unit tests, which the builds of `test_docs` run, and without
    dbt's file of everything that it does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBT_EXCLUDE_RESOURCE_TYPES", "unit_test")
        patch.setenv("DBT_LOG_LEVEL_FILE", "none")
        yield
