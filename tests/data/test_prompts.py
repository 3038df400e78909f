"""Rows to ask a model: their names."""

from __future__ import annotations

import json
from pathlib import Path

from tunesmith.data.prompts import read_prompts


def test_rows_of_a_folder_are_numbered_over_all_its_files(tmp_path: Path) -> None:
    rows = [{"instruction": "one"}, {"instruction": "two", "id": "own"}, {"instruction": "three"}]
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    found = read_prompts(str(tmp_path))
    assert [row.key for row in found] == ["0", "own", "2", "3", "own", "5"]
    assert [row.number for row in found] == [0, 1, 2, 3, 4, 5], "what each draws by"
    assert str(found[5].origin).endswith("b.json:1 (row 3)"), "the place stays that in its file"
    alone = read_prompts(str(tmp_path / "b.json"))
    assert [row.key for row in alone] == ["0", "own", "2"]
    assert [row.prompt.number for row in found] == [row.number for row in found]
