"""Held-out losses of a state, as columns of metrics.csv (effects: devices)."""

import numpy as np

from b2b_jax.data import Prepared, heldout_batches
from b2b_jax.train.programs import Programs
from b2b_jax.train.schedule import Phase
from b2b_jax.types import Params


def heldout_columns(
    programs: Programs, prepared: Prepared, params: Params, *, phase: Phase
) -> dict[str, float]:
    """Held-out loss of the model that a phase trains, and of every sub-model that it draws from.

    Masks and text are the same in every run, so that losses can be compared.

    Args:
        programs: of the run.
        prepared: its tokens.
        params: nested dict of arrays.
        phase: while depth still grows, only its layers are run.
    """
    config = programs.config
    depths = tuple(sub.depth for sub in phase.subs)
    evaluate = programs.eval_step(depths)
    total, count = np.zeros(len(depths)), 0.0
    batches = heldout_batches(
        prepared,
        sequence_length=config.train.sequence_length,
        layout="gpt2" if config.model.is_causal else "bert",
        batch_size=config.train.batch_size,
        max_batches=config.train.eval_batches,
    )
    for index, batch in enumerate(batches):
        rows = programs.put_whole(batch["input_ids"])
        loss = evaluate(params, rows, np.asarray(index, np.int32))
        total += np.asarray(loss.total, np.float64)
        count += float(loss.count[0])
    means = total / count
    columns = {"heldout_loss": float(means[-1]), "heldout_layers": float(phase.layers)}
    if len(depths) > 1:
        columns["heldout_submodel_mean"] = float(means.mean())
        columns |= {
            f"heldout_depth_{depth}": float(mean) for depth, mean in zip(depths, means, strict=True)
        }
    return columns
