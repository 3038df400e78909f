"""A blind test on disk.

    blind/<name>/
      test.json         what raters see: prompts, left and right answers, under random ids
      ratings.jsonl     what they said, a line a choice, append only
      sealed/           for the maker alone (mode 0700)
        request.json    what the test is made of, with the seed, so that an interrupted `new` goes on
        a.jsonl b.jsonl the answers, as `generate` writes them
        key.json        which side is whose
      unsealed.json     when the report was made: later ratings don't count
      page.html         for raters elsewhere
      report.html       and report.json

The page and the server are given test.json's content and never a path. test.json holds a hash of key.json, so
that a key that was changed after the draw is seen; the seed in it makes it impossible to guess.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.disk import disk_errors, write_atomic, write_json
from tunesmith.errors import RunError
from tunesmith.evaluate.blind.answers import Pair
from tunesmith.evaluate.blind.draw import laid_out

KIND = "tunesmith blind test"


@dataclass(frozen=True)
class BlindTest:
    """Paths in the folder of a blind test, and its two records."""

    path: Path

    @property
    def test_file(self) -> Path:
        return self.path / "test.json"

    @property
    def ratings_file(self) -> Path:
        return self.path / "ratings.jsonl"

    @property
    def unsealed_file(self) -> Path:
        return self.path / "unsealed.json"

    @property
    def page_file(self) -> Path:
        return self.path / "page.html"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def figures_file(self) -> Path:
        return self.path / "report.json"

    @property
    def sealed(self) -> Path:
        return self.path / "sealed"

    @property
    def request_file(self) -> Path:
        return self.sealed / "request.json"

    @property
    def key_file(self) -> Path:
        return self.sealed / "key.json"

    def public(self) -> dict[str, Any]:
        """What raters see: {"test", "title", "ask", "items": [{"id", "prompt", "left", "right"}, …], …}."""
        content = _object(self.test_file)
        if content.get("kind") != KIND or not isinstance(content.get("items"), list):
            raise RunError(f"{self.test_file} isn't a blind test's.", fix="Make one: tunesmith blind new.")
        return content

    def key(self) -> dict[str, Any]:
        """Which side is whose. Raises RunError if it isn't the key that was sealed."""
        try:
            text = self.key_file.read_text(encoding="utf-8")
        except OSError:
            raise RunError(
                f"{self.key_file} is missing: without it nobody knows whose answer is whose.",
                fix="The report is made where the test was made; put the folder sealed/ back.",
            ) from None
        if _sha256(text) != self.public()["sealed_sha256"]:
            raise RunError(
                f"{self.key_file} isn't the key that was sealed when the test was drawn.",
                fix="Put the original file back. With another key the votes mean nothing.",
            )
        key: dict[str, Any] = json.loads(text)
        return key

    def unsealed(self) -> str | None:
        """When the test was unsealed (ISO time), or None."""
        return str(_object(self.unsealed_file)["at"]) if self.unsealed_file.is_file() else None

    def seal(self) -> None:
        """Make the folder for what is sealed, open to nobody else on this machine."""
        with disk_errors(self.sealed):
            self.sealed.mkdir(parents=True, exist_ok=True)
            self.sealed.chmod(0o700)

    def create(
        self,
        pairs: Sequence[Pair],
        *,
        repeats: float,
        seed: str,
        key: Mapping[str, Any],
        title: str,
        ask: str,
        references: bool,
    ) -> None:
        """Lay out the pairs and write key.json, then test.json, with which the test is there.

        `key` is what else is sealed: the models' names, rows that aren't shown, notes.
        """
        # By the system's chance, not by the seed's: ids that are seen must not tell what else was drawn.
        test, ids = secrets.token_hex(8), set[str]()
        items: list[dict[str, Any]] = []
        sides: list[dict[str, Any]] = []
        first: dict[int, str] = {}
        for place in laid_out(len(pairs), repeats, seed):
            name = _new_id(ids)
            pair = pairs[place.pair]
            left, right = (pair.a, pair.b) if place.left == "a" else (pair.b, pair.a)
            item = {"id": name, "prompt": pair.prompt, "left": left, "right": right}
            items.append(item | ({"references": list(pair.references)} if references else {}))
            sides.append({"id": name, "row": pair.id, "left": place.left, "repeat_of": first.get(place.pair)})
            first.setdefault(place.pair, name)
        sealed = json.dumps({"test": test, "seed": seed, **key, "items": sides}, ensure_ascii=False, indent=1)
        self.seal()
        write_atomic(self.key_file, sealed)
        self.key_file.chmod(0o600)
        content = {"kind": KIND, "test": test, "title": title, "ask": ask, "items": items}
        write_json(self.test_file, content | {"sealed_sha256": _sha256(sealed)})


def open_test(path: Path) -> BlindTest:
    """The blind test in a folder. Raises RunError if there is none, or if it isn't made yet."""
    test = BlindTest(path)
    if test.test_file.is_file():
        test.public()
        return test
    if test.request_file.is_file():
        raise RunError(
            f"{path} is a blind test that isn't made yet: answers are missing.",
            fix="Give the same `tunesmith blind new` again; it goes on where it stopped.",
        )
    near = sorted(str(p.parent) for p in path.absolute().parent.glob("*/test.json"))
    fix = f"Tests there: {', '.join(near[-10:])}." if near else "Make one: tunesmith blind new A B --data F."
    raise RunError(f"{path} isn't the folder of a blind test.", fix=fix)


def _new_id(taken: set[str]) -> str:
    while (name := secrets.token_hex(6)) in taken:
        pass
    taken.add(name)
    return name


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} can't be read: {error}.", fix="Restore it, or make a new test.") from None
    return content if isinstance(content, dict) else {}
