"""Model configurations: frozen, validated, with Hugging Face's field names."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from b2b_jax.axes import AxisTable
from b2b_jax.models import tables

Family = Literal["bert", "roberta", "gpt2"]
Activation = Literal["gelu", "gelu_new", "relu"]
HEADS: dict[Family, tuple[str, ...]] = {
    "bert": ("mlm", "pooler", "nsp", "classifier", "qa"),
    "roberta": ("mlm", "pooler"),
    "gpt2": ("lm",),
}
"""The output heads of every family, in the order in which configs list them."""


class ConfigError(ValueError):
    """A configuration that cannot be built; the message lists every reason."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a BERT, RoBERTa or GPT-2; everything that parameters depend on."""

    family: Family = "bert"
    """"bert", "roberta": post-norm encoders, the latter with other positions and head; "gpt2":
    pre-norm causal decoder."""
    vocab_size: int = 30522
    """Rows of the token table."""
    hidden_size: int = 768
    """Width of the residual stream."""
    num_hidden_layers: int = 12
    """Number of transformer layers."""
    num_attention_heads: int = 12
    """Heads per layer; must divide hidden_size."""
    intermediate_size: int = 3072
    """Neurons of each feed-forward block."""
    max_position_embeddings: int = 512
    """Rows of the position table: the longest sequence, plus pad_token_id + 1 in RoBERTa."""
    type_vocab_size: int = 2
    """Segment types (BERT, RoBERTa)."""
    hidden_act: Activation = "gelu"
    """"gelu" is the exact one, "gelu_new" the tanh approximation."""
    layer_norm_eps: float = 1e-12
    """Added to the variance inside every LayerNorm."""
    hidden_dropout_prob: float = 0.1
    """Dropout after the embeddings and after every block's output projection."""
    attention_probs_dropout_prob: float = 0.1
    """Dropout of attention probabilities."""
    initializer_range: float = 0.02
    """Standard deviation of fresh kernels and embeddings, before truncation at two of them."""
    heads: tuple[str, ...] = ("mlm",)
    """Output heads: "mlm", "pooler", "nsp" and "classifier" (need "pooler"), "qa" for bert; "mlm",
    "pooler" for roberta; "lm" for gpt2."""
    num_labels: int = 2
    """Classes of the "classifier" head."""
    pad_token_id: int = 0
    """Token that fills sequences up; RoBERTa's positions start after it."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def is_causal(self) -> bool:
        """Whether a token sees earlier tokens only."""
        return self.family == "gpt2"

    @property
    def position_offset(self) -> int:
        """Row of the position table that the first token of a sequence reads."""
        return self.pad_token_id + 1 if self.family == "roberta" else 0

    @property
    def norm_position(self) -> Literal["pre", "post"]:
        """Whether a block normalises its input or the sum of input and output."""
        return "pre" if self.is_causal else "post"

    def replace(self, **changes: Any) -> "ModelConfig":
        """A copy with some fields changed.

        Example:
            >>> ModelConfig().replace(hidden_size=1024, num_attention_heads=16).head_dim
            64
        """
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {**dataclasses.asdict(self), "heads": list(self.heads)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ModelConfig":
        """Rebuild a config from `to_dict`'s value."""
        return cls(**{**fields, "heads": tuple(fields["heads"])})

    def invariants(self) -> dict[str, Any]:
        """Fields that growth cannot change, because the function would change with them."""
        names = ("family", "hidden_act", "layer_norm_eps", "heads", "position_offset")
        if "classifier" in self.heads:
            names += ("num_labels",)
        return {name: getattr(self, name) for name in names}

    def axis_sizes(self) -> dict[str, int]:
        """Size of every axis that the parameters name.

        Raises:
            ConfigError: lists everything about the config that cannot be built.
        """
        self.validate()
        sizes = {
            "layers": self.num_hidden_layers,
            "embed": self.hidden_size,
            "heads": self.num_attention_heads,
            "head_dim": self.head_dim,
            "mlp": self.intermediate_size,
            "vocab": self.vocab_size,
            "positions": self.max_position_embeddings,
        }
        if not self.is_causal:
            sizes |= {
                "types": self.type_vocab_size,
                "nsp_classes": 2,
                "labels": self.num_labels,
                "span_ends": 2,
            }
        return sizes

    def axis_table(self) -> AxisTable:
        """Parameter path -> named axes, for growth, sharding, decay and fresh initialisation."""
        std = self.initializer_range
        if self.is_causal:
            return tables.gpt2(std, self.heads, num_layers=self.num_hidden_layers)
        return tables.bert(std, self.heads)

    def problems(self) -> list[str]:
        """Every reason why no model can be built: field, value found, value expected."""
        found = []
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
            "num_labels",
        ):
            if getattr(self, name) < 1:
                found.append(f"{name}: found {getattr(self, name)}, expected at least 1")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name}: found {getattr(self, name)}, expected 0 <= p < 1")
        for name in ("layer_norm_eps", "initializer_range"):
            if not getattr(self, name) > 0:
                found.append(f"{name}: found {getattr(self, name)}, expected more than 0")
        if self.hidden_act not in get_args(Activation):
            found.append(
                f"hidden_act: found {self.hidden_act!r}, expected one of {get_args(Activation)}"
            )
        if self.family not in get_args(Family):
            found.append(f"family: found {self.family!r}, expected one of {get_args(Family)}")
        if self.num_attention_heads >= 1 and self.hidden_size % self.num_attention_heads:
            fits = [n for n in range(1, self.hidden_size + 1) if self.hidden_size % n == 0]
            near = sorted(fits, key=lambda n: abs(n - self.num_attention_heads))[:4]
            found.append(
                f"num_attention_heads: found {self.num_attention_heads}, which does not divide "
                f"hidden_size ({self.hidden_size}); nearest that do: {sorted(near)}"
            )
        valid = HEADS.get(self.family, ())
        for head in self.heads:
            if head not in valid:
                found.append(f"heads: found {head!r}, expected some of {valid} for {self.family}")
        for head in ("nsp", "classifier"):
            if head in self.heads and "pooler" not in self.heads:
                found.append(f'heads: "{head}" reads the pooled output; add "pooler"')
        if not 0 <= self.pad_token_id < max(self.vocab_size, 1):
            found.append(
                f"pad_token_id: found {self.pad_token_id}, expected 0 to {self.vocab_size - 1}"
            )
        elif self.max_position_embeddings <= self.position_offset:
            found.append(
                f"max_position_embeddings: found {self.max_position_embeddings}, expected more "
                f"than {self.position_offset}, where RoBERTa's positions start"
            )
        return found

    def validate(self) -> "ModelConfig":
        """Return the config itself, or raise one `ConfigError` that lists all `problems`."""
        found = self.problems()
        if found:
            raise ConfigError("This model cannot be built:\n  " + "\n  ".join(found))
        return self


def _bert(layers: int, width: int, head_dim: int = 64, **fields: Any) -> ModelConfig:
    return ModelConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // head_dim,
        intermediate_size=4 * width,
        **fields,
    )


def _gpt2(layers: int, width: int, head_dim: int = 64, **fields: Any) -> ModelConfig:
    defaults: dict[str, Any] = {"vocab_size": 50257, "max_position_embeddings": 1024}
    return _bert(
        layers,
        width,
        head_dim,
        **(defaults | fields),
        family="gpt2",
        type_vocab_size=1,
        hidden_act="gelu_new",
        layer_norm_eps=1e-5,
        heads=("lm",),
    )


PRESETS: dict[str, ModelConfig] = {
    "bert-base": _bert(12, 768),
    "bert-large": _bert(24, 1024),
    "bert-12x512": _bert(12, 512),
    "bert-12x384": _bert(12, 384),
    "bert-6x512": _bert(6, 512),
    "bert-tiny": _bert(4, 128, 32, vocab_size=8192, max_position_embeddings=128),
    "roberta-base": _bert(
        12,
        768,
        family="roberta",
        vocab_size=50265,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    ),
    "gpt2": _gpt2(12, 768),
    "gpt2-12x512": _gpt2(12, 512),
    "gpt2-tiny": _gpt2(4, 128, 32, vocab_size=8192, max_position_embeddings=128),
}
"""Named configurations: published models, the sources of bert2BERT, and tiny ones."""


def preset(name: str) -> ModelConfig:
    """Look up a named configuration.

    Raises:
        ConfigError: if there is no preset of that name; lists those there are.

    Example:
        >>> preset("bert-base").hidden_size
        768
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
