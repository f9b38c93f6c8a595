"""The style of the bibliography: family names first, in alphabetical order, where braces and a leading "The" don't count."""

from __future__ import annotations

from typing import Any

from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting.unsrt import Style
from pybtex.style.names.lastfirst import NameStyle
from pybtex.style.sorting.author_year_title import SortingStyle
from pybtex.style.template import names, sentence


class ByName(SortingStyle):
    """The order of authors' names as a reader sees them: {{vLLM Team}} among the names with V."""

    def person_key(self, person: Any) -> str:
        key = super().person_key(person).replace("{", "").replace("}", "")
        return key.removeprefix("the ")


class FamilyNameFirst(NameStyle):
    """ "Williams, Samuel"; BibTeX's "and others" is "et al."."""

    def format(self, person: Any, abbr: bool = False) -> Any:
        return Text("et al.") if str(person) == "others" else super().format(person, abbr)


class BookStyle(Style):
    """`:style: book`: each entry begins with the name by which it is sorted; authors are separated by semicolons."""

    default_name_style = "family_name_first"
    default_sorting_style = "by_name"

    def format_names(self, role: str, as_sentence: bool = True) -> Any:
        formatted = names(role, sep="; ", sep2="; ", last_sep="; ")
        return sentence[formatted] if as_sentence else formatted


def register() -> None:
    """Makes the style known to sphinxcontrib-bibtex."""
    register_plugin("pybtex.style.names", "family_name_first", FamilyNameFirst)
    register_plugin("pybtex.style.sorting", "by_name", ByName)
    register_plugin("pybtex.style.formatting", "book", BookStyle)
