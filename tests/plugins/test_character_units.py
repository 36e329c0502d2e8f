"""Scores of captions in scripts without spaces."""

import json

import pytest
from PIL import Image

import mmzoo
from mmzoo.api import Prediction
from mmzoo.evaluation.scoring import make_metrics
from mmzoo.testing import tiny
from mmzoo_metrics.characters import tokenize_characters

NAMES = ["bleu-1", "bleu-2", "bleu-3", "bleu-4", "rouge-l", "cider-d"]
ENGLISH = ["a dog runs over the green grass", "a boy in a red shirt plays football"]
CHINESE = ["一只狗在绿色的草地上奔跑。", "一个穿着红色衬衫的男孩在踢足球。"]
THAI = ["สุนัขกำลังวิ่งบนสนามหญ้าสีเขียว", "เด็กผู้ชายใส่เสื้อสีแดงเล่นฟุตบอล"]
JAPANESE = ["緑の芝生の上を犬が走っている。", "赤いシャツの男の子がサッカーをしている。"]


def scores(predictions, references):
    """Return each metric's score and note."""
    metrics = make_metrics(NAMES)
    rows = {n: m.rows([Prediction(label=p) for p in predictions], references) for n, m in metrics.items()}
    return {n: float(m.score(rows[n].sum(0))) for n, m in metrics.items()}, {m.note for m in metrics.values()}


@pytest.mark.parametrize("captions", [CHINESE, THAI, JAPANESE], ids=["chinese", "thai", "japanese"])
def test_one_wrong_character_costs_little(captions):
    references = [[caption] for caption in captions]
    right, notes = scores(captions, references)
    assert notes == {"unit: characters, of scripts without spaces"}
    assert right == pytest.approx(dict.fromkeys(NAMES[:5], 1.0) | {"cider-d": 10.0}, abs=1e-6)
    near, _ = scores([captions[0].replace(captions[0][3], "牛", 1), captions[1]], references)
    for name in NAMES:
        assert 0.6 * right[name] < near[name] < right[name]


def test_characters_are_scored_as_words_would_be():
    """The same captions with a space at each character, in letters that COCO's tokenizer leaves alone."""

    def spelled(caption):
        return " ".join(f"w{ord(c)}" for c in caption if c != "。")

    predictions = ["一只猫在绿色的草地奔跑。", CHINESE[1]]
    found, _ = scores(predictions, [[c] for c in CHINESE])
    expected, notes = scores([spelled(p) for p in predictions], [[spelled(c)] for c in CHINESE])
    assert found == pytest.approx(expected)
    assert notes == {""}


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("我爱 Python 3，真的！", "我 爱 python 3 真 的"),
        ("我爱Python", "我 爱 python"),
        ("「犬」が、走る…", "犬 が 走 る"),
        ("か\u3099ー", "が ー"),
        ("กำลัง", "ก ำ ลั ง"),
        ("图𠮷 ຬ ༳", "图 𠮷 ຬ ༳"),
        ('(一)"二" it\'s', "-lrb- 一 -rrb- 二 it 's"),
        ("", ""),
        ("。", ""),
        ("A Dog", "a dog"),
    ],
)
def test_characters_are_letters_with_their_marks(caption, tokens):
    assert tokenize_characters([caption]) == (tokens,)


def test_other_captions_are_compared_by_words_as_before():
    signs = ["a sign that says 停车 in red", "the words 公園でサッカーをしている子供たち on a wall"]
    _, notes = scores(signs, [[sign] for sign in signs])
    assert notes == {""}
    exact, _ = scores(["a sign that says 停在 in red", signs[1]], [[sign] for sign in signs])
    assert exact["bleu-1"] == pytest.approx(12 / 13), "each is one word"
    _, notes = scores(["我爱 Python 和 C"], [["我爱 Python 和 C 语言"]])
    assert notes == {"unit: characters, of scripts without spaces"}
    _, notes = scores(["개가 달린다", "소년"], [["개가 달린다"], ["소년"]])
    assert notes == {""}


def test_each_example_has_the_unit_of_its_references():
    captions = [CHINESE[0], ENGLISH[0]]
    found, notes = scores(captions, [[caption] for caption in captions])
    assert notes == {"unit: characters, of scripts without spaces in 1 of 2 examples, words in the others"}
    assert found["bleu-4"] == pytest.approx(1)
    english, _ = scores([ENGLISH[1]], [[CHINESE[0], CHINESE[1]]])
    assert english["bleu-1"] < 0.01
    foreign, notes = scores([CHINESE[0]], [[ENGLISH[0]]])
    assert foreign["bleu-1"] < 0.01
    assert notes == {""}


def test_an_evaluation_says_its_unit(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "answer": caption} for caption in CHINESE]
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    folder = mmzoo.build(tiny("cnn-prefix-gpt"), seed=0).save(tmp_path / "model")
    metrics = ["bleu-4", "cider-d", "exact-match", "vqa-accuracy"]
    done = mmzoo.evaluate(folder, dataset=str(tmp_path / "test.jsonl"), split="test", metrics=metrics, progress=False)
    note = "unit: characters, of scripts without spaces"
    assert str(done).endswith(f"\nbleu-4, cider-d: {note}")
    (recorded,) = json.loads((folder / "run.json").read_text())["evaluations"]
    assert recorded["notes"] == {"bleu-4": note, "cider-d": note}
    card = (folder / "README.md").read_text()
    assert f"\n\nbleu-4: {note};\ncider-d: {note}.\n" in card
    assert mmzoo.verify(folder, dataset=str(tmp_path / "test.jsonl"), progress=False).reproduced
