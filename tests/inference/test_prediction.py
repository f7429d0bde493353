"""From a photo to labels: any photo, whole or by windows, and the memory that it takes."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import NAMES, Largest, tiny_model

import fgaseg.model.head


def test_bfloat16_weights_segment():
    assert tiny_model().to(torch.bfloat16).segment(np.zeros((9, 9), np.uint8), NAMES).labels.shape == (9, 9)


def test_duplicate_names_give_their_pixels_to_the_first():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    names = [*NAMES, "dog", "wooden  floor"]  # white space does not make another class
    result = tiny_model().segment(noise, names)
    assert set(np.unique(result.labels)) <= set(range(5))
    assert sum(result.present.values()) == pytest.approx(1)
    assert sum(sum(runs[1::2]) for runs in result.run_lengths().values()) == noise[..., 0].size


def test_unusual_vocabularies():
    model = tiny_model()
    names = ["猫", "собака", "قطة", "!?", "...", "cat", "cat", "a " * 200, "x{}y", "🐈"]
    result = model.segment(np.zeros((20, 30, 3), np.uint8), names)
    assert result.labels.shape == (20, 30) and result.classes == tuple(names)
    embeddings = model.encode(names).embeddings
    assert torch.equal(embeddings[5], embeddings[6]) and embeddings.isfinite().all()


PHOTOS = {
    "PIL": Image.new("RGB", (50, 30), "red"),
    "1x1": Image.new("L", (1, 1)),
    "very wide": Image.new("RGB", (2000, 3)),
    "array": np.zeros((30, 50, 3), np.uint8),
    "tensor": torch.zeros(3, 30, 50),
}


@pytest.mark.parametrize("mode", ["whole", "windows"])
@pytest.mark.parametrize("photo", PHOTOS.values(), ids=PHOTOS)
def test_segment_labels_the_photo_at_its_own_size(photo, mode):
    result = tiny_model(inference=mode).segment(photo, NAMES)
    size = result.image.size[::-1]
    assert result.labels.shape == size == result.scores.shape and result.labels.dtype == np.int64
    assert 0 <= result.labels.min() and result.labels.max() < 5
    assert (result.scores > 0).all() and (result.scores <= 1).all()
    assert sum(result.present.values()) == pytest.approx(1)
    runs = result.run_lengths()
    assert all(sum(counts) == result.labels.size for counts in runs.values())


def test_segment_takes_a_list_and_a_path(tmp_path):
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "photo.png")
    model = tiny_model()
    one, two = model.segment([tmp_path / "photo.png", np.zeros((9, 9), np.uint8)], NAMES)
    assert one.labels.shape == (30, 40) and two.labels.shape == (9, 9)
    one.overlay().save(tmp_path / "out.png")


def test_labels_are_the_argmax_of_upsampled_logits():
    model = tiny_model()
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    full = model.segment(photo, NAMES)
    with torch.no_grad():
        logits = model(fgaseg.inference.prediction._whole(model, photo), model.encode(NAMES)).logits
    up = torch.nn.functional.interpolate(logits, size=(50, 70), mode="bilinear", align_corners=False)[0]
    first, second = up.topk(2, dim=0).values
    clear = (first - second > 1e-5).numpy()  # elsewhere rounding decides
    assert clear.mean() > 0.99 and np.array_equal(full.labels[clear], up.argmax(0).numpy()[clear])
    np.testing.assert_allclose(full.scores, up.softmax(0).amax(0).numpy(), rtol=1e-4)


@pytest.mark.parametrize("preset", [{}, {"preset": "released"}], ids=["softmax", "sigmoid"])
def test_windows_are_labelled_by_the_scores_of_the_released_order(preset):
    model = tiny_model(inference="windows", **preset)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    result = model.segment(photo, NAMES)
    with torch.no_grad():
        enlarged = fgaseg.inference.prediction._resize(
            torch.from_numpy(np.array(photo)).permute(2, 0, 1).float(), (640, 896)
        )
        scores = fgaseg.inference.prediction.sliding_scores(model, enlarged, model.encode(NAMES))
    best, labels = fgaseg.inference.prediction._resize(scores, (50, 70)).max(0)
    np.testing.assert_allclose(result.scores, best.numpy(), rtol=1e-4)
    assert (result.labels == labels.numpy()).mean() > 0.999


@pytest.mark.parametrize("mode", ["whole", "windows"])
def test_memory_of_labelling_does_not_grow_with_the_photo_times_the_classes(mode):
    """No tensor is made of even a quarter of [T, H, W]."""

    model, names = tiny_model(inference=mode), [f"class {i}" for i in range(100)]
    with Largest() as largest:
        model.segment(Image.new("RGB", (2000, 1500)), names)
    assert largest.elements < 100 * 2000 * 1500 / 4


def test_a_model_in_training_mode_segments_as_in_evaluation_mode():
    model, photo = tiny_model(), np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    expected = model.segment(photo, NAMES)
    model.train()
    model.head.t2p.second[1].eval()  # a norm that the user has frozen
    modes = [module.training for module in model.modules()]
    result = model.segment(photo, NAMES)
    assert np.array_equal(result.labels, expected.labels) and np.array_equal(result.scores, expected.scores)
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2
