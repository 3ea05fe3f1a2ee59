"""A model as pure functions over its parameters: embed, run layers, read out."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from b2b_jax.axes import AxisTable, shapes
from b2b_jax.models.attention_kernels import Spread, alone
from b2b_jax.models.config import ConfigError, ModelConfig
from b2b_jax.models.heads import Decoder, LinearHead, MlmHead, NspHead, Pooler
from b2b_jax.models.layers import (
    REMAT_POLICIES,
    RESIDUAL,
    Block,
    Compute,
    Embeddings,
    Place,
    anywhere,
    layer_norm,
)
from b2b_jax.tree import check_structure
from b2b_jax.types import Params, PRNGKey


@dataclass(frozen=True)
class Model:
    """A model whose layers are stacked along a leading axis of every layer parameter.

    Holds no arrays: every method is a pure function of the parameters that it is given.

    Attributes:
        cfg: sizes and constants.
        compute: dtype, kernels and memory-for-time trades.
        place: holds activations in their shards, by the names of their axes ("batch", "tokens",
            "embed", "heads", "head_dim", "mlp", "vocab").
        spread: gets kernels that the compiler cannot share out to the devices, by the same names.
    """

    cfg: ModelConfig
    compute: Compute = field(default_factory=Compute)
    place: Place = anywhere
    spread: Spread = alone

    @cached_property
    def axes(self) -> AxisTable:
        """Parameter path -> named axes."""
        return self.cfg.axis_table()

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter path -> shape."""
        return shapes(self.axes, self.cfg.axis_sizes())

    def init(self, key: PRNGKey) -> Params:
        """Draw fresh float32 parameters.

        Raises:
            StructureError: if modules and axis table disagree (a defect of this package).
        """
        params = jax.jit(self._init)(key)
        check_structure(params, self.shapes, where=f"a fresh {self.cfg.family} model")
        return params

    def _init(self, key: PRNGKey) -> Params:
        # Shapes do not depend on the kernel, and not every kernel takes a single token.
        cfg, compute = self.cfg, dataclasses.replace(self.compute, attention="xla")
        embed_key, layer_key, head_key = jax.random.split(key, 3)
        ids = jnp.zeros((1, 1), jnp.int32)
        x_BTD = jnp.zeros((1, 1, cfg.hidden_size), jnp.dtype(compute.dtype))

        def init_block(block_key: PRNGKey) -> Any:
            return Block(cfg, compute).init(block_key, x_BTD, None, True)["params"]

        params = {
            "embeddings": Embeddings(cfg, compute).init(embed_key, ids, None, True)["params"],
            "layers": jax.vmap(init_block)(jax.random.split(layer_key, cfg.num_hidden_layers)),
        }
        if cfg.is_causal:
            params["final_norm"] = layer_norm(cfg, compute, "final_norm").init(head_key, x_BTD)[
                "params"
            ]
        mlm_key, pooler_key, nsp_key, readout_key = jax.random.split(head_key, 4)
        if "mlm" in cfg.heads:
            params["mlm"] = {
                **MlmHead(cfg, compute).init(mlm_key, x_BTD)["params"],
                "decoder": {"bias": jnp.zeros(cfg.vocab_size)},
            }
        if "pooler" in cfg.heads:
            params["pooler"] = Pooler(cfg, compute).init(pooler_key, x_BTD)["params"]
        if "nsp" in cfg.heads:
            params["nsp"] = NspHead(cfg).init(nsp_key, x_BTD[:, 0])["params"]
        for name, outputs in (("classifier", cfg.num_labels), ("qa", 2)):
            if name in cfg.heads:
                params[name] = LinearHead(cfg, outputs).init(readout_key, x_BTD)["params"]
        return params

    def embed(
        self,
        params: Mapping[str, Any],
        input_ids: Int[Array, "B T"],
        *,
        token_type_ids: Int[Array, "B T"] | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> Float[Array, "B T D"]:
        """Input of the first layer. Needs ``params["embeddings"]`` only; no key, no dropout."""
        deterministic = dropout_key is None
        x_BTD: Any = Embeddings(self.cfg, self.compute).apply(
            {"params": params["embeddings"]},
            input_ids,
            token_type_ids,
            deterministic,
            rngs=None if deterministic else {"dropout": dropout_key},
        )
        return self.place(x_BTD, RESIDUAL)

    def run_layer(
        self,
        layer: Mapping[str, Any],
        x_BTD: Float[Array, "B T D"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> Float[Array, "B T D"]:
        """Run one layer, whose parameters have no leading axis. No key, no dropout."""
        deterministic = dropout_key is None
        out_BTD: Any = Block(self.cfg, self.compute, self.place, self.spread).apply(
            {"params": layer},
            x_BTD,
            mask,
            deterministic,
            rngs=None if deterministic else {"dropout": dropout_key},
        )
        return self.place(out_BTD, RESIDUAL)

    def run_layers(
        self,
        layers: Mapping[str, Any],
        x_BTD: Float[Array, "B T D"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        dropout_keys: PRNGKey | None = None,
    ) -> Float[Array, "B T D"]:
        """Run stacked layers from the bottom up with one scan.

        Args:
            layers: parameters with a leading ``layers`` axis of any length, also none.
            x_BTD: input of the lowest of them.
            mask: True where a token may be attended to.
            dropout_keys: one key per layer; none, no dropout.
        """

        def one_layer(x: Array, inputs: tuple[Any, PRNGKey | None]) -> tuple[Any, None]:
            layer, key = inputs
            return self.run_layer(layer, x, mask=mask, dropout_key=key), None

        if self.compute.remat != "none":
            policy = REMAT_POLICIES[self.compute.remat]
            one_layer = jax.checkpoint(one_layer, policy=policy, prevent_cse=False)
        out_BTD, _ = jax.lax.scan(
            one_layer, x_BTD, (layers, dropout_keys), unroll=self.compute.scan_unroll
        )
        return out_BTD

    def logits(self, params: Mapping[str, Any], x: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Vocabulary logits, float32, of the last layer's output at any set of positions.

        Needs the head and ``params["embeddings"]["token"]["embedding"]``, the tied decoder.
        """
        logits = self.decoder(params).logits(self.before_decoder(params, x))
        return self.place(logits, ("batch", *[None] * (x.ndim - 2), "vocab"))

    def before_decoder(
        self, params: Mapping[str, Any], x: Float[Array, "... D"]
    ) -> Float[Array, "... D"]:
        """What the decoder reads of the last layer's output at any set of positions."""
        cfg = self.cfg
        if not {"lm", "mlm"} & set(cfg.heads):
            raise ConfigError(
                f"this {cfg.family} model has no language-model head (heads: "
                f"{list(cfg.heads)}); its outputs are `hidden`, and `pooled` with a pooler"
            )
        if cfg.is_causal:
            return self.final_norm(params, x)
        return MlmHead(cfg, self.compute).apply(  # pyright: ignore[reportReturnType]
            {"params": params["mlm"]}, x
        )

    def decoder(self, params: Mapping[str, Any]) -> Decoder:
        """The tied decoder."""
        bias = None if self.cfg.is_causal else params["mlm"]["decoder"]["bias"]
        return Decoder(params["embeddings"]["token"]["embedding"], bias)

    def final_norm(
        self, params: Mapping[str, Any], x: Float[Array, "... D"]
    ) -> Float[Array, "... D"]:
        """The norm after the last layer of a pre-norm model; nothing in a post-norm model."""
        if not self.cfg.is_causal:
            return x
        norm = layer_norm(self.cfg, self.compute, "final_norm")
        return norm.apply({"params": params["final_norm"]}, x)  # pyright: ignore[reportReturnType]

    def pooled(
        self, params: Mapping[str, Any], x_BTD: Float[Array, "B T D"]
    ) -> Float[Array, "B D"]:
        """Pooled first token of the last layer's output (BERT with a pooler)."""
        return Pooler(self.cfg, self.compute).apply(  # pyright: ignore[reportReturnType]
            {"params": params["pooler"]}, x_BTD
        )

    def next_sentence_logits(
        self, params: Mapping[str, Any], x_BTD: Float[Array, "B T D"]
    ) -> Float[Array, "B 2"]:
        """Is-next / is-random logits of the last layer's output (BERT with an NSP head)."""
        return NspHead(self.cfg).apply(  # pyright: ignore[reportReturnType]
            {"params": params["nsp"]}, self.pooled(params, x_BTD)
        )

    def class_logits(
        self, params: Mapping[str, Any], x_BTD: Float[Array, "B T D"]
    ) -> Float[Array, "B C"]:
        """Sequence classification logits of the last layer's output (BERT with a classifier)."""
        return LinearHead(self.cfg, self.cfg.num_labels).apply(  # pyright: ignore[reportReturnType]
            {"params": params["classifier"]}, self.pooled(params, x_BTD)
        )

    def span_logits(
        self, params: Mapping[str, Any], x_BTD: Float[Array, "B T D"]
    ) -> Float[Array, "B T 2"]:
        """Start and end logits of every token (BERT with a question-answering head)."""
        return LinearHead(self.cfg, 2).apply(  # pyright: ignore[reportReturnType]
            {"params": params["qa"]}, x_BTD
        )

    def outputs(
        self, params: Mapping[str, Any], x_BTD: Float[Array, "B T D"]
    ) -> dict[str, Float[Array, "..."]]:
        """Every output that the heads give of the last layer's output, by name.

        Without a head "hidden" (after `final_norm`), and "pooled" if there is a pooler.
        """
        heads, found = self.cfg.heads, {}
        if {"mlm", "lm"} & set(heads):
            found["logits"] = self.logits(params, x_BTD)
        if "nsp" in heads:
            found["nsp"] = self.next_sentence_logits(params, x_BTD)
        if "classifier" in heads:
            found["class"] = self.class_logits(params, x_BTD)
        if "qa" in heads:
            found["spans"] = self.span_logits(params, x_BTD)
        if not found:
            found["hidden"] = self.final_norm(params, x_BTD)
            if "pooler" in heads:
                found["pooled"] = self.pooled(params, x_BTD)
        return found

    def hidden(
        self,
        params: Mapping[str, Any],
        input_ids: Int[Array | np.ndarray, "B T"],
        attention_mask: Int[Array | np.ndarray, "B T"] | None = None,
        token_type_ids: Int[Array | np.ndarray, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Output of the last layer, before `final_norm`, without dropout."""
        mask = None if attention_mask is None else jnp.asarray(attention_mask).astype(bool)
        types = None if token_type_ids is None else jnp.asarray(token_type_ids)
        x_BTD = self.embed(params, jnp.asarray(input_ids), token_type_ids=types)
        return self.run_layers(params["layers"], x_BTD, mask=mask)

    def apply(
        self,
        params: Mapping[str, Any],
        input_ids: Int[Array | np.ndarray, "B T"],
        attention_mask: Int[Array | np.ndarray, "B T"] | None = None,
        token_type_ids: Int[Array | np.ndarray, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits at every position, float32, without dropout.

        Args:
            params: what `init`, growth or a checkpoint gave.
            input_ids: token ids.
            attention_mask: 1 where a token may be attended to; all of them by default.
            token_type_ids: segment ids (BERT); zeros by default.
        """
        return self.logits(params, self.hidden(params, input_ids, attention_mask, token_type_ids))
