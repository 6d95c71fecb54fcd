"""
A signal in time
================

Masks of one dimension: when does a network hear what it hears? The network is trained
here, on signals whose answer is known, so that the masks can be checked.
"""

# %%
# Signals with a known answer
# ---------------------------
#
# Noise of 256 samples, and at a random place a chirp of 48 samples whose pitch rises
# (class 1) or falls (class 0).

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from captum_extremal import ExtremalPerturbation, FadePerturbation

LENGTH, CHIRP = 256, 48


def make(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Signals (N, 1, L), their classes (N,) and where each chirp begins (N,)."""
    generator = torch.Generator().manual_seed(seed)
    signals = 0.5 * torch.randn(count, 1, LENGTH, generator=generator)
    classes = torch.randint(2, (count,), generator=generator)
    starts = torch.randint(LENGTH - CHIRP, (count,), generator=generator)
    time = torch.linspace(0, 1, CHIRP)
    rising = torch.sin(2 * math.pi * (2 * time + 6 * time.square()))
    window = torch.sin(math.pi * time)
    for signal, kind, start in zip(signals[:, 0], classes, starts, strict=True):
        chirp = rising if kind == 1 else rising.flip(0)
        signal[start : start + CHIRP] += 2 * window * chirp
    return signals, classes, starts


# %%
# A small network
# ---------------
#
# Trained for a few seconds.

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv1d(1, 16, 9, padding=4),
    nn.ReLU(),
    nn.MaxPool1d(2),
    nn.Conv1d(16, 32, 9, padding=4),
    nn.ReLU(),
    nn.AdaptiveMaxPool1d(1),
    nn.Flatten(),
    nn.Linear(32, 2),
)
signals, classes, _ = make(1024, seed=1)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(8):
    for batch in torch.randperm(len(signals)).split(64):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(signals[batch]), classes[batch])
        loss.backward()
        optimizer.step()
model.eval()

signals, classes, starts = make(64, seed=2)
right = (model(signals).argmax(dim=1) == classes).float().mean()
print(f"right on new signals: {float(right):.0%}")

# %%
# Masks over time
# ---------------
#
# Signals are (N, C, L), masks (N, A, 1, L). What is left out fades to silence; a blur
# would leave a low hum of the noise. A chirp fills 19 % of a signal. All 64 signals and
# both areas are searched at once, with the default solver.

areas = [0.05, CHIRP / LENGTH]
method = ExtremalPerturbation(model, FadePerturbation(0.0))
result = method.optimize(signals, target=classes, areas=areas)

# %%
# The first four signals. The band is where the chirp is; what the masks keep is drawn
# in colour, dark for the smaller area.

figure = Figure(figsize=(9, 7), layout="constrained")
for row, axes in enumerate(figure.subplots(4, 1, sharex=True)):
    small, large = result.masks[row, :, 0] >= 0.5
    signal = signals[row, 0]
    start = int(starts[row])
    axes.axvspan(start, start + CHIRP - 1, color="#F2E6C4", label="chirp")
    axes.plot(signal, color="#B0B0B0", lw=0.8)
    for mask, color, area in (
        (large, "#56B4E9", areas[1]),
        (small, "#003B73", areas[0]),
    ):
        kept = signal.where(mask, torch.nan)
        axes.plot(kept, color=color, lw=1.8, label=f"mask of {area:.0%}")
    axes.set_ylabel("rising" if classes[row] else "falling")
    axes.spines[["top", "right"]].set_visible(False)
axes.set_xlabel("sample")
axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.45), ncols=3, frameon=False)
figure

# %%
# Are they right?
# ---------------
#
# We know where each chirp is. The share of each mask that lies on it, beside what a
# mask at a random place would get on average:

time = torch.arange(LENGTH)
inside = (time >= starts[:, None]) & (time < starts[:, None] + CHIRP)
for place, area in enumerate(areas):
    mask = result.masks[:, place, 0] >= 0.5
    share = (mask & inside).sum(dim=1) / mask.sum(dim=1)
    print(
        f"mask of {area:.0%}: on the chirp {float(share.mean()):.0%}, "
        f"worst signal {float(share.min()):.0%}, by chance {CHIRP / LENGTH:.0%}"
    )

# %%
# The large mask has exactly the length of the chirp. But the chirp is faded in and out:
# its ends hold little that tells the classes apart, and a part of the mask may as well
# lie elsewhere. A mask is about what the network uses, not about what we put in.
#
# For signals of several channels (N, C, L) the mask is shared by the channels.
