"""What a growth costs, told step by step: width, depth, norms (effects: prints)."""

from collections.abc import Mapping
from typing import Any

import jax

from b2b_jax.commands.sample import RANDOM_TOKENS, Sample
from b2b_jax.evaluate import VerifyReport, calibrate, verify
from b2b_jax.growth import GrowthPlan, NormCalibration, grow, plan_growth
from b2b_jax.growth.rates import step_gain
from b2b_jax.models import ConfigError, ModelConfig
from b2b_jax.train.writers import Reporter

grow_jitted = jax.jit(grow, static_argnums=1)


def report_costs(
    source: tuple[ModelConfig, Mapping[str, Any]],
    grown: tuple[ModelConfig, Mapping[str, Any]],
    sample: Sample,
    *,
    plan: GrowthPlan | None,
    reporter: Reporter,
) -> VerifyReport:
    """Compare a grown model with its source, and where it was widened and deepened, after each.

    Args:
        source: config and parameters of the smaller model.
        grown: those of the larger one.
        sample: what to compare them on.
        plan: what grew one into the other, if that is known.
        reporter: where to print.
    """
    if plan is not None and _has_both_steps(plan):
        wide = ModelConfig.from_dict(plan.target).replace(
            num_hidden_layers=plan.source_sizes["layers"]
        )
        step = plan.width_step(wide.to_dict())
        report = verify(*source, wide, grow_jitted(source[1], step), sample.batch, plan=step)
        reporter.note(f"{sample.name}, width alone: {report}")
    report = verify(*source, *grown, sample.batch, plan=plan)
    which = ", width and depth" if plan is not None and _has_both_steps(plan) else ""
    reporter.note(f"{sample.name}{which}: {report}")
    return report


def _has_both_steps(plan: GrowthPlan) -> bool:
    if plan.method not in ("fpi", "aki") or "layers" not in plan.maps:
        return False
    wider = any(not grown.is_identity for name, grown in plan.maps.items() if name != "layers")
    return wider and not plan.maps["layers"].is_identity


def calibrated(
    source: tuple[ModelConfig, Mapping[str, Any]],
    hidden_size: int,
    sample: Sample,
    *,
    reporter: Reporter,
) -> NormCalibration:
    """Calibrate norms on half of a sample; on the other half, compare what the width costs.

    Args:
        source: config and parameters of the model to grow.
        hidden_size: width to grow to.
        sample: text.
        reporter: where to print the loss gap of three ways to choose what is repeated.
    """
    cfg, params = source
    if sample.name == RANDOM_TOKENS:
        raise ConfigError(
            "--norm calibrated needs text, and the source has no held-out text at hand: add "
            "--text FILE"
        )
    first, second = sample.halves()
    reporter.note(f"calibrating the norms for width {hidden_size} on half of {sample.name}")
    found = calibrate(cfg, params, first.batch, hidden_size=hidden_size)
    heads = hidden_size // cfg.head_dim
    target = cfg.replace(hidden_size=hidden_size, num_attention_heads=heads)
    reporter.note("the other half, of the model grown to this width alone (fpi):")
    for name, plan in (
        ("cyclic", plan_growth(cfg, target, method="fpi")),
        ("uniform", plan_growth(cfg, target, method="fpi", mapping="uniform")),
        ("calibrated", plan_growth(cfg, target, method="fpi", norm=found)),
    ):
        report = verify(cfg, params, target, grow_jitted(params, plan), second.batch, plan=plan)
        reporter.note(f"  {name:<10}  {report}")
    return found


def report_step_gain(plan: GrowthPlan, *, reporter: Reporter) -> None:
    """Say how much farther the grown function moves per step of Adam, and what to do about it."""
    gain = step_gain(plan)
    if gain > 1.01:
        reporter.note(
            f"learning rate: at an equal rate Adam moves the grown function about {gain:.1f} times "
            f"as far per step as the source's; start from about 1/{gain:.1f} of the source's peak "
            "rate, or train with --optimizer.rate_scale copies"
        )
