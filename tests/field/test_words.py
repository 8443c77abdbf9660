"""Words of BM25 that strangers' texts brought: numbers, kanji alone, invisible signs, letters that keyboards mix."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench_cases import encoder

from xqg_vdb import load
from xqg_vdb.index.load import LoadOptions
from xqg_vdb.store import open_store
from xqg_vdb.store.bm25 import WordWriter, split_words
from xqg_vdb.types import Bm25Settings, Hybrid, Search

INPUTS = Path(__file__).parent / "inputs"


@pytest.mark.parametrize(
    ("file", "question", "first"),
    [
        ("numbers.jsonl", "Apollo 13", "a13"),
        ("numbers.jsonl", "Boeing 737 engines", "737"),
        ("numbers.jsonl", "Boeing ７７７", "777"),
        ("ja.jsonl", "東京", "tokyo"),
        ("ja.jsonl", "大阪 西部", "osaka"),
        ("ja.jsonl", "京都寺", "kyoto"),
    ],
)
def test_the_words_of_a_question_find_their_passage(tmp_path, file, question, first):
    shutil.copy(INPUTS / file, tmp_path)
    with open_store(tmp_path / "store") as store:
        options = LoadOptions(hybrid=Hybrid())
        collection = load(tmp_path / file, "c", encoder=encoder(), store=store, options=options).collection
        asked = WordWriter(collection.card.bm25).question(question)
        hits = collection.nearest([asked], Search(5, using="text-sparse"))[0]
    assert hits[0].id == first and (len(hits) == 1 or hits[0].score > hits[1].score)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("co\u00adoperate", "cooperate"),
        ("\ufeffword", "word"),
        ("می\u200cخواهم", "میخواهم"),
        ("علی", "علي"),
        ("کتاب", "كتاب"),
        ("أحمد", "احمد"),
        ("مُحَمَّد", "محمد"),
        ("مـحـمد", "محمد"),
        ("Straße", "STRASSE"),
        ("GROẞ", "groß"),
        ("İstanbul", "istanbul"),
        ("ﬁne", "fine"),
        ("１３", "13"),
        ("١٣", "13"),
        ("१३", "13"),
        ("ｶﾀｶﾅ", "カタカナ"),
        ("L’eau", "l'eau"),
        ("ΟΔΟΣ", "οδος"),
        ("e\u0301t", "ét"),
        ("6,650 km", "6650 km"),
        ("6\u202f650", "6650"),
        ("1'234'567", "1234567"),
        ("ISPARTA DIYARBAKIR", "ısparta Diyarbakır"),
        ("שָׁלוֹם", "שלום"),
        ("Σίσυφος", "ΣΙΣΥΦΟΣ"),
        ("ёлка", "елка"),
        ("e\u034ft\ufe0f", "et"),
        ("𝟚𝟘②", "202"),
        ("пʼять", "п'ять"),
        ("oʻzbek", "o’zbek"),
        ("Sony™", "sony"),
        ("cœur", "coeur"),
        ("٢٬٥٠٠", "2,500"),
        ("ﷺ", "صلى الله عليه وسلم"),
        ("don´t", "don't"),
        ("１，２３４", "1234"),
        ("12,34,567", "1234567"),
        ("ὁ ἄνθρωπος", "ο ανθρωπος"),
        ("അവന്\u200d", "അവൻ"),
        ("هٔ ڪتاب", "ه كتاب"),
        ("Ni\u0332le\u0332", "Nile"),
        ("U.S.A.", "USA"),
        ("J. R. R. Tolkien", "J.R.R. Tolkien"),
        ("ሠላም ዓለም ኃይል ፀሐይ", "ሰላም አለም ሀይል ጸሀይ"),
        ("हिन्दी चाँद हज़ार", "हिंदी चांद हजार"),
        ("București", "Bucureşti"),
        ("เเม่น้ํา", "แม่น้ำ"),
        ("+49 30 1234567", "+49-30-1234567"),
        ("(555) 123-4567", "555.123.4567"),
        ("👍🏽", "👍"),
        ("1️⃣", "1"),
        ('צה"ל', "צה״ל"),
    ],
)
def test_spellings_of_one_word_are_one_word(one, other):
    assert split_words(one).split() == split_words(other).split() != []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Python 3.11", "Python 3.12"),
        ("2024-01-13", "2024-01-14"),
        ("1.5", "15"),
        ("F-16", "F-15"),
        ("1999,200", "1999200"),
    ],
)
def test_other_numbers_are_other_words(one, other):
    assert split_words(one).split() != split_words(other).split()


def test_two_initials_are_found_where_together_they_are_a_stop_word():
    assert {"it", "t"} <= set(split_words("I.T.").split()) and "eu" in split_words("E.U.").split()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5km", "5 km"),
        ("5 km", "5-km"),
        ("e-mail", "email"),
        ("e‐mail", "e mail"),
        ("1.234.567", "1,234,567"),
        ("1 234 567", "1234567"),
        ("12 345km", "12,345 km"),
        ("inter-\nnational", "international"),
        ("inter\u00ad\r\n  national", "international"),
        ("C++", "cplusplus"),
        ("C#, F♯", "csharp"),
        ("c＋＋17", "C++ 17"),
        ("O’Brien", "OBrien"),
        ("l’eau", "eau"),
        ("F-16", "F16"),
        ("COVID-19", "covid19"),
        ("intel·ligent", "intelligent"),
        ('צה"ל', "צהל"),
        ("AT&T", "att"),
        ("🇰🇪🇹🇿", "🇹🇿"),
        ("a 🍕!", "🍕"),
    ],
)
def test_one_piece_and_two_share_words(one, other):
    stop = {"a", "km", "c", "f", "l", "e", "o", "t"}
    assert (set(split_words(one).split()) & set(split_words(other).split())) - stop


@pytest.mark.parametrize(("one", "other"), [("C++", "C"), ("C#", "C"), ("🇰🇪", "🇰🇷"), ("Notepad++", "notepad")])
def test_a_sign_makes_a_word_of_its_own(one, other):
    assert set(split_words(one).split()) - set(split_words(other).split())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plan b. i think", "plan b i think"),
        ("in 2010 123 people", "in 2010 123 people"),
        ("word--another -- 'quoted'", "word another quoted"),
        ("H2O, b2b, F16", "h2o b2b f16"),
        ("a+b ++i #tag", "a b i tag"),
    ],
)
def test_what_only_looks_like_it_stays(text, words):
    assert split_words(text).split() == words.split()


def test_marks_stay_in_the_words_that_they_are_part_of():
    assert split_words("हिन्दी में लिखा").split() == ["हिंदी", "में", "लिखा"]


@pytest.mark.parametrize(
    ("text", "part"), [("서울은 수도", "서울"), ("ภาษาไทย", "ไทย"), ("尼罗河有多长", "尼罗河"), ("東京駅", "東京")]
)
def test_a_part_of_a_text_without_blanks_shares_its_words(text, part):
    assert set(split_words(part).split()) <= set(split_words(text).split())


def test_a_collection_of_an_earlier_version_keeps_its_words():
    earlier = Bm25Settings.from_json({"lang": "none", "avg_len": 7.0, "k": 1.2, "b": 0.75})
    assert earlier.words == 1
    assert len(WordWriter(earlier).question("13").indices) == 0  # as its passages were written
    assert len(WordWriter(Bm25Settings(words=2)).question("13").indices) == 1
    assert len(WordWriter(Bm25Settings(words=2)).question("6,650").indices) == 2
    assert len(WordWriter(Bm25Settings(words=3)).question("6,650").indices) == 1
    assert len(WordWriter(Bm25Settings(words=3)).question("e-mail").indices) == 2
    assert len(WordWriter(Bm25Settings(words=4)).question("e-mail").indices) == 3
