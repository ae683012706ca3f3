"""Text that may come from a model, a file or an error, made harmless to a terminal and to a reader."""

import unicodedata

_BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # these reorder the text around them


def visible(text: str, keep: str = "") -> str:
    """Spell out the characters that would steer a terminal: control, bidirectional and surrogate ones.

    C0 controls become their pictures (ESC is ␛), the others `\\u{...}`. Characters in `keep` stay.
    """
    return "".join(char if char in keep else _visible(char) for char in text)


def _visible(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)  # where Unicode has pictures of control characters
    if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(char) in _BIDI:
        return f"\\u{{{code:x}}}"
    return char
