"""First parameters of a comparison's runs: random, or grown from a source (effects: files)."""

import tempfile
from pathlib import Path

from b2b_jax.commands.compare_reporter import CompareReporter
from b2b_jax.commands.compare_runs import is_trained
from b2b_jax.commands.folders import write_yaml
from b2b_jax.commands.grow import grow_command
from b2b_jax.commands.request import GrowRequest
from b2b_jax.compare import Method
from b2b_jax.convert import is_hf_folder
from b2b_jax.convert.writing import new_folder
from b2b_jax.growth.fresh import fresh_params
from b2b_jax.models import ModelConfig, build_model
from b2b_jax.train.saved import save_model


def write_start(
    folder: str,
    *,
    target: ModelConfig,
    method: Method,
    source: str,
    seed: int,
    reporter: CompareReporter,
) -> bool:
    """Write a model to start from, whole or not at all, unless it is there.

    Args:
        folder: where to.
        target: its config.
        method: how its parameters are made.
        source: folder of the small model.
        seed: of fresh parameters.
        reporter: what the growth says goes to a log next to the folder.

    Returns:
        whether it was grown.
    """
    grown = method.growth != "random"
    if is_trained(folder):
        return grown
    if not grown:
        model = build_model(target)
        params = fresh_params(model.axes, model.shapes, seed=seed)
        with new_folder(Path(folder)) as temporary:
            save_model(temporary, target, params, meta={"lineage": {"method": "random"}})
        return grown
    with tempfile.TemporaryDirectory() as scratch:
        to = Path(scratch) / "target.yaml"
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in target.to_dict().items()}
        write_yaml(to, {"model": values})
        request = GrowRequest(
            source,
            folder,
            to=str(to),
            method=method.growth,
            mapping=method.mapping,
            depth=method.depth,
            seed=seed,
            heads=target.heads if is_hf_folder(source) else None,
        )
        grow_command(request, reporter=reporter.quiet(Path(f"{folder}.log")))
    return grown
