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
# # 01 · Class activation maps: where does a classifier look?
#
# A network that was only ever told *what* is in an image also knows, a little, *where* it is. This notebook takes
# that knowledge out.
#
# | | |
# |---|---|
# | **Time** | about a minute on two CPU cores (profile `demo`) |
# | **Needs** | nothing but this kit; no GPU, no downloads |
# | **Paper** | Zhou et al., *Learning Deep Features for Discriminative Localization*, CVPR 2016 ([arXiv:1512.04150](https://arxiv.org/abs/1512.04150)) |
# | **Before** | [00 Start](00_start.ipynb) |
#
# Afterwards you will be able to
#
# 1. derive the class activation map (CAM) from a classifier with global average pooling, in four lines;
# 2. turn a map into a *seed*, a first mask, and say what the background threshold does;
# 3. show the two ways in which CAM fails, and measure them: it finds only the telling **part** of an object, and it
#    spills onto the **context** that objects usually stand on.

# %% [markdown]
# ## Parameters
#
# Everything that can be turned from outside stands in the next cell, and papermill replaces it when the notebook
# runs headless: `papermill 01_cam.ipynb out.ipynb -p profile paper -p data_root VOC2012 -k python3`.

# %% tags=["parameters"]
import os

profile = os.environ.get("WSSS_PROFILE", "demo")  # smoke | demo | laptop | paper
dataset = ""  # name of the data set; empty: the profile's own
data_root = ""  # folder in VOC layout; empty: toy scenes, drawn on the spot
runs_root = ""  # where results go; empty: runs/ of the project
seed = 0  # of every random draw
overrides = {}  # departures from the profile, {"cam.epochs": 3}

# %% [markdown]
# ## Set-up
#
# A *run* is one method on one data set with one profile and one seed. It knows the settings, the data, and the
# folder where each stage of the work keeps its results.

# %% tags=["nbval-ignore-output"]
import inspect

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from data_prep.ready import ready
from wsss_lib import localize, methods, results, stages, viz, widgets
from wsss_lib.data.transforms import denormalize, normalize
from wsss_lib.runs import Run
from wsss_lib.settings import load

settings = load(profile, overrides)
folder = ready(settings, dataset, data_root)
run = Run(settings, folder, method="cam", seed=seed, root=runs_root)
folder.require_masks(run.ids("seed"), "this lesson compares seeds with them")
print(
    f"torch {torch.__version__}, device {stages.pick_device(settings.machine.device)}, profile {profile}, seed {seed}"
)

# %% [markdown]
# The classes, and how many images the classifier may learn from. Of each training image it sees the pixels and the
# image-level label, nothing else: the training set has no field for a mask, and a test of this kit holds that.

# %%
train_ids, seed_ids = run.ids("train"), run.ids("seed")
print(f"{len(train_ids)} training images, {folder.n_classes} classes:", ", ".join(folder.classes))

# %% [markdown]
# ## The idea in one figure
#
# A convolutional network turns an image into a stack of feature maps. Average each map over space, weigh the
# averages, add them up: that is the score of a class. **Averaging and weighing can change places.** Weigh the maps
# first, and before the average there is a picture: how much each place speaks for the class.

# %%
example = folder.image(train_ids[0])
label = folder.label(train_ids[0])
example_classes = [folder.classes[k] for k in np.flatnonzero(label)]

figure, axes = plt.subplots(2, 1, figsize=(8.2, 2.4), layout="constrained")
ways = {
    "score": [
        "image",
        "features\n$f_c(p)$",
        "average over\nplaces $p$",
        "weigh with $\\theta_{kc}$,\nadd over $c$",
        "score $s_k$",
    ],
    "map": [
        "image",
        "features\n$f_c(p)$",
        "weigh with $\\theta_{kc}$,\nadd over $c$",
        "a map\n$M_k(p)$",
        "average over\nplaces $p$",
        "score $s_k$",
    ],
}
for axis, steps in zip(axes, ways.values(), strict=True):
    for i, step in enumerate(steps):
        colour = viz.COLORS[1] if step.startswith("a map") else viz.COLORS[0]
        box = {"boxstyle": "round", "fc": "white", "ec": colour, "lw": 2}
        axis.text(i, 0, step, ha="center", va="center", fontsize=9, bbox=box)
        if i:
            axis.annotate("", (i - 0.38, 0), (i - 0.62, 0), arrowprops={"arrowstyle": "->"})
    axis.set(xlim=(-0.5, 5.5), ylim=(-0.5, 0.5))
    axis.axis("off")
viz.show(figure, "Two ways to the same score. The lower one passes a map, and that map is the CAM.")

# %% [markdown]
# In symbols, with features $f_c(p)$ for channel $c$ at place $p$ of an $h \times w$ grid and weights $\theta_{kc}$ of
# class $k$:
#
# $$s_k = \sum_c \theta_{kc} \, \frac{1}{hw} \sum_p f_c(p) \;=\; \frac{1}{hw} \sum_p \underbrace{\sum_c \theta_{kc} f_c(p)}_{M_k(p)}$$
#
# There is no bias: a constant would lift the map everywhere alike and would say nothing about places.
#
# Nothing is learnt for the map. It is the classifier itself, looked at one step earlier. This is why CAM became the root of
# nearly all weakly supervised segmentation: whoever has a classifier has a map, and better classifiers, losses and images
# give better maps. It is also why CAM has the faults of a classifier, as we shall see.

# %% [markdown]
# ## The smallest implementation
#
# Four steps, each with the shape of what comes out. We take one image and a network with random weights, since
# shapes and identities do not depend on training. The image is normalised with ImageNet's mean and standard deviation.
# All backbones here take images so normalised: pretrained weights can be put in without a thought about the range of pixels.

# %%
image = normalize(example)[None]
print("image", tuple(image.shape), "label", example_classes)

# %% [markdown]
# **Step 1, features.** The backbone is fully convolutional: it keeps a grid, coarser than the image by its stride.
# A stride of 16, usual for photographs, leaves a cat of 160 pixels ten cells; no map of this network can be sharper than that.

# %%
untrained = stages.build_method(run).eval()
with torch.no_grad():
    features = untrained.backbone(image)
print("features", tuple(features.shape), "stride", untrained.backbone.out_stride)

# %% [markdown]
# **Step 2, scores.** Global average pooling, then one weight for each pair of class and channel.

# %%
theta = untrained.weight.detach()
scores = features.mean(dim=(2, 3)) @ theta.T
print("theta", tuple(theta.shape), "scores", tuple(scores.shape))

# %% [markdown]
# **Step 3, maps.** The same weights at every place, *before* the average. Their mean over space must be the score, and
# it is.

# %%
maps = torch.einsum("kc,nchw->nkhw", theta, features)
torch.testing.assert_close(maps.mean(dim=(2, 3)), scores, rtol=1e-4, atol=1e-4)
print("maps", tuple(maps.shape), "mean over space = scores")

# %% [markdown]
# **Step 4, from map to seed.** Evidence against a class is cut off (ReLU). Classes that the image-level label does not
# name are set to zero: we *know* that they are absent. Each remaining map is divided by its maximum, so that 1 is the
# most convincing place of that class in this image.
#
# Two remarks. First, the label is used *here*, when seeds are made, and not only in training; this is fair, since training
# images have labels, and all papers do it. Second, papers differ in this rule: some subtract the minimum too, some halve the
# result. A threshold means nothing without the rule that it belongs to, so this kit has one rule only, that of IRN.

# %%
positive = maps.relu()
peak = positive.amax(dim=(2, 3), keepdim=True)
normalised = positive / (peak + 1e-5) * label[None, :, None, None]
print("maximum of each class:", normalised.amax(dim=(0, 2, 3)).round(decimals=2).tolist())

# %% [markdown]
# A pixel then belongs to its strongest class if that is stronger than a background threshold $\vartheta$, and to the
# background otherwise. Background has no map of its own: it is where nothing else is convincing.
# The result is called a *seed*: a first mask, sure in some places and wrong in others, from which later stages grow better ones.

# %%
background_threshold = 0.25
stack = torch.cat([torch.full_like(normalised[:, :1], background_threshold), normalised], dim=1)
small_seed = stack.argmax(dim=1)
print("seed", tuple(small_seed.shape), "values", sorted(small_seed.unique().tolist()))

# %% [markdown]
# **How it learns.** An image may hold several classes, so each class is a yes-or-no question of its own: binary
# cross-entropy for each, averaged over classes. A soft-max would force the classes to compete, and an image of a boat beside
# a car would have to decide.
#
# $$L = -\frac{1}{K}\sum_k y_k \log\sigma(s_k) + (1-y_k)\log(1-\sigma(s_k))$$

# %%
yes, no = F.logsigmoid(scores), F.logsigmoid(-scores)  # log sigma(s) and log(1 - sigma(s)), without rounding to log 0
by_hand = -(label * yes + (1 - label) * no).mean()
torch.testing.assert_close(by_hand, F.multilabel_soft_margin_loss(scores, label[None]))
print("our loss and torch's multilabel_soft_margin_loss agree")

# %% [markdown]
# ## The library does the same
#
# `wsss_lib/methods/cam.py` holds the method: two plain functions with the mathematics, and a class that stores the
# weights and calls them.
# Every later method of this course has the same two doors: `loss`, to learn from image-level labels, and `cam`, to say where.
# (`maps` are the scores of either sign, whose positive part is the CAM.)

# %%
print(inspect.getsource(methods.cam.class_maps).split('"""')[2].strip())
print(inspect.getsource(methods.cam.CAM.maps).split('"""')[2].strip())
print(inspect.getsource(methods.cam.CAM.cam).split('"""')[2].strip())

# %% [markdown]
# Equal to our four steps, to the last digits of a 32-bit number:

# %%
with torch.no_grad():
    torch.testing.assert_close(untrained.cam(image), positive)
    torch.testing.assert_close(untrained.logits(image), scores, rtol=1e-4, atol=1e-4)
torch.testing.assert_close(localize.normalize_cam(positive, label[None]), normalised)
print("maps, scores and normalisation agree with the library")

# %% [markdown]
# ## Train, or load
#
# The stage `classifier` trains the network on image-level labels. If its folder is complete, nothing is trained and the
# results are loaded; if it was interrupted, it continues from its checkpoint.
# A continued training ends with the same bytes as one that was never interrupted. Learning rate, epochs and batch stand in
# `wsss_lib/settings`, one file a profile; the rate falls from its start to zero as $(1 - k/k_{max})^{0.9}$, the *poly* schedule.

# %% tags=["nbval-ignore-output"]
classifier_stage = stages.train_classifier(run)
log = pd.read_csv(classifier_stage.path / "log.csv")
print(f"{len(log)} steps in {classifier_stage.metrics['seconds']:.0f} s")

# %% tags=["nbval-ignore-output"]
viz.show(viz.losses(log, ["classify"]), "The classification loss, each step and its running mean.")

# %% [markdown]
# Does it classify? Average precision is 1 if every image with the class is ranked above every image without it. The val
# split of the toy scenes is drawn **without** context bias, so a classifier that has learnt the context loses here.
# Precision on the training images would hide this: there the context is as good a reason as the object.

# %% tags=["nbval-ignore-output"]
precision = {
    name: np.nan if v is None else 100 * v for name, v in classifier_stage.metrics["average_precision"].items()
}
viz.show(viz.bars(precision, "average precision on val (%)"), "How well each class is recognised on the val split.")

# %% [markdown]
# ## Several scales, and the mirror
#
# A map of the trained network at one scale is coarse. Everyone in this field therefore looks at the image several times,
# larger, smaller and mirrored, and adds the maps up. Let us do it by hand for the mirror first.

# %%
model = stages.load_classifier(run).cpu()
with torch.no_grad():
    upright = model.cam(image)
    mirrored = model.cam(image.flip(-1)).flip(-1)
both = upright + mirrored
print("the two differ:", not torch.allclose(upright, mirrored), "| their sum", tuple(both.shape))

# %% [markdown]
# The library's `multi_scale_cam` does this at each scale, resizes the sums to one size and adds them. At scale 1 and at
# the map's own stride it must give what we just computed.

# %%
stride = model.backbone.out_stride
with torch.no_grad():
    library = localize.multi_scale_cam(model, image, scales=(1.0,), flip=True, stride=stride)
torch.testing.assert_close(library, both, rtol=1e-3, atol=1e-3)
print("multi_scale_cam at one scale = our sum", tuple(library.shape))

# %% [markdown]
# What more scales do to a map: details from the enlarged image, context from the reduced one.
# An enlarged image has more cells, so the map is finer; but the network then sees less of the object at once, and may find
# only its parts. The sum balances both, at the price of computing: twice the scale costs four times the time.

# %%
looks = {"1": (1.0,), "0.5": (0.5,), "1.5": (1.5,), "2": (2.0,), "all": (1.0, 0.5, 1.5, 2.0)}
k = int(label.argmax())
row = [denormalize(image[0])]
for scales in looks.values():
    with torch.no_grad():
        cam = localize.multi_scale_cam(model, image, scales=scales, flip=True, stride=1)
    row.append(localize.normalize_cam(cam, label[None])[0, k])
viz.show(
    viz.grid([row], ["image", *[f"scale {s}" for s in looks]]),
    "The CAM of one class at single scales, and their sum. Each is divided by its own maximum.",
)

# %% [markdown]
# ## Maps of all training images
#
# The stage `cams` does this for every training image and keeps the maps of the classes that are present. It shares work:
# image and mirror, and images of equal size, go through the network together.

# %% tags=["nbval-ignore-output"]
cams_stage = stages.make_cams(run)
score = cams_stage.metrics["seed"]
cam_dir = cams_stage.folder("cams")
print(f"{cams_stage.metrics['images']} maps in {cams_stage.metrics['seconds']:.0f} s")

# %% [markdown]
# `look` gathers what we want to see of one image; `seed_iou` scores its seed against the true mask. True masks are opened
# here to *look and measure*. Training never does.


# %%
def look(image_id, threshold=settings.localize.threshold):
    cam = localize.load_cam(cam_dir / f"{image_id}.npz", n_classes=folder.n_classes)
    return folder.image(image_id), cam, localize.seed(cam, threshold), folder.mask(image_id)


def pictures(image_id, threshold=settings.localize.threshold):
    image, cam, found, truth = look(image_id, threshold)
    return [image, viz.overlay_cam(image, cam.amax(0)), viz.overlay_mask(image, found), viz.overlay_mask(image, truth)]


def seed_iou(image_id):
    _, _, seed_mask, truth = (np.asarray(x) for x in look(image_id))
    hit, either = (seed_mask == truth) & (truth > 0), (seed_mask > 0) | (truth > 0)
    return hit.sum() / max(either.sum(), 1)


# %% [markdown]
# ## Look: successes beside failures
#
# All images are sorted by how well their seed fits. On the left the image, then the strongest map, the seed, and the true
# mask.
# Look for three things: how much of the object the map covers, whether it leaves the object, and whether its peak sits where
# you would have looked yourself.

# %% tags=["nbval-ignore-output"]
single = [i for i in seed_ids if folder.label(i).sum() == 1][:300] or list(seed_ids)
ranked = sorted(single, key=seed_iou)
chosen = {"best": ranked[-3:], "middle": ranked[len(ranked) // 2 : len(ranked) // 2 + 2], "worst": ranked[:3]}


ids = [i for group in chosen.values() for i in group]
names = [group for group, members in chosen.items() for _ in members]
figure = viz.grid([pictures(i) for i in ids], ["image", "CAM", "seed", "true mask"], names, size=1.15)
viz.show(figure, "Seeds from best to worst. The worst find a part, or a piece of the context, and not the object.")

# %% [markdown]
# ## The background threshold
#
# A low threshold lets the seed spill over the object, a high one leaves only its peak. Turn the dial, and change the image.
# (Without a running kernel you see the picture at the start.)


# %%
def draw_threshold(image, threshold):
    titles = ["image", "CAM", f"seed at {threshold:.2f}", "true mask"]
    return viz.grid([pictures(seed_ids[image], threshold)], titles, size=1.6)


explorer = widgets.explore(
    draw_threshold,
    "The seed of one image at a background threshold that you choose. Which threshold would you take for all images?",
    image=(0, min(len(seed_ids), 48) - 1, 1, 1),
    threshold=(0.0, 0.95, 0.05, 0.25),
)

# %% [markdown]
# The same as a strip, for readers without a kernel: one image at five thresholds.

# %% tags=["nbval-ignore-output"]
strip_id = ranked[len(ranked) // 2]
levels = (0.05, 0.15, 0.25, 0.4, 0.6)
picture = folder.image(strip_id)
strip = [viz.overlay_mask(picture, look(strip_id, t)[2]) for t in levels]
viz.show(
    viz.grid(
        [[picture, *strip, viz.overlay_mask(picture, folder.mask(strip_id))]],
        ["image", *map(str, levels), "truth"],
        size=1.25,
    ),
    "From left to right the threshold rises, and the seed shrinks from the whole surroundings to the peak of the map.",
)

# %% [markdown]
# ## Failure 1: only the telling part
#
# A classifier needs just enough evidence. If one small part settles the question, nothing teaches the network to look at
# the rest of the object. A train is known by its windows, a car by its wheels. We take the pixels *of the object* and ask how many
# of them are activated above a level. If maps covered objects as wholes, the curve would stay high and fall late.

# %% tags=["nbval-ignore-output"]
reached = {level: [] for level in np.linspace(0.05, 0.95, 19)}
for image_id in single[:150]:
    _, cam, _, truth = look(image_id)
    values = cam.amax(0)[(truth > 0) & (truth < 255)]
    for level, shares in reached.items():
        shares.append(float((values > level).float().mean()) if len(values) else np.nan)
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
axis.plot(list(reached), [100 * np.nanmean(v) for v in reached.values()], color=viz.COLORS[0])
axis.set(xlabel="activation", ylabel="object pixels above it (%)", ylim=(0, 100))
viz.show(figure, "Share of the object's pixels whose activation exceeds a level: a whole object would stay near 100 %.")

# %% [markdown]
# ## Failure 2: the context helps, so it is used
#
# Boats are on water. If nearly all of them are, water is evidence for a boat, and a classifier that is paid for being right
# takes it. We ask **where the energy of the maps lies**: on the object, on other objects, on the object's own context, on
# other context.
# Energy is the sum of a map's values; each map's energy is divided into these four shares. Masks and contexts are needed to
# measure it, and toy scenes know both exactly: this is what they are for.

# %% tags=["nbval-ignore-output"]
if "energy" in score:
    energy = {name.replace("_", " "): 100 * share for name, share in score["energy"].items() if share is not None}
    figure = viz.bars(energy, "share of CAM energy (%)")
    viz.show(figure, "Where the maps' energy lies. What lies on context is lost for the object, and spoils its mask.")
else:
    print("These images do not say on which context their objects stand; toy scenes do.")

# %% [markdown]
# Images that **agree** with the bias show their object on its usual context, the others do not. Both are scored apart: an
# average over all images hides the second group, since it is small.
# Which group has the better *seeds* is not obvious. Where the scene agrees, the map spreads from the object onto its context,
# and the seed becomes too large. Where it disagrees, there is no such context to spread to, but the classifier may miss the
# object altogether.

# %% tags=["nbval-ignore-output"]
if "groups" in score:
    groups = {name: 100 * miou for name, miou in score["groups"].items()}
    viz.show(
        viz.bars(groups, "seed mIoU (%)"), "Seeds of images that agree with the context bias, and of those that do not."
    )

# %% [markdown]
# The next figure was measured once, with three seeds at each point, by the command in the table's header; it is shown
# here, not computed. **The more often objects stand on their own context, the more energy the maps put on context, and the
# worse the seeds become.**

# %%
if folder.name == "toy":
    curve = results.read("context_bias")
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    for axis, column, title in zip(
        axes, ["seed_miou_best", "energy_context"], ["seed mIoU (%)", "CAM energy on context (%)"], strict=True
    ):
        points = curve.groupby("context_bias")[column].agg(["mean", "std"])
        axis.errorbar(points.index, points["mean"], points["std"], color=viz.COLORS[0], marker="o", capsize=3)
        axis.set(xlabel="context bias", ylabel=title)
    viz.show(figure, "Plain CAM on toy scenes whose context bias grows: mean and standard deviation over three seeds.")

# %% [markdown]
# ## Measure
#
# Seeds are scored on the training images, because that is where they will be used. The score is the mean over classes of
# intersection over union (mIoU), from one confusion matrix over all images.
#
# **Two numbers, kept apart.** The *fixed* threshold stands in the settings before the run. The *best* threshold of a
# sweep is chosen *with* pixel truth: papers mostly print that one, and a user without masks cannot have it.
# A sweep need not make every seed anew: for each pixel it is enough to know its strongest class and that class's value, so one
# pass over the images fills a histogram that holds the confusion matrices of all thresholds.

# %% tags=["nbval-ignore-output"]
sweep = score["sweep"]
percent = [np.nan if v is None else 100 * v for v in sweep["miou"]]
viz.show(
    viz.sweep(sweep["threshold"], {"CAM": percent}, fixed=settings.localize.threshold),
    "Seed mIoU over the background threshold; the dot is the best one, the dotted line the fixed one.",
)

# %% tags=["nbval-ignore-output"]
rows = {
    name: {"threshold": score[name]["threshold"], "seed mIoU (%)": 100 * score[name]["miou"]}
    for name in ("fixed", "best")
}
print("classes in the mean:", ", ".join(score["fixed"]["miou_classes"]))
pd.DataFrame(rows).T.round({"threshold": 2, "seed mIoU (%)": 1})

# %% [markdown]
# Which classes are hard?

# %% tags=["nbval-ignore-output"]
by_class = {name: np.nan if v is None else 100 * v for name, v in score["fixed"]["iou"].items() if v is not None}
viz.show(viz.bars(by_class, "IoU of the seed at the fixed threshold (%)"), "Intersection over union, class by class.")

# %% [markdown]
# ### Paper · here
#
# What papers print for plain CAM on the training images of VOC 2012 stands in one column, what this run measured on *its*
# data in the other. They may be compared only where the data set is the same.

# %% tags=["nbval-ignore-output"]
paper = results.paper(stage="seed", split="train", dataset="voc12", metric="mIoU")
paper = paper[(paper["method"] == "baseline") & paper["kind"].eq("main")]
table = paper[["paper", "source", "host", "backbone", "value"]].rename(columns={"value": "paper: seed mIoU (%)"})
table = table.assign(**{f"here: seed mIoU on {folder.name} (%)": ""}).astype(object).reset_index(drop=True)
table.loc[len(table)] = ["this run", profile, "cam", settings.backbone.name, "", f"{100 * score['best']['miou']:.1f}"]
table

# %% [markdown]
# ## Exercises
#
# 1. **Threshold without truth.** Before you look at the sweep, look at ten seeds with the slider and write down the threshold
#    that you would take. How far is it from the best one?
# 2. **Bias.** Run the notebook again with `overrides = {"toy.context_bias": 0.0}` and with `0.9`. Which bar of the energy
#    figure grows, and which class suffers most?
# 3. **Part.** Set `overrides = {"toy.part_contrast": 0.3}`. The telling part now hardly stands out. Does the curve of
#    failure 1 rise or fall? Say first what you expect.
# 4. **Normalisation.** Divide by the maximum over *all* classes in place of each class's own. In which images does the seed
#    change?

# %% [markdown]
# ## Questions
#
# <details><summary><b>1.</b> Why is the classifier without a bias?</summary>
# A bias adds the same number at every place. It would change the score, but not where the map is high, so the mean of the
# map would no longer be the score.
# </details>
#
# <details><summary><b>2.</b> Seed mIoU at the best threshold is higher than at the fixed one. May you report it?</summary>
# Yes, if you say that the threshold was chosen with pixel truth, and for both sides of a comparison alike. It is no number
# that someone without masks would get.
# </details>
#
# <details><summary><b>3.</b> The classifier reaches 95 % average precision. Are its maps good?</summary>
# Not necessarily. Precision asks whether it is right, the map shows why. It can be right because of the water.
# </details>

# %% [markdown]
# ## Take-aways
#
# - Average pooling and a linear classifier commute; the map before the average is the CAM.
# - A seed needs a background threshold, since background has no class of its own. How it was chosen belongs to the result.
# - CAM is *partial* (a telling part suffices) and *biased* (the context helps). Methods 02 to 06 fight one or the other.
# - An average hides the images that disagree with the bias: report them apart.

# %% [markdown]
# ## References
#
# - B. Zhou, A. Khosla, A. Lapedriza, A. Oliva, A. Torralba. *Learning Deep Features for Discriminative Localization.* CVPR 2016.
# - J. Ahn, S. Cho, S. Kwak. *Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations* (IRN). CVPR 2019.
#   The normalisation and the multi-scale rule follow it.
# - Next: [07 Pseudo masks](07_pseudo_masks.ipynb), where the image's edges sharpen the seeds.
