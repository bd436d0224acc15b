"""Expected calibration error, worked by hand."""

import numpy as np
import pytest

from minift.errors import InputError
from minift.evaluate.calibration import reliability


def test_ece_worked_by_hand():
    # (0, .5]: 0.5 right, 0.1 wrong: mean .3, accuracy .5.   (.5, 1]: 0.9 right, 0.9 wrong, 0.6 wrong: mean .8, accuracy 1/3
    plot = reliability([0.5, 0.1, 0.9, 0.9, 0.6], [1, 0, 1, 0, 0], bins=2)
    assert plot.counts.tolist() == [2, 3] and plot.edges.tolist() == [0, 0.5, 1]
    assert plot.accuracy == pytest.approx([1 / 2, 1 / 3]) and plot.confidence == pytest.approx([0.3, 0.8])
    assert plot.ece == pytest.approx(2 / 5 * 0.2 + 3 / 5 * (0.8 - 1 / 3))


def test_empty_bins_are_nan_in_the_plot_and_nothing_in_the_error():
    plot = reliability([1.0, 1.0, 0.0], [True, True, False], bins=15)
    assert plot.counts[0] == 1 and plot.counts[-1] == 2 and np.isnan(plot.accuracy[1:-1]).all() and np.isnan(plot.confidence[1:-1]).all()
    assert plot.ece == 0


def test_errors_in_two_directions_do_not_cancel():
    assert reliability([0.9, 0.9, 0.6, 0.6], [1, 1, 0, 1], bins=10).ece == pytest.approx(0.1)


def test_what_is_no_probability_is_refused():
    with pytest.raises(InputError, match="from -1 to 3: probabilities are wanted"):
        reliability([-1, 3], [0, 1])
    with pytest.raises(InputError, match="bins is 0"):
        reliability([0.5], [1], bins=0)
    with pytest.raises(InputError, match="found 1 confidence, 2 correct"):
        reliability([0.5], [1, 0])
