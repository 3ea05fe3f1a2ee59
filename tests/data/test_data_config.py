"""Every mistake in the settings is found, named and explained."""

from typing import Any

import pytest

from b2b_jax.data import DataConfig

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"source": "flies"}, "data.source: found 'flies', expected one of .* did you mean 'files'"),
    ({"source": "files"}, "data.paths: found nothing"),
    ({"source": "tfds"}, "data.tfds_name: found nothing"),
    ({"heldout_percent": 100.0}, "data.heldout_percent: found 100.0"),
    ({"heldout_percent": float("nan")}, "data.heldout_percent: found nan"),
    ({"vocab_size": 10}, "data.vocab_size: found 10, expected at least 300"),
    ({"max_megabytes": -1.0}, "data.max_megabytes: found -1.0"),
]


def test_the_defaults_are_sound():
    assert DataConfig().problems() == []


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_a_mistake_is_one_message(change, message):
    found = DataConfig(**change).problems()
    assert len(found) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(found[0])


def test_all_mistakes_are_told_at_once():
    cfg = DataConfig(source="tfds", vocab_size=1, heldout_percent=-1.0, max_megabytes=-2.0)
    assert len(cfg.problems()) == 4
