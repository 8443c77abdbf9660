"""What strangers' endpoints answer: reasoning, markup, talk, refusals, nothing. Every quirk is a real server's."""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from cli_cases import run_cli, write_lines

from xqg_vdb.errors import DataError, ServerError
from xqg_vdb.generate.endpoint import EndpointGenerator
from xqg_vdb.generate.prompts import query_of
from xqg_vdb.generate.run import Job, generate_file
from xqg_vdb.search.expand import Expander
from xqg_vdb.store import open_store
from xqg_vdb.texts.languages import question_bank
from xqg_vdb.types import Passage, Question

Q = "Mto Nile una urefu gani?"

GOOD = [
    f"<think>\nThe passage is about the Nile.\n</think>\n\n{Q}",
    f"<think>The Nile.</think>{Q}", f"The Nile.\n</think>{Q}",
    f"<think>a<think>b</think>c</think>{Q}", f"<thinking>a</thinking>{Q}", f"[THINK]a[/THINK]{Q}",
    f"◁think▷a◁/think▷{Q}",
    f"<seed:think>a</seed:think>{Q}", f"<|START_THINKING|>a<|END_THINKING|>{Q}",
    f"Here is my thought process: a\nHere is my response: {Q}",
    f"<|channel|>analysis<|message|>Need<|end|><|start|>assistant<|channel|>final<|message|>{Q}",
    f"<|start|>assistant<|channel|>final <|constrain|>json<|message|>{Q}<|return|>",
    f"analysisWe ask.assistantfinal{Q}",
    f"{Q}<|im_end|>", f"{Q}</s>", f"{Q}<end_of_turn>\n<start_of_turn>user", f"<|im_start|>assistant\n{Q}<|im_end|>",
    f"{Q}<｜end▁of▁sentence｜>", f"```\n{Q}\n```", f"```text\n{Q}\n```", f'```json\n{{"question": "{Q}"}}\n```',
    f'["{Q}"]', f"<answer>{Q}</answer>", f"Here is a question in Swahili:\n\n{Q}", f"Hapa kuna swali:\n{Q}",
    f"Sure! Here is a question in Swahili: {Q}", f"Sure thing! {Q}", f"Here is the question you asked for.\n{Q}",
    f"Question: {Q}", f"**Question in Swahili:** {Q}", f"Swahili: {Q}", f"Swali: {Q}", f"Question (Swahili): {Q}",
    f"Q1: {Q}",
    f"1. {Q}", f"1) {Q}\n2) Nini?", f"- {Q}", f"**{Q}**", f"*{Q}*", f"__{Q}__", f"`{Q}`", f"### {Q}", f"> {Q}",
    f"<b>{Q}</b>",
    f"**1. {Q}**", f'"{Q}"', f"“{Q}”", f"« {Q} »", f"{Q}\n\nThis question asks about its length.",
    f"<reason>a</reason>{Q}", f"Natürlich! Hier ist eine Frage: {Q}", f"Voici une question : {Q}",
    f"Hili hapa swali: {Q}",
    f"Claro, aquí tienes una pregunta: {Q}", f"好的，这是一个问题：{Q}",
    f"Вот вопрос: {Q}", f'<question lang="sw">{Q}</question>',
    f"{Q} (How long is the Nile?)", f"\ufeff{Q}", f"Sure! **1. Question:** {Q}",
    *(f"<{tag}>Nini?</{tag}>\n{Q}" for tag in
      ("thought_process", "inner_monologue", "plan", "cot", "chain_of_thought", "reasoning_content", "brainstorm")),
    f"<|thinking|>Nini?<|/thinking|>{Q}", f"<|thought_start|>Nini?<|thought_end|>{Q}",
    f"<|inner_prefix|>Nini?<|inner_suffix|>{Q}",
    f"[thinking]Nini?[/thinking]{Q}", f"[BEGIN THOUGHT]Nini?[END THOUGHT]{Q}",
    f"**Thinking:** What should I ask?\n\n**Answer:** {Q}", f"### Reasoning\nWhat?\n\n### Question\n{Q}",
    f"Reasoning: What should I ask? Perhaps.\nQuestion: {Q}", f"```thinking\nWhat?\n```\n{Q}",
    f"Thinking...\nWhat is asked?\n...done thinking.\n\n{Q}", f"analysis The user wants? assistantfinal{Q}",
    f"<swali>{Q}</swali>", f"<|start_of_role|>assistant<|end_of_role|>{Q}<|end_of_text|>",
    f"<|header_start|>assistant<|header_end|>\n\n{Q}<|eot|>", f"{Q}<pad><pad>", f"\u202b{Q}\u202c",
    Q.replace("?", "&#63;"),
    f"Question #1: {Q}", f"Q. {Q}", f"— {Q}", f"❓ {Q}", f"① {Q}", f"{Q} - How long is the Nile?",
    f'<?xml version="1.0"?><question>{Q}</question>', f"| Question |\n|---|\n| {Q} |", f"*** {Q} ***", f"{Q}[1]",
    f"<tool_call>ask<arg_key>question</arg_key><arg_value>{Q}</arg_value></tool_call>",
    f'{{"result":{{"question":"{Q}"}}}}', f"{Q} I hope this helps!", f"Sure, here you go: {Q}",
    f"As requested, a question in Swahili: {Q}", f"Swahili - {Q}", f"(Swahili) {Q}", f"[Swahili] {Q}", f"sw: {Q}",
    f"One possible question is: {Q}", f"Based on the passage, a short question could be: {Q}",
    f'The question is "{Q}"',
    *(f"{sign} {Q}" for sign in ("😊", "👉", "✅", "➡️", "1️⃣", "1 -", "1-", "[1]", "#1", "№1.", "Q1 -")), f"{Q} 😊",
    *(f"{word} {Q}" for word in ("Sawa!", "Klar!", "¡Claro!", "Bien sûr !", "当然！", "Конечно!", "Got it!", "Yes.")),
    *(f"{label}: {Q}" for label in ("Swali fupi", "Swali la Kiswahili", "Question one", "Assistant", "I would ask")),
    *(f"{Q} {label}: 6650" for label in ("Answer", "A", "Jibu", "答案")),
    f"【问题】{Q}", f"【{Q}】", f'\\"{Q}\\"', f"~~{Q}~~", f"<html><body><p>{Q}</p></body></html>",
    f"| # | Question |\n|---|---|\n| 1 | {Q} |", f"<ol><li>{Q}</li><li>Nini?</li></ol>",
    f"$\\boxed{{\\text{{{Q}}}}}$", f"<unk>{Q}", f"<pad> {Q}</s>", f"{Q}<end_of_utterance>", f"▁{Q.replace(' ', '▁')}",
    f"<unused94>thought\nhm?<unused95>{Q}", f'{{"thought": "Is it long?", "response": "{Q}"}}',
    f'[ask(question="{Q}")]', f'print("{Q}")', f'functools[{{"name": "ask", "arguments": {{"question": "{Q}"}}}}]',
    *(f"{label} {Q}" for label in ("i.", "ii)", "a.", "AI:", "Model:", "Ndiyo, swali hili hapa:")),
    f"<|think|><|think|>Nini?<|/think|>{Q}", f"<|think|>Nini?<|think|>\n{Q}",
    Q.replace("Nile", "<b>Nile</b>"), Q.replace("Mto Nile", '<span class="x">Mto <i>Nile</i></span>'), f"<b>{Q}",
    f'<|channel|>commentary to=functions.ask <|constrain|>json<|message|>{{"question":"{Q}"}}<|call|>',
]  # fmt: skip


@pytest.mark.parametrize("answer", GOOD)
def test_the_query_is_found(answer):
    assert query_of(answer) == Q


@pytest.mark.parametrize(
    "answer",
    ["", " \n", "<think>\nOkay, the user wants a question in Swahili about the", "<think></think>",
     "[THINK]what is it?", "<plan>what is it?", "<|thought_start|>what is it?", "[thinking] what is it?",
     "Reasoning: what is it?",
     "<|channel|>analysis<|message|>What do they want?", "analysisWhat do they want",
     "I'm sorry, but I cannot do that.",
     "Here is a question in Swahili:", "a?\0", "a?\ud83d", "a?\x1b[2J", "???", "```\n```", "N/A", "undefined",
     "[DONE]", "1.", "No.",
     "<!DOCTYPE html><html><head><title>502</title></head><body><h1>Who are you?</h1></body></html>",
     "<html>\n<head><title>Login</title></head>\n<body>Forgot password?</body></html>", "event: message\ndata: why?",
     'data: {"choices": [{"delta": {"content": "why?"}}]}\n\ndata: [DONE]', ': ping\n\ndata: {"a": "why?"}',
     "The user wants a question.", '{"error": {"message": "why?"}}', '{"detail": "Not Found"}', "ERROR: overloaded",
     "Thinking Process:\n1. **Analyze the request**", "The passage does not contain enough.", "x" * 20_000_000,
     "<think>" * 200_000, "wort " * 1000],
)  # fmt: skip
def test_an_answer_without_a_query_gives_none(answer):
    assert query_of(answer) == ""


@pytest.mark.parametrize(
    "query",
    ["Is C# older than F#?", "Was bedeutet a_b_c?", "Wer schrieb „Faust“?", "Star Wars: Who directed it?",
     "3.5 % von was?",
     "2 - 1 = ?", "I. Newton wrote which book?", "#1 song 1999?", "Yahoo! was founded when?", "好，这是什么歌？",
     "[1] in citations means what?", "Why? Because: who wrote this?", "Where is St. Louis? (USA)",
     "Claro: who owns it?",
     "How about this song: who wrote it?", "We could ask who won?", "What does <div> do?", "error correction codes",
     "《红楼梦》的作者是谁？", "print('a') prints what?", "Question Time: who hosts it?",
     "Who wrote “Faust”", "length of the nile", "ナイル川の長さは？", "What is 2 * 3 * 4?", "Was ist <script>?",
     "Was macht <b> in HTML?",
     "i. newton wrote which book?", "c. 1900 who ruled Siam?", "data: what is it?"],
)  # fmt: skip
def test_a_good_query_stays_as_it_is(query):
    assert query_of(query) == query


TOOL = f'{{"name": "ask", "arguments": {{"question": "{Q}"}}}}'


@pytest.mark.parametrize(
    "answer",
    [f"<details><summary>Reasoning</summary>How long is it?</details>\n{Q}",
     f'<details type="reasoning" done="true">\n<summary>Thought for 5 s</summary>\n> x?\n</details>\n\n{Q}',
     f"{{'question': '{Q}'}}", f"['{Q}', 'Nile ni nini?']", f'{{question: "{Q}"}}', f'{{"Swahili": "{Q}",}}',
     f'{{"question": "{Q}"', f'{{"question": "{Q}", "answer": "6,650', f'{{"question": "{Q}"}}\n\nThis asks how long.',
     f'Here is the JSON:\n```json\n{{"question": "{Q}"}}\n```\nIt asks for the length.', f'<json>{{"q": "{Q}"}}</json>',
     f"<tool_call>\n{TOOL}\n</tool_call>", f"[TOOL_CALLS][{TOOL}]", f"<|python_tag|>{TOOL}",
     f'{{"name": "ask", "arguments": "{{\\"question\\": \\"{Q}\\"}}"}}',
      f'<function=ask>{{"question": "{Q}"}}</function>',
     f'{{"type": "function", "function": {TOOL}}}',
     f"<｜tool▁calls▁begin｜>function<｜tool▁sep｜>ask\n```json\n{TOOL}\n```",
     f"Samahani, swali ni:\n{Q}", f"[{Q}]", f"question = '{Q}'", f"- question: {Q}"],
)  # fmt: skip
def test_records_and_tool_calls_are_read(answer):
    assert query_of(answer) == Q


@pytest.mark.parametrize(
    "answer",
    ["<details><summary>Reasoning</summary>It is", '{"name": "ask", "arguments": {}}', "{}", "[]", '{"error": ',
     '<tool_call>{"name": "search", "arguments": {"id": 3}}</tool_call>', "Samahani, siwezi kujibu swali hili.",
     "Samahani, unaweza kutoa maelezo zaidi?", "Lo siento, no puedo ayudar con eso.", "对不起，我无法回答。",
     "Es tut mir leid, aber ich kann keine Frage stellen.", "申し訳ありませんが、お答えできません。",
     "Ngiyaxolisa, angikwazi.",
     "Извините, я не могу помочь.\nТекст слишком короткий.", "عذراً، لا أستطيع المساعدة.", "Yi haƙuri, ba zan iya ba.",
     "मुझे खेद है, मैं मदद नहीं कर सकता।", "I'm sorry, could you provide the passage?", "죄송합니다, 도와드릴 수 없습니다."],
)  # fmt: skip
def test_refusals_of_many_languages_and_empty_calls_are_no_queries(answer):
    assert query_of(answer) == ""


def test_no_question_of_the_bank_is_taken_for_a_refusal_or_changed():
    known = [" ".join(text.split()) for texts in question_bank().values() for text in texts]
    assert [text for text in known if query_of(text) != text] == []
    for text in (
        "Sorry seems to be the hardest word: who sang it?",
        "Als KI-Forscher arbeitete wer an ELIZA?",
        "{x | x > 0} is called what?",
        "[citation needed] means what?",
        "Zal de Rijn ooit droogvallen?",
    ):
        assert query_of(text) == text


@pytest.mark.parametrize(
    "part", ["{", "[", '{"a":', "{'a': ", '{"text": "\\', "<details>", "Samahani, ", '"', "\n{", "{q: "]
)
def test_answers_made_to_be_slow_are_read_at_once(part):
    assert query_of(part * (400_000 // len(part))) == ""


class Says:
    """A writer whose answers are all the same."""

    failure = ""

    def __init__(self, text):
        self.text = text

    def write(self, prompts):
        return [self.text] * len(prompts)


NILE = Question("q", "How long is the Nile?", "en")


def expanded(answer, method="translation"):
    expander = Expander(Says(answer), method=method, lang="sw")
    return expander.expansions([NILE])[0], expander.writer.failure


@pytest.mark.parametrize("answer", GOOD)
def test_a_translation_is_cleaned_as_a_query_is(answer):
    assert expanded(answer) == (Q, "")


PASSAGE = "Mto Nile ni mto mrefu. Una urefu wa kilomita 6,650."


@pytest.mark.parametrize("answer", [answer for answer in GOOD if "uestion" not in answer and "(How" not in answer])
def test_a_passage_is_cleaned_as_a_query_is(answer):
    other = {f"1) {Q}\n2) Nini?", f"{Q} - How long is the Nile?", f"{Q}[1]", f"{Q} 😊"}  # the rest is the passage's
    other |= {f"<ol><li>{Q}</li><li>Nini?</li></ol>"}
    other |= {f"▁{Q.replace(' ', '▁')}", *(f"{Q} {label}: 6650" for label in ("Answer", "A", "Jibu", "答案"))}
    other |= {answer for answer in GOOD if ">Nile" in answer or (">Mto" in answer and Q not in answer)}
    text = answer.replace(Q.replace("?", "&#63;"), PASSAGE).replace(Q, PASSAGE)
    assert answer in other or expanded(text, "pseudo-document") == (PASSAGE, "")


@pytest.mark.parametrize(
    "answer",
    [f"Question: How long is the Nile?\nPassage: {PASSAGE}", f"{PASSAGE}\n\nQuestion: Who?\nPassage: x",
     f"Hapa kuna kifungu:\n\n{PASSAGE}", f"**Passage:** {PASSAGE} {PASSAGE}", f'{{"passage": "{PASSAGE}"}}'],
)  # fmt: skip
def test_what_stands_round_a_passage_goes(answer):
    assert expanded(answer, "pseudo-document") == (PASSAGE, "")


@pytest.mark.parametrize(
    "answer",
    ["Samahani, siwezi kujibu swali hili.", "对不起，我无法回答。", "<think>The Nile is long.", NILE.text, "x " * 40],
)
@pytest.mark.parametrize("method", ["translation", "pseudo-document"])
def test_an_expansion_of_no_use_is_told(answer, method):
    text, failure = expanded(answer, method)
    assert text == "" and failure.startswith(f"The model wrote '{answer[:9]}")


def ok(content, finish="stop", usage=None, **more):
    message = {"role": "assistant", "content": content, **more}
    return 200, {"choices": [{"finish_reason": finish, "message": message}], "usage": usage}


def refused(status, message):
    return status, {"error": {"message": message}}


class Server:
    """Answers each request with what `quirk` makes of its body."""

    def __init__(self, quirk):
        outer = self
        self.bodies, self.paths, self.quirk = [], [], quirk

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body)
                outer.paths.append(self.path)
                status, answer = outer.quirk(body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/v1"
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def serve():
    servers = []

    def start(quirk):
        servers.append(Server(quirk))
        return servers[-1]

    yield start
    for server in servers:
        server.httpd.shutdown()
        server.httpd.server_close()


def ask(server, **options):
    with EndpointGenerator(server.url, "m", patience=5.0, **options, sleep=lambda seconds: None) as generator:
        (record,) = generator.generate_batch([Passage("p", "The Nile.")], query_langs=["sw"], n=1)
        return record.queries["sw"], generator


def test_parts_and_answers_without_usage_are_good(serve):
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": Q}]
    for content, usage in ((parts, None), (Q, None), (Q, {"prompt_tokens": None}), (Q, "x")):
        queries, generator = ask(serve(lambda body, c=content, u=usage: ok(c, usage=u)))
        assert queries == (Q,) and generator.counters() == {"requests": 1, "cost": 0.0}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ok("<think>\nOkay", finish="length"), "reasoned, and was cut at 64 tokens: raise --max"),
        (ok("", finish="length", reasoning_content="hm"), "reasoned, and was cut at 64 tokens: raise --max"),
        (ok(None, reasoning="hm"), "it only reasoned"),
        (ok(""), "the answer is empty"),
        ((200, {"error": {"message": "quota exceeded", "code": "quota"}}), "quota exceeded"),
        ((200, b"<html>Bad Gateway</html>"), "<html>Bad Gateway</html>"),
        ((200, b"<html><head><title>Sign in</title></head><body>x</body></html>"), "Sign in (no chat completion"),
        ((200, {"choices": []}), "choices"),
        (ok("I'm sorry, I cannot."), "it wrote \"I'm sorry, I cannot.\""),
        (ok("a\0b?"), "no valid text"),
        (ok("x" * 20_000_000), "20,000,"),
        (ok(42), "the answer is empty"),
        (ok("Mto Nile una urefu", finish="length"), "'Mto Nile una urefu', and was cut at 64 tokens: raise --max"),
        (ok(None, refusal="I cannot help"), "it says 'I cannot help'"),
        (ok("", finish="content_filter"), "its filter kept the answer back"),
        (ok("Mto Nile", finish="content_filter"), "it wrote 'Mto Nile'; its filter kept the answer back"),
        (ok(None, finish="SAFETY"), "its filter kept the answer back"),
        (ok("", thoughts="hm"), "it only reasoned"),
        ((200, {"message": {"content": Q}}), "(no chat completion: check the URL)"),
        ((202, {"status": "queued"}), "queued"),
        ((200, b'data: {"choices": [{"delta": {}}]}'), "(no chat completion: check the URL)"),
        (refused(400, "The response was filtered due to Azure OpenAI's content management policy."), "policy"),
        (refused(400, "Output data may contain inappropriate content."), "its filter kept the answer back: Output"),
        (refused(400, "Content Exists Risk"), "its filter kept the answer back: Content Exists Risk"),
    ],
)  # fmt: skip
def test_a_useless_answer_is_asked_for_again_and_counted_with_its_reason(serve, answer, reason):
    server = serve(lambda body: answer)
    queries, generator = ask(server)
    assert queries == () and len(server.bodies) == 2
    assert generator.counters()["useless_answers"] == 2 and reason in generator.failure


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ok("<think>\nOkay", finish="length"), "reasoned, and was cut at 48 tokens: switch its reasoning off"),
        (ok(None, reasoning="hm"), "it only reasoned"),
        (ok(""), "the answer is empty"),
        ((200, {"error": {"message": "quota exceeded", "code": "quota"}}), "quota exceeded"),
        (ok("I'm sorry, I cannot."), 'The model wrote "I\'m sorry, I cannot.".'),
        (refused(400, "Content Exists Risk"), "its filter kept the answer back"),
        (refused(400, "the request exceeds the available context size"), "exceeds the available context size"),
        (refused(404, "model 'default' not found"), "model 'default' not found; check the URL"),
    ],
)
def test_why_a_question_was_searched_as_it_is(serve, answer, reason):
    server = serve(lambda body: answer)
    expander = Expander(server.url, lang="sw")
    questions = [Question(str(i), f"How long is river {i}?", "en") for i in range(40)]
    assert expander.expansions(questions) == [""] * 40 and reason in expander.writer.failure
    assert len(server.bodies) <= 80
    expander.close()


@pytest.mark.parametrize(
    "content",
    [[Q], [{"text": Q}], {"type": "text", "text": Q}, [{"text": {"value": Q}}], {"question": Q},
     [[{"type": "text", "text": Q}]], [{"type": "text", "text": Q}, {"type": "reference", "reference_ids": [1]}]],
)  # fmt: skip
def test_other_shapes_of_parts_are_good(serve, content):
    assert ask(serve(lambda body: ok(content)))[0] == (Q,)


@pytest.mark.parametrize("name", ["max_tokens", "temperature", "seed"])
@pytest.mark.parametrize(
    ("status", "told"),
    [(400, "Unrecognized request argument supplied: {}"), (422, "property {} is unsupported"), (501, "no {} here")],
)
def test_a_setting_is_known_by_its_name_in_any_words(serve, name, status, told):
    assert ask(serve(lambda body: refused(status, told.format(name)) if name in body else ok(Q)))[0] == (Q,)
    detail = [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}]
    assert ask(serve(lambda body: (422, {"detail": detail}) if name in body else ok(Q)))[0] == (Q,)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [((400, [{"error": {"message": "key not valid"}}]), "status 400: key not valid"),
     ((400, {"errors": [{"message": "bad thing"}]}), "bad thing"), ((400, {"Message": "bad thing"}), "bad thing"),
     ((400, {"detail": [{"loc": ["body", "n"], "msg": "bad"}]}), "status 400: body.n: bad"),
     (refused(400, "max_tokens is too large: at most 16"), "max_tokens is too large")],
)  # fmt: skip
def test_reasons_of_other_servers_are_told(serve, answer, reason):
    with pytest.raises(ServerError, match=reason):
        ask(serve(lambda body: answer))


def test_a_proxy_before_another_host_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    with (
        EndpointGenerator("http://192.0.2.1/v1", "m") as generator,
        pytest.raises(
            ServerError, match=r"192\.0\.2\.1 is not there \(Connection refused, through the proxy 127\.0\.0\.1:9 of"
        ),
    ):
        generator.generate_batch([Passage("p", "The Nile.")], query_langs=["sw"], n=1)


@pytest.mark.parametrize(
    ("proxy", "told"),
    [("socks5://h:1", "SOCKS proxy"), ("foo://u:secret@h", "Unknown scheme"), ("http://[::1", "Invalid port")],
)
def test_a_proxy_that_no_client_can_use_is_a_sentence(monkeypatch, proxy, told):
    monkeypatch.setenv("ALL_PROXY", proxy)
    for opened in (lambda: EndpointGenerator("http://example.org/v1", "m"), lambda: open_store("http://example.org")):
        with pytest.raises(DataError, match=f"The proxy of the environment cannot be used .*{told}") as caught:
            opened()
        assert "secret" not in str(caught.value)
    open_store("http://127.0.0.1:9").close()  # this machine is asked without


def test_a_host_that_cannot_be_is_a_sentence():
    with pytest.raises(DataError, match="An endpoint is a URL such as"):
        EndpointGenerator("http://xn--/v1", "m")


def events(*deltas, finish="stop", end=b"data: [DONE]\n\n", line_end="\n\n", before=""):
    """What a server streams."""
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    chunks = [{"choices": [choice]} for choice in choices] + [{"choices": [], "usage": {"prompt_tokens": 1}}]
    if finish:
        chunks.insert(-1, {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    return before.encode() + "".join(f"data: {json.dumps(chunk)}{line_end}" for chunk in chunks).encode() + end


@pytest.mark.parametrize(
    "stream",
    [
        events({"role": "assistant", "content": ""}, {"content": Q[:8]}, {"content": Q[8:]}),
        events({"content": Q}, line_end="\r\n\r\n", before=": OPENROUTER PROCESSING\r\n\r\n"),
        events({"reasoning_content": "What?"}, {"content": None}, {"content": Q}, finish=None),
        events({"content": "<think>\nWhat?"}, {"content": f"</think>\n{Q}"}, end=b""),
        events({"content": [{"type": "text", "text": Q}]}),
    ],
)
def test_an_answer_that_is_streamed_though_nobody_asked_is_read(serve, stream):
    assert ask(serve(lambda body: (200, stream)))[0] == (Q,)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (events({"content": "What is the"}, finish=None, end=b""), "no chat completion"),
        (events({"content": ""}, {"reasoning": "What?"}, finish="length"), "it only reasoned, and was cut at 64"),
        (b'data: {"error": {"message": "model overloaded"}}\n\ndata: [DONE]\n\n', "model overloaded"),
        (b'data: {"choices": [{"delta"', "no chat completion"),
    ],
)
def test_a_stream_without_an_answer_is_none(serve, stream, reason):
    queries, generator = ask(serve(lambda body: (200, stream)))
    assert queries == () and reason in generator.failure


def test_a_model_that_only_streams_is_asked_to(serve):
    told = "This model only support stream mode, please enable the stream parameter"
    server = serve(lambda body: (200, events({"content": Q})) if body.get("stream") else refused(400, told))
    assert ask(server)[0] == (Q,) and [body.get("stream") for body in server.bodies] == [None, True]
    server = serve(lambda body: refused(400, told))
    with pytest.raises(ServerError, match="only support stream mode"):
        ask(server)
    assert len(server.bodies) == 2


def test_counts_of_tokens_that_cannot_be_do_not_stop_a_run(serve, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"id": "1", "text": "The Nile."}\n')
    server = serve(lambda body: ok(Q, usage={"prompt_tokens": -5, "completion_tokens": 10**30}))
    with EndpointGenerator(server.url, "m") as generator:
        generate_file(tmp_path / "c.jsonl", tmp_path / "o", generator=generator, job=Job(("sw",), 1))
    assert json.loads((tmp_path / "o").read_text())["generated_queries"] == {"sw": [Q]}


@pytest.mark.parametrize("tail", ["", "/", "/chat/completions", "?api-version=2024-10-21", "/chat/completions?a=b"])
def test_an_address_may_be_that_of_the_completions_or_have_a_query(serve, tail):
    server = serve(lambda body: ok(Q))
    server.url += tail
    assert ask(server)[0] == (Q,)
    assert server.paths == ["/v1/chat/completions" + (tail[tail.index("?") :] if "?" in tail else "")]


def test_of_a_page_its_title_is_told_and_of_a_connection_what_is_wrong(serve):
    page = b"<!DOCTYPE html><html><head><style>x{}</style><title>401 &amp; out</title></head><body>x</body></html>"
    with pytest.raises(ServerError, match="status 401: 401 & out; set XQG_VDB_GENERATOR_KEY"):
        ask(serve(lambda body: (401, page)))
    server = serve(lambda body: ok(Q))
    server.url = server.url.replace("http:", "https:")
    with pytest.raises(ServerError, match=r"is not there \(ConnectError: .*SSL"):
        ask(server)
    assert not ask(serve(lambda body: refused(400, "content_filter: no.")))[1].failure.endswith(".")


def test_a_limit_told_under_status_200_is_waited_for(serve):
    server = serve(lambda body: ok(Q) if len(server.bodies) > 2 else (200, {"error": {"code": 429, "message": "slow"}}))
    queries, generator = ask(server)
    assert queries == (Q,) and generator.counters()["retries"] == 2


def test_a_question_in_a_call_is_read(serve):
    call = {"name": "ask", "arguments": json.dumps({"question": Q})}
    for message in ({"tool_calls": [{"function": call}]}, {"function_call": call}):
        assert ask(serve(lambda body, m=message: ok(None, finish="tool_calls", **m)))[0] == (Q,)


def test_a_gateway_that_is_busy_is_waited_for_and_an_account_without_money_is_not(serve):
    server = serve(lambda body: ok(Q) if len(server.bodies) > 1 else refused(529, "overloaded"))
    assert ask(server)[0] == (Q,)
    quota = {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota."}}
    with pytest.raises(ServerError, match="status 429: You exceeded your current quota"):
        ask(serve(lambda body: (429, quota)))


def test_settings_that_a_server_refuses_are_left_out(serve):
    def quirk(body):
        if "max_tokens" in body:
            return refused(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if body.get("temperature") not in (None, 1):
            return refused(400, "Unsupported value: 'temperature' does not support 0.8 with this model.")
        return refused(422, "Extra inputs are not permitted: seed") if "seed" in body else ok(Q)

    server = serve(quirk)
    assert ask(server)[0] == (Q,) and len(server.bodies) == 4
    assert server.bodies[-1].keys() == {"model", "max_completion_tokens", "messages"}
    expander = Expander(server.url)
    assert expander.expand([Question("1", "Wie lang?", "de")])[0][0].text == f"Wie lang? {Q}"
    expander.close()


def test_the_servers_own_reason_is_told(serve):
    reason = "the request exceeds the available context size (2048 tokens), try increasing it"
    with pytest.raises(ServerError, match=r"status 400: the request exceeds .*try increasing it\."):
        ask(serve(lambda body: refused(400, reason)))
    with pytest.raises(ServerError, match="status 404: model 'm' not found; check the URL"):
        ask(serve(lambda body: refused(404, "model 'm' not found")))


def test_a_server_that_is_down_is_told_after_few_attempts(serve):
    server = serve(lambda body: ok(Q))
    server.httpd.shutdown()
    server.httpd.server_close()
    passages = [Passage(f"p{i}", "The Nile.") for i in range(9)]
    with (
        EndpointGenerator(server.url, "m") as generator,
        pytest.raises(ServerError, match=r"is not there \(Connection refused\): start it, or correct the URL"),
    ):
        generator.generate_batch(passages, query_langs=["sw"], n=1)
    assert generator.counters()["requests"] <= 6 * len(passages)  # half a second's, and the shortest pause is a tenth


def test_a_url_is_corrected_after_a_server_was_not_there(serve, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"id": "1", "text": "The Nile."}\n')
    for url in ("http://127.0.0.1:9/v1", serve(lambda body: ok(Q)).url):
        with EndpointGenerator(url, "m") as generator:
            try:
                made = generate_file(
                    tmp_path / "c.jsonl", tmp_path / "q.jsonl", generator=generator, job=Job(("sw",), 1)
                )
            except ServerError as error:
                assert "is not there" in str(error)
    assert made.queries == 1


CORPUS = [{"id": f"p{i}", "text": f"The Nile {i}."} for i in range(3)]
SETTINGS = ("-l", "sw", "-n", "1", "--json")


def test_a_run_without_one_query_stops_with_what_the_server_said(serve, tmp_path):
    server = serve(lambda body: ok("<think>Okay", finish="length"))
    write_lines(tmp_path / "c.jsonl", CORPUS)
    done = run_cli(tmp_path, "generate", "c.jsonl", "q.jsonl", "--endpoint", server.url, *SETTINGS)
    assert done.returncode == 5 and "No query for 3 passages in a row" in done.stderr
    assert "it only reasoned, and was cut at 48 tokens: raise --max-tokens" in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("q")] == []
    server.quirk = lambda body: ok(Q)
    done = run_cli(tmp_path, "generate", "c.jsonl", "q.jsonl", "--endpoint", server.url, *SETTINGS)
    assert done.returncode == 0 and json.loads(done.stdout)["queries"] == 3


def test_a_later_run_asks_again_about_passages_without_a_query(serve, tmp_path):
    server = serve(lambda body: ok("" if "Nile 1." in body["messages"][0]["content"] else Q))
    write_lines(tmp_path / "c.jsonl", CORPUS)
    command = ("generate", "c.jsonl", "q.jsonl", "--endpoint", server.url, *SETTINGS)
    done = run_cli(tmp_path, *command)
    assert done.returncode == 0 and json.loads(done.stdout)["gaps"] == 1
    assert "1 passages have no query in one language or more" in done.stderr and "the answer is empty" in done.stderr
    server.quirk = lambda body: ok(Q)
    server.bodies.clear()
    done = run_cli(tmp_path, *command)
    assert done.returncode == 0 and len(server.bodies) == 1 and json.loads(done.stdout)["gaps"] == 0
    lines = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text("utf-8").splitlines()]
    assert [line["generated_queries"] for line in lines] == [{"sw": [Q]}] * 3
    server.bodies.clear()
    assert run_cli(tmp_path, *command).returncode == 0 and not server.bodies


def test_a_server_that_breaks_amid_a_run_stops_it_and_what_was_made_is_kept(serve, tmp_path):
    server = serve(lambda body: ok(Q if len(server.bodies) <= 40 else None))
    write_lines(tmp_path / "c.jsonl", [{"id": f"p{i}", "text": f"Text {i}."} for i in range(200)])
    job = Job(("sw",), 1)
    with EndpointGenerator(server.url, "m", concurrency=2, sleep=time.sleep) as generator:
        with pytest.raises(ServerError, match="No query for 32 passages in a row"):
            generate_file(tmp_path / "c.jsonl", tmp_path / "q.jsonl", generator=generator, job=job)
        server.quirk = lambda body: ok(Q)
        summary = generate_file(tmp_path / "c.jsonl", tmp_path / "q.jsonl", generator=generator, job=job)
    assert summary.passages == 200 and summary.resumed >= 40


def test_no_proxy_stands_before_this_machine(serve, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    assert ask(serve(lambda body: ok(Q)))[0] == (Q,)


def test_of_several_choices_the_first_that_says_something_counts(serve):
    choices = [ok(text)[1]["choices"][0] for text in ("", Q, "Nini?")]
    assert ask(serve(lambda body: (200, {"choices": choices})))[0] == (Q,)
