"""What the book adds to its pages for screen readers."""

from book.tools.accessible import accessible

CAPTION = '<figcaption><p><span class="caption-number">Fig. 1 </span><span class="caption-text">Time &amp; <em>rate</em>\nof a "step".</span><a class="headerlink" href="#f">#</a></p></figcaption>'


def test_a_figure_without_a_name_gets_its_caption():
    found = accessible(f'<figure id="f"><svg role="img" width="9"><g></g></svg>{CAPTION}</figure>')
    assert '<svg aria-label="Time &amp; rate of a &quot;step&quot;." role="img" width="9">' in found


def test_a_name_that_is_there_stays_and_so_does_all_else():
    named = f'<figure><svg aria-label="mine" role="img"></svg>{CAPTION}</figure>'
    lone = '<svg role="img"></svg><figure><img src="x.png"></figure>'
    assert accessible(named + lone) == named + lone


def test_two_figures_keep_their_own_captions():
    one = f'<figure><svg role="img"></svg>{CAPTION}</figure>'
    two = one.replace("Time", "Memory")
    found = accessible(one + two)
    assert found.index('aria-label="Time') < found.index('aria-label="Memory')


def test_entries_of_the_bibliography_are_items_of_their_list():
    entry = '<div role="list"><div class="citation" role="doc-biblioentry">A</div></div>'
    assert accessible(entry) == entry.replace("doc-biblioentry", "listitem")
