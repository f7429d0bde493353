"""Prompt templates by name."""

import open_clip

TEMPLATES = {
    "imagenet": open_clip.OPENAI_IMAGENET_TEMPLATES,  # 80
    "imagenet_select": open_clip.SIMPLE_IMAGENET_TEMPLATES,  # 7
}


def prompt_templates(name: str) -> str | list[str]:
    """The templates called "imagenet" or "imagenet_select"; any other name is itself a template, such as "a {}"."""
    return [template("{}") for template in TEMPLATES[name]] if name in TEMPLATES else name
