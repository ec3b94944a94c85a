"""Text files as people save them: UTF-8 with or without a byte order mark, UTF-16, or a Western program's Windows-1252.

A file is opened by `encoding` with errors="surrogateescape", so that bytes that are not UTF-8 survive; `readable` makes
letters of them, cell by cell, since programs mix encodings.
"""

import codecs


def encoding(head: bytes) -> str:
    """Python's name of the encoding of a text that begins with `head`: UTF-16 where its bytes say so, else UTF-8."""
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    even, odd = head[:8:2], head[1:8:2]  # without a mark: of ASCII's letters, one byte each is 0
    if odd and not any(odd) and all(even):
        return "utf-16-le"
    if odd and not any(even) and all(odd):
        return "utf-16-be"
    return "utf-8-sig"


def readable(text: str) -> str:
    """`text`, decoded with surrogateescape, where bytes that are not UTF-8 become the letters of Windows-1252."""
    if is_utf8(text):
        return text
    return text.encode("utf-8", "surrogateescape").decode("cp1252", "backslashreplace")


def is_utf8(text: str) -> bool:
    """Whether `text`, decoded with surrogateescape, came of bytes that are UTF-8."""
    return not any("\udc80" <= letter <= "\udcff" for letter in text)
