"""Bytes of a text file -> text: by its mark, else UTF-8, else GB18030; never a guess that garbles.

GB18030 accepts almost any bytes, so damaged UTF-8, Big5 or Western text would come out as wrong Chinese.
GB18030 it is only where the result looks like text; otherwise the error names the byte.
"""

from __future__ import annotations

import codecs
import re

from tunesmith.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    ("\ufeff".encode("gb18030"), "gb18030"),
)
_FIX = "Save the file as UTF-8 (in an editor: save with encoding; or: iconv -f ENCODING -t UTF-8)."


def decode(data: bytes, path: str) -> tuple[str, str]:
    """The text of a file and the name of its encoding. Raises DataError with the first bad byte's offset."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            try:
                return data[len(mark) :].decode(name), f"{name} with BOM"
            except UnicodeDecodeError as error:
                raise _broken(data, path, name, error.start + len(mark)) from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _decode_gb18030(data, path, error.start), "gb18030"
    if (nul := text.find("\0")) >= 0:
        raise DataError(
            f"{path} isn't a text file: byte {len(text[:nul].encode())} is NUL.",
            fix="Is it UTF-16 without its mark, or a packed file? Save it as UTF-8 text.",
        )
    return text, "utf-8"


def _decode_gb18030(data: bytes, path: str, first_bad: int) -> str:
    as_utf8 = data.decode("utf-8", errors="replace")
    # In real GB18030, about one faulty byte in fourteen stands beside a long UTF-8 sequence (Tang verse).
    long_sequences = sum(char >= "\u0800" and char != "\ufffd" for char in as_utf8)
    if b"\0" in data or long_sequences > as_utf8.count("\ufffd"):
        raise _broken(data, path, "utf-8", first_bad)
    try:
        text = data.decode("gb18030")
    except UnicodeDecodeError as error:
        raise _broken(data, path, "utf-8", first_bad, also=f"gb18030 fails at byte {error.start}") from None
    if not _looks_right(text):
        raise _broken(data, path, "utf-8", first_bad, also="as gb18030 it would be gibberish")
    return text


def _looks_right(text: str) -> bool:
    foreign = _FOREIGN.findall(text)
    characters = sum(map(len, foreign))
    # Big5 read as GB18030 is full of private-use characters; Western text has single ones between letters.
    private = sum("\ue000" <= char < "\uf900" for run in foreign for char in run)
    alone = sum(len(run) == 1 for run in foreign)
    return private * 100 <= characters and alone * 2 <= characters


_FOREIGN = re.compile(r"[^\x00-\x7f]+")


def _broken(data: bytes, path: str, name: str, offset: int, also: str = "") -> DataError:
    line = data.count(b"\n", 0, offset) + 1
    byte = f"0x{data[offset]:02x}" if offset < len(data) else "the end"
    reason = f"byte {offset} ({byte}, line {line}) isn't {name}" + (f"; {also}" if also else "")
    return DataError(f"{path} can't be decoded: {reason}.", fix=_FIX)
