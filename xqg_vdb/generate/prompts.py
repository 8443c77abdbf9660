"""Prompts: what a language model is told, the language last, so that all before it is read once; and what it says.

Out of an answer come a query or an expansion, without reasoning, markup and talk. This file knows no model.
"""

from __future__ import annotations

import ast
import hashlib
import html
import re
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any
from warnings import catch_warnings, simplefilter

import orjson

from xqg_vdb.errors import DataError
from xqg_vdb.texts.languages import english_name, question_bank
from xqg_vdb.types import Passage

SEQ2SEQ_TEMPLATE = "Generate a {language} question for this passage: {title} {text}"
"""The prompt of xQG and of the mT5 docTquery models (ielab/xQG4xDR)."""

_WORDS = orjson.loads(files("xqg_vdb").joinpath("data", "prompt_words.json").read_bytes())
EXAMPLES: tuple[tuple[str, tuple[str, ...]], ...] = tuple((text, tuple(asked)) for text, asked in _WORDS["examples"])
"""Passages with two questions each; the second one is what the direct prompt's language line shows translated."""


@dataclass(frozen=True)
class CausalPrompt:
    """prefix, then `passage` with {title} and {text}, then `ending_part` with {language}.

    stop: texts at which a query ends. max_passage_tokens: longer passages are cut there, the rest of the prompt stays.
    examples: questions shown in the prefix; a generated one that equals one of them is a copy.
    """

    name: str
    prefix: str
    ending_part: str
    passage: str = "Passage: {title}{text}\n"
    stop: tuple[str, ...] = ("\n",)
    max_passage_tokens: int = 384
    examples: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The name, and a digest of all its texts."""
        digest = hashlib.sha256(orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
        return {"name": self.name, "max_passage_tokens": self.max_passage_tokens, "sha256": digest}

    def passage_parts(self, passage: Passage) -> tuple[str, str]:
        """The text before and after the place where a long passage is cut."""
        before, after = self.passage.split("{text}")
        title = " ".join(passage.title.split())
        return before.replace("{title}", f"{title}. " if title else "") + " ".join(passage.text.split()), after

    def ending(self, lang: str) -> str:
        """The part that names the language."""
        return self.ending_part.replace("{language}", english_name(lang))

    def cut(self, text: str) -> str:
        """A generated text up to the first stop, without surplus blanks."""
        for stop in self.stop:
            text = text.split(stop)[0]
        return " ".join(text.split())


def few_shot(*, pivot: bool = False) -> CausalPrompt:
    """A few-shot prompt for base models that asks in each language directly; the examples' questions are in English.

    pivot: it asks in English, too, as the first half of `pivot` does.
    """
    shown, ending = ("Question:", "Question:") if pivot else ("Question in English:", "Question in {language}:")
    parts = (
        "\n".join([f"Passage: {text}", *(f"{shown} {asked}" for asked in questions)]) for text, questions in EXAMPLES
    )
    examples = tuple(question for _, questions in EXAMPLES for question in questions)
    return CausalPrompt("english" if pivot else "few-shot", "\n\n".join(parts) + "\n\n", ending, examples=examples)


def finetuned(*, max_passage_tokens: int = 160) -> CausalPrompt:
    """The prompt that `xqg-vdb train generator` trains decoder-only models on: no example, the language last.

    max_passage_tokens: as in training; the exported folder records it.
    """
    return CausalPrompt("finetuned", "", "Question in {language}:", max_passage_tokens=max_passage_tokens)


def translation(lang: str, *, pairs: int = 16) -> CausalPrompt:
    """A few-shot prompt that translates an English question into `lang`, with examples from the shipped question bank.

    Raises DataError when the bank has no questions in `lang`.
    """
    bank, name = question_bank(), english_name(lang)
    if lang not in bank:
        raise DataError(
            f"The pivot prompt has no example questions in {name} ({lang}); it knows {', '.join(sorted(bank))}."
        )
    shown = list(zip(bank["en"], bank[lang], strict=False))[:pairs]
    return CausalPrompt(
        name="translation",
        prefix="".join(f"English: {english}\n{name}: {other}\n\n" for english, other in shown),
        passage="English: {title}{text}\n",
        ending_part="{language}:",
        examples=tuple(other for _, other in shown),
    )


def chat(before: str, after: str) -> CausalPrompt:
    """A zero-shot prompt for instruction-tuned models.

    Before and after are the checkpoint's chat template round a message.
    """
    return CausalPrompt(
        name="chat",
        prefix=before,
        passage="Passage: {title}{text}\n\n",
        ending_part="Write one short question that this passage answers. Answer with the question only. "
        "Write it in {language}." + after,
    )


# Tokens of the prompts: one function each for training and for writing, so that both see the very same prompt.

CHARACTERS_PER_TOKEN = 32  # far above any text's; 1 MB of text takes a second to tokenise, most of it in vain


def passage_tokens(
    encode: Callable[[str], list[int]], prompt: CausalPrompt, passage: Passage, *, room: int
) -> tuple[list[int], bool]:
    """Ids of the passage part, and whether the passage was cut to `room` tokens; what follows it is never cut.

    encode: text to ids without special tokens.
    """
    before, after = prompt.passage_parts(passage)
    ids = encode(before[: room * CHARACTERS_PER_TOKEN])
    return ids[:room] + encode(after), len(ids) > room


def seq2seq_tokens(
    encode: Callable[[str], list[int]], template: str, passage: Passage, *, lang: str, max_input: int, eos: int
) -> tuple[list[int], bool]:
    """Ids of an encoder-decoder's prompt, at most `max_input` with the end token, and whether the passage was cut."""
    text = template.replace("{language}", english_name(lang)).replace("{title}", passage.title.strip())
    text = " ".join(text.replace("{text}", passage.text[: max_input * CHARACTERS_PER_TOKEN]).split())
    ids = encode(text)
    return [*ids[: max_input - 1], eos], len(ids) >= max_input


# What an answer says.

LONGEST_ANSWER = 1_000_000  # characters with the reasoning
LONGEST_QUERY = 2_000

_THOUGHT = r"[\w▁:-]{0,30}(?:think|thought|reason|reflect|analy[sz]|scratch|monolog|brainstorm|deliberat)[\w▁:-]{0,30}"
_NAMED = rf"{_THOUGHT}|details|plan(?:ning)?|cot|critique"
_REASONING = re.compile(  # by tags, tokens and brackets that speak of it; Kimi, Gemma and Granite have their own
    rf"(?P<close></(?:{_NAMED})\s*>|\[(?:/|END )(?:think|thought|reason)\w*\]|◁/think▷|<channel\|>"
    rf"|<[|｜](?:/|end)(?:{_THOUGHT})[|｜]>|<[|｜](?:{_THOUGHT})(?:end|suffix)[|｜]>|<\|inner_suffix\|>|<unused95>"
    r"|Here is my response:)"
    rf"|<(?:{_NAMED})(?:\s[^<>]*)?>|\[(?:BEGIN |START )?(?:think|thought|reason)\w*\]|◁think▷"
    rf"|<\|channel>thought|<unused94>|<[|｜](?:{_THOUGHT}|inner_prefix)[|｜]>|Here is my thought process:",
    re.IGNORECASE,
)
_FINAL = re.compile(r"<\|channel\|>\s*(?:final\b|commentary\s+(?:to=|json))[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_BARE_FINAL = re.compile(r"assistant\s*final(?=\W|[A-Z]|[^\x00-\x7f])")  # channels whose tokens a server left out
_BARE_ANALYSIS = re.compile(r"\s*(?:analysis|commentary)(?=\s?[A-Z])")
_ROLE = r"<\|(?:im_start|start_header_id|header_start|start_of_role|start|role_start)\|>|<start_of_turn>|<\|turn>"
_LEADING = re.compile(
    rf"\s*(?:(?:{_ROLE})\s*(?:assistant|model)?|<[|｜][^|｜<>]{{1,40}}[|｜]>|</?s>|<(?:bos|eos|pad|unk|extra_id_\d+)>|<0x0A>|\[/INST\])"
)
_END = re.compile(
    r"<[|｜][^|｜<>\s]{1,40}[|｜]>|</s>|<(?:eos|pad|unk|end_of_\w+|start_of_turn|turn\|)>|\[/?INST\]|\[EOS\]"
)
_HEADED = re.compile(  # reasoning with a heading in place of tags, up to the question's own
    r"\A\s*```(?:think|thought|reason)\w*\n.*?\n```"
    r"|\A\W*(?:thinking|thoughts?(?: process)?|reasoning|analysis|rationale)\b(?=[*_]*\s*(?:[:：\n]|\.\.\.|…)).*?"
    r"(?:\n\W*done thinking\b\W*"
    r"|\n(?=\W*(?:(?:final|the|short|my) )*(?:question|query|answer|swali|frage|pregunta)\b\W{0,6}[:：\n]))",
    re.IGNORECASE | re.DOTALL,
)
_ENTITY = re.compile(r"&(?:#\w{2,6}|[A-Za-z]{2,8});")
_ANSWER_TAG = re.compile(
    r"</?(?:answer|final|final_answer|question|query|output|response|result|q|json|text|arg_value|parameter\b[^<>]*)(?:\s[^<>]*)?>",
    re.IGNORECASE,
)
_WRAPPED = re.compile(r"\A\s*<(\w+)>([^<>]*)</\1>\s*\Z")
_BLOCK = re.compile(r"</?(?:html|body|div|h\d|[ou]l|li|blockquote|t(?:able|head|body|r|d|h))\b[^<>]*>", re.IGNORECASE)
_NO_ANSWER = re.compile(  # an error's page, a stream of events
    r"\s*(?:<!doctype html|<html|<head|<title)\b.*?<title\b|\s*(?:(?::|event:|id:|retry:)[^\n]*\n\s*)*data:\s*[\[{]"
    r"|\s*event:[^\n]*\n\s*data:",
    re.IGNORECASE | re.DOTALL,
)
_INLINE = re.compile(r"<(b|i|em|strong|code|u|span|mark|font|a|su[bp])(?:\s[^<>]*)?>([^<>]*)</\1>", re.IGNORECASE)
_UNPAIRED = re.compile(r"^\s*(?:</?(?:b|i|em|strong|u)>\s*)+|(?:\s*</?(?:b|i|em|strong|u)>)+\s*$", re.I | re.M)
_MARKUP = re.compile(
    r"<[?!][^<>]*>|<arg_key>[^<>]*</arg_key>|</?(?:p|br)\s*/?>|\$\$|~~"
    r"|\$?(?:\\boxed\{)?\\(?:boxed|text|textbf)\{([^{}]*)\}+\$?",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*[\w+-]*[ \t]*$", re.MULTILINE)
_EMPHASIS = re.compile(r"(\*{2,3})(?=\S)([^*\n]+)(?<=\S)\1|(?<!\w)([*_]{1,3}|`{1,3})(?=\S)([^*_`\n]+)(?<=\S)\3(?!\w)")
_HEADING = re.compile(r"^[ \t]*(?:#{1,6}[ \t]|#{2,6}|>+)[ \t]*", re.MULTILINE)
_NUMBER = re.compile(  # numbers, letters, marks, and signs of no script, such as emoji
    r"^[ \t]*(?:\(?\d{1,2}(?:[.)：:、](?!\d)|[ \t]?[-–—][ \t](?=\D))|\[\d{1,2}\](?=[ \t]+[^ a-z])"
    r"|[-*•–—·①-⑳]|Q\d{0,2}(?:[.:)]|[ \t]?[-–—][ \t])"
    r"|[#№]\d{1,2}(?:[.:)]|(?=[ \t]+[^ a-z]))|[a-z]\)|(?:[a-d]|[ivx]{1,4})[.)](?=[ \t]+[^ a-z\d])|\d\ufe0f?\u20e3"
    r"|[\u2190-\u21ff\u2300-\u23ff\u25a0-\u27bf\u2b00-\u2bff\ufe0f\U0001f000-\U0001faff]+)[ \t]*(?=\S)"
)
_EDGES = re.compile(r"^[|\s]+|(?:[|\s]|\s[*_=#~-]{2,})+$")  # of a table's cell and of decoration

_QUESTION_NOUNS, _ANSWER_NOUNS, _SURE = ("|".join(_WORDS[key]) for key in ("question", "answer", "sure"))
LABEL = (
    re.compile(  # such as `Translation:`, at the start of a line or a sentence; elsewhere the word belongs to the text
        r"(?:^|(?<=[.!?:]\s)|(?<=\n))[ \t]*(?:(?:the|your|generated|short)\s+)?(?:[A-Z]\w+\s+)?"
        rf"(?:{_QUESTION_NOUNS}|{_ANSWER_NOUNS})(?:\s*#?\s?\d{{1,2}}|\s+(?:one|fupi|courte|corta|curta|breve|singkat))?"
        r"(?:\s*\([^()\n]{1,40}\)|\s+(?:in|auf|en|em|på|kwa|la|bahasa)\s+\w+)?\s*[:：=]\s*"
        rf"|^[\[【《](?:{_QUESTION_NOUNS}|{_ANSWER_NOUNS})[\]】》][:：]?\s*(?=\S)",
        re.IGNORECASE,
    )
)
_PREAMBLE = re.compile(
    rf"^[^:：?？]{{0,60}}(?:\b(?:{_QUESTION_NOUNS})\b|问题|問題|質問|질문)[^:：?？\w]*[:：]\s*(?=\S)"
    rf"|^(?:(?:{_SURE})[,，、]\s*(?:[^:：?？]{{0,30}}\s)?)?(?:{'|'.join(_WORDS['question'][4:])})"
    r"(?:\s+\w+){1,2}\s*[:：]\s*(?=\S)"
    r"|^(?:based on|as requested|one|an?|the|here|my|possible)\b[^:：?？]{0,80}\b(?:question|query)\b[^:：?？]{0,40}"
    r"(?:[:：]\s*|\b(?:is|be)\s+(?=[\"“]))(?=\S)",
    re.IGNORECASE,
)
_LANGUAGE_LABEL = re.compile(
    r"^(?:(?:in\s+)?([A-Z][a-z]+|[a-z]{2,3})(?:\s+\([^()\n]{1,40}\))?(?:\s*[:：]|\s+[-–—](?=\s))|[(\[]([A-Z][a-z]+)[)\]])\s*(?=\S)"
)

# Talk about the task: English, as models talk about a task in it.
_TALK = re.compile("|".join(_WORDS["talk"]), re.IGNORECASE)
_REASONED = re.compile(
    r"(?:thinking(?: process)?|thoughts?(?: process)?|reasoning|analysis|rationale)\s*[:：]", re.IGNORECASE
)
_INTERJECTION = re.compile(
    rf"¡?(?:{_SURE})(?: thing)?\s*[!.！。]\s*(?=\S)"
    r"|(?:sure|certainly|of course|absolutely|okay|ok|great|alright)(?: thing)?\s*[,:]\s*(?=\S)"
    r"|(?:(?:the|my) (?:short )?(?:answer|question) is|how about(?: this)?"
    r"|(?:i|we|you) (?:would|could|can|might) ask)\s*(?:[:：]\s*|(?=[\"“]))(?=\S)"
    r"|(?:(?:sure|okay|ok)[,!.]?\s*)?here(?: is|[’']s| are| you go)\b[^:?\n]{0,60}:\s*(?=\S)",
    re.IGNORECASE,
)
_QUESTION_KEYS = _QUESTION_NOUNS + "|text|response|questions|queries|arguments|parameters|function|tool_calls"
_RECORD = re.compile(
    r"""^[ \t]*(?:functools ?)?(?:\{(?=\s*(?:["']|\w+\s*:))|\[(?=\s*["'{]))"""
    r"""|^[ \t]*(?:"(?=[^"\n]*"\s*\Z)|\[?\w+(?=\((?:\w+\s*=\s*)?["'].*\)\]?\s*\Z))""",
    re.MULTILINE,
)
_FIELD = re.compile(
    rf"""(?:(?:^|[\s{{,"'(])(?:{_QUESTION_NOUNS}|text)["']?\s*[:=]\s*|(?<=\w\())(["'])(.+?)"""
    r"""(?:(?<!\\)\1\s*[,}\])]|(?<!\\)\1?\s*\Z)""",
    re.IGNORECASE | re.DOTALL,
)
_TOOL = re.compile(
    r"<[|｜]tool[^|｜<>]{0,40}[|｜]>|\bto=functions\.\w+|\[TOOL_CALLS\]|</?(?:tool_calls?|function_calls?|function)\b[^<>]*>"
)
LONGEST_RECORD = 20_000  # characters
_NOTHING = frozenset(_WORDS["nothing"])
_MARKS = "?？؟\u037e;՞፧⁇"
_BEHIND = re.compile(  # the question: its translation, sources, good wishes
    rf"(?<=[{_MARKS}])[\s\"”»*_]*(?:\([^()]*\s[^()]*\)|\[[^\[\]]*\]|[-–—/|→]\s.*|(?:{'|'.join(_WORDS['reply'])})\s?[:：]\s.*"
    r"|[\u2190-\u21ff\u2300-\u27bf\u2b00-\u2bff\ufe0f\u200d\U0001f000-\U0001faff]+"
    r"|(?:i hope|let me know|would you like)\b.*)\s*$",
    re.IGNORECASE,
)
QUOTES = "\"“”„«»‹›「」『』‘’‚'《》〈〉【】"
_BLANK = " \t\u00ad\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"


def broken(text: str) -> bool:
    """Whether a text cannot be stored or shown: too long, lone surrogates, control characters."""
    return len(text) > LONGEST_ANSWER or any(
        unicodedata.category(char) in ("Cs", "Cc") for char in set(text) - set("\t\n\r\v\f\x85")
    )


def said(answer: str) -> str:
    """What an answer says, in lines: no reasoning (unclosed: nothing is said), tokens, fences, emphasis and numbers."""
    if broken(answer) or _NO_ANSWER.match(answer):
        return ""
    text = _TOOL.sub("\n", _after_channels(_without_reasoning(_HEADED.sub("", answer))))
    while lead := _LEADING.match(text):
        text = text[lead.end() :]
    text = _END.split(text, maxsplit=1)[0]
    text = _ENTITY.sub(lambda found: html.unescape(found[0]), text.replace("▁", " "))
    text = _INLINE.sub(r"\2", _INLINE.sub(r"\2", _ANSWER_TAG.sub("\n", _WRAPPED.sub(r"\2", text))))
    text = _UNPAIRED.sub("", text)
    text = _MARKUP.sub(lambda found: found[1] or "", _BLOCK.sub("\n", text) if "</" in text else text)
    text = _FENCE.sub("", text).strip().strip("`")
    text = _HEADING.sub("", _EMPHASIS.sub(lambda found: found[2] or found[4], _of_json(text)))
    lines = (  # of a table's row the cell that asks
        next(filter(asks, line.split("|")), line) if line[:1] == "|" else line for line in text.splitlines()
    )
    return "\n".join(_NUMBER.sub("", _EDGES.sub("", line)) for line in lines).strip()


def query_of(answer: str) -> str:
    """The query in an answer, on one line: the first line that asks, else the first that is no talk; else empty."""
    lines = [line for raw in said(answer).splitlines() if (line := bare(raw)) and line[-1] not in ":："]
    lines = [line for line in lines if not (_REASONED.match(line) or (not asks(line) and _TALK.match(line)))]
    useful = [line for line in lines if not refuses(line)]
    plain = useful[0] if useful == lines and lines else ""  # beside a refusal or thoughts, only what asks is a query
    plain = "" if _REASONED.match(answer.lstrip("*#_ \n")) else plain
    text = next(filter(asks, useful), plain)
    text = _BEHIND.sub("", text)
    text = _unquoted(" ".join(text.split()))
    short = any(map(str.isalnum if asks(text) else str.isalpha, text)) and len(text) <= LONGEST_QUERY
    return text if short and text.casefold().strip(".") not in _NOTHING else ""


def asks(text: str) -> bool:
    """Whether a text has a question mark of any writing."""
    return any(mark in text for mark in _MARKS)


def without_talk(sentence: str) -> str:
    """A sentence, of "Here is a passage: …" what follows; empty when it speaks of the task only."""
    while sentence and _TALK.match(sentence.strip(QUOTES)):
        sentence = sentence.partition(":")[2].strip()
    return sentence


def bare(line: str) -> str:
    """A line without the interjections, labels, numbers and quotes round what it says."""
    for _ in range(3):  # "Sure! **1. Question:** …" has several
        before = line
        line = _NUMBER.sub("", _unquoted(line))
        for pattern in (_INTERJECTION, LABEL, _PREAMBLE):
            if lead := pattern.match(line):
                line = line[lead.end() :]
        if (lead := _LANGUAGE_LABEL.match(line)) and _names_a_language(lead[1] or lead[2]):
            line = line[lead.end() :]
        if line == before:
            break
    return line


def _unquoted(text: str) -> str:
    """Without the marks round all of it, and without one that has no partner."""
    text = text.replace('\\"', '"').strip(_BLANK)
    while len(text) > 1 and text[0] in QUOTES and text[-1] in QUOTES and not set(text[1:-1]) & {text[0], text[-1]}:
        text = text[1:-1].strip(_BLANK)
    if (text[:1], text[-1:]) in (("(", ")"), ("[", "]")) and not set(text[1:-1]) & set("()[]"):
        return _unquoted(text[1:-1].rstrip(", "))
    if sum(map(text.count, QUOTES)) == 1:
        text = text.strip(QUOTES)
    return text.strip(_BLANK)


def _names_a_language(name: str) -> bool:
    import langcodes

    try:
        return bool(langcodes.tag_is_valid(name) if name.islower() else langcodes.find(name))
    except LookupError:
        return False


def refuses(line: str) -> bool:
    """Whether a line says that the model cannot or will not; a question may begin alike, but without the comma."""
    start = _refusals().match(line.strip(QUOTES).casefold())
    return start is not None and (start["comma"] is not None or not asks(line))


@cache
def _refusals() -> re.Pattern[str]:
    known = orjson.loads(files("xqg_vdb").joinpath("data", "refusals.json").read_bytes())
    bound = {lang: "" if lang in ("ja", "ko", "my", "th", "zh") else r"(?!\w)" for lang in known}
    starts = {re.escape(start) + bound[lang] for lang, starts in known.items() for start in starts}
    return re.compile(rf"(?:{'|'.join(sorted(starts, key=len, reverse=True))})(?P<comma>\s*[,.!;:،、。，])?")


def _without_reasoning(text: str) -> str:
    kept: list[str] = []
    start, thinking, opened = 0, False, ""
    for tag in _REASONING.finditer(text):
        if tag["close"]:
            if not thinking:
                kept = []  # its opening tag stood in the prompt
            start, thinking = tag.end(), False
        elif not thinking:
            kept.append(text[start : tag.start()])
            start, thinking, opened = tag.end(), True, tag[0]
        elif opened == tag[0] and opened[1] in "|｜" and text[start : tag.start()].strip():
            start, thinking = tag.end(), False  # one token at both ends
    return "" if thinking else "\n".join([*kept, text[start:]]).strip()


def _after_channels(text: str) -> str:
    tokens = "<|channel|>" in text
    if not tokens and not _BARE_ANALYSIS.match(text):
        return text
    finals = list((_FINAL if tokens else _BARE_FINAL).finditer(text))
    return text[finals[-1].end() :] if finals else ""


def _of_json(text: str) -> str:
    """The text in an answer that is or holds JSON or a Python literal, be it a tool's arguments; empty without one."""
    start = _RECORD.search(text)
    if not start:
        return text
    value: object = text[start.end() - 1 :].strip()
    for _ in range(6):  # a tool call may hold its arguments as JSON in a string
        if isinstance(value, str):
            value = _literal(value)
        if isinstance(value, str):
            break
        value = next(iter(_values(value)), "")
    if isinstance(value, str) and not _RECORD.match(value):
        return value
    field = _FIELD.search(
        text, 0, start.start() + LONGEST_RECORD // 4
    )  # cut short, with keys that have no quotes, or with talk behind it
    return field[2].replace('\\"', '"') if field else ""


def _literal(text: str) -> object:
    for read in (orjson.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError), catch_warnings():
            simplefilter("ignore")  # of what it thinks of a stranger's escapes
            return read(text[:LONGEST_RECORD])
    return text


def _values(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        if {"error", "detail"} & value.keys():
            return ()
        asked = [value[key] for key in value if re.fullmatch(_QUESTION_KEYS, str(key), re.IGNORECASE)]
        plain = [item for key, item in value.items() if isinstance(item, str) and key not in ("name", "type", "id")]
        return asked or plain or [item for item in value.values() if isinstance(item, dict | list)]
    return value if isinstance(value, list | tuple) else ()
