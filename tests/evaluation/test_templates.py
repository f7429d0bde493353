"""Prompt templates by name."""

import open_clip

from fgaseg.evaluation import prompt_templates


def test_named_templates():
    assert len(prompt_templates("imagenet")) == 80 and len(prompt_templates("imagenet_select")) == 7
    assert all(one.count("{}") == 1 for name in ("imagenet", "imagenet_select") for one in prompt_templates(name))
    assert prompt_templates("imagenet")[3].format("cat") == open_clip.OPENAI_IMAGENET_TEMPLATES[3]("cat")
    assert prompt_templates("my {}") == "my {}"
