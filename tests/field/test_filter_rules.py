"""The text filter on queries that people type: searches without a mark, other languages, numbers."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from cli_cases import run_cli, write_lines

from xqg_vdb.generate.filters import QueryFilter, is_question
from xqg_vdb.texts.languages import question_bank
from xqg_vdb.types import GeneratedQueries

INPUTS = Path(__file__).parent / "inputs"


def test_searches_as_people_type_them_are_good(tmp_path):
    shutil.copy(INPUTS / "marco.jsonl", tmp_path)
    done = run_cli(tmp_path, "filter", "marco.jsonl", "good.jsonl", "--skip", "wrong language", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 0 and said["queries"] == 7 and said["rejected"] == {}


@pytest.mark.parametrize(
    ("lang", "text"),
    [("en", "In which year was the bridge over the river built and opened."), ("de", "wie lang ist der nil."),
     ("ja", "ナイル川はどこに流れていますか。"), ("zh", "尼罗河有多长。"), ("ko", "나일강의 길이는 얼마입니까."),
     ("sw", "Mto Nile una urefu gani."), ("hi", "नील नदी कितनी लंबी है।"), ("tr", "Nil nehri kaç kilometre."),
     ("en", "find the population of the city of cairo in the year 2010"),
     ("de", "nenne den längsten fluss in ganz afrika und in asien"),
     ("fr", "explique comment les abeilles font le miel en été"),
     ("ru", "объясни как пчёлы делают мёд летом и зимой в улье"),
     ("tr", "arıların balı nasıl ve neden yaptığını bize kısaca açıkla"),
     ("th", "บอกชื่อแม่น้ำที่ยาวที่สุดในทวีปแอฟริกาและเอเชีย"), ("zh", "请介绍一下尼罗河流域的国家以及它们的首都和人口。"),
     ("ko", "꿀벌이 벌집에서 꿀을 만드는 방법을 여름과 겨울로 나누어 자세히 설명하세요"),
     ("ja", "ミツバチが巣の中で蜜をどうやって作るのか詳しく説明してください。"), ("km", "ទន្លេនីល"),
     ("pl", "w którym roku otwarto kanał sueski dla wszystkich statków świata dokładnie"),
     ("ru", "в каком году был открыт суэцкий канал для всех судов мира сегодня"),
     ("uk", "у якому році відкрили суецький канал для всіх кораблів світу нарешті"),
     ("he", "באיזו שנה נפתחה תעלת סואץ לכל האוניות של העולם כולו בפעם הראשונה"),
     ("fi", "minä vuonna suezin kanava avattiin kaikille maailman laivoille lopullisesti"),
     ("en", "weather"), ("en", "is nairobi the capital of kenya"),
     ("en", "please name the capital of kenya and of its neighbours now"),
     ("de", "hauptstadt kenia"), ("en", "nairobi is where"), ("sv", "är nairobi huvudstad i kenya"),
     ("es", "síntomas de la gripe"), ("th", "แม่น้ำไนล์ยาวเท่าไร")],
)  # fmt: skip
def test_it_asks_or_searches(lang, text):
    assert is_question(text, lang)


@pytest.mark.parametrize(
    ("lang", "text"),
    [("en", "Nairobi is the capital of Kenya."), ("en", "Nairobi is the capital of Kenya"), ("en", "Birds can fly."),
     ("de", "Nairobi ist die Hauptstadt von Kenia."), ("nl", "Nairobi is de hoofdstad van Kenia"), ("en", "Nairobi"),
     ("sv", "Nairobi är huvudstad i Kenya."), ("no", "Nairobi er hovedstaden i Kenya"),
     ("de", "Die erste Universität wurde 1386 gegründet."), ("en", "The Nile is a river in Africa."), ("de", "nein"),
     ("pl", "Nil jest najdłuższą rzeką w Afryce."), ("ru", "Нил — самая длинная река Африки."),
     ("ja", "ナイル川は長い。"), ("en", "the nile is the longest river of africa and flows north to the sea")],
)  # fmt: skip
def test_a_statement_does_not(lang, text):
    assert not is_question(text, lang)


@pytest.mark.parametrize("lang", sorted(question_bank()))
def test_questions_that_end_with_a_full_stop_are_questions_in_every_language_of_the_prompts(lang):
    """Eight in ten: yes and no are asked for by the order of words alone, or by "or"."""
    texts = [re.sub(r"[?؟？;՞፧]", "", text).strip() + "." for text in question_bank()[lang]]
    assert sum(is_question(text, lang) for text in texts) >= 0.8 * len(texts)


@pytest.mark.parametrize(
    ("lang", "text"),
    [("fr", "Nairobi est la capitale du Kenya"), ("es", "Nairobi es la capital de Kenia"),
     ("pt", "Nairóbi é a capital do Quênia"), ("it", "Nairobi è la capitale del Kenya"),
     ("pl", "Nairobi jest stolicą Kenii"), ("ru", "Найроби является столицей Кении"),
     ("hi", "नैरोबी केन्या की राजधानी है"), ("fa", "نایروبی پایتخت کنیا است"), ("vi", "Nairobi là thủ đô của Kenya"),
     ("id", "Nairobi adalah ibu kota Kenya"), ("el", "Το Ναϊρόμπι είναι η πρωτεύουσα της Κένυας"),
     ("fi", "Nairobi on Kenian pääkaupunki"), ("sw", "Nairobi ni mji mkuu wa Kenya."),
     ("ka", "ნაირობი კენიის დედაქალაქია."), ("af", "Nairobi is die hoofstad van Kenia"),
     ("gu", "નૈરોબી કેન્યાની રાજધાની છે"), ("he", "ניירובי היא בירת קניה"), ("lt", "Nairobis yra Kenijos sostinė")],
)  # fmt: skip
def test_a_statement_in_other_languages_does_not(lang, text):
    assert not is_question(text, lang)


@pytest.mark.parametrize(
    ("lang", "question", "statement"),
    [
        ("is", "er Naíróbí höfuðborg Kenía", "Naíróbí er höfuðborg Kenía"),
        ("mk", "дали Најроби е главен град на Кенија", "Најроби е главен град на Кенија"),
        ("sq", "a është Nairobi kryeqyteti i Kenias", "Nairobi është kryeqyteti i Kenias"),
        ("cy", "ai Nairobi yw prifddinas Kenya", "Nairobi yw prifddinas Kenya"),
        ("ga", "cá fhad atá abhainn na Níle", "Is abhainn fhada í an Níl"),
        ("gl", "canto mide o río Nilo en total", "Nairobi é a cidade que ten máis habitantes en Kenya"),
        ("eo", "ĉu Nairobi estas la ĉefurbo de Kenjo", "Nairobi estas la ĉefurbo de Kenjo"),
        ("ht", "èske Nairobi se kapital Kenya", "Nairobi se kapital Kenya"),
        ("su", "naha Nairobi ibu kota Kenya", "Nairobi teh ibu kota Kenya"),
        ("ps", "ایا نایروبي د کینیا پلازمېنه ده", "نایروبي د کینیا پلازمېنه ده"),
        ("ku", "gelo Nairobi paytexta Kenyayê ye", "Nairobi paytexta Kenyayê ye"),
        ("mn", "Найроби бол Кенийн нийслэл үү", "Найроби бол Кенийн нийслэл"),
        ("uz", "Nil daryosining uzunligi qancha", "Nayrobi Keniyaning poytaxti"),
        ("mt", "kemm hu twil ix-xmara Nil", "Nairobi hija l-belt kapitali tal-Kenja"),
        ("la", "quot milia passuum Nilus fluit", "Nairobi caput Keniae est"),
        ("tg", "дарёи Нил дар куҷо ҷорӣ мешавад", "Найроби пойтахти Кения аст"),
        ("wo", "ndax Nairobi mooy kapitaalu Kenya", "Nairobi mooy kapitaalu Kenya"),
        ("be", "якая даўжыня ракі Ніл", "Найробі з'яўляецца сталіцай Кеніі"),
        ("bs", "kolika je li dužina rijeke Nil", "Nairobi je glavni grad Kenije"),
        ("bg", "Найроби столица ли е на Кения", "Найроби е столица на Кения"),
        ("id", "berapakah panjang sungai Nil", "Nairobi adalah ibu kota Kenya"),
        ("ja", "ナイロビはケニアの首都か", "ナイロビはケニアの首都である"),
    ],
)
def test_question_words_of_more_languages(lang, question, statement):
    stop = "。" if lang == "ja" else "."
    assert is_question(question + stop, lang) and not is_question(statement + stop, lang)


def test_digits_are_no_loop():
    texts = ("Who was number 1000000000000?", "What is 192.168.168.168.168?", "What is aaaaaaaaaa?")
    ((good, faults),) = QueryFilter(skip=("wrong language",)).judge([GeneratedQueries("p", {"en": texts})])
    assert good.queries["en"] == texts[:2] and faults == {"en": ["repetitive"]}


def test_a_rule_that_takes_more_than_half_is_named_and_can_be_switched_off(tmp_path):
    texts = ["The Nile is a very long river.", "The river is in Africa.", "How long is the river?"]
    write_lines(tmp_path / "q.jsonl", [{"id": "1", "generated_queries": {"en": texts}}])
    done = run_cli(tmp_path, "filter", "q.jsonl", "good.jsonl")
    assert 'The rule "no question" rejected more than half' in done.stderr and '--skip "no question"' in done.stderr
    done = run_cli(tmp_path, "filter", "q.jsonl", "all.jsonl", "--skip", "no question", "--json")
    assert json.loads(done.stdout)["queries"] == 3 and "more than half" not in done.stderr


@pytest.mark.parametrize(
    ("lang", "query"),
    [
        ("en", "has Egypt ever been ruled by a queen of Greek descent before"),
        ("en", "must one pay tax on income that was earned in another country"),
        ("de", "gibt es Krokodile im oberen Teil des Nils in Ägypten heute noch"),
        ("de", "fließt der Nil durch den Sudan bevor er nach Ägypten kommt"),
        ("nl", "heeft Napoleon op het eiland Sint Helena gewoond tot zijn dood"),
        ("sv", "har Napoleon bott på ön Sankta Helena tills han dog där"),
        ("da", "har Napoleon boet på øen Sankt Helena indtil han døde der"),
        ("no", "kan bier fly om natten når månen lyser veldig klart"),
        ("fr", "le Nil est-il le plus long fleuve du monde entier aujourd'hui"),
        ("fr", "peut-on boire l'eau du Nil quand on voyage en Égypte"),
        ("fi", "asuuko Niilin yläjuoksulla vielä krokotiileja nykyään kuten ennen vanhaan myös"),
        ("hu", "létezik-e krokodil a Nílus felső folyásán manapság is még mindig"),
        ("bg", "дали Нил е най-дългата река в целия свят в наши дни"),
    ],
)
def test_what_is_answered_by_yes_or_no_asks_by_its_order(lang, query):
    assert is_question(query, lang)


@pytest.mark.parametrize(
    ("lang", "statement"),
    [
        ("en", "Napoleon has lived on the island of Saint Helena until he died"),
        ("de", "Der Nil fließt durch den Sudan bevor er nach Ägypten kommt"),
        ("fr", "Le Nil est le plus long fleuve du monde entier aujourd'hui encore"),
        ("sv", "Napoleon har bott på ön Sankta Helena tills han dog där"),
    ],
)
def test_the_same_words_in_another_order_do_not_ask(lang, statement):
    assert not is_question(statement, lang)
