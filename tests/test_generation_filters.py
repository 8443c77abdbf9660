"""The quality filter, sampling, prompts and the starter generator's tokenizer."""

import numpy as np
import orjson
import pytest
from cli_cases import run_cli, write_lines

from xqg_vdb.errors import DataError, MissingExtra, ModelError
from xqg_vdb.export import starter_generator
from xqg_vdb.export.starter_generator import build_generator_checkpoint, build_tokenizer
from xqg_vdb.generate.filters import QueryFilter, filter_file, is_question, look, reasons_in
from xqg_vdb.generate.prompts import EXAMPLES, chat, few_shot, translation
from xqg_vdb.models.decoder import Decoding, draw, row_key, uniforms
from xqg_vdb.texts.languages import question_bank
from xqg_vdb.types import GeneratedQueries, Passage

GERMAN = "Wann wurde die erste Universität in Deutschland gegründet?"


def reasons(lang, *texts):
    ((good, faults),) = QueryFilter(examples=("How long is the Nile?",)).judge([GeneratedQueries("p", {lang: texts})])
    assert len(good.queries[lang]) + len(faults.get(lang, [])) == len(texts)
    return faults.get(lang, [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GERMAN, None),
        ("", "empty"),
        ("?? 12 !", "empty"),
        ("Wann " * 60 + "?", "too long"),
        ("Wo ist mein mein mein mein mein mein mein Haus?", "repetitive"),
        ("Was ist 1000000000000?", None),
        ("Wann war das Jahr der Jahr der Jahr zu Ende?", "repetitive"),
        ("Wer sang Bye Bye Bye?", None),
        ("Was ist 7 mal 7 mal 7?", None),
        ("Was ist aaaaaaaaaaaa?", "repetitive"),
        ("how long is the  Nile", "copied example"),
        ("Die erste Universität wurde 1386 gegründet.", "no question"),
        ("When was the first university in Germany founded?", "wrong language"),
    ],
)
def test_every_rule(text, reason):
    assert reasons("de", text) == [reason] * (reason is not None)


def test_no_shipped_question_goes_round():
    known = [GeneratedQueries(lang, {lang: texts}) for lang, texts in question_bank().items()]
    assert "repetitive" not in reasons_in(QueryFilter(skip=("wrong language",)).judge(known))
    assert "repetitive" in reasons("sw", "Ni nchi ya nchi ya nchi gani?")


def test_a_look_shows_three_examples_and_doubts_what_does_not_tell_passages_apart():
    bank = question_bank()
    same = ["Nani alichaguliwa wapi?" if i % 4 == 0 else text for i, text in enumerate(bank["sw"][:20])]
    records = [
        GeneratedQueries(str(i), {"sw": (text,), "de": (bank["en"][i],), "fr": (bank["fr"][i],)})
        for i, text in enumerate(same)
    ]
    examples, doubts = look(records)
    assert examples["fr"] == list(bank["fr"][:3]) and examples.keys() == {"sw", "de", "fr"}
    assert [doubt.split(":")[0] for doubt in doubts] == ["sw", "de"]
    assert '"Nani alichaguliwa wapi?" stands under 5 of 20 passages' in doubts[0]
    assert "most queries are in en: the model is not fit for de" in doubts[1]
    assert look([]) == ({}, [])
    going_round = [GeneratedQueries("1", {"sw": ("Nchi ya nchi ya nchi ya nchi ya nchi?", bank["sw"][0])})]
    assert look(going_round)[1][0].startswith('sw: 1 of 2 queries repeat themselves, such as "Nchi ya nchi')


def test_the_second_of_two_equal_queries_is_repeated():
    assert reasons("de", GERMAN, GERMAN.lower(), "Wer hat das Telefon erfunden?") == ["repeated"]


def test_a_language_that_detection_does_not_know_is_not_judged():
    known = question_bank()["bem"][:3]
    assert reasons("bem", *known) == []


def test_shipped_questions_are_questions():
    wrong = [(lang, text) for lang, texts in question_bank().items() for text in texts if not is_question(text, lang)]
    assert wrong == []


def test_reasons_are_counted():
    judged = QueryFilter().judge([GeneratedQueries("p", {"de": ("", GERMAN), "el": ("",)})])
    assert reasons_in(judged) == {"empty": 2}


def test_row_keys_differ_in_every_part():
    keys = {
        row_key(s, p, lang, i) for s in (1, 2) for p in ("a", "b", "a\x1fde") for lang in ("de", "sw") for i in range(3)
    }
    assert len(keys) == 36


def test_uniform_numbers_are_uniform_and_per_key():
    keys = np.array([row_key(0, "p", "de", i) for i in range(4000)], np.uint64)
    first, second = uniforms(keys, 0), uniforms(keys, 1)
    assert first.min() >= 0 and first.max() < 1
    assert abs(first.mean() - 0.5) < 0.02 and abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert (uniforms(keys[::-1], 0) == first[::-1]).all()


def test_draws_follow_the_softmax_of_the_best():
    keys = np.array([row_key(0, "p", "de", i) for i in range(8000)], np.uint64)
    scores = np.tile(np.array([[2.0, 1.0, 0.0]], np.float32), (8000, 1))
    tokens = np.tile(np.array([[7, 8, 9]]), (8000, 1))
    drawn = draw(scores, tokens, keys=keys, step=3, temperature=0.5)
    expected = np.exp([4.0, 2.0, 0.0]) / np.exp([4.0, 2.0, 0.0]).sum()
    assert np.abs([(drawn == t).mean() for t in (7, 8, 9)] - expected).max() < 0.02


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"temperature": 0.0}, {"max_tokens": 0}, {"mode": "best"}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Decoding(**wrong)


def test_prompts_name_the_language_last_and_put_the_passage_before_it():
    passage = Passage("1", "Line one.\n Line  two.", title="A title")
    for prompt in (few_shot(), few_shot(pivot=True), chat("<user>", "<model>")):
        before, after = prompt.passage_parts(passage)
        assert before == "Passage: A title. Line one. Line two." and after.startswith("\n")
    assert few_shot().ending("sw") == "Question in Swahili:"
    assert chat("", "<model>").ending("sw").endswith("Write it in Swahili.<model>")
    assert few_shot().cut(" What  is it?\nQuestion") == "What is it?"
    assert set(few_shot().examples) == {question for _, questions in EXAMPLES for question in questions}


def test_translation_prompt_pairs_lines_of_the_bank():
    prompt = translation("sw", pairs=2)
    assert prompt.prefix.startswith("English: Who invented the telephone?\nSwahili: Nani alivumbua simu?\n\nEnglish:")
    assert prompt.prefix.endswith("\n\n") and len(prompt.examples) == 2
    with pytest.raises(DataError, match=r"has no example questions in Latin \(la\); it knows af, am"):
        translation("la")


def test_the_rebuilt_tokenizer_merges_by_score_and_falls_back_to_bytes():
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "\n\n", "<0xC3>", "<0xA9>", "a", "b", "c", "▁", "bc", "ab", "▁a"]
    types = [3, 3, 3, 3, 4, 6, 6, *[1] * 7]
    scores = [-1000.0] * 5 + [0.0, 0.0] + [-9.0] * 4 + [-1.0, -2.0, -3.0]
    tokenizer = build_tokenizer(tokens, scores, types)
    assert tokenizer.encode("abc").tokens == ["<bos>", "a", "bc"]
    assert tokenizer.encode("ab a\n\né").tokens == ["<bos>", "ab", "▁a", "\n\n", "<0xC3>", "<0xA9>"]
    ids = tokenizer.encode("ab a\n\né").ids
    assert tokenizer.decode(ids) == "ab a\n\né"


def test_the_licence_must_be_accepted_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(starter_generator, "_locate", lambda package, file: tmp_path / file)
    with pytest.raises(
        ModelError, match=r"Gemma Terms of Use found at https://ai.google.dev/gemma/terms .*--accept-license"
    ):
        build_generator_checkpoint(tmp_path / "out", accept_license=False)
    assert not (tmp_path / "out").exists()


def test_damaged_weights_and_missing_packages(tmp_path, monkeypatch):
    part = tmp_path / "part"
    part.write_bytes(b"not the weights")
    monkeypatch.setattr(starter_generator, "_locate", lambda package, file: part)
    with pytest.raises(ModelError, match=r"have SHA-256 .* expected a5fd3b62"):
        build_generator_checkpoint(tmp_path / "out", accept_license=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["part"]
    monkeypatch.undo()
    monkeypatch.setattr(starter_generator, "PARTS", [("gemma3-270m-no-such-part", "x")])
    with pytest.raises(MissingExtra, match="needs the gemma3-270m-no-such-part package"):
        build_generator_checkpoint(tmp_path / "out", accept_license=True)


def test_a_finished_file_is_filtered_with_its_certificate(tmp_path):
    raw, out = tmp_path / "raw.jsonl", tmp_path / "good.jsonl"
    raw.write_text(f'{{"id": "1", "generated_queries": {{"de": ["{GERMAN}", "nein"], "sw": [""]}}}}\n', "utf-8")
    (tmp_path / "raw.jsonl.provenance.json").write_text('{"n": 2, "queries": 3}')
    provenance = filter_file(raw, out, query_filter=QueryFilter())
    assert provenance["n"] == 2 and provenance["queries"] == 1
    assert provenance["rejected"] == {"empty": 1, "no question": 1}
    assert orjson.loads(out.read_bytes()) == {"id": "1", "generated_queries": {"de": [GERMAN], "sw": []}}
    (tmp_path / "bad.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(DataError, match=r"bad.jsonl line 1: "):
        filter_file(tmp_path / "bad.jsonl", tmp_path / "x.jsonl", query_filter=QueryFilter())
    assert not (tmp_path / "x.jsonl").exists()


def test_the_filter_command(tmp_path):
    record = {"id": "1", "generated_queries": {"de": [GERMAN, "nein", f"{GERMAN} {GERMAN}"]}}
    write_lines(tmp_path / "raw.jsonl", [record])
    arguments = ["filter", "raw.jsonl", "good.jsonl", "--max-characters", len(GERMAN), "--json"]
    done = run_cli(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    said = orjson.loads(done.stdout)
    assert said["queries"] == 1 and said["rejected"] == {"no question": 1, "too long": 1}
    again = run_cli(tmp_path, *arguments)
    assert (again.returncode, "is there already" in again.stderr) == (3, True)
    (tmp_path / "empty.jsonl").touch()
    empty = run_cli(tmp_path, "filter", "empty.jsonl", "x.jsonl")
    assert (empty.returncode, "holds no generated queries" in empty.stderr) == (3, True)
    assert not (tmp_path / "x.jsonl").exists()
