"""Pictures of HTML pages as people see them: `python tests/screenshots.py OUT docs/example-report.html [another.html]`.

At 390, 768 and 1280 CSS pixels, light and dark, and as printed (PDF). Needs a Chromium (XQG_TEST_CHROMIUM or on PATH).
With AXE=axe.min.js (npm's axe-core) it also prints what an accessibility audit finds, with every fold open.
"""

import os
import sys
import tempfile
from pathlib import Path

from browser import browser

AUDIT = "axe.run().then(r => r.violations.map(v => `${v.id} (${v.impact}): ${v.nodes.map(n => n.target).join(', ')}`))"


def main(out: Path, pages: list[Path]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as page:
        for path in pages:
            for width in (390, 768, 1280):
                for scheme in ("light", "dark"):
                    page.open(path, width=width, dark=scheme == "dark")
                    page.screenshot(out / f"{path.stem}-{width}-{scheme}.png")
                    print(out / f"{path.stem}-{width}-{scheme}.png", *page.complaints(), *audit(page))
            page.pdf(out / f"{path.stem}.pdf")
            print(out / f"{path.stem}.pdf")


def audit(page) -> list[str]:
    if "AXE" not in os.environ:
        return []
    page.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.run(Path(os.environ["AXE"]).read_text())
    done = page.call("Runtime.evaluate", expression=AUDIT, awaitPromise=True, returnByValue=True)["result"]["value"]
    return done or ["no violation"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
