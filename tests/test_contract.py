"""What Captum and its users expect of a drop-in method: each behaviour once, for all.

Runs against Captum 0.8 and 0.9. What is tested is the table of `tiny_cases`; what is
special to one class stands in the file of that class.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import inspect
import pickle
import warnings
import weakref

import pytest
import torch
from captum.attr import (
    FeatureAblation,
    GradientAttribution,
    LayerAttribution,
    NoiseTunnel,
)
from captum.metrics import infidelity, sensitivity_max
from torch import nn

from captum_extremal import ChannelSolver
from captum_extremal.peers import MeaningfulPerturbation
from captum_extremal.perturbations.levels import BlurPerturbation, FadePerturbation
from captum_extremal.solvers import GradientSolver
from captum_extremal.solvers.rewards import contrastive_reward
from tiny_cases import CASES, Front, assert_same
from tiny_models import Blocks, ConvNet, NoModel, TwoInputs, constant, traces, varied

CLASSES = [3, 0, 2]  # of three examples
MODES = [torch.no_grad, torch.inference_mode]
TRAINING = "ignore:forward_func is in training mode"


def those(fits):
    """The test runs for each case that fits."""
    cases = [case for case in CASES if fits(case)]
    return pytest.mark.parametrize("case", cases, ids=str)


def that_take(name):
    return those(lambda case: case.takes(name))


each = those(lambda _: True)
of_layers = that_take("layer")
of_inputs = those(lambda case: not case.takes("layer"))
that_train = those(lambda case: case.trains)
with_result = those(lambda case: hasattr(case.method, "optimize"))
each_game = pytest.mark.parametrize(
    ("case", "game"), [(case, game) for case in CASES for game in case.games], ids=str
)


def assert_one_by_one(case, found, model, inputs, labels, **options):
    """What came back for a batch is what its examples give alone."""
    for index, label in enumerate(labels):
        alone = case.attribute(model, inputs[index : index + 1], label, **options)
        assert_same(found[index : index + 1], alone)


def doors(case):
    """The methods that run a search."""
    return [name for name in ("attribute", "optimize") if hasattr(case.method, name)]


def parts(case, found):
    """The part that the attribution of each example points at."""
    return [int(case.parts(one).argmax()) for one in found]


# --- the class ---


@each
def test_what_the_method_says_of_itself(case):
    method = case.make(case.model())
    assert all(isinstance(method, kind) for kind in case.kinds)
    assert not isinstance(method, GradientAttribution)
    assert method.multiplies_by_inputs is False
    assert method.has_convergence_delta() is False
    assert method.get_name() == case.name
    first = ["forward_func", *["layer", "device_ids"][: 2 * case.takes("layer")]]
    assert list(inspect.signature(case.method).parameters)[: len(first)] == first
    assert case.takes("attribute_to_layer_input") == case.takes("layer")
    text = f"^attribute_future is not implemented for {case}$"
    with pytest.raises(NotImplementedError, match=text):
        method.attribute_future()


REFUSED = [
    ("forward_func", 3, "must be callable, got 3"),
    ("layer", "channels", r"must be a torch\.nn\.Module, got str"),
    ("perturbation", 3, "must be an object with a levels"),
    ("perturbation", "noise", "must be ('blur' or 'fade'|an object with a levels)"),
    ("solver", "gradient", "must be an object with a solve method"),
    ("solver", ChannelSolver, "must be an object with a solve method"),
    ("reward", "simple", "must be callable"),
]


@each
def test_the_model_alone_suffices_and_what_cannot_work_is_refused(case):
    model = Front(case.model())
    given = {"forward_func": model}
    given |= {"layer": model.layer} if case.takes("layer") else {}
    assert case.method(**given).forward_func is model
    for name, value, text in REFUSED:
        if case.takes(name):
            with pytest.raises((TypeError, ValueError), match=f"^{name} {text}"):
                case.method(**given | {name: value})


@each
def test_forward_func_is_the_only_handle_on_the_model(case):
    model = case.front(case.model())
    method = case.make(model)
    method.forward_func = lambda x: model(x).flip(1)
    found = case.call(method, case.inputs(), 0)
    assert_same(found, case.attribute(case.model(), case.inputs(), 3))


@each
def test_attribute_is_logged_and_can_be_unwrapped(case):
    # NoiseTunnel, Insights and the layer wrappers call this.
    method, inputs = case.make(case.model()), case.inputs()
    bare = case.method.attribute.__wrapped__
    assert_same(bare(method, inputs, 0, **case.options), case.call(method, inputs))


def pickled(item):
    return pickle.loads(pickle.dumps(item))


@each
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_the_method_can_be_copied_and_pickled(case, copied):
    reward = {"reward": contrastive_reward} if case.takes("reward") else {}
    method = case.make(case.model(), **reward)
    expected = case.call(method, case.inputs(), 1)
    twin = copied(method)
    assert twin is not method
    assert not case.takes("layer") or twin.layer is twin.forward_func.layer
    assert_same(case.call(twin, case.inputs(), 1), expected)


@pytest.mark.parametrize(
    "option",
    [
        GradientSolver(iterations=7, jitter=0.1),
        BlurPerturbation(num_levels=3, sigma_max=2.0),
        contrastive_reward,
    ],
    ids=lambda option: type(option).__name__,
)
def test_option_values_survive_copy_and_pickle(option):
    assert copy.deepcopy(option) == option
    assert pickled(option) == option


def test_a_tensor_baseline_survives_copy_and_pickle():
    fade = FadePerturbation(torch.tensor([0.5]).reshape(1, 1, 1))
    for twin in (copy.deepcopy(fade), pickled(fade)):
        assert torch.equal(twin.levels(constant()), fade.levels(constant()))


# --- right, on a model that is known ---


@each
@pytest.mark.parametrize("target", range(4))
def test_it_finds_the_part_that_the_model_sees(case, target):
    more = {"num_masks": 300} if case.takes("num_masks") else {}
    found = case.attribute(case.model(), case.inputs(), target, **more)
    assert parts(case, found) == [target]
    shares = case.parts(found[0].clamp(min=0))
    assert shares[target] / shares.sum() > case.share


# --- the model and the inputs stay as they were ---


@each
@pytest.mark.parametrize("at_input", [False, True])
@pytest.mark.filterwarnings(TRAINING)
def test_the_model_and_the_inputs_stay_as_they_were(case, at_input):
    for training in {False, case.trains}:
        model = ConvNet().train(training)
        model.conv.weight.requires_grad_(False)
        model.linear.weight.grad = torch.full_like(model.linear.weight, 3.0)
        inputs = varied((2, 1, 10, 10)).requires_grad_()
        inputs.grad = torch.full_like(inputs, 2.0)
        before = traces(model, inputs)
        at = {"attribute_to_layer_input": at_input} if case.takes("layer") else {}
        found = case.call(case.make(model, model.norm), inputs, 1, **at)
        assert not found.requires_grad
        assert traces(model, inputs) == before


@pytest.mark.parametrize(
    ("case", "at"), [(case, at) for case in CASES for at in case.fails], ids=str
)
@pytest.mark.parametrize("mode", [contextlib.nullcontext, *MODES])
def test_everything_stays_as_it_was_when_the_model_fails(case, at, mode):
    broken = NoModel(at)
    broken.blocks = case.model()
    model, inputs = case.front(broken), case.inputs().requires_grad_()
    with mode():
        before = traces(model, inputs)
        with pytest.raises(ZeroDivisionError, match="out of order"):
            case.attribute(model, inputs)
        assert broken.calls == at + 1
        assert traces(model, inputs) == before


@each
@pytest.mark.filterwarnings(TRAINING)
def test_statistics_and_generators_stay_when_the_model_fails_at_its_end(case):
    class Fails(ConvNet):
        def forward(self, inputs):
            super().forward(inputs)
            torch.rand(1)
            raise ZeroDivisionError("the model is out of order")

    model, inputs = Fails().train(case.trains), varied((2, 1, 10, 10)).requires_grad_()
    before = traces(model, inputs)
    with pytest.raises(ZeroDivisionError):
        case.call(case.make(model, model.norm), inputs)
    assert traces(model, inputs) == before


@each
def test_the_users_hooks_fire_and_stay(case):
    model, seen = case.front(case.model()), []
    owner = getattr(model, "model", model)
    owner.register_forward_hook(lambda *_: seen.append("forward"))
    if case.calls[1]:
        owner.register_full_backward_hook(lambda *_: seen.append("backward"))
    before = traces(model)
    case.attribute(model, case.inputs())
    assert (seen.count("forward"), seen.count("backward")) == case.calls
    assert traces(model) == before


@each
def test_frozen_parameters_do_not_hinder_and_stay_frozen(case):
    model = case.model().requires_grad_(False)
    found = case.attribute(model, case.inputs())
    assert_same(found, case.attribute(case.model(), case.inputs()))
    assert not any(p.requires_grad for p in model.parameters())


@that_train
def test_a_training_model_warns_once_a_method_and_counts_nothing(case):
    model, inputs = ConvNet(3).train(), varied((2, 3, 12, 12))
    before = traces(model)
    for door in doors(case):
        method = case.make(model)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            getattr(method, door)(inputs, 0, **case.options)
            case.call(method, inputs)
        texts = [str(warning.message) for warning in caught]
        assert [text[:34] for text in texts] == ["forward_func is in training mode ("]
        assert "norm" in texts[0]
        assert caught[0].filename == __file__
    assert model.training
    assert traces(model) == before


@that_train
def test_a_training_model_without_such_layers_does_not_warn(case):
    case.attribute(case.model().train(), case.inputs())


@that_train
@pytest.mark.filterwarnings(TRAINING)
def test_statistics_of_an_instance_norm_stay_as_they_were(case):
    norm = nn.InstanceNorm2d(case.num_channels, track_running_stats=True)
    model = nn.Sequential(norm, case.model()).train()
    before = traces(model)
    case.attribute(model, case.varied(2))
    assert traces(model) == before


@each
def test_inputs_get_no_gradient_and_the_result_no_graph(case):
    inputs = case.inputs().requires_grad_()
    outer = inputs * 2
    assert case.attribute(case.model(), outer).grad_fn is None
    assert inputs.grad is None
    outer.sum().backward()  # the caller's own graph is whole
    assert torch.equal(inputs.grad, torch.full_like(inputs, 2))


# --- what goes in and what comes out ---


@each
def test_a_tuple_of_one_gives_what_its_tensor_gives(case):
    alone = case.attribute(case.model(), case.inputs())
    inside = case.attribute(case.model(), (case.inputs(),))
    if not case.takes("layer"):  # whose tensors are its own
        assert isinstance(inside, tuple)
        (inside,) = inside
    assert_same(inside, alone)


BAD_INPUTS = [
    (),
    torch.zeros(0, 4, 12, 12),
    (torch.ones(2, 4, 12, 12), torch.ones(1, 4, 12, 12)),
    torch.tensor(1.0),
]


@each
def test_bad_inputs_are_named(case):
    for wrong in ("cat.jpg", 3, [case.inputs()]):
        with pytest.raises(AssertionError, match=r"must be a torch\.Tensor or a tuple"):
            case.attribute(case.model(), wrong)
    for inputs in BAD_INPUTS[: None if case.rows else 1]:
        with pytest.raises(
            ValueError, match=r"^inputs must (hold at least one|agree|be of shape)"
        ):
            case.attribute(case.model(), inputs)


@each
@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3),
        lambda x: x[:1, :1].expand(x.shape),
        lambda x: x.repeat(1, 1, 1, 2)[..., ::2],
        lambda x: x.clone().requires_grad_(),
        lambda x: nn.Parameter(x),
    ],
    ids=["plain", "channels_last", "transposed", "expanded", "strided", "grad", "leaf"],
)
def test_the_attribution_has_the_shape_of_the_inputs_and_a_plain_layout(
    case, make, device
):
    inputs = make(case.inputs(2).to(device))
    found = case.attribute(case.model().to(device), inputs)
    assert found.shape == case.shape(inputs)
    assert found.device == inputs.device
    assert found.dtype == inputs.dtype
    assert not found.requires_grad
    assert found.is_contiguous()
    assert found.untyped_storage().nbytes() == found.numel() * found.element_size()
    assert_same(found.cpu(), case.attribute(case.model(), case.inputs(2)))


@each
def test_channels_last_inputs_give_what_others_give(case):
    model, inputs = ConvNet(3).eval(), varied((2, 3, 12, 10))
    found = case.attribute(model, inputs.to(memory_format=torch.channels_last))
    assert found.is_contiguous()
    assert_same(found, case.attribute(model, inputs))


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_attribution_has_the_dtype_of_the_inputs(case, dtype):
    found = case.attribute(case.model(3.0).to(dtype), case.inputs().to(dtype))
    assert found.dtype == dtype
    expected = case.attribute(case.model(3.0), case.inputs())
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


@each
def test_what_comes_back_shares_no_memory_with_the_caller(case):
    inputs = case.inputs()
    case.attribute(case.model(), inputs).zero_()
    assert torch.equal(inputs, case.inputs())


SIZES = {
    "1-D": (2, 2, 40),
    "3-D": (2, 1, 6, 8, 10),
    "10x10 grey": (2, 1, 10, 10),
    "not square": (1, 3, 9, 20),
    "many channels": (1, 17, 8, 8),
}


@those(lambda case: case.model().__class__ is Blocks)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES.keys())
def test_signals_images_and_volumes(case, shape):
    inputs = constant(shape)
    more = {"num_masks": 300} if case.takes("num_masks") else {}
    if case.takes("channel_dim"):
        more["channel_dim"] = 1 - len(shape)  # dimension 1, without a hint
    found = case.attribute(Blocks(len(shape) - 2), inputs, 1, **more)
    assert found.shape == case.shape(inputs)
    assert parts(case, found) == [1] * len(found)


@of_inputs
@pytest.mark.parametrize(
    "shapes",
    [((2, 1, 12, 12), (2, 3, 8, 16)), ((2, 1, 30), (2, 3, 8, 8))],
    ids=["two sizes", "two numbers of axes"],
)
def test_each_tensor_of_a_tuple_gets_an_attribution(case, shapes):
    model = TwoInputs(axes=tuple(len(shape) - 2 for shape in shapes))
    inputs = tuple(constant(shape) for shape in shapes)
    more = {"num_masks": 300} if case.takes("num_masks") else {}
    found = case.attribute(model, inputs, [1, 0], **more)
    assert [f.shape for f in found] == [i.shape for i in inputs]
    assert [parts(case, each) for each in found] == [[1, 0], [1, 0]]
    for index, label in enumerate([1, 0]):
        one = tuple(tensor[index : index + 1] for tensor in inputs)
        alone = case.attribute(model, one, label, **more)
        for mine, expected in zip(found, alone, strict=True):
            assert_same(mine[index : index + 1], expected)


def weighted_pair(first, second, weights):
    return (TwoInputs()(first, second) * weights).sum(dim=1)


PAIR = constant((2, 1, 12, 12)), constant((2, 3, 8, 16))
PAIR_WEIGHTS = torch.tensor([[0.0, 1.0], [1.0, 0.0]])


@of_inputs
def test_tuples_with_arguments_and_chunks(case):
    options = {"additional_forward_args": PAIR_WEIGHTS, "perturbations_per_eval": 3}
    found = case.attribute(weighted_pair, PAIR, None, **options)
    assert_same(found, case.attribute(TwoInputs(), PAIR, [1, 0]))


# --- targets ---

TUPLES = "list of tuples"
FORMS = {
    "list of int": CLASSES,
    "tensor": torch.tensor(CLASSES),
    TUPLES: [(label,) for label in CLASSES],
}
SINGLE_FORMS = {
    "0-d tensor": torch.tensor(2),
    "1-element tensor": torch.tensor([2]),
    "tuple": (2,),
    "list of equal ints": [2, 2, 2],
    "tensor of equal ints": torch.tensor([2, 2, 2]),
    "list of equal tuples": [(2,), (2,), (2,)],
}


@each
@pytest.mark.parametrize(
    ("form", "chunk"), [*[(form, 16) for form in FORMS], *[(TUPLES, n) for n in (1, 4)]]
)
def test_each_example_has_its_own_target_in_every_chunk(case, form, chunk):
    target, inputs = FORMS[form], case.varied(3)
    given = copy.deepcopy(target)
    chunk = {"perturbations_per_eval": chunk if case.rows else None}
    found = case.attribute(case.model(), inputs, given, **chunk)
    assert parts(case, found) == CLASSES
    assert_one_by_one(case, found, case.model(), inputs, CLASSES)
    assert list(given) == list(target)


@each
@pytest.mark.parametrize("target", SINGLE_FORMS.values(), ids=SINGLE_FORMS.keys())
def test_one_target_for_all_examples(case, target):
    found = case.attribute(case.model(), case.varied(3), target)
    assert_same(found, case.attribute(case.model(), case.varied(3), 2))
    assert parts(case, found) == [2, 2, 2]


@each
@pytest.mark.parametrize(
    "target", [torch.tensor(1), torch.tensor([1]), [1], (1,), [(1,)]], ids=repr
)
def test_every_form_of_target_works_for_one_example(case, target):
    found = case.attribute(case.model(), case.inputs(), target)
    assert_same(found, case.attribute(case.model(), case.inputs(), 1))


@each
def test_no_target_is_one_score_an_example(case):
    model, inputs = case.model(), case.inputs()
    expected = case.attribute(model, inputs, 1)
    for inner in (lambda x: model(x)[:, 1], lambda x: model(x)[:, 1:2]):
        assert_same(case.attribute(inner, inputs, None), expected)
    with pytest.raises((ValueError, AssertionError)):
        case.attribute(model, inputs, None)


@each
@pytest.mark.parametrize(
    "target", [(1, 0), [(1, 0), (1, 0)]], ids=["tuple", "list of tuples"]
)
def test_a_target_may_name_an_entry_of_a_wide_output(case, target):
    model, inputs = case.model(), case.inputs(2)
    found = case.attribute(lambda x: model(x).reshape(-1, 2, 2), inputs, target)
    assert_same(found, case.attribute(model, inputs, 2))


BAD_TARGETS = {
    "too large": 4,
    "too large in a tuple": (4,),
    "too many indices": (1, 1),
    "a list too short": [0],
    "a list too long": [0, 1, 2],
    "a list as long as a chunk": [0, 1],
    "a tensor as long as a chunk": torch.tensor([0, 1]),
    "a matrix": torch.zeros(2, 2, dtype=torch.long),
    "a float": 1.0,
    "a float tensor": torch.tensor(1.0),
    "a list of floats": [0.0, 1.0, 2.0, 3.0],
    "a string": "dog",
}


@each
@pytest.mark.parametrize("target", BAD_TARGETS.values(), ids=BAD_TARGETS.keys())
def test_a_bad_target_stays_captums_error(case, target):
    # With chunks of two, a list of two would fit a chunk, but not the four examples.
    model, inputs = case.front(case.model()), case.inputs(4)
    with pytest.raises((AssertionError, IndexError, RuntimeError)) as captums:
        FeatureAblation(model).attribute(inputs, target=target)
    before = traces(model, inputs)
    chunk = {"perturbations_per_eval": 2 if case.rows else None}
    with pytest.raises(captums.type):
        case.attribute(model, inputs, target, **chunk)
    assert traces(model, inputs) == before


# --- additional_forward_args ---


def weighted(case):
    """The sum of the scores, weighted for each example: (K, 4) weights."""
    model = case.model()
    return lambda x, weights, factor=1.0: (model(x) * weights).sum(dim=1) * factor


@each
@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_an_argument_with_one_entry_an_example_goes_with_its_example(case, chunk):
    weights = torch.eye(4)[CLASSES].requires_grad_()
    options = {"perturbations_per_eval": chunk if case.rows else None}
    found = case.attribute(
        weighted(case), case.varied(3), None, additional_forward_args=weights, **options
    )
    assert_same(found, case.attribute(case.model(), case.varied(3), CLASSES))


@with_result
@pytest.mark.parametrize("factor", [2.0, torch.tensor(2.0)], ids=repr)
def test_a_number_or_scalar_tensor_is_for_all_examples(case, factor):
    arguments = torch.eye(4)[[3, 0]], factor
    method, areas = case.make(weighted(case)), case.options["areas"]
    result = method.optimize(case.inputs(2), None, areas, arguments)
    alone = case.make(case.model()).optimize(case.inputs(2), [3, 0], areas)
    assert_same(result.input_score, 2 * alone.input_score)


@each
@pytest.mark.parametrize(
    "value",
    [None, "words", [1.0, 2.0], (1.0, 2.0), {"a": 1}, torch.tensor(3.0), 5],
    ids=repr,
)
def test_other_objects_pass_through_unchanged(case, value):
    model, seen = case.model(), []

    def listening(inputs, extra):
        seen.append(extra)
        return model(inputs)[:, 0]

    case.attribute(listening, case.inputs(), None, additional_forward_args=(value,))
    assert len(seen) >= case.calls[0]  # a function may be asked twice
    # The one forward that is walked back through detaches tensors.
    assert all(extra is value for extra in seen) or seen == [value]


@each
def test_arguments_made_in_inference_mode_work(case):
    model = weighted(case)
    with torch.inference_mode():
        arguments = torch.eye(4)[[3, 0]], torch.tensor(2.0)
        found = case.attribute(
            model, case.inputs(2), None, additional_forward_args=arguments
        )
    assert parts(case, found) == [3, 0]


# --- batches, chunks, progress ---


@each_game
def test_a_batch_gives_what_its_examples_give_one_by_one(case, game):
    model, inputs, labels = ConvNet(3).eval(), varied((3, 3, 12, 12)), [2, 0, 1]
    found = case.attribute(model, inputs, labels, game=game)
    assert_one_by_one(case, found, model, inputs, labels, game=game)


@pytest.mark.parametrize(
    ("case", "game"), [(c, game) for c in CASES if c.rows for game in c.games], ids=str
)
def test_perturbations_per_eval_bounds_the_forward_and_changes_nothing(case, game):
    model, inputs, sizes = case.model(), case.varied(3), []

    def counting(inputs):
        sizes.append(len(inputs))
        return model(inputs)

    expected = case.attribute(model, inputs, CLASSES, game=game)
    scores = []
    for bound in (1, 2, 3, 5, 1000):
        sizes.clear()
        options = {"game": game, "perturbations_per_eval": bound}
        method = case.make(counting)
        assert_same(case.call(method, inputs, CLASSES, **options), expected)
        if hasattr(method, "optimize") and bound in (1, 5, 1000):
            result = method.optimize(inputs, CLASSES, **case.options | options)
            scores.append(result.scores)
            assert_same(scores[0], scores[-1])
        assert max(sizes) <= bound
    # The hybrid game shows two perturbed inputs for each mask.
    assert max(sizes) == case.rows * (2 if game == "hybrid" else 1)


@each
def test_nothing_is_printed_unless_progress_is_asked_for(case, capsys):
    quiet = case.attribute(case.model(), case.inputs())
    assert capsys.readouterr() == ("", "")
    if case.takes("show_progress"):
        found = case.attribute(case.model(), case.inputs(), show_progress=True)
        out, err = capsys.readouterr()
        assert out == ""
        assert case.name in err
        assert case.bar in err
        assert err.endswith("\n")  # it is closed
        assert_same(found, quiet)


# --- options that all understand alike ---

NO_AREAS = [0.0, -0.1, 1.5, float("nan"), float("inf")]
BAD_OPTIONS = [
    *[("areas", a, rf"area must lie in \(0, 1\], got {a}$") for a in NO_AREAS],
    ("areas", (0.1, 1.5), r"area must lie in \(0, 1\], got 1.5$"),
    ("areas", 0, r"area must (lie in \(0, 1\]|be at least 1 (channel|place)), got 0$"),
    *[("areas", a, "areas must hold at least one") for a in ((), [], torch.zeros(0))],
    *[("areas", a, "area must be a number, got") for a in ("0.1", 1j, True)],
    *[("areas", a, "area must be a number, got") for a in (("0.1",), [[0.1]])],
    *[("game", g, "game must be '.*' or '") for g in ("chess", "", None, ["hybrid"])],
    *[("seed", s, "seed must be an int, got") for s in (1.5, "one", None)],
    ("seed", -1, "seed must be at least 0, got -1$"),
    ("perturbations_per_eval", 0, "perturbations_per_eval must be at least 1, got 0$"),
    ("perturbations_per_eval", 2.5, "perturbations_per_eval must be an int, got 2.5"),
]


@pytest.mark.parametrize(
    ("case", "name", "value", "text"),
    [(case, *bad) for case in CASES for bad in BAD_OPTIONS if case.takes(bad[0])],
    ids=str,
)
def test_a_bad_option_is_named_before_any_work(case, name, value, text):
    model = NoModel()
    method, inputs = case.make(model), case.inputs()
    before, kept = traces(model, inputs), dict(vars(method))
    error = TypeError if "a number" in text or "an int" in text else ValueError
    for door in doors(case):
        with pytest.raises(error, match=f"^{text}"):
            getattr(method, door)(inputs, 0, **case.options | {name: value})
    assert model.calls == 0
    assert traces(model, inputs) == before
    assert vars(method) == kept


# --- gradient modes ---


@each
@pytest.mark.parametrize("mode", MODES)
def test_it_works_without_gradients_around_it(case, mode):
    model, inputs = ConvNet(3).eval(), varied((2, 3, 12, 12))
    expected = case.attribute(model, inputs)
    with mode():
        before = traces(model, inputs)
        found = case.attribute(model, inputs)
        assert_same(case.attribute(model, varied((2, 3, 12, 12))), expected)
        assert traces(model, inputs) == before
    assert_same(found, expected)
    assert not found.is_inference() or hasattr(case.method, "optimize")


@each
def test_inputs_and_targets_made_in_inference_mode_work_outside(case):
    with torch.inference_mode():
        inputs, target = case.inputs(2), torch.tensor([3, 0])
    found = case.attribute(case.model(), inputs, target)
    assert_same(found, case.attribute(case.model(), case.inputs(2), [3, 0]))
    assert not found.is_inference()


@those(lambda case: case.calls[1])  # RISE needs no gradient
@pytest.mark.parametrize("parameters", [False, True])
@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.inference_mode])
def test_a_model_made_in_inference_mode_is_one_clear_error(case, parameters, context):
    with torch.inference_mode():
        norm = nn.BatchNorm2d(case.num_channels, affine=False).eval()
        model = case.model() if parameters else nn.Sequential(norm)
    if not parameters:
        model.append(case.model())
    with context(), pytest.raises(RuntimeError, match=r"made inside torch\.inference_"):
        case.attribute(model, case.inputs())


@those(lambda case: case.method is not MeaningfulPerturbation)
def test_autocast_around_the_call_leaves_the_attribution_alone(case):
    model, seen = case.model(), []

    def listening(inputs):
        seen.append(inputs.dtype)
        return model(inputs)

    expected = case.attribute(model, case.inputs(), 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = case.attribute(listening, case.inputs(), 1)
        assert torch.is_autocast_enabled("cpu")
    assert set(seen) == {torch.float32}
    assert_same(found, expected)


# --- kinds of models ---


@each
@pytest.mark.parametrize("kind", ["script", "trace", "function", "method"])
def test_every_kind_of_model_works(case, kind):
    model, inputs = ConvNet(3).eval(), varied((2, 3, 12, 12))
    expected = case.attribute(model, inputs, [1, 2])
    other = {
        "script": lambda: torch.jit.script(model),
        "trace": lambda: torch.jit.trace(model, inputs[:1]),
        "function": lambda: lambda x: model(x),
        "method": lambda: model.forward,
    }[kind]()
    if kind in ("script", "trace") and not case.scripts:
        with pytest.raises(TypeError, match="in plain Python on one device"):
            case.attribute(other, inputs, [1, 2])
    else:
        assert_same(case.attribute(other, inputs, [1, 2]), expected)


@that_train
def test_a_scripted_model_in_training_warns_and_counts_nothing(case):
    model = case.front(torch.jit.script(ConvNet(3).train()))
    before = traces(model)
    with pytest.warns(UserWarning, match="forward_func is in training mode"):
        case.attribute(model, varied((2, 3, 12, 12)))
    assert traces(model) == before


@each
def test_models_with_operations_in_place(case):
    model, inputs = case.model(), case.inputs(2)
    found = case.attribute(lambda x: model(x.mul_(2.0).relu_()), inputs, 1)
    assert_same(found, case.attribute(model, 2 * inputs, 1))
    assert torch.equal(inputs, case.inputs(2))


# --- the global generators ---


@each
def test_the_global_generator_neither_moves_nor_matters(case):
    method, inputs = case.make(ConvNet(3).eval(), **case.chance), varied()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = case.call(method, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(case.call(method, inputs), one)


# --- under Captum's own tools ---


def tunnelled(case, method, inputs, **options):
    return NoiseTunnel(method).attribute(inputs, **case.options | options)


@each
@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel(case, nt_type):
    method, inputs = case.make(case.model(3.0)), case.inputs(2)
    options = {"nt_type": nt_type, "nt_samples": 3, "stdevs": 1e-7}
    found = tunnelled(case, method, inputs, target=[3, 0], **options)
    alone = case.call(method, inputs, [3, 0])
    expected = {
        "smoothgrad": alone,
        "smoothgrad_sq": alone.square(),
        "vargrad": torch.zeros_like(alone),
    }[nt_type]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert not inputs.requires_grad


@those(lambda case: case.smooth)
def test_noise_tunnel_averages_over_noise(case):
    method, inputs = case.make(ConvNet(3).eval()), varied()
    noisy = tunnelled(case, method, inputs, target=0, nt_samples=4, stdevs=0.3)
    assert noisy.shape == case.shape(inputs)
    assert not torch.allclose(noisy, case.call(method, inputs), atol=1e-3)


@of_inputs
def test_noise_tunnel_with_tuples_arguments_and_parts(case):
    method, arguments = (
        case.make(weighted_pair),
        {"additional_forward_args": PAIR_WEIGHTS},
    )
    noise = {"nt_samples": 3, "nt_samples_batch_size": 2, "stdevs": (1e-7, 1e-7)}
    found = tunnelled(case, method, PAIR, **noise, **arguments)
    alone = case.call(method, PAIR, None, **arguments)
    torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-3)


@each
def test_infidelity(case):
    model, inputs = case.model(), case.varied(2)
    attributions = case.attribute(model, inputs, [3, 0])
    step = 0.1 * inputs.flip(0)

    def perturb(x):
        steps = step.repeat_interleave(len(x) // 2, dim=0)
        return steps, x - steps

    found = infidelity(
        model, perturb, inputs, attributions, target=[3, 0], n_perturb_samples=2
    )
    # The model is linear, so its fall is the model of the step.
    predicted = (step * attributions).sum(dim=(1, 2, 3))
    real = model(step)[[0, 1], [3, 0]]
    torch.testing.assert_close(found, (predicted - real).square(), rtol=1e-4, atol=0)


@of_inputs
def test_infidelity_of_tuples(case):
    inputs = varied((2, 1, 12, 12)), varied((2, 3, 8, 16))
    attributions = case.attribute(TwoInputs(), inputs, 0)

    def perturb(both):
        half = tuple(x * 0.5 for x in both)
        return half, half

    found = infidelity(TwoInputs(), perturb, inputs, attributions, target=0)
    predicted = sum(
        (0.5 * x * a).flatten(1).sum(dim=1)
        for x, a in zip(inputs, attributions, strict=True)
    )
    real = 0.5 * TwoInputs()(*inputs)[:, 0]
    expected = (predicted - real).square().detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def sensitivity(case, model, inputs, radius, **options):
    explain = case.make(model).attribute
    more = case.options | options | {"n_perturb_samples": 2}
    return sensitivity_max(explain, inputs, perturb_radius=radius, **more)


@of_inputs  # it hands over tuples, and expects tuples of as many tensors
def test_sensitivity_max(case):
    model, inputs = ConvNet(3).eval(), varied((2, 3, 12, 12))
    for layout in (inputs, inputs.to(memory_format=torch.channels_last)):
        still = sensitivity(case, model, layout, 0.0, target=[2, 0])
        torch.testing.assert_close(still, torch.zeros(2), rtol=0, atol=1e-4)
    moved = sensitivity(case, model, inputs, 0.3, target=[2, 0])
    assert moved.shape == (2,)
    assert (moved > 5e-3).all() == case.smooth


@of_inputs
def test_sensitivity_max_of_tuples(case):
    inputs = varied((2, 1, 12, 12)), varied((2, 3, 8, 16))
    found = sensitivity(case, TwoInputs(), inputs, 0.0, target=torch.tensor([1, 0]))
    torch.testing.assert_close(found, torch.zeros(2), rtol=0, atol=1e-4)


# --- layers ---


@of_layers
def test_a_layer_and_its_input_are_told_apart_and_can_be_enlarged(case):
    model = ConvNet(3).eval()
    method = case.make(model, model.conv)
    assert case.call(method, varied(), attribute_to_layer_input=True).shape[1] == 3
    found = case.call(method, varied())
    assert found.shape == case.shape(torch.zeros(1, 4, 12, 12))
    assert LayerAttribution.interpolate(found, (24, 24)).shape == (1, 4, 24, 24)


@of_layers
@pytest.mark.parametrize("calls", [0, 2])
def test_a_layer_must_be_called_once(case, calls):
    layer = nn.Identity()

    def model(x):
        for _ in range(calls):
            x = layer(x)
        return x.flatten(2).mean(dim=2)

    text = f"layer must be called once .* got {calls} calls"
    with pytest.raises(ValueError, match=text):
        case.call(case.make(model, layer), case.inputs())
    assert not layer._forward_hooks


# --- memory ---


@pytest.fixture
def tensors():
    """Counts the tensors that a test has made and not let go of."""
    gc.freeze()  # what was there before is left alone, which is far quicker

    def count():
        gc.collect()
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    yield count
    gc.unfreeze()


@each
def test_many_calls_leave_nothing_behind(case, tensors):
    method, inputs = case.make(ConvNet(3).eval()), varied()
    case.call(method, inputs)
    before = tensors()
    for _ in range(10):
        case.call(method, inputs)
    assert tensors() <= before


@each
def test_a_failed_call_leaves_nothing_behind(case, tensors):
    method = case.make(NoModel(at=case.fails[-1]))
    before = tensors()
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            case.call(method, constant())
    assert tensors() <= before


@each
def test_the_method_keeps_neither_inputs_nor_what_comes_back(case, tensors):
    method, inputs = case.make(case.model()), case.inputs()
    before = tensors()
    found = case.call(method, inputs)
    assert tensors() > before
    alive = weakref.ref(inputs), weakref.ref(found)
    del inputs, found
    assert tensors() < before
    assert [reference() for reference in alive] == [None, None]


@with_result
def test_the_model_is_not_kept_alive_by_a_result(case, tensors):
    model = case.model()
    result = case.make(model).optimize(case.inputs(), 0, case.options["areas"])
    alive = weakref.ref(model)
    del model
    tensors()
    assert alive() is None
    assert result.masks.shape[:2] == (1, 2)
