"""Two growths in a row as one."""

import dataclasses

from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.maps import IndexMap, compose
from b2b_jax.growth.plan import GrowthPlan


def compose_plans(first: GrowthPlan, second: GrowthPlan) -> GrowthPlan:
    """The plan that grows at once what ``first`` and then ``second`` grow in two steps.

    Copies of copies keep the product of their shares, so that the parameters are the same to the
    rounding of one multiplication, and bit for bit where copy counts are powers of two.

    Args:
        first: an "fpi" plan from S to M.
        second: an "fpi" plan from M to T.

    Raises:
        GrowthError: if they do not follow each other, or one of them does more than copy: AKI,
            fresh parameters, noise, padded or calibrated norms, means. Such growths take two steps.

    Example:
        >>> from b2b_jax.growth import plan_growth
        >>> from b2b_jax.models import preset
        >>> small = preset("bert-tiny")
        >>> middle = small.replace(intermediate_size=1024)
        >>> large = middle.replace(num_hidden_layers=6)
        >>> steps = [(small, middle), (middle, large)]
        >>> plans = [plan_growth(*ends, method="fpi") for ends in steps]
        >>> compose_plans(*plans) == plan_growth(small, large, method="fpi")
        True
    """
    problems = []
    for name, plan in (("first", first), ("second", second)):
        if plan.method != "fpi":
            problems.append(f"the {name} is an {plan.method!r} plan, expected 'fpi'")
        if plan.noise:
            problems.append(f"the {name} adds noise")
        if plan.norm != "plain":
            problems.append(f"the {name} treats norms by {plan.norm!r}")
        if not all(grown.is_copy.all() for grown in plan.maps.values()):
            problems.append(f"the {name} makes entries that are no copies")
    if _names(first) != _names(second) or first.target_sizes != second.source_sizes:
        problems.append(
            f"the first ends at {first.target_sizes}, the second starts from {second.source_sizes}"
        )
    silences = [plan for plan in (first, second) if plan.silent_layers.any()]
    depths = [plan for plan in (first, second) if not _keeps(plan, "layers")]
    if silences and silences != depths:
        problems.append("only one of them silences the layers that it adds")
    if problems:
        raise GrowthError("These plans do not compose:\n  " + "\n  ".join(problems))
    maps = {}
    for name, grown in first.maps.items():
        both = compose(grown, second.maps[name])
        # Layers are a list, which nothing sums over.
        maps[name] = IndexMap(both.indices, both.source_size) if name == "layers" else both
    shaping = second if not _keeps(second, "layers") else first
    return dataclasses.replace(
        second,
        source=first.source,
        source_sizes=first.source_sizes,
        maps=maps,
        depth=shaping.depth if len(depths) <= 1 or silences else "explicit",
        split="equal" if all(grown.shares is None for grown in maps.values()) else "unequal",
    )


def _names(plan: GrowthPlan) -> dict[str, str]:
    """The table without the deviations of fresh parameters, which may depend on the depth."""
    return {path: str(axes) for path, axes in plan.axes.items()}


def _keeps(plan: GrowthPlan, name: str) -> bool:
    return name not in plan.maps or plan.maps[name].is_identity
