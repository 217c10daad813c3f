"""Depth of an HTML page, counted from its tags in one pass, as an HTML parser would nest them.

End tags that HTML lets an author leave out are implied: a new <dt> ends the last <dd>, a <tr> the last row, a block the
last <p>. What a parser reopens (<b>, <font>) counts until it is closed. Scripts and comments hold no tags. Cost: linear
in the page, because each element is opened and closed once.
"""

import re

_BEGIN = re.compile(rb"<(?:!--|(/?)([A-Za-z][^\s/>]*+))")
_COMMENT_END, _COMMENT_END_LATER = re.compile(rb"-?>"), re.compile(rb"--!?>")
"""<!--> is a comment too"""
_REST = re.compile(rb"""(?:[^>"'=]++|=\s*+(?:"[^"]*+"|'[^']*+')?+|["'])*+>""")


def _names(text: str) -> frozenset[bytes]:
    return frozenset(text.encode().split())


_VOID = _names(
    "area base basefont bgsound br col embed frame hr img input link meta param source track wbr html head body"
)
_RAW = _names("script style textarea title xmp iframe noembed noframes")
_FORMATS = _names("a b big code em font i nobr s small strike strong tt u")
_ONCE = _names("a nobr")
_ATTRIBUTE = re.compile(rb"""[^\s/>=][^\s/>=]*+(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>]*+))?+""")
_SHORT_BYTES, _MOST_ATTRIBUTES = 40_000, 5000
_FREE_REOPENED = 100_000
"""formatting elements that a page of any size may have reopened; a parser makes an element of each"""
_MOST_ALIKE = 3
"""formatting elements with the same attributes that a parser reopens"""
_HEADINGS = _names("h1 h2 h3 h4 h5 h6")
_ITEMS = _names("li dt dd")
_CELLS = _names("td th caption")
_SECTIONS = _names("tbody thead tfoot colgroup")
_TABLE_PARTS = _CELLS | _SECTIONS | {b"tr"}
_RUBY = _names("rb rt rtc rp")
_ENDS_P = _HEADINGS | _ITEMS | _names(
    "address article aside blockquote center details dialog dir div dl fieldset figcaption figure footer form header "
    "hgroup hr listing main menu nav ol p plaintext pre search section summary table ul"
)  # fmt: skip
# an end tag reaches no further out than the last of these
_HOLDS_HTML = {b"svg": _names("foreignobject desc title"), b"math": _names("mi mo mn ms mtext annotation-xml")}
_INTEGRATE = _HOLDS_HTML[b"svg"] | _HOLDS_HTML[b"math"]
_OF_HTML = b"html:"
"""before the name of an element that has a meaning in <svg> or <math>, and is outside"""
_SCOPES = _CELLS | _INTEGRATE | _names("table template button object marquee applet")
# an item ends the last item unless one of these was opened since
_SPECIAL = (_ENDS_P | _SCOPES | _TABLE_PARTS | _names("select iframe details")) - _names("address div p")
_BLOCKS = _SPECIAL | _names("address div p")
_MARKERS = _SCOPES - _INTEGRATE - _names("table button")
# before all others the formatting elements are opened that ended with an element around them
_REOPENS_NONE = (_ENDS_P | _TABLE_PARTS | _RUBY | _RAW | _VOID) - _names("xmp area br embed img input wbr") | _names(
    "template col frameset button"
)
# in <svg> and <math> all but these are elements of theirs, which may close themselves
_LEAVE_SVG = _HEADINGS | _names(
    "b big blockquote body br center code dd div dl dt em embed head hr i img li listing menu meta nobr ol p pre "
    "ruby s small span strong strike sub sup table tt u ul var"
)  # fmt: skip


def depth(content: bytes, enough: int) -> int:
    """Largest depth of nested elements in a page. Counting ends when it is more than `enough`.

    It is, too, for a page with so many attributes in one tag, or so many elements that a parser opens again, that the
    parser's time would not be linear. In a short page with few tags nothing is counted.
    """
    if content.count(b"<") <= enough and len(content) <= _SHORT_BYTES:
        return 0
    page, deepest, place = _Page(), 0, 0
    lower = b""
    while begin := _BEGIN.search(content, place):
        if begin.start() > place:
            page.reopen()
        place = begin.end()
        if begin[2] is None:
            end = _COMMENT_END.match(content, place) or _COMMENT_END_LATER.search(content, place)
            if end is None:
                break
            place = end.end()
            continue
        rest = _REST.match(content, place)
        if rest is None:  # the page ends inside a tag
            break
        place, name = rest.end(), begin[2].lower()
        if begin[1]:
            page.close(name)
            continue
        raw = name in _RAW and page.foreign < 0
        page.open(name, content[begin.end() : place])
        if page.open_elements > deepest:
            deepest = page.open_elements
        many = place - begin.end() > _SHORT_BYTES and len(_ATTRIBUTE.findall(content, begin.end(), place))
        if page.reopened > max(len(content), _FREE_REOPENED) or many > _MOST_ATTRIBUTES:
            deepest = enough + 1
        if deepest > enough:
            break
        if raw:
            lower = lower or content.lower()
            place = lower.find(b"</" + name, place)
            if place < 0:
                break
    return deepest


class _Page:
    """The open elements of a page."""

    def __init__(self) -> None:
        self.stack: list[bytes | None] = []
        """names of the open elements; None: closed out of order"""
        self.places: dict[bytes, list[int]] = {}
        """name -> places in the stack"""
        self.scopes: list[int] = []
        self.specials: list[int] = []
        self.blocks: list[int] = []
        """places of special elements and of the blocks that do not end an item"""
        self.open_elements = self.reopened = 0
        self.rests: list[bytes] = []
        """attributes of the open elements"""
        self.ended: list[list[tuple[bytes, bytes]]] = [[]]
        """formatting elements that ended with an element around them, as names and attributes: those of the page, then
        those in each open element that ends its own"""

    def reopen(self) -> None:
        """Opens the formatting elements that are to be opened before text."""
        if self.ended[-1] and self.foreign < 0:
            ended, self.ended[-1] = self.ended[-1], []
            self.reopened += len(ended)
            for name, rest in ended:
                self._push(name, rest)

    @property
    def foreign(self) -> int:
        """Place of the <svg> or <math> that the next tag belongs to; -1: none."""
        if not self.places.get(b"svg") and not self.places.get(b"math"):
            return -1
        outer = max(map(self._last, _INTEGRATE))
        return next((place for root in (b"svg", b"math") for place in self.places.get(root, ()) if place > outer), -1)

    def open(self, name: bytes, rest: bytes) -> None:
        """Opens an element. `rest` is its tag after the name."""
        foreign, self_closing = self.foreign, rest.endswith(b"/>")
        if foreign >= 0:
            if name not in _LEAVE_SVG:
                if not self_closing:
                    root = self.stack[foreign] or b""
                    self._push(name if name in _HOLDS_HTML[root] else b":" + name)
                return
            self._pop_to(foreign)
        if name not in _REOPENS_NONE:
            self.reopen()
        if name in _ENDS_P:
            self._end_last(b"p", self._last_scope())
        if name in _VOID or name in _RAW or (self_closing and name in (b"svg", b"math")):
            return
        if name == b"form" and self._last(name) >= 0:
            return
        if name in _ITEMS:
            last = self.specials[-1] if self.specials else -1
            if last >= 0 and (element := self.stack[last]) and self._same_items(element, name):
                self._pop_to(last)
        elif name in _TABLE_PARTS:
            if not self._open_table_part(name):
                return
        elif name == b"table":
            inside = self._last(b"table")
            if inside >= 0 and inside == self._last_scope():  # a table in no cell ends the table around it
                self._pop_to(inside)
        elif name == b"button":
            if self._last(name) == self._last_scope():
                self._pop_to(self._last_scope())
            self.reopen()
        elif name in _HEADINGS:
            self._end_top(_HEADINGS)
        elif name in _RUBY:
            if self._last(b"ruby") > self._last_scope():
                self._end_top(_RUBY)
        elif name in (b"option", b"optgroup"):
            self._end_top(_names("option") if name == b"option" else _names("option optgroup"))
        elif name in _ONCE:
            self.close(name)
        self._push(_OF_HTML + name if name in _INTEGRATE else name, rest)

    def close(self, name: bytes) -> None:
        if name in _INTEGRATE and self._last(name) < 0:
            name = _OF_HTML + name
        last = self._last(name)
        foreign = self.foreign
        if foreign >= 0 and foreign < (inside := self._last(b":" + name)):
            self._pop_to(inside)
            return
        if name in _FORMATS:
            if last > self._last_scope():
                self._remove(last)
            elif alike := [place for place, (ended, _) in enumerate(self.ended[-1]) if ended == name]:
                del self.ended[-1][alike[-1]]
        elif name in _TABLE_PARTS or name == b"table":
            if last >= self._last(b"table"):
                self._pop_to(last)
        elif name in _SCOPES:
            self._pop_to(last)
        elif name == b"form":
            self._remove(last)
        elif name == b"li":
            self._end_last(name, max(self._last_scope(), self._last(b"ul"), self._last(b"ol")))
        elif name in _HEADINGS:
            self._pop_to(
                max((last for level in _HEADINGS if (last := self._last(level)) > self._last_scope()), default=-1)
            )
        elif name in _BLOCKS:
            self._end_last(name, self._last_scope())
        else:
            self._end_last(name, self.blocks[-1] if self.blocks else -1)

    def _open_table_part(self, name: bytes) -> bool:
        table = self._last(b"table")
        if table < 0:
            return False
        ended = _CELLS if name in (b"td", b"th") else _CELLS | {b"tr"} if name == b"tr" else _TABLE_PARTS
        outer = min((last for part in ended if (last := self._last(part)) > table), default=-1)
        self._pop_to(outer)
        for implied in (b"tbody", b"tr"):
            if name in (b"td", b"th") or (name == b"tr" and implied == b"tbody"):
                known = _SECTIONS if implied == b"tbody" else (b"tr",)
                if all(self._last(part) < table for part in known):
                    self._push(implied)
        return True

    @staticmethod
    def _same_items(last: bytes, new: bytes) -> bool:
        return last == new or (last != b"li" and new != b"li" and last in _ITEMS)

    def _last(self, name: bytes) -> int:
        places = self.places.get(name)
        return places[-1] if places else -1

    def _last_scope(self) -> int:
        return self.scopes[-1] if self.scopes else -1

    def _end_last(self, name: bytes, outside: int) -> None:
        last = self._last(name)
        if last > outside:
            self._pop_to(last)

    def _end_top(self, names: frozenset[bytes]) -> None:
        while self.stack and self.stack[-1] and self.stack[-1] in names:
            self._pop_to(len(self.stack) - 1)

    def _push(self, name: bytes, rest: bytes = b"") -> None:
        place = len(self.stack)
        self.stack.append(name)
        self.rests.append(rest)
        if name in _MARKERS:
            self.ended.append([])
        self.places.setdefault(name, []).append(place)
        if name in _SCOPES:
            self.scopes.append(place)
        if name in _SPECIAL:
            self.specials.append(place)
        if name in _BLOCKS:
            self.blocks.append(place)
        self.open_elements += 1

    def _pop_to(self, place: int) -> None:
        """Ends the element at `place` and all in it; -1: none."""
        if place < 0:
            return
        formats: list[tuple[bytes, bytes]] = []
        while len(self.stack) > place:
            name, rest = self.stack.pop(), self.rests.pop()
            if name is None:
                continue
            self.places[name].pop()
            for places in (self.scopes, self.specials, self.blocks):
                if places and places[-1] == len(self.stack):
                    places.pop()
            self.open_elements -= 1
            if name in _FORMATS:
                formats.append((name, rest))
            elif name in _MARKERS:
                formats.clear()
                self.ended.pop()
        ended = self.ended[-1]
        for name_and_rest in reversed(formats):
            if ended.count(name_and_rest) == _MOST_ALIKE:
                ended.remove(name_and_rest)
            ended.append(name_and_rest)

    def _remove(self, place: int) -> None:
        """Ends a formatting element or a form alone: what is in it stays open. -1: none."""
        if place < 0:
            return
        name = self.stack[place]
        assert name is not None
        self.places[name].pop()
        for places in (self.specials, self.blocks):
            if place in places:
                places.remove(place)
        self.stack[place] = None
        self.open_elements -= 1
        while self.stack and self.stack[-1] is None:
            self.stack.pop()
            self.rests.pop()
