"""Knowledge inheritance: the teacher's share of the loss, its predictions, online and kept."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import Recorder, tiny_run
from train_support import config as tiny_config
from train_support import shared_setup, tokens

from b2b_jax.commands.train import price, train_command
from b2b_jax.models import ConfigError, Decoder, build_model, preset
from b2b_jax.train.inherit import Inheritance, InheritConfig, SoftTargets
from b2b_jax.train.losses import cross_entropy
from b2b_jax.train.saved import load_model
from b2b_jax.train.stages import TwoStageConfig, full_model
from b2b_jax.train.step import make_train_step, step_keys
from b2b_jax.tree import flatten

VOCAB, TAU = 71, 2.0


def test_the_teachers_share_falls_linearly_from_one_to_zero():
    inheritance = Inheritance(shared_setup("bert").model, InheritConfig("teacher", steps=8))
    assert [float(inheritance.rate(t)) for t in (0, 2, 4, 8, 100)] == [1.0, 0.75, 0.5, 0.0, 0.0]


def divergence_by_loops(teacher, student, weights, tau, keep=None):
    """tau^2 KL(teacher || student), one prediction at a time."""
    total = 0.0
    for row in np.ndindex(*weights.shape):
        ids = range(VOCAB) if keep is None else np.argsort(-teacher[row])[:keep]
        p = np.exp(teacher[row] / tau)
        q = np.exp(student[row] / tau)
        norm = sum(p[i] for i in ids)
        kl = sum(p[i] / norm * (np.log(p[i] / norm) - np.log(q[i] / q.sum())) for i in ids)
        total += tau**2 * weights[row] * kl
    return total


@pytest.mark.parametrize("keep", [None, 5, VOCAB])
def test_the_divergence_against_loops(keep):
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 2, 3, VOCAB))
    weights = rng.integers(0, 2, (2, 3)).astype(np.float32)
    logits, ids = jnp.asarray(teacher), None
    if keep is not None:
        logits, ids = jax.lax.top_k(logits, keep)
    soft = SoftTargets(logits, ids, TAU)
    found = soft.divergence(jnp.asarray(student), weights=jnp.asarray(weights))
    expected = divergence_by_loops(teacher, student, weights, TAU, keep)
    np.testing.assert_allclose(found.total, expected, rtol=1e-5)
    assert float(found.count) == weights.sum()


class Taught:
    """A student of four layers and a teacher of one, and steps that learn from it."""

    def __init__(self, *, top_k=0, micro_batches=1):
        self.student = shared_setup("bert")
        teacher_config = tiny_config(num_hidden_layers=1, hidden_size=16, num_attention_heads=2)
        self.teacher = build_model(teacher_config)
        self.params = self.teacher.init(jax.random.key(5))
        settings = InheritConfig("teacher", steps=8, temperature=TAU, top_k=top_k)
        self.inheritance = Inheritance(self.teacher, settings)
        self.step = jax.jit(
            make_train_step(
                self.student.model,
                self.student.optimizer,
                objective=self.student.objective,
                sub=full_model(4),
                seed=3,
                micro_batches=micro_batches,
                inheritance=self.inheritance,
            )
        )

    def example(self, state):
        return self.student.objective.example(tokens(), step_keys(3, state.step)[0])


@pytest.mark.slow
def test_a_step_follows_the_weighted_gradient_of_labels_and_teacher():
    """At step 2 of 8 the teacher has three quarters of the loss."""
    taught = Taught()
    plain = taught.student.step(full_model(4))
    state = taught.student.state()
    for index in range(2):
        state, _ = plain(state, tokens(index))
    example = taught.example(state)
    model = taught.student.model
    teacher = np.asarray(taught.teacher.apply(taught.params, example.input_ids), np.float64)[
        np.arange(8)[:, None], example.positions
    ]

    def loss(params):
        logits = model.apply(params, example.input_ids)
        logits = logits[np.arange(8)[:, None], example.positions]
        count = example.weights.sum()
        labels = cross_entropy(logits, example.labels, weights=example.weights).total
        log_p = jax.nn.log_softmax(jnp.asarray(teacher, jnp.float32) / TAU)
        log_q = jax.nn.log_softmax(logits / TAU)
        kl = (jnp.exp(log_p) * (log_p - log_q)).sum(-1) * example.weights
        return (0.25 * labels + 0.75 * TAU**2 * kl.sum()) / count

    norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(jax.grad(loss)(state.params))))
    after, metrics = taught.step(state, tokens(), taught.params)
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-4)
    without, alone = plain(state, tokens())
    np.testing.assert_allclose(metrics.loss.total, alone.loss.total, rtol=1e-6)
    moved = flatten(after.params)["layers/mlp/up/kernel"]
    assert np.abs(moved - flatten(without.params)["layers/mlp/up/kernel"]).max() > 1e-4


@pytest.mark.slow
def test_the_teacher_gets_no_gradient():
    taught = Taught()
    example = taught.example(taught.student.state())
    hidden, decoder = jnp.zeros((8, 3, 4)), Decoder(jnp.zeros((VOCAB, 4)), None)

    def loss(params):
        return taught.inheritance.divergence(hidden, decoder, hints=params, example=example).total

    assert float(loss(taught.params)) > 0
    assert all((g == 0).all() for g in jax.tree.leaves(jax.grad(loss)(taught.params)))


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_keeping_every_token_equals_running_the_teacher(micro_batches):
    online, kept = Taught(), Taught(top_k=VOCAB, micro_batches=micro_batches)
    state = online.student.state()
    expected, _ = online.step(state, tokens(), online.params)
    hints = kept.inheritance.keep(kept.params, kept.example(state))
    assert hints.ids.shape == (8, 3, VOCAB)
    found, _ = kept.step(state, tokens(), hints)
    for path, leaf in flatten(found.params).items():
        np.testing.assert_allclose(leaf, flatten(expected.params)[path], atol=1e-5, err_msg=path)


@pytest.mark.parametrize("top_k", [0, pytest.param(5, marks=pytest.mark.slow)])
def test_sequences_in_parts_give_divergence_and_gradients_of_the_whole(top_k):
    taught = Taught(top_k=top_k)
    inheritance, example = taught.inheritance, taught.example(taught.student.state())
    keys = jax.random.split(jax.random.key(1), 2)
    hidden = jax.random.normal(keys[0], (8, 3, 4))
    decoder = Decoder(jax.random.normal(keys[1], (VOCAB, 4)), jnp.arange(VOCAB) / VOCAB)
    hints = taught.params
    if top_k:
        hints = inheritance.keep(taught.params, example)
        again = inheritance.keep(taught.params, example, parts=4)
        np.testing.assert_array_equal(again.ids, hints.ids)
        np.testing.assert_allclose(again.logits, hints.logits, rtol=1e-5)

    def total(hidden, decoder, parts):
        divergence = inheritance.divergence(
            hidden, decoder, hints=hints, example=example, parts=parts
        )
        return divergence.total, divergence.count

    of = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    expected = of(hidden, decoder, 1)
    for parts in (2, 8):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            of(hidden, decoder, parts),
            expected,
        )


def test_the_logits_of_a_teacher_and_its_student_are_never_all_there():
    vocab, example = 4096, jax.eval_shape(Taught().example, shared_setup("bert").state())
    teacher = build_model(
        tiny_config(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, vocab_size=vocab)
    )
    inheritance = Inheritance(teacher, InheritConfig("teacher", steps=8))
    shapes = jax.eval_shape(teacher.init, jax.random.key(0))
    hidden, table = jnp.zeros((8, 3, 4)), jnp.zeros((vocab, 4))

    def temporaries(parts: int) -> int:
        def total(hidden, params, example):
            return inheritance.divergence(
                hidden, Decoder(table, None), hints=params, example=example, parts=parts
            ).total

        compiled = jax.jit(jax.grad(total)).lower(hidden, shapes, example).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = 4 * 8 * 3 * vocab
    assert temporaries(8) < whole < temporaries(1)


def small_and_large(folder: Path, **inherit):
    teacher = tiny_run(folder, "teacher", two_stage=TwoStageConfig())
    if not Path(teacher.run_dir).exists():
        train_command(teacher, reporter=Recorder())
    model = teacher.model.replace(hidden_size=32, num_attention_heads=4, intermediate_size=64)
    settings = InheritConfig(teacher.run_dir, steps=7, cache_dir=str(folder / "cache"), **inherit)
    return tiny_run(folder, "student", model=model, two_stage=TwoStageConfig(), inherit=settings)


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [0, 4])
def test_a_taught_run_goes_on_bit_for_bit_and_is_charged_for_its_teacher(tmp_path, top_k):
    run = small_and_large(tmp_path, top_k=top_k)
    whole = dataclasses.replace(run, run_dir=str(tmp_path / "whole"))
    assert train_command(whole, reporter=Recorder()).exit_code == 0
    for stop in (5, 8):
        reporter = Recorder(signal_at=stop)
        assert train_command(run, reporter=reporter).step == stop
    assert train_command(run, reporter=Recorder()).exit_code == 0
    models = [load_model(path) for path in (run.run_dir, whole.run_dir)]
    assert models[0].fingerprint == models[1].fingerprint
    teacher = load_model(run.inherit.teacher)
    accounting = price(run, teacher=teacher.config)
    assert accounting.teacher_cost is not None
    full = accounting.step_cost(full_model(2))
    spent = models[0].meta["progress"]["flops"]
    assert spent["exact"] == pytest.approx(12 * full.exact + 7 * accounting.teacher_cost.exact)
    assert spent["electra"] == pytest.approx(
        12 * full.electra + 7 * accounting.teacher_cost.electra
    )
    lineage = json.loads((Path(run.run_dir) / "lineage.json").read_text())
    assert lineage["teacher_flops"] == teacher.meta["progress"]["flops"]
    assert bool(list((tmp_path / "cache").glob("*/*.npz"))) == bool(top_k)


class StopsAtTheCache(Recorder):
    """Asks the run to stop when it begins to keep predictions."""

    def note(self, text: str) -> None:
        super().note(text)
        if "keeping its predictions" in text:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_run_that_is_stopped_while_it_keeps_predictions_goes_on(tmp_path):
    run = small_and_large(tmp_path, top_k=4)
    stopped = train_command(run, reporter=StopsAtTheCache())
    assert (stopped.exit_code, stopped.step) == (75, 0)
    assert not list((tmp_path / "cache").glob("*/*"))
    assert train_command(run, reporter=Recorder()).exit_code == 0
    whole = dataclasses.replace(run, run_dir=str(tmp_path / "whole"))
    assert train_command(whole, reporter=Recorder()).exit_code == 0
    assert load_model(run.run_dir).fingerprint == load_model(whole.run_dir).fingerprint


@pytest.mark.slow
def test_runs_of_other_rates_read_the_same_predictions_and_a_damaged_file_is_named(tmp_path):
    run = small_and_large(tmp_path, top_k=4)
    reporter = Recorder()
    train_command(run, reporter=reporter)
    assert "keeping its predictions" in reporter.text
    optimizer = dataclasses.replace(run.optimizer, peak_learning_rate=3e-3)
    other = dataclasses.replace(run, run_dir=str(tmp_path / "other"), optimizer=optimizer)
    reporter = Recorder()
    train_command(other, reporter=reporter)
    assert "keeping its predictions" not in reporter.text
    (file,) = (tmp_path / "cache").glob("*/*.npz")
    file.write_bytes(file.read_bytes()[:100])
    again = dataclasses.replace(run, run_dir=str(tmp_path / "again"))
    with pytest.raises(Exception, match=r"npz: cannot be read .*delete it and repeat"):
        train_command(again, reporter=Recorder())


def test_teachers_that_do_not_fit_are_refused_with_every_reason(tmp_path):
    run = small_and_large(tmp_path)
    longer = dataclasses.replace(
        run,
        model=run.model.replace(vocab_size=400, max_position_embeddings=32),
        train=dataclasses.replace(run.train, sequence_length=32),
    )
    with pytest.raises(ConfigError) as error:
        train_command(longer, reporter=Recorder())
    assert "vocab_size: the teacher has 300, the run 400" in str(error.value)
    assert "the teacher has 16 positions" in str(error.value)


def test_settings_of_a_teacher_are_checked():
    problems = InheritConfig("", steps=200, temperature=0.0, top_k=80).problems(100, VOCAB)
    text = "\n".join(problems)
    for name in ("steps", "teacher", "temperature", "top_k"):
        assert f"inherit.{name}: found" in text
    assert "inherit.steps is 0" in InheritConfig("folder").problems(100, VOCAB)[0]
    assert not InheritConfig().problems(100, preset("bert-tiny").vocab_size)
