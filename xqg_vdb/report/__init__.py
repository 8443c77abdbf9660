"""Reports of a benchmark: terminal text, JSON, Markdown and one self-contained HTML page, all from one `Report`."""

from xqg_vdb.report.markdown import render_markdown
from xqg_vdb.report.page import render_page
from xqg_vdb.report.terminal import render_terminal
from xqg_vdb.report.writing import read_report, write_report

__all__ = ["read_report", "render_markdown", "render_page", "render_terminal", "write_report"]
