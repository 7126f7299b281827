# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · Segmentation: a student of noisy masks
#
# The pseudo masks are full of mistakes. A segmentation network learns from them all the same, and often becomes better than
# they are. This notebook trains it, and asks honestly when the student beats its teacher.
#
# | | |
# |---|---|
# | **Time** | about a minute on two CPU cores (profile `demo`), once the masks of notebook 07 are there |
# | **Needs** | nothing but this kit; no GPU, no downloads |
# | **Papers** | Chen et al., *DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully Connected CRFs*, 2016 ([arXiv:1606.00915](https://arxiv.org/abs/1606.00915)) |
# | **Before** | [07 Pseudo masks](07_pseudo_masks.ipynb) |
#
# Afterwards you will be able to
#
# 1. write atrous convolution, the segmentation loss with ignored pixels, and multi-scale testing by hand;
# 2. say which errors of its teacher a student can undo, and which it inherits;
# 3. score masks on a validation split, look at what goes wrong, and pack a submission for the VOC server;
# 4. say how published code trains and tests this network, and which setting does the same here.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
import os

profile = os.environ.get("WSSS_PROFILE", "demo")  # smoke | demo | laptop | paper
dataset = ""  # name of the data set; empty: the profile's own
data_root = ""  # folder in VOC layout; empty: toy scenes, drawn on the spot
runs_root = ""  # where results go; empty: runs/ of the project
seed = 0  # of every random draw
overrides = {}  # departures from the profile, {"cam.epochs": 3}
method = "cam"  # whose pseudo masks the network learns from

# %% [markdown]
# ## Set-up

# %% tags=["nbval-ignore-output"]
import inspect
import tarfile
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from PIL import Image

from data_prep.ready import ready
from wsss_lib import choices, results, stages, train, viz, widgets
from wsss_lib.data import PseudoMaskSet, read_mask, train_transform, write_mask
from wsss_lib.data.samples import collate_masks
from wsss_lib.data.transforms import denormalize, normalize, resize_image
from wsss_lib.errors import DataError
from wsss_lib.methods.base import Progress
from wsss_lib.metrics import ConfusionMatrix
from wsss_lib.refine.mean_field import refined_labels
from wsss_lib.runs import Run
from wsss_lib.segment import DeepLab, pack
from wsss_lib.segment.deeplab import multi_scale_scores, pixel_cross_entropy
from wsss_lib.segment.predict import COMBINE, enlarge, predict
from wsss_lib.settings import load

settings = load(profile, overrides)
folder = ready(settings, dataset, data_root)
run = Run(settings, folder, method=method, seed=seed, root=runs_root)
options, testing = settings.segmentation, settings.segment
folder.require_masks(run.ids("val"), "this lesson compares masks with them")
print(
    f"torch {torch.__version__}, device {stages.pick_device(settings.machine.device)}, profile {profile}, seed {seed}"
)

# %% [markdown]
# Three sets of images play a part. The network trains on the first, with *pseudo* masks. It is scored on the last, with true
# masks, and it never sees these images before.

# %%
train_ids, val_ids = run.ids("train"), run.ids("val")
print(
    f"{len(train_ids)} training images with pseudo masks, {len(val_ids)} val images, {folder.n_classes + 1} classes with background"
)

# %% [markdown]
# ## The idea in one figure
#
# Why learn from masks that we know to be wrong? Why not simply keep them?
#
# First, a mask exists only for a training image, and its image-level label was needed to make it. A network segments **any**
# image, without a label. Second, a network has far fewer parameters than there are pixels. It cannot remember each mistake,
# so where similar pixels got different labels it settles on the **average**.
#
# Below, a disc is labelled 200 times by careless hands. In the upper row each hand errs in its own way: shifted, too large, too
# small, with a piece missing. In the lower row the hands err in the same ways, and besides all of them take the shadow for a
# part of the disc.


# %%
def careless(shadow):
    (up, left, larger), (top, side) = draws.integers(-4, 5, 3), draws.integers(8, 28, 2)
    mask = (y - 18 - up) ** 2 + (x - 20 - left) ** 2 < (11 + larger / 2) ** 2
    mask[top : top + 7, side : side + 7] = False
    return mask | (shadow & ((y - 31) ** 2 + (x - 20) ** 2 / 6 < 16))


draws, (y, x) = np.random.default_rng(0), np.mgrid[:40, :40]
disc, rows = ((y - 18) ** 2 + (x - 20) ** 2 < 11**2) * 1.0, []
for shadow in (False, True):
    masks = [careless(shadow) * 1.0 for _ in range(200)]
    mean = np.mean(masks, axis=0)
    rows.append([*masks[:3], mean, (mean > 0.5) * 1.0, disc])
titles = ["hand 1", "hand 2", "hand 3", "mean of 200", "mean > 1/2", "truth"]
figure = viz.grid(rows, titles, ["each its own error", "a shared error"], size=1.35)
viz.show(
    figure, "Errors that differ cancel in the average. An error that all share stays, and no amount of data removes it."
)

# %% [markdown]
# Look at the fourth column. The mean is not a mask but a *frequency*: how many hands call this pixel disc? Cut at one half, it is the
# majority. In the upper row the majority is right nearly everywhere, although no single hand is. In the lower row it is wrong in
# the shadow, and surer of it than of anything else.
#
# Real images are not 200 copies of one disc. But the grass next to a thousand sheep looks much alike, and the network must give
# much the same answer there each time. Keep both rows in mind: *random errors are averaged away, systematic ones are learnt*.
# Ragged outlines are of the first kind. "Water belongs to the boat" is of the second.

# %% [markdown]
# ## The smallest implementation
#
# The network is a DeepLab, second version: a backbone, and a head that looks at several ranges at once to give each cell of the
# feature map a score for each class.
#
# ### Atrous convolution
#
# To know what a pixel shows, one must look around it. A $3\times3$ convolution on the feature map looks one cell far. One could look
# farther with a larger kernel (more weights) or on a coarser map (lost outlines). *Atrous* convolution, from French *à trous*, "with
# holes", does neither. It spreads the nine weights apart by a **dilation** $d$:
#
# $$y(p) = \sum_{i,j \in \{-1,0,1\}} w_{ij} \; x\big(p + d \cdot (i, j)\big)$$
#
# With $d=1$ it is the usual convolution. Whatever $d$ is, there are nine weights, and the map keeps its size if it is padded by $d$.
# Between the nine cells there are holes, but nothing is lost: the neighbouring output cell looks at the neighbouring nine.


# %%
def atrous(x, weights, dilation):
    height, width = x.shape
    padded, y = F.pad(x, [dilation] * 4), torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            top, left = i * dilation, j * dilation
            y += weights[i, j] * padded[top : top + height, left : left + width]
    return y


# %% [markdown]
# Nine shifted copies of the map, each times a weight, added up. Torch's convolution with `dilation` gives the same.

# %%
numbers = torch.Generator().manual_seed(0)
grid, weights = torch.randn(7, 7, generator=numbers), torch.randn(3, 3, generator=numbers)
for dilation in (1, 2, 3):
    by_torch = F.conv2d(grid[None, None], weights[None, None], padding=dilation, dilation=dilation)[0, 0]
    torch.testing.assert_close(atrous(grid, weights, dilation), by_torch)
    print(
        f"dilation {dilation}: {weights.numel()} weights, output {tuple(by_torch.shape)}, sees {2 * dilation + 1} x {2 * dilation + 1} cells"
    )

# %% [markdown]
# How far is that in an image? A cell of the feature map stands for as many pixels as the backbone's stride. Here are the nine
# places that the centre looks at, for each dilation of this profile, on one of its images.

# %%
model = stages.build_segmentation(run).eval()
stride, picture = model.backbone.out_stride, viz.as_array(folder.image(val_ids[0]))
figure = viz.grid([[picture] * len(options.dilations)], [f"dilation {d}" for d in options.dilations], size=1.9)
offsets = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
for axis, d in zip(figure.axes, options.dilations, strict=True):
    places = np.array(picture.shape[:2]) / 2 + stride * d * offsets
    axis.scatter(places[:, 1], places[:, 0], s=70, facecolor="white", edgecolor="black", linewidth=1.5)
    axis.set(xlim=(0, picture.shape[1]), ylim=(picture.shape[0], 0))
viz.show(
    figure, "The nine cells that feed the centre. Small dilations see the texture, large ones see what stands around."
)

# %% [markdown]
# There is a limit. If the dilation reaches beyond the map, eight of the nine weights meet only padding, and an expensive $3\times3$
# convolution has become a $1\times1$. The published dilations (6, 12, 18, 24) belong to maps of about 41 cells. For the toy scenes,
# with 16 cells a side, they are scaled down.

# %% [markdown]
# ### Atrous spatial pyramid pooling (ASPP)
#
# Which dilation is right? A wing needs a short look, to see its edge. A whole aeroplane needs a long one, to see the sky around
# it. It depends on the size of the object, and an image holds several. So the head takes **several in
# parallel**: one $3\times3$ classifier for each dilation, and their scores add up. Each range has a vote on each class.
#
# We go through the library's network by hand and look at the shapes. (Its weights are random so far.)

# %%
image = normalize(folder.image(val_ids[0]))[None]
with torch.no_grad():
    features = model.backbone(image)
    votes = [classifier(features) for classifier in model.aspp.classifiers]
    logits = torch.stack(votes).sum(dim=0)
for name, tensor in {"image": image, "features": features, "each vote": votes[0], "logits": logits}.items():
    print(f"{name:12s}{tuple(tensor.shape)}")

# %% [markdown]
# Between the features and the classes stands nothing that would have to be learnt first. The third version of DeepLab puts
# hidden channels, a normalisation and a view of the whole scene there. With thousands of images and hours it wins; in the
# short trainings here it barely gets off the ground, so this kit takes the second, which is also what most papers of
# this field train at their end.
#
# That was the whole network, and the library's `forward` says the same.

# %%
with torch.no_grad():
    torch.testing.assert_close(model(image), logits)
print(inspect.getsource(type(model.aspp).forward).split('"""')[2].strip())

# %% [markdown]
# ### The loss, and pixels that do not count
#
# Each pixel is a small classification problem of its own, and the loss is the mean of their cross-entropies. The scores are first
# enlarged to the size of the mask. Pixels with the value **255 are ignored**: they add nothing to the sum and do not count in the mean.
#
# $$L = -\frac{1}{|V|} \sum_{p \in V} \log \frac{e^{z_{y_p}(p)}}{\sum_k e^{z_k(p)}}, \qquad V = \{p : y_p \ne 255\}$$
#
# Where do 255s come from? From the void outlines of VOC's masks, from undecided pixels (`la` and `ha` in notebook 07), and from
# the padding that random crops add. We make a mask with such a border and compute the loss by hand.

# %%
mask = torch.randint(0, folder.n_classes + 1, image.shape[-2:], generator=numbers)[None]
mask[:, :, :10] = 255
large = F.interpolate(logits, mask.shape[-2:], mode="bilinear", align_corners=False).requires_grad_()
valid = mask != 255
log_probability = large.log_softmax(dim=1)
of_label = log_probability.gather(1, torch.where(valid, mask, 0)[:, None])[:, 0]
loss = -(of_label * valid).sum() / valid.sum()
torch.testing.assert_close(loss, pixel_cross_entropy(logits, mask))
print(f"{valid.sum()} of {mask.numel()} pixels count; our loss and the library's agree")

# %% [markdown]
# Why enlarge the scores, and not shrink the mask? A mask made small loses thin parts, and labels cannot be averaged: half a
# sheep and half a background is no class. Scores can.
#
# What does one pixel teach? The gradient of the loss with respect to its scores is *what the network says minus what the label
# says*, $q_k - [k = y]$, divided by the number of pixels. For ignored pixels it is zero.

# %%
loss.backward()
label = F.one_hot(torch.where(valid, mask, 0), folder.n_classes + 1).permute(0, 3, 1, 2)
expected = (large.softmax(1) - label) * valid[:, None] / valid.sum()
torch.testing.assert_close(large.grad, expected.detach())
print("largest gradient at an ignored pixel:", float((large.grad * ~valid[:, None]).abs().max()))

# %% [markdown]
# **Here is the average of the first figure.** Take many pixels that look the same to the network, so that it must give them
# all the same $q$. Their gradients cancel exactly when
#
# $$q_k = \text{share of these pixels whose pseudo label is } k.$$
#
# If 70 of 100 such pixels are labelled *sheep* and 30 *background*, the network says 0.7 sheep, and the argmax gives **all** of them
# to the sheep. The thirty mistakes are gone. If it were 30 sheep and 70 background, the thirty that were right are gone. The
# majority wins, and the majority is not always right.
#
# So the quality of a pseudo mask is not only its score. Of two sets of masks with the same mIoU, the one whose errors are
# *scattered* makes the better student, and the one whose errors are always the same makes the worse.

# %% [markdown]
# ### The schedule
#
# The learning rate falls with the *poly* rule, $\eta_t = \eta_0 (1 - t/T)^{0.9}$, close to a straight line down to zero. It ends in
# tiny steps, so the last noisy batches cannot throw the network far. The weights then average over many batches, and with
# them over many noisy masks.
#
# Backbone and head may learn at different rates. Papers move a pretrained backbone slowly, and the new head ten times as
# fast (profile `paper`). Which ratio is right depends on the features. A score of this head is a sum over all channels, nine
# cells and all dilations; where nothing keeps the features small, a fast head overshoots. On the toy scenes it learns
# at a tenth of the rate.

# %%
steps = train.n_steps(len(train_ids), options.batch_size, options.epochs, options.max_steps)
rates = {
    f"power {power}": [train.poly_lr(options.lr, t, steps, power) for t in range(steps + 1)]
    for power in (0.5, 0.9, 2.0)
}
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
pd.DataFrame(rates).plot(ax=axis, style=["--", "-", ":"], color=viz.COLORS[:3], xlabel="step", ylabel="learning rate")
for group in model.parameter_groups(options.classifier_factor):
    print(
        f"{group['name']}: {sum(p.numel() for p in group['params']):,} parameters, learning rate x {group['lr_factor']:g}"
    )
viz.show(
    figure,
    "The poly schedule over the steps of this training. The solid line is the usual power; others for comparison.",
)

# %% [markdown]
# ## What the network is shown
#
# A data set with pseudo masks gives an image and its mask, moved alike: resized, cropped and mirrored together. It reads the
# folder of the stage `pseudo_masks`, and it refuses the folder of the true masks. If the stage is missing, it is computed first.
#
# **Whose masks teach** is said by the setting `refine.how`: `dense_crf`, `pamr`, a threshold alone (`none`), or the walk along
# affinities that a network has learnt (`affinity_net`, `irnet`; all of them are in notebook 07). With another one, refinement and
# student are computed anew and lie in a folder of their own; the classifier and its maps are shared:
# `wsss run 07 08 --set refine.how=irnet`.

# %% tags=["nbval-ignore-output"]
pseudo_stage = stages.make_pseudo_masks(run)
pseudo_dir = pseudo_stage.folder("masks")
transform = train_transform(tuple(options.long_side), options.crop, tuple(options.jitter), pad=options.pad)
shown = PseudoMaskSet(folder, train_ids[:6], pseudo_dir, transform)
samples = [shown[index, seed] for index in range(len(shown))]
pictures = [denormalize(sample.image) for sample in samples]
masks = [viz.overlay_mask(p, sample.mask) for p, sample in zip(pictures, samples, strict=True)]
figure = viz.grid([pictures, masks], names=["image", "pseudo mask"], size=1.3)
viz.show(
    figure,
    f"Six training samples as the network gets them, with masks by {settings.refine.how}. White is 255, ignored by the loss.",
)

# %% [markdown]
# ## Train, or load
#
# The stage `segmentation` trains the network. If its folder is complete, it is loaded. The true masks of the training images play no
# part in it.

# %% tags=["nbval-ignore-output"]
trained = stages.train_segmentation(run)
model = stages.load_segmentation(run).cpu()
log = pd.read_csv(trained.path / "log.csv")
print(f"{len(log)} steps in {trained.metrics['seconds']:.0f} s")

# %% tags=["nbval-ignore-output"]
terms = [name for name in log.columns if name.startswith("cross_entropy")]
viz.show(viz.losses(log, terms), "Cross-entropy against the pseudo masks, each step and its running mean.")

# %% [markdown]
# The loss does not go to zero, and it should not. A network that fitted the pseudo masks perfectly would have learnt their
# mistakes by heart. What remains is partly the noise that it *refused* to learn, and partly what it has not learnt yet. The curve
# cannot tell the two apart. Only true masks can, and that is what the next sections look at.

# %% [markdown]
# ## Several scales, and the mirror
#
# At test time the network looks at the image several times: smaller, larger, mirrored. Its views err differently, and
# again an average helps. What is averaged differs between code bases (probabilities, scores before the softmax, or their
# maximum). We begin with the **mean of the softmax probabilities**, at image size; the other two follow below. By hand:


# %%
def one_view(image, scale, mirrored):
    size = tuple(round(side * scale) for side in image.shape[-2:])
    view = resize_image(image, size)
    logits = model(view.flip(-1)).flip(-1) if mirrored else model(view)
    return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)


test_scales = (0.75, 1.0, 1.25)
with torch.no_grad():
    opinions = torch.stack([one_view(image, scale, mirror) for scale in test_scales for mirror in (False, True)])
by_hand = opinions.softmax(dim=2).mean(0)
torch.testing.assert_close(by_hand, predict(model, image, test_scales, flip=True), rtol=1e-3, atol=1e-4)
print(f"mean of {len(opinions)} views {tuple(by_hand.shape)} = the library's predict")

# %% [markdown]
# Choose an image, the scales, and whether the mirror is used. The third picture is the **confidence**: the probability of the
# winning class. It is low along outlines and where the network hesitates between classes.


# %%
def draw(image, scales, mirror):
    image_id = val_ids[image]
    picture = folder.image(image_id)
    q = predict(model, normalize(picture)[None], [float(s) for s in scales.split()], flip=mirror == "yes")[0]
    masks = viz.overlay_mask(picture, q.argmax(0)), q.amax(0), viz.overlay_mask(picture, folder.mask(image_id))
    return viz.grid([[picture, *masks]], ["image", "prediction", "confidence", "true mask"], size=1.6)


explorer = widgets.explore(
    draw,
    "The prediction for a val image. Which scales help, and on which objects? Where does the network hesitate?",
    image=(0, min(len(val_ids), 48) - 1, 1, 0),
    scales=["1.0", "0.5", "2.0", "0.75 1.0 1.25", "0.5 1.0 2.0"],
    mirror=["yes", "no"],
)

# %% [markdown]
# The same as a strip, for readers without a kernel.

# %% tags=["nbval-ignore-output"]
strip = {"0.5": [0.5], "1": [1.0], "2": [2.0], "0.5, 1, 2": [0.5, 1.0, 2.0]}
picture = folder.image(val_ids[0])
views = [predict(model, image, scales, flip=True)[0] for scales in strip.values()]
rows = [[picture, *(viz.overlay_mask(picture, q.argmax(0)) for q in views)], [None, *(q.amax(0) for q in views)]]
figure = viz.grid(rows, ["image", *strip], ["prediction", "confidence"], size=1.35)
viz.show(
    figure,
    "One image at single scales and their mean. A scale that was never trained on can mislead: more is not always better.",
)

# %% [markdown]
# ## Look: best and worst
#
# The stage `val_masks` segments every val image. How it looks at them stands in the settings' section `segment`: with other scales, only
# this stage is computed anew, and the network is not trained again.

# %% tags=["nbval-ignore-output"]
stage = stages.segment_val(run)
score = stage.metrics["mask"]
print(f"{stage.metrics['images']} val masks in {stage.metrics['seconds']:.0f} s")

# %% [markdown]
# We sort them by the intersection over union (IoU) of the foreground. Nothing here used an image-level label: the network
# alone decides which classes there are.


# %%
def foreground_iou(mask, truth):
    known = truth < 255
    hit = (mask == truth) & (truth > 0) & known
    either = ((mask > 0) | (truth > 0)) & known
    return 100 * hit.sum() / max(either.sum(), 1)


def mask_pair(image_id):
    return read_mask(stage.path / "masks" / f"{image_id}.png"), folder.mask(image_id).numpy()


# %% tags=["nbval-ignore-output"]
ranked = sorted(val_ids, key=lambda i: -foreground_iou(*mask_pair(i)))
chosen = [*ranked[:2], ranked[len(ranked) // 2], *ranked[-3:]]
rows = []
for image_id in chosen:
    picture = folder.image(image_id)
    q = predict(model, normalize(picture)[None], testing.scales, testing.flip, testing.combine)[0]
    rows.append([picture, *(viz.overlay_mask(picture, m) for m in mask_pair(image_id)), q.amax(0)])
names = [f"{foreground_iou(*mask_pair(i)):.0f} %" for i in chosen]
figure = viz.grid(rows, ["image", "prediction", "true mask", "confidence"], names, size=1.2)
viz.show(
    viz.legend(figure, folder.classes, 4),
    "Val images from best to worst, with the IoU of their foreground on the left.",
)

# %% [markdown]
# Look at the last rows. Which failures do you recognise? Most were born in earlier stages: a part for the whole, context taken for an
# object, an object that looks like its surroundings. New is the *confusion of classes*, since no label protects from it any more.
#
# Look at the confidence too. Is the network unsure where it is wrong, or sure of it? An unsure error came from contradicting
# labels: more images, or better masks, could mend it. A sure error was taught.

# %% [markdown]
# ## Does the student beat its teacher?
#
# To compare the two we need images that both have segmented, so we turn to the **training** images: pseudo masks on one side, the
# network's own predictions on the other, both against the true masks. The network has trained on the very same pseudo masks. If it
# had merely memorised them, the two would be equal.
#
# Equal numbers would not be surprising, and better ones would be remarkable: the student has never seen anything but the masks
# that it is compared with.
#
# One thing is unfair. The teacher knew the image-level labels; the student does not. So there is a third line, in which the student
# is told the labels as well, and absent classes are struck out before the argmax.


# %%
def student_masks(image_id):
    q = predict(model, normalize(folder.image(image_id))[None], testing.scales, testing.flip, testing.combine)[0]
    present = torch.cat([torch.ones(1), folder.label(image_id)])
    return q.argmax(0).byte().numpy(), (q * present[:, None, None]).argmax(0).byte().numpy()


# %% tags=["nbval-ignore-output"]
pixels = np.prod(folder.size(train_ids[0]))
some = [i for i in train_ids if folder.has_masks([i])][: int(np.clip(1e6 / pixels, 12, 200))]
names = ("teacher: pseudo masks", "student", "student, told the labels")
matrices, per_image = {name: ConfusionMatrix(folder.n_classes + 1) for name in names}, []
for image_id in some:
    truth = folder.mask(image_id).numpy()
    candidates = (read_mask(pseudo_dir / f"{image_id}.png"), *student_masks(image_id))
    for name, candidate in zip(names, candidates, strict=True):
        matrices[name].update(truth, candidate)
    per_image.append([image_id, *(foreground_iou(candidate, truth) for candidate in candidates)])
per_image = pd.DataFrame(per_image, columns=["id", *names])

# %% tags=["nbval-ignore-output"]
counted = stages.scored_classes(run)
miou = {name: 100 * matrix.miou(counted) for name, matrix in matrices.items()}
for name, value in miou.items():
    print(f"{name:26s} mIoU {value:.1f} %")
gain = miou["student"] - miou[names[0]]
print(
    f"On these {len(some)} training images the student is {abs(gain):.1f} points {'above' if gain > 0 else 'BELOW'} its teacher."
)

# %% [markdown]
# Read the numbers as they are, whatever they say; a course that only shows the runs that went well teaches little.
#
# - A student **above** its teacher has averaged away more noise than it added.
# - A student **below** it has lost more than it averaged: by a coarse grid, by little data or few epochs, or because it did not
#   know the labels. In the papers the student mostly wins, but there it begins with ImageNet weights and trains for hours.
# - The **third line** says how much of the difference is a matter of *which classes*, and how much of *which pixels*. If it
#   lies far above the second, the student knows where objects are, and confuses what they are.

# %% tags=["nbval-ignore-output"]
per_image["gain"] = per_image["student"] - per_image[names[0]]
per_image = per_image.sort_values("gain", ascending=False)
figure, axis = plt.subplots(figsize=(3.6, 3.6), layout="constrained")
axis.plot([0, 100], [0, 100], color="grey", linestyle=":")
axis.scatter(per_image[names[0]], per_image["student"], s=10, alpha=0.6, color=viz.COLORS[0])
axis.set(
    xlabel="IoU of the pseudo mask (%)", ylabel="IoU of the student (%)", xlim=(0, 100), ylim=(0, 100), aspect="equal"
)
viz.show(
    figure,
    "Each dot is a training image. Above the dotted line the student is better than the mask that it was taught.",
)

# %% tags=["nbval-ignore-output"]
rows, chosen = [], pd.concat([per_image.head(2), per_image.tail(3)])
for image_id in chosen["id"]:
    picture = folder.image(image_id)
    masks = read_mask(pseudo_dir / f"{image_id}.png"), student_masks(image_id)[0], folder.mask(image_id)
    rows.append([picture, *(viz.overlay_mask(picture, m) for m in masks)])
figure = viz.grid(rows, ["image", "teacher", "student", "true mask"], [f"{g:+.0f}" for g in chosen["gain"]], size=1.2)
viz.show(
    figure,
    "Above, the student corrects its teacher most; below, it spoils what was right. On the left the change of IoU in points.",
)

# %% [markdown]
# In the upper rows look for what was averaged: frayed outlines, holes, a label that had run over into the context. In the lower
# rows the teacher had the image-level label and a refinement that looks at the image itself; the student has neither.

# %% [markdown]
# ## Measure
#
# The number that papers report at the end: mIoU on **val**, images that no stage has seen, with nothing given but pixels. No threshold
# was swept on them. Beside it stands the score of the pseudo masks; mind that those lie on *other images*, the training
# images, so the two do not subtract.

# %% tags=["nbval-ignore-output"]
teacher = pseudo_stage.metrics["mask"]
rows = {
    "pseudo masks, training images": (teacher, "image-level labels"),
    "segmentation, val images": (score, "nothing"),
}
print("classes in the mean:", ", ".join(score["miou_classes"]))
rows = [
    [name, f"{100 * s['miou']:.1f}", f"{100 * s['pixel_accuracy']:.1f}", given] for name, (s, given) in rows.items()
]
pd.DataFrame(rows, columns=["what", "mIoU (%)", "pixel accuracy (%)", "given beside the image"])

# %% tags=["nbval-ignore-output"]
by_class = {name: round(100 * value, 1) for name, value in score["iou"].items() if value is not None}
viz.show(viz.bars(by_class, "IoU on val (%)"), "Intersection over union, class by class.")

# %% [markdown]
# Where do the wrong pixels go? Each line of the next picture is a true class, and says to what share its pixels were given to
# the classes in the columns. A strong first column means *missed*, a strong first line *spilled over*, anything else off the
# diagonal *confused*.

# %% tags=["nbval-ignore-output"]
confusion = ConfusionMatrix(folder.n_classes + 1)
for image_id in val_ids:
    prediction, truth = mask_pair(image_id)
    confusion.update(truth, prediction)
seen = np.flatnonzero(confusion.matrix.sum(1))
shares = 100 * confusion.matrix[np.ix_(seen, seen)] / confusion.matrix[seen].sum(1, keepdims=True)
names = np.array(["background", *folder.classes])[seen]
figure, axis = plt.subplots(figsize=(0.45 * len(seen) + 2, 0.38 * len(seen) + 1.2), layout="constrained")
sns.heatmap(
    shares,
    annot=len(seen) < 12,
    fmt=".0f",
    cmap=viz.HEAT,
    vmin=0,
    vmax=100,
    xticklabels=names,
    yticklabels=names,
    ax=axis,
)
axis.set(xlabel="predicted", ylabel="true")
viz.show(
    figure, "Of the pixels of each true class (line), the share in percent that was predicted as each class (column)."
)

# %% [markdown]
# And the groups: images whose object stands on its usual context (**agrees**) and the others (**disagrees**). The bias of a
# classifier has by now gone through a seed, a refinement and a second training. Systematic errors are not averaged away, so we
# expect a gap; look how large it is.

# %% tags=["nbval-ignore-output"]
if score.get("groups"):
    groups = {name: np.nan if value is None else round(100 * value, 1) for name, value in score["groups"].items()}
    viz.show(
        viz.bars(groups, "mIoU on val (%)"),
        "Val images that agree with the context bias of training, and those that do not.",
    )
else:
    print("These images do not say on which context their objects stand; toy scenes do.")

# %% [markdown]
# ### Paper · here
#
# What papers print for the *baselines* on VOC 2012 val, and what this run measured on its own val split, in separate columns. Compare
# them only where the data set is the same. Even then, mind the backbone, and whether the network started from ImageNet or
# from COCO weights.

# %% tags=["nbval-ignore-output"]
paper = results.paper(stage="segmentation", split="val", dataset="voc12", metric="mIoU", kind="main", method="baseline")
table = (
    paper[["paper", "source", "host", "backbone", "value"]]
    .astype(object)
    .rename(columns={"value": "paper: val mIoU (%)"})
)
table = table.assign(**{f"here: val mIoU on {folder.name} (%)": ""}).reset_index(drop=True)
table.loc[len(table)] = ["this run", profile, method, settings.backbone.name, "", f"{100 * score['miou']:.1f}"]
table

# %% [markdown]
# ## At the paper's settings
#
# So far the network was trained and tested in the simplest way. Published code does three more things: it learns from several
# sizes, it merges views by other rules, and it refines the masks at test time. Each is a setting here, and in the profile
# `paper` they stand as [deeplab-pytorch](https://github.com/kazuto1011/deeplab-pytorch) has them, as far as this kit goes
# along. We try each of them on the network of this run, which was trained with what its own profile says.
#
# ### Losses at several sizes
#
# DeepLab's second version sees each training image at full size and at sizes $s$ of a half and three quarters of it. All go through
# the *same* network. A fourth output takes, at each cell and for each class, the largest of the three scores:
#
# $$F_c^{max}(p) = \max\big\{F_c(x)(p), \; \max_s U(F_c(x_s))(p)\big\}$$
#
# $U$ enlarges the smaller grids to that of the full size. Each of the four outputs gets a loss of its own.


# %%
def scores_at_sizes(model, image, sizes):
    height, width = image.shape[-2:]
    full = model(image)
    smaller = [model(resize_image(image, (round(s * height), round(s * width)))) for s in sizes]
    enlarged = [F.interpolate(z, full.shape[-2:], mode="bilinear", align_corners=False) for z in smaller]
    return [full, *smaller, torch.stack([full, *enlarged]).max(dim=0).values]


sizes = (0.5, 0.75)
with torch.no_grad():
    by_hand = scores_at_sizes(model, image, sizes)
    torch.testing.assert_close(by_hand, multi_scale_scores(model, image, sizes))
for name, z in zip(("full size", *sizes, "largest"), by_hand, strict=True):
    print(f"{name!s:10s}{tuple(z.shape)}")

# %% [markdown]
# Why the largest, and not the mean? The network has one field of view, measured in cells. A **small object** fills a few cells of the
# large view and none of the small one, so only the enlarged picture can speak for it. A **large object** is larger than the field of
# view; shrunken, it fits in, with its surroundings. Of three views one sees the object best, and the mean would let two that do not
# see it talk it down. The largest score lets each class be spoken for by the size that sees it best. It also lets the loudest
# be wrong: one view that shouts is enough.
#
# The gradient says the same. That of the fourth loss flows, at each cell and for each class, into the **one view that won**. The three
# others keep each view honest by itself.
#
# In the library it is a property of the network, and `DeepLab.loss` does the rest. We give the trained network three sizes and
# compare its loss with the sum of our four.

# %% tags=["nbval-ignore-output"]
three = DeepLab(model.backbone, model.n_classes, options.dilations, scales=sizes).eval()
three.aspp, batch = model.aspp, collate_masks(samples)
with torch.no_grad():
    by_hand = [pixel_cross_entropy(z, batch.mask) for z in scores_at_sizes(model, batch.image, sizes)]
    losses = three.loss(batch, Progress())
torch.testing.assert_close(sum(by_hand), losses.total)
for name, value in losses.terms.items():
    print(f"{name:20s}{value:.3f}")
print(f"{'sum':20s}{losses.total:.3f}")

# %% [markdown]
# These names are columns of `log.csv` once `segmentation.scales = [0.5, 0.75]` is set, and the curve of the training shows all four. Two
# things to mind. The loss is a **sum**, so its gradient is up to four times as long, and a learning rate belongs to it or to
# one size, not to both. And it costs: $1 + 0.75^2 + 0.5^2 \approx 1.8$ times the computation.
#
# The network of this run may have learnt at one size only. Then the smaller ones are strange to it, and the figure shows what it
# makes of them all the same. In the last picture, *who speaks*, look where the winning class got its score from.

# %% tags=["nbval-ignore-output"]
rows = []
for image_id in val_ids[:3]:
    picture = folder.image(image_id)
    with torch.no_grad():
        scores = scores_at_sizes(model, normalize(picture)[None], sizes)
    full, half, more, largest = (enlarge(z, picture.shape[-2:])[0] for z in scores)
    winner = largest.argmax(0)
    speaker = torch.stack([full, half, more]).gather(1, winner.expand(3, 1, -1, -1)).argmax(0)[0]
    masks = [viz.overlay_mask(picture, z.argmax(0)) for z in (full, more, half, largest)]
    rows.append([picture, *masks, torch.tensor([1, *sizes])[speaker]])
figure = viz.grid(rows, ["image", "full size", "0.75", "0.5", "largest score", "who speaks"], size=1.3)
viz.show(figure, "One network at three sizes. On the right the brightest is the full size, the darkest the half.")

# %% [markdown]
# ### Three rules to combine views
#
# At test time the views must become one mask. The scores $s_v$ of view $v$, at image size, can meet in three ways. `predict` knows them by
# the name in `segment.combine`:
#
# | `combine` | rule | used by |
# |---|---|---|
# | `mean` | $\frac1V \sum_v \mathrm{softmax}(s_v)$ | this kit, in all profiles but `paper` |
# | `mean_logits` | $\mathrm{softmax}(\frac1V \sum_v s_v)$ | the code that SEAM and CPN are tested with |
# | `max` | $\mathrm{softmax}(\max_v s_v)$ | deeplab-pytorch, which takes the maximum on the network's grid |
#
# A probability is at most 1, so in the first rule each view has one vote and no more. A logit has no bound: in the second, one view that
# is very sure outvotes several that are mildly of another opinion. In the third, nobody is counted; each class has its loudest
# advocate. Two made-up pixels, three views of each, scores of (background, sheep):

# %%
pixels_of_two = {
    "one is very sure": torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 9.0]]),
    "one against two": torch.tensor([[5.0, 0.0], [0.0, 3.0], [0.0, 3.0]]),
}
rules = {
    "mean": lambda s: s.softmax(-1).mean(0),
    "mean_logits": lambda s: s.mean(0).softmax(-1),
    "max": lambda s: s.amax(0).softmax(-1),
}
answers = {name: [f"{rule(s)[1]:.0%}" for s in pixels_of_two.values()] for name, rule in rules.items()}
pd.DataFrame(answers, index=[f"sheep, if {name}" for name in pixels_of_two])

# %% [markdown]
# The first pixel is background by one rule and sheep by two, the second sheep by two and background by one, and it is not
# the same rule that stands alone. So the rule is a part of the method, and a number without it is incomplete.
#
# Now the network of this run. The six views of above by all three rules, checked against the library, and then the masks.

# %% tags=["nbval-ignore-output"]
for rule, combined in zip(
    COMBINE, (rules[name](opinions.movedim(2, -1)).movedim(-1, 1) for name in COMBINE), strict=True
):
    torch.testing.assert_close(combined, predict(model, image, test_scales, True, rule), rtol=1e-3, atol=1e-4)


def by_rules(image_id):
    view = normalize(folder.image(image_id))[None]
    return {rule: predict(model, view, test_scales, True, rule)[0].argmax(0).numpy() for rule in COMBINE}


rows, shown_ids = [], ranked[:: max(1, len(ranked) // 3)][:3]
for image_id in shown_ids:
    picture, found = folder.image(image_id), list(by_rules(image_id).values())
    disputed = (found[0] != found[1]) | (found[0] != found[2])
    masks = [viz.overlay_mask(picture, m) for m in (*found, folder.mask(image_id))]
    rows.append([picture, *masks, disputed * 1.0])
figure = viz.grid(rows, ["image", *COMBINE, "true mask", "disputed"], size=1.3)
viz.show(figure, "The same six views by three rules. Bright at the right: pixels on which the rules do not agree.")

# %% [markdown]
# How much is it in the number that papers print? **This is a look behind the curtain, not a way to choose.** The rule of a run stands
# in its settings before any val mask is opened. Whoever reads the next table and takes the best line *has used the masks of val*: the
# same sort of gift as the best threshold of a seed. And a gap of a few tenths on some images may be luck (notebook 09).

# %% tags=["nbval-ignore-output"]
some_val = val_ids[: int(np.clip(3e5 / np.prod(folder.size(val_ids[0])), 12, 200))]
by_rule = {rule: ConfusionMatrix(folder.n_classes + 1) for rule in COMBINE}
for image_id in some_val:
    for rule, found in by_rules(image_id).items():
        by_rule[rule].update(folder.mask(image_id).numpy(), found)
values = {rule: 100 * matrix.miou(counted) for rule, matrix in by_rule.items()}
figure = viz.bars(values, f"mIoU on {len(some_val)} val images (%)")
viz.show(
    figure, f"Scales {test_scales}, mirrored, by three rules. The rule of this run, set beforehand: {testing.combine}."
)

# %% [markdown]
# ### How published code trains and tests
#
# Three code bases stand behind most last lines of this field's tables. From their files:
#
# | | deeplab-pytorch | of SEAM and CPN | of MCTformer |
# |---|---|---|---|
# | network | DeepLab-v2, ResNet-101, dilations 6, 12, 18, 24 | DeepLab-v1, ResNet-38 | ResNet-38, two $3\times3$ convolutions of dilation 12 |
# | crop, after scaling by | 321, 0.5 to 1.5 | 448, 0.5 to 1.5 | 321, 0.7 to 1.3 |
# | learning rate | 2.5e-4; head 10 times, its biases 20 times | 1e-3; groups 1, 2, 10, 20 times | 7e-4; head 10 times |
# | batch, length | 5, two accumulated; 20,000 steps | 10; 20,000 steps | 4; 30 epochs |
# | losses | on three sizes and on their largest score | on one | on one |
# | test sizes | 0.5, 0.75, 1 | 0.5 to 1.75, six of them, mirrored | 0.5 to 1.5, five of them |
# | views meet as | maximum of logits | mean of logits | maximum of probabilities |
# | dense CRF, by name | `deeplab_v2` | `seam_segment`, one iteration | `mctformer_segment` |
# | classes in the mean | those in the truth | all, absent ones as 0 | those in truth or prediction |
#
# One line is missing since it is no setting: deeplab-pytorch starts from weights that were trained on COCO's *masks*, unless told
# otherwise. That is more than image-level labels, and two papers "with DeepLab-v2" may differ in just this. The profile `paper` starts
# from ImageNet. Two papers "with DeepLab" may differ in every line above. Which rule scores what, `wsss_lib.protocols` holds
# as data, and [docs/evaluation.md](../docs/evaluation.md) as a page.
#
# ### A dense CRF on the test masks
#
# Notebook 07 refined *pseudo masks* with a dense CRF; most papers refine the *network's* masks with one more. Its numbers come by
# name, `segment.crf = "deeplab_v2"`, or are those of the section `dense_crf` (`"own"`). Names mean widths in pixels of photographs
# with about 500 pixels a side, so for toy scenes we take our own.

# %% tags=["nbval-ignore-output"]
name = testing.crf or ("own" if folder.name == "toy" else "deeplab_v2")
crf, rows = choices.crf_settings(load(profile, {**overrides, "segment.crf": name}), "segment"), []
for image_id in shown_ids[:2]:
    picture = folder.image(image_id)
    q = predict(model, normalize(picture)[None], testing.scales, testing.flip, testing.combine)[0].numpy()
    plain, refined = q.argmax(0), refined_labels(viz.as_array(picture), q, crf)
    masks = [viz.overlay_mask(picture, m) for m in (plain, refined, folder.mask(image_id))]
    rows.append([picture, *masks, (plain != refined) * 1.0])
    print(f"{image_id}: {(plain != refined).mean():.1%} of the pixels get another class")
figure = viz.grid(rows, ["image", "network", "with CRF", "true mask", "changed"], size=1.5)
viz.show(figure, f"Masks of the network without and with the dense CRF `{name}`; bright at the right: what it changed.")

# %% [markdown]
# It moves outlines to edges of the image, and it wipes out what is small and lonely, rightly or wrongly. To have all val masks with
# it: `wsss run 08 --set segment.crf=own`, for photographs `=deeplab_v2`. Only the stage `val_masks` is computed anew, in a folder
# of its own; so both numbers stand side by side in the table of runs, and neither replaces the other. In the profile `paper` the CRF
# is set from the start.
#
# ## Masks as files, and the VOC server
#
# A mask is a PNG with a *palette*: each pixel stores a class index, and a table in the file says in which colour to show it. Open one
# with an image viewer and you see colours; open it in Python and you see indices. Converted to RGB the indices would be lost.

# %% tags=["nbval-ignore-output"]
with Image.open(stage.path / "masks" / f"{val_ids[0]}.png") as file:
    values = sorted(set(np.asarray(file).ravel().tolist()))
    colours = np.array(file.getpalette()).reshape(-1, 3)[values].tolist()
    print(f"mode {file.mode}, size {file.size}, values {values}, their colours {colours}")

# %% [markdown]
# True masks of the VOC **test** split are public nowhere. A server scores them, a few times a week for each user. It expects an
# archive with a fixed layout, and `pack` checks before it packs: every image is there, values are 0 to 20, sizes fit.
#
# We pack three masks into a temporary folder and list what is inside. (This is an exercise in layout. The server would
# understand the values only if the classes are VOC's twenty, in VOC's order.)

# %%
with tempfile.TemporaryDirectory() as temporary:
    archive = pack(stage.path / "masks", val_ids[:3], Path(temporary) / "results.tgz", split="val", size=folder.size)
    with tarfile.open(archive) as content:
        print(*content.getnames(), sep="\n")

# %% [markdown]
# And what if a mask still holds ignored pixels? The server would count them as wrong, or refuse them all. `pack` refuses first, names
# the file, and writes nothing.

# %%
with tempfile.TemporaryDirectory() as temporary:
    write_mask(Path(temporary) / "undecided.png", np.full((4, 4), 255))
    try:
        pack(temporary, ["undecided"], Path(temporary) / "results.tgz")
    except DataError as error:
        print(str(error).replace(str(Path(temporary)), "masks"))
    print("archive written:", (Path(temporary) / "results.tgz").exists())

# %% [markdown]
# Whoever has the test images lists them in `ImageSets/Segmentation/test.txt`. Then one more stage segments them all, as val was
# segmented, and packs the archive to upload. There is nothing to score with: the only number comes back from the server.

# %% tags=["nbval-ignore-output"]
if "test" in folder.splits:
    packed = stages.segment_test(run)
    archive = packed.path / "comp6_test_cls.tgz"
    print(f"{packed.metrics['images']} masks in {archive.relative_to(run.root).as_posix()}")
else:
    print(f"{folder.name} has no test.txt, only {', '.join(folder.splits)}: there is nothing to send.")

# %% [markdown]
# ## Exercises
#
# 1. **No pyramid.** Set `overrides = {"segmentation.dilations": [1]}`. Which classes lose most, small or large ones? Say first
#    what you expect.
# 2. **Sure pixels only.** Train on masks with undecided pixels: `{"dense_crf.la_ha": [4.0, 32.0]}`. Does it help val mIoU? Compare it
#    with how many pixels lost their label in notebook 07.
# 3. **Too long.** Train three times as long: `{"segmentation.epochs": 24}`. The loss falls. Does the student move towards the truth, or
#    towards its teacher? Compare both on the training images.
# 4. **A second generation.** Let the student's masks of the training images be the pseudo masks of a new student. Which row of
#    the first figure will improve, and which will not?
# 5. **Several sizes.** Train with `{"segmentation.scales": [0.5, 0.75]}`, at the same learning rate and at a quarter of it. Draw the
#    figure *who speaks* again. Has the share of the smaller sizes grown? Say first whether it should.
# 6. **Another teacher.** `wsss run 07 08 --set refine.how=irnet`, and `--set refine.how=none`. The teachers differ by so many points; by
#    how many do their students?
#
# <details><summary>Hints</summary>
# <b>1.</b> The backbone has looked around already. How many pixels does one of its cells see before the head begins?
# <b>2.</b> The run gets a folder of its own, since a setting differs; the classifier and its maps are shared. Compare like with like.
# <b>3.</b> Score the student against the pseudo masks as well, as if they were true. Watch both numbers.
# <b>4.</b> An average of averages. What all agree on, they agree on again.
# <b>5.</b> The four terms are in <code>log.csv</code>. A sum of four losses takes steps up to four times as long.
# <b>6.</b> <code>results.table(run.root)</code> has a line for each. One seed shows a tendency at best; see notebook 09.
# </details>

# %% [markdown]
# ## Questions
#
# <details><summary><b>1.</b> Why is the student not simply as wrong as its pseudo masks?</summary>
# Similar pixels must get similar answers, so it learns the majority label of each kind of pixel. Errors that are rare within
# their kind are outvoted. Errors that are the rule within their kind are learnt.
# </details>
#
# <details><summary><b>2.</b> May you choose the test scales, or the rule that combines views, by val mIoU, and then report val
# mIoU?</summary>
# Not as a fair result: the choice has seen the answer. Choose on other images, or report the scores of a fixed choice, and
# say which of the two you did.
# </details>
#
# <details><summary><b>3.</b> Why are background pixels of the padding 255 and not 0?</summary>
# They are no background; they are nothing. As 0 they would teach that the mean colour is background and that borders
# matter. As 255 they have no gradient, as we have seen.
# </details>

# %% [markdown]
# ## Take-aways
#
# - A segmentation network turns masks of training images into a function of any image, with no label given.
# - Cross-entropy learns label *frequencies*. So random errors cancel, and systematic errors, such as context taken for an object, stay.
# - Atrous convolution widens the view with the same nine weights. ASPP looks at several ranges at once.
# - 255 means: teach nothing here. Better no label than a wrong one, as long as enough are left.
# - Sizes, the rule that combines views, a CRF at test time: each is a part of the method, set before val is opened.
# - Report val with nothing tuned on it, and never mix it with numbers from training images.

# %% [markdown]
# ## References
#
# - L.-C. Chen, G. Papandreou, I. Kokkinos, K. Murphy, A. L. Yuille. *DeepLab: Semantic Image Segmentation with Deep Convolutional Nets,
#   Atrous Convolution, and Fully Connected CRFs.* PAMI 2018 (arXiv 2016).
#   The head used here.
# - Code: [kazuto1011/deeplab-pytorch](https://github.com/kazuto1011/deeplab-pytorch),
#   [YudeWang/semantic-segmentation-codebase](https://github.com/YudeWang/semantic-segmentation-codebase) (of SEAM and CPN),
#   [xulianuwa/MCTformer](https://github.com/xulianuwa/MCTformer).
# - L.-C. Chen, G. Papandreou, F. Schroff, H. Adam. *Rethinking Atrous Convolution for Semantic Image Segmentation.* 2017. The third
#   version.
# - M. Everingham et al. *The PASCAL Visual Object Classes Challenge: A Retrospective.* IJCV 2015. Data, scores and server.
# - D. Rolnick, A. Veit, S. Belongie, N. Shavit. *Deep Learning is Robust to Massive Label Noise.* 2017.
# - Next: [09 Compare](09_compare.ipynb), where all runs stand beside the numbers that papers print.
