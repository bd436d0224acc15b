"""Classifiers: what a text is, read off a model's numbers for it.

    heads.py       linear, MLP and nearest-neighbour heads on frozen features, trained in seconds
    features.py    a text's features, computed once and kept on disk
    scores.py      the scores of a fine-tuned model, whose head is part of it
    classifier.py  a folder with either, and what it says of texts

    from minift.classify import load
    load("run").predict(["Where is my card?"])              # [{"label": "card_arrival", "probability": 0.97, ...}]"""

from minift.classify.classifier import Classifier as Classifier
from minift.classify.classifier import load as load
