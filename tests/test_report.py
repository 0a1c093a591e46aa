"""Reports: one file that loads nothing, shows hostile text as text, and says what was measured."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from halfbyte.evaluate import gate
from halfbyte.evaluate.compare import Comparison, compare
from halfbyte.evaluate.records import Answer, Evaluation, Likelihood, Row
from halfbyte.evaluate.report import ReportInput, losses, write_report
from halfbyte.evaluate.report.plain import standard_error
from halfbyte.evaluate.report.svg import Axis, confusion_chart, length_chart, loss_chart, tick_text
from halfbyte.evaluate.report.words import word_differences
from halfbyte.evaluate.scores import (
    REGISTRY,
    likelihood_columns,
    macro_f1_column,
    score_answers,
)
from halfbyte.evaluate.statistics import Resampling

HOSTILE = '<script>alert(1)</script> | ](http://x) & "quotes"\n# no heading ${7*7} {{ 7*7 }}'
VOID = {"meta", "link", "br", "img", "input", "hr", "circle", "rect", "line", "polyline"}


def evaluation(name, right, scores=REGISTRY, *, answered=True):
    rng = np.random.default_rng(len(name))
    rows = tuple(
        Row(
            i,
            f"Is it good or bad? {HOSTILE if i == 1 else i}",
            ("1. Look.\nAnswer: good",),
            context="Some context." if i % 2 else None,
            labels=("good", "bad"),
            extra={"kind": "odd" if i % 2 else "even"},
        )
        for i in range(len(right))
    )
    texts = ["1. Look.\nAnswer: good" if hit else f"{HOSTILE}\nAnswer: bad" for hit in right]
    answers = tuple(
        Answer(text, stopped=i % 3 > 0) if answered else None for i, text in enumerate(texts)
    )
    items = tuple(Likelihood(float(x), 10, 5) for x in rng.uniform(5, 30, len(right)))
    columns = {
        **likelihood_columns(items),
        **score_answers(rows, answers, scores),
        **macro_f1_column(rows, answers),
    }
    return Evaluation(name, rows, answers, columns, items)


def report_input(base, tuned, **more):
    draw = Resampling(300, 0)
    retention = more.pop("retention", None)
    return ReportInput(
        name="a <run>",
        comparison=compare(base, tuned, retention, draw),
        base=base,
        tuned=tuned,
        created="2026-11-22T10:00:00+00:00",
        retention=retention,
        **more,
    )


@pytest.fixture(scope="module")
def given():
    base = evaluation("base", [False] * 24 + [True] * 6)
    tuned = evaluation("tuned", [True] * 26 + [False] * 4)
    wanted = [gate.parse_requirement("final_answer_match > base")]
    return report_input(
        base,
        tuned,
        retention=(base, tuned),
        train_loss=[(float(i), 3 / (i + 1)) for i in range(40)],
        held_out_loss=[(10.0, 1.0), (40.0, 0.5)],
        data={"train": {"rows": 100, "source": HOSTILE}},
        settings={"lora": {"rank": 16}},
        receipt={"seed": 42},
        decoding={"temperature": 0},
        findings=gate.check(wanted, base, tuned, resampling=Resampling(300, 0)),
    )


@pytest.fixture(scope="module")
def folder(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, given)
    return folder


class Reader(HTMLParser):
    """Collects the tags, the links, and the text; every tag that opens must close."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.urls, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [value for key, value in attrs if key in {"href", "src", "action", "srcset"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def test_page_is_whole_and_loads_nothing(folder):
    """The page is balanced HTML without scripts; its only links go to its own sections, and its
    policy forbids loading anything."""
    page = read(folder / "report.html")
    assert "script" not in page.tags
    assert all(url.startswith("#") for url in page.urls)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert not re.findall(r"url\(", text)


def test_hostile_text_stays_text(folder, given):
    """Tags, template and table marks in answers, prompts and settings are shown, not obeyed."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "{{ 7*7 }}" in text
    assert "a &lt;run&gt;" in text
    table = [one for one in (folder / "report.md").read_text().splitlines() if one.startswith("|")]
    scores = [one for one in table if one.count("|") > 5]
    assert len({len(re.findall(r"(?<!\\)\|", one)) for one in scores}) == 1


def test_page_shows_everything_asked_for(folder, given):
    """Verdict, every score, plots, groups, flips, rows, data, settings, receipt and definitions."""
    words = " ".join(read(folder / "report.html").text)
    assert given.comparison.verdict.sentence.split(":")[0] in words
    for metric in given.comparison.metrics:
        assert metric.info.name in words
    for part in (
        "Requirements",
        "by kind",
        "Loss in training",
        "Length of answers",
        "Confusion matrices",
        "Turned right",
        "Turned wrong",
        "Largest gains",
        "Random rows",
        "Decoding",
        "Data",
        "Settings",
        "Receipt",
        "Definitions",
        "10,000 resamples".replace("10,000", "300"),
    ):
        assert part in words, part


def test_markdown_has_verdict_table_and_flips(folder, given):
    """The Markdown holds the sentence, one line a score, the requirement and the flips."""
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert given.comparison.verdict.sentence in text
    assert sum(line.startswith("|") for line in text.splitlines()) >= len(given.comparison.metrics)
    assert "## Turned right" in text
    assert "`final_answer_match > base`: met" in text


def test_results_have_lm_evals_shape(folder, given):
    """results.json has lm-eval's keys, finite numbers, standard errors, and the comparison."""
    tree = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for key in (
        "results",
        "configs",
        "versions",
        "n-shot",
        "higher_is_better",
        "n-samples",
        "config",
    ):
        assert key in tree
    held_out = tree["results"]["held_out"]
    assert held_out["final_answer_match,tuned"] == pytest.approx(26 / 30)
    assert held_out["perplexity_stderr,base"] > 0
    assert tree["higher_is_better"]["held_out"]["perplexity"] is False
    assert tree["n-samples"]["retention"] == {"original": 30, "effective": 30}
    assert Comparison.from_json(tree["halfbyte"]["comparison"]) == given.comparison


def test_results_txt_has_every_answer(folder):
    """Every answered row stands there with reference, base and tuned, cut-off ones marked."""
    text = (folder / "results.txt").read_text(encoding="utf-8")
    assert text.count("--- REFERENCE") == 30
    assert text.count("--- BASE (cut off)") == 10
    assert "<script>alert(1)</script>" in text


def test_likelihood_alone_makes_a_report(tmp_path):
    """Without answers there is still a report, with perplexity as its headline."""
    base = evaluation("base", [True] * 12, answered=False)
    tuned = evaluation("tuned", [True] * 12, answered=False)
    write_report(tmp_path, report_input(base, tuned))
    text = " ".join(read(tmp_path / "report.html").text)
    assert "No rows were answered" in text
    assert (
        json.loads((tmp_path / "results.json").read_text())["n-samples"]["held_out"]["effective"]
        == 12
    )


def test_identical_models_make_a_report(tmp_path):
    """A comparison without any difference is reported as such."""
    same = evaluation("same", [True, False] * 6)
    write_report(tmp_path, report_input(same, replace(same, model="other")))
    assert "No difference" in (tmp_path / "report.md").read_text()


def test_report_is_deterministic(given, folder, tmp_path):
    """The same input gives the same bytes."""
    write_report(tmp_path, given)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_word_differences():
    """Words in the reference's order are the same, others are off; the pieces make the answer."""
    pieces = word_differences("The big cat sat.", "the cat sat down")
    assert pieces == [
        ("same", "The"),
        ("gap", " "),
        ("off", "big"),
        ("gap", " "),
        ("same", "cat sat"),
        ("gap", "."),
    ]
    for text in ("", "a\nb", "  x ", "नमस्ते दुनिया!", "word " * 2000):
        assert "".join(piece for _, piece in word_differences(text, "a b नमस्ते")) == text


def test_standard_error_of_a_mean_is_its_own():
    """The jackknife error of a plain score is s / sqrt(n); of perplexity it is positive."""
    column = evaluation("m", [True] * 6 + [False] * 14).columns["final_answer_match"]
    expected = np.std(column.values, ddof=1) / np.sqrt(20)
    assert standard_error(column) == pytest.approx(expected)


def test_losses_are_read_from_events():
    """Steps and evaluations give their points; skipped steps and other events none."""
    events = [
        {"event": "started", "step": 0},
        {"event": "stepped", "step": 1, "loss": 2.0},
        {"event": "skipped", "step": 2, "reason": "nan"},
        {"event": "stepped", "step": 3, "loss": None},
        {"event": "evaluated", "step": 3, "loss": 1.5},
    ]
    assert losses(events) == ([(1.0, 2.0)], [(3.0, 1.5)])


@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0], [-3.0, 7.5], [1e-6, 2e-6], [0, 123456.0]])
def test_axes_hold_their_values(values):
    """Every value lies on its axis, between round ticks."""
    axis = Axis.of(values, 0, 100)
    assert axis.ticks[0] <= min(values)
    assert axis.ticks[-1] >= max(values) - 1e-12
    assert all(-1e-6 <= axis.at(value) <= 100 + 1e-6 for value in values)
    assert all(len(tick_text(tick)) < 9 for tick in axis.ticks)


def test_plots_of_nothing_and_of_little():
    """No points, no plot; one point, one row and one label still draw."""
    assert loss_chart([], []) is None
    assert length_chart([("base", "base", [])]) is None
    assert "polyline" in loss_chart([(1.0, 2.0)], [])
    assert "<rect" in length_chart([("base", "base", [0])])
    assert "&lt;b&gt;" in confusion_chart(["<b>"], ["<b>"], [[3]], "base")


@pytest.mark.browser
def test_page_opens_in_a_browser(folder, tmp_path):
    """Headless Chromium renders the page, wide and narrow, without going to the network."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium here")
    for width in (1200, 500):
        picture = tmp_path / f"{width}.png"
        subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--hide-scrollbars",
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--window-size={width},2000",
                f"--screenshot={picture}",
                Path(folder / "report.html").as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
        assert picture.stat().st_size > 50_000  # a blank page of this size is under 15 kB
