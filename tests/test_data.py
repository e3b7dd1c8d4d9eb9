import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from sdekit.data import digits, every_third


def test_every_digit_is_in_exactly_one_part_with_its_own_label():
    bunch, data = load_digits(), digits()
    pixels = (torch.cat([data.train, data.held_out]).flatten(1).double().numpy() + 1) * 8
    labels = torch.cat([data.train_labels, data.held_out_labels]).numpy()
    ours = np.column_stack([labels, pixels])
    theirs = np.column_stack([bunch.target, bunch.data])
    assert len(np.unique(theirs, axis=0)) == 1797  # no two images are equal, so sorting pairs them up
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_the_split_holds_out_a_third_of_each_class():
    data = digits()
    assert len(data.held_out) >= 580
    held_out = data.held_out_labels.bincount(minlength=10)
    total = held_out + data.train_labels.bincount(minlength=10)
    assert ((held_out - total / 3).abs() < 1).all()


def test_images_are_float32_in_minus_one_to_one():
    data = digits()
    for images in (data.train, data.held_out):
        assert images.dtype == torch.float32
        assert (images.min(), images.max()) == (-1.0, 1.0)


@given(st.lists(st.integers(0, 3), max_size=40))
def test_every_third_counts_within_each_label(labels):
    seen = dict.fromkeys(labels, 0)
    expected = []
    for label in labels:
        seen[label] += 1
        expected.append(seen[label] % 3 == 0)
    assert every_third(torch.tensor(labels, dtype=torch.int64)).tolist() == expected


def test_a_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        digits()
