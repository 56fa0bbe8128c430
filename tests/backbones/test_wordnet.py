"""The hierarchy above the 1000 classes: the table is WordNet's, and sums go up along it."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from finetune import models as prediction
from finetune.backbones import registry as catalog, wordnet
from finetune.cli import main as cli
from finetune.utils import UsageError

NOUNS = Path("/usr/share/wordnet/data.noun")  # Debian: apt-get install wordnet-base
CLASSES = catalog.imagenet_classes()
IDS = [entry.id for entry in CLASSES]
NAMES = [entry.name for entry in CLASSES]


def probabilities(**shares):
    row = np.zeros(1000)
    for name, share in shares.items():
        row[NAMES.index(name.replace("_", " "))] = share
    row[NAMES.index("volcano")] = 1 - row.sum()
    return row


def rows_of_wordnet():
    """What the table must be: the classes and all that is above them, from the file of WordNet 3.0 itself."""
    nouns = {}
    for line in NOUNS.read_text().splitlines():
        if not line.startswith("  "):
            fields = line.partition(" | ")[0].split()
            words = int(fields[3], 16)
            pointers = fields[5 + 2 * words :]
            above = ["n" + pointers[at + 1] for at in range(0, len(pointers) - 3, 4) if pointers[at] == "@"]
            nouns["n" + fields[0]] = (fields[4].replace("_", " "), above)
    waiting, found = list(IDS), {}
    while waiting:
        synset = waiting.pop()
        if synset not in found:
            name, above = nouns[synset]
            found[synset] = [synset, name, " ".join(above)]
            waiting += above
    return [found[synset] for synset in sorted(found)]


@pytest.mark.skipif(not NOUNS.exists(), reason="needs WordNet 3.0: apt-get install wordnet-base")
def test_the_table_is_that_of_wordnet():
    with (Path(wordnet.__file__).parent / "wordnet.csv").open() as file:
        assert list(csv.reader(file))[1:] == rows_of_wordnet()


def test_every_class_leads_up_to_one_root():
    for synset in IDS:
        assert "n00001740" in wordnet.ancestors(synset)
    assert [one.name for one in wordnet.lineage("n02113799")][:4] == ["standard poodle", "poodle", "dog", "canine"]
    assert wordnet.lineage("n02113799")[-1].name == "animal"


def test_every_lineage_ends_with_a_word_that_says_something():
    tops = {wordnet.lineage(synset)[-1].name for synset in IDS}
    assert tops == {
        "animal", "artifact", "food", "geological formation", "fungus", "plant", "plant part", "person", "part",
        "sign", "signal", "material", "geographic point", "round shape",
    }  # fmt: skip


def test_words_that_say_nothing_are_what_they_are_called():
    assert {synset: wordnet.load_synsets()[synset].name for synset in wordnet.EMPTY} == wordnet.EMPTY


def test_sums_count_every_class_once_whatever_the_number_of_ways_up():
    found = wordnet.roll_up(probabilities(standard_poodle=0.4, toy_poodle=0.2, Egyptian_cat=0.1), IDS)
    assert found["n02084071"] == pytest.approx(0.6)  # dog
    assert found["n01317541"] == pytest.approx(0.7)  # domestic animal, where dog and cat have a second parent
    assert found["n00015388"] == pytest.approx(0.7)  # animal
    assert found["n00001740"] == pytest.approx(1.0)  # entity


def test_levels_name_each_step_at_which_something_is_gained():
    row = probabilities(standard_poodle=0.61, toy_poodle=0.26, golden_retriever=0.12)
    found = wordnet.wordnet_levels(row, IDS, NAMES)
    assert wordnet.levels_sentence(found) == "standard poodle 0.61 < poodle 0.87 < dog 0.99 < animal 0.99"
    assert [one.probability for one in found] == sorted(one.probability for one in found)


def test_a_sure_answer_is_followed_by_its_kind_alone():
    found = wordnet.wordnet_levels(probabilities(goldfish=0.999), IDS, NAMES)
    assert [one.name for one in found] == ["goldfish", "animal"]


def test_classes_of_ones_own_have_no_level():
    with pytest.raises(UsageError, match="only ImageNet classes"):
        wordnet.wordnet_levels(np.array([0.5, 0.5]), ["", ""], ["rose", "daisy"])


@pytest.mark.slow
def test_predict_shows_levels(shared, capsys):
    path = str(shared / "data/demo_images/mobilenet_caffe_cat.jpg")
    assert cli.main(["predict", path, "--level"]) == 0
    out = capsys.readouterr().out
    assert "< domestic cat 0." in out
    assert "< animal 0." in out


def test_json_has_levels_where_they_were_asked_for():
    answer = prediction.Prediction("cat.jpg", (prediction.ClassScore("tabby", "n02123045", 0.5),))
    assert "levels" not in answer.to_json()
    level = wordnet.Level("cat", "n02121620", 0.75)
    assert dataclasses.replace(answer, levels=(level,)).to_json()["levels"] == [
        {"name": "cat", "id": "n02121620", "probability": 0.75}
    ]
