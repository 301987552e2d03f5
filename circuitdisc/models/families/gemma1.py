"""The first Gemma: Llama's layout, norms that store their scale minus one, scaled embeddings."""

from circuitdisc.models.families.family import Family
from circuitdisc.models.families.gemma import scales

FAMILY = Family({"gemma": "Gemma"}, norm_offset=1.0, scales=scales)
