"""The HTML report in a real browser: narrow and wide, light and dark, on paper.

Skipped where no Chromium is installed (Debian: `apt-get install chromium`); XQG_TEST_CHROMIUM names another one.
"""

import re
import zlib

import pytest
from browser import browser, find_chromium
from report_cases import empty, named, realistic

from xqg_vdb.evaluate.report import write_report

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium found: install it or set XQG_TEST_CHROMIUM"
)

REPORTS = {"realistic": realistic(), "empty": empty(), "hostile": named("<script>alert(1)</script>\"'" + "long" * 40)}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return {name: write_report(one, tmp_path_factory.mktemp(name))[2] for name, one in REPORTS.items()}


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize(("width", "dark"), [(360, False), (390, True), (1280, False), (1280, True)])
def test_nothing_is_asked_for_nothing_complains_and_nothing_sticks_out(page, paths, name, width, dark):
    page.open(paths[name], width=width, dark=dark)
    assert page.run("innerWidth") == width
    assert page.requests() == [paths[name].as_uri()]
    assert page.complaints() == []
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.scripts.length") == 0


def test_the_check_itself_sees_requests_complaints_and_overflow(page, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text("<script>console.error('no')</script><img src='other.png'><div style='width:900px'>x</div>")
    page.open(path, width=360)
    assert page.requests() == [path.as_uri(), (tmp_path / "other.png").as_uri()]
    assert any("no" in said for said in page.complaints())
    assert page.run("document.documentElement.scrollWidth") > 360


# Boxes of a figure's words that overlap, and words that stick out of it. Slanted words are left out.
_WORDS = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  const words = [...svg.querySelectorAll('text')].filter(one => !one.hasAttribute('transform'));
  const boxes = words.map(one => [one.textContent, one.getBoundingClientRect()]);
  const wrong = boxes.filter(([, b]) => b.left < frame.left - 2 || b.right > frame.right + 2
    || b.top < frame.top - 4 || b.bottom > frame.bottom + 4).map(([text]) => 'outside: ' + text);
  boxes.forEach(([text, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && high > a.height / 2) wrong.push(text + ' over ' + other);
  }));
  return wrong.map(one => svg.querySelector('title').textContent + ': ' + one);
})
"""


@pytest.mark.parametrize("width", [360, 1200])
def test_words_in_figures_neither_overlap_nor_are_cut(page, paths, width):
    page.open(paths["realistic"], width=width)
    assert page.run(_WORDS) == []


_CONTRAST = """
(() => {
  const light = c => c.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const rgb = text => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
  const page = rgb(getComputedStyle(document.body).backgroundColor);
  const ratio = (a, b) => (Math.max(light(a), light(b)) + .05) / (Math.min(light(a), light(b)) + .05);
  const rgb1 = text => text.startsWith('color(') ? rgb(text.replace('srgb', '')).map(v => v * 255) : rgb(text);
  const cells = [...document.querySelectorAll('td[class^=h]')].map(cell =>
    ratio(rgb(getComputedStyle(cell).color), rgb1(getComputedStyle(cell).backgroundColor)));
  const texts = ['p', '.note', 'a', 'th', 'td:not([class^=h])', 'figcaption', 'dd', 'li'].flatMap(css =>
    [...document.querySelectorAll(css)].map(one => ratio(rgb(getComputedStyle(one).color), page)));
  return [Math.min(...cells), Math.min(...texts)];
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_everything_can_be_read_against_its_background(page, paths, dark):
    """WCAG asks for 4.5 for text, and for 3 for large text and figures."""
    page.open(paths["realistic"], width=1200, dark=dark)
    cells, texts = page.run(_CONTRAST)
    assert cells > 4.5
    assert texts > 4.5


def test_tables_scroll_by_themselves_and_can_be_reached_by_keyboard(page, paths):
    page.open(paths["realistic"], width=360)
    assert page.run("[...document.querySelectorAll('table')].every(t => t.parentElement.className == 'scroll')")
    assert page.run("[...document.querySelectorAll('.scroll:has(table)')].every(s => s.tabIndex == 0)")


def test_it_prints_in_black_on_white_within_the_paper(page, paths, tmp_path):
    page.open(paths["realistic"], width=688, dark=True)  # A4 less the margins at 96 dots an inch
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.run("document.documentElement.scrollWidth") <= 688
    page.pdf(tmp_path / "report.pdf")
    page.call("Emulation.setEmulatedMedia", media="")
    data = (tmp_path / "report.pdf").read_bytes()
    assert data.startswith(b"%PDF")
    packed = [
        zlib.decompress(part) for part in re.findall(rb"FlateDecode.*?stream\r?\n(.*?)endstream", data, re.DOTALL)
    ]
    assert 3 <= sum(b"BT" in part for part in packed) <= 20, "pages with text"
