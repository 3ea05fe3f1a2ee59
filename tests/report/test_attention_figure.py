"""The picture of attention patterns, and its table."""

import csv
import io

import numpy as np
import pytest

from b2b_jax.evaluate import compare_heads, head_donors
from b2b_jax.growth import plan_growth
from b2b_jax.models import preset
from b2b_jax.report.attention import attention_figure, csv_table, grid

TOKENS = 6
SMALL = preset("bert-tiny").replace(num_hidden_layers=2)
LARGE = SMALL.replace(hidden_size=192, num_attention_heads=6, num_hidden_layers=3)


def patterns(cfg, seed):
    shape = (cfg.num_hidden_layers, 2, cfg.num_attention_heads, TOKENS, TOKENS)
    rows = np.random.default_rng(seed).uniform(size=shape).astype(np.float32)
    return rows / rows.sum(-1, keepdims=True)


def compared(method):
    donors = head_donors(plan_growth(SMALL, LARGE, method=method))
    seen = np.ones((2, TOKENS), bool)
    return compare_heads(patterns(SMALL, 0), patterns(LARGE, 1), seen=seen, donors=donors)


def draw(comparison, layers=(0, 1, 2), heads=range(6), words=()):
    return attention_figure(
        patterns(LARGE, 1)[:, 0],
        title="grown",
        layers=layers,
        heads=list(heads),
        comparison=comparison,
        words=words,
    )


def texts(figure):
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize(("heads", "tokens"), [(2, 24), (8, 24), (12, 24), (24, 24), (48, 9)])
def test_cells_are_whole_pixels_and_the_picture_is_as_wide_as_a_page(heads, tokens):
    found = grid(12, is_new=[head >= heads / 2 for head in range(heads)], tokens=tokens)
    assert found.cell % tokens == 0 and found.cell >= 44
    steps = np.diff(found.lefts)
    assert steps.min() > found.cell and (steps == steps.max()).sum() == 1
    assert steps.argmax() == heads // 2 - 1  # the wider gap is in front of the first new head
    assert np.diff(found.tops).min() > found.cell + 16  # two lines of a note
    if 8 <= heads <= 24:
        assert 900 <= found.width <= 1450


def test_new_heads_name_their_donors():
    comparison = compared("aki")
    figure = draw(comparison)
    assert len(figure.axes) == 18
    shown = texts(figure)
    assert shown.count("new heads") == 1
    assert f"L1 H0\n{comparison.to_donor[0, 4]:.2f}" in shown
    assert f"{comparison.to_donor[0, 3]:.2f}" in shown
    assert "L0" in shown and "L2\nfrom L1" in shown and "H5" in shown
    # A cell shows its own head, drawn on the same scale as all others.
    image = figure.axes[6 + 2].images[0]
    np.testing.assert_allclose(image.get_array() ** 2, patterns(LARGE, 1)[1, 0, 2], rtol=1e-5)
    assert image.get_clim() == (0, 1)


@pytest.mark.parametrize("heads", [4, 12])
def test_no_text_lies_on_another_or_on_a_cell(heads):
    small = SMALL.replace(hidden_size=heads * 32, num_attention_heads=heads, num_hidden_layers=12)
    large = small.replace(hidden_size=2 * heads * 32, num_attention_heads=2 * heads)
    donors = head_donors(plan_growth(small, large, method="aki"))
    before, after = patterns(small, 0), patterns(large, 1)
    comparison = compare_heads(before, after, seen=np.ones((2, TOKENS), bool), donors=donors)
    chosen = {"layers": (0, 10), "heads": range(2 * heads), "comparison": comparison}
    figure = attention_figure(after[:, 0], title="grown", **chosen, words=["word"] * TOKENS)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.texts if text.get_text()]
    cells = [axes.get_window_extent() for axes in figure.axes]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in [*boxes[:number], *cells]), box


def test_a_part_of_the_heads_and_a_long_text_with_signs():
    figure = draw(compared("direct_copy"), layers=(2, 0), heads=(1, 4), words=["a$b"] * 200)
    shown = texts(figure)
    assert len(figure.axes) == 4 and "H1" in shown and "H0" not in shown
    assert shown.count("no donor") == 3  # all of the new layer, and what is new of the old one
    assert not any(text.get_parse_math() for text in figure.texts)
    figure.canvas.draw()
    width = figure.get_size_inches()[0] * figure.dpi
    for text in figure.texts:
        assert text.get_window_extent().x1 <= width


def test_a_model_by_itself_has_no_notes():
    shown = texts(draw(None))
    assert "new heads" not in shown and "no donor" not in shown
    assert {"L0", "L1", "L2", "H0", "H5"} <= set(shown)


def test_the_table_has_a_line_for_every_grown_head():
    comparison = compared("aki")
    rows = list(csv.DictReader(io.StringIO(csv_table(comparison))))
    assert len(rows) == 18
    row = rows[1 * 6 + 5]
    assert (row["layer"], row["head"], row["group"]) == ("1", "5", "new")
    assert (row["donor_layer"], row["donor_head"]) == ("1", "1")
    assert float(row["similarity"]) == pytest.approx(comparison.to_donor[1, 5])
    assert float(row["twin_similarity"]) == pytest.approx(comparison.to_twin[1, 5])
    assert rows[0]["twin_similarity"] == ""
    fresh = list(csv.DictReader(io.StringIO(csv_table(compared("direct_copy")))))[-1]
    assert (fresh["group"], fresh["donor_layer"], fresh["similarity"]) == ("no donor", "", "")
    assert float(fresh["closest_similarity"]) > 0
