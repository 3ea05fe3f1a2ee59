"""The axis table: text form, roles of dimensions, shapes."""

import pytest

from b2b_jax.axes import Axes, AxisError, shapes
from b2b_jax.models import ModelConfig


def test_the_text_names_one_axis_per_dimension():
    axes = Axes.parse("kernel: layers | embed -> heads, head_dim", init_std=0.5)
    assert axes.role == "kernel"
    assert axes.indexed == ("layers",)
    assert axes.consumes == ("embed",)
    assert axes.produces == ("heads", "head_dim")
    assert axes.names == ("layers", "embed", "heads", "head_dim")
    assert axes.init_std == 0.5
    sizes = {"layers": 2, "embed": 6, "heads": 3, "head_dim": 4}
    assert axes.shape(sizes) == (2, 6, 3, 4)


@pytest.mark.parametrize(
    ("text", "divided"),
    [
        ("kernel: layers | embed -> mlp", (False, True, False)),
        ("kernel: layers | heads, head_dim -> embed", (False, True, True, False)),
        # The same name twice: by position, not by name.
        ("kernel: | embed -> embed", (True, False)),
        ("embedding: vocab | -> embed", (False, False)),
        ("norm_scale: layers | -> embed", (False, False)),
        ("norm_bias: | -> embed / embed", (True,)),
        ("kernel: | embed -> embed, mlp / mlp", (True, False, True)),
    ],
)
def test_what_is_divided(text, divided):
    assert Axes.parse(text).divided == divided


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_text_is_read_back(family):
    heads = ("lm",) if family == "gpt2" else ("mlm", "pooler", "nsp")
    table = ModelConfig(family=family, heads=heads).axis_table()
    for axes in table.values():
        assert Axes.parse(str(axes), init_std=axes.init_std) == axes
        assert Axes.parse(str(axes).replace(" ", ""), init_std=axes.init_std) == axes


@pytest.mark.parametrize(
    "text", ["", "kernel", "kernel: embed -> mlp", "kernel: a | b", "a: b: c | d -> e"]
)
def test_other_forms_are_refused(text):
    with pytest.raises(AxisError, match="do not read"):
        Axes.parse(text)


def test_unknown_roles_are_refused():
    with pytest.raises(AxisError, match="role 'weight'"):
        Axes.parse("weight: | a -> b")


def test_axes_without_a_size_are_all_named():
    table = {"w": Axes.parse("kernel: | a -> b"), "b": Axes.parse("bias: | -> c")}
    assert shapes(table, {"a": 1, "b": 2, "c": 3}) == {"w": (1, 2), "b": (3,)}
    with pytest.raises(AxisError, match=r"\['a', 'c'\]; known: \['b'\]"):
        shapes(table, {"b": 2})
