"""From a config to its model."""

from b2b_jax.models.config import ModelConfig
from b2b_jax.models.layers import Compute
from b2b_jax.models.model import Model


def build_model(cfg: ModelConfig, *, compute: Compute | None = None) -> Model:
    """Make the model of a config.

    Args:
        cfg: sizes and constants.
        compute: dtype, kernels and memory-for-time trades; the default is plain float32.

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
    return Model(cfg.validate(), compute or Compute())
