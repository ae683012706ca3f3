"""One self-contained HTML page made of sections: each brings data and the script that draws them.

A section's script registers itself with `leaf.section(name, (root, data) => ...)`. It is called once, when its section
is first shown. Everything that came from a run or a model is in `data` and reaches the page through `textContent`
alone; the page's policy allows no network and no script but its own.
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
        data: JSON-able values, NaN-free.
        script: JavaScript that registers the section; see `asset`.
        style: CSS; selectors begin with `#name`, colours are the variables of `base.css`.
        libraries: JavaScript sources that must stand before the script; each distinct one is written once.
        evaluates: a library compiles its expressions with `Function` (Vega does), which the page then allows.
    """

    name: str
    title: str
    data: Any
    script: str
    style: str = ""
    libraries: tuple[str, ...] = ()
    evaluates: bool = False


def asset(name: str) -> str:
    """Return the text of a file of `leaf/report/assets`."""
    return (ASSETS / name).read_text(encoding="utf-8")


def page(title: str, sections: Sequence[Section]) -> str:
    """Return the HTML of a page that shows one section at a time.

    Scripts are allowed by their hashes alone, so that no text of a model can become one; `eval` is, where a library of
    ours needs it.
    """
    libraries = dict.fromkeys(library for section in sections for library in section.libraries)
    scripts = [asset("base.js"), *libraries, *(section.script for section in sections), "leaf.start();"]
    scripts = [script.replace("</script", "<\\/script") for script in scripts]
    allowed = [f"'sha256-{_digest(script)}'" for script in scripts]
    allowed += ["'unsafe-eval'"] * any(section.evaluates for section in sections)
    policy = "; ".join(
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
    tabs = "".join(f'<a href="#{section.name}">{html.escape(section.title)}</a>' for section in sections)
    bodies = "".join(f'<section id="{section.name}" hidden></section>' for section in sections)
    data = "".join(f'<script type="application/json" id="data-{s.name}">{_json(s.data)}</script>' for s in sections)
    styles = "\n".join([asset("base.css"), *(section.style for section in sections)])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{styles}</style></head><body>"
        f'<header><h1>{html.escape(title)}</h1><nav aria-label="sections">{tabs}</nav>'
        '<button id="theme" type="button" aria-label="light or dark"></button></header>'
        f"<main>{bodies}</main>{data}"
        + "".join(f"<script>{script}</script>" for script in scripts)
        + "</body></html>\n"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(data: Any) -> str:
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
