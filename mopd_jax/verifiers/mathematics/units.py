r"""Which words behind a number are its unit, as in `5\text{ cm}`, and which units are the same.

Pure functions on strings.
"""

from __future__ import annotations

import re


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The case of symbols counts, that of words does not. Single letters are units only in \text{}.
_SYMBOLS = _set(
    """m s g h A K N C J W V F T H L l S u kN kJ MJ kW MW kV mV mA kA Pa kPa MPa Hz kHz MHz
    GHz mol mmol eV keV MeV GeV nm pm fm mm cm dm km mg kg ml mL dL cl cL kL ms us ns ps
    rad sr lm lx Wb Bq Gy kWh Wh cal kcal Cal atm bar torr psi dB M mM F pF nF mF pC nC mC
    ohm ft yd mi lb lbs oz gal pt qt hr hrs sec min mph kph rpm km/h deg amu D GB MB KB kB
    TB USD EUR GBP"""
)
_WORDS = _set(
    """millimeter millimetre centimeter centimetre decimeter decimetre kilometer kilometre
    meter metre inch inches foot feet yard mile gram kilogram milligram ton tonne pound
    ounce liter litre milliliter millilitre gallon quart pint cup second minute hour day
    week month year decade century dollar cent penny pennies nickel dime quarter euro yuan
    rupee degree celsius fahrenheit kelvin radian unit newton joule watt kilowatt volt
    ampere amp coulomb farad tesla pascal hertz mole calorie kilocalorie byte bit square
    cubic sq cu per point percent pct nautical light"""
)
# Words that change the number, so that they are not its unit.
_NO_NOUNS = _set(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy
    eighty ninety hundred thousand million billion trillion quadrillion dozen score gross
    lakh crore half halve third fourth fifth sixth seventh eighth ninth tenth hundredth
    thousandth millionth billionth pair couple twice thrice double triple quadruple
    squared cubed square cube root factorial inverse reciprocal negative positive minus
    plus time over divided modulo mod choose power or and not no nor but if then else when
    where unless except without with versus vs to from through until of in on at by for as
    than is are was were isn be equal more less most least fewer greater larger smaller
    above below under up down exactly about approximately around roughly nearly almost
    only either neither both each all any none some never maybe perhaps possibly unknown
    wrong false true right correct incorrect undefined impossible other another base
    mn bn mil doubled tripled halved nope
    remainder infinity pi ago later too also even odd"""
)
# Other spellings, without a plural s, and the name under which they are compared.
NAMES = {
    "dollar": "$",
    "degree": "deg",
    "°": "deg",
    "inche": "inch",
    "feet": "ft",
    "foot": "ft",
    "sec": "second",
    "metre": "meter",
    "litre": "liter",
    "lb": "pound",
    "hr": "hour",
    "min": "minute",
}
# Symbols of names, to compare a unit that is written out with one that is not.
_SYMBOL_OF = {
    "gram": "g",
    "meter": "m",
    "litre": "L",
    "liter": "L",
    "second": "s",
    "minute": "min",
    "hour": "h",
    "newton": "N",
    "joule": "J",
    "watt": "W",
    "volt": "V",
    "ampere": "A",
    "amp": "A",
    "kelvin": "K",
    "pascal": "Pa",
    "hertz": "Hz",
    "mole": "mol",
    "coulomb": "C",
    "tesla": "T",
    "farad": "F",
    "mile": "mi",
    "yard": "yd",
    "pound": "lb",
    "ounce": "oz",
}
_PREFIX_OF = {"milli": "m", "centi": "c", "deci": "d", "kilo": "k", "mega": "M", "": ""}
_FULL_NAME = re.compile(
    rf"({'|'.join(_PREFIX_OF)})({'|'.join(sorted(_SYMBOL_OF, key=len, reverse=True))})"
)
_CONTENT = re.compile(r"[A-Za-z\u00b5\u03bc\u03a9$\u20ac\u00a3./ ^0-9-]*")
_WORD = re.compile(r"[A-Za-z\u00b5\u03bc\u03a9]+")
_POWER = re.compile(r"\^ ?-?[0-9]")


def is_unit(text: str) -> bool:
    """Whether words, without commands and braces, can be a unit behind a number.

    They are listed units, or one plain noun: not a number word, multiplier or connective, and
    without exponent. With "per", listed units may stand beside the noun.
    """
    bare = _POWER.sub(" ", text.replace("\\cdot", " ").replace("\\times", " "))
    if not _CONTENT.fullmatch(bare) or any(c.isdigit() for c in bare):
        return False
    words = _WORD.findall(bare)
    others = [word for word in words if not _listed(word)]
    if not others:
        return True
    if len(others) > 1 or not _noun(others[0]) or _POWER.search(text):
        return False
    return len(words) == 1 or "per" in words


def is_listed(text: str) -> bool:
    """Whether all words are listed units and not single letters alone, as in \\textbf{km/h}."""
    words = _WORD.findall(text)
    return any(len(word) > 1 for word in words) and all(map(_listed, words))


def same(a: str, b: str) -> bool:
    """Whether two names mean one unit: kilogram is kg, meterpersecond is m/s."""
    return a == b or _symbols(a) == _symbols(b)


def _symbols(name: str) -> str:
    """The unit in symbols, as far as they are known."""
    name = name.replace("metre", "meter").replace("degcelsiu", "degC")
    name = _FULL_NAME.sub(lambda match: _PREFIX_OF[match[1]] + _SYMBOL_OF[match[2]], name)
    name = name.replace("per", "/").replace("ml", "mL")
    for word, power in (("square", "^2"), ("sq", "^2"), ("cubic", "^3"), ("cu", "^3")):
        if name.startswith(word) and "/" not in name:
            return name.removeprefix(word) + power
    spelled = {"l": "L", "degfahrenheit": "degF", "mph": "mi/h", "kph": "km/h", "kmph": "km/h"}
    return spelled.get(name, name)


def is_letter(text: str) -> bool:
    """Whether the words are single letters, which may be variables."""
    words = _WORD.findall(text)
    return bool(words) and all(len(word) == 1 for word in words)


def _listed(word: str) -> bool:
    lower = word.lower()
    if word in _SYMBOLS or lower in _WORDS:
        return True
    return len(word) > 3 and (lower.removesuffix("s") in _WORDS or lower[:-1] in _SYMBOLS)


def _noun(word: str) -> bool:
    lower = word.lower()
    singular = lower.removesuffix("s")
    return len(word) > 1 and not (_NO_NOUNS & {lower, singular}) and not lower.endswith("ly")
