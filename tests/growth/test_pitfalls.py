"""Known mistakes of growing transformers: each is put back in, and a check must notice it.

Every check takes a `World`, the pair of functions under test. It passes on the real one and must
fail under the mutants that belong to it.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from unittest import mock

import flax
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny

import b2b_jax.growth.depth as depth_module
import b2b_jax.growth.mappings as maps_module
import b2b_jax.growth.width as width_module
from b2b_jax.axes import Axes
from b2b_jax.growth import GrowthError, GrowthPlan, IndexMap, grow, plan_growth
from b2b_jax.growth.mappings import AXIS_MAPPINGS
from b2b_jax.tree import flatten, unflatten

grow_module = sys.modules["b2b_jax.growth.grow"]  # the package's `grow` is the function
EXACT = 1e-5


@dataclasses.dataclass(frozen=True)
class World:
    plan: Callable = plan_growth
    grow: Callable = grow


# Checks.


def measured_gap(world, source, target, plan):
    params, inputs = tiny.random_params(source), tiny.batch(source)
    grown = world.grow(params, plan)
    before = oracle.forward(source, params, **inputs)
    after = oracle.forward(target, grown, **inputs)
    if "pooled" in before and plan.is_exact:
        wide = before["pooled"][:, plan.maps["embed"].indices]
        np.testing.assert_allclose(after["pooled"], wide, atol=EXACT)
    return tiny.gap(after, before)


def check_function(world, family="bert"):
    """Equal copies of the residual stream keep logits, pooled vector and NSP logits."""
    source = tiny.config(family)
    target = tiny.wider(source)
    plan = world.plan(source, target, method="fpi", mapping="balanced")
    assert measured_gap(world, source, target, plan) < EXACT


def check_function_gpt2(world):
    check_function(world, "gpt2")


def check_prediction(world):
    """The default is exact at integer factors; the plan's word agrees with what is measured."""
    bert, gpt2 = tiny.config(), tiny.config("gpt2")
    assert world.plan(bert, tiny.wider(bert), method="fpi").is_exact
    for source, target, options in (
        (bert, tiny.wider(bert), {"method": "fpi"}),
        (bert, tiny.wider(bert), {"method": "fpi", "mapping": "uniform"}),
        (gpt2, tiny.uneven(gpt2), {"method": "fpi"}),
        (bert, tiny.wider(bert), {"method": "aki"}),
        (gpt2, gpt2.replace(num_hidden_layers=6), {"method": "fpi"}),
        (gpt2, gpt2.replace(num_hidden_layers=6), {"method": "fpi", "depth": "interpolate"}),
    ):
        plan = world.plan(source, target, **options)
        exact = measured_gap(world, source, target, plan) < EXACT
        assert exact == plan.is_exact, options
        assert exact == ("not exact" not in plan.describe())


def check_equations(world):
    """Eq. 7 to 13 at uneven counts, element by element."""
    source = tiny.config()
    plan = world.plan(source, tiny.uneven(source), method="fpi", mapping="uniform")
    params = tiny.random_params(source)
    expected = oracle.widened(params, plan)
    tiny.assert_trees_close(world.grow(params, plan), expected, rtol=2e-6, atol=1e-7)


def check_tied_head(world):
    """Whatever the norm's statistics, the grown head turns copied entries into equal logits."""
    for family, norm in (("bert", "mlm/norm"), ("gpt2", "final_norm")):
        source = tiny.config(family)
        plan = world.plan(source, tiny.uneven(source), method="fpi", mapping="uniform")
        assert len(set(plan.maps["embed"].counts.tolist())) > 1
        params = tiny.random_params(source)
        normalised = np.random.default_rng(0).normal(size=(5, source.hidden_size))

        def logits(tree, x, norm=norm):
            p = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(tree).items()}
            x = x * p[f"{norm}/scale"] + p[f"{norm}/bias"]
            return x @ p["embeddings/token/embedding"].T + p.get("mlm/decoder/bias", 0)

        grown = world.grow(params, plan)
        copied = normalised[:, plan.maps["embed"].indices]
        np.testing.assert_allclose(logits(grown, copied), logits(params, normalised), atol=1e-5)


def check_whole_heads(world):
    """Every new head is one source head in q, k, v and o, entry by entry in its order."""
    source = tiny.config()
    plan = world.plan(source, source.replace(intermediate_size=22), method="fpi")
    assert plan.is_exact
    plan = world.plan(source, tiny.uneven(source), method="fpi")
    params = flatten(tiny.random_params(source))
    grown = flatten(world.grow(unflatten(params), plan))
    for name in ("query", "key", "value"):
        before = np.asarray(params[f"layers/attention/{name}/bias"])
        after = np.asarray(grown[f"layers/attention/{name}/bias"])
        for head in range(after.shape[1]):
            copied = [(after[:, head] == before[:, old]).all() for old in range(before.shape[1])]
            assert sum(copied) == 1
            kernel = np.asarray(grown[f"layers/attention/{name}/kernel"])
            original = np.asarray(kernel[:, :, copied.index(True)])
            np.testing.assert_array_equal(kernel[:, :, head], original)


def check_head_width_is_kept(world):
    source = tiny.config()
    with pytest.raises(GrowthError, match="head_dim: 5 -> 10"):
        world.plan(source, source.replace(hidden_size=30), method="fpi")


def check_aki(world):
    """Eq. 15 and 16, then Algorithm 1, at uneven counts; and no claim of exactness."""
    source = tiny.config()
    target = tiny.uneven(source, num_hidden_layers=7)
    params = tiny.random_params(source)
    for scope in ("all", "hidden"):
        plan = world.plan(source, target, method="aki", mapping="balanced", aki_scope=scope)
        expected = oracle.grown(params, plan)
        tiny.assert_trees_close(world.grow(params, plan), expected, rtol=2e-6, atol=1e-7)


def check_layer_order(world):
    source = tiny.config()
    for layers in (5, 7, 8, 11):
        plan = world.plan(source, source.replace(num_hidden_layers=layers), method="fpi")
        grown = world.grow(tiny.random_params(source), plan)
        before = np.asarray(tiny.random_params(source)["layers"]["mlp"]["up"]["kernel"])
        after = np.asarray(grown["layers"]["mlp"]["up"]["kernel"])
        np.testing.assert_array_equal(after, before[oracle.algorithm_1(4, layers)])


def check_independent_arrays(world):
    source = tiny.config()
    params = tiny.random_params(source)
    for target in (source, source.replace(num_hidden_layers=6)):
        grown = world.grow(params, world.plan(source, target, method="fpi"))
        leaves = [*jax.tree.leaves(params), *jax.tree.leaves(grown)]
        assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def check_identity_layers(world):
    pre, post = tiny.config("gpt2"), tiny.config()
    target = pre.replace(num_hidden_layers=7)
    plan = world.plan(pre, target, method="fpi", depth="identity")
    assert measured_gap(world, pre, target, plan) < EXACT
    with pytest.raises(GrowthError, match="pre-norm"):
        world.plan(post, post.replace(num_hidden_layers=7), method="fpi", depth="identity")


class TwoSums:
    """A model of one kernel that is divided along two axes, and of no layers."""

    norm_position = "pre"

    def __init__(self, heads, mlp):
        self.sizes = {"heads": heads, "mlp": mlp, "embed": 4}

    def axis_sizes(self):
        return self.sizes

    def axis_table(self):
        return {"kernel": Axes.parse("kernel: | heads, mlp -> embed", init_std=1.0)}

    def invariants(self):
        return {}

    def to_dict(self):
        return dict(self.sizes)


def check_one_rounding(world):
    """A ninth of a bfloat16, by two divisions, is rounded to bfloat16 once."""
    plan = world.plan(TwoSums(3, 5), TwoSums(9, 15), method="fpi")
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 4)), jnp.bfloat16)
    exact = np.asarray(kernel, np.float64)[plan.maps["heads"].indices] / 9
    exact = exact[:, plan.maps["mlp"].indices]
    found = world.grow({"kernel": kernel}, plan)["kernel"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, exact.astype(np.float32).astype(jnp.bfloat16))


def check_plain_tree(world):
    """Nested dicts of arrays under the model's own paths, without wrappers."""
    source = tiny.config()
    target = tiny.wider(source)
    grown = world.grow(tiny.random_params(source), world.plan(source, target, method="aki"))

    def visit(node):
        assert type(node) is dict
        for child in node.values():
            assert isinstance(child, jax.Array) or visit(child)
        return True

    visit(grown)
    assert flatten(grown).keys() == target.axis_table().keys()


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_passes(check):
    check(World())


# Mutants.


def patched(owner, name, value):
    """A mutant that replaces one attribute."""

    @contextlib.contextmanager
    def mutant():
        with mock.patch.object(owner, name, value):
            yield World()

    return mutant


def expanding(change):
    """A mutant that computes one leaf's expansion as ``change(real, leaf, axes, maps)``."""
    real = width_module.expand
    return patched(grow_module, "expand", lambda *inputs: change(real, *inputs))


def after_growth(change):
    """A mutant that computes the grown tree as ``change(params, plan)``."""

    @contextlib.contextmanager
    def mutant():
        yield World(grow=change)

    return mutant


def planning(change):
    @contextlib.contextmanager
    def mutant():
        yield World(plan=change)

    return mutant


def along(copies, leaf, dimension):
    shape = [1] * leaf.ndim
    shape[dimension] = len(copies)
    return jnp.asarray(copies, leaf.dtype).reshape(shape)


def map_per_leaf(applies):
    """Pitfalls 1 and 6: some leaves get an embed map of their own."""

    def change(real, leaf, axes, maps):
        if applies(axes):
            source, target = maps["embed"].source_size, maps["embed"].target_size
            rng = np.random.default_rng(leaf.size)
            maps = {**maps, "embed": maps_module.balanced(source, target, rng)}
        return real(leaf, axes, maps)

    return expanding(change)


def divide_produced(*roles):
    """Pitfall 3: leaves that are only copied are divided as well."""

    def change(real, leaf, axes, maps):
        grown = real(leaf, axes, maps)
        if axes.role in roles and not axes.absorbs and axes.produces[-1] in maps:
            grown = grown / along(maps[axes.produces[-1]].copies, grown, grown.ndim - 1)
        return grown

    return expanding(change)


def head_norm(rule):
    """Pitfall 4: another rule for the norm in front of the tied decoder."""

    def change(real, leaf, axes, maps):
        if not axes.absorbs:
            return real(leaf, axes, maps)
        return rule(leaf[maps["embed"].indices], axes, maps["embed"])

    return expanding(change)


def decoder_bias_divided(real, leaf, axes, maps):
    grown = real(leaf, axes, maps)
    return grown / 2 if axes.produces == ("vocab",) else grown


def classifier_undivided(real, leaf, axes, maps):
    if axes.produces == ("nsp_classes",) and axes.consumes:
        return leaf[maps["embed"].indices]
    return real(leaf, axes, maps)


def pooler_in_only(real, leaf, axes, maps):
    """The pooler's produced side is rolled: not the map of what reads it."""
    grown = real(leaf, axes, maps)
    pooler = axes.consumes == ("embed",) and axes.produces == ("embed",)
    return jnp.roll(grown, 1, axis=-1) if pooler else grown


def columns_not_heads(order):
    """Pitfall 7: new columns of q, k and v are single columns, not whole heads."""

    def change(real, leaf, axes, maps):
        if axes.produces != ("heads", "head_dim"):
            return real(leaf, axes, maps)
        heads, width = leaf.shape[-2:]
        target = maps["heads"].target_size
        flat = leaf.reshape(*leaf.shape[:-2], heads * width)
        chosen = flat[..., order(heads, width, target)]
        only_embed = {name: grown for name, grown in maps.items() if name == "embed"}
        return real(chosen.reshape(*leaf.shape[:-2], target, width), axes, only_embed)

    return expanding(change)


def head_interleaved(heads, width, target):
    """Fastest over heads: the layout of another framework."""
    return np.arange(target * width).reshape(width, target).T.ravel() % (heads * width)


def random_columns(heads, width, target):
    new = np.random.default_rng(0).integers(heads * width, size=(target - heads) * width)
    return np.concatenate([np.arange(heads * width), new])


def never_refusing(source, target, **options):
    with contextlib.suppress(GrowthError):
        return plan_growth(source, target, **options)


def counts_of_new_part(self):
    """Pitfall 11: the identity part is forgotten in C."""
    new = np.bincount(self.indices[self.source_size :], minlength=self.source_size)
    return np.maximum(new, 1)


def in_place(real, leaf, axes, maps):
    """Pitfall 12: rows are divided where they stand, then copied and divided again."""
    if axes.names != ("layers", "mlp", "embed"):
        return real(leaf, axes, maps)
    grown, rows = real(leaf, axes, {"embed": maps["embed"]}), maps["mlp"]
    halves = grown / along(rows.counts, grown, 1)
    new = (halves / along(rows.counts, grown, 1))[:, rows.indices[rows.source_size :]]
    return jnp.concatenate([halves, new], axis=1)


def donors(layer_above):
    """Pitfalls 13 and 14: another donor layer."""

    def take(widened, axes, maps, *, donated):
        real = width_module.take_from_upper
        layers = widened.shape[0]
        order = np.array([layer_above(layer, layers) for layer in range(layers)])
        # Two-layer models, so that "the layer above" is the chosen donor.
        pairs = [
            real(jnp.stack([widened[own], widened[donor]]), axes, maps, donated=donated)[0]
            for own, donor in enumerate(order)
        ]
        return jnp.stack(pairs)

    return patched(grow_module, "take_from_upper", take)


def donor_chain(widened, axes, maps, *, donated):
    """Pitfall 13: from the top down, each layer takes from one that has taken already."""
    real, grown = width_module.take_from_upper, widened
    for layer in reversed(range(widened.shape[0] - 1)):
        pair = real(grown[layer : layer + 2], axes, maps, donated=donated)
        grown = grown.at[layer].set(pair[0])
    return grown


def donor_not_divided(widened, axes, maps, *, donated):
    """Pitfall 13: donors keep the scale of another in-expansion."""
    scaled = widened
    for dimension, (name, divided) in enumerate(zip(axes.names, axes.divided, strict=True)):
        if divided:
            scaled = scaled * along(maps[name].copies, scaled, dimension)
    own = width_module.take_from_upper(widened, axes, maps, donated=donated)
    above = width_module.take_from_upper(scaled, axes, maps, donated=donated)
    fpi = widened
    return jnp.where(own == fpi, fpi, above)


def aki_after_depth(params, plan):
    """Pitfall 13: the last layer of every copy takes from the first of the next."""
    source = tiny.config()
    deep = source.replace(num_hidden_layers=plan.target_sizes["layers"])
    stacked = grow(params, plan_growth(source, deep, method="fpi"))
    return grow(
        stacked,
        plan_growth(
            deep,
            tiny.uneven(deep),
            method=plan.method,
            mapping=plan.mapping,
            aki_scope=plan.aki_scope,
        ),
    )


def donating(change):
    """Mutants of which parameters AKI touches."""
    return patched(GrowthPlan, "donated_axes", change)


def norms_from_above(self, path):
    if self.axes[path].role.startswith("norm") and "layers" in self.axes[path].indexed:
        return ("embed",)
    return REAL_DONATED(self, path)


def biases_stay(self, path):
    return () if self.axes[path].role == "bias" else REAL_DONATED(self, path)


def rows_stay(self, path):
    """Scope "hidden" without the rows that read the new heads and neurons."""
    axes = self.axes[path]
    return tuple(name for name in REAL_DONATED(self, path) if name in axes.produces)


REAL_DONATED = GrowthPlan.donated_axes
REAL_REASONS = GrowthPlan.__dict__["why_inexact"].func


def without_reasons(word):
    """Mutants of the prediction: one kind of reason is not given."""
    reasons = property(lambda self: tuple(r for r in REAL_REASONS(self) if word not in r))
    return patched(GrowthPlan, "why_inexact", reasons)


def ordered(order):
    @contextlib.contextmanager
    def mutant():
        with mock.patch.dict(depth_module.ORDERS, stack=order):
            yield World()

    return mutant


def bottom_remainder(source, target):
    return IndexMap(np.arange(target) % source, source)


def remainder_below(source, target):
    order = depth_module.stack(source, target).indices
    whole = target // source * source
    return IndexMap(np.concatenate([order[whole:], order[:whole]]), source)


def sharing(params, plan):
    """Leaves that do not grow are handed through."""
    before, grown = flatten(params), flatten(grow(params, plan))
    return unflatten(
        {
            path: before[path] if before[path].shape == leaf.shape else leaf
            for path, leaf in grown.items()
        }
    )


def silencing(applies):
    real = GrowthPlan.is_silenced
    return patched(GrowthPlan, "is_silenced", lambda self, path: applies(path) and real(self, path))


def identity_for_all(source, target, **options):
    if options.get("depth") != "identity":
        return plan_growth(source, target, **options)
    plan = plan_growth(source, target, **(options | {"depth": "interpolate"}))
    return dataclasses.replace(plan, depth="identity")


def rounding_often(real, leaf, axes, maps):
    return real(leaf.astype(jnp.bfloat16), axes, maps)


@contextlib.contextmanager
def uniform_by_default():
    with mock.patch.dict(AXIS_MAPPINGS, cyclic=maps_module.uniform):
        yield World()


MUTANTS = {
    "1 a map per block": (check_function, map_per_leaf(lambda axes: "layers" in axes.indexed)),
    "1 a map per block, gpt2": (
        check_function_gpt2,
        map_per_leaf(lambda axes: "layers" in axes.indexed),
    ),
    "1 a map for the attention output": (
        check_function,
        map_per_leaf(lambda axes: axes.consumes == ("heads", "head_dim")),
    ),
    "2 uniform by default": (check_prediction, uniform_by_default),
    "2 uneven counts called even": (
        check_prediction,
        patched(IndexMap, "is_even", property(lambda self: True)),
    ),
    "3 norms divided": (check_function, divide_produced("norm_scale", "norm_bias")),
    "3 only norm scales divided": (check_equations, divide_produced("norm_scale")),
    "3 biases divided": (check_function, divide_produced("bias")),
    "3 biases divided, gpt2": (check_function_gpt2, divide_produced("bias")),
    "3 embeddings divided": (check_function, divide_produced("embedding")),
    "4 head norm not divided": (check_tied_head, head_norm(lambda leaf, axes, grown: leaf)),
    "4 head norm not divided at even counts": (
        check_function,
        head_norm(lambda leaf, axes, grown: leaf),
    ),
    "4 head norm divided by the ratio of widths": (
        check_tied_head,
        head_norm(lambda leaf, axes, g: leaf * g.source_size / g.target_size),
    ),
    "4 only the head norm's scale divided": (
        check_function_gpt2,
        head_norm(lambda leaf, axes, g: leaf / g.copies if "scale" in axes.role else leaf),
    ),
    "4 decoder bias divided": (check_function, expanding(decoder_bias_divided)),
    "6 positions with a map of their own": (
        check_function,
        map_per_leaf(lambda axes: axes.indexed == ("positions",)),
    ),
    "6 segment types with a map of their own": (
        check_function,
        map_per_leaf(lambda axes: axes.indexed == ("types",)),
    ),
    "6 embedding norm with a map of its own": (
        check_function,
        map_per_leaf(lambda axes: axes.role == "norm_scale" and not axes.indexed),
    ),
    "6 classifier not divided": (check_function, expanding(classifier_undivided)),
    "6 pooler's produced side": (check_function, expanding(pooler_in_only)),
    "7 heads interleaved": (check_whole_heads, columns_not_heads(head_interleaved)),
    "7 single columns at random": (check_function, columns_not_heads(random_columns)),
    "8 another head width": (check_head_width_is_kept, planning(never_refusing)),
    "11 only the new part counted": (
        check_function,
        patched(IndexMap, "counts", property(counts_of_new_part)),
    ),
    "11 only the new part counted, by element": (
        check_equations,
        patched(IndexMap, "counts", property(counts_of_new_part)),
    ),
    "12 rows divided in place": (check_function, expanding(in_place)),
    "13 a chain of donors": (check_aki, patched(grow_module, "take_from_upper", donor_chain)),
    "13 donors of another scale": (
        check_aki,
        patched(grow_module, "take_from_upper", donor_not_divided),
    ),
    "13 AKI after the depth": (check_aki, after_growth(aki_after_depth)),
    "14 AKI claimed to be exact": (check_prediction, without_reasons("aki")),
    "14 AKI that is FPI": (check_aki, donors(lambda layer, layers: layer)),
    "14 the lower layer": (check_aki, donors(lambda layer, layers: max(layer - 1, 0))),
    "14 the last layer takes the first": (
        check_aki,
        donors(lambda layer, layers: (layer + 1) % layers),
    ),
    "14 norms from above": (check_aki, donating(norms_from_above)),
    "14 biases of the layer itself": (check_aki, donating(biases_stay)),
    "14 reading rows of the layer itself": (check_aki, donating(rows_stay)),
    "15 the remainder from the bottom": (check_layer_order, ordered(bottom_remainder)),
    "15 the remainder below": (check_layer_order, ordered(remainder_below)),
    "15 interpolation instead": (check_layer_order, ordered(depth_module.interpolate)),
    "15 shared arrays": (check_independent_arrays, after_growth(sharing)),
    "16 stacking called exact": (check_prediction, without_reasons("runs layers again")),
    "17 nothing silenced": (check_identity_layers, silencing(lambda path: False)),
    "17 only kernels silenced": (
        check_identity_layers,
        silencing(lambda path: path.endswith("kernel")),
    ),
    "17 only the attention silenced": (
        check_identity_layers,
        silencing(lambda path: "attention" in path),
    ),
    "17 identity after a post-norm model": (check_identity_layers, planning(identity_for_all)),
    "18 arithmetic in bfloat16": (check_one_rounding, expanding(rounding_often)),
    "25 a frozen dict": (
        check_plain_tree,
        after_growth(lambda params, plan: flax.core.freeze(grow(params, plan))),
    ),
    "25 a module around every leaf": (
        check_plain_tree,
        after_growth(
            lambda params, plan: tiny.map_leaves(lambda leaf: {"linear": leaf}, grow(params, plan))
        ),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_noticed(name):
    check, mutant = MUTANTS[name]
    noticed = (AssertionError, GrowthError, pytest.fail.Exception)
    with mutant() as world, pytest.raises(noticed):
        check(world)
