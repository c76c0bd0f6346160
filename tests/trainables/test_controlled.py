"""Controls of candidates of a search: as a study of masks trains the same, packed or alone, in one go or not."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsefront.search.methods.pruners import PRUNERS
from sparsefront.spaces.candidate import Candidate
from sparsefront.spaces.controls import CONTROLS
from sparsefront.spaces.masks import mask_digest, pack_bits, remains, split_sections, unpack_bits
from sparsefront.spaces.pruning import Pruning
from sparsefront.trainables.checkpoints import OnTheWay
from sparsefront.trainables.pack import Schedule
from sparsefront.trainables.segments import LaneSpec, SegmentShop
from sparsefront.trainables.workshop import LaneOrder, Workshop
from tests.trainables.test_networks import UNLIKE, recipe_of, settings_of
from tests.trainables.test_segments import run

CPU = torch.device("cpu")
STEPS, EVERY, BATCH = 20, 8, 32
TOLERANCE = 1e-4
SPARSITY = 0.6
METHODS = {name: row.method for name, row in PRUNERS.items()} | {
    "late": Pruning("levels", allocation="global", rate=0.3, rewind_fraction=0.25)
}


@pytest.fixture
def shop_of(blobs, tmp_path):
    def make(family="mlp", kind="weight", folder="checkpoints", every_s=math.inf, **rates):
        schedule = Schedule("adam", STEPS, BATCH, EVERY, **rates)
        methods = METHODS if kind == "weight" else {n: replace(m, allocation="uniform") for n, m in METHODS.items()}
        recipe = recipe_of(family, schedule=schedule, mask_kind=kind, methods=methods, sparsity=SPARSITY)
        return SegmentShop(recipe, blobs, CPU, tmp_path / folder, checkpoint_every_s=every_s)

    return make


def trained(shop, settings, replicate=1, *, keeps_mask=False, spec=None):
    """What becomes of one candidate."""
    steps = shop.networks.describe(replicate, settings).steps
    spec = spec or LaneSpec("a", settings, 0, steps, keeps_mask=keeps_mask)
    (one,) = run(shop, [spec], replicate).values()
    assert one.outcome == "completed"
    return one


def controlled(settings, control, bits):
    return {**settings, "masks.control": control, "masks.bits": bits}


def in_a_study_of_masks(shop, blobs, settings, control, bits, replicate, folder):
    """The control of the same mask as the workshop makes and trains it, from the same initial weights."""
    network = shop.networks.describe(replicate, {k: v for k, v in settings.items() if k.startswith("model.")})
    name = settings.get("masks.method")
    method, kind = None if name is None else shop.recipe.methods[name], shop.recipe.mask_kind
    own = {k.removeprefix("model."): v for k, v in settings.items() if k.startswith("model.")}
    hyper = replace(shop.recipe.hyper, lr=settings["training.lr"])
    recipe = replace(shop.recipe, hyper=hyper, model_options=shop.recipe.model_options | own)
    workshop = Workshop(recipe, blobs, CPU, folder)
    weights = shop.networks.initial(network.architecture, replicate)
    parent = {n: torch.from_numpy(w) for n, w in weights.items()}
    state = replace(workshop._replicate(replicate), weights=dict(weights), parent=parent)
    workshop._replicate = lambda number: state if number == replicate else pytest.fail("another replicate")
    row, digest = CONTROLS[control], mask_digest(bits)
    how, checkpoint = {}, None
    if row.network == "masked" and method is not None and not row.fresh_weights:
        if method.keeps_weights:
            order = LaneOrder(Candidate(replicate, 0.0, "parent"), id="parent", keeps_weights=True)
            (one,) = [t for ended in workshop.train([order]) for t in ended]
            checkpoint, how = one.checkpoint, {"start": "trained", "method": method, "origin": "parent"}
        elif step := method.rewind_step(STEPS):
            how = {"start": "rewound", "rewind_step": step}
    if row.network == "masked" and method is not None and method.update == "edge_popup":
        how = {"start": "frozen"}
    of_network = "small_dense" if row.network == "small" else "masked"
    candidate = Candidate(replicate, SPARSITY, of_network, mask=digest, control=control, **how)
    assert kind in ("node", "weight")
    (one,) = [t for ended in workshop.train([LaneOrder(candidate, bits, "control", (), checkpoint)]) for t in ended]
    assert one.outcome == "completed", one.error
    return one


DRAWN = None
CASES = [
    *((name, kind) for name in ("imp", "late", "magnitude_oneshot", "snip", "rigl") for kind in ("weight", "node")),
    *(("gmp", "weight"), ("edge_popup", "weight"), ("lr_rewind", "weight"), (DRAWN, "weight"), (DRAWN, "node")),
]


@pytest.mark.parametrize("rates", [{}, {"lr_schedule": "cosine", "warmup_fraction": 0.2}], ids=["constant", "cosine"])
@pytest.mark.parametrize(
    ("name", "kind", "control"),
    [
        (name, kind, control)
        for name, kind in CASES
        for control, row in CONTROLS.items()
        # Levels of `lr_rewind` have weights under their own masks alone: shuffles of them are refused.
        if row.network != "parent" and (name != "lr_rewind" or row.shuffle is None)
    ],
)
def test_a_control_is_that_of_a_study_of_masks(name, kind, control, rates, shop_of, blobs, tmp_path):
    shop = shop_of(kind=kind, **rates)
    settings = settings_of(UNLIKE["mlp"][1], {"training.lr": 0.01})
    if name is not None:
        settings["masks.method"] = name
    original = trained(shop, settings, keeps_mask=True)
    assert mask_digest(original.mask_bits) == original.mask_digest
    found = trained(shop, controlled(settings, control, original.mask_bits))
    expected = in_a_study_of_masks(shop, blobs, settings, control, original.mask_bits, 1, tmp_path / "masks")
    assert found.val_loss == pytest.approx(expected.result.val_loss, abs=TOLERANCE)
    assert found.test_loss == pytest.approx(expected.test_loss, abs=TOLERANCE)
    assert found.remains == expected.remains
    described = shop.networks.describe(1, controlled(settings, control, original.mask_bits))
    assert (described.n_params, described.macs) == (found.remains.n_params, found.remains.macs)
    assert described.weight_sparsity == pytest.approx(found.remains.weight_sparsity)
    if CONTROLS[control].network == "small":
        assert (found.mask_kind, found.mask_digest) == ("none", None)
    else:
        assert found.mask_digest == expected.mask_digest
        is_same = found.mask_digest == original.mask_digest
        assert is_same == (CONTROLS[control].shuffle is None)


@pytest.mark.parametrize("family", ["residual_mlp", "conv1d", "hourglass"])
@pytest.mark.parametrize("control", ["shuffled_layers", "shuffled", "fresh_weights", "small_dense"])
@pytest.mark.parametrize("kind", ["weight", "node"])
def test_controls_of_other_families_are_those_of_a_study_of_masks(family, control, kind, shop_of, blobs, tmp_path):
    shop = shop_of(family, kind)
    settings = settings_of(UNLIKE[family][0], {"training.lr": 0.01, "masks.method": "late"})
    original = trained(shop, settings, keeps_mask=True)
    found = trained(shop, controlled(settings, control, original.mask_bits))
    expected = in_a_study_of_masks(shop, blobs, settings, control, original.mask_bits, 1, tmp_path / "masks")
    assert found.val_loss == pytest.approx(expected.result.val_loss, abs=TOLERANCE)
    assert (found.remains, found.mask_digest) == (
        expected.remains,
        None if control == "small_dense" else expected.mask_digest,
    )


def test_a_searched_mask_has_controls_too(shop_of):
    shop = shop_of()
    settings = settings_of(UNLIKE["mlp"][1], {"training.lr": 0.01})
    network = shop.networks.describe(1, settings)
    bits = pack_bits(network.mask).tobytes()
    named = {**settings, "masks.bits": bits}
    whole = trained(shop, named, keeps_mask=True)
    assert whole.mask_bits == bits
    shuffled = shop.networks.describe(1, controlled(named, "shuffled_layers", bits))
    sections = [
        [int(part.sum()) for part in split_sections(network.structure, "weight", mask)]
        for mask in (network.mask, shuffled.mask)
    ]
    assert sections[0] == sections[1]
    assert (shuffled.mask != network.mask).any()
    # It is what the mask would be as one that is searched.
    again = trained(shop, {**settings, "masks.bits": pack_bits(shuffled.mask).tobytes()})
    found = trained(shop, controlled(named, "shuffled_layers", bits))
    assert (found.val_loss, found.mask_digest) == (again.val_loss, again.mask_digest)


def test_masks_that_keep_equally_many_have_controls_of_their_own(shop_of):
    shop = shop_of()
    settings = settings_of(UNLIKE["mlp"][1])
    bits = [pack_bits(shop.networks.describe(1, {**settings, "masks.draw": i}).mask).tobytes() for i in range(2)]
    for control in ("shuffled_layers", "shuffled"):
        masks = [shop.networks.describe(1, controlled(settings, control, each)).mask for each in bits]
        assert (masks[0] != masks[1]).any()
    small = [shop.networks.describe(1, controlled(settings, "small_dense", each)) for each in bits]
    weights = [shop.networks.build(network).weights for network in small]
    assert any((weights[0][name] != weights[1][name]).any() for name in weights[0])
    again = shop.networks.build(shop.networks.describe(1, controlled(settings, "small_dense", bits[0]))).weights
    assert all((weights[0][name] == again[name]).all() for name in again)


@pytest.mark.parametrize("name", ["imp", "late", "magnitude_oneshot", "snip", "synflow", "rigl", DRAWN])
def test_the_dense_parent_is_trained_for_all_passes(name, shop_of):
    """Of training and of scores; validation on the way and the test at the end are nobody's budget."""
    shop = shop_of()
    settings = settings_of(UNLIKE["mlp"][1], {} if name is None else {"masks.method": name})
    method = None if name is None else METHODS[name]
    original, bought = trained(shop, settings), trained(shop, {**settings, "masks.control": "dense_budget"})
    network = shop.networks.describe(1, settings)
    n_trainings, steps, scores = 1, STEPS, 0.0
    if network.chain is not None:
        n_trainings = len(network.chain.sparsities)
        steps = STEPS + (n_trainings - 1) * (STEPS - network.chain.rewind_step)
    if name == "snip":
        scores = 8.0  # examples: less than half of a batch, but what costs anything is a step at least
    if name == "synflow":
        scores = 100.0  # rounds of one example: three batches
    assert bought.steps == steps + (max(1, math.floor(scores / BATCH + 0.5)) if scores else 0)
    assert bought.remains.weight_sparsity == 0.0
    assert bought.mask_kind == "none"
    n_points, last = divmod(bought.steps, EVERY)
    assert bought.passes == pytest.approx(BATCH * bought.steps + (60 * (n_points + bool(last)) + 80) / 3)
    n_validated = {20: 3, 15: 2}  # validation points of a whole training, and of one rewound by a quarter
    rest = 0 if network.chain is None else network.chain.level_steps - network.chain.rewind_step
    n_points = 3 + (n_trainings - 1) * n_validated.get(rest, 0)
    if name == "late":
        n_points += 1  # where the weights lie that it rewinds to
    assert original.passes == pytest.approx(BATCH * steps + scores + (60 * n_points + 80) / 3)
    assert method is None or method.update != "edge_popup"


@pytest.mark.parametrize("control", ["shuffled_layers", "fresh_weights", "small_dense", "dense_budget"])
def test_controls_of_many_share_packs_and_are_each_what_it_is_alone(control, shop_of):
    shop = shop_of()
    names = [DRAWN, "snip", "imp"] if control in ("small_dense", "dense_budget") else ["snip", "imp", "rigl"]
    specs = []
    for i, (options, name) in enumerate(zip(UNLIKE["mlp"], names, strict=True)):
        settings = settings_of(options, {"training.lr": 0.01 + 0.002 * i})
        if name is not None:
            settings["masks.method"] = name
        bits = trained(shop, settings, keeps_mask=True).mask_bits
        own = controlled(settings, control, bits)
        if control == "dense_budget":
            del own["masks.bits"]
        specs.append(LaneSpec(f"lane{i}", own, 0, shop.networks.describe(1, own).steps))
    assert len({shop.networks.describe(1, spec.settings).shape.group for spec in specs}) == 1
    together = run(shop, specs, 1)
    for spec in specs:
        alone = trained(shop, spec.settings, spec=spec)
        assert together[spec.id].val_loss == pytest.approx(alone.val_loss, abs=TOLERANCE)
        assert together[spec.id].remains == alone.remains
        assert together[spec.id].passes == pytest.approx(alone.passes)


@pytest.mark.parametrize(("name", "leg_end"), [("late", 5), ("magnitude_oneshot", STEPS)])
def test_a_control_that_is_cut_off_goes_on_where_its_mask_comes_in(name, leg_end, shop_of):
    whole_shop = shop_of(folder="whole")
    settings = settings_of(UNLIKE["mlp"][1], {"training.lr": 0.01, "masks.method": name})
    bits = trained(whole_shop, settings, keeps_mask=True).mask_bits
    own = controlled(settings, "shuffled_layers", bits)
    whole = trained(whole_shop, own)
    shop = shop_of(every_s=0.0)
    spec = LaneSpec("a", own, 0, shop.networks.describe(1, own).steps)
    training = shop.train([spec], 1)
    n_points = 1 if name == "late" else 3
    for _ in range(1 + n_points + 1):  # what it is, the points of its dense training, and one under the mask
        next(training)
    training.close()
    assert next(s.step for s in OnTheWay(shop._folder, "a", spec.stop_step).states()) == leg_end
    again = trained(shop, own, spec=spec)
    assert again.val_loss == pytest.approx(whole.val_loss, abs=TOLERANCE)
    assert (again.mask_digest, again.steps) == (whole.mask_digest, whole.steps)
    assert (again.passes, again.flops) == (pytest.approx(whole.passes), pytest.approx(whole.flops))


def test_what_a_control_of_nodes_leaves_is_counted(shop_of):
    shop = shop_of(kind="node")
    settings = settings_of(UNLIKE["mlp"][1], {"masks.method": "late"})
    bits = trained(shop, settings, keeps_mask=True).mask_bits
    network = shop.networks.describe(1, settings)
    original = unpack_bits(bits, sum(network.structure.section_sizes("node")))
    anywhere = trained(shop, controlled(settings, "shuffled", bits), keeps_mask=True)
    mask = unpack_bits(anywhere.mask_bits, len(original))
    assert np.count_nonzero(mask) == np.count_nonzero(original)
    assert anywhere.remains == remains(network.structure, "node", mask)


def test_masks_are_told_only_where_they_are_kept(shop_of):
    shop = shop_of()
    settings = settings_of(UNLIKE["mlp"][1])
    assert trained(shop, settings).mask_bits is None
    assert trained(shop, {**settings, "masks.sparsity": 0.0}, keeps_mask=True).mask_bits is None
