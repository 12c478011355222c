"""The report of a run: one page from the files of its folder, whatever of them is missing."""

import html.parser
import json
import math
import re
import shutil
import urllib.parse
from typing import ClassVar

import numpy as np
import pytest

from jras_jax.commands import cli
from jras_jax.data.description import DatasetDescription
from jras_jax.errors import UserError
from jras_jax.evaluation import metrics, statistics
from jras_jax.evaluation.compare import compare, match_rows
from jras_jax.report import files, markup, write_report
from tests.fake_run import write_fake_run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run and its baseline."""
    root = tmp_path_factory.mktemp("runs")
    write_fake_run(root / "run")
    write_fake_run(root / "run" / "baseline", noise=1.6, guides=0)
    return root


@pytest.fixture(scope="module")
def page(folders):
    return write_report(folders / "run").read_text(encoding="utf-8")


class Outline(html.parser.HTMLParser):
    """Checks that tags close in order, and collects ids, links and the text."""

    VOID: ClassVar = {"meta", "link", "input", "br", "hr"}

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.links, self.text, self.attributes = [], [], [], [], []
        self.feed(page)
        assert not self.open
        self.text = re.sub(r"\s+", " ", "".join(self.text))

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *a) for a in attrs]
        self.ids += [v for k, v in attrs if k == "id"]
        self.links += [v for k, v in attrs if k == "href" and tag == "a"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text.append(data)


def test_page_is_whole_and_asks_nothing_of_a_network(page):
    outline = Outline(page)
    assert len(set(outline.ids)) == len(outline.ids)
    inside = [link[1:] for link in outline.links if link.startswith("#")]
    assert inside and set(inside) <= set(outline.ids)
    for tag, name, value in outline.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action") and tag != "a":
            assert value.startswith(("#", "data:")), (tag, name, value)
    patterns = re.findall(r"url\((.*?)\)", page)
    assert patterns and all(p[0] == "#" and p[1:] in outline.ids for p in patterns)
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_page_speaks_to_those_who_do_not_see_it(page):
    labels = [v for tag, k, v in Outline(page).attributes if tag == "svg" and k == "aria-label"]
    assert len(labels) == page.count('role="img"') and all(len(label) > 10 for label in labels)
    ids = Outline(page).ids
    for target in re.findall(r'(?:aria-labelledby|for)="([^"]+)"', page):
        assert target in ids
    assert re.findall(r"<h1>", page) == ["<h1>"]


def test_page_links_to_its_tables_from_wherever_it_is_written(folders, tmp_path):
    tables = folders / "run" / "evaluation" / "validation"
    for page in (
        write_report(folders / "run"),
        tables / "report.html",
        write_report(folders / "run", output=tmp_path / "a b" / "r.html"),
    ):
        links = [link for link in Outline(page.read_text(encoding="utf-8")).links if not link.startswith("#")]
        targets = [(page.parent / urllib.parse.unquote(link)).resolve() for link in links]
        assert targets == [tables / name for name in ("cases.csv", "positions.csv", "summary.json")]
        assert all(target.is_file() for target in targets)


def test_one_run_is_called_one_seed(page):
    assert "One seed (0): a single training run" in Outline(page).text


def test_confusion_is_given_in_shares_of_the_true_structure(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders / "run", run)
    summary = run / "evaluation" / "validation" / "summary.json"
    counts = [[900, 25, 0, 0], [25, 75, 0, 0], [0, 50, 150, 0], [0, 0, 0, 80]]  # rows: truth
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"confusion": counts}))
    text = Outline(write_report(run).read_text(encoding="utf-8")).text
    found = text[text.index("Confusion between structures") :]
    # RV: a quarter missed; MYO: a quarter taken for RV; of what is predicted as RV, 25 of 150 voxels are background.
    for row in ("RV 25.0 75.0 0.0 0.0", "MYO 0.0 25.0 75.0 0.0", "LV 0.0 0.0 0.0 100", "structure – 16.7 0.0 0.0"):
        assert row in found


def test_headline_states_the_statistics_of_the_rows(folders, page):
    rows = metrics.read_cases_csv(folders / "run" / "evaluation" / "validation" / "cases.csv")
    text = Outline(page).text
    for measure, digits in (("dice", 3), ("hd95", 2), ("assd", 2)):
        found = statistics.summarise([r[measure] for r in rows], [r["patient"] for r in rows])
        mean, low, high = (markup.number(x, digits) for x in (found.mean, found.low, found.high))
        assert mean in text and f"95% interval {low} to {high}" in text
    assert "1 structure not found" in text and "no distance: it is not in the mean distances" in text


def test_p_values_are_those_of_the_command_compare(folders, page):
    files_of = [folders / "run" / "baseline", folders / "run"]
    rows = [metrics.read_cases_csv(folder / "evaluation" / "validation" / "cases.csv") for folder in files_of]
    pairs, _ = match_rows(*rows)
    found = [c for c in compare(pairs) if c.structure == "mean"]
    shown = re.search(r"p \(Holm\)(.*?)Intervals are 95%", Outline(page).text)[1]
    assert [c.metric for c in found] == ["dice", "hd", "hd95", "assd"] and not any(math.isnan(c.p_holm) for c in found)
    at = 0
    for c in found:  # in this order
        at = shown.index(f") {markup.p_value(c.p_holm)}", at) + 1
    assert f"Holm-corrected p is {markup.p_value(found[0].p_holm)}" in Outline(page).text


def test_slice_positions_and_the_papers_figure_stand_beside_ours(folders, page):
    rows = metrics.read_cases_csv(folders / "run" / "evaluation" / "validation" / "positions.csv")
    text = Outline(page).text
    found = text.index("Dice by slice position")
    for position, name in (("base", "Base"), ("mid", "Middle"), ("apex", "Apex")):
        own = [r for r in rows if r["position"] == position and r["structure"] == "RV"]
        mean = statistics.summarise([r["dice"] for r in own]).mean
        found = text.index(f"{name} {mean:.3f}", found)  # in this order
    paper = json.loads((folders / "run" / "evaluation" / "validation" / "summary.json").read_text())["paper_2d"]
    assert f"{paper['dice_2d']:.3f} ± {paper['dice_2d_sd']:.3f}" in text


def test_report_is_the_same_for_the_same_files(folders, page, tmp_path):
    again = write_report(
        folders / "run", baseline_dir=folders / "run" / "baseline", output=tmp_path / "deep" / "r.html"
    )
    assert again == tmp_path / "deep" / "r.html"
    both = [re.sub(r'<p class="links">.*', "", text) for text in (again.read_text(encoding="utf-8"), page)]
    assert both[0] == both[1]  # but for the links, which are relative


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("baseline", "No evaluated baseline was given"),
        ("metrics.csv", "no training curves"),
        ("run.json", "code, versions and device are not known"),
        ("splits.json", "who trained and who was scored is not known"),
        ("config.json", "the settings are not known"),
        ("evaluation/validation/cases.csv", "no intervals, tests, breakdowns or plots"),
        ("evaluation/validation/evidence", "there are no slices to show"),
    ],
)
def test_a_missing_piece_is_left_out_with_a_sentence(folders, tmp_path, missing, sentence):
    run = tmp_path / "run"
    shutil.copytree(folders / "run", run, ignore=shutil.ignore_patterns(*([missing] if "/" not in missing else [])))
    if (run / missing).is_dir():
        shutil.rmtree(run / missing)
    else:
        (run / missing).unlink(missing_ok=True)
    text = Outline(write_report(run).read_text(encoding="utf-8")).text
    assert sentence in text
    assert "nan" not in re.findall(r"[A-Za-z]+", text) and "None" not in text


def test_a_run_without_evaluation_names_the_command(tmp_path):
    with pytest.raises(UserError, match="jras evaluate --workdir="):
        write_report(tmp_path)
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "nowhere")


def test_structures_and_colours_come_from_the_data_sets_description(tmp_path):
    run = write_fake_run(tmp_path / "run", patients=2)
    described = DatasetDescription(
        "Own",
        ("background", "zebra", "lesion", "cyst"),
        values=(0, 1, 2, 3),
        colours=("#112233", "#445566", "#778899"),
        dimensions=2,
    )
    (run / "dataset.json").write_text(json.dumps(described.to_json()))
    for table in (run / "evaluation" / "validation").glob("*.csv"):
        text = table.read_text()
        for old, new in zip(("RV", "MYO", "LV"), described.structures, strict=True):
            text = text.replace(f",{old},", f",{new},")
        table.write_text(text)
    page = write_report(run).read_text(encoding="utf-8")
    text = Outline(page).text
    assert ".s1 { --c: #112233; }" in page and ".s3 { --c: #778899; }" in page
    assert "zebra, lesion, cyst of every case) of 2 patients, in two dimensions" in text
    assert text.index("zebra ED") < text.index("lesion ED") < text.index("cyst ED")  # its order, not the alphabet's
    assert "Clinical indices" not in text and "outer edge" not in text and "MYO ED" not in text


def test_damaged_files_are_named(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders / "run", run)
    file = next((run / "evaluation" / "validation" / "evidence").glob("*.npz"))
    whole = dict(np.load(file))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=file.name):
        write_report(run)
    np.savez(file, **(whole | {"truth": whole["truth"][:-1]}))
    with pytest.raises(UserError, match="truth has shape"):
        write_report(run)
    (run / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        write_report(run)


def test_text_from_files_cannot_become_markup(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders / "run", run)
    facts = json.loads((run / "run.json").read_text())
    facts |= {"device": "<script>alert(1)</script>", "warnings": ["<b>leak</b>"]}
    (run / "run.json").write_text(json.dumps(facts))
    table = run / "evaluation" / "validation" / "cases.csv"
    table.write_text(table.read_text().replace("patient003", "<img src=x onerror=y>"))
    page = write_report(run).read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<img" not in page and "<b>leak" not in page
    assert "&lt;b&gt;leak" in page


def test_voxels_are_never_called_millimetres(tmp_path):
    page = write_report(write_fake_run(tmp_path / "run", unit="voxel", patients=2)).read_text(encoding="utf-8")
    text = Outline(page).text
    assert "distances are in voxels" in text and "Myocardial mass" not in text
    assert not re.search(r"\b(mm|ml)\b", text)


def test_one_patient_gets_no_test_and_no_crash(tmp_path):
    write_fake_run(tmp_path / "run", patients=1, shown=1)
    write_fake_run(tmp_path / "run" / "baseline", patients=1, shown=0, guides=0)
    text = Outline(write_report(tmp_path / "run").read_text(encoding="utf-8")).text
    assert "not given for fewer than 6 patients" in text


def test_command_writes_and_explains_itself(folders, tmp_path, capsys):
    assert cli.main(["report", str(folders / "run"), f"--output={tmp_path / 'r.html'}"]) == 0
    assert (tmp_path / "r.html").is_file() and str(tmp_path / "r.html") in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "jras evaluate --workdir=" in capsys.readouterr().err


def contrast(a: str, b: str) -> float:
    """WCAG 2 contrast ratio of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_text_and_lines_stand_out_in_both_schemes(page):
    style = page[page.index("<style>") : page.index("</style>")]
    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", part)) for part in style.split("@media", 2)[:2])
    for colours in (light, light | dark):
        for ground in ("ground", "raised"):
            for text in ("ink", "quiet", "accent", "second"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
            for line in ("third", "fourth", "fifth"):
                assert contrast(colours[line], colours[ground]) >= 3.0, (line, ground)
        assert contrast(colours["ink"], colours["warn-ground"]) >= 4.5


def test_run_folder_reads_what_is_there(folders):
    run = files.read(folders / "run")
    assert run.name == "phantom_unet" and run.unit == "mm" and len(run.evidence) == 4
    assert [step for step, _ in run.metrics["val/dice"]] == [100, 200, 300, 400]
    assert set(run.evidence) <= {files.case_name(r) for r in run.cases}


def test_mixed_units_are_not_averaged(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders / "run", run, ignore=shutil.ignore_patterns("baseline"))
    rows = metrics.read_cases_csv(run / "evaluation" / "validation" / "cases.csv")
    rows = [r | {"unit": "voxel"} if r["patient"] == "patient000" else r for r in rows]
    metrics.write_cases_csv(run / "evaluation" / "validation" / "cases.csv", rows)
    summary = json.loads((run / "evaluation" / "validation" / "summary.json").read_text()) | {"unit": "mixed"}
    (run / "evaluation" / "validation" / "summary.json").write_text(json.dumps(summary))
    assert all(math.isnan(r["hd95"]) for r in files.read(run).cases)
    assert "mixed, not averaged" in Outline(write_report(run).read_text(encoding="utf-8")).text
