"""HTML, EPUB and DOCX -> text with Markdown's headings and lists. Nothing outside the file is looked at."""

from __future__ import annotations

import codecs
import io
import lzma
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from tunesmith.data.encoding import decode
from tunesmith.errors import MissingExtraError, TunesmithError
from tunesmith.synth.reading import Read, Unreadable

try:
    import mammoth
except ImportError:
    mammoth = None
try:
    from lxml import etree
    from lxml import html as lxml_html
except ImportError:
    etree = lxml_html = None

LARGEST_INSIDE = 512 * 2**20  # bytes of an archive, unpacked
LARGEST_XML = 64 * 2**20  # bytes of a part of a .docx
LARGEST_TEXT = 64 * 2**20  # characters that come out of an archive
PACKED, SMALL = (
    100,
    10 * 2**20,
)  # what unpacks to so many times its size and more than so many bytes is a bomb
_HIDDEN = {"script", "style", "noscript", "template", "head", "svg", "rt", "rp", "iframe", "object"}
_FURNITURE = {"nav", "footer", "aside", "form", "button", "select"}
_BLOCKS = {
    "address", "article", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div", "dl",
    "dt", "fieldset", "figcaption", "figure", "header", "hr", "html", "legend", "li", "main", "ol", "p",
    "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul", "h1", "h2", "h3", "h4", "h5",
    "h6",
}  # fmt: skip
_PARAGRAPHS = {"p", "blockquote", "table", "pre", "ol", "ul", "h1", "h2", "h3", "h4", "h5", "h6"}
LINE, PARAGRAPH = "\x1e", "\x1d"  # ends of lines and paragraphs, however many elements end there
_SPACES = re.compile(r"\s{2,}|[\t\r\n\x1d\x1e]")
_CHINESE = re.compile(r"[\u3000-\u9fff\uff00-\uffef]")
_CHARSET = re.compile(rb"<(?:meta|\?xml)[^>]*?(?:charset|encoding)\s*=\s*[\"']?\s*([\w-]+)", re.IGNORECASE)
_NO_CHARSETS = {"undefined", "idna", "punycode", "unicode-escape", "raw-unicode-escape", "utf-7"}
_BROKEN = (
    KeyError, ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
_OLE = b"\xd0\xcf\x11\xe0"  # of an encrypted .docx, and of a .doc
_STYLES = (
    "\n".join(f"p[style-name='标题 {n}'] => h{n}:fresh" for n in range(1, 7))
    + "\np[style-name='Title'] => h1:fresh"
)


def read_html(data: bytes, name: str) -> Read:
    """A page's text without scripts, navigation and forms. Raises Unreadable, MissingExtraError."""
    _check(lxml_html, "HTML", "lxml")
    text, left_out = page_text(_decoded(data, name))
    return Read(text, _furniture(left_out))


def read_epub(data: bytes, name: str) -> Read:
    """The chapters in the book's own order. Raises Unreadable, MissingExtraError."""
    _check(lxml_html, "EPUB", "lxml")
    with _archive(data) as book:
        container = _xml(book, "META-INF/container.xml")
        roots = container.xpath("//*[local-name()='rootfile']/@full-path")
        if not roots:
            raise Unreadable("it names no content (META-INF/container.xml)")
        package = _xml(book, roots[0])
        items = {
            item.get("id"): item
            for item in package.xpath("//*[local-name()='manifest']/*[local-name()='item']")
        }
        locked = _locked(book)
        texts, missing, left_out = list[str](), list[str](), 0
        chapters, again = set[str](), 0
        for place in package.xpath("//*[local-name()='spine']/*[local-name()='itemref']/@idref"):
            item = items.get(place)
            if item is None or "nav" in (item.get("properties") or "").split():
                continue
            file = posixpath.normpath(
                posixpath.join(posixpath.dirname(roots[0]), unquote(item.get("href") or ""))
            )
            if file in chapters:
                again += 1
                continue
            chapters.add(file)
            if file in locked:
                raise Unreadable("it is encrypted (DRM)")
            try:
                text, out = page_text(_decoded(book.read(file), f"{name}/{file}"))
            except (Unreadable, *_BROKEN):
                missing.append(file)
                continue
            texts.append(text)
            left_out += out
            _check_text(sum(map(len, texts)))
    notes = []
    if missing:
        notes.append(f"{len(missing)} of {len(chapters)} chapters can't be read: {', '.join(missing[:5])}")
    if again:
        notes.append(f"chapters that come again are read once: {again}")
    return Read("\n\n".join(filter(None, texts)), (*notes, *_furniture(left_out)))


def read_docx(data: bytes, _name: str) -> Read:
    """Paragraphs, headings, lists, tables and footnotes. Raises Unreadable, MissingExtraError."""
    _check(mammoth, "DOCX", "mammoth")
    _check(lxml_html, "DOCX", "lxml")
    if data.startswith(_OLE):
        raise Unreadable("it is encrypted, or an old .doc with another name")
    with _archive(data) as file:
        if "word/document.xml" not in file.namelist():
            raise Unreadable("it is no Word document (word/document.xml isn't in it)")
        for info in file.infolist():
            if info.filename.endswith((".xml", ".rels")) and info.file_size > LARGEST_XML:
                raise Unreadable(_above(info.filename, info.file_size, LARGEST_XML))
    images = 0

    def skip(_image: Any) -> list[Any]:
        nonlocal images
        images += 1
        return []

    try:
        found = mammoth.convert_to_html(io.BytesIO(data), style_map=_STYLES, convert_image=skip)
    except Exception as error:  # mammoth lets through whatever its parsers raise
        raise Unreadable(f"it is damaged ({type(error).__name__})") from None
    _check_text(len(found.value))
    text, _ = page_text(found.value)
    return Read(text, (f"{images} pictures left out",) if images else ())


def page_text(page: str) -> tuple[str, int]:
    """The text of HTML, and how many characters of navigation and forms were left out."""
    if not page.strip():
        return "", 0
    # A declaration of an encoding in a text that is decoded already would be an error.
    page = re.sub(r"^\s*<\?xml[^>]*\?>", "", page)
    parser = lxml_html.HTMLParser(no_network=True, huge_tree=True)
    try:
        tree = lxml_html.document_fromstring(page, parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError):
        return "", 0
    # libxml2 leaves out what is deeper, and says so here alone.
    if deep := next((one for one in parser.error_log if "Excessive depth" in one.message), None):
        raise Unreadable(f"elements that are never closed, or too many in one another (line {deep.line})")
    left_out: list[int] = []
    text = "".join(_pieces(tree, left_out)).replace("\xa0", " ")
    text = _SPACES.sub(_broken, text)
    lines = (re.sub(r"[ \t\r\f\v]+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(lines).strip(), sum(left_out)


def _pieces(tree: Any, left_out: list[int]) -> Iterator[str]:
    """The text in order, with marks for blocks. Without recursion: elements may be 2,048 deep."""
    numbers: dict[Any, int] = {}  # of the items of each <ol>
    open_: list[tuple[Any, bool]] = [(tree, False)]
    while open_:
        element, closing = open_.pop()
        tag = element.tag if isinstance(element.tag, str) else ""
        if closing:
            if tag in _BLOCKS:
                yield _break(element, tag)
            elif tag in ("td", "th") and element.getnext() is not None:
                yield " | "
        elif tag and tag not in _HIDDEN and tag not in _FURNITURE:
            yield from _opened(element, tag, numbers)
            yield element.text or "" if tag == "pre" else _flat(element.text)
            open_.append((element, True))
            open_ += [(child, False) for child in element.iterchildren(reversed=True)]
            continue
        elif tag in _FURNITURE:
            left_out.append(len("".join(element.itertext()).strip()))
        yield _flat(element.tail)


def _opened(element: Any, tag: str, numbers: dict[Any, int]) -> Iterator[str]:
    if tag == "br":
        yield "\n"
    elif re.fullmatch("h[1-6]", tag):
        yield PARAGRAPH + "#" * int(tag[1]) + " "
    elif tag == "li":
        parent = element.getparent()
        if parent is not None and parent.tag == "ol":
            numbers[parent] = numbers.get(parent, 0) + 1
            yield f"{LINE}{numbers[parent]}. "
        else:
            yield f"{LINE}- "
    elif tag in _BLOCKS:
        yield _break(element, tag)


def _break(element: Any, tag: str) -> str:
    """What stands before and behind a block."""
    parent = element.getparent()
    if tag == "p" and parent is not None and parent.tag in ("li", "td", "th"):
        return " "
    return PARAGRAPH if tag in _PARAGRAPHS else LINE


def _flat(text: str | None) -> str:
    """Text of a page, in which a line's end is a space; between Chinese characters it is none."""
    return _SPACES.sub(_joined, text or "")


def _joined(found: re.Match[str]) -> str:
    whole, begin, end = found.string, found.start(), found.end()
    if "\n" in found[0] and _CHINESE.match(whole[begin - 1 : begin]) and _CHINESE.match(whole[end : end + 1]):
        return ""
    return re.sub(r"[ \t\r\n]+", " ", found[0])


def _broken(found: re.Match[str]) -> str:
    """A run of white space with marks in it -> the ends of a line or of a paragraph."""
    marks = [at for at in map(found[0].find, (PARAGRAPH, LINE)) if at >= 0]
    if not marks:
        return found[0]
    return found[0][: min(marks)].rstrip(" \n") + ("\n\n" if PARAGRAPH in found[0] else "\n")


def _decoded(data: bytes, name: str) -> str:
    declared = _CHARSET.search(data[:2048])
    if declared:
        codec = declared[1].decode("ascii").lower()
        try:
            if codecs.lookup(codec).name not in _NO_CHARSETS:
                return data.decode("gb18030" if codec in ("gb2312", "gbk") else codec)
        except (LookupError, UnicodeError):
            pass  # its own word on itself is wrong; the bytes decide
    try:
        return decode(data, name)[0]
    except TunesmithError as error:
        raise Unreadable(error.what.removeprefix(name).strip()) from None


def _archive(data: bytes) -> zipfile.ZipFile:
    try:
        found = zipfile.ZipFile(io.BytesIO(data))
        unpacked = sum(info.file_size for info in found.infolist())
        encrypted = any(info.flag_bits & 1 for info in found.infolist())
    except (zipfile.BadZipFile, ValueError, OSError):
        raise Unreadable("it is damaged, or isn't what its ending says") from None
    if encrypted:
        raise Unreadable("it is encrypted and asks for a password")
    if unpacked > LARGEST_INSIDE:
        raise Unreadable(_above("unpacked, it", unpacked, LARGEST_INSIDE))
    if unpacked > max(SMALL, PACKED * len(data)):
        raise Unreadable(f"it unpacks to {unpacked // len(data):,} times its size, and {PACKED} is the limit")
    return found


def _above(what: str, size: int, limit: int) -> str:
    return f"{what} has {size / 2**20:,.0f} MiB, and {limit // 2**20} are the limit"


def _check_text(characters: int) -> None:
    if characters > LARGEST_TEXT:
        raise Unreadable(f"its text has more than {LARGEST_TEXT:,} characters, which is the limit")


def _xml(book: zipfile.ZipFile, file: str) -> Any:
    try:
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
        return etree.fromstring(book.read(file), parser)
    except (etree.XMLSyntaxError, *_BROKEN):
        raise Unreadable(f"it is damaged: {file} is missing or isn't XML") from None


def _locked(book: zipfile.ZipFile) -> set[str]:
    """Files that are encrypted; fonts often are in books whose text isn't."""
    if "META-INF/encryption.xml" not in book.namelist():
        return set()
    found = _xml(book, "META-INF/encryption.xml").xpath("//*[local-name()='CipherReference']/@URI")
    return {posixpath.normpath(unquote(one)) for one in found}


def _furniture(characters: int) -> tuple[str, ...]:
    return (f"navigation and forms left out: {characters:,} characters",) if characters else ()


def _check(package: Any, what: str, name: str) -> None:
    if package is None:
        raise MissingExtraError(f"Reading {what}", name, "documents")
