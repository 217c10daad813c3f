"""The text of a web page without what stands around its article: menus, link lists, page headers and footers.

    tree -> blocks with sizes of their text and links -> what is no article is removed -> resiliparse's text

Text is removed only with a reason (what an element is, what it is called, or that it is nearly all links), and never if
it is a large share of the page's prose. Code inside a list item keeps its lines as they were. Cost: linear in the page.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import ElementNode, HTMLTree, TextNode

LARGE_SHARE = 0.3
"""share of the page's prose (text outside links) from which on a block is never removed whole"""
MAIN_SHARE = 0.5
"""share of the page's prose that <main> or the only <article> has to hold to be the page's content"""
MOST_LINK_SHARE = 0.6
"""share of links in the text of a list, a table or a division from which on it is a list of links"""
FEW_LINKS = 0.2
"""share of links in the text of what is beside the article by its name from which on it is no part of it; with fewer,
blocks that are called the same count as one when their share of the prose is large"""
MOST_PROSE = 100
"""characters outside links up to which a block can be a list of links"""
SHORT_WORDS = 100
"""words of a list or table up to which marks between links are not counted as text"""
FEW_CHARACTERS = 40
"""mean length of a link's text up to which links are those of a menu"""
_names = str.split
_LISTS = frozenset(_names("ul ol dl table menu"))
_SECTIONS = frozenset(
    _names(
        "body main article section div header footer nav aside form center fieldset details figure blockquote font "
        "dialog address"
    )
)
_CONTAINERS = _LISTS | _SECTIONS | frozenset(_names("li dt dd caption tbody thead tfoot tr td th"))
_LINK_LISTS = _LISTS | frozenset(_names("div section form center"))
_UNSEEN = frozenset(_names("script style noscript template iframe svg select textarea button"))
_ROLES = frozenset(_names("navigation banner contentinfo search complementary menu menubar toolbar dialog alertdialog"))
_HOLDS_BLOCKS = ", ".join(sorted(_LISTS | _SECTIONS - {"body", "font", "figure", "blockquote", "address"}))
_HEADS_COLUMNS = "thead, caption, th + th"
"""what a table of links has that is no menu"""
_HEADINGS = "h1, h2, h3, h4, h5, h6"
_MARKS = frozenset("\u00b6#\u00a7")
"""texts of a link from a heading to itself"""
_SEPARATORS = "[]()|<>\u00b7\u2022\u00bb\u00ab"
_HIDDEN = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
_AROUND = re.compile(
    r"(?:^|[\s_-])(?:nav(?:bar|header|footer|igation|igate|links?)?|doc-?nav|(?:top|main|sub|side|foot)-?(?:nav|menu)|menus?"
    r"|bread-?crumbs?|(?:site|page|global|main|top)[_-]?(?:head|foot)(?:er)?|footer|masthead|toolbar|tool-?box"
    r"|cookies?|consent|copyright|legal|social|share(?:s|r|daddy|-?bar|-?links)?|sharing|newsletter|subscribe|sign-?(?:in|up)"
    r"|log-?in|ads?|advert(?:s|isements?|ising)?|pagination|pager|pop-?up|modal|skip-?links?|search-?(?:form|box|bar)?)"
    r"(?:$|[\s_-])",
    re.IGNORECASE,
)
_BESIDE = re.compile(
    r"(?:^|[\s_-])(?:side-?bars?|related|recommend(?:ed|ations?)|popular|trending|most-?(?:read|viewed|popular)|promos?"
    r"|sponsor(?:ed)?|banner|teasers?|widgets?|(?:read|see)-?(?:more|also|next)|more-?(?:links|stories|articles|from))"
    r"(?:$|[\s_-])",
    re.IGNORECASE,
)
"""names of what is beside the article, or of a box in it"""
_ARTICLE = re.compile(
    r"(?:^|[\s_-])(?:article|entry|post|story|main|content|body|text|page|footnotes?|admonition|note|warning|topic)"
    r"(?:$|[\s_-]|-?(?:body|text|content))",
    re.IGNORECASE,
)


class _Block:
    """An element that holds blocks."""

    __slots__ = ("element", "gone", "inside", "letters", "link_letters", "links", "parent", "quoted", "tag")

    def __init__(self, element: Any, tag: str, parent: "_Block | None") -> None:
        self.element, self.tag, self.parent = element, tag, parent
        self.letters = self.link_letters = self.links = 0
        """characters of text, those in links, and number of links"""
        self.gone = False
        self.inside: bool = parent is not None and (parent.inside or parent.tag in ("main", "article"))
        """whether it is inside <main> or <article>"""
        self.quoted: bool = parent is not None and (parent.quoted or parent.tag in ("blockquote", "figure"))
        """whether it is inside a quotation or a figure, whose source is in a <footer>"""

    @property
    def titled(self) -> bool:
        """Whether it holds a heading of the first level or code."""
        return self.element.query_selector("h1, pre") is not None

    @property
    def kind(self) -> tuple[str, str]:
        """What the element is and is called, which alike blocks have in common."""
        return self.tag, self.element.getattr("class") or self.element.getattr("role") or ""

    @property
    def prose(self) -> int:
        return self.letters - self.link_letters

    @property
    def link_share(self) -> float:
        return self.link_letters / self.letters if self.letters else 0.0


def text_of(tree: HTMLTree, main_content: bool) -> str:
    """The text of a page, without what stands around its article if `main_content`. Changes the tree."""
    if tree.body is None:
        return ""
    if main_content:
        _leave_article(tree.body)
    for summary in tree.body.query_selector_all("summary").values():
        if line_break := tree.create_element("br"):
            summary.append(line_break)
    code = _take_code(tree)
    text = extract_plain_text(tree, main_content=False)
    return _put_code(text, code) if code else text


def _leave_article(body: Any) -> None:
    for element in body.query_selector_all("[hidden], [aria-hidden=true], [style]").values():
        if element.tag not in _CONTAINERS and _is_hidden(element):
            element.remove()
    blocks = _blocks(body)
    total = blocks[0].prose
    root = _root(blocks, total)
    if root is not None:
        body.replace_children(root.element)
    prose_of: Counter[tuple[str, str]] = Counter()
    for block in _around(blocks, root, total, frozenset()):
        if block.link_share <= FEW_LINKS:
            prose_of[block.kind] += block.prose
    # what there is most of is the article, whatever it is called
    kept = frozenset(kind for kind, prose in prose_of.items() if prose > LARGE_SHARE * total)
    for block in list(_around(blocks, root, total, kept)):
        block.element.remove()


def _around(
    blocks: list[_Block], root: _Block | None, total: int, kept: frozenset[tuple[str, str]]
) -> Iterator[_Block]:
    """The outermost blocks that are no part of the article, without those of the `kept` kinds."""
    for block in blocks[1:]:
        parent = block.parent
        assert parent is not None
        block.gone = parent.gone
        if block.gone or block is root or (root is not None and not block.inside):
            continue
        if _is_around(block, total) and block.kind not in kept:
            block.gone = True
            yield block


def _root(blocks: list[_Block], total: int) -> _Block | None:
    """The element that is the page's content by its kind, if there is one."""
    for kind in ("main", "article"):
        roots = [
            block for block in blocks if not block.inside and kind in (block.tag, block.element.getattr("role") or "")
        ]
        if len(roots) == 1 and roots[0].prose >= MAIN_SHARE * total > 0:
            return roots[0]
    return None


def _blocks(body: Any) -> list[_Block]:
    """The blocks of a page, each before those inside it, with the sizes of all text inside."""
    blocks: list[_Block] = []
    waiting: list[tuple[Any, str, _Block | None]] = [(body, "body", None)]
    while waiting:
        block = _Block(*waiting.pop())
        blocks.append(block)
        if block.tag in _LISTS and block.element.query_selector(_HOLDS_BLOCKS) is None:
            _add_inline(block, block.element, block.tag)
            continue
        for node in block.element.child_nodes.values():
            if isinstance(node, TextNode):
                text = (node.value or "").strip()
                if len(text) > len("[|]") or any(map(str.isalnum, text)):  # what separates links is no text
                    block.letters += len(text)
            elif isinstance(node, ElementNode):
                tag = node.tag or ""
                if tag in _CONTAINERS or "-" in tag:
                    waiting.append((node, tag, block))
                elif tag not in _UNSEEN:
                    _add_inline(block, node, tag)
    for block in reversed(blocks[1:]):
        parent = block.parent
        assert parent is not None
        parent.letters += block.letters
        parent.link_letters += block.link_letters
        parent.links += block.links
    return blocks


def _add_inline(block: _Block, node: Any, tag: str) -> None:
    """Adds the text of an element without blocks inside that could be removed alone."""
    words = (node.text_content or "").split()
    if tag in _LISTS and len(words) <= SHORT_WORDS:  # what separates links is no text
        words = [word.strip(_SEPARATORS) for word in words]
    letters = len(" ".join(words))
    block.letters += letters
    if not letters or tag == "pre":
        return
    for link in [node] if tag == "a" else node.get_elements_by_tag_name("a").values():
        if link.hasattr("href"):
            text = " ".join((link.text_content or "").split())
            block.links += 1
            block.link_letters += len(text)
            if text in _MARKS:
                link.remove()


def _is_around(block: _Block, total: int) -> bool:
    """Whether the block is no part of the article."""
    element, tag = block.element, block.tag
    if block.prose > LARGE_SHARE * total or tag in ("main", "body"):
        return False
    role = element.getattr("role") or ""
    if tag == "nav" or role in ("navigation", "search", "menu", "menubar", "toolbar"):
        return True
    if _is_hidden(element):
        return True
    names = _names_of(element)
    named_article = bool(names and _ARTICLE.search(names))
    if tag in ("footer", "header", "aside") or role in _ROLES:
        if block.titled or block.quoted:
            return False
        return not block.inside or block.link_share > MOST_LINK_SHARE / 2 or (tag == "aside" and not named_article)
    if names and _AROUND.search(names) and not block.titled:
        return not block.inside or not named_article
    if names and _BESIDE.search(names) and not block.titled:
        return not block.inside and not named_article and block.link_share > FEW_LINKS
    return tag in _LINK_LISTS and not block.inside and _is_link_list(block)


def _names_of(element: Any) -> str:
    """The class of an element, and its id if that is not made from a heading inside."""
    names, id = element.getattr("class") or "", element.getattr("id") or ""
    if not id or ((_AROUND.search(id) or _BESIDE.search(id)) and element.query_selector(_HEADINGS) is not None):
        return str(names)
    return f"{names} {id}"


def _is_hidden(element: Any) -> bool:
    if element.hasattr("hidden") or element.getattr("aria-hidden") == "true":
        return True
    style = element.getattr("style")
    return bool(style and _HIDDEN.search(style))


def _is_link_list(block: _Block) -> bool:
    return (
        block.links > 2
        and block.prose <= MOST_PROSE
        and block.link_share > MOST_LINK_SHARE
        and block.link_letters <= FEW_CHARACTERS * block.links
        and not block.titled
        and block.element.query_selector(_HEADS_COLUMNS) is None
    )


def _take_code(tree: HTMLTree) -> list[tuple[str, str]]:
    """Puts a mark in the place of each code block in a list. Returns marks and code."""
    taken: list[tuple[str, str]] = []
    document = tree.document
    assert document is not None
    blocks = document.query_selector_all("li pre").values()
    if not blocks:
        return taken
    fence = "\ufdd0"
    assert tree.body is not None
    page = tree.body.text_content or ""
    while fence in page:
        fence += "\ufdd1"
    for block in blocks:
        code = block.text_content or ""
        if "\n" not in code.strip("\n") or block.query_selector("br, img, pre, li") is not None:
            continue
        mark = f"{fence}{len(taken)}{fence}"
        taken.append((mark, code.removeprefix("\n").rstrip()))
        block.text_content = mark
    return taken


def _put_code(text: str, code: list[tuple[str, str]]) -> str:
    """Puts code back, each line with the spaces that its first line has before it."""
    blocks = dict(code)
    fence = code[0][0].partition("0")[0]
    pattern = re.compile(rf"(?m)^( *+)(.*?)({re.escape(fence)}\d+{re.escape(fence)})")

    def replaced(match: re.Match[str]) -> str:
        indent, before, mark = match.groups()
        lines = blocks[mark].split("\n")
        return before.join((indent, "")) + f"\n{indent}".join(lines)

    return pattern.sub(replaced, text)
