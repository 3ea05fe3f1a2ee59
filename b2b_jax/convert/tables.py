"""Hugging Face's tensor names and layouts of the supported model classes, as data."""

from dataclasses import dataclass
from typing import Literal

from b2b_jax.models import ModelConfig
from b2b_jax.models.config import Family

Layout = Literal["copy", "linear", "conv1d"]

ARCHITECTURES: dict[str, tuple[Family, tuple[str, ...]]] = {
    "BertModel": ("bert", ("pooler",)),
    "BertForMaskedLM": ("bert", ("mlm",)),
    "BertForPreTraining": ("bert", ("mlm", "pooler", "nsp")),
    "BertForSequenceClassification": ("bert", ("pooler", "classifier")),
    "BertForQuestionAnswering": ("bert", ("qa",)),
    "RobertaModel": ("roberta", ("pooler",)),
    "RobertaForMaskedLM": ("roberta", ("mlm",)),
    "GPT2Model": ("gpt2", ()),
    "GPT2LMHeadModel": ("gpt2", ("lm",)),
}
"""Model class -> family and output heads."""

HEADLESS = {"bert": "BertModel", "roberta": "RobertaModel", "gpt2": "GPT2Model"}
"""The classes whose tensor names have no prefix, and whose pooler may be absent."""

PREFIX = {"bert": "bert.", "roberta": "roberta.", "gpt2": "transformer."}
"""What the other classes put in front of the names of the encoder."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a Hugging Face file and the parameters that it holds.

    Attributes:
        name: its name, with ``{layer}`` where it exists once per layer.
        paths: our parameters; several where they are fused along the last dimension.
        layout: "copy": same order of dimensions; "linear": ``[out, in]`` there, ``[in, out]`` here;
            "conv1d": ``[in, out]`` on both sides. Heads are split and merged by reshaping.
        head: the output head that it belongs to; "" for the encoder.
    """

    name: str
    paths: tuple[str, ...]
    layout: Layout = "copy"
    head: str = ""

    @property
    def is_stacked(self) -> bool:
        """Whether there is one such tensor per layer."""
        return "{layer}" in self.name


IGNORED = (
    r"embeddings\.position_ids",
    r"embeddings\.token_type_ids",
    r"h\.\d+\.attn\.bias",
    r"h\.\d+\.attn\.masked_bias",
)
"""Buffers of older versions, as regular expressions of names without prefix: no parameters."""

OLD_NAMES = (
    (r"(LayerNorm|layer_norm|ln_\w+)\.gamma$", r"\1.weight"),
    (r"(LayerNorm|layer_norm|ln_\w+)\.beta$", r"\1.bias"),
)
"""Names of older versions and what they are called now."""


def tensors(cfg: ModelConfig) -> tuple[Tensor, ...]:
    """Every tensor that the file of a model holds, in order, names without the encoder's prefix."""
    table = _gpt2() if cfg.is_causal else _encoder() + _heads(cfg.family)
    return tuple(entry for entry in table if not entry.head or entry.head in cfg.heads)


def ties(cfg: ModelConfig) -> dict[str, str]:
    """Tensors that are copies of others: name -> name of the original, without prefixes."""
    if "lm" in cfg.heads:
        return {"lm_head.weight": "wte.weight"}
    if "mlm" not in cfg.heads:
        return {}
    decoder, bias = (
        ("lm_head.decoder", "lm_head.bias")
        if cfg.family == "roberta"
        else ("cls.predictions.decoder", "cls.predictions.bias")
    )
    return {
        f"{decoder}.weight": "embeddings.word_embeddings.weight",
        f"{decoder}.bias": bias,
    }


def _pair(name: str, path: str, layout: Layout = "linear", head: str = "") -> list[Tensor]:
    return [
        Tensor(f"{name}.weight", (f"{path}/kernel",), layout, head),
        Tensor(f"{name}.bias", (f"{path}/bias",), "copy", head),
    ]


def _norm(name: str, path: str, head: str = "") -> list[Tensor]:
    return [
        Tensor(f"{name}.weight", (f"{path}/scale",), "copy", head),
        Tensor(f"{name}.bias", (f"{path}/bias",), "copy", head),
    ]


def _encoder() -> list[Tensor]:
    layer = "encoder.layer.{layer}"
    return [
        Tensor("embeddings.word_embeddings.weight", ("embeddings/token/embedding",)),
        Tensor("embeddings.position_embeddings.weight", ("embeddings/position/embedding",)),
        Tensor("embeddings.token_type_embeddings.weight", ("embeddings/token_type/embedding",)),
        *_norm("embeddings.LayerNorm", "embeddings/norm"),
        *_pair(f"{layer}.attention.self.query", "layers/attention/query"),
        *_pair(f"{layer}.attention.self.key", "layers/attention/key"),
        *_pair(f"{layer}.attention.self.value", "layers/attention/value"),
        *_pair(f"{layer}.attention.output.dense", "layers/attention/out"),
        *_norm(f"{layer}.attention.output.LayerNorm", "layers/attention_norm"),
        *_pair(f"{layer}.intermediate.dense", "layers/mlp/up"),
        *_pair(f"{layer}.output.dense", "layers/mlp/down"),
        *_norm(f"{layer}.output.LayerNorm", "layers/mlp_norm"),
        *_pair("pooler.dense", "pooler/dense", head="pooler"),
    ]


def _heads(family: Family) -> list[Tensor]:
    if family == "roberta":
        return [
            Tensor("lm_head.bias", ("mlm/decoder/bias",), head="mlm"),
            *_pair("lm_head.dense", "mlm/transform", head="mlm"),
            *_norm("lm_head.layer_norm", "mlm/norm", head="mlm"),
        ]
    return [
        Tensor("cls.predictions.bias", ("mlm/decoder/bias",), head="mlm"),
        *_pair("cls.predictions.transform.dense", "mlm/transform", head="mlm"),
        *_norm("cls.predictions.transform.LayerNorm", "mlm/norm", head="mlm"),
        *_pair("cls.seq_relationship", "nsp/classifier", head="nsp"),
        *_pair("classifier", "classifier", head="classifier"),
        *_pair("qa_outputs", "qa", head="qa"),
    ]


def _gpt2() -> list[Tensor]:
    layer = "h.{layer}"
    parts = tuple(f"layers/attention/{part}" for part in ("query", "key", "value"))
    return [
        Tensor("wte.weight", ("embeddings/token/embedding",)),
        Tensor("wpe.weight", ("embeddings/position/embedding",)),
        *_norm(f"{layer}.ln_1", "layers/attention_norm"),
        Tensor(f"{layer}.attn.c_attn.weight", tuple(f"{p}/kernel" for p in parts), "conv1d"),
        Tensor(f"{layer}.attn.c_attn.bias", tuple(f"{p}/bias" for p in parts)),
        *_pair(f"{layer}.attn.c_proj", "layers/attention/out", "conv1d"),
        *_norm(f"{layer}.ln_2", "layers/mlp_norm"),
        *_pair(f"{layer}.mlp.c_fc", "layers/mlp/up", "conv1d"),
        *_pair(f"{layer}.mlp.c_proj", "layers/mlp/down", "conv1d"),
        *_norm("ln_f", "final_norm"),
    ]
