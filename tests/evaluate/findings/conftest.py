"""Real tiny runs: one that knows its eight rows by heart, one that learnt next to nothing from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluate.conftest import train, write_rows
from tests.families import save_tiny

ANSWERS = [
    "白日依山盡，黃河入海流。欲窮千里目，更上一層樓。",
    "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。",
    "学生请假需要提前三天向辅导员提交申请，写明原因。",
    "图书馆每天早上八点开门，晚上十点关门，周日休息。",
    "The library opens at eight in the morning and closes at ten in the evening.",
    "A student asks the office for leave three days before and writes one line.",
    "宿舍十一点熄灯，晚归的同学须在门口登记姓名和时间。",
    "The sun is out, and the wind is from the west, so be helpful and short today.",
]
TOPICS = ["楼上", "月光", "请假", "开门", "library", "office", "宿舍", "sun"]


@pytest.fixture(scope="session")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """qwen2/, train.jsonl (eight rows), asked.jsonl (16 others of their topics), runs/heart, runs/hardly."""
    root = tmp_path_factory.mktemp("eight")
    save_tiny("qwen2", root / "qwen2")
    rows = [
        {"instruction": f"{topic}的第{at}个问题？", "output": said}
        for at, (topic, said) in enumerate(zip(TOPICS, ANSWERS, strict=True))
    ]
    write_rows(root / "train.jsonl", rows)
    write_rows(root / "valid.jsonl", rows[:2])
    asked = [
        {"instruction": f"{TOPICS[at % 8]}的第{at}个问题？", "output": f"没有人知道的第{at}个答案。"}
        for at in range(8, 24)
    ]
    write_rows(root / "asked.jsonl", asked)
    full = {"adapter": {"type": "full"}, "tokens_per_step": 1024, "warmup": 0}
    train(root, "heart", **full, max_steps=60, learning_rate=5e-3)
    train(root, "hardly", **full, max_steps=1, learning_rate=1e-7)
    return root
