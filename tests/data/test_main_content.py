"""The text of an article is kept whole, and what is around it goes."""

import time

import pytest

from data import web

ARTICLE = "".join(
    f"<p>Sentence number {number} of an article that is long enough to be one.</p>" for number in range(9)
)


def text(page: str, article: bool = True) -> str:
    outcome = web.text_of(page.encode(), "utf-8", article)
    assert not outcome.reason
    return outcome.text


@pytest.mark.parametrize(
    ("markup", "kept"),
    [
        ("<p>It costs 5<span>\u20ac</span> a day.</p>", "It costs 5\u20ac a day."),
        ("<p><ruby>\u732b<rt>\u306d\u3053</rt></ruby>\u3067\u3059</p>", "\u732b\u306d\u3053\u3067\u3059"),
        ("<p>\u65e5\u672c<a>\u8a9e</a>\u306e<em>\u6587</em></p>", "\u65e5\u672c\u8a9e\u306e\u6587"),
        ("<p>\u0e44<b>\u0e17</b>\u0e22 \ud55c<i>\uae00</i></p>", "\u0e44\u0e17\u0e22 \ud55c\uae00"),
        ("<p>Well<span>\U0001f600</span> <i>\u2713</i> done</p>", "Well\U0001f600 \u2713 done"),
        ("<p>E=mc<sup>2</sup> and H<sub>2</sub>O<sup>\u2020</sup></p>", "E=mc2 and H2O\u2020"),
        ("<p>Seen on <time>5 May</time> by <a rel=author>Ann</a>.</p>", "Seen on 5 May by Ann."),
        ("<p>Type <code>x</code><kbd>y</kbd>, <var>n</var> times</p>", "Type xy, n times"),
        ("<ul><li>one <code>a.b</code></li><li>two</li></ul>", "\u2022 one a.b\n  \u2022 two"),
        ("<ol><li>first</li><li>second <code>c</code></li></ol>", "1. first\n  2. second c"),
        ("<ul><li><a href=x>See</a> the <code>manual</code> of it</li></ul>", "\u2022 See the manual of it"),
        ("<h3><a id=x></a>A heading</h3><p>Its section.</p>", "A heading\n\nIts section."),
        ("<h3><a id=x>A heading</a></h3><p>Its section.</p>", "A heading\n\nIts section."),
        ("<h2>Usage<a class=headerlink href='#usage'>\u00b6</a></h2><p>So.</p>", "Usage\n\nSo."),
        ("<div class=section><h3 class=title><a id=s></a>7.1. X</h3><p>Y</p></div>", "7.1. X\n\nY"),
        ("<dl><dt><code>-v</code><dd>more words<dt>-q<dd>fewer</dl>", "-v\nmore words\n-q\nfewer"),
        ("<table><tr><th>a<th>b<tr><td>1<td><code>f(x)</code></table>", "a\t\tb\n1\t\tf(x)"),
        ("<pre>def f():\n    return 1\n\nf()</pre>", "def f():\n    return 1\n\nf()"),
        ("<details><summary>More</summary>hidden at first</details>", "More\nhidden at first"),
        ("<div class=sidebar><p>A box of the text, without links.</p></div>", "A box of the text, without links."),
        ("<div class=section id=menus><h3>Menus</h3><p>How they work.</p></div>", "How they work."),
        ("<section id=copyright><h2>Copyright</h2><p>Who may copy.</p></section>", "Who may copy."),
        ("<table><tr><td><pre>if a:\n  b</pre></td></tr></table>", "if a:\n  b"),
        (
            "<div class=table><a id='x'></a><table><tr><th>RFC<th>What</tr>"
            + "".join(f"<tr><td><a href=x>rfc193{n}</a><td><a href=y>Protocol {n}</a></tr>" for n in range(9))
            + "</table></div>",
            "rfc1938\t\tProtocol 8",
        ),
        ("<blockquote><p>So be it.</p><footer>Seneca, Letters</footer></blockquote>", "Seneca, Letters"),
    ],
)
def test_the_text_of_an_article_is_kept(markup: str, kept: str) -> None:
    for page in (f"<body>{ARTICLE}{markup}</body>", f"<body><div>{ARTICLE}</div>{markup}", f"<main>{markup}{ARTICLE}"):
        assert kept in text(page)


def test_blocks_that_together_are_the_article_are_kept_whatever_they_are_called() -> None:
    law = "".join(f"<div class=legal><p>Article {number}. All are equal before it.</p></div>" for number in range(30))
    assert "Article 29." in text(f"<p>The law.</p>{law}<footer>Printed by us</footer>")
    assert "Printed by us" not in text(f"<p>The law.</p>{law}<footer>Printed by us</footer>")
    assert "Article 0." not in text(f"<p>{ARTICLE * 4}</p><div class=legal><p>Article 0. As is.</p></div>")


def test_code_is_put_back_in_linear_time_after_many_spaces() -> None:
    began = time.process_time()
    assert "a\n" in text(f"{ARTICLE}<ul><li><pre>a\nb</pre></ul><pre>{' ' * 300_000}x</pre>")
    assert time.process_time() - began < 5


@pytest.mark.parametrize("empty", ["title", "script src='a.js' ", "textarea", 'iframe class="a>b"', "a id='x'", "o:p"])
def test_an_element_of_xhtml_that_closes_itself_hides_no_text(empty: str) -> None:
    head = "<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'>"
    page = f"{head}<head><{empty}/></head><body>{ARTICLE}<{empty}/><br/><p>The <b>end</b>.</p></body></html>"
    assert text(page).endswith("The end.")
    assert "number 0" in text(page)
    unquoted = "<p><a href=http://x.org/>A link</a> here.</p>"
    assert "A link here." in text(f"{head}<body>{ARTICLE}{unquoted}")


def test_code_in_a_list_keeps_its_lines() -> None:
    page = "<ul><li>Run<pre>for x in y:\n    print(x)\n\nend</pre>then<ol><li><pre><b>a</b>\n b</pre></ol></ul>"
    code = "    for x in y:\n        print(x)\n    \n    end\n    then"
    for article in (False, True):
        assert code in text(ARTICLE + page, article)
        assert "a\n" in text(ARTICLE + page, article)
    assert "\ufdd0" not in text(page)
    assert "\ufdd00\ufdd0" in text(f"<p>\ufdd00\ufdd0</p>{page}")


@pytest.mark.parametrize(
    "around",
    [
        "<nav><a href=a>Around</a></nav>",
        "<ul><li><a href=a>Around</a><li><a href=b>About</a><li><a href=c>More</a></ul>",
        "<table><tr><td>[<a href=a>Around</a>]<td>[<a href=b>&gt;&gt;</a>]<td>[<a href=c>Top</a>]</table>",
        "<div class='navheader'><a href=a>Around</a> chapter 1</div>",
        "<div role=search>Around</div>",
        "<footer>Around 2020</footer>",
        "<header><a href=a>Around</a></header>",
        "<aside>Around</aside>",
        "<div id=sidebar><a href=a>Around</a> and <a href=b>more</a></div>",
        "<div hidden>Around</div>",
        "<p style='display: none'>Around</p>",
        "<div class='cookie-consent'>Around</div>",
    ],
)
def test_what_is_around_an_article_goes(around: str) -> None:
    for page in (f"<body>{around}{ARTICLE}", f"<body><div>{ARTICLE}</div>{around}</body>"):
        assert "Around" not in text(page)
        assert "Sentence number 8" in text(page)
    assert "hidden" in around or "display" in around or "Around" in text(f"{around}{ARTICLE}", article=False)


@pytest.mark.parametrize("wrapper", ["<nav>", "<div class=sidebar>", "<footer>", "<aside>", "<div hidden>", "<header>"])
def test_an_element_with_most_of_the_prose_is_never_removed(wrapper: str) -> None:
    assert "Sentence number 8" in text(f"<body>{wrapper}{ARTICLE}")


def test_a_page_of_links_alone_keeps_what_it_says() -> None:
    page = "<h1>Index</h1><ul>" + "".join(f"<li><a href={k}>Chapter {k}</a>" for k in range(5)) + "</ul>"
    assert "Index" in text(page)
    assert "Chapter 4" in text(f"<main>{page}</main>")


def test_the_time_grows_with_the_page() -> None:
    took = []
    for count in (2_000, 16_000):
        unit = "<div class=a><ul><li>x<pre>a\nb</pre></ul><p>a <a href=x>b</a></div>"
        page = "<div>" * 300 + unit * count
        began = time.process_time()
        text(page)
        took.append(time.process_time() - began)
    assert took[1] < 8 * took[0] * 3
