"""The training step of Hugging Face's models in PyTorch, for the benchmark that compares."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import harness
from our_step import Workload, random_tokens

DEFAULT, EQUAL = "torch default", "torch equal work"
COMPILED = {DEFAULT: "torch default, compiled", EQUAL: "torch equal work, compiled"}
ORDER = (DEFAULT, COMPILED[DEFAULT], EQUAL, COMPILED[EQUAL])
"""Every contender, as tables list them; a causal model does equal work by default."""


def equal_work(names: Any, *, causal: bool) -> list[str]:
    """Those that do what our step does."""
    equal = (DEFAULT, COMPILED[DEFAULT]) if causal else (EQUAL, COMPILED[EQUAL])
    return [name for name in equal if name in names]


def hugging_face_model(cfg: Any) -> Any:
    """The model of a config, without dropout, its attention by PyTorch's fused kernels."""
    transformers = harness.import_transformers()
    if cfg.is_causal:
        made = transformers.GPT2Config(
            vocab_size=cfg.vocab_size,
            n_positions=cfg.max_position_embeddings,
            n_embd=cfg.hidden_size,
            n_layer=cfg.num_hidden_layers,
            n_head=cfg.num_attention_heads,
            n_inner=cfg.intermediate_size,
            activation_function=cfg.hidden_act,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
        )
        return transformers.GPT2LMHeadModel(made)
    made = transformers.BertConfig(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.hidden_size,
        num_hidden_layers=cfg.num_hidden_layers,
        num_attention_heads=cfg.num_attention_heads,
        intermediate_size=cfg.intermediate_size,
        max_position_embeddings=cfg.max_position_embeddings,
        type_vocab_size=cfg.type_vocab_size,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    return transformers.BertForMaskedLM(made)


def losses(load: Workload, model: Any, device: str) -> dict[str, Callable[[], Any]]:
    """Name -> the forward pass to its loss, compiled or not."""
    torch = harness.import_torch()
    cfg = load.model_config()
    ids = torch.from_numpy(random_tokens(load, cfg.vocab_size)).long().to(device)

    def default(inputs: Any, labels: Any) -> Any:
        return model(input_ids=inputs, labels=labels).loss

    if cfg.is_causal:
        steps: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
            DEFAULT: (default, (ids, ids))
        }
    else:
        scores = torch.rand(ids.shape, device=device)
        positions = scores.topk(load.masked_positions, dim=1).indices.sort(dim=1).values
        picked = ids.gather(1, positions)
        inputs = ids.scatter(1, positions, 4)
        labels = torch.full_like(ids, -100).scatter(1, positions, picked)

        def equal(inputs: Any, positions: Any, picked: Any) -> Any:
            hidden = model.bert(input_ids=inputs).last_hidden_state
            index = positions[..., None].expand(-1, -1, hidden.shape[-1])
            logits = model.cls(hidden.gather(1, index))
            return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), picked.flatten())

        steps = {DEFAULT: (default, (inputs, labels)), EQUAL: (equal, (inputs, positions, picked))}
    found: dict[str, Callable[[], Any]] = {}
    for name, (function, arguments) in steps.items():
        fused = torch.compile(function, dynamic=False)
        for label, chosen in ((name, function), (COMPILED[name], fused)):
            if label in load.torch:
                found[label] = lambda chosen=chosen, arguments=arguments: chosen(*arguments)
    return found


def build(load: Workload, device: str, threads: int | None) -> dict[str, Any]:
    """Worker: Hugging Face's model with the steps of `load.torch` as variants."""
    torch = harness.import_torch()
    if device == "cuda" and not torch.cuda.is_available():
        raise harness.Unavailable("this PyTorch finds no GPU; install the build for CUDA")
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    model = hugging_face_model(load.model_config()).to(device).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=1e-8,
        fused=True,
    )
    forwards = losses(load, model, device)

    def one_step(forward: Callable[[], Any]) -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=load.dtype == "bfloat16"):
            loss = forward()
        loss.backward()
        if load.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), load.clip_norm)
        optimizer.step()
        return loss

    def synchronize() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def timed(name: str) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(load.steps_per_round):
            one_step(forwards[name])
        synchronize()
        return (time.perf_counter() - start) / load.steps_per_round

    problems, prepare, first_loss, peak = {}, {}, {}, {}
    for name in list(forwards):
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        try:
            first_loss[name] = float(one_step(forwards[name]).detach())
            if device == "cuda":  # the first step of all made the moments
                torch.cuda.reset_peak_memory_stats()
            one_step(forwards[name])
            synchronize()
        except Exception as error:
            if not isinstance(error, torch.OutOfMemoryError) and name not in COMPILED.values():
                raise
            problems[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            del forwards[name]
            optimizer.zero_grad(set_to_none=True)
            continue
        prepare[name] = time.perf_counter() - start
        peak[name] = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {
        "variants": {name: lambda name=name: timed(name) for name in forwards},
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "prepare_s": prepare,
        "first_loss": first_loss,
        "peak_bytes": peak,
        "problems": problems,
    }
