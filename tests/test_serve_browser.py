"""The page of `xqg-vdb serve` in a real browser: phone and desk, light and dark, paper, keys, strangers' texts.

Skipped where there is no Chromium (see test_report_browser.py). The accessibility audit is axe-core's, from the package
axe-playwright-python; without it, that test is skipped.
"""

import importlib.util
import json
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from browser import browser, find_chromium

from xqg_vdb import load
from xqg_vdb.calibration import LanguageMeans
from xqg_vdb.integrations.serve import Service, make_app
from xqg_vdb.store import open_store
from xqg_vdb.testing import HashEncoder

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium found: install it or set XQG_TEST_CHROMIUM"
)
pytest.importorskip("starlette", reason="the extra serve is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra serve is not installed")

HOSTILE = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


def encoder():
    means = LanguageMeans({"sw": np.linspace(-1, 1, 32).astype(np.float32)}, {"sw": 30}, "bank")
    return HashEncoder(calibration=0.9, language_means=means)


def records():
    texts = ["mto nile maji", "نهر النيل", "नील नदी", "尼罗河是非洲的河流", "x" * 300]
    for i in range(15):
        yield {"id": f"p{i}{HOSTILE}", "title": HOSTILE, "text": f"{texts[i % 5]} {HOSTILE} {i}", "lang": "en"}


@contextmanager
def served(service, **settings):
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(service, **settings), log_level="error"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with open_store(tmp_path_factory.mktemp("s") / "s") as store:
        load(records(), "wiki", encoder=encoder(), store=store)
        yield Service(store, lambda collection: encoder())


@pytest.fixture(scope="module")
def url(service):
    with served(service) as address:
        yield address


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def until(page, script):
    end = time.monotonic() + 60
    while not page.run(script):
        assert time.monotonic() < end, script
        time.sleep(0.02)


def typed(page, text):
    """What a reader types into the field that has the focus, and Enter."""
    page.call("Input.insertText", text=text)
    for kind in ("rawKeyDown", "char", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)


def ask(page, question):
    page.run("document.querySelector('[name=q]').value = ''; document.querySelector('[name=q]').focus()")
    page.run("for (const id of ['#told', '#wrong']) document.querySelector(id).textContent = ''")
    typed(page, question)
    until(
        page,
        "/s\\.$/.test(document.querySelector('#told').textContent) || document.querySelector('#wrong').textContent",
    )


def text_of(page, selector):
    return page.run(f"document.querySelector({json.dumps(selector)}).textContent")


def opened(page, url, **how):
    page.open(url, **{"width": 1280, **how})
    until(page, "document.querySelector('[name=collection]').options.length")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_asked_by_the_keyboard_in_several_languages_nothing_of_a_text_acts(page, url, width, dark):
    opened(page, url, width=width, dark=dark)
    assert page.run("document.activeElement.name") == "q", "one may type at once"
    title = page.run("document.title")
    questions = {"Mto Nile una urefu gani kutoka chanzo?": "Swahili", "ما هو أطول نهر في أفريقيا؟": "Arabic"}
    for question, language in {**questions, HOSTILE: "The question is in"}.items():
        ask(page, question)
        assert language in text_of(page, "#told") and text_of(page, "#wrong") == ""
        assert page.run("[...document.querySelectorAll('h2')].map(h => h.textContent)") == ["Calibrated", "Plain"]
        assert page.run("[...document.querySelectorAll('ol')].map(ol => ol.children.length)") == [10, 10]
        assert page.run("document.images.length + document.scripts.length") == 1, "its own script alone"
        assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.title") == title and page.complaints() == []
    assert {address.split("/")[2] for address in page.requests() if address.startswith("http")} == {url.split("/")[2]}


def test_hits_that_moved_say_so_and_why(page, url):
    opened(page, url)
    ask(page, "Mto Nile una urefu gani kutoka chanzo?")
    lists = "[...document.querySelectorAll('ol')].map(ol => [...ol.children].map(li => li.innerText.split('\\n')))"
    calibrated, plain = page.run(lists)
    ranks = {text: rank for rank, (_, _, text) in enumerate(plain, 1)}
    assert calibrated != plain
    for rank, (head, _, text) in enumerate(calibrated, 1):
        before = ranks.get(text)
        moved = "new: not among the plain ones" if before is None else f"from {before}" if before != rank else ""
        assert head.endswith(moved) and ("from" in head or "new" in head) == bool(moved)
    told = text_of(page, "#told")
    assert "Calibrated: 0.9 × the mean of that language's questions is taken from it" in told
    assert "Passages in Swahili: 0 among the plain ones, 0 among the calibrated." in told


def test_side_by_side_on_a_desk_and_on_paper_below_each_other_on_a_phone(page, url, tmp_path):
    tops = "[...document.querySelectorAll('section')].map(part => part.getBoundingClientRect().top)"
    for width, level in ((390, False), (1280, True)):
        opened(page, url, width=width)
        ask(page, "mto")
        first, second = page.run(tops)
        assert (first == second) == level
    opened(page, url, dark=True)
    ask(page, "mto")
    page.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.run("getComputedStyle(document.querySelector('button')).display") == "none"
        page.pdf(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    finally:
        page.call("Emulation.setEmulatedMedia", media="")


def test_errors_are_told_in_a_sentence_and_the_page_goes_on(page, service):
    with served(service) as url:
        opened(page, url)
        page.run("document.querySelector('[name=q]').removeAttribute('maxlength')")
        ask(page, "x" * 2001)
        assert text_of(page, "#wrong") == "A question of 1 to 2,000 characters is needed."
        ask(page, "mto")
        assert text_of(page, "#wrong") == ""
    ask(page, "mto")
    assert text_of(page, "#wrong") == "The service does not answer: is `xqg-vdb serve` still running?"


def test_a_key_is_asked_for_where_one_is_needed(page, service):
    with served(service, key="sesame") as url:
        page.open(url, width=1280)
        until(page, "!document.querySelector('#keyed').hidden")
        assert text_of(page, "#wrong") == "Give the key of this service."
        page.run("document.querySelector('[name=q]').value = 'mto'; document.querySelector('[name=key]').focus()")
        typed(page, "sesame")
        until(page, "document.querySelectorAll('ol li').length === 20")
        assert text_of(page, "#wrong") == ""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_an_accessibility_audit_finds_nothing(page, url, width, dark):
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None:
        pytest.skip("axe-playwright-python is not installed")
    opened(page, url, width=width, dark=dark)
    ask(page, "Mto Nile una urefu gani kutoka chanzo?")
    page.run(Path(found.origin).with_name("axe.min.js").read_text("utf-8") + "; 1")
    found = page.run("axe.run().then(answer => answer.violations.map(v => [v.id, v.nodes.map(n => n.html)]))")
    assert found == [], json.dumps(found, indent=1)
