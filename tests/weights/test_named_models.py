"""What is said of the models that have a name."""

from fgaseg.weights.named_models import MODELS


def test_of_every_model_it_is_said_what_it_was_trained_on():
    assert len(MODELS) > 5
    assert not [name for name, model in MODELS.items() if model.trained_on in ("", "unknown")]
