"""Gemma 3 with images: its language model alone, as prompts of text run through it."""

from dataclasses import replace

from circuitdisc.models.families import gemma

FAMILY = replace(
    gemma.FAMILY,
    titles={"gemma3": "Gemma 3 with images"},
    layout=replace(gemma.AFTER, body="model.language_model", unread=("model.vision_tower.", "model.multi_modal_projector.")),
)
