"""A study of ten methods and three seeds as it may come out, to look at tables and pictures.

`python tests/report/realistic_study.py FOLDER` writes them.
"""

import sys

import numpy as np

from b2b_jax.report.runs import Curve
from b2b_jax.report.study import MethodResult, Study, Trial

STEPS, EVERY, LAYERS = 1500, 50, 4
FLOPS_PER_STEP, SECONDS_PER_STEP = 2.0e10, 0.15
SOURCE = {"exact": 0.35 * STEPS * 2.0e10, "electra": 0.36 * STEPS * 1.9e10, "seconds": 70.0}
SCRATCH_RATES = {5e-4: 5.472, 1e-3: 5.356, 2e-3: None}

# label, share of scratch's training that its start is worth, loss at the start, cheap steps (share,
# relative cost, layers), uses a small model, loss added at the end
METHODS = (
    ("DirectCopy", 0.10, 8.6, (0, 1, ()), True, 0.0),
    ("FPI", 0.22, 6.25, (0, 1, ()), True, 0.0),
    ("AKI", 0.33, 6.6, (0, 1, ()), True, 0.0),
    ("AKI + two-stage (bert2BERT)", 0.30, 6.6, (0.2, 0.45, (4,)), True, 0.0),
    ("StackBERT", 0.0, 10.3, (0.4, 0.5, (1, 2)), False, -0.06),
    ("MSLT", 0.0, 10.3, (0.55, 0.45, (1, 2, 3)), False, 0.05),
    ("Net2Net", 0.20, 6.3, (0, 1, ()), True, 0.0),
    ("interpolated depth", 0.26, 6.45, (0, 1, ()), True, 0.0),
    ("Knowledge Inheritance", 0.08, 10.3, (0, 1, ()), True, 0.0),
    ("random growth", -0.05, 10.3, (0, 1, ()), True, 0.07),
)


def falling(share):
    """Held-out loss of training from scratch after a share of its steps."""
    return 5.3 + 5.0 * np.exp(-share * 60) + 1.15 * np.exp(-share * 2.4) - 0.05 * share**4


def curve(seed, *, head_start, first, cheap, extra=0.0, steps=STEPS):
    random = np.random.default_rng(seed)
    done = np.arange(0, steps + 1, EVERY)
    share = done / STEPS
    loss = falling(np.maximum(share + head_start * (1 - np.exp(-share * 15)), 0)) + extra * share
    if head_start > 0:
        loss = np.minimum(loss, falling(head_start * 0.5) + (first - 6.2) * np.exp(-share * 40))
        loss[0] = first
    loss = loss + random.normal(0, 0.012, loss.size) + random.normal(0, 0.015)
    part, relative, layers = cheap
    cheap_steps = np.minimum(done, part * STEPS)
    units = cheap_steps * relative * (1 + random.normal(0, 0.02)) + (done - cheap_steps)
    sizes = np.full(done.size, float(LAYERS))
    growing = done < part * STEPS
    if growing.any():
        places = np.minimum((done / (part * STEPS) * len(layers)).astype(int), len(layers) - 1)
        sizes[growing] = np.array(layers, float)[places[growing]]
        if layers[0] < LAYERS:
            loss[growing] += 0.12
    speed = 1 + random.normal(0, 0.03)
    return Curve(
        steps=done.astype(float),
        loss=loss,
        sub_model_mean=np.full(done.size, np.nan),
        exact=units * FLOPS_PER_STEP,
        electra=units * 0.95 * FLOPS_PER_STEP,
        seconds=(units * 0.9 + done * 0.1) * SECONDS_PER_STEP * speed,
        layers=sizes,
    )


def realistic_study() -> Study:
    scratch = MethodResult(
        name="scratch",
        label="scratch",
        learning_rate=1e-3,
        trials=tuple(
            Trial(s, 1e-3, curve(s, head_start=0, first=10.3, cheap=(0, 1, ())), "done", None, {})
            for s in (1, 2, 3)
        ),
        sweep=SCRATCH_RATES,
    )
    methods = []
    for index, (label, head_start, first, cheap, uses_source, extra) in enumerate(METHODS):
        trials = []
        for seed in (1, 2, 3):
            diverges = label == "MSLT" and seed == 2
            steps = 400 if diverges else STEPS
            found = curve(
                10 * index + seed,
                head_start=head_start,
                first=first,
                cheap=cheap,
                extra=extra,
                steps=steps,
            )
            status, at = ("diverged", 437) if diverges else ("done", None)
            trials.append(Trial(seed, 1e-3, found, status, at, SOURCE if uses_source else {}))
        swept = label in ("AKI", "FPI", "StackBERT")
        methods.append(
            MethodResult(
                name=label.lower(),
                label=label,
                learning_rate=1e-3,
                trials=tuple(trials),
                sweep={5e-4: 5.31, 1e-3: 5.22, 2e-3: 5.25} if swept else {},
                rate_from="" if swept else "aki",
                rate_from_label="" if swept else "AKI",
            )
        )
    source = curve(99, head_start=0, first=10.3, cheap=(1, 0.35, (4,)))
    return Study("tiny", LAYERS, scratch, tuple(methods), {"small model (2 layers)": source})


if __name__ == "__main__":
    from b2b_jax.report.study_write import write_study

    print(*write_study(realistic_study(), sys.argv[1]), sep="\n")
