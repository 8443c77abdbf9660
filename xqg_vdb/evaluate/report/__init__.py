"""Reports of a benchmark: terminal text, JSON, Markdown and one self-contained HTML page, all from one `Report`."""

from xqg_vdb.evaluate.report.render import read_report, render_markdown, render_page, render_terminal, write_report

__all__ = ["read_report", "render_markdown", "render_page", "render_terminal", "write_report"]
