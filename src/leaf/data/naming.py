"""Find a file whose name the disk writes in another Unicode form than the table that names it."""

import os
import unicodedata
from itertools import product


def as_on_disk(path: str) -> str:
    """Return the path under which a file is there: composed or decomposed, as macOS and its archives write names.

    Where it is there under none, the path is returned as it came.
    """
    if path.isascii() or os.path.lexists(path):
        return path
    for forms in product(("NFC", "NFD"), repeat=2):
        folder, name = (
            unicodedata.normalize(form, part) for form, part in zip(forms, os.path.split(path), strict=True)
        )
        found = os.path.join(folder, name)
        if os.path.lexists(found):
            return found
    return path
