"""Write whole numbers in words, in English, metropolitan French and Italian, 0 to 999,999."""

_EN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_EN_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
_EN_ORDINAL = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
_FR = (
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept dix-huit "
    "dix-neuf"
).split()
_FR_TENS = {2: "vingt", 3: "trente", 4: "quarante", 5: "cinquante", 6: "soixante", 8: "quatre-vingt"}
_IT = (
    "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici "
    "diciassette diciotto diciannove"
).split()
_IT_TENS = "zero dieci venti trenta quaranta cinquanta sessanta settanta ottanta novanta".split()


def english(n: int) -> str:
    """Write a number in English words: 21 → twenty-one, 245 → two hundred forty-five."""
    if n >= 1000:
        head = f"{english(n // 1000)} thousand"
        return head if n % 1000 == 0 else f"{head} {english(n % 1000)}"
    if n >= 100:
        head = f"{_EN[n // 100]} hundred"
        return head if n % 100 == 0 else f"{head} {english(n % 100)}"
    if n < 20:
        return _EN[n]
    return _EN_TENS[n // 10] + (f"-{_EN[n % 10]}" if n % 10 else "")


def english_ordinal(n: int) -> str:
    """Write an ordinal of 1 to 31 in English words: 21 → twenty-first."""
    if n <= 20:
        return _EN_ORDINAL[n]
    return "thirtieth" if n == 30 else f"{_EN_TENS[n // 10]}-{_EN_ORDINAL[n % 10]}"


def french(n: int, feminine: bool = False) -> str:
    """Write a number in French words; `feminine` where what is counted is: 21 → vingt et un / vingt et une."""
    if n >= 1000:
        head = "mille" if n < 2000 else f"{_french_stem(n // 1000)} mille"
        return head if n % 1000 == 0 else f"{head} {french(n % 1000, feminine)}"
    if n >= 100:
        head = "cent" if n < 200 else f"{_FR[n // 100]} cent"
        if n % 100 == 0:
            return head + ("s" if n > 100 else "")
        return f"{head} {french(n % 100, feminine)}"
    if n == 80:
        return "quatre-vingts"
    if n < 20:
        words = _FR[n]
    else:
        tens, unit = (n // 10 - 1, n % 10 + 10) if n // 10 in (7, 9) else (n // 10, n % 10)
        joins_with_et = unit in (1, 11) and tens < 8
        words = _FR_TENS[tens] + (f" et {_FR[unit]}" if joins_with_et else f"-{_FR[unit]}" if unit else "")
    return words + "e" if feminine and (words == "un" or words.endswith((" un", "-un"))) else words


def _french_stem(n: int) -> str:
    """Write a number as it is before `mille`, where quatre-vingts and cents lose their s."""
    words = french(n)
    return words[:-1] if words.endswith(("vingts", "cents")) else words


def italian(n: int) -> str:
    """Write a number in Italian words: 21 → ventuno, 23 → ventitré, 28 → ventotto, 108 → centootto, 180 → centottanta.

    Cento keeps its o before uno and otto, and loses it before ottanta, as is usual.
    """
    if n >= 1000:
        head = "mille" if n < 2000 else f"{italian(n // 1000)}mila"
        return head + _italian_rest(n % 1000)
    if n >= 100:
        head = "cento" if n < 200 else f"{_IT[n // 100]}cento"
        return (head[:-1] if 80 <= n % 100 < 90 else head) + _italian_rest(n % 100)
    if n < 20:
        return _IT[n]
    tens, unit = _IT_TENS[n // 10], n % 10
    if unit in (1, 8):
        tens = tens[:-1]
    return tens + ("" if unit == 0 else "tré" if unit == 3 else _IT[unit])


def _italian_rest(n: int) -> str:
    """Write the tail of a compound number: nothing for 0, and tre takes its accent."""
    return "" if n == 0 else "tré" if n == 3 else italian(n)
