"""Slow references in float64 numpy, written from the paper: Eq. 1 to 16 with plain loops.

They share with the package only the index maps (data) and the parameter paths. Which map belongs to
which side of which matrix is written down here a second time, from the constraints of section
3.3.1, and not read from the axis tables.
"""

import numpy as np
from scipy.special import erf

from b2b_jax.tree import flatten, unflatten


def expand_in(w, g_in):
    """Eq. 7 (and 15): rows by g_in, divided by how often g_in takes their value."""
    expanded = np.empty((len(g_in), w.shape[1]))
    for i in range(len(g_in)):
        count = 0
        for other in range(len(g_in)):
            count += int(g_in[other] == g_in[i])
        expanded[i] = w[g_in[i]] / count
    return expanded


def expand_out(w, g_out):
    """Eq. 8."""
    expanded = np.empty((w.shape[0], len(g_out)))
    for j in range(len(g_out)):
        expanded[:, j] = w[:, g_out[j]]
    return expanded


def expand_both(w, g_in, g_out):
    return expand_out(expand_in(w, g_in), g_out)


def advanced(w, upper, g_in, g_out):
    """Eq. 16: own columns first, then columns of the upper layer's in-expanded matrix."""
    own, above = expand_in(w, g_in), expand_in(upper, g_in)
    result = np.empty((len(g_in), len(g_out)))
    for j in range(len(g_out)):
        result[:, j] = own[:, j] if j < w.shape[1] else above[:, g_out[j]]
    return result


def advanced_rows(w, upper, g_in, g_out):
    """Scope "hidden": the rows that read new heads and neurons are the upper layer's, too."""
    own, above = expand_in(w, g_in), expand_in(upper, g_in)
    rows = np.stack([own[i] if i < w.shape[0] else above[i] for i in range(len(g_in))])
    return expand_out(rows, g_out)


def whole_heads(heads, head_dim):
    """Eq. 11: the map of single columns that copies heads whole."""
    return [head * head_dim + column for head in heads for column in range(head_dim)]


def widened(params, plan):
    """The source's layers at the target's width by Eq. 7 to 13, or 15 and 16 for AKI."""
    flat = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(params).items()}
    embed = plan.maps["embed"].indices.tolist()
    neurons = plan.maps["mlp"].indices.tolist()
    head_dim = plan.source_sizes["head_dim"]
    columns = whole_heads(plan.maps["heads"].indices.tolist(), head_dim)
    layers, target_heads = plan.source_sizes["layers"], plan.target_sizes["heads"]
    aki, hidden_only = plan.method == "aki", plan.aki_scope == "hidden"
    source_width = plan.source_sizes["embed"]

    def norm(path):
        for name in ("scale", "bias"):
            leaf = flat[f"{path}/{name}"]
            result[f"{path}/{name}"] = np.stack([leaf[..., j] for j in embed], axis=-1)

    def head_norm(path):
        norm(path)
        for name in ("scale", "bias"):
            for j, source in enumerate(embed):
                result[f"{path}/{name}"][j] /= embed.count(source)

    result = {}
    for name in ("token", "position", "token_type"):
        if f"embeddings/{name}/embedding" in flat:
            path = f"embeddings/{name}/embedding"
            result[path] = expand_out(flat[path], embed)
    if "embeddings/norm/scale" in flat:
        norm("embeddings/norm")
    norm("layers/attention_norm")
    norm("layers/mlp_norm")
    if "final_norm/scale" in flat:
        head_norm("final_norm")
    if "mlm/norm/scale" in flat:
        path = "mlm/transform"
        result[f"{path}/kernel"] = expand_both(flat[f"{path}/kernel"], embed, embed)
        result[f"{path}/bias"] = flat[f"{path}/bias"][embed]
        head_norm("mlm/norm")
        result["mlm/decoder/bias"] = flat["mlm/decoder/bias"]
    if "pooler/dense/kernel" in flat:
        path = "pooler/dense"
        result[f"{path}/kernel"] = expand_both(flat[f"{path}/kernel"], embed, embed)
        result[f"{path}/bias"] = flat[f"{path}/bias"][embed]
    if "nsp/classifier/kernel" in flat:
        path = "nsp/classifier"
        result[f"{path}/kernel"] = expand_in(flat[f"{path}/kernel"], embed)
        result[f"{path}/bias"] = flat[f"{path}/bias"]

    def matrices(path, g_in, g_out, flat_in, flat_out, *, reads_hidden):
        """Every layer of one matrix and its bias, as [in, out]."""
        kernels = flat[f"{path}/kernel"].reshape(layers, flat_in, flat_out)
        biases = flat[f"{path}/bias"].reshape(layers, flat_out)
        new_kernels, new_biases = [], []
        for layer in range(layers):
            has_upper = layer + 1 < layers
            kernel, bias = kernels[layer], biases[layer]
            new_kernel = expand_both(kernel, g_in, g_out)
            new_bias = np.array([bias[j] for j in g_out])
            if aki and has_upper:
                upper_kernel, upper_bias = kernels[layer + 1], biases[layer + 1]
                if not (hidden_only and reads_hidden):
                    new_kernel = advanced(kernel, upper_kernel, g_in, g_out)
                    for j in range(flat_out, len(g_out)):
                        new_bias[j] = upper_bias[g_out[j]]
                else:
                    new_kernel = advanced_rows(kernel, upper_kernel, g_in, g_out)
            new_kernels.append(new_kernel)
            new_biases.append(new_bias)
        return np.stack(new_kernels), np.stack(new_biases)

    hidden_columns = plan.source_sizes["heads"] * head_dim
    for name in ("query", "key", "value"):
        path = f"layers/attention/{name}"
        kernel, bias = matrices(
            path, embed, columns, source_width, hidden_columns, reads_hidden=False
        )
        result[f"{path}/kernel"] = kernel.reshape(layers, -1, target_heads, head_dim)
        result[f"{path}/bias"] = bias.reshape(layers, target_heads, head_dim)
    path = "layers/attention/out"
    kernel, bias = matrices(path, columns, embed, hidden_columns, source_width, reads_hidden=True)
    result[f"{path}/kernel"] = kernel.reshape(layers, target_heads, head_dim, -1)
    result[f"{path}/bias"] = bias
    size = plan.source_sizes["mlp"]
    for name, sides, widths in (
        ("up", (embed, neurons), (source_width, size)),
        ("down", (neurons, embed), (size, source_width)),
    ):
        path = f"layers/mlp/{name}"
        result[f"{path}/kernel"], result[f"{path}/bias"] = matrices(
            path, *sides, *widths, reads_hidden=name == "down"
        )
    return unflatten(result)


def algorithm_1(source_layers, target_layers):
    """Layer order of Algorithm 1, by literally stacking lists."""
    first = list(range(source_layers))
    k = target_layers // source_layers
    model = list(first)
    for _ in range(2, k + 1):
        model = model + first
    missing = target_layers - source_layers * k
    return model + first[len(first) - missing :]


def stacked(params, order):
    """The layers of a widened model in a given order."""
    flat = flatten(params)
    return unflatten(
        {
            path: np.stack([leaf[i] for i in order]) if path.startswith("layers/") else leaf
            for path, leaf in flat.items()
        }
    )


def grown(params, plan):
    """The paper's initialisation of the whole target model, Algorithm 1."""
    order = algorithm_1(plan.source_sizes["layers"], plan.target_sizes["layers"])
    return stacked(widened(params, plan), order)


def forward(cfg, params, input_ids, attention_mask=None, token_type_ids=None):
    """Logits, pooled vector and NSP logits of a model, one layer after the other (Eq. 1 to 4)."""
    p = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(params).items()}
    input_ids = np.asarray(input_ids)
    tokens = input_ids.shape[1]
    bert = cfg.family == "bert"

    def norm(x, path, layer=...):
        mean = x.mean(-1, keepdims=True)
        deviation = np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + cfg.layer_norm_eps)
        scale, bias = p[f"{path}/scale"][layer], p[f"{path}/bias"][layer]
        return (x - mean) / deviation * scale + bias

    def act(x):
        if cfg.hidden_act == "gelu":
            return 0.5 * x * (1 + erf(x / np.sqrt(2)))
        if cfg.hidden_act == "gelu_new":
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return np.maximum(x, 0)

    def attention(x, layer):
        allowed = np.ones((1, 1, tokens, tokens), bool)
        if attention_mask is not None:
            allowed = allowed & (np.asarray(attention_mask)[:, None, None, :] > 0)
        if not bert:
            allowed = allowed & np.tril(np.ones((tokens, tokens), bool))
        q, k, v = (
            np.einsum("btd,dhk->bthk", x, p[f"layers/attention/{name}/kernel"][layer])
            + p[f"layers/attention/{name}/bias"][layer]
            for name in ("query", "key", "value")
        )
        scores = np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(cfg.head_dim)
        scores = np.where(allowed, scores, -1e30)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("bhts,bshk->bthk", weights, v)
        out = np.einsum("bthk,hkd->btd", mixed, p["layers/attention/out/kernel"][layer])
        return out + p["layers/attention/out/bias"][layer]

    def mlp(x, layer):
        x = act(x @ p["layers/mlp/up/kernel"][layer] + p["layers/mlp/up/bias"][layer])
        return x @ p["layers/mlp/down/kernel"][layer] + p["layers/mlp/down/bias"][layer]

    table = p["embeddings/token/embedding"]
    x = table[input_ids] + p["embeddings/position/embedding"][:tokens]
    if bert:
        types = np.zeros_like(input_ids) if token_type_ids is None else np.asarray(token_type_ids)
        x = norm(x + p["embeddings/token_type/embedding"][types], "embeddings/norm")
    for layer in range(cfg.num_hidden_layers):
        if bert:
            x = norm(x + attention(x, layer), "layers/attention_norm", layer)
            x = norm(x + mlp(x, layer), "layers/mlp_norm", layer)
        else:
            x = x + attention(norm(x, "layers/attention_norm", layer), layer)
            x = x + mlp(norm(x, "layers/mlp_norm", layer), layer)
    found = {}
    if not bert:
        return {"logits": norm(x, "final_norm") @ table.T}
    if "mlm" in cfg.heads:
        h = act(x @ p["mlm/transform/kernel"] + p["mlm/transform/bias"])
        found["logits"] = norm(h, "mlm/norm") @ table.T + p["mlm/decoder/bias"]
    if "pooler" in cfg.heads:
        found["pooled"] = np.tanh(x[:, 0] @ p["pooler/dense/kernel"] + p["pooler/dense/bias"])
    if "nsp" in cfg.heads:
        found["nsp"] = found["pooled"] @ p["nsp/classifier/kernel"] + p["nsp/classifier/bias"]
    return found
