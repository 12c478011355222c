"""The report in headless Chromium, driven through chromedriver's W3C WebDriver protocol by the standard library."""

import base64
import json
import pathlib
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from jras_jax.report import write_report
from tests.fake_run import write_fake_run
from tests.test_report import contrast

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium and chromedriver (Debian: chromium, chromium-driver)"
)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--window-size=1366,900")
ARROW_RIGHT, HOME, TAB = "\ue014", "\ue011", "\ue004"


class Browser:
    """A session of chromedriver: just the commands that these tests need."""

    def __init__(self, profile: pathlib.Path):
        # Port 0 lets the driver choose a free one, which it then prints.
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([DRIVER, "--port=0"], text=True, **pipes)
        for line in self._process.stdout:
            if found := re.search(r"successfully on port (\d+)", line):
                self._address = f"http://127.0.0.1:{found[1]}"
                break
        else:
            raise RuntimeError("chromedriver did not start")
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        self._session = ""
        try:
            self._session = self.send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        except BaseException:
            self.close()
            raise

    def send(self, method: str, path: str, body: dict | None = None):
        """One command; returns its value."""
        address = f"{self._address}{f'/session/{self._session}' if self._session else ''}{path}"
        data = json.dumps(body or {}).encode() if method == "POST" else None
        # An opener without proxies: the driver is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as e:
            raise RuntimeError(f"{method} {path}: {e.read().decode()[:500]}") from e

    def open(self, file: pathlib.Path) -> None:
        self.send("POST", "/url", {"url": file.resolve().as_uri()})

    def script(self, code: str, *arguments):
        return self.send("POST", "/execute/async", {"script": _AWAIT % code, "args": list(arguments)})

    def press(self, *keys: str) -> None:
        actions = [a for key in keys for a in ({"type": "keyDown", "value": key}, {"type": "keyUp", "value": key})]
        self.send("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def log(self, kind: str) -> list[dict]:
        return self.send("POST", "/se/log", {"type": kind})

    def devtools(self, command: str, **parameters):
        return self.send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def scheme(self, name: str) -> None:
        """Makes the reader prefer 'light' or 'dark'."""
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def screenshot(self, file: pathlib.Path) -> None:
        file.write_bytes(base64.b64decode(self.send("GET", "/screenshot")))

    def close(self) -> None:
        try:
            if self._session:
                self.send("DELETE", "")
        finally:
            self._process.terminate()
            self._process.wait(10)


_AWAIT = "const done = arguments[arguments.length - 1]; (async () => { %s })().then(done, e => done(String(e)));"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with retrieval and a baseline."""
    root = tmp_path_factory.mktemp("report")
    write_fake_run(root / "run")
    write_fake_run(root / "run" / "baseline", noise=1.6, guides=0)
    return write_report(root / "run")


def at_width(browser, width: int, code: str):
    """What a script finds in a window of that width."""
    browser.devtools("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    try:
        browser.script("await new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r))); return true;")
        return browser.script(code)
    finally:
        browser.devtools("Emulation.clearDeviceMetricsOverride")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all tests, with an empty profile."""
    session = Browser(tmp_path_factory.mktemp("profile"))
    yield session
    session.close()


@pytest.fixture
def opened(browser, page):
    """The browser, with the report freshly loaded and its logs emptied."""
    for kind in ("browser", "performance"):
        browser.log(kind)
    browser.open(page)
    return browser


# Index of the slice that a panel shows, and what its slider and output say of it.
SHOWN = """
  const panel = document.querySelectorAll('.panel')[arguments[0]];
  const seen = [...panel.querySelectorAll('.slice')].filter(s => s.checkVisibility()).map(s => +s.dataset.slice);
  const slider = panel.querySelector('input[type=range]');
  return [seen, +slider.value, panel.querySelector('output').textContent, slider.getAttribute('aria-valuetext')];
"""


def test_console_stays_silent_and_nothing_is_requested(opened, page):
    opened.script("document.querySelectorAll('details').forEach(d => { d.open = true; }); return true;")
    time.sleep(0.3)
    assert opened.log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in opened.log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert page.resolve().as_uri() in asked, "the log does not see requests"
    assert [url for url in asked if not url.startswith("data:")] == [page.resolve().as_uri()]


def test_policy_lets_the_page_reach_no_network(opened):
    blocked = opened.script("return fetch('http://127.0.0.1:9/').then(() => 'sent', e => e.name)")
    assert blocked == "TypeError"
    assert any("Content Security Policy" in entry["message"] for entry in opened.log("browser"))


def test_every_image_loads(opened):
    sizes = opened.script(
        "return Promise.all([...document.querySelectorAll('image')].map(async (node) => {"
        "  const image = new Image(); image.src = node.getAttribute('href'); await image.decode();"
        "  return image.naturalWidth * image.naturalHeight; }))"
    )
    # 3 cases of 5 slices, each a query, two guides and the whole slice; error map and baseline show the query's again.
    assert len(sizes) == 3 * 5 * 4 and min(sizes) > 0


def test_keys_move_the_slider_through_the_slices(opened):
    before = opened.script(SHOWN, 0)
    opened.script("document.querySelector('.panel input[type=range]').focus(); return true;")
    opened.press(HOME)
    assert opened.script(SHOWN, 0) == [[0], 1, "1 of 5", "Slice 1 of 5"]
    opened.press(ARROW_RIGHT, ARROW_RIGHT)
    assert opened.script(SHOWN, 0) == [[2], 3, "3 of 5", "Slice 3 of 5"]
    current = (
        "return [...document.querySelectorAll('.panel')[0].querySelectorAll('.current')].map(b => +b.dataset.slice)"
    )
    assert opened.script(current) == [2]
    # The other panels stay where they are, and each opens on one slice.
    assert [len(opened.script(SHOWN, i)[0]) for i in range(3)] == [1] * 3 and len(before[0]) == 1


def test_pixels_change_with_the_slice(opened, tmp_path):
    opened.script("document.querySelector('.panel').scrollIntoView(); return true;")
    frames = []
    opened.script("document.querySelector('.panel input[type=range]').focus(); return true;")
    for key in (HOME, ARROW_RIGHT):
        opened.press(key)
        opened.screenshot(tmp_path / "frame.png")
        frames.append((tmp_path / "frame.png").read_bytes())
    assert frames[0] != frames[1] and min(map(len, frames)) > 20_000


def test_contours_are_apart_without_colour_and_can_be_hidden(opened):
    style = "getComputedStyle(document.querySelector(`.panel .${kind} path`)).strokeDasharray"
    dashes = opened.script(f"return ['truth', 'prediction'].map(kind => {style})")
    assert dashes[0] == "none" and dashes[1] != "none"
    for layer in ("truth", "prediction", "mask"):
        box = f"document.querySelector('.panel input[data-layer^={layer}]')"
        found = f"document.querySelectorAll('.panel:first-of-type .slice:not([hidden]) .{layer}')"
        seen = f"[...{found}].some(g => getComputedStyle(g).display !== 'none')"
        assert opened.script(f"return {seen}")
        opened.script(f"{box}.click(); return true;")
        assert not opened.script(f"return {seen}")


def test_every_control_has_a_name_and_can_be_reached(opened):
    opened.devtools("Accessibility.enable")
    nodes = opened.devtools("Accessibility.getFullAXTree")["nodes"]
    for role, least in (("slider", 3), ("checkbox", 12), ("image", 15), ("link", 12)):
        names = [n["name"]["value"] for n in nodes if n.get("role", {}).get("value") == role and not n["ignored"]]
        assert len(names) >= least and all(names), role
    opened.press(TAB)
    assert opened.script("return document.activeElement.textContent") == "Skip to the results"


def test_colours_follow_the_readers_preference(opened):
    ground = "return getComputedStyle(document.body).backgroundColor"
    found = {}
    for name in ("light", "dark"):
        opened.scheme(name)
        found[name] = sum(map(int, re.findall(r"\d+", opened.script(ground))[:3]))
    assert found["light"] > 700 and found["dark"] < 100
    opened.scheme("light")


@pytest.mark.parametrize("width", [390, 800, 1366])
def test_nothing_runs_out_of_the_window(opened, width):
    assert at_width(
        opened, width, "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )


def test_guides_are_as_large_as_the_query_and_can_take_turns_with_it(opened):
    sizes = opened.script(
        "return [...document.querySelectorAll('.panel .slice:not([hidden]) .picture')].map(p => p.clientWidth)"
    )
    assert len(sizes) == 3 * 6 and len(set(sizes)) == 1
    over = "getComputedStyle(document.querySelector('.panel .slice:not([hidden]) .over'))"
    assert opened.script(f"return [{over}.opacity, {over}.animationName]") == ["0", "none"]
    opened.script("document.querySelector('.panel input[data-blink]').click(); return true;")
    # Under three flashes a second, the bound for people who are sensitive to them (WCAG 2.3.1).
    name, period = opened.script(f"return [{over}.animationName, parseFloat({over}.animationDuration)]")
    assert name == "blink" and period > 1


def test_charts_and_tables_have_a_layout_for_narrow_windows(opened):
    seen = "[...document.querySelectorAll('svg.chart')].filter(s => s.checkVisibility() && s.viewBox.baseVal.width"
    shrunk = f"return {seen} > s.clientWidth + 1).length"
    assert (
        at_width(opened, 400, shrunk) == at_width(opened, 1400, shrunk) == 0
    )  # none is a small picture of a large one
    wide = f"return {seen} > 500).length"
    assert at_width(opened, 1400, wide) >= 3 and at_width(opened, 400, wide) == 0
    tells = (
        "return [...document.querySelectorAll('.scroll')].filter(b => b.checkVisibility()).map(b => "
        "[b.scrollWidth > b.clientWidth + 1, b.previousElementSibling.checkVisibility(), b.hasAttribute('tabindex')])"
    )
    found = at_width(opened, 400, tells)
    assert any(wide for wide, *_ in found) and all(wide == told == key for wide, told, key in found)


def test_a_structures_curve_has_its_hue_and_is_legible_in_both_schemes(opened):
    strokes = "return [...document.querySelectorAll('polyline.structure')].map(p => getComputedStyle(p).stroke)"
    grounds = {"light": "#fcfcfb", "dark": "#14171a"}
    try:
        for scheme, ground in grounds.items():
            opened.scheme(scheme)
            found = [re.findall(r"[\d.]+", stroke)[:3] for stroke in opened.script(strokes)]
            assert len(found) == len({tuple(f) for f in found}) == 3
            for channels in found:  # color(srgb r g b), each 0 to 1
                colour = "#" + "".join(f"{round(255 * float(c)):02x}" for c in channels)
                assert contrast(colour, ground) >= 3.0, (scheme, colour)
    finally:
        opened.scheme("light")


def test_errors_are_hatched_in_the_colour_of_their_structure(opened):
    found = opened.script(
        "return [...document.querySelectorAll('.errors [fill^=url]')].map(p => ["
        "  getComputedStyle(p).stroke,"
        "  getComputedStyle(document.querySelector(p.getAttribute('fill').slice(4, -1) + ' path')).stroke])"
    )
    outlines = opened.script(
        "return [...document.querySelectorAll('.outline.prediction path')].map(p => getComputedStyle(p).stroke)"
    )
    assert len(found) > 10 and all(edge == lines for edge, lines in found)
    assert len(set(outlines)) == 3 and {edge for edge, _ in found} <= {*outlines, "rgb(231, 233, 235)"}  # the key's


def test_printing_unfolds_what_is_folded(opened):
    folded = "return document.querySelectorAll('details:not([open])').length"
    before = opened.script(folded)
    opened.script("dispatchEvent(new Event('beforeprint')); return true;")
    assert before > 0 and opened.script(folded) == 0
    opened.script("dispatchEvent(new Event('afterprint')); return true;")
    assert opened.script(folded) == before
