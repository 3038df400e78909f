"""Pages that are written from code are as new as the code."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import load_script
from tunesmith.cli.main import VERBS
from tunesmith.evaluate.judge.prompts import GRADE, PAIR, REPAIR, sha256
from tunesmith.settings import known_keys
from tunesmith.train.config import Job

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return load_script(DOCS / "generate.py")


def test_the_page_of_settings_is_not_stale(generate: ModuleType) -> None:
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == generate.page(), "run `make docs`"


def test_the_table_of_settings_of_answers_is_not_stale(generate: ModuleType) -> None:
    text = (DOCS / "generate.md").read_text(encoding="utf-8")
    assert text == generate.filled(text), "run `make docs`"
    assert "| `num_beams` |" in text
    with pytest.raises(ValueError, match="markers"):
        generate.filled("no table")


def test_what_make_docs_writes_is_said_where_people_look() -> None:
    for name in ("Makefile", "CONTRIBUTING.md"):
        text = (DOCS.parent / name).read_text(encoding="utf-8")
        told = next(line for line in text.splitlines() if "docs " in line and "anew" in line)
        assert "settings" in told, name
        assert "features" in told, name


def test_the_page_names_every_setting_of_a_job(generate: ModuleType) -> None:
    page = generate.page()
    keys = [key for key in known_keys(Job) if not key.startswith("data.train.")]  # those have their own table
    assert len(keys) > 40
    assert [key for key in keys if f"| `{key}` |" not in page] == []


def test_a_setting_s_row_says_default_limits_and_meaning(generate: ModuleType) -> None:
    row = next(line for line in generate.page().splitlines() if line.startswith("| `adapter.rank`"))
    assert row == "| `adapter.rank` | `16` | whole number ≥ 1 | r of LoRA |"


@pytest.mark.parametrize(("name", "language"), [("README.md", "en"), ("README.zh-CN.md", "zh")])
def test_the_table_of_features_is_not_stale(name: str, language: str) -> None:
    features = load_script(DOCS / "features.py")
    text = (DOCS.parent / name).read_text(encoding="utf-8")
    assert text == features.filled(text, language), "run `make docs`"


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_each_verb_has_a_page(name: str) -> None:
    text = (DOCS.parent / name).read_text(encoding="utf-8")
    pages = {"eval": "eval", "compare": "eval", "benchmark": "eval"}  # three verbs on one
    for verb in VERBS:
        page = DOCS / f"{pages.get(verb, verb)}.md"
        assert f"tunesmith {verb}" in page.read_text(encoding="utf-8"), verb
        chinese = page.with_suffix(".zh-CN.md")
        linked = chinese if "zh" in name and chinese.exists() else page
        assert f"](docs/{linked.name})" in text, verb


def test_a_judge_s_prompts_stand_in_its_page_word_for_word() -> None:
    page = (DOCS / "judge.md").read_text(encoding="utf-8")
    for words in (*PAIR.values(), *GRADE.values()):
        shown = words.replace("{{", "{").replace("}}", "}")
        assert "\n".join(f"    {line}".rstrip() for line in shown.split("\n")) in page
        assert f"sha256 {sha256(words)[:16]}…" in page
    assert all(words in page for words in REPAIR.values())


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_links_of_the_readme_lead_somewhere(name: str) -> None:
    text = (DOCS.parent / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert len(links) > 10
    assert [link for link in links if not (DOCS.parent / link).exists()] == []


def test_how_to_set_up_is_told() -> None:
    for name in ("README.md", "README.zh-CN.md"):
        assert "make setup" in (DOCS.parent / name).read_text(encoding="utf-8"), name
    makefile = (DOCS.parent / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()
    assert [t for t in targets if t != "help" and f'@echo "make {t} ' not in makefile] == []


def test_the_chinese_readme_says_which_pages_are_in_chinese() -> None:
    text = (DOCS.parent / "README.zh-CN.md").read_text(encoding="utf-8")
    told = next(line for line in text.splitlines() if line.startswith("目前只有本页"))
    assert sorted(re.findall(r"docs/[\w.-]+", told)) == sorted(
        f"docs/{p.name}" for p in DOCS.glob("*.zh-CN.md")
    )
