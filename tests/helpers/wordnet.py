"""A WordNet small enough to write here."""


def write_wordnet(folder):
    """Write a WordNet of one synset {car, auto, automobile} in its real format (wndb(5WN)); offsets are bytes."""
    folder.mkdir()
    licence = "  1 This is a hand-made test dictionary.  \n  2 WordNet 3.0 Copyright 2006 by Princeton University.  \n"
    for part in ("adj", "adv", "verb", "noun"):
        data = index = licence
        if part == "noun":
            offset = len(data)
            data += f"{offset:08d} 06 n 03 car 0 auto 0 automobile 0 000 | a motor vehicle  \n"
            index += "".join(f"{word} n 1 0 1 1 {offset:08d}  \n" for word in ("auto", "automobile", "car"))
        (folder / f"data.{part}").write_text(data)
        (folder / f"index.{part}").write_text(index)
        (folder / f"{part}.exc").write_text("")
    return folder
