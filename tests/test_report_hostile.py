"""Names from the data and the config that try to run as HTML or script in the report, or to mislead its reader."""

import csv
import html.parser
import json
import shutil

import numpy as np
import pytest

from jras_jax.report import write_report
from tests.fake_run import write_fake_run
from tests.test_report_browser import CHROMIUM, DRIVER, Browser

PROBE = "document.documentElement.dataset.ran=1"
NAMES = (
    f"<img src=x onerror={PROBE}>",
    f"</script><script>{PROBE}</script>",
    f"</style></title><svg onload={PROBE}>",
    f'"><a href="javascript:{PROBE}" autofocus onfocus={PROBE}>',
    f"' onmouseover='{PROBE}",
    "line\nbreak\r\nand\0nul",
    "\u202ereversed",
    "سارا שלום",
    "broken \udc80 name",
    "$title ${script} $",
    "x" * 5000,
    "&lt;script&gt;",
)


def hostile_run(folder):
    """A fake run whose every free text is hostile: of the tables, the evidence, the config, the facts and warnings."""
    write_fake_run(folder, patients=len(NAMES))
    renamed = {f"patient{i:03d}": name for i, name in enumerate(NAMES)}
    rename = lambda text: renamed.get(text, text)  # noqa: E731
    for file in ("cases.csv", "positions.csv"):
        path = folder / "evaluation" / "validation" / file
        with path.open(newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        for i, row in enumerate(rows):
            row["patient"] = rename(row["patient"])
            for number, column in enumerate(("group", "vendor", "centre")):
                if column in row:
                    row[column] = NAMES[(i // 6 + number) % 5]
        with path.open("w", newline="", encoding="utf-8", errors="replace") as f:
            writer = csv.DictWriter(f, rows[0])
            writer.writeheader()
            writer.writerows({k: v.replace("\0", "") for k, v in row.items()} for row in rows)
    for path in list((folder / "evaluation" / "validation" / "evidence").glob("*.npz")):
        with np.load(path) as file:
            arrays = dict(file)
        arrays["guide_names"] = np.full(arrays["guide_names"].shape, NAMES[0])
        np.savez(path, **arrays)
        shutil.copy(path, path.with_name(f"<img src=x onerror={PROBE}>_ED.npz"))
    config = json.loads((folder / "config.json").read_text())
    config["name"], config["backbone"]["name"], config["fusion"]["name"] = NAMES[1], NAMES[0], NAMES[2]
    config["backbone"]["options"] = {NAMES[0]: NAMES[3]}
    (folder / "config.json").write_text(json.dumps(config))
    facts = json.loads((folder / "run.json").read_text())
    facts |= {"command": NAMES[0], "device": NAMES[2], "warnings": list(NAMES), "versions": {NAMES[0]: NAMES[1]}}
    (folder / "run.json").write_text(json.dumps(facts))
    summary = json.loads((folder / "evaluation" / "validation" / "summary.json").read_text())
    summary |= {"split": NAMES[0], "protocol": NAMES[1], "warnings": list(NAMES)}
    (folder / "evaluation" / "validation" / "summary.json").write_text(json.dumps(summary))
    (folder / "splits.json").write_text(json.dumps({"train": list(NAMES), "validation": list(NAMES)}))
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(hostile_run(tmp_path_factory.mktemp("hostile") / "run"))


class Reader(html.parser.HTMLParser):
    """Collects the elements, the text of scripts and what attributes could run."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.running, self.scripts, self._in_script = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self._in_script = tag == "script"
        for name, value in attributes:
            if name.startswith("on") or name == "src" or "javascript:" in (value or "").split("&")[0][:20].lower():
                self.running.append((tag, name, value))

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.scripts.append(data)


def test_hostile_names_are_text(page):
    text = page.read_text(encoding="utf-8")
    found = Reader(text)
    assert found.elements.count("script") == found.elements.count("style") == 1
    assert not {"img", "iframe", "object", "embed", "base", "form"} & set(found.elements)
    assert found.running == [] and all(PROBE not in script for script in found.scripts)
    assert "&lt;img src=x onerror=" in text and "&lt;/script&gt;&lt;script&gt;" in text
    assert "&amp;lt;script&amp;gt;" in text  # what is written escaped is shown as written
    assert "$title ${script} $" in text
    policy = text.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy


def test_what_a_reader_cannot_see_is_spelled_out(page):
    text = page.read_text(encoding="utf-8")
    assert "\u202e" not in text and "\\u202ereversed" in text
    assert "\0" not in text and "and\\u0000nul" in text and "broken \\udc80 name" in text
    assert "سارا שלום" in text  # right to left by nature


@pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium and chromedriver (Debian: chromium, chromium-driver)"
)
def test_a_browser_runs_nothing_of_them(page, tmp_path):
    browser = Browser(tmp_path)
    try:
        browser.log("browser"), browser.log("performance")
        browser.open(page)
        browser.script("document.querySelectorAll('details').forEach(d => { d.open = true; }); return true;")
        browser.script("document.querySelectorAll('a, summary, input').forEach(n => n.focus()); return true;")
        assert browser.script("return document.documentElement.dataset.ran === undefined")
        assert browser.script("return document.querySelectorAll('script').length") == 1
        handlers = "[...n.attributes].some(a => a.name.startsWith('on'))"
        assert browser.script(f"return [...document.querySelectorAll('*')].filter(n => {handlers}).length") == 0
        assert browser.log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        own = ("data:", "chrome:")  # chrome: is the browser's own first page
        assert [url for url in asked if not url.startswith(own)] == [page.resolve().as_uri()]
        wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert browser.script(wide), "a long name runs out of the window"
    finally:
        browser.close()
