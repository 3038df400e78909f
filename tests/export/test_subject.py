"""What an export says of its base."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import save_tiny
from tests.infer.made_run import made_run
from tunesmith.export.subject import find_subject, public_base


@pytest.mark.parametrize(
    ("line", "licence"),
    [
        ("apache-2.0", "apache-2.0"),
        ("'CC BY-SA 4.0'", "CC BY-SA 4.0"),
        ('mit"""x', None),
        ("[mit, apache-2.0]", None),
        ("mit # x: y", None),
    ],
)
def test_a_licence_is_an_id_or_left_out(tmp_path: Path, line: str, licence: str | None) -> None:
    run = made_run(tmp_path / "run", save_tiny("llama", tmp_path / "base"))
    (tmp_path / "base" / "README.md").write_text(f"---\nlicense: {line}\n---\n", encoding="utf-8")
    assert public_base(find_subject(str(run.path))).licence == licence
