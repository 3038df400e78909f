"""Nothing that raters get tells whose answer is whose: not its words, ids, order or form."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.blind.made_test import A_NAME, B_NAME, made_test
from tunesmith.errors import RunError
from tunesmith.evaluate.blind.folder import BlindTest, open_test
from tunesmith.evaluate.blind.page import blind_page, page


def test_the_page_holds_nothing_that_is_sealed(tmp_path: Path) -> None:
    test = made_test(tmp_path)
    key = test.key()
    for text in (blind_page(test.path).read_text(encoding="utf-8"), page(test.public(), server=True)):
        for secret in (A_NAME, B_NAME, "a.jsonl", "b.jsonl", key["seed"], "repeat_of", "row-", "sealed"):
            assert secret not in text, secret
        assert "甲3" in text


def test_what_raters_see_depends_on_left_and_right_alone(tmp_path: Path) -> None:
    # 200 pairs with the same words on both sides, but for the letter that tells the model.
    test = made_test(tmp_path, 200, lambda i: f"x{i:03}", lambda i: f"y{i:03}", items=200)
    shown = json.loads(page(test.public()).partition('id="test">')[2].partition("</script>")[0])
    left_is_a = np.array([item["left"].startswith("x") for item in shown["items"]], dtype=float)
    assert {tuple(item) for item in shown["items"]} == {("id", "prompt", "left", "right")}
    assert len({item["id"] for item in shown["items"]}) == 220
    assert set(shown) == {"test", "ask", "items", "server"}
    # |r| of unrelated figures is below 4.5 / sqrt(220) = 0.3 but for one time in 100,000.
    ids = np.array([[int(digit, 16) for digit in item["id"]] for item in shown["items"]], dtype=float)
    places = np.arange(len(left_is_a), dtype=float)
    rank = np.argsort(np.argsort([item["id"] for item in shown["items"]])).astype(float)
    rows = np.array([int(item["left"][1:]) for item in shown["items"]], dtype=float)
    for figure in (*ids.T, places, rank, rows):
        assert abs(np.corrcoef(figure, left_is_a)[0, 1]) < 0.3
    assert abs(np.corrcoef(left_is_a[1:], left_is_a[:-1])[0, 1]) < 0.3


def test_ids_are_new_in_every_test_and_the_seed_is_the_systems(tmp_path: Path) -> None:
    one, two = made_test(tmp_path / "one"), made_test(tmp_path / "two")
    assert one.key()["seed"] != two.key()["seed"]
    ids = [{item["id"] for item in test.public()["items"]} for test in (one, two)]
    assert not ids[0] & ids[1]


def test_the_key_is_for_the_maker_alone_and_cant_be_changed_unseen(tmp_path: Path) -> None:
    test = made_test(tmp_path)
    assert stat.S_IMODE(test.sealed.stat().st_mode) == 0o700
    assert stat.S_IMODE(test.key_file.stat().st_mode) == 0o600
    original = test.key_file.read_text(encoding="utf-8")
    swapped = original.replace('"left": "a"', '"left": "?"').replace('"left": "b"', '"left": "a"')
    test.key_file.write_text(swapped.replace('"left": "?"', '"left": "b"'), encoding="utf-8")
    with pytest.raises(RunError, match="isn't the key that was sealed"):
        test.key()
    test.key_file.unlink()
    with pytest.raises(RunError, match="is missing"):
        test.key()


def test_the_key_says_the_truth(tmp_path: Path) -> None:
    test = made_test(tmp_path, 30)
    shown = {item["id"]: item for item in test.public()["items"]}
    places = test.key()["items"]
    assert [place["id"] for place in places] == list(shown)
    for place in places:
        assert shown[place["id"]]["left"].startswith("甲" if place["left"] == "a" else "乙")
        assert shown[place["id"]]["prompt"].startswith(f"第{place['row'].removeprefix('row-')}題")
    again = [place for place in places if place["repeat_of"]]
    assert len(again) == 3
    for place in again:
        assert shown[place["id"]]["left"] == shown[place["repeat_of"]]["right"]


def test_a_folder_that_is_no_test(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="isn't the folder of a blind test"):
        open_test(tmp_path)
    test = made_test(tmp_path)
    with pytest.raises(RunError, match="isn't the folder") as refused:
        open_test(tmp_path / "tset")
    assert str(test.path) in refused.value.fix
    test.test_file.unlink()
    with pytest.raises(RunError, match="isn't made yet"):
        open_test(test.path)
    damaged = BlindTest(tmp_path)
    damaged.test_file.write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="can't be read"):
        open_test(tmp_path)
