"""One server for all tests that only ask: two runs over one base, in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.infer.made_run import made_run
from tests.serve.opened import Api, serving


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `a` and `b` over the model `base`."""
    folder = tmp_path_factory.mktemp("served")
    made_run(folder / "a")
    made_run(folder / "b", folder / "base", adapter={"rank": 6, "alpha": 24})
    return folder


@pytest.fixture(scope="session")
def api(runs: Path) -> Iterator[Api]:
    with serving(runs / "a", runs / "b") as found:
        yield found
