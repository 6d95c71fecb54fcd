"""The pointing game over whole data sets: many methods, many processes, resumable.

The data flows one way: `datasets` (images and the masks of their objects) -> `targets`
and `methods` (what to attribute, and how) -> `runner` (a row for each image, class and
method) -> `store` (SQLite) -> `report` (the paper's table). `processes` shares the
images among ranks, `pairs` reads lists of pairs, `relus` prepares models. Beside it
stand two analyses of the paper: `monotonicity` (Sec. 4.3), `randomisation` (Fig. 7).
`compare` gives the maps of several methods for inputs of your own.
"""

from captum_extremal.benchmark.annotations import Flaw
from captum_extremal.benchmark.datasets import (
    DATASETS,
    Example,
    ImageSet,
    difficult_classes,
    open_images,
)
from captum_extremal.benchmark.pairs import Pair, read_pairs
from captum_extremal.benchmark.processes import Rank, local_device, processes
from captum_extremal.benchmark.runner import PAPER_AREAS, Plan, run
from captum_extremal.benchmark.store import Failure, Row, read
from captum_extremal.benchmark.tables import Report, mean_of, report
from captum_extremal.benchmark.targets import class_names, imagenet_indices
from captum_extremal.curve import Monotonicity, monotonicity
from captum_extremal.methods.adapters import Explained, Options
from captum_extremal.methods.registry import METHODS, compare, explainer
from captum_extremal.methods.sanity import randomised, rank_correlation, sanity_check
from captum_extremal.visualization.sanity import plot_sanity

__all__ = [
    "DATASETS",
    "METHODS",
    "PAPER_AREAS",
    "Example",
    "Explained",
    "Failure",
    "Flaw",
    "ImageSet",
    "Monotonicity",
    "Options",
    "Pair",
    "Plan",
    "Rank",
    "Report",
    "Row",
    "class_names",
    "compare",
    "difficult_classes",
    "explainer",
    "imagenet_indices",
    "local_device",
    "mean_of",
    "monotonicity",
    "open_images",
    "plot_sanity",
    "processes",
    "randomised",
    "rank_correlation",
    "read",
    "read_pairs",
    "report",
    "run",
    "sanity_check",
]
