"""Folders are named by all that their content depends on, and by nothing else."""

import dataclasses

import numpy as np
import pytest
from comparisons import write_comparison

from b2b_jax.compare import Plan, load_compare_config
from b2b_jax.compare.identity import _without_docstrings, code_version
from b2b_jax.growth import grow, plan_growth
from b2b_jax.growth.fresh import fresh_params
from b2b_jax.models import build_model
from b2b_jax.tree import flatten


@pytest.fixture
def plan(tmp_path):
    return make(load_compare_config(write_comparison(tmp_path)))


def make(config, *, tokens="text") -> Plan:
    return Plan(config, fingerprint=lambda folder: folder, tokens=lambda data: tokens)


def random(config, *, seed):
    model = build_model(config)
    return fresh_params(model.axes, model.shapes, seed=seed)


def runs(plan, *, seed=0, rate=0.01):
    return {e.name: plan.run(e, seed=seed, rate=rate) for e in plan.config.entries}


def test_methods_without_growth_start_from_the_same_random_target(plan):
    found = runs(plan)
    starts = {found[name].init for name in ("scratch", "stackbert", "mslt", "inherit")}
    assert len(starts) == 1
    assert found["aki"].init == found["bert2bert"].init
    assert len({run.init for run in found.values()}) == 5  # random, aki, direct_copy, net2net, fpi
    assert runs(plan, seed=1)["scratch"].init != found["scratch"].init


def test_what_direct_copy_leaves_is_what_the_random_target_has(plan):
    target, source = plan.config.target, plan.config.sources[0].run.model
    fresh = flatten(random(target, seed=3))
    small = random(source, seed=7)
    copied = flatten(grow(small, plan_growth(source, target, method="direct_copy", seed=3)))
    for path, leaf in copied.items():
        inside = np.zeros(leaf.shape, bool)
        corner = flatten(small)[path]
        inside[tuple(slice(size) for size in corner.shape)] = True
        np.testing.assert_array_equal(leaf[inside].reshape(corner.shape), corner, err_msg=path)
        np.testing.assert_array_equal(leaf[~inside], fresh[path][~inside], err_msg=path)
    different = flatten(random(target, seed=4))
    assert any((different[path] != fresh[path]).any() for path in fresh)


def test_every_run_has_its_own_folder(plan):
    folders = [
        run.run_dir
        for seed in (0, 1)
        for rate in (0.01, 0.03)
        for run in runs(plan, seed=seed, rate=rate).values()
    ]
    assert len(set(folders)) == len(folders) == 36


def test_a_run_is_found_again_only_if_it_would_come_out_the_same(plan, monkeypatch):
    config, before = plan.config, runs(plan)["aki"].run_dir
    entry = config.entry("aki")

    def folder(**changes):
        changed = dataclasses.replace(entry, run=dataclasses.replace(entry.run, **changes))
        return plan.run(changed, seed=0, rate=0.01).run_dir

    assert folder() == before
    log = dataclasses.replace(entry.run.log, every_steps=1)
    assert folder(log=log) == before  # changes no result
    train = dataclasses.replace(entry.run.train, eval_every=2)
    assert folder(train=train) != before
    assert runs(make(config, tokens="other text"))["aki"].run_dir != before
    sources = tuple(
        dataclasses.replace(
            spec, run=dataclasses.replace(spec.run, train=dataclasses.replace(train, steps=9))
        )
        for spec in config.sources
    )
    other = runs(make(dataclasses.replace(config, sources=sources)))
    assert other["aki"].run_dir != before  # its source is another one
    assert other["scratch"].run_dir == runs(plan)["scratch"].run_dir
    assert other["inherit"].run_dir != runs(plan)["inherit"].run_dir  # so is its teacher
    monkeypatch.setattr("b2b_jax.compare.plan.code_version", lambda: "newer")
    assert runs(plan)["aki"].run_dir != before


def test_sources_can_be_shared_by_all_seeds(plan):
    (spec,) = plan.config.sources
    assert plan.source_folder(spec, 0) != plan.source_folder(spec, 1)
    shared = make(dataclasses.replace(plan.config, source_seeds="first"))
    assert shared.source_folder(spec, 0) == shared.source_folder(spec, 1)


def test_a_rate_is_chosen_before_others_take_it_over(plan):
    order = [entry.name for entry in plan.in_order]
    assert order.index("aki") < order.index("bert2bert")
    assert set(order) == {entry.name for entry in plan.config.entries}


def test_comments_and_docstrings_are_no_code():
    code = 'def f(x):\n    """What."""\n    # why\n    return x + 1\n'
    assert _without_docstrings(code) == _without_docstrings("def f(x): return x + 1")
    assert _without_docstrings(code) != _without_docstrings("def f(x): return x + 2")
    assert code_version().startswith("0.")
