"""Comparisons: verdicts that follow from the numbers, and gates that insist on evidence."""

import json

import numpy as np
import pytest

from halfbyte.data.records import Example, Message
from halfbyte.errors import GateError, InputError
from halfbyte.evaluate import gate
from halfbyte.evaluate.compare import Comparison, compare, headline_score
from halfbyte.evaluate.records import Answer, Column, Evaluation, Likelihood, Row, mean_stats
from halfbyte.evaluate.rows import rows_from
from halfbyte.evaluate.scores import REGISTRY, likelihood_columns, score_answers
from halfbyte.evaluate.statistics import Resampling
from halfbyte.evaluate.table import table_rows
from halfbyte.evaluate.verdict import show_number

FAST = Resampling(500, 1)
SCORES = {
    name: REGISTRY[name] for name in ("final_answer_match", "exact_match", "f1", "length_ratio")
}


def evaluation(name, right, nll=None, scores=SCORES):
    """A model that gives the final answer where `right` says so."""
    rows = tuple(Row(i, f"question {i}", (f"1. Think.\nAnswer: {i}",)) for i in range(len(right)))
    answers = tuple(
        Answer(f"1. Think.\nAnswer: {i if hit else 'no'}") for i, hit in enumerate(right)
    )
    items = tuple(Likelihood(float(x), 10, 5) for x in nll) if nll is not None else ()
    columns = {**likelihood_columns(items), **score_answers(rows, answers, scores)}
    return Evaluation(name, rows, answers, columns, items)


def coin(rows, p, seed):
    return np.random.default_rng(seed).random(rows) < p


def test_identical_models_show_no_difference():
    """A model compared with itself is "no difference", on every score, with p = 1."""
    same = evaluation("m", coin(40, 0.5, 0), np.full(40, 20.0))
    found = compare(same, same, resampling=FAST)
    assert found.verdict.outcome == "no difference"
    assert found.verdict.sentence.startswith("No difference: ")
    assert all(metric.difference == 0 and metric.p == 1 for metric in found.metrics)


def test_a_clear_gain_is_better():
    """A large gain is called better, with wins, losses, flips and the direction of perplexity."""
    base = evaluation("base", [False] * 30 + [True] * 10, np.full(40, 30.0))
    tuned = evaluation("tuned", [True] * 35 + [False] * 5, np.full(40, 20.0))
    found = compare(base, tuned, resampling=FAST)
    assert found.headline == "final_answer_match"
    assert found.verdict.outcome == "better"
    main = found.metric("final_answer_match")
    assert (main.wins, main.losses, main.ties) == (30, 5, 5)
    assert main.gained == tuple(range(30))
    assert main.lost == (35, 36, 37, 38, 39)
    assert main.difference == pytest.approx(0.625)
    assert 0 < main.low < 0.625 < main.high
    perplexity = found.metric("perplexity")
    assert perplexity.improved
    assert perplexity.ratio == pytest.approx(np.exp(-1))
    assert "perplexity" in found.verdict.gains
    assert "Better: final_answer_match 25.0 % → 87.5 % on 40 rows" in found.verdict.sentence


def test_a_label_score_is_held_against_the_most_frequent_label():
    """The verdict on labels says what always giving the commonest one would score."""
    rows = tuple(Row(i, "Good or bad?", ("good",), labels=("good", "bad")) for i in range(20))
    base, tuned = (
        Evaluation(name, rows, answers, score_answers(rows, answers, REGISTRY))
        for name in ("bad", "good")
        for answers in [tuple(Answer(name) for _ in rows)]
    )
    sentence = compare(base, tuned, resampling=FAST).verdict.sentence
    assert sentence.startswith("Better: label_accuracy 0.0 % → 100.0 %")
    assert "Always answering “good” would give 100.0 %." in sentence


def test_large_numbers_are_written_out():
    """A perplexity gone wrong is 119,000, not 1.2e+05."""
    assert show_number(119_234.0) == "119,000"
    assert show_number(3.6789) == "3.68"


def test_a_loss_is_worse():
    """The same the other way round is worse."""
    good, bad = evaluation("g", [True] * 40), evaluation("b", [False] * 20 + [True] * 20)
    assert compare(good, bad, resampling=FAST).verdict.outcome == "worse"


def test_small_differences_say_how_many_rows_are_needed():
    """Without evidence the verdict names the rows it had and the rows it would need."""
    base = evaluation("base", [True] * 40 + [False] * 40)
    tuned = evaluation("tuned", [False] * 4 + [True] * 42 + [False] * 34)
    sentence = compare(base, tuned, resampling=FAST).verdict.sentence
    assert "No difference shown with 80 rows; about" in sentence
    assert "would be needed to see 5 points" in sentence


def test_false_verdicts_are_one_in_twenty():
    """Two hundred rows answered twice by the same chance: better or worse in at most about 5 % of
    cases (McNemar's exact test is cautious); 27 or more of 300 would have odds under 1:1000."""
    rng = np.random.default_rng(5)
    rows = tuple(Row(i, "q", ("Answer: 1",)) for i in range(200))
    info = REGISTRY["final_answer_match"].info

    def drawn(name):
        values = (rng.random(200) < 0.4).astype(float)
        column = Column(info, values, mean_stats(values))
        return Evaluation(name, rows, (Answer("x"),) * 200, {info.name: column})

    outcomes = [
        compare(drawn("a"), drawn("b"), resampling=Resampling(100, 0)).verdict.outcome
        for _ in range(300)
    ]
    false = sum(outcome in {"better", "worse"} for outcome in outcomes)
    assert 3 <= false <= 26


def test_comparison_survives_json():
    """Evaluations and comparisons written as JSON text are read back equal."""
    base = evaluation("base", coin(30, 0.3, 1), np.linspace(10, 30, 30))
    tuned = evaluation("tuned", coin(30, 0.7, 2), np.linspace(8, 25, 30))
    found = compare(base, tuned, (base, tuned), FAST)
    assert Comparison.from_json(json.loads(json.dumps(found.to_json()))) == found
    again = Evaluation.from_json(json.loads(json.dumps(base.to_json(), allow_nan=False)))
    assert again.to_json() == base.to_json()
    assert compare(again, tuned, (again, tuned), FAST) == found


def test_retention_stands_beside():
    """Scores on general rows are entered under their own names and can be lost."""
    base = evaluation("base", [False] * 40)
    tuned = evaluation("tuned", [True] * 40)
    keeps = evaluation("base", [True] * 30, np.full(30, 20.0))
    forgets = evaluation("tuned", [False] * 30, np.full(30, 40.0))
    found = compare(base, tuned, (keeps, forgets), FAST)
    assert found.verdict.outcome == "better"
    assert "retention_perplexity" in found.verdict.losses
    assert "Worse after correction" in found.verdict.sentence
    assert found.metric("retention_perplexity").info.group == "retention"


def test_other_rows_are_refused():
    """Different rows cannot be compared; the first difference is named."""
    with pytest.raises(InputError, match="40 rows, b 30"):
        compare(evaluation("a", [True] * 40), evaluation("b", [True] * 30))
    other = evaluation("b", [True] * 2)
    changed = Evaluation("b", other.rows[::-1], other.answers, other.columns)
    with pytest.raises(InputError, match="row 0 of a is not row 0 of b"):
        compare(evaluation("a", [True] * 2), changed)


def test_headline_is_chosen_from_the_rows():
    """Final answers, then labels, then short references, then chrF; perplexity without answers."""
    assert headline_score(evaluation("m", [True])) == "final_answer_match"
    names = ["label_accuracy", "exact_match", "chrf"]
    scores = {name: REGISTRY[name] for name in names}

    def headline(*references, labels=()):
        rows = tuple(Row(0, "q", (text,), labels=labels) for text in references)
        columns = score_answers(rows, [Answer("x")] * len(rows), scores)
        return headline_score(Evaluation("m", rows, (Answer("x"),) * len(rows), columns))

    assert headline("good", labels=("good", "bad")) == "label_accuracy"
    assert headline("Paris", "Rome") == "exact_match"
    assert headline("a long text that goes on and on") == "chrf"
    silent = likelihood_columns([Likelihood(1.0, 2, 1)])
    rows = (Row(0, "q", ("a",)),)
    assert headline_score(Evaluation("m", rows, (None,), silent)) == "perplexity"
    with pytest.raises(InputError, match="nothing was scored"):
        headline_score(Evaluation("m", (), (), {}))


def test_table_has_the_headline_first_and_every_metric():
    """The table's rows fit its header; unjudged scores have no p."""
    base, tuned = evaluation("b", coin(40, 0.2, 1)), evaluation("t", coin(40, 0.9, 2))
    rows = table_rows(compare(base, tuned, resampling=FAST))
    assert rows[0].name == "final_answer_match"
    assert rows[0].outcome == "better"
    assert {len(row.cells) for row in rows} == {7}
    assert next(row for row in rows if row.name == "length_ratio").cells[5] == ""


@pytest.mark.parametrize(
    ("text", "factor", "offset"),
    [
        ("exact_match > base", 1, 0),
        ("perplexity<1.05*base", 1.05, 0),
        ("perplexity <= base * 1.05", 1.05, 0),
        ("f1 >= base + 0.1", 1, 0.1),
        ("f1 > base - .02", 1, -0.02),
        ("f1 > 0.5", 0, 0.5),
    ],
)
def test_requirements_are_read(text, factor, offset):
    """Every documented form of a condition is understood."""
    found = gate.parse_requirement(text)
    assert (found.factor, found.offset) == (factor, offset)


@pytest.mark.parametrize(
    "text", ["", "f1", "f1 > ", "f1 == base", "f1 > tuned", "> base", "f1 > 1 base"]
)
def test_what_is_no_requirement_is_refused(text):
    """Anything else is an input error that shows the forms."""
    with pytest.raises(InputError, match="not a condition"):
        gate.parse_requirement(text)


def findings(base, tuned, *texts, retention=None):
    requirements = [gate.parse_requirement(text) for text in texts]
    return gate.check(requirements, base, tuned, retention, FAST)


def test_gate_holds_only_on_evidence():
    """A clear gain passes; a gain the interval does not support fails, with its evidence."""
    base = evaluation("b", [False] * 40 + [True] * 10, np.full(50, 20.0))
    clear = evaluation("t", [True] * 40 + [False] * 10, np.full(50, 20.5))
    faint = evaluation("t", [False] * 38 + [True] * 12, np.full(50, 30.0))
    wanted = ("final_answer_match > base", "perplexity < 1.1 * base", "final_answer_match >= 0.5")
    assert all(one.holds for one in findings(base, clear, *wanted))
    failed = findings(base, faint, *wanted)
    assert not any(one.holds for one in failed)
    with pytest.raises(GateError, match="3 of 3 requirements not met") as caught:
        gate.enforce(failed)
    assert caught.value.exit_code == 6
    assert "95 % interval" in str(caught.value)


def test_gate_asks_for_ten_rows_and_known_scores():
    """Nine rows are no evidence whatever they show; an unknown score is an input error."""
    few = findings(evaluation("b", [False] * 9), evaluation("t", [True] * 9), "f1 > base")
    assert not few[0].holds
    assert few[0].evidence.startswith("only 9 rows; with fewer than 10 no requirement is met")
    with pytest.raises(InputError, match="no score named rhyme"):
        findings(evaluation("b", [True]), evaluation("t", [True]), "rhyme > base")


def test_gate_on_retention():
    """Retention scores can be required too."""
    base = evaluation("b", [True] * 20, np.full(20, 20.0))
    forgot = evaluation("t", [True] * 20, np.full(20, 25.0))
    text = "retention_perplexity < 1.05 * base"
    assert findings(base, base, text, retention=(base, base))[0].holds
    assert not findings(base, base, text, retention=(base, forgot))[0].holds


def test_examples_become_rows():
    """Rows keep prompt, context, facts and columns; labels come from a column or the references;
    plain text has no reference."""

    def example(reference, **more):
        return Example((Message("user", "Good or bad?"), Message("assistant", reference)), **more)

    rows = rows_from([example("good", extra={"kind": "x"}), *[example("bad", context="c")] * 19])
    assert rows[0].labels == ("bad", "good")
    assert (rows[0].prompt, rows[0].extra, rows[1].context) == ("Good or bad?", {"kind": "x"}, "c")
    listed = rows_from(
        [example("good", extra={"labels": ["good", "so-so"], "references": ["fine"]})]
    )
    assert listed[0].labels == ("good", "so-so")
    assert listed[0].references == ("good", "fine")
    assert rows_from([Example(text="plain")])[0].references == ()
