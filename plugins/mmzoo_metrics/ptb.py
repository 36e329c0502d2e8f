"""Split captions into tokens as pycocoevalcap's `PTBTokenizer` does, without its Java.

That is Stanford CoreNLP 3.4.1's PTBTokenizer (``-preserveLines -lowerCase``), and then its punctuation is left out (Chen et al.
2015, "Microsoft COCO Captions", https://arxiv.org/abs/1504.00325; https://github.com/salaniz/pycocoevalcap,
``tokenizer/ptbtokenizer.py``).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

from mmzoo_metrics.ptb_rules import RULES

# Upper-case brackets never meet lower-cased tokens, so brackets stay, as "-lrb-", there and here.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

_RULES = tuple((re.compile(f"({rule.token}){rule.after}"), rule.write) for rule in RULES)
# Most of a caption is plain words between spaces; these patterns give what the rules would, faster.
_PLAIN = re.compile("(?!(?i:cannot|gonna|gotta|lemme|gimme|wanna)[ \n])[A-Za-z]+(?=[ \n])")
_NOTHING = re.compile("[ \t][ \t\u00a0\u2000-\u200a\u3000]*|,(?= )|[.](?=\n)")
_BREAK = re.compile("\r?\n")


def tokenize(captions: Sequence[str]) -> tuple[str, ...]:
    """Return the tokens of each caption, joined by spaces. Results are cached, as one set of references serves several metrics.

    All captions are read as one text with a line each, as in the original. So the next line can decide how a line ends: the
    full stop of "vitamin C." stays unless "The ..." or another such beginning follows. Unlike the original, a caption with
    other line breaks than "\\n" in it (a form feed, U+2028) is still one caption: there, each moves all later captions by one.
    """
    return _tokenize(tuple(captions))


@functools.lru_cache(maxsize=4)
def _tokenize(captions: tuple[str, ...]) -> tuple[str, ...]:
    lines: list[list[str]] = [[]]
    for token in _scan("\n".join(caption.replace("\n", " ") for caption in captions)):
        if token is None:
            lines.append([])
        else:
            lines[-1].append(token)
    return tuple(_without_punctuation(" ".join(line)) for line in lines) if captions else ()


def _without_punctuation(line: str) -> str:
    return " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION)


def _scan(text: str) -> Iterator[str | None]:
    """Yield the tokens of ``text``, lower-cased, and None at each line's end. Text that no rule matches is dropped."""
    wide = not text.isascii() and max(text) > "\uffff"
    if wide:  # Java's characters are UTF-16 units
        units = text.encode("utf-16-le", "surrogatepass")
        text = "".join(chr(low | high << 8) for low, high in zip(units[::2], units[1::2], strict=True))
    place = 0
    while place < len(text):
        if match := _PLAIN.match(text, place):
            yield match[0].lower()
            place = match.end()
        elif match := _NOTHING.match(text, place):
            place = match.end()
        elif match := _BREAK.match(text, place):
            yield None
            place = match.end()
        else:
            furthest, best = place, None
            for pattern, write in _RULES:
                match = pattern.match(text, place)
                if match and match.end() > furthest:
                    furthest, best = match.end(), (match, write)
            place += 1
            if best:
                match, write = best
                place = match.end(1)
                if token := write(match[1]):
                    yield _lower(_characters(token) if wide else token)


def _lower(token: str) -> str:
    """Convert to lower case as Java does: at a hyphen it looks for a final sigma."""
    if "\u03a3" in token and "-" in token:
        return token.replace("-", "\u2027").lower().replace("\u2027", "-")
    return token.lower()


def _characters(units: str) -> str:
    """Decode UTF-16 units to characters."""
    return units.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
