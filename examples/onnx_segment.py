"""Label a photo with what `fgaseg export MODEL --to onnx --out DIR` has written, without fgaseg and torch.

    pip install numpy onnxruntime pillow tokenizers
    python onnx_segment.py DIR photo.jpg "cat, sofa, car | automobile" --out labels.png

Commas stand between classes, | between synonyms of one. Without classes those of `fgaseg export --classes` are used.
"""

import argparse
import html
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer


def read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: cannot be read ({error}); give a folder that `fgaseg export` has written")


def graph(folder, part):
    """A function from the inputs of a graph to its outputs."""
    path = folder / f"{part}.onnx"
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common type
        sys.exit(f"{path}: cannot be loaded ({error}); export --parts image,text,head --to onnx")
    names = [port.name for port in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def read_photo(path):
    """Upright RGB [H, W, 3]; what is transparent is white."""
    try:
        image = ImageOps.exif_transpose(Image.open(path))
        if image.mode[0] in "IF":
            sys.exit(f"{path}: has more than 8 bits a value; convert it to 8 bits")
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return np.asarray(image.convert("RGB"))
    except Exception as error:  # so have Pillow's
        sys.exit(f"{path}: is no photo that Pillow can read ({error}); give a JPEG or PNG")


def resize(maps, size):
    """Maps [..., h, w] at another size: bilinear, half-pixel centres, no antialiasing (Pillow's resize has it)."""
    for axis, new in ((-1, size[1]), (-2, size[0])):
        old = maps.shape[axis]
        at = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
        low = np.maximum(at, 0).astype(int)
        share = (np.maximum(at, 0) - low).astype(np.float32).reshape([-1] + [1] * (-1 - axis))
        maps = maps.take(low, axis) * (1 - share) + maps.take(np.minimum(low + 1, old - 1), axis) * share
    return maps


def subject(name, first_synonym):
    """What stands for a name in a prompt."""
    name = "".join(char for char in name if char not in "\u200b\u2060\ufeff\u00ad") or name
    first = name.split(", ")[0] if first_synonym else name
    return " ".join((first if first.strip(" _") else name).replace("_", " ").split()) or name


def encode(folder, text, classes):
    """Names, embeddings [prompts, C], how many of these each class has, and which class each counts as."""
    synonyms = [[" ".join(word.split()) for word in one.split("|") if word.strip()] for one in classes.split(",")]
    if not all(synonyms):
        sys.exit(f"classes: {classes!r} has an empty one, number {synonyms.index([]) + 1}; give a name between commas")
    words = [subject(word, text["first_synonym"]) for one in synonyms for word in one]
    if text["synonyms"] != "best" and len(words) > len(synonyms):
        sys.exit("classes: this model averages synonyms, which this program does not; give one name for each class")
    text_graph = graph(folder, "text")
    prompts = [html.unescape(html.unescape(form.format(word))) for word in words for form in text["templates"]]
    encoded = Tokenizer.from_file(str(folder / text["tokenizer"])).encode_batch(prompts)
    for prompt in (prompt for prompt, one in zip(prompts, encoded, strict=True) if one.overflowing):
        print(f"this prompt is too long, its end is not read: {prompt}", file=sys.stderr)
    tokens = np.array([one.ids for one in encoded], np.int64)
    found = np.concatenate([text_graph(tokens[i : i + 256])[0] for i in range(0, len(tokens), 256)])
    found = found.reshape(len(words), len(text["templates"]), -1).mean(1)
    found /= np.linalg.norm(found, axis=-1, keepdims=True)
    keys = [row.tobytes() for row in tokens.reshape(len(words), -1)]
    owner, rows, counts, first = {}, [], [], []
    for number, one in enumerate(synonyms):  # the first class that has a prompt gets its pixels
        those = [sum(map(len, synonyms[:number])) + i for i in range(len(one))]
        own = [i for i in those if owner.setdefault(keys[i], number) == number]
        first.append(number if own else owner[keys[those[0]]])
        rows += own or those[:1]
        counts.append(len(own) or 1)
    return [one[0] for one in synonyms], found[rows], counts, first


def prepared(folder):
    """The same, of the classes that were exported."""
    found = read_json(folder / "vocabulary.json")
    texts = np.fromfile(folder / "vocabulary.f32", "<f4").reshape(-1, found["channels"])
    return found["names"], texts, found["counts"], found["first"]


def segment(folder, manifest, photo, texts, counts, first):
    """The class of every pixel of a photo, [H, W]."""
    rule, size = manifest["preprocessing"], photo.shape[:2]
    if max(size) > rule["longest_aspect"] * min(size):
        print("a photo this long is cut into tiles by fgaseg; here it is seen whole, and squashed", file=sys.stderr)
    scale = min(rule["short_side"] / min(size), rule["longest_aspect"] * rule["short_side"] / max(size))
    small = [max(round(n * scale / rule["patch"]), 1) * rule["patch"] for n in size]
    pixels = resize(photo.transpose(2, 0, 1).astype(np.float32) / 255, small)
    mean, std = (np.array(rule[key], np.float32).reshape(3, 1, 1) for key in ("mean", "std"))
    features = graph(folder, "image")(((pixels - mean) / std)[None])
    logits = graph(folder, "head")(*features, texts)[0][0]
    maps = np.maximum.reduceat(logits, np.cumsum([0, *counts[:-1]]), axis=0)
    if (before := manifest["labels"]["before_resize"]) == "sigmoid":
        maps = 1 / (1 + np.exp(np.minimum(-maps, 80)))
    elif before == "softmax":
        maps = np.exp(maps - maps.max(0))
        maps /= maps.sum(0)
    best, labels = np.full(size, -np.inf, np.float32), np.zeros(size, int)
    for number, one in enumerate(maps):  # one map after the other: all at the photo's size may be gigabytes
        resized = resize(one, size)
        labels[resized > best] = number
        np.maximum(best, resized, out=best)
    return np.array(first)[labels]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("photo")
    parser.add_argument("classes", nargs="?")
    parser.add_argument("--out", help="labels as a PNG whose values are the numbers of the classes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    manifest = read_json(given.folder / "manifest.json")
    if (manifest.get("format"), manifest.get("version")) != ("fgaseg-export", 1):
        sys.exit(f"{given.folder}/manifest.json: is of another format; this program reads fgaseg-export, version 1")
    photo, classes = read_photo(given.photo), given.classes
    vocabulary = prepared(given.folder) if classes is None else encode(given.folder, manifest["text"], classes)
    names, labels = vocabulary[0], segment(given.folder, manifest, photo, *vocabulary[1:])
    shares = (np.bincount(labels.ravel(), minlength=len(names)) / labels.size).tolist()
    if given.out:
        image = Image.fromarray(labels.astype(np.uint8 if len(names) <= 256 else np.uint16))
        if len(names) <= 256:
            image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
        image.save(given.out, format="PNG")
    if given.json:
        print(json.dumps({"names": names, "shares": shares, "size": labels.shape, "labels": given.out}))
    else:
        print("\n".join(f"{share:6.1%}  {name}" for name, share in zip(names, shares, strict=True) if share))


if __name__ == "__main__":
    main()
