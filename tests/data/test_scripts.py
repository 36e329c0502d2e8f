"""Tokenizers learned from texts of every script, and from very long words."""

import json
import re
import unicodedata

import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import mmzoo
from mmzoo.data import vocabulary
from mmzoo.testing import tiny

ALPHABETIC = [
    "A man rides a (red) bicycle; it's 3.5 km to St. John's!",
    "woman: medium-light skin tone 👩🏽‍🦱 — “curly” don’t, e.g. U.S. 🤷",
    "Zwei Männer fahren über die Straße, größer als 10 %.",
    "L'été, les élèves français mangent des crêpes à l'abri ; n'est-ce pas ?",
    "Привет, мир! Καλημέρα κόσμε. مرحبا بالعالم؟ नमस्ते दुनिया। 안녕하세요 세계 שלום עולם",
    "http://example.org/a_b?c=d&e=f#g ##heading $5 a+b=c x^2",
    "x" * 100,
]
UNSPACED = {
    "chinese": "一个穿着红色衣服的小女孩在公园的草地上和一只白色的小狗一起玩耍，" * 4,
    "japanese": "公園でサッカーをしている子供たちの写真です。か\u309aーヽ々〇",
    "thai": "เด็กผู้หญิงกำลังเล่นกับสุนัขในสวนสาธารณะ วันนี้อากาศดี",
    "khmer": "ក្មេងស្រីកំពុងលេងជាមួយឆ្កែនៅក្នុងសួន",
    "lao": "ເດັກຍິງກຳລັງຫຼິ້ນກັບໝາຢູ່ໃນສວນ",
    "burmese": "ကလေးမလေးသည်ပန်းခြံထဲတွင်ခွေးနှင့်ကစားနေသည်",
    "tibetan": "བོད་ཀྱི་སྐད་ཡིག་",
}
MIXED = [
    "我爱 Python 3",
    "我爱Python3，你呢?",
    "用 iPhone 拍的(照片) 第3张",
    "我 爱 你",
    "一家人👨‍👩‍👧‍👦在 🏖️ 玩",
    "漢字と한국어 와 English",
    "e\u0301clair を食べる",
    "图𠮷野家",
    "https://example.org/" + "a" * 150 + "/b?c=d 的网页",
    "before " + "ab12" * 300 + " after",
]


def learned(texts, verbatim):
    return vocabulary.make_tokenizer(vocabulary.learn_vocabulary(texts, 2000, verbatim=verbatim), verbatim=verbatim)


def without_spaces(text):
    return re.sub(r"\s", "", text).lower()


@pytest.mark.parametrize("verbatim", [True, False])
def test_alphabetic_texts_are_read_as_without_the_rules_for_other_scripts(verbatim):
    """Compare with the plain pipeline of the library."""

    def prepare(tokenizer):
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *([] if verbatim else [normalizers.Lowercase()])])
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if verbatim else pre_tokenizers.BertPreTokenizer()
        return tokenizer

    plain = prepare(Tokenizer(models.WordPiece(unk_token="[UNK]")))
    characters = {c for text in ALPHABETIC for c in plain.normalizer.normalize_str(text) if not c.isspace()}
    first = vocabulary.SPECIAL + sorted("##" + c for c in characters)
    plain.train_from_iterator(ALPHABETIC, trainers.WordPieceTrainer(vocab_size=2000, special_tokens=first, show_progress=False))
    units = vocabulary.SPECIAL + sorted(set(plain.get_vocab()) - set(vocabulary.SPECIAL))
    assert vocabulary.learn_vocabulary(ALPHABETIC, 2000, verbatim=verbatim) == units
    plain = prepare(Tokenizer(models.WordPiece({unit: i for i, unit in enumerate(units)}, unk_token="[UNK]")))
    plain.decoder = decoders.WordPiece(prefix="##", cleanup=not verbatim)
    tokenizer = vocabulary.make_tokenizer(units, verbatim=verbatim)
    for text in [*ALPHABETIC, *(text[::-1] for text in ALPHABETIC)]:
        ids = plain.encode(text).ids
        assert tokenizer(text)["input_ids"] == ids
        assert tokenizer.decode(ids) == plain.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("script", UNSPACED)
@pytest.mark.parametrize("verbatim", [True, False])
def test_characters_of_scripts_without_spaces_are_tokens(script, verbatim):
    text = UNSPACED[script]
    tokenizer = learned([text], verbatim)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(set(ids)) == len(set(text)), "no sentence is learned by heart"
    other = unicodedata.normalize("NFC", text[::-1].strip())  # reversed marks are in another order
    assert tokenizer.decode(tokenizer(other)["input_ids"]) == other
    one = tokenizer(text[:3] + "䶮" + text[3:6])["input_ids"]
    assert one.count(tokenizer.unk_token_id) == 1, "a character that was not learned takes no others with it"


@pytest.mark.parametrize("text", MIXED)
def test_mixed_texts_come_back(text):
    exact = learned(MIXED, True)
    ids = exact(text)["input_ids"]
    assert exact.unk_token_id not in ids
    assert exact.decode(ids) == text.replace("e\u0301", "é")
    loose = learned(MIXED, False)
    ids = loose(text)["input_ids"]
    assert loose.unk_token_id not in ids
    assert without_spaces(loose.decode(ids)) == without_spaces(text.replace("e\u0301", "é"))
    if "?" not in text and "(" not in text:
        assert loose.decode(ids) == text.lower().replace("e\u0301", "é"), "only spaces at punctuation may differ"


@pytest.mark.parametrize("verbatim", [True, False])
def test_a_long_word_is_no_unknown_token_though_none_was_learned(verbatim):
    tokenizer = learned(["short words of abcdefghijklmnopqrstuvwxyz"], verbatim)
    word = "abcdefghijklmnopqrstuvwxyz" * 40
    ids = tokenizer(word)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == word


def test_a_long_text_without_spaces_takes_linear_time():
    tokenizer = learned(["一二三四五六七八九十abcdef"], True)
    text = "一二三四五六七八九十" * 5000 + "abcdef" * 5000
    assert len(tokenizer(text)["input_ids"]) < 90_000


def test_the_tokenizer_of_a_checkpoint_is_the_same(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = learned(MIXED, True)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in MIXED:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])


CAPTIONS = {
    "black": "黑色的方块，什么也看不见",
    "red": "一个红色的方块在画面的中央，它的周围什么都没有",
    "lime": "绿色的草地",
    "blue": "蓝色的天空 和 Python 3 的标志",
    "white": "白色的雪山上有一只黑色的狗在奔跑，后面跟着一群孩子" * 5,
}


@pytest.mark.slow
@pytest.mark.parametrize("verbatim", [True, False])
def test_a_model_learns_to_write_chinese(tmp_path, verbatim):
    rows = []
    for name, caption in CAPTIONS.items():
        Image.new("RGB", (32, 32), name).save(tmp_path / f"{name}.png")
        rows += [{"image": f"{name}.png", "answer": caption}] * 4
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    language = {"use": "gpt-mini", "dim": 64, "context": 256, "verbatim": verbatim}
    options = {"max_steps": 120, "batch_size": 10, "learning_rate": 5e-3, "precision": "fp32", "seed": 0}
    mmzoo.train(
        tiny("cnn-prefix-gpt"),
        dataset=str(tmp_path / "train.jsonl"),
        output=tmp_path / "model",
        language_model=language,
        task={"use": "caption", "max_new_tokens": 160},
        training=options,
        progress=False,
    )
    model = mmzoo.load(tmp_path / "model")
    written = {name: model.predict(image=str(tmp_path / f"{name}.png")).label for name in CAPTIONS}
    assert written == {name: caption if verbatim else caption.lower() for name, caption in CAPTIONS.items()}
