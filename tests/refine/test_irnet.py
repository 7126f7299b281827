"""IRNet: both branches on every backbone, what the loss counts, what never changes, and that it draws boundaries."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsss_lib import backbones
from wsss_lib.backbones.base import Backbone
from wsss_lib.data.samples import MaskBatch, MaskSample, collate_masks
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.methods.base import Progress
from wsss_lib.nn.boundary import boundary_affinity, displacement_losses
from wsss_lib.nn.pairs import affinity_loss, cell_labels, ends
from wsss_lib.refine.irnet import BoundaryBranch, DisplacementBranch, IRNet
from wsss_lib.settings import load
from wsss_lib.train import fit, seeded

TERMS = ["background", "foreground", "different", "displacement_foreground", "displacement_background"]


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape, seed=0, values=(0, 1, 2, 255)):
    return torch.tensor(values)[torch.randint(0, len(values), shape, generator=torch.Generator().manual_seed(seed))]


def tiny(**options):
    return seeded(0, lambda: IRNet(backbones.build("tiny"), **{"radius": 4, **options}))


def batch_of(mask, seed=1):
    return MaskBatch(numbers(len(mask), 3, *mask.shape[1:], seed=seed), mask, tuple(map(str, range(len(mask)))))


def groups(module):
    return [(norm.num_groups, norm.num_channels) for norm in module.modules() if isinstance(norm, nn.GroupNorm)]


class Stages(Backbone):
    """A backbone of average poolings, whose channels are those of the image over and over; a BatchNorm in between."""

    def __init__(self, channels, strides):
        super().__init__()
        self.channels, self.strides = channels, strides
        self.norm = nn.BatchNorm2d(3)

    def stage_modules(self):
        return [self.norm] * len(self.channels)

    def stages(self, image):
        pooled = (F.avg_pool2d(self.norm(image), s) for s in self.strides)
        return [x.repeat(1, -(-c // 3), 1, 1)[:, :c] for x, c in zip(pooled, self.channels, strict=True)]


# The network


@pytest.mark.parametrize(
    ("name", "stride"), [("tiny", 4), ("tiny", 2), ("tiny", 8), ("mobilenet_v1", 4), ("resnet50", 4), ("resnet50", 8)]
)
def test_both_outputs_have_a_cell_for_each_stride_at_odd_sizes_on_every_backbone(name, stride):
    net = IRNet(backbones.build(name), stride=stride).eval()
    with torch.inference_mode():
        boundary, field = net.boundary(numbers(1, 3, 37, 50)), net.displacement(numbers(1, 3, 37, 50))
    size = -(-37 // stride), -(-50 // stride)
    assert boundary.shape == (1, *size) and field.shape == (1, 2, *size)
    assert (boundary > 0).all() and (boundary < 1).all() and boundary.std() > 0 and field.std() > 0


def test_on_the_papers_backbone_both_branches_are_the_released_ones():
    net = IRNet(backbones.build("resnet50"))
    assert sum(p.numel() for group in net.parameter_groups() for p in group["params"]) == 1_394_529
    assert groups(net.boundary_branch) == [(4, 32)] * 5
    assert groups(net.displacement_branch) == [(8, 64), (16, 128), *[(16, 256)] * 5]
    branch = net.displacement_branch
    assert [layer[0].in_channels for layer in (branch.join, branch.mix)] == [3 * 256, 64 + 128 + 256]
    assert branch.factors == [1, 1, 1, 2, 2] and branch.joint_factor == 2
    assert net.boundary_branch.factors == [1, 1, 2, 4, 4]
    assert net.boundary_branch.classify.bias is not None and branch.point.bias is None


def test_the_displacement_branch_joins_no_stage_where_all_lie_on_the_grid_and_all_where_none_does():
    assert DisplacementBranch((16, 32, 64), (2, 4, 4), 4).join is None
    branch = DisplacementBranch((16, 32, 64), (4, 8, 16), 2)
    assert branch.join[0].in_channels == 112 and branch.mix[0].in_channels == 256
    stages = [numbers(1, c, 16 // s, 32 // s) for c, s in zip((16, 32, 64), (1, 2, 4), strict=True)]
    assert branch(stages).shape == (1, 2, 32, 64)


@pytest.mark.parametrize("channels", [(1, 3, 5), (7, 100, 1000), (48, 90, 17)])
def test_no_width_of_a_stage_breaks_the_groups(channels):
    for branch in (BoundaryBranch(channels, (1, 1, 2), 1), DisplacementBranch(channels, (1, 1, 2), 1)):
        assert all(1 <= n <= min(16, width) and width % n == 0 for n, width in groups(branch))
        assert (
            branch([numbers(1, c, 4 // s, 4 // s) for c, s in zip(channels, (1, 1, 2), strict=True)]).isfinite().all()
        )


@pytest.mark.parametrize("branch", [BoundaryBranch, DisplacementBranch])
def test_a_stage_that_repeats_its_cells_is_as_good_as_the_coarser_one(branch):
    plain, finer = (seeded(0, lambda s=s: branch((6, 8, 8), (s, 4, 8), 4)) for s in (4, 2))
    stages = [numbers(2, c, 8 // s, 16 // s, seed=c) for c, s in ((6, 1), (8, 1), (8, 2))]
    repeated = stages[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(finer([repeated, *stages[1:]]), plain(stages))


def test_a_coarse_stage_is_enlarged_cell_by_cell():
    # One cell of the coarse stage alone differs: it is felt by its own 2 x 2 cells and, bilinearly, one around them.
    branch = seeded(0, lambda: BoundaryBranch((8, 8), (4, 8), 4))
    branch.reduce[1] = nn.Conv2d(8, 32, 1)
    stages = [numbers(1, 8, 12, 12), numbers(1, 8, 6, 6, seed=1)]
    before = branch(stages)
    stages[1][:, :, 2, 3] += 5
    rows, columns = (branch(stages) - before)[0].nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 6, 5, 8)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (29, 41), (5, 7)])
def test_an_image_is_padded_with_the_mean_colour_to_whole_cells(height, width):
    net = IRNet(Stages((4, 6), (4, 16))).eval()
    image = numbers(1, 3, height, width)
    framed = F.pad(image, (0, -width % 16, 0, -height % 16))
    cut = (..., slice(-(-height // 4)), slice(-(-width // 4)))
    assert torch.equal(net.boundary(image), net.boundary(framed)[cut])
    assert torch.equal(net.displacement(image), net.displacement(framed)[cut])


def test_a_boundary_is_the_sigmoid_of_the_mean_logit_of_image_and_mirror():
    net, image = tiny().eval(), numbers(2, 3, 24, 32)
    here, there = (net.boundary_branch(net.backbone.stages(x)) for x in (image, image.flip(-1)))
    got = net.boundary(image)
    torch.testing.assert_close(got, ((here + there.flip(-1)) / 2).sigmoid())
    assert not torch.allclose(here, there.flip(-1), atol=1e-3)
    torch.testing.assert_close(net.boundary(image.flip(-1)), got.flip(-1))
    torch.testing.assert_close(net.boundary(image[1:]), got[1:])


def test_pairs_are_those_of_the_boundary_within_the_walks_radius():
    net, image = tiny(walk_radius=3).eval(), numbers(1, 3, 22, 37)
    with torch.inference_mode():
        boundary, (pairs, rest) = net.boundary(image), net.affinities(image)
        expected = list(boundary_affinity(boundary, 3))
        for found in (pairs, net.pairs(image)):
            for (offset, values), (right, wanted) in zip(found, expected, strict=True):
                assert offset == right and torch.equal(values, wanted)
    assert torch.equal(rest, 1 - boundary)


# What never changes


@pytest.mark.parametrize("name", ["tiny", "mobilenet_v1"])
def test_the_backbone_gets_no_gradient_and_its_statistics_do_not_move(name):
    net = IRNet(backbones.build(name), radius=4)
    before = {key: value.clone() for key, value in net.backbone.state_dict().items()}
    net.train()
    net.loss(batch_of(labels(2, 32, 32)), Progress()).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in net.backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.backbone.state_dict().items())
    assert not any(m.training for m in net.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(p.grad.any() for group in net.parameter_groups() for p in group["params"])


def test_only_the_branches_learn_displacements_at_their_own_rate():
    boundary, displacement = tiny().parameter_groups(7.0)
    assert (boundary["lr_factor"], displacement["lr_factor"]) == (1.0, 7.0)
    net = tiny()
    grouped = [id(p) for group in net.parameter_groups() for p in group["params"]]
    learning = [id(p) for p in net.parameters() if p.requires_grad]
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(learning)
    assert set(grouped).isdisjoint(map(id, net.backbone.parameters()))
    assert [group["lr_factor"] for group in net.parameter_groups()] == [1.0, 10.0]


# The loss


def test_the_loss_is_the_papers_sum_of_the_terms_of_the_labels_in_the_cells_middles():
    net, batch = tiny(), batch_of(labels(2, 32, 24))
    got = net.loss(batch, Progress())
    stages, mask = net.backbone.stages(batch.image), cell_labels(batch.mask, (8, 6))
    right = affinity_loss(boundary_affinity(net.boundary_branch(stages).sigmoid(), 4), mask)
    right |= displacement_losses(net.displacement_branch(stages), mask, 4)
    assert list(got.terms) == TERMS and got.terms == right and all(value > 0 for value in right.values())
    weighed = [w * right[name] for w, name in zip((0.25, 0.25, 0.5, 0.5, 0.5), TERMS, strict=True)]
    torch.testing.assert_close(got.total, sum(weighed))


@pytest.mark.parametrize(("height", "width"), [(29, 41), (5, 3), (33, 64)])
def test_where_an_image_is_padded_nothing_is_learnt(height, width):
    net, mask = tiny(), labels(2, height, width)
    image = numbers(2, 3, height, width)
    pad = (0, -width % 4, 0, -height % 4)
    framed = MaskBatch(F.pad(image, pad), F.pad(mask, pad, value=255), ("a", "b"))
    assert net.loss(MaskBatch(image, mask, ("a", "b")), Progress()).terms == net.loss(framed, Progress()).terms


def test_classes_under_other_names_have_the_same_loss():
    net, mask = tiny(), labels(2, 32, 32, values=(0, 1, 2, 3))
    other = torch.tensor([0, 3, 1, 2])[mask]
    assert net.loss(batch_of(mask), Progress()).total == net.loss(batch_of(other), Progress()).total


def test_a_batch_without_sure_labels_gives_0_with_a_gradient_of_0():
    net = tiny()
    losses = net.loss(batch_of(torch.full((2, 16, 16), 255)), Progress())
    losses.total.backward()
    assert losses.total == 0 and all(value == 0 for value in losses.terms.values())
    assert all((p.grad == 0).all() for group in net.parameter_groups() for p in group["params"])


def test_under_autocast_boundaries_and_terms_are_of_float32_and_nearly_the_same():
    net, batch = tiny(), batch_of(labels(2, 32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        logits = net.boundary_branch(net.backbone.stages(batch.image))
        assert logits.dtype == torch.bfloat16
        assert all(values.dtype == torch.float32 for _, values in net.pairs(batch.image))
        losses = net.loss(batch, Progress())
    wide = affinity_loss(boundary_affinity(logits.float().sigmoid(), 4), cell_labels(batch.mask, (8, 8)))
    assert all(losses.terms[name] == value for name, value in wide.items())
    exact = net.loss(batch, Progress())
    for name, value in losses.terms.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact.terms[name], rtol=0.05, atol=0.01)


# Displacements


def test_the_mean_displacement_is_kept_with_the_weights_and_subtracted_in_evaluation_only():
    net, images = tiny(), [numbers(2, 3, 24, 32, seed=k) for k in range(3)]
    net.displacement_branch.mean.copy_(torch.tensor([9.0, -9.0]))  # of before: does not count
    raw = torch.cat([net.train().displacement(x) for x in images])
    net.centre_displacement(iter(images))
    mean = raw.mean((0, 2, 3))
    torch.testing.assert_close(net.displacement_branch.mean, mean.detach())
    assert torch.equal(torch.cat([net.displacement(x) for x in images]), raw)
    net.eval()
    centred = torch.cat([net.displacement(x) for x in images])
    torch.testing.assert_close(centred, raw - mean.view(2, 1, 1))
    other = tiny().eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.displacement(images[0]), net.displacement(images[0]))
    kept = net.displacement_branch.mean.clone()
    net.centre_displacement(images)
    torch.testing.assert_close(net.displacement_branch.mean, kept)


def test_each_cell_counts_the_same_in_the_mean_displacement_whatever_its_images_size():
    net, images = tiny(), [numbers(1, 3, 16, 16), numbers(2, 3, 33, 21, seed=1)]
    cells = torch.cat([net.displacement(x).transpose(0, 1).flatten(1) for x in images], 1)
    assert cells.shape == (2, 16 + 2 * 9 * 6)
    net.centre_displacement(images)
    torch.testing.assert_close(net.displacement_branch.mean, cells.mean(1).detach())


# Learning


class Halves(torch.utils.data.Dataset):
    """Noise that is darker on one side of a border; the other side is the object, and labels near it are unsure."""

    def __len__(self):
        return 8

    def __getitem__(self, key):
        index, _ = key
        right = torch.arange(64) >= self.border(index)
        mask = (right ^ bool(index % 2)).long().expand(64, 64) * (1 + index // 4)
        image = 0.3 * numbers(3, 64, 64, seed=index) + torch.where(mask > 0, 1.0, -1.0)
        far = (torch.arange(64) - self.border(index)).abs() >= 8
        return MaskSample(image, torch.where(far, mask, 255), str(index))

    def border(self, index):
        """The first column to its right."""
        return 20 + 8 * (index % 4)


def train(net, tmp_path, **options):
    recipe = {**load("smoke").cam, "epochs": 15, "max_steps": 0, "batch_size": 4, "lr": 0.1, "classifier_factor": 1.0}
    files = {"checkpoint": tmp_path / "c.pt", "log": tmp_path / "l.csv"}
    return fit(net, Halves(), {**recipe, **options}, seed=0, collate=collate_masks, **files)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_short_training_draws_the_boundary_that_no_label_shows(tmp_path, precision):
    net, halves = tiny(radius=6), Halves()
    batch = collate_masks([halves[i, 0] for i in range(8)])
    before = net.loss(batch, Progress())
    backbone = {key: value.clone() for key, value in net.backbone.state_dict().items()}
    train(net, tmp_path, precision=precision)
    with torch.inference_mode():
        after, boundary = net.loss(batch, Progress()), net.boundary(batch.image)
    assert after.total < 0.75 * before.total
    assert all(after.terms[name] < (0.4 if name in TERMS[:3] else 1) * before.terms[name] for name in TERMS)
    for index, drawn in enumerate(boundary):
        column = halves.border(index) // 4
        right = (torch.arange(16) >= column).expand(16, 16)
        near = torch.zeros(16, dtype=torch.bool)
        near[column - 1 : column + 1] = True
        assert drawn[:, near].amax(1).mean() > 0.7 and drawn[:, ~near].mean() < 0.1
        within, across = [], []
        for offset, values in boundary_affinity(drawn[None], 5):
            same = torch.eq(*ends(right, offset))
            within.append(values[0][same])
            across.append(values[0][~same])
        assert torch.cat(within).median() > 0.9 and torch.cat(across).mean() < 0.3
    assert all(torch.equal(value, backbone[key]) for key, value in net.backbone.state_dict().items())


def test_without_displacements_the_boundary_learns_to_the_same_bytes(tmp_path):
    nets = [tiny(displacement=wanted) for wanted in (True, False)]
    for k, net in enumerate(nets):
        (tmp_path / str(k)).mkdir()
        train(net, tmp_path / str(k), epochs=2)
    both, alone = (net.boundary_branch.state_dict() for net in nets)
    assert all(torch.equal(value, both[key]) for key, value in alone.items())
    assert [group["name"] for group in nets[1].parameter_groups()] == ["boundary"]
    losses = nets[1].loss(batch_of(labels(2, 32, 32)), Progress())
    assert list(losses.terms) == TERMS[:3]


# Mistakes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stride": 0}, "stride=0: give a whole number of pixels, 1 or more"),
        ({"stride": 2.5}, "stride=2.5: give a whole number of pixels, 1 or more"),
        ({"radius": 1}, "radius=1: give more than 1 cell"),
        ({"walk_radius": 0.5}, "radius=0.5: give more than 1 cell"),
    ],
)
def test_what_cannot_work_is_refused_at_once_in_one_line(options, says):
    with pytest.raises(SettingsError, match=says) as error:
        IRNet(backbones.build("tiny"), **options)
    assert "\n" not in str(error.value)


def test_displacements_that_were_not_learnt_and_a_mean_of_nothing_are_refused():
    net = tiny(displacement=False)
    for ask in (lambda: net.displacement(numbers(1, 3, 8, 8)), lambda: net.centre_displacement([])):
        with pytest.raises(WsssError, match="displacement=False: this network has learnt none"):
            ask()
    with pytest.raises(WsssError, match="images: none to take the mean displacement of"):
        tiny().centre_displacement([])
