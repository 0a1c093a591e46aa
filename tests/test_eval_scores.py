"""Each score does what its definition says, on answers as models write them."""

import re
import string

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from halfbyte.errors import InputError
from halfbyte.evaluate.quantities import quantities
from halfbyte.evaluate.records import Answer, Row
from halfbyte.evaluate.scores import (
    REGISTRY,
    closed_labels,
    confusion,
    load_own,
    macro_f1_column,
    pooled,
    score_answers,
)
from halfbyte.evaluate.scores.facts import facts_of
from halfbyte.evaluate.scores.follow import constraints_of
from halfbyte.evaluate.scores.grounding import unsupported_spans
from halfbyte.evaluate.scores.labels import predicted_label, prompt_choices
from halfbyte.evaluate.scores.mixing import mixing_index
from halfbyte.evaluate.scores.teaching import flesch
from halfbyte.evaluate.text import sentences, squad_normal, words


def row(reference, prompt="Why?", **more):
    return Row(0, prompt, (reference,) if isinstance(reference, str) else reference, **more)


def value(name, answer, target):
    given = answer if isinstance(answer, Answer) else Answer(answer)
    assert REGISTRY[name].applies(target), f"{name} does not apply"
    return REGISTRY[name].measure(given, target)


def published_squad_normal(text):
    """The steps of SQuAD's evaluation script, in its order."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("  an  apple,\n a day", "apple day"),
        ("U.S.A.", "usa"),
        ("theatre", "theatre"),
        ("The", ""),
        ("10,000", "10000"),
        ("“quotes” stay", "“quotes” stay"),
    ],
)
def test_squad_normal_form(text, normal):
    """SQuAD's normalization on its known cases: case, punctuation, articles, white space."""
    assert squad_normal(text) == normal


@settings(max_examples=60)
@given(st.text(string.printable + "Äé“”the", max_size=60))
def test_squad_normal_form_is_the_published_one(text):
    """For any text the normal form is the published script's."""
    assert squad_normal(text) == published_squad_normal(text)


def test_exact_match_raw_and_normalized():
    """Raw match sees case and points, the normalized one does not; any reference counts."""
    target = row(("The Nile", "Nile river"))
    assert value("exact_match_raw", " The Nile\n", target) == 1
    assert value("exact_match_raw", "the nile.", target) == 0
    assert value("exact_match", "the nile.", target) == 1
    assert value("exact_match", "A Nile River", target) == 1
    assert value("exact_match", "It is the Nile", target) == 0
    assert value("contains", "It is the Nile, I think", target) == 1
    assert value("contains", "Denile", target) == 0


def test_f1_is_squads():
    """Token F1 on hand-computed cases; two empty texts agree, one does not."""
    assert value("f1", "the cat sat", row("cat sat down")) == pytest.approx(0.8)
    assert value("f1", "dog", row("cat")) == 0
    assert value("f1", "the", row("cat")) == 0
    assert value("f1", "", row("a")) == 1  # articles alone leave nothing


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("1. 6 * 3 = 18\nAnswer: 18", 1),
        ("So it is\n#### 18", 1),
        ("**Answer:** 18.00", 1),
        ("Final answer: $18.", 1),
        ("Answer: 7\nNo, wait.\nAnswer: 18", 1),
        ("Answer: 18 apples", 0),
        ("Answer: 18 km", 0),
        ("18", 0),
        ("The answer is 18", 0),
        ("Answer: 180", 0),
        ("Answer: 1.8", 0),
        ("Answer: -18", 0),
        ("Answer: 18\nAnswer: 19", 0),
        ("Answer:", 0),
        ("", 0),
    ],
)
def test_final_answer_match(answer, right):
    """Only the last final answer line counts, by value; without one there is no credit."""
    assert value("final_answer_match", answer, row("6 * 3 = 18\nAnswer: 18")) == right


def test_final_answer_of_words_and_units():
    """Units are compared by name, texts in normal form; rows without a final line have no score."""
    assert value("final_answer_match", "Answer: 12 kilometres", row("x\nAnswer: 12 km")) == 1
    assert value("final_answer_match", "Answer: 12 m", row("x\nAnswer: 12 km")) == 0
    assert value("final_answer_match", "Answer: The Science", row("x\nAnswer: science")) == 1
    assert value("final_answer_match", "#### 70,000", row("x\n#### 70000")) == 1
    assert not REGISTRY["final_answer_match"].applies(row("18"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$1,234.50", [(1234.5, "dollar")]),
        ("1,00,000 rupees", [(100000, "rupee")]),
        ("70 thousand and 10k", [(70000, ""), (10000, "")]),
        ("12 kilometres in 5 h", [(12, "km"), (5, "h")]),
        ("-3.5% then 16 - 3", [(-3.5, "%"), (16, ""), (3, "")]),
        ("5 a day in the 80s, 5 A", [(5, ""), (80, ""), (5, "a")]),
        ("2½ cups, 1.5e3 m/s", [(2.5, ""), (1500, "m/s")]),
        ("the 21st", [(21, "")]),
        ("no number", []),
    ],
)
def test_quantities(text, expected):
    """Numbers are read by value with their unit, however they are written."""
    assert [(q.value, q.unit) for q in quantities(text)] == expected


@settings(max_examples=30)
@given(st.integers(0, 10**9))
def test_number_formats_agree(number):
    """A number with thousands separators or a zero fraction is the same fact."""
    target = row("x", facts=(str(number),))
    assert value("key_facts", f"It is {number:,} in all.", target) == 1
    assert value("key_facts", f"It is {number}.0 in all.", target) == 1
    assert value("key_facts", f"It is {number + 1} in all.", target) == 0


def test_key_facts_of_the_row():
    """Listed facts are found as numbers, dates or words; the score is their share."""
    target = row("x", facts=("12 km", "5 March 2020", "Marie Curie"))
    assert value("key_facts", "On 2020-03-05 Marie Curie walked twelve km", target) == 1
    assert value("key_facts", "marie curie, March 5, 2020, 12 miles", target) == pytest.approx(
        2 / 3
    )
    assert value("key_facts", "", target) == 0


def test_key_facts_from_the_reference():
    """Without a list, numbers with units, dates and names of the reference are the facts; list
    numbers and words that merely begin a sentence are not."""
    target = row("1. Janet has 16 eggs.\n2. On 4 July 1999 she met Bob in Rome.\nWater boils.")
    assert [span.text for span in facts_of(target)] == ["4 July 1999", "16", "Bob", "Rome"]
    assert facts_of(row("good", labels=("good", "bad"))) == ()


TEXTS = [
    ("the cat sat on the mat today", "the cat is on the mat now"),
    ("a quick brown fox jumps", "the quick brown dog jumps on the log"),
    ("hello there my friend", "hello there my friend"),
    ("nothing in common here", "completely different words instead"),
    ("", "some reference text here"),
]


def test_chrf_and_bleu_are_sacrebleus():
    """Over all rows chrF and BLEU are sacrebleu's corpus scores, per row its sentence scores."""
    rows = [row(reference) for _, reference in TEXTS]
    answers = [Answer(answer) for answer, _ in TEXTS]
    columns = score_answers(rows, answers, REGISTRY)
    given, wanted = [a for a, _ in TEXTS], [[r for _, r in TEXTS]]
    assert pooled(columns["chrf"]) == pytest.approx(sacrebleu.corpus_chrf(given, wanted).score)
    assert pooled(columns["bleu"]) == pytest.approx(sacrebleu.corpus_bleu(given, wanted).score)
    for place, (answer, reference) in enumerate(TEXTS):
        chrf = sacrebleu.sentence_chrf(answer, [reference]).score
        assert columns["chrf"].values[place] == pytest.approx(chrf)
        bleu = sacrebleu.sentence_bleu(answer, [reference]).score
        assert columns["bleu"].values[place] == pytest.approx(bleu)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "c", "ab"]), max_size=9), min_size=1, max_size=4)
)
def test_pooled_bleu_and_chrf_for_any_answers(tokens):
    """The vectorized pools equal sacrebleu's corpus scores whatever matches or does not."""
    rows = [row("a b c d e a b") for _ in tokens]
    given = [" ".join(one) for one in tokens]
    columns = score_answers(rows, [Answer(text) for text in given], REGISTRY)
    wanted = [["a b c d e a b"] * len(given)]
    assert pooled(columns["bleu"]) == pytest.approx(sacrebleu.corpus_bleu(given, wanted).score)
    assert pooled(columns["chrf"]) == pytest.approx(sacrebleu.corpus_chrf(given, wanted).score)


def test_rouge_l_is_rouge_scores_and_knows_other_scripts():
    """On English text ROUGE-L is rouge-score's; on Hindi, where that gives 0, it still counts."""
    reference = RougeScorer(["rougeL"])
    for answer, wanted in TEXTS:
        expected = reference.score(wanted, answer)["rougeL"].fmeasure
        assert value("rouge_l", answer, row(wanted)) == pytest.approx(expected)
    hindi = "यह एक अच्छा दिन है"
    assert reference.score(hindi, hindi)["rougeL"].fmeasure == 0
    assert value("rouge_l", hindi, row(hindi)) == 1


def test_code_mixing_index():
    """One language has index 0; half and half has 50; ambiguous words follow their neighbours."""
    assert mixing_index("Set an alarm for me to wake up") == 0
    assert mixing_index("kya aap mujhe batayen") == 0
    assert mixing_index("mere liye reminder set") == 50
    assert mixing_index("मेरा phone") == 50
    assert mixing_index("123 456") == 0
    mixed = row("mere timer ko roko")
    assert value("code_mixing_gap", "stop my timer", mixed) == pytest.approx(25)
    assert not REGISTRY["code_mixing"].applies(row("stop my timer"))


@pytest.mark.parametrize(
    ("prompt", "good", "bad", "name"),
    [
        (
            "Answer in at most 5 words.",
            "Five words are enough here",
            "One two three four five six",
            "words",
        ),
        ("In fewer than three sentences, why?", "One. Two.", "One. Two. Three.", "sentences"),
        ("Explain in two sentences.", "One. Two.", "One.", "sentences"),
        ("Answer with a single word.", "Paris", "It is Paris", "words"),
        ("Write at least 4 words.", "one two three four", "one two", "words"),
        ("Explain in three numbered steps.", "1. a\n2. b\n3. c", "1. a\n2. b", "steps"),
        ("Give exactly 2 bullet points.", "- a\n- b", "- a\n- b\n- c", "bullets"),
        ("Reply as JSON.", '{"a": 1}', "a: 1", "json"),
        ("Say this in Hinglish.", "mera phone kahan hai", "where is my phone", "language"),
        ("Answer in German.", "Das ist nicht so gut", "This is not so good", "language"),
        ("Write it in Devanagari script.", "नमस्ते", "namaste", "script"),
        ("Write in capital letters.", "LOUD", "quiet", "case"),
        ("Begin your answer with 'Sure'.", "Sure, why not", "Well, sure", "starts_with"),
        ('End with "Answer: yes".', "So it is.\nAnswer: yes", "Answer: yes\nBye", "ends_with"),
    ],
)
def test_constraints_in_the_prompt(prompt, good, bad, name):
    """A constraint named in the prompt is found and told apart by rule."""
    target = row(good, prompt=prompt)
    assert name in {one.name for one in constraints_of(target)}
    assert value(f"follows_{name}", good, target) == 1
    assert value(f"follows_{name}", bad, target) == 0
    assert value("instructions", good, target) == 1


def test_what_the_reference_breaks_is_no_constraint():
    """A reading of the prompt that the reference does not keep is dropped."""
    target = row("A long answer of more than five words", prompt="He said: answer in five words.")
    assert constraints_of(target) == ()
    assert not REGISTRY["instructions"].applies(target)


def test_constraints_column():
    """The `constraints` column says it outright, a JSON schema too; unknown names are errors."""
    asked = {"words": "at most 3", "json": {"type": "object", "required": ["a"]}}
    target = row("anything", extra={"constraints": asked})
    assert value("follows_words", "one two", target) == 1
    assert value("follows_json", '```json\n{"a": 1}\n```', target) == 1
    assert value("follows_json", '{"b": 1}', target) == 0
    with pytest.raises(InputError, match="rhyme"):
        constraints_of(row("x", extra={"constraints": {"rhyme": "aabb"}}))


def test_verbosity():
    """Length, stopping, text after the answer and repetition are seen."""
    target = row("1. Add.\nAnswer: 4")
    assert value("length_ratio", "1. Add.\nAnswer: 4", target) == 1
    assert value("stopped", Answer("x", stopped=False), target) == 0
    assert value("overrun", "Add\nAnswer: 4\nand now more", target) == pytest.approx(0.5)
    assert value("overrun", "Add\nAnswer: 4", target) == 0
    assert value("overrun", "good\nQuestion: next one", row("good")) == pytest.approx(0.75)
    assert value("overrun", "", target) == 0
    assert value("repetition", "a b c d " * 5, target) == pytest.approx(1 - 4 / 17)
    assert value("repetition", "a b c", target) == 0
    assert value("length_error", "", row("one")) == pytest.approx(
        value("length_error", "1 2 3", row("one"))
    )


def test_unsupported_statements_are_named():
    """Numbers, names and quotes nobody gave are found; what prompt, context or reference gave, in
    any format, is not; list numbers are no statements."""
    target = row(
        "Anna paid 12 dollars.", prompt="Anna buys 3 pens.", context="Twenty pens are in stock."
    )
    answer = Answer(
        '1. Anna takes 3 of 20 pens.\n2. She pays $12.00.\n3. So Carl saw "a red pen" at 5 km.'
    )
    assert [span.text for span in unsupported_spans(answer, target)] == [
        "5 km",
        "Carl",
        "a red pen",
    ]
    assert REGISTRY["unsupported"].measure(answer, target) == pytest.approx(3 / 6)
    assert REGISTRY["unsupported"].measure(Answer("No idea."), target) == 0


def test_context_support():
    """Content words of the answer are looked up in the context; function words do not count."""
    target = row("Rome", context="The capital is Rome, on the Tiber.")
    assert value("context_support", "It is Rome on the Tiber", target) == 1
    assert value("context_support", "Rome, Paris", target) == pytest.approx(0.5)
    assert value("context_support", "", target) == 0
    assert not REGISTRY["context_support"].applies(row("Rome"))


def test_teaching_structure():
    """Steps, definitions, examples and the last line are seen where the reference has them."""
    reference = "1. A verb is a kind of word.\n2. For example, run.\nAnswer: verb"
    assert value("numbered_steps", "Step 1: a\nStep 2: b", row(reference)) == 1
    assert value("numbered_steps", "1. a\n3. b", row(reference)) == 0
    assert value("definition", "It means to move.", row(reference)) == 1
    assert value("example", "e.g. run", row(reference)) == 1
    assert value("final_line", "x\nAnswer: y\n", row(reference)) == 1
    assert value("final_line", "Answer: y\nmore", row(reference)) == 0
    assert not REGISTRY["numbered_steps"].applies(row("Just text."))


def test_reading_ease():
    """Flesch's formula on a sentence with known counts; easy text is above hard text."""
    assert flesch("The cat sat on the mat.") == pytest.approx(206.835 - 1.015 * 6 - 84.6)
    hard = "Institutional heterogeneity necessitates comprehensive organizational evaluation."
    assert flesch(hard) < 0 < flesch("We go home. It is late.")
    assert flesch("") == 0


def test_labels_are_read_from_answers():
    """A label is the answer, its beginning, or the only one named; else there is none."""
    target = row("good", labels=("good", "bad", "not good"))
    assert predicted_label(Answer("Good."), target) == "good"
    assert predicted_label(Answer("bad because it is not good"), target) == "bad"
    assert predicted_label(Answer("It was not good"), target) == "not good"
    assert predicted_label(Answer("good and bad? both bad, good"), target) == "good"
    assert predicted_label(Answer("either bad or good"), target) == "(none)"
    assert predicted_label(Answer(""), target) == "(none)"
    final = row("1. Clue.\nAnswer: good", labels=("good", "bad"))
    assert predicted_label(Answer("good"), final) == "(none)"
    assert predicted_label(Answer("bad\nAnswer: good"), final) == "good"


def test_closed_sets():
    """A closed set is found in few short references, widened by the choices that prompts offer."""
    assert closed_labels(["good", "bad"] * 10) == ("good", "bad")
    assert closed_labels(["good", "bad"] * 4) == ()
    assert closed_labels([f"answer {i}" for i in range(40)]) == ()
    prompts = ["Text. Is this about sports, business, or world politics?"] * 20
    assert prompt_choices(prompts[0]) == ["sports", "business", "world politics"]
    found = closed_labels(["Business", "sports"] * 10, prompts)
    assert found == ("Business", "sports", "world politics")
    only = closed_labels(
        ["good"] * 20, ["Was it good or bad?"] * 19 + ["This or that, good or bad?"]
    )
    assert only == ("good", "bad")


def test_macro_f1_and_confusion():
    """Macro-F1 is the mean of the labels' F1; the confusion matrix counts every answered row."""
    labels = ("a", "b")
    rows = [row(gold, labels=labels) for gold in "aaab"]
    answers = [Answer("a"), Answer("a"), Answer("b"), Answer("b")]
    column = macro_f1_column(rows, answers)["macro_f1"]
    assert pooled(column) == pytest.approx((0.8 + 2 / 3) / 2)
    table = confusion(rows, [*answers[:3], Answer("dunno")])
    assert table.given == ("a", "b", "(none)")
    assert table.counts == ((2, 1, 0), (0, 0, 1))
    assert confusion([row("free text")], [Answer("x")]) is None
    assert macro_f1_column([row("x")], [Answer("x")]) == {}


def test_every_score_is_documented_and_within_its_range():
    """Every score has a definition with its range, and gives a finite number for odd answers."""
    odd = [
        "",
        " \n",
        "0",
        "¿?",
        "नमस्ते दुनिया",
        "字" * 50,
        "a" * 3000,
        "1. " * 200,
        "Answer:",
        '"' * 99,
    ]
    rows = [
        row(
            "1. A verb is a kind of word, for example run.\n2. It has 4 letters.\nAnswer: 4 letters"
        ),
        row("mere timer ko roko, please do it now", context="Stop my timer"),
        row("good", labels=("good", "bad")),
        row(
            "The quick brown fox jumps over the lazy dog and runs far away into the deep woods "
            "because it can do so."
        ),
    ]
    for name, entry in REGISTRY.items():
        assert len(entry.info.definition) > 40, name
        for target in (one for one in rows if entry.applies(one)):
            for text in odd:
                found = entry.measure(Answer(text), target)
                if entry.info.unit == "share":
                    assert 0 <= found <= 1, (name, text)
                assert abs(found) < 1e6, (name, text)


def test_perfect_answers_are_perfect():
    """The reference itself gets the best value of every judged score."""
    target = row("1. A verb is a kind of word.\n2. For example, run.\nAnswer: verb")
    for name, entry in REGISTRY.items():
        if entry.applies(target) and entry.info.better != "neither":
            best = {"share": 1.0, "points": 100.0, "plain": 0.0}[entry.info.unit]
            expected = best if entry.info.better == "higher" else 0.0
            assert entry.measure(Answer(target.reference), target) == pytest.approx(expected), name


def test_own_score(tmp_path):
    """A user's function is a score: named, described and called as promised."""
    (tmp_path / "mine.py").write_text(
        'def shouts(answer, reference, row) -> bool:\n    """Loud?"""\n'
        "    return answer.isupper() and row['kind'] == 'x' and reference == 'A'\n"
    )
    mine = load_own("mine.py:shouts", tmp_path)
    assert (mine.info.name, mine.info.binary, mine.info.definition) == ("shouts", True, "Loud?")
    assert mine.measure(Answer("HEY"), row("A", extra={"kind": "x"})) == 1
    with pytest.raises(InputError, match=r"row 0: KeyError"):
        mine.measure(Answer("HEY"), row("A"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine.py", "", "names no function"),
        ("none.py:f", None, "no such file"),
        ("mine.py:g", "def f(): pass", "has no function g"),
        ("mine.py:f", "1 / 0", "ZeroDivisionError"),
        ("mine.py:f1", "def f1(a, r, row): return 1", "built-in"),
    ],
)
def test_own_score_errors(tmp_path, name, text, message):
    """What cannot be a score is refused with its cause."""
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=message):
        load_own(name, tmp_path)


def test_sentences_and_words():
    """Lists, line ends and the danda split sentences; words keep their marks in any script."""
    assert sentences("1. One.\n2. Two! Three? ") == ["1. One.", "2. Two!", "Three?"]
    assert sentences("यह है। वह भी।") == ["यह है।", "वह भी।"]
    assert words("Don't stop, हिन्दी 3.5!") == ["don't", "stop", "हिन्दी", "3.5"]
