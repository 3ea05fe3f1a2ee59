"""From a config to its model."""

from b2b_jax.models.config import ModelConfig
from b2b_jax.models.layers import Compute, Place, anywhere
from b2b_jax.models.model import Model


def build_model(
    cfg: ModelConfig, *, compute: Compute | None = None, place: Place = anywhere
) -> Model:
    """Make the model of a config.

    Args:
        cfg: sizes and constants.
        compute: dtype, kernels and memory-for-time trades; the default is plain float32.
        place: holds activations in their shards; see `Model`.

    Raises:
        ConfigError: lists everything about the config that cannot be built.

    Example:
        >>> import jax
        >>> from b2b_jax.models import preset
        >>> model = build_model(preset("bert-tiny").replace(num_hidden_layers=1))
        >>> params = model.init(jax.random.key(0))
        >>> model.apply(params, jax.numpy.ones((2, 5), int)).shape
        (2, 5, 8192)
    """
    return Model(cfg.validate(), compute or Compute(), place)
