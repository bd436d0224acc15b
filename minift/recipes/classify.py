"""Classifiers: spam or not, which intent, how much alike; from a head on frozen features to every weight of the model.

    --method features    the model runs once over every text; a head learns from the vectors in seconds          (the default)
    --method setfit      first the vectors of one label are drawn together, then as above (Tunstall et al. 2022, arXiv:2209.11055)
    --method head | last | full | lora | ...    a head on the model's own way of reading a text, trained with as much of it as the method says

Any model can be the body: an encoder with a pooler is transformers' ...ForSequenceClassification, a decoder is scored at its last token.
What is asked follows from the file (data/classified.py): one label, several labels or a number, of one text or of two.
With --shots K only K rows of each label are learned from, in several draws, and the report says mean and spread.
Proved in tests/recipes/test_classify.py. Left out: cross-validation, thresholds per label."""

from minift.recipes import classify_features, classify_shots, classify_tuned
from minift.recipes.classify_task import Config, Result, read_data


def run(config: Config, quiet: bool = False) -> Result:
    data = read_data(config)
    if config.shots:
        return classify_shots.run(config, data, quiet)
    return (classify_features if config.features else classify_tuned).run(config, data, quiet)
