"""Make the pages of finished runs again from their report.json: `python benchmarks/render.py benchmarks/reports/*`.

Writes report.md in the words and figures of today; report.json is only read. With one folder and `--page FILE` also the
HTML page: `python benchmarks/render.py benchmarks/reports/example --page docs/example-report.html`.
"""

import argparse
from pathlib import Path

from xqg_vdb.evaluate.report import read_report, render_markdown, render_page

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folders", nargs="+", type=Path)
parser.add_argument("--page", type=Path, help="write the HTML page of the last folder here")
asked = parser.parse_args()
for folder in asked.folders:
    report = read_report(folder / "report.json")
    size = (folder / "report.md").write_text(render_markdown(report), "utf-8")
    print(f"{folder / 'report.md'}  {size:,} characters")
if asked.page:
    size = asked.page.write_text(render_page(report), "utf-8")
    print(f"{asked.page}  {size:,} characters")
