"""Generate caption pairs of every awkward kind, and pycocoevalcap's tokens and scores of them.

``python tests/helpers/caption_cases.py`` writes `tests/fixtures/coco-caption.json`.
It needs Java and ``pip install "mmzoo[test-java]"``.
"""

import contextlib
import io
import itertools
import json
import random
from pathlib import Path

FIXTURE = Path(__file__).parents[1] / "fixtures" / "coco-caption.json"
PAIRS, SEED = 1200, 20
METRICS = ("bleu-1", "bleu-2", "bleu-3", "bleu-4", "rouge-l", "cider-d", "meteor")

WHO = """a man|two women|the dog|A small child|people|the cat|three zebras|An old woman|a group of skiers|my brother|one bird|
The bus driver|nobody|a tabby cat|some kids""".replace("\n", "").split("|")
DOES = """is riding|are standing on|sits next to|looks at|jumps over|is eating|holds|walks past|rides|plays with|is parked by|
waits for""".replace("\n", "").split("|")
WHAT = """a red bicycle|the beach|a slice of pizza|an open laptop|the street sign|a tall building|two horses|a frisbee|the train|
a plate of food|the kitchen sink|a wooden bench|the ocean""".replace("\n", "").split("|")
# Pieces that tokenizers differ on, by kind; {w} is a word.
AWKWARD = {
    "plain": ["", "near {w}", "with {w} and {w}"],
    "contraction": """it's don't can't won't I'll we've they're he'd she'd've y'all Y'know cannot Cannot gonna GONNA wanna lemme
        gimme gotta 'tis 'Twas dunno ain't mustn't o'clock ma'am ne'er e'er li'l s'mores rock'n'roll 'n' 'em 'til 'cause c'mon
        cap'n it's' dogs' dog's James's {w}'s {w}s' O'Brien d'Artagnan l'eau D'Angelo '90s 90's 1990s '99 the'90s don’t it’s
        Don‘t can`t it´s y’all ’tis &apos;em don&apos;t""",
    "quotes": """"{w}" '{w}' “{w}” ‘{w}’ «{w}» ‹{w}› „{w}“ ‚{w}‘ ``{w}'' "'{w}'" '"{w}"' “‘{w}’” "{w} '{w}" ''{w}'' "{w}
        {w}" '{w} {w}' `{w}` "$5" "9" '9 ' " '' ″ ′ &quot;{w}&quot; 5'10" 6'""",
    "dash": "- -- --- ---- ----- – — ― ‒ {w}–{w} {w}—{w} {w}--{w} {w}-{w} - {w} -{w} {w}- &mdash; &ndash; ‐ {w}‑{w} −5 ~ {w}~{w}",
    "dots": """... .. .... ...... … . . . . . {w}... ...{w} {w}…{w} {w}.{w} {w}.{W} !!! ?! !? ?? {w}?{w} {w}!
        ¿{w}? ¡{w}! ;{w} {w};""",
    "bracket": "({w}) [{w}] {{{w}}} <{w}> ({w} [{w}]) ( {w} ) (({w})) ({w}, {w}) [5] (a) -LRB- -lrb- ( ) {{ }} << >> <<{w}>> (5)",
    "number": """1 12 1,000 1,000,000.50 3.14 .5 -5 +7 1/2 3/4 1 1/2 2-3/4 10% 100% 1st 2nd 21st 4x4 12:30 12:30pm 5pm 7:05 a.m.
        2014-09-02 9/11 09/11/2001 1-2-03 24/7 (555) 123-4567 555-1234 +1 800 555 1234 1.800.555.1234 No. 5 no. 7 fig. 3 pp. 12
        ½ ¼ ⅓ ⅛ 1½ x² CO₂ m³ H2O 5ft 6ft. 20°C 5'10" 1e5 1.2.3 1,2,3 ١٢٣ Ⅳ ①""",
    "currency": "$5 $5.00 US$5 £5 €10 10€ ¥100 ¢ 50¢ ₹5 ₤3 ₿1 #1 # 5 $ C$ ₩ ¤",
    "abbreviation": """U.S. U.S.A. U.K. USA Mr. Mrs. Dr. St. Ave. Inc. Ltd. Co. Corp. etc. vs. e.g. i.e. a.m. p.m. A.M. Jan. Sept.
        Mon. Thurs. Ph.D. Jr. Sr. B.C. a.k.a. J. K. Rowling D.C. Calif. Mass. mass. Miss. miss. Wash. ft. Rt. Mt. dept. approx.
        Mr Dr. {w} U.S. The U.S. troops at 5 a.m. The size L. vitamin C. plan B. non-U.S. co. ltd. No. est. Prof. Gen. cf. al.""",
    "hyphen": """t-shirt T-shirt mother-in-law 3-year-old co-op e-mail pro-am anti-{w} well-known x-ray {w}-{w}-{w}
        20-30 F-16 U.S.-based a-""",
    "slash": "and/or he/she w/ w/o b/w I/O {w}/{w} {w}/{w}/{w} 1/2-inch / {w} / {w} \\ {w}\\{w} c/o n/a km/h",
    "address": """www.example.com http://example.com https://a.b/c?d=e&f=g#h example.com me@example.com <me@x.org> example.org/{w}
        http://x.y. (www.{w}.com) {w}.com, ftp://a.b {w}.jpg index.html file.tar.gz {w}.PNG mailto:a@b.co a@b user@host.co.uk""",
    "social": "#{w} #tag #1 #{w}{w} @{w} @user_1 @ # ## ** * {w}* *{w}* _{w}_ {w}_{w} RT @{w}: ^ | || {w}|{w} ~{w} `",
    "emoticon": ":-) :) ;) :( :-( :D :P =) =D ;-D :'( :| <3 ^_^ -_- (^_^) >.< o_O T_T XD 8) :/ :o) (: x_x <_<",
    "accent": "café naïve Zoë Ångström déjà-vu señor Straße İstanbul ısı e\u0301clair ﬁne Ｆｕｌｌ ＡＢＣ ΑΘΗΝΑΣ ς ǅ Œuvre ñandú",
    "script": """東京 日本語のテキスト 中文，测试。 한국어 Привет, мир! ελληνικά العربية؟ עברית हिन्दी। ไทย
        ქართული Հայերեն ᏣᎳᎩ አማርኛ 、。「{w}」・""",
    "entity": "&amp; &lt; &gt; &nbsp; &#39; &eacute; caf&eacute; R&amp;D &copy; &lt;b&gt; <b>{w}</b> <br/> <i> </p> <br />",
    "tag": [
        '<a href="x y">{w}</a>',
        "<img src='a.png' alt=\"{w} {w}\" />",
        "<!-- {w} -->",
        "<{w} x = 'y'>",
        "<b {w}> c",
        "< b >",
        "a <b",
    ],
    "ampersand": "AT&T R&D Q&A B&B S&P {w}&{w} {w} & {w} M&M's H&M A+B C++ c++ C# F#",
    "british": "colour grey centre theatre programme colours favourite neighbour aeroplane tyre haemoglobin analyse travelled",
    "invisible": """soft\u00adhyphen \u00ad {w}\u00ad{w}'s zero\u200bwidth \u200d \ufeff{w} {w}\u2060 left\u200eright
        \u00a0 {w}\u00a0{w} \u3000 {w}\u2003{w} \t {w}\t{w} 1\u00a01/2 \u202f""",
    "control": "\x00 {w}\x00{w} \x07 \x1b[31m \x7f {w}\x7f \x80 \x91{w}\x92 \x93{w}\x94 \x96 \x97 \x99 \ud7ff \uffff",
    "symbol": "★ → ✓ © ® ™ ° § ¶ • · × ÷ ± ≠ ∞ ♥ ☺ ❤ ♀ ⚽ ½ ※ ¬ ¦ µ ª º ¹ ² ʼ ˈ ″ ‰ † ‡ ␣ ■ ℃ № %",
    "case": "A {W} iPhone McDonald's NASA eBay STOP! THE {w} WiFi LOL o.k. OK. ok!",
}
WORDS = [
    "cat",
    "dogs",
    "umbrella",
    "blue",
    "hour",
    "skateboard",
    "sun-glasses",
    "giraffe",
    "don't",
    "Tuesday",
    "x",
    "7",
    "The",
    "it",
]
ENDS = ("", "", "", "", "\r", "  ", "\t", "\u00a0")
LONG = ("a" * 300, "ha" * 200, "x-" * 120, "1" * 250, "日" * 150)


def names():
    """Return emoji with their English names."""
    import emoji

    known = sorted((data["en"].strip(":").replace("_", " "), sign) for sign, data in emoji.EMOJI_DATA.items() if "en" in data)
    return [(name, sign) for name, sign in known if name.isprintable()]


def pairs(seed=SEED, count=PAIRS, emoji=None):
    """Return ``count`` pairs (prediction, references), of every kind in turn."""
    rng = random.Random(seed)
    emoji = emoji or names()
    pieces = {kind: _split(text) if isinstance(text, str) else text for kind, text in AWKWARD.items()}
    kinds = [*pieces, "emoji", "long", "empty"]
    found = []
    for i in range(count):
        kind = kinds[i % len(kinds)]
        if kind == "emoji":
            name, sign = rng.choice(emoji)
            base = [rng.choice((name, f"{sign} {name}", f"{name}{sign}", f"{name.capitalize()}.", f"a {name} emoji {sign * 2}"))]
        elif kind == "empty":
            base = [rng.choice(("", " ", ".", "...", "?", "a", "''", "-", "\u00a0", "\U0001f600", rng.choice(WHO)))]
        else:
            base = [rng.choice(WHO), rng.choice(DOES), rng.choice(WHAT)]
            for _ in range(rng.choice((1, 1, 2))):
                piece = rng.choice(LONG) if kind == "long" else _filled(rng.choice(pieces[kind]), rng)
                base.insert(rng.randrange(len(base) + 1), piece)
            base[-1] += rng.choice((".", ".", "", "", "!", " .", ",", '"', "'", ")", "?", ";"))
        reference = rng.choice((" ", " ", " ", "  ", ", ")).join(base)
        others = [_like(base, rng) for _ in range(rng.choice((0, 0, 1, 2)))]
        found.append((_like(base, rng) + rng.choice(ENDS), [reference, *others]))
    return found


def _split(text):
    """Split a text at spaces; a number, a sign or a bracket may be joined to its neighbour."""
    words = text.replace("{W}", "The").split(" ")
    words = [word.strip("\n") for word in words if word.strip("\n")]
    return [*words, *(f"{one} {other}" for one, other in itertools.pairwise(words))]


def _filled(piece, rng):
    while "{w}" in piece:
        piece = piece.replace("{w}", rng.choice(WORDS), 1)
    return piece.replace("{{", "{").replace("}}", "}")


def _like(base, rng):
    """Return a text with small changes, like another caption of the same image."""
    base = list(base)
    change = rng.randrange(6)
    if change == 0:
        return " ".join(base)
    if change == 1:
        return " ".join(base).upper() if rng.random() < 0.5 else " ".join(base).title()
    if change == 2 and len(base) > 2:
        del base[rng.randrange(len(base))]
    elif change == 3:
        base[rng.randrange(len(base))] = rng.choice(WHO + WHAT)
    elif change == 4:
        base.insert(0, base.pop())
    else:
        base.append(rng.choice(("near " + rng.choice(WHAT), "and " + rng.choice(WHO) + ".", "outside", base[0])))
    return " ".join(base)


def original(cases):
    """Return pycocoevalcap's tokens of (predictions, references) and its scores: of all and, where it has them, of each."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    said = PTBTokenizer().tokenize({i: [{"caption": prediction}] for i, (prediction, _) in enumerate(cases)})
    right = PTBTokenizer().tokenize({i: [{"caption": c} for c in references] for i, (_, references) in enumerate(cases)})
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(right, said)
        rouge, rouges = Rouge().compute_score(right, said)
        cider, ciders = Cider().compute_score(right, said)
        meteor, _ = Meteor().compute_score(right, said)
    scores = dict(zip(METRICS, [*bleu, rouge, cider, meteor], strict=True))
    return {
        "tokens": [[said[i][0], right[i]] for i in range(len(cases))],
        "scores": {name: float(score) for name, score in scores.items()},
        "each": {"rouge-l": [round(float(x), 9) for x in rouges], "cider-d": [round(float(x), 9) for x in ciders]},
    }


if __name__ == "__main__":
    cases = pairs()
    FIXTURE.write_text(json.dumps({"pairs": cases, **original(cases)}, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(f"{len(cases)} pairs, {FIXTURE.stat().st_size:,} bytes, {original(cases)['scores']}")
