"""Values and bytes changed at random, by what parsers, systems and careless hands stumble over."""

import json
import string

VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    -(2**63) - 1,
    10**400,
    0.0,
    -0.0,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    "\n",
    "\t",
    "\0",
    "a\0b",
    "1e-4",
    "nan",
    "inf",
    "1_0",
    "0x10",
    "0o7",
    "yes",
    "~",
    "null",
    "é",
    "日本語",
    "\u202e",
    "\ufeff",
    "\ud800",
    "x\udcff",
    "\U0001f600",
    "a" * 20_000,
    "../" * 200,
    "/",
    ".",
    "..",
    "/dev/zero",
    "/dev/null",
    "/proc/self/mem",
    "loop.wav",
    "loop.yaml",
    "folder",
    "CON",
    "a" * 300,
    "%s%n",
    "${HOME}",
    "$(id)",
    "`id`",
    "{0.__class__}",
    "__import__('os')",
    "file:///etc/passwd",
    "http://[::1",
    [],
    [[]],
    {},
    [None],
    [1, "a"],
    {"a": 1},
    {"": ""},
    {"a": {"b": {"c": []}}},
    [[[[[[1]]]]]],
    {"train": "x"},
    list(range(300)),
    ["bleu"] * 50,
    "bleu",
    "leaf",
    "sft",
    "train",
]
TEXTS = [
    "\0",
    "\x1b",
    "\x85",
    "\ufeff",
    "\u2028",
    "&a ",
    "*a",
    "<<: ",
    "? ",
    "- ",
    ": ",
    "{",
    "}",
    "[",
    "]",
    "'",
    '"',
    "|",
    ">",
    "%",
    "@",
    "`",
    "!!python/object/apply:os.system ['id']",
    "!!int ",
    "!!float x",
    "!!binary a",
    "!!timestamp 1",
    "!!set {a}",
    "!!omap [a: 1]",
    "---\n",
    "...\n",
    "\t",
    "\r",
    "\r\n",
    ",",
    ";",
    "#",
    "\\",
    "\\u0000",
    "\\ud800",
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 5000,
    "2024-13-45",
    "12:60:99",
    "[" * 3000,
    "{" * 3000,
    "(" * 50,
    "=",
    "~",
    "\n" * 50,
    "a: &a [*a]\n",
    "seed: 1\nseed: 2\n",
    "<<: *x\n",
    "<<: [1]\n",
    '{"a": ' * 2000,
]
# A recipe is its user's own file: nobody nests it thousands deep or puts half characters into it.
RECIPE_TEXTS = [text for text in TEXTS if len(text) < 1000 and text not in ("\\ud800", "\\u0000", "!!timestamp 1")]


def mutated_value(draw, value, depth=0):
    """Return a value changed somewhere."""
    if depth < 4 and draw.random() < 0.8:
        if isinstance(value, dict) and value:
            key = draw.choice(list(value))
            name = str(key)
            kind = draw.randrange(5)
            if kind == 0:
                return {k: v for k, v in value.items() if k != key}
            if kind == 1:
                return {
                    (draw.choice([name + "x", name[1:], name.upper(), "\0", 5, None]) if k == key else k): v
                    for k, v in value.items()
                }
            return {**value, key: mutated_value(draw, value[key], depth + 1)}
        if isinstance(value, list) and value:
            at = draw.randrange(len(value))
            return [*value[:at], mutated_value(draw, value[at], depth + 1), *value[at + 1 :]]
    if isinstance(value, int | float) and abs(value) < 1e9 and draw.random() < 0.5:
        return draw.choice([-value, value * 1000, value + 0.5, str(value), [value]])
    if isinstance(value, str) and draw.random() < 0.3:
        return "".join(draw.choice([c, c, c, c.upper(), draw.choice(string.printable), ""]) for c in value)
    return draw.choice(VALUES)


def in_recipes(value):
    """Tell whether somebody may write such a value into a recipe."""
    text = json.dumps(value, default=str)
    return not any(odd in text for odd in (r"\ud", r"\u0000", "0" * 400))


def mutated_bytes(draw, content, texts=TEXTS):
    """Return bytes cut, flipped, repeated, spliced with what a parser stumbles over, or in another encoding."""
    for _ in range(draw.choice([0, 1, 1, 2, 4])):
        at = draw.randrange(len(content) + 1)
        match draw.randrange(7):
            case 0:
                content = content[:at]
            case 1:
                content = content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]
            case 2:
                content = content[:at] + content[max(0, at - 30) :]
            case 3 | 4:
                content = content[:at] + draw.choice(texts).encode("utf-8", "surrogatepass") + content[at:]
            case 5:
                lines = content.splitlines(keepends=True)
                draw.shuffle(lines)
                content = b"".join(lines)
            case 6:
                try:
                    content = content.decode().encode(
                        draw.choice(["utf-16", "utf-8-sig", "latin-1", "utf-32", "cp037"])
                    )
                except UnicodeError:
                    content = content[::-1]
    return content
