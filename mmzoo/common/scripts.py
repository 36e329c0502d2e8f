"""Name the characters of scripts that are written without spaces between words."""

from __future__ import annotations

# Ranges for a character class of Python's regular expressions and of the tokenizers library's. Blocks of Unicode, so that marks
# and punctuation that belong to several scripts are in it. Korean, which has spaces, is not.
UNSPACED = "".join(
    f"{chr(first)}-{chr(last)}"
    for first, last in (
        (0x0E00, 0x109F),  # Thai, Lao, Tibetan, Myanmar
        (0x1780, 0x17FF),  # Khmer
        (0x1950, 0x19FF),  # Tai Le, New Tai Lue, Khmer symbols
        (0x1A20, 0x1AAF),  # Tai Tham
        (0x1B00, 0x1B7F),  # Balinese
        (0x2E80, 0x312F),  # radicals, punctuation, kana, bopomofo
        (0x3190, 0xA4CF),  # ideographs and what is around them, Yi
        (0xA980, 0xA9FF),  # Javanese, Myanmar
        (0xAA60, 0xAADF),  # Myanmar, Tai Viet
        (0xF900, 0xFAFF),  # compatibility ideographs
        (0xFE30, 0xFE4F),  # vertical punctuation
        (0xFF01, 0xFF9F),  # full-width forms, half-width katakana
        (0x1AFF0, 0x1B16F),  # kana
        (0x20000, 0x3FFFD),  # ideographs
    )
)
