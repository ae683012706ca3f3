"""One self-contained HTML page made of sections: each brings data and the scripts that draw them.

A section's last script registers it with `leaf.section(name, (root, data) => ...)`. The page calls it once, when the
section is first shown. Everything that came from a run or a model is in `data` and reaches the page as text nodes only.
The page's policy allows no network and no scripts but its own.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

ASSETS = resources.files("leaf.report") / "assets"


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: lower-case letters; the address of the section is `#name`.
        title: the words on its tab.
        data: JSON values without NaN.
        scripts: JavaScript sources in the order in which they run. The last one registers the section, those before it
            define names for those after them. A source that several sections name is written once.
        styles: CSS sources, written once as well; selectors begin with `#name`, colours are variables of `base.css`.
        evaluates: a script compiles expressions with `Function`, as Vega does; the page then allows that.
    """

    name: str
    title: str
    data: Any
    scripts: tuple[str, ...]
    styles: tuple[str, ...] = ()
    evaluates: bool = False


def assets(*names: str) -> tuple[str, ...]:
    """Read files of `leaf/report/assets`."""
    return tuple((ASSETS / name).read_text(encoding="utf-8") for name in names)


def page(title: str, sections: Sequence[Section]) -> str:
    """Write the HTML of a page that shows one section at a time."""
    scripts = dict.fromkeys([*assets("base.js"), *(script for section in sections for script in section.scripts)])
    first, *others = [script.replace("</script", "<\\/script") for script in (*scripts, "leaf.start();")]
    styles = dict.fromkeys([*assets("base.css"), *(style for section in sections for style in section.styles)])
    css = "\n".join(styles)
    policy = _policy([first, *others], evaluates=any(section.evaluates for section in sections))
    tabs = "".join(f'<a href="#{section.name}">{html.escape(section.title)}</a>' for section in sections)
    bodies = "".join(f'<section id="{section.name}" hidden></section>' for section in sections)
    data = "".join(f'<script type="application/json" id="data-{s.name}">{_json(s.data)}</script>' for s in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{css}</style><script>{first}</script></head><body>"
        f'<header><h1>{html.escape(title)}</h1><nav aria-label="sections">{tabs}</nav>'
        '<button id="theme" type="button" aria-label="light or dark"></button></header>'
        f"<main>{bodies}</main>{data}" + "".join(f"<script>{script}</script>" for script in others) + "</body></html>\n"
    )


def _policy(scripts: Sequence[str], *, evaluates: bool) -> str:
    """Write the page's content security policy: only scripts with these hashes run, so no text of a model can."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = [f"'sha256-{digest}'" for digest in digests] + ["'unsafe-eval'"] * evaluates
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(allowed)}",
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "media-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _json(data: Any) -> str:
    """Write data as JSON that cannot end its script element: `<`, `>` and `&` are escaped, lone surrogates replaced."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
