"""Superpixels: rounds of swaps, other seeds and greedy selection, with a real network.

    python studies/sites.py    # a few minutes; the table of docs/sites.md

EfficientNet-Lite0 on three pictures of scikit-image, about 70 superpixels of SLIC. The
numbers are logits of what the kept superpixels show, the rest blurred. The greedy rival
adds the superpixel that scores best, by forwards, until the area is reached.
"""

from __future__ import annotations

import torch
from PIL import Image
from skimage import data
from skimage.segmentation import slic
from torch import Tensor

from captum_extremal import ExtremalPerturbation, SwapSolver
from captum_extremal.models import load_demo

AREAS = (0.05, 0.1, 0.2)


def greedy(
    method: ExtremalPerturbation, x: Tensor, target: int, segments: Tensor
) -> str:
    """Scores at the areas of what greedy selection keeps."""
    numbers = segments.unique().tolist()
    counts = [max(1, round(area * len(numbers))) for area in AREAS]
    kept: list[int] = []
    scores = []
    for _ in range(max(counts)):
        left = [number for number in numbers if number not in kept]
        masks = [torch.isin(segments, torch.tensor([*kept, n])) for n in left]
        rewards = method.evaluate(x, torch.stack(masks)[None, :, None].float(), target)
        kept.append(left[int(rewards.argmax())])
        scores.append(float(rewards.max()))
    return ", ".join(f"{scores[count - 1]:.2f}" for count in counts)


def swaps(model: object, x: Tensor, target: int, segments: Tensor, **asked: int) -> str:
    """Scores at the areas of some rounds and a seed."""
    method = ExtremalPerturbation(model, solver=SwapSolver(rounds=asked["rounds"]))
    found = method.optimize(
        x, target, AREAS, feature_mask=segments[None, None], seed=asked["seed"]
    )
    return ", ".join(f"{score:.2f}" for score in found.scores[0].tolist())


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    loaded = load_demo()
    print(
        "| picture | superpixels | 8 rounds | 32 rounds | 32, another seed | greedy |"
    )
    print("|---|---|---|---|---|---|")
    for name in ("coffee", "chelsea", "camera"):
        picture = Image.fromarray(getattr(data, name)()).convert("RGB")
        image, x = loaded.preprocess(picture)
        x = x[None]
        pixels = image.permute(1, 2, 0).numpy()
        segments = torch.from_numpy(slic(pixels, n_segments=80, compactness=10))
        target = int(loaded.model(x).argmax())
        row = [
            swaps(loaded.model, x, target, segments, rounds=rounds, seed=seed)
            for rounds, seed in ((8, 0), (32, 0), (32, 1))
        ]
        row.append(greedy(ExtremalPerturbation(loaded.model), x, target, segments))
        count = len(segments.unique())
        print("| " + " | ".join([name, str(count), *row]) + " |", flush=True)


if __name__ == "__main__":
    main()
