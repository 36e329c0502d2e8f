r"""Define the tokens of `mmzoo_metrics.ptb`: the rules of Stanford CoreNLP 3.4.1's PTBTokenizer as Python patterns.

Written anew from what is published of its rules and from its behaviour, and compared with its compiled automaton state by
state: at any position both accept the same strings, under the same precedence, but for tags that run over a line's end and a
long s among hyphenated initials. What looks odd here is odd there (no capitals and digits before ``.com``), since equal scores
are the purpose.

A rule is a token, the text that must follow it, and how the token is written. The rule that reads furthest wins, with the text
that follows included; among equals the first. Case is ignored in words and names but not in character classes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import NamedTuple

# The tokenizer knows the letters and digits of Unicode 6.1, in the basic plane. These came later.
_LATER = """037F 0528-052F 0560 0588 05EF 0860-089F 08A1 08AD-08C9 0978 0980 09FC 0AF9 0C34 0C5A-0C5D 0C80 0CDD 0D04
0D54-0D5F 0DE6-0DEF 0E86 0E89 0E8C 0E8E-0E93 0E98 0EA0 0EA8-0EA9 0EAC 13F5-13FD 16F1-16F8 170D 171F 1878 191D-191E
19B0-19C0 19C8-19C9 1B4C 1C80-1CBF 1CF2-1CF3 1CFA 2C2F 2C5F 312E-312F 31BB-31BF 4DB6-4DBF 9FCD-9FFF A698-A69D A78F
A794-A79F A7AB-A7F7 A8FD-A8FE A9E0-A9FE AA7E-AA7F AB30-ABBF"""
# Marks that it treats as letters, including the soft hyphen (which it drops).
_MARKS = """00AD 02C2-02C5 02D2-02DF 02E5-02EB 02ED 02EF-036F 0375 0378-0379 0384-0385 03F6 0483-0487 055A-055F 0591-05BD
05BF 05C1-05C2 05C4-05C5 05C7 0615-061A 064B-065E 0670 06D6-06E4 06E7-06ED 06FD-06FE 070F 0711 0730-074C 07A6-07B0
07EB-07F3 0900-0903 093C 093E-094E 0951-0955 0962-0963 0981-0983 09BC 09BE-09C4 09C7-09C8 09CB-09CD 09D7 09E2-09E3
0A01-0A03 0A3C 0A3E-0A4F 0A81-0A83 0ABC 0ABE-0ACF 0B82 0BBE-0BC2 0BC6-0BC8 0BCA-0BCD 0C01-0C03 0C3E-0C56 0D3E-0D44
0D46-0D48 0E31 0E34-0E3A 0E47-0E4E 0EB1 0EB4-0EBC 0EC8-0ECD"""
# Symbols that stand alone.
_SYMBOLS = """0025-0026 002B 005C 005E 007C 007E 00A6-00A9 00AC 00AE-00B4 00B6-00B9 00D7 00F7 0387 05BE 05C0 05C3 05C6
05F3-05F4 0600-0603 0606-060A 060C 0614 061B 061E 066A 066D 0703-070D 07F6-07F8 0964-0965 0E4F 1FBD 2016-2017 2020-2023
2030-2038 203B 203E-2042 2044 207A-207E 208A-208E 2100-214F 2190-2BFF 3012 30FB FF01-FF0F FF1A-FF20 FF3B-FF40
FF5B-FF65"""


class Rule(NamedTuple):
    """Define a kind of token: ``token`` and ``after`` are patterns; ``write`` returns its printed form before lower-casing."""

    token: str
    after: str = ""
    write: Callable[[str], str] = str


def _points(ranges: str) -> set[int]:
    ends = [[int(end, 16) for end in word.split("-")] for word in ranges.split()]
    return {point for end in ends for point in range(end[0], end[-1] + 1)}


def _class(points: Iterable[int]) -> str:
    """Return the inside of a character class."""
    runs: list[list[int]] = []
    for point in sorted(points):
        if runs and runs[-1][1] == point - 1:
            runs[-1][1] = point
        else:
            runs.append([point, point])
    return "".join(f"\\u{first:04x}-\\u{last:04x}" for first, last in runs)


def _any(words: str) -> str:
    """Return a pattern of one of ``words``, patterns separated by spaces, in any case."""
    return f"(?i:{'|'.join(words.split())})"


def _titled(words: str) -> str:
    """Return a pattern of one of ``words`` whose first letter has its case and whose other letters have any."""
    return "|".join(f"{word[0]}(?i:{word[1:]})" for word in words.split())


def _plain(text: str) -> str:
    """Remove soft hyphens; a lone one is a hyphen."""
    return text.replace("\u00ad", "") or "-"


def _joined(text: str) -> str:
    """Replace spaces inside a token, so that they do not split it."""
    return text.replace(" ", "\u00a0")


def _bracketed(text: str) -> str:
    return text.replace("(", "-LRB-").replace(")", "-RRB-")


def _ampersand(text: str) -> str:
    return re.sub("(?i:&amp;)", "&", text)


def _quoted(single: str) -> Callable[[str], str]:
    """Return a function that writes quotes as LaTeX does; straight ones become ``single`` or two of it."""
    table = {"\u0091\u2018\u201b\u2039": "`", "\u0092\u2019\u203a": "'", "\u0093\u201c\u00ab": "``", "\u0094\u201d\u00bb": "''"}
    curly = str.maketrans({quote: latex for quotes, latex in table.items() for quote in quotes})

    def write(text: str) -> str:
        straight = text.replace("&apos;", "'").replace("&quot;", '"').replace("'", single).replace('"', 2 * single)
        return straight.translate(curly)

    return write


def _as(text: str) -> Callable[[str], str]:
    return lambda _: text


_FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_CURRENCIES = {"\u00a2": "cents", "\u00a3": "#", **dict.fromkeys("\u0080\u00a4\u20a0\u20ac", "$")}
_OPENING, _CLOSING = _quoted("`"), _quoted("'")

_BASIC = range(0x10000)
_letters = {point for point in _BASIC if chr(point).isalpha()} - _points(_LATER) | {0x1885, 0x1886}
_digits = {point for point in _BASIC if unicodedata.category(chr(point)) == "Nd"} - _points(_LATER + " A9F0-A9F9")
LETTER = f"[{_class(_letters)}]"
DIGIT = f"[{_class(_digits)}]"
LETTER_OR_DIGIT = f"[{_class(_letters | _digits)}]"
_ENTITY = f"(?i:&)[aeiouAEIOU]{_any('(?:acute|grave|uml);')}"
_IN_WORD = f"(?:[{_class(_letters | _points(_MARKS))}]|{_ENTITY})"
_IN_WORD_OR_DIGIT = f"(?:[{_class(_letters | _digits | _points(_MARKS))}]|{_ENTITY})"

_BLANKS = " \t\u00a0\u2000-\u200a\u3000"
_BLANK = f"[{_BLANKS}]"
_NEWLINES = "\r\n\u2028\u2029\x0b\x0c\x85"
_SPACE = f"(?:\r\n|[{_BLANKS}{_NEWLINES}])"
_COMMA = "[,;:\u3001]"

# Words. Letters may stand around a full stop or a mark: "end.The".
WORD = f"{_IN_WORD}{_IN_WORD_OR_DIGIT}*(?:[.!?]{_IN_WORD}{_IN_WORD_OR_DIGIT}*)*"
_APOSTROPHE = "(?:['\u0092\u2019]|(?i:&apos;))"
_ANY_APOSTROPHE = "(?:['`\u0091\u0092\u2018\u2019\u201b]|(?i:&apos;))"
_CLITIC = f"{_APOSTROPHE}(?:[msdMSD]|{_any('re ve ll')})"
_NOT = f"(?i:n){_ANY_APOSTROPHE}(?i:t)"
_ELIDED = f"(?:[dDoOlL]{_ANY_APOSTROPHE}{LETTER_OR_DIGIT})?{LETTER_OR_DIGIT}+"
_HYPHENATED = f"{_ELIDED}(?:[-_\u058a\u2010\u2011]{_ELIDED})*"
_DOTTED = "[A-Za-z](?:[.][A-Za-z])+"
_INITIALS = f"(?:{_any('(?:Canada|Sino|Korean|EU|Japan|non)-U[.]S U[.]S[.]-(?:U[.]K|U[.]S[.]S[.]R)')}|{_DOTTED})"
_COMPOUND = f"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:{_DOTTED}[.]|[A-Za-z0-9\u00ad]+))+"
_JOINED_CAPITALS = "[A-Z]+(?:(?:(?i:&amp;)|[+&])[A-Z]+)+"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"
_FILE = f"""{_IN_WORD_OR_DIGIT}+(?:[.]{_IN_WORD_OR_DIGIT}+)*[.]{
    _any('''bat bmp class cgi cpp c dll docx? exe gif gz html? h jar java jpe?g mov mp3 pdf php pl png ppt ps py sql
    tar txt wav xml x zip''')
}"""

# Numbers.
_NUMBER = f"(?:{DIGIT}*(?:[.:,\u00ad\u066b\u066c]{DIGIT}+)+|{DIGIT}+)"
_PHONE = (
    "(?:\\([0-9]{2,3}\\)[ \u00a0]?|(?:\\+\\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])[0-9]{3,4}[- \u00a0]?[0-9]{3,5}",
    "(?:(?:\\+\\+?)?[0-9]{2,4}[.])?[0-9]{2,4}[.][0-9]{3,4}[.][0-9]{3,5}",
)

# Addresses. `_END` is what an address does not hold, `_STOP` what it does not end with.
_END = ' \t\n\f\r"<>|'
_STOP = f"[^{_END}.!?(){{}},-]"
_PATH = f"/[^{_END}()]+{_STOP}"
_SITE = f"(?i:www[.])(?:[^{_END}.!?(){{}},]+[.])+"
_DOMAIN = f"(?:[^{_END}`'.!?(){{}},-_$]+[.])+"
_TOP = _any("com net org edu")
_MAIL = f"[a-zA-Z0-9][^{_END}()\u00a0{{}}]*@(?:[^{_END}().\u00a0{{}}]+[.])*[^{_END}().\u00a0{{}}]+"

# Abbreviations: those that may end a sentence, those before a name, those before a number.
_MAY_END = "|".join(
    (
        _any(
            """Jan Feb Mar Apr Jun Jul Aug Sept? Oct Nov Dec Mon Tues? Wed Thu Thurs Fri
            Ala Ariz Calif Colo Conn Ct Dak Fla Ga Ind Kans? Ky Md Mich Minn Mo Mont Neb Nev Okla Penn Tenn Va Vt Wisc? Wyo
            Inc Cos? Corp Ltd Plc Rt Bancorp Bhd Assn Univ Intl Sys tel est ext sq
            Jr Sr Bros (?:Ed|Ph)[.]D Blvd Rd Esq etc al seq Bldg"""
        ),
        _titled("Az Ark Del Ill La Mass Miss Ore Pa Tex Wash"),
        "(?i:pp?t)[ye](?i:s?)",
    )
)
_BEFORE_A_NAME = "|".join(
    (
        _INITIALS,
        "[A-Za-z]",
        _any(
            """Mrs? Ms Drs? Profs? Sens? Reps? Attys? Lt Col Gen Messrs Govs? Adm Rev Maj Sgt Cpl Pvt Mt Ft Capt Ste? Ave
            Pres Lieut Hon Brig Co?mdr Pfc Spc Supts? Det Adj Adv Asst Assoc Ens Insp Mlle Mme Msgr Sfc
            vs Alex Wm Jos Cie ph a[.]k[.]a cf treas Invt Elec Natl Dept"""
        ),
        _titled("Miss"),
        "(?i:M)[ft](?i:g)",
    )
)
_BEFORE_A_NUMBER = _any("ca figs? prop nos? art bldg pp op")
# Words that begin a sentence, after initials.
_BEGINS = _titled(
    """About According Additionally After An A As At But Earlier Her Here However He If In It Last Many More Mr[.] Ms[.]
    Now Once One Other Our She Since Some Such So That Their Then There These They The This We When While What Yet You"""
)

_NAME = "|".join(
    (
        _INITIALS,
        "[A-Za-z]",
        _any(
            """Mrs? Ms Drs? Profs? Sens? Reps? Attys? Lt Col Gen Messrs Govs? Adm Rev Maj Sgt Cpl Pvt Mt Ft Capt Ste? Ave
            Pres Lieut Hon Brig Co?mdr Pfc Spc Supts? Det Adj Adv Asst Assoc Ens Insp Mlle Mme Msgr Sfc
            vs Alex Wm Jos Cie ph a[.]k[.]a cf treas Invt Elec Natl Dept"""
        ),
        _titled("Miss"),
        "(?i:M)[ft](?i:g)",
    )
)
_BEFORE_A_NUMBER = _any("ca figs? prop nos? art bldg pp op")
# Words that begin a sentence, after initials.
_BEGINS = _titled(
    """About According Additionally After An A As At But Earlier Her Here However He If In It Last Many More Mr[.] Ms[.]
    Now Once One Other Our She Since Some Such So That Their Then There These They The This We When While What Yet You"""
)

_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_TAG = f"""<(?:[!?][A-Za-z-][^>\r\n]*|{_NAME}(?: +{_NAME}(?: *= *(?:'[^'\n]*'|"[^"\n]*"))?)* */?|/{_NAME}) *>"""

RULES = (
    # Two words written as one; the second is read next.
    *(
        Rule(_any(first), _any(then))
        for first, then in map(str.split, ("can not", "gon na", "got ta", "lem me", "gim me", "wan na"))
    ),
    Rule(_any("'t"), _any("was is")),
    Rule(_any("c# f#")),
    Rule("(?i:c)[+][+]"),
    Rule(_TAG, "", _joined),
    Rule(f"{_any('&(?:MD|mdash|ndash);')}|[\u0096\u0097\u2013-\u2015]", "", _as("--")),
    Rule(_any("&amp;"), "", _ampersand),
    Rule(_any("&nbsp;"), "", _as("")),
    Rule(f"{_any('&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq);')}|&#[0-9]+;"),
    Rule(WORD, _CLITIC, _plain),
    Rule("[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*", _NOT, _plain),
    Rule(WORD, "", _plain),
    # Words that an apostrophe is part of.
    Rule(f"[A-HJ-XZn]{_ANY_APOSTROPHE}{LETTER}{{2,}}"),
    Rule(f"{LETTER}+[aeiouyAEIOUY]{_ANY_APOSTROPHE}[aeiouA-Z]{LETTER}*"),
    Rule(_any("cont'd[.]? nor'easter c'mon e'er s'mores ev'ry li'l nat'l")),
    Rule(f"{_APOSTROPHE}(?:{_any('em cause till?')}|[2-9](?i:0s))"),
    Rule(f"(?i:o){_ANY_APOSTROPHE}(?i:o)"),
    Rule(f"{_APOSTROPHE}(?i:n){_APOSTROPHE}?|(?:[lLdDjJ]|{_any('Dunkin somethin ol')}){_APOSTROPHE}"),
    Rule(f"(?i:y){_APOSTROPHE}", LETTER),
    # Addresses.
    Rule(f"(?i:https?://)[^{_END}(){{}}]+{_STOP}"),
    Rule(f"{_SITE}[a-zA-Z]{{2,4}}"),
    Rule(f"{_SITE}?[a-zA-Z]{{2,4}}{_PATH}"),
    Rule(f"{_DOMAIN}{_TOP}"),
    Rule(f"{_DOMAIN}?{_TOP}{_PATH}"),
    Rule(f"(?:<|(?i:&lt;))?{_MAIL}(?:>|(?i:&gt;))?"),
    Rule(f"@[a-zA-Z_][a-zA-Z_0-9]*|#{_IN_WORD}+"),
    Rule(_CLITIC, "[^A-Za-z]", _CLOSING),
    Rule(_NOT, "[^A-Za-z]", _CLOSING),
    # Numbers.
    Rule(f"{DIGIT}{{1,2}}[-/]{DIGIT}{{1,2}}[-/]{DIGIT}{{2,4}}"),
    Rule(f"[-+]?{_NUMBER}", "", _plain),
    Rule("[\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)"),
    Rule(rf"(?:{DIGIT}{{1,4}}[- \u00a0])?{DIGIT}{{1,4}}(?:\\?/|\u2044){DIGIT}{{1,4}}", "", _joined),
    Rule("[\u00bc-\u00be\u2153-\u215e]", "", lambda text: _FRACTIONS.get(text, text)),
    Rule(_any("-(?:RRB|LRB|RCB|LCB|RSB|LSB)- C[.]D[.]s pro- anti- S(?:&|&amp;)P-500 S(?:&|&amp;)Ls"), "", _ampersand),
    Rule(f"(?i:cap){_APOSTROPHE}(?i:n)|(?i:c){_APOSTROPHE}(?i:est)", "", _ampersand),
    Rule(_SLASHED),
    Rule("[A-Z]*[$]|#"),
    Rule(
        "[\u00a2-\u00a5\u0080\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6]",
        "",
        lambda text: _CURRENCIES.get(text, text),
    ),
    # Abbreviations keep their full stop.
    Rule(f"{_BEFORE_A_NUMBER}[.]", f"{_SPACE}?{DIGIT}"),
    Rule("[A-Za-z]", f"[.]{_SPACE}+(?:{_BEGINS}|{_TAG}){_SPACE}"),
    Rule(f"{_INITIALS}[.]", f"{_SPACE}+(?:{_BEGINS}|{_TAG}){_SPACE}"),
    Rule("(?:(?i:pt)[eyEY]|(?i:co))[.]", f"{_BLANK}{_any('ltd lim')}"),
    Rule(f"(?:{_MAY_END})[.]", "[\x00-\uffff]{2}"),
    Rule(f"(?:{_MAY_END})[.]"),
    Rule(f"(?:{_BEFORE_A_NAME})[.]"),
    Rule(_BEFORE_A_NAME, _BLANK),
    Rule(f"{_INITIALS}|[A-Za-z]", _SPACE),
    Rule(f"{_APOSTROPHE}[0-9]{{2}}", _SPACE),
    Rule(_FILE, f"(?:{_SPACE}|[.?!,])"),
    Rule(f"{WORD}[.]", _COMMA, _plain),
    *(Rule(phone, "", lambda text: _joined(_bracketed(text))) for phone in _PHONE),
    # Punctuation.
    Rule('"|(?i:&quot;)', "[A-Za-z0-9$]", _OPENING),
    Rule('"|(?i:&quot;)', "", _CLOSING),
    Rule("<|(?i:&lt;)", "", _as("<")),
    Rule(">|(?i:&gt;)", "", _as(">")),
    Rule(r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", "[^A-Za-z0-9]", _bracketed),
    Rule(r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)", "", _bracketed),
    Rule(r"[\^x=~<>][.]\[\^(?i:x)=[^<\n]*<>\]", "", _bracketed),  # meant as an emoticon like the last
    *(
        Rule(re.escape(bracket), "", _as(f"-{name}-"))
        for bracket, name in zip("()[]{}", ["LRB", "RRB", "LSB", "RSB", "LCB", "RCB"], strict=True)
    ),
    Rule("-+", "", lambda text: "--" if 3 <= len(text) <= 4 else text),
    Rule("[.]{3,5}|(?:[.][ \u00a0]){2,4}[.]|[\x85\u2026]", "", _as("...")),
    Rule("@+|#+|_+"),
    Rule(r"[*]+|(?:\\[*]){1,3}"),
    Rule(_COMMA),
    Rule("[?!]+"),
    Rule("[.\u00a1\u00bf\u037e\u0589\u061f\u06d4\u0700-\u0702\u3002]"),
    Rule("="),
    Rule("/"),
    # Words with hyphens, digits, slashes or ampersands.
    Rule(f"{_COMPOUND}[.]", _COMMA, _plain),
    Rule(_COMPOUND, "", _plain),
    Rule(f"{_HYPHENATED}[.]", _COMMA),
    Rule(_HYPHENATED),
    Rule(f"{_JOINED_CAPITALS}[.]", _COMMA, _ampersand),
    Rule(_JOINED_CAPITALS, "", _ampersand),
    # Quotes, and clitics at the very end.
    Rule("'", "[A-Za-z][^ \t\n\r\u00a0]", _OPENING),
    Rule(_CLITIC, "", _CLOSING),
    Rule(_NOT, "", _CLOSING),
    Rule(f"''|[`\u2018-\u201f\u0091-\u0094\u2039\u203a\u00ab\u00bb]{{1,2}}|{_APOSTROPHE}", "", _CLOSING),
    Rule("<<|>>"),
    Rule(f"[{_class(_points(_SYMBOLS))}]"),
)
