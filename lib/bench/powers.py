"""Powers of ten as text prints them, for tables and sentences.

Introduced in chapter 1.
"""


def power_of_ten(power: int) -> str:
    """ "10⁻⁶"."""
    return "10" + f"{power}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
