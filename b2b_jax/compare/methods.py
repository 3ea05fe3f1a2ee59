"""The methods that bert2BERT is compared with, each as settings of the same trainer."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from b2b_jax.growth.depth import Depth
from b2b_jax.growth.mappings import Mapping as WidthMapping
from b2b_jax.growth.plan import Method as GrowthMethod
from b2b_jax.train.schedule import ProgressiveMethod


@dataclass(frozen=True)
class Method:
    """A way to pre-train the target. Lengths are fractions of the steps of training from scratch.

    Attributes:
        label: what a reader calls it.
        growth: how its first parameters are made; "random" takes nothing from a source.
        mapping: what new width entries copy.
        depth: what new layers copy.
        length: of the whole run.
        stage_one: sub-model training at the start (bert2BERT, Algorithm 2).
        progressive: how depth grows during the run.
        stages: of every stage of progressive training but the last.
        inherit: learning from the source as a teacher, at the start.
        temperature: of that.
        top_k: predictions of the teacher to keep; 0 runs it in every step.
    """

    label: str
    growth: GrowthMethod = "random"
    mapping: WidthMapping = "cyclic"
    depth: Depth = "stack"
    length: Fraction = Fraction(1)
    stage_one: Fraction = Fraction(0)
    progressive: ProgressiveMethod = "none"
    stages: tuple[Fraction, ...] = ()
    inherit: Fraction = Fraction(0)
    temperature: float = 2.0
    top_k: int = 0

    @property
    def uses_source(self) -> bool:
        """Whether a small trained model is needed, so that its cost may be counted."""
        return self.growth != "random" or self.inherit > 0


# The paper's 40 epochs of BERT-base (its section 4.1); E_b = 5 of them for bert2BERT.
EPOCHS = 40
# Qin et al. train 125,000 steps, of which 55,000 with a teacher.
INHERITED = Fraction(55, 125)

METHODS: Mapping[str, Method] = {
    "scratch": Method("scratch"),
    "direct_copy": Method("DirectCopy", growth="direct_copy"),
    "fpi": Method("FPI", growth="fpi"),
    "aki": Method("AKI", growth="aki"),
    "bert2bert": Method("bert2BERT (AKI + two-stage)", growth="aki", stage_one=Fraction(5, EPOCHS)),
    "stackbert": Method(
        "StackBERT", progressive="stack", stages=(Fraction(5, EPOCHS), Fraction(7, EPOCHS))
    ),
    "mslt": Method(
        "MSLT",
        progressive="mslt",
        stages=(Fraction(8, EPOCHS),) * 4,
        length=Fraction(4 * 8 + 20, EPOCHS),
    ),
    # Also bert2BERT's own FPI as its Eq. 5 and 6 have it; "fpi" copies every entry equally often.
    "net2net": Method("FPI, uniform map (Net2Net)", growth="fpi", mapping="uniform"),
    "interpolate": Method("AKI, interpolated depth", growth="aki", depth="interpolate"),
    "inherit": Method("Knowledge Inheritance", inherit=INHERITED),
}
"""Name -> method, with the paper's schedules."""
