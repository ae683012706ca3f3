"""A terminal that shows what a program writes to it: enough of one for rich's live views."""

import re

_PARTS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


def lines_shown(written: str) -> list[str]:
    """Play what was written, and return the lines on the terminal; nothing scrolls away and nothing wraps."""
    lines, row, column = [""], 0, 0
    for number, code, control, text in _PARTS.findall(written):
        if control == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif control == "\r":
            column = 0
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
        elif code == "A":
            row -= int(number or 1)
            assert row >= 0
        elif code == "K":
            assert number == "2"
            lines[row] = ""
        else:
            assert code in "mhl", f"an escape sequence that rich's live views do not use: {number}{code}"
    return [line.rstrip() for line in lines]
