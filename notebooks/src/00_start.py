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
# # 00 · Start: labels in, masks out
#
# What this course is about, what its data look like, and how its results are measured. Nothing is trained yet.
#
# | | |
# |---|---|
# | **Time** | about ten seconds on two CPU cores (profile `demo`) |
# | **Needs** | nothing but this kit; no GPU, no downloads |
# | **Paper** | Everingham et al., *The PASCAL Visual Object Classes (VOC) Challenge*, IJCV 2010 ([doi:10.1007/s11263-009-0275-4](https://doi.org/10.1007/s11263-009-0275-4)) |
# | **Before** | some Python, NumPy and PyTorch; no knowledge of segmentation |
#
# Afterwards you will be able to
#
# 1. say what weakly supervised semantic segmentation is, and name the stages on the way from labels to masks;
# 2. read a data folder in VOC layout, and turn the three dials of the toy scenes that this course learns from;
# 3. compute the mean intersection over union (mIoU) by hand, and say what the value 255 does in a mask.

# %% [markdown]
# ## Parameters
#
# Everything that can be turned from outside stands in the next cell, and papermill replaces it when the notebook
# runs headless: `papermill 00_start.ipynb out.ipynb -p profile laptop -p data_root FOLDER -k python3`. Each notebook of
# the course has this cell, and the names in it always mean the same.

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
# `settings` holds every number of the chosen profile. `ready` opens the data: toy scenes are drawn once and then reused,
# photographs must lie in `data_root`.

# %% tags=["nbval-ignore-output"]
import inspect
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from data_prep import toy
from data_prep.ready import ready
from wsss_lib import viz, widgets
from wsss_lib.data import DrawSampler, TrainingSet, collate, denormalize, palette, train_transform, write_mask
from wsss_lib.data.check import check
from wsss_lib.errors import WsssError
from wsss_lib.metrics import ConfusionMatrix
from wsss_lib.settings import PROFILES, load

settings = load(profile, overrides)
folder = ready(settings, dataset, data_root)
scenes = toy.ToyScenes(**settings.toy) if "toy" in settings else toy.ToyScenes()
print(f"torch {torch.__version__}, profile {profile}, seed {seed}")

# %% [markdown]
# Is this run on toy scenes, or on photographs of your own? Some figures below ask on which context an object stands.
# Only toy scenes know that.

# %%
on_toy = folder.name == "toy" and bool(folder.context)
train_ids, val_ids = (folder.split(settings.data[f"{name}_split"], settings.data.limit) for name in ("train", "val"))
print(f"data {folder.name}: {len(train_ids)} training images, {len(val_ids)} validation images")
print(f"{folder.n_classes} classes:", ", ".join(folder.classes))

# %% [markdown]
# ## Labels are cheap, masks are dear
#
# **Semantic segmentation** gives each pixel of an image a class: this is boat, that is background. The usual way to learn
# it needs training images in which a person has outlined every object. Such a *mask* takes minutes.
#
# An **image-level label** says only *which* classes are in the image: "aeroplane, boat". It takes seconds, and often it is
# there already, as a tag or a caption. **Weakly supervised semantic segmentation** (WSSS) learns masks from such labels.
#
# Bearman et al. (2016) measured both on VOC 2012, and two kinds of supervision between them:

# %%
seconds = {
    "labels of the image": 20.0,
    "one point in each object": 22.1,
    "a scribble in each object": 34.9,
    "full masks": 239.7,
}
viz.show(
    viz.bars(seconds, "seconds per image"),
    "Time that a person needs for one image of VOC 2012, after Bearman et al. (2016). Labels cost a twelfth of masks.",
)

# %% [markdown]
# The usual training set of this field, VOC 2012 with the extra images of SBD, holds 10,582 images. What would it cost to
# annotate it again?

# %%
for name in ("labels of the image", "full masks"):
    print(f"{name:20s} {10_582 * seconds[name] / 3600:4.0f} hours")

# %% [markdown]
# That is the bargain: a week and a half of work in place of four months. And VOC is small. In medicine or in remote
# sensing a mask may need an expert and an hour, while the label is a line in a report.
#
# The price is accuracy. A label says nothing about *where*, so the network has to find out by itself, and it finds
# short cuts. Most of this course is about these short cuts.

# %% [markdown]
# ## The idea in one figure
#
# How can a label become a mask? In five steps, and each one is a stage of this kit. The figure shows them on one toy scene.
# The pictures in its middle are *sketches*, made from the true mask so that you see what to expect; notebook 01 computes real
# ones.


# %%
def sketch(index):
    """A scene with a CAM, a seed and a pseudo mask that look as they often do."""
    dials = {"context_bias": 1.0, "pair_bias": 0.0}
    scene = toy.draw_scene(toy.ToyScenes(**dials), index)
    plain = toy.draw_scene(toy.ToyScenes(**dials, part_contrast=0.0), index)
    part = (scene.image.astype(int) != plain.image).any(-1)  # the telling part: all that this dial changes
    blurred = [
        gaussian_blur(torch.tensor(m)[None].float(), [31, 31], [s])[0] for m, s in ((part, 3), (scene.mask > 0, 4))
    ]
    cam = 0.75 * blurred[0] / blurred[0].max() + 0.25 * blurred[1] / blurred[1].max()
    k = int(scene.mask.max())
    return scene, cam, k * (cam > 0.35), k * (blurred[1] > 0.42)


scene, cam, seed_mask, pseudo = sketch(7)
print(scene.labels, scene.image.shape, scene.mask.shape)

# %% [markdown]
# The figure itself: five pictures, with the work that leads from one to the next above the arrow.

# %%
pictures = {
    f"image\nlabel: {scene.labels[0]}": scene.image,
    "class activation\nmap (CAM)": viz.overlay_cam(scene.image, cam),
    "seed": viz.overlay_mask(scene.image, seed_mask),
    "pseudo mask": viz.overlay_mask(scene.image, pseudo),
    "masks of\nnew images": viz.overlay_mask(scene.image, scene.mask),
}
work = [
    "train a\nclassifier, ask\nwhere it looks",
    "cut at a\nthreshold",
    "follow the\nimage's edges",
    "train a\nsegmentation\nnetwork",
]
figure, axes = plt.subplots(1, 5, figsize=(12, 2.3), gridspec_kw={"wspace": 1.05})
for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
    axis.imshow(picture)
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(name, fontsize=9)
for axis, text in zip(axes, work, strict=False):
    axis.annotate(
        "", (1.97, 0.5), (1.08, 0.5), "axes fraction", arrowprops={"arrowstyle": "-|>", "lw": 2, "color": viz.COLORS[0]}
    )
    axis.text(1.52, 0.58, text, transform=axis.transAxes, ha="center", va="bottom", fontsize=8.5)
viz.show(
    figure,
    "The whole way: label, class activation map, seed, pseudo mask, segmentation. The maps and masks are sketches.",
)

# %% [markdown]
# In words, with the names that the kit uses for its stages:
#
# | stage | takes | gives | scored on |
# |---|---|---|---|
# | `classifier` | images, image-level labels | a network that says which classes are there | val, by average precision |
# | `cams` | classifier, images, labels | for each class present a map of where it was seen | train, as *seeds* |
# | `pseudo_masks` | maps, images | one mask an image: maps drawn to the image's edges | train |
# | `segmentation` | images, pseudo masks | a network that segments images without any label | val |
#
# Data move one way. A stage reads the folder that the stage before it wrote, and nothing else. **True masks are opened for
# scoring only, never for learning.** You will see below that a training sample has no place to put one.
#
# Why the last stage? The maps need the label of the image, and at test time there is none. Also, a network that learns from
# a thousand imperfect masks averages out some of their errors.

# %% [markdown]
# ## The map of the course
#
# | notebook | what it teaches | paper |
# |---|---|---|
# | **00 Start** | the task, the data, the ruler | you are here |
# | [**01 CAM**](01_cam.ipynb) | class activation maps, seeds, and where both fail | Zhou et al. 2016 |
# | [**02 CDA**](02_cda.ipynb) | paste objects onto other contexts | Su et al. 2021 |
# | [**03 CSD**](03_csd.ipynb) | separate classes that always come together | Yang et al. 2023 |
# | [**04 CPN**](04_cpn.ipynb) | hide complementary patches, so that the whole object is seen | Zhang et al. 2021 |
# | [**05 DEFT**](05_deft.ipynb) | swap the features of objects and backgrounds | an anonymous submission |
# | [**06 WS-FCN**](06_ws_fcn.ipynb) | learn masks in a single stage, without pseudo masks in between | Wang et al.; Araslanov and Roth 2020 |
# | [**07 Pseudo masks**](07_pseudo_masks.ipynb) | a dense CRF draws seeds to the image's edges | Krähenbühl and Koltun 2011 |
# | [**08 Segmentation**](08_segmentation.ipynb) | a DeepLab learns from pseudo masks | Chen et al. 2018 |
# | [**09 Compare**](09_compare.ipynb) | how to compare honestly: seeds, thresholds, groups | all |
# | 10 Your own data | your photographs in VOC layout | planned |
#
# The bold ones are there, the others are planned and keep their numbers. One method is always one library file, one
# notebook and one test file, under the same name: for 01 these are `wsss_lib/methods/cam.py`, `notebooks/01_cam.ipynb` and
# `tests/methods/test_cam.py`.

# %% [markdown]
# ## The smallest implementation: the ruler
#
# Before we look at data, we build the ruler that everything is measured with. Take a truth and a prediction of
# 4 by 4 pixels with two classes, 1 and 2, on background, 0. The truth has one more value: **255**, "do not score this
# pixel".

# %%
truth = np.array([[0, 0, 1, 1], [0, 0, 1, 255], [2, 2, 0, 0], [2, 2, 0, 0]])
prediction = np.array([[0, 1, 1, 1], [0, 0, 0, 1], [2, 2, 0, 0], [2, 0, 0, 0]])
print("truth", truth.shape, "prediction", prediction.shape)


# %%
def numbered(axis, mask, title, marked):
    """Draw a small mask with its values written in, and red frames around marked pixels."""
    axis.imshow(palette()[mask])
    for (i, j), value in np.ndenumerate(mask):
        axis.text(j, i, value, ha="center", va="center", color="white" if value != 255 else "black", fontsize=11)
        if marked[i, j]:
            axis.add_patch(plt.Rectangle((j - 0.44, i - 0.44), 0.88, 0.88, fill=False, ec="white", lw=2.5, ls=":"))
    axis.set(xticks=[], yticks=[], title=title)


figure, axes = plt.subplots(1, 2, figsize=(5.2, 2.6), layout="constrained")
wrong = (truth != prediction) & (truth != 255)
numbered(axes[0], truth, "truth", wrong)
numbered(axes[1], prediction, "prediction", wrong)
viz.show(figure, "Truth and prediction. Dotted frames mark the pixels that count as wrong; 255 never counts.")

# %% [markdown]
# **Step 1, which pixels count.** All but those with 255 in the truth: 15 of 16.
#
# **Step 2, intersection over union** of one class $c$. Of all pixels that are $c$ in the truth *or* in the prediction, which
# share is $c$ in both?
#
# $$\mathrm{IoU}_c = \frac{|T_c \cap P_c|}{|T_c \cup P_c|}$$

# %%
counts = truth != 255
print("pixels that count:", counts.sum(), "of", truth.size)
iou = []
for c in range(3):
    in_truth, in_prediction = (truth == c) & counts, (prediction == c) & counts
    both, either = (in_truth & in_prediction).sum(), (in_truth | in_prediction).sum()
    iou.append(both / either)
    print(f"class {c}: {both} / {either} = {both / either:.3f}")

# %% [markdown]
# **Step 3, the mean over classes.** Background is one of them. Each class weighs the same, however few pixels it has.

# %%
miou = np.mean(iou)
print(f"mIoU = {miou:.3f}")

# %% [markdown]
# **Why not count the correct pixels?** Because background would win. A prediction that finds no object at all already has
# more than half of the pixels right:

# %%
nothing = np.zeros_like(truth)
right = (nothing == truth)[counts].mean()
empty = ConfusionMatrix(3)
empty.update(truth, nothing)
print(f"all background: {right:.0%} of the pixels right, mIoU {empty.miou():.3f}")

# %% [markdown]
# **Why 255?** Real outlines are never exact to the pixel. Who draws masks for VOC leaves a band of *void* around each object:
# annotators may be wrong there, so nobody is punished there. In our example the prediction says 1 at the void pixel. If void
# were taken for background, a pixel that may well be right would be called wrong:

# %%
strict = ConfusionMatrix(3)
strict.update(np.where(truth == 255, 0, truth), prediction)
print(f"mIoU with void ignored {miou:.3f}, with void as background {strict.miou():.3f}")
assert strict.miou() < miou

# %% [markdown]
# **All images at once.** Every intersection and union can be read from one table: how many pixels of true class $i$ were
# predicted as class $j$. This is the *confusion matrix*. Intersections lie on its diagonal, a union is a row plus a column
# minus the cell in which they cross.

# %%
matrix = np.zeros((3, 3), int)
np.add.at(matrix, (truth[counts], prediction[counts]), 1)
hit = np.diag(matrix)
assert np.allclose(hit / (matrix.sum(0) + matrix.sum(1) - hit), iou)
print(matrix)

# %% [markdown]
# ## The library does the same
#
# `wsss_lib/metrics.py` keeps exactly this table and adds image after image to it, so a split of any size is scored in one
# pass. Here is how it takes the scores out of the table:

# %%
for method in (ConfusionMatrix.iou, ConfusionMatrix.miou):
    print(inspect.getsource(method))

# %% [markdown]
# The same table, the same IoU of each class, the same mean:

# %%
scores = ConfusionMatrix(3)
scores.update(truth, prediction)
assert (scores.matrix == matrix).all()
assert np.allclose(scores.iou(), iou) and np.isclose(scores.miou(), miou)
print(f"library: {scores.miou():.3f}, by hand: {miou:.3f}")

# %% [markdown]
# One detail decides many comparisons: the table is filled by **all** images of a split, and only then the mean is taken. The
# mean of one mIoU for each image is another number, and a class that is in no mask of an image needs a rule of its own.

# %%
second_truth, second = np.array([[1, 1], [1, 1]]), np.array([[1, 1], [0, 0]])
alone = ConfusionMatrix(3)
alone.update(second_truth, second)
print(
    f"one table over both images {(scores + alone).miou():.3f}, mean of two images {(scores.miou() + alone.miou()) / 2:.3f}"
)

# %% [markdown]
# ## The data
#
# In the other notebooks a network is trained now, or loaded where that was done before. This one has nothing to train. It has
# drawn its data instead, or found them from an earlier time; the difference is a few seconds.
#
# All data of this course lie in the layout of PASCAL VOC, so one loader reads toy scenes, VOC itself and your own photographs:

# %%
root = folder.root
for entry in sorted(root.iterdir(), key=lambda p: (p.is_file(), p.name)):
    number = f"{sum(1 for p in entry.rglob('*') if p.is_file())} files" if entry.is_dir() else "a file"
    print(f"{entry.name + ('/' if entry.is_dir() else ''):20s} {number}")

# %% [markdown]
# - `JPEGImages/<id>.jpg` are the images. The id is the file's name without its ending.
# - `ImageSets/Segmentation/<split>.txt` names the ids of a split, one a line.
# - `labels.csv` holds the image-level labels. VOC keeps them in `Annotations/<id>.xml`; both are read.
# - `classes.txt` names the classes; without it they are VOC's twenty.
# - `SegmentationClass/<id>.png` are the true masks, for scoring. They may be absent.
#
# The beginning of a split, and of the labels. For a network a label becomes a vector of zeros and ones, one place a class; several
# classes may be present, so several ones are allowed.

# %%
print("ids:", *train_ids[:3], "...")
for image_id in train_ids[:5]:
    known = f"   context {folder.context[image_id].context}" if on_toy else ""
    print(f"{image_id}  {', '.join(folder.class_names(image_id)) or 'no class':18s}{known}")
print(folder.class_names(train_ids[0]), "->", folder.label(train_ids[0]).int().tolist())

# %% [markdown]
# **Masks are pictures of numbers.** Each pixel of a mask file is an index: 0 background, 1 to K the classes in the order of
# `classes.txt`, 255 void. The file carries a *palette* that says in which colour a viewer shows an index, and VOC's palette
# is the one used in all figures here.

# %%
two = [i for i in train_ids if folder.label(i).sum() == 2][:3] or list(train_ids[:3])
if folder.has_masks(two):
    for image_id in two:
        print(image_id, tuple(folder.mask(image_id).shape), "values", folder.mask(image_id).unique().tolist())
    masks = [palette()[folder.mask(i).numpy()] for i in two]
    overlays = [viz.overlay_mask(folder.image(i), folder.mask(i)) for i in two]
    figure = viz.grid([[folder.image(i) for i in two], masks, overlays], names=["image", "mask", "both"])
    viz.show(viz.legend(figure, folder.classes), "Images, their true masks in VOC's palette, and one over the other.")
else:
    print("These images have no masks: they can be learnt from, but nothing can be scored.")

# %% [markdown]
# ## The toy scenes: six objects, six contexts
#
# Real data sets are large, and nobody knows exactly what is in them. This course therefore begins with drawings, in which the
# cause of a failure can be turned up and down. There are six objects and six contexts, and each object has *its own*: an
# aeroplane belongs to the sky, a boat to water.
#
# The colour of an object's body is random and tells nothing. One small **part** tells most: the tail of the aeroplane, the sail of
# the boat, the head of the sheep, the nose of the train, the wheels of the car, the cushion of the sofa. It has a colour of its
# own, clear in some objects and faint in others. Where it is faint, a classifier is glad of any other hint.


# %%
def draw(index, split="train", **dials):
    """A toy scene with some dials turned; the others are neutral."""
    neutral = {"context_bias": 0.0, "pair_bias": 0.0, "part_contrast": 1.0}
    return toy.draw_scene(toy.ToyScenes(**neutral | dials), index, split)


shown = [next(i for i in range(200) if draw(i).labels == (name,)) for name in toy.CLASSES]
own = [draw(i, context_bias=1.0) for i in shown]
rows = [[s.image for s in own], [viz.overlay_mask(s.image, s.mask) for s in own]]
titles = [f"{name}\non {toy.OWN_CONTEXT[name]}" for name in toy.CLASSES]
viz.show(viz.grid(rows, titles, ["image", "with mask"], size=1.3), "Each object on its own context, and its true mask.")

# %% [markdown]
# ### Dial 1, `context_bias`: how often an object stands on its own context
#
# At 0 any object stands on any context. At 1 every object stands on its own. The random numbers of a scene are drawn in a
# fixed order, so **the same scene with one dial turned differs only in what that dial is about**. Compare the columns.

# %%
levels = (0.0, 0.5, 1.0)
rows = [[draw(i, context_bias=b).image for i in shown] for b in levels]
viz.show(
    viz.grid(rows, list(toy.CLASSES), [f"bias {b:g}" for b in levels], size=1.15),
    "The same six scenes while the context bias grows. One after the other, the objects move to their own context.",
    dpi=70,
)

# %% [markdown]
# **Why it hurts.** If nearly all boats are on water, water is evidence for a boat. A classifier is paid for being right, not
# for looking at the boat, and so its map covers the water as well. CDA (02) and DEFT (05) fight this.

# %% [markdown]
# ### Dial 2, `pair_bias`: how often two classes come together
#
# At 0 a scene has one object. The higher the dial, the more scenes have two, and the more often the second one is the first
# one's *partner*: aeroplane and boat, sheep and sofa, train and car.

# %%
rows = [[draw(i, pair_bias=b).image for i in shown] for b in levels]
viz.show(
    viz.grid(rows, list(toy.CLASSES), [f"bias {b:g}" for b in levels], size=1.15),
    "The same six scenes while the pair bias grows. At 1 every object comes with its partner.",
    dpi=70,
)

# %% [markdown]
# **Why it hurts.** Two classes that always come together cannot be told apart by labels: whatever is in all images of the one
# is in all images of the other. The map of the train lies on the car. CSD (03) fights this.

# %% [markdown]
# ### Dial 3, `part_contrast`: how telling the small part is
#
# At 1 the part shows its own colour, as clearly as this object has drawn it. At 0 it has the body's colour, and only the shape is
# left.

# %%
rows = [[draw(i, part_contrast=b).image for i in shown] for b in levels]
viz.show(
    viz.grid(rows, list(toy.CLASSES), [f"contrast {b:g}" for b in levels], size=1.15),
    "The same six scenes while the telling part stands out more and more. Nothing else changes.",
    dpi=70,
)

# %% [markdown]
# **Why it hurts.** If the tail settles the question, nothing teaches the network to look at the rest of the aeroplane. The
# map lights up the tail alone. CPN (04) fights this.
#
# ### Turn them yourself
#
# Choose a scene and turn the dials. (Without a running kernel you see the picture at the start.)


# %%
def turned(scene, context_bias, pair_bias, part_contrast):
    drawn = draw(scene, context_bias=context_bias, pair_bias=pair_bias, part_contrast=part_contrast)
    masked = viz.overlay_mask(drawn.image, drawn.mask)
    return viz.grid(
        [[drawn.image, masked]], [" + ".join(drawn.labels), f"on {drawn.context}, agrees: {drawn.agrees}"], size=2.3
    )


explorer = widgets.explore(
    turned,
    "One scene, drawn anew with the dials that you choose. Which dial changes the context, which the second object?",
    scene=(0, 40, 1, 2),
    context_bias=(0.0, 1.0, 0.1, 0.6),
    pair_bias=(0.0, 1.0, 0.1, 0.5),
    part_contrast=(0.0, 1.0, 0.1, 1.0),
)

# %% [markdown]
# ## Train is biased, val is not
#
# The two splits have different tasks here.
#
# - **train** is drawn *with* the bias of the dials. Classifiers learn from it, and its seeds and pseudo masks are scored,
#   because they are what the next stage learns from.
# - **val** is drawn *without* bias: any object on any context, any second class equally often. It asks what was learnt
#   instead of what is frequent. A network that has learnt "water" in place of "boat" loses here.
#
# On photographs both splits come from the same world, and nobody knows how biased it is. That is why the toy scenes have an
# advantage: they know for each image whether it **agrees** with the bias.
#
# With context bias $b$ and pair bias $p$, a share of $b + (1 - b)(1 + p)/6$ of the training scenes should agree: those on
# purpose, and a few of the others by chance.

# %%
if on_toy:
    b, p = scenes.context_bias, scenes.pair_bias
    share = {
        split: np.mean([folder.context[i].agrees for i in ids])
        for split, ids in (("train", train_ids), ("val", val_ids))
    }
    expected = b + (1 - b) * (1 + p) / 6
    figure = viz.bars(
        {"train": 100 * share["train"], "train, by the formula": 100 * expected, "val": 100 * share["val"]},
        "scenes that agree with the bias (%)",
    )
    viz.show(figure, "How many scenes show an object on its own context. In val this happens only by chance.")
    assert abs(share["train"] - expected) < 4 * (expected * (1 - expected) / len(train_ids)) ** 0.5
else:
    print("These images do not say on which context their objects stand; toy scenes do.")

# %% [markdown]
# The same, object by object and context by context. Bright cells on the diagonal are the bias: in train they stand out, in val
# they do not. (Beside the diagonal lies a paler one: an object that came along as a partner stands on the *first* object's
# context.)

# %%
if on_toy:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, ids, split in zip(axes, (train_ids, val_ids), ("train", "val"), strict=True):
        pairs = [(name, folder.context[i].context) for i in ids for name in folder.class_names(i)]
        table = pd.crosstab(*map(list, zip(*pairs, strict=True)), normalize="index").reindex(
            index=toy.CLASSES, columns=toy.CONTEXTS, fill_value=0
        )
        sns.heatmap(
            100 * table,
            ax=axis,
            cmap=viz.HEAT,
            vmin=0,
            vmax=100,
            annot=True,
            fmt=".0f",
            annot_kws={"fontsize": 8},
            cbar=False,
        )
        axis.set(title=split, xlabel="", ylabel="")
        axis.tick_params(axis="y", rotation=0)
    viz.show(
        figure,
        "On which context the scenes of a class lie, in percent of its scenes. The diagonal is each object's own.",
    )
else:
    print("No context is known here; the next figure needs labels only.")

# %% [markdown]
# **Which labels come together?** This needs no masks and no contexts, so it is the first thing to look at in any data of your
# own. Each row is a class, each column says in which share of its images the other class is present too.

# %%
frequent = folder.labels(train_ids).sum(0).argsort(descending=True, stable=True)[:12].sort().values.tolist()
names = [folder.classes[k] for k in frequent]
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for axis, ids, split in zip(axes, (train_ids, val_ids), ("train", "val"), strict=True):
    y = folder.labels(ids)[:, frequent].numpy()
    together = 100 * (y.T @ y) / np.maximum(y.sum(0), 1)[:, None]
    sns.heatmap(
        together, ax=axis, cmap=viz.HEAT, vmin=0, vmax=100, mask=np.eye(len(frequent), dtype=bool),
        annot=True, fmt=".0f", annot_kws={"fontsize": 8}, cbar=False, xticklabels=names, yticklabels=names,
    )  # fmt: skip
    axis.set_title(split)
    axis.tick_params(axis="y", rotation=0)
viz.show(
    figure,
    "Of the images with the row's class, how many also show the column's class (%). Toy partners stand out in train.",
)

# %% [markdown]
# ## What a training sample holds
#
# The classifier is trained on samples that hold the image, the label and the id. A fourth field, `regions`, is for methods
# that hide super-pixels; these are made of the image alone, and here it is empty. The training set keeps paths of images and a
# matrix of labels, and has no way to a mask; a test of the kit holds that.

# %%
recipe = settings.cam
transform = train_transform(tuple(recipe.long_side), recipe.crop, tuple(recipe.jitter), pad=recipe.pad)
training = TrainingSet(folder, train_ids, transform)
sample = training[0, 1234]
print("fields:", ", ".join(sample._fields))
print(
    "image",
    tuple(sample.image.shape),
    sample.image.dtype,
    "| label",
    sample.label.int().tolist(),
    "| id",
    sample.image_id,
)
print("anything with 'mask' in its name:", [name for name in vars(training) if "mask" in name.lower()])
assert sample._fields == ("image", "label", "image_id", "regions") and sample.regions is None

# %% [markdown]
# **Augmentation.** A network that sees an image always in the same way learns it by heart. So each time the image is moved,
# mirrored and, in profiles for photographs, scaled and cropped at random; what lies outside is filled with the mean colour
# (grey). The label stays the same: a mirrored boat is a boat.
#
# A sample is asked for with *two* numbers, the index of the image and a seed for its random draw. The draw depends on that
# seed and on nothing else, so it does not matter how many processes load images, or in which order.

# %%
views = [denormalize(training[0, draw_seed].image) for draw_seed in range(6)]
viz.show(
    viz.grid([[folder.image(train_ids[0]), *views]], ["image", *[f"seed {s}" for s in range(6)]], size=1.35),
    "One training image and six augmented views of it. The label of all of them is the same.",
)
assert torch.equal(training[0, 3].image, training[0, 3].image)

# %% [markdown]
# Samples of equal size are stacked to a *batch*, the only thing that a method ever sees.

# %%
batch = collate([training[i, i] for i in range(4)])
print("image", tuple(batch.image.shape), "label", tuple(batch.label.shape), "ids", batch.image_id)

# %% [markdown]
# ## Same seed, same bytes
#
# A result that nobody can repeat is an anecdote. In this kit every random draw has a seed that you can name, and the tests
# hold that the same seed gives the same bytes. Three examples. **Scenes**: drawn twice, they are equal to the last bit.

# %%
first, again = (toy.draw_scene(scenes, 5) for _ in range(2))
other = toy.draw_scene(toy.ToyScenes(seed=scenes.seed + 1), 5)
assert first.image.tobytes() == again.image.tobytes() and first.mask.tobytes() == again.mask.tobytes()
assert first.image.tobytes() != other.image.tobytes()
print("same seed, same scene; another seed, another scene")

# %% [markdown]
# **Order**: which image comes in which batch, and how it is augmented, is a function of the seed and the number of the step.
# A training that stopped after step 4 goes on with exactly the batches that it would have had.

# %%
whole = list(DrawSampler(len(train_ids), seed=seed, batch_size=8, steps=10))
rest = list(DrawSampler(len(train_ids), seed=seed, batch_size=8, steps=10, start_step=4))
assert rest == whole[4:]
print("step 4 begins with image", whole[4][0][0], "either way")

# %% [markdown]
# **Data**: a fingerprint of classes, ids and labels goes into the record of every result, so a result never passes for one of
# other data. It is the same on every machine.

# %%
print("fingerprint of these data:", folder.fingerprint(settings.data.train_split, settings.data.val_split))

# %% [markdown]
# One seed makes a result repeatable. It does not make it *typical*: with another seed the score differs by a point or so.
# Notebook 09 shows what to do about that.

# %% [markdown]
# ## Bad input is caught
#
# Most hours with data of one's own are lost to small faults: a file is missing, a name is misspelt, a mask has another size.
# We make a folder of eight scenes and break it in six ways.

# %%
place = tempfile.TemporaryDirectory()
broken = toy.generate(Path(place.name) / "broken", toy.ToyScenes(n_train=6, n_val=2))
(broken / "JPEGImages/train_00000.jpg").unlink()
photo = broken / "JPEGImages/train_00001.jpg"
_ = photo.write_bytes(photo.read_bytes()[:900])  # a copy that broke off
labels = broken / "labels.csv"
_ = labels.write_text(labels.read_text().replace("train_00002,", "train_00002,aeroplan "))
write_mask(broken / "SegmentationClass/train_00003.png", np.zeros((48, 64), np.uint8))  # of another size
with (broken / "ImageSets/Segmentation/train.txt").open("a") as lines:
    lines.write("train_00004\n")
_ = (broken / "ImageSets/Segmentation/val.txt").write_text("")

# %% [markdown]
# `check` finds all faults at once. Each is one line: the file, what is wrong, and what to do.

# %%
faults = check(broken)
for fault in faults:
    print(f"{fault.file.relative_to(broken).as_posix()}: {fault.problem} -> {fault.remedy}")
assert len(faults) == 6
place.cleanup()

# %% [markdown]
# From the command line the same is `python -m data_prep check FOLDER`. Before any training begins, a quick form of it looks at
# every image that will be used, so a training never dies in its third hour of a broken file.
#
# Settings are checked in the same spirit. A misspelt name is not passed over in silence:

# %%
for wrong_settings in ({"cam.epoch": 3}, {"cam.epochs": "three"}):
    try:
        load("demo", wrong_settings)
    except WsssError as error:
        print(error)

# %% [markdown]
# ## Profiles
#
# The same notebooks run in seconds on a laptop and for hours on a server. A *profile* is one file of numbers in
# `wsss_lib/settings`; nothing else differs.

# %%
profiles = {name: load(name) for name in PROFILES}
pd.DataFrame(
    {
        name: {
            "data": s.data.dataset,
            "backbone": s.backbone.name,
            "epochs of the classifier": s.cam.epochs,
            "batch": s.cam.batch_size,
            "crop (pixels)": s.cam.crop,
            "scales at test time": ", ".join(f"{v:g}" for v in s.localize.scales),
        }
        for name, s in profiles.items()
    }
)

# %% [markdown]
# - `smoke` is for tests: it shows that everything runs. Its scores mean nothing.
# - `demo` is for learning: toy scenes, two CPU cores, at most a minute and a half a notebook.
# - `laptop` is for photographs, your own or VOC, on a CPU or one GPU: minutes.
# - `paper` is for reproduction: VOC 2012 with SBD, ResNet-50, one GPU: hours.
#
# ### Run it without a browser
#
# ```bash
# wsss run all --profile demo                 # the whole course, one notebook after the other
# wsss run 01_cam 07 -p seed=1                # two notebooks with another seed
# wsss run 01_cam --set toy.context_bias=0.9  # one number changed
# wsss results                                # a table of all scores so far
#
# # plain papermill does as well
# papermill notebooks/01_cam.ipynb out.ipynb -p profile laptop -p data_root FOLDER -k python3
# ```
#
# A finished stage is never computed twice, an interrupted one continues, and runs with different settings lie side by side in
# `runs/`.

# %% [markdown]
# ## Exercises
#
# 1. **The ruler.** Change one pixel of `prediction` such that the mIoU falls as much as possible. Which class do you have to
#    hit, and why that one?
# 2. **The dials.** Run the notebook with `overrides = {"toy.context_bias": 0.0}`. What do you expect of the bars for *train*
#    and *val*, and of the diagonal of the heat map? Look only then. (Expected: both bars are equal but for chance.)
# 3. **The formula.** At `pair_bias = 0` and `context_bias = 0` one scene in six agrees. Why one in six? And why does
#    a second object raise the share?
# 4. **Your own check.** Write text files for three photographs of yours in VOC layout (`classes.txt`, `labels.csv`,
#    `ImageSets/Segmentation/train.txt`) and run `check` on the folder. How many faults did you make?

# %% [markdown]
# ## Questions
#
# <details><summary><b>1.</b> A test image comes without a label. Why can the CAM stage alone not segment it well?</summary>
# A seed keeps only the classes that the label names, and that rules out most errors. Without a label each of the K maps may win
# somewhere. The segmentation network of the last stage has learnt masks, and needs no label.
# </details>
#
# <details><summary><b>2.</b> A segmentation has 73 % of the pixels right and an mIoU of 0.10. How can that be?</summary>
# It calls nearly everything background. Background has most of the pixels, and each of the other classes counts as much as it
# does in the mean.
# </details>
#
# <details><summary><b>3.</b> Pseudo masks are scored with true masks of the training images. Is that still weak supervision?</summary>
# Yes, as long as nothing is chosen by that score. It becomes a leak when a threshold or a number of epochs is tuned on it: then
# someone without masks could not have had the result. Notebook 09 shows how much such a choice gains.
# </details>

# %% [markdown]
# ## Take-aways
#
# - Weak supervision trades accuracy for cost: a label takes a twelfth of the time of a mask.
# - The way is classifier, CAM, seed, pseudo mask, segmentation. True masks are for scoring only.
# - Three dials make three failures: context bias, pair bias, part contrast. Each has methods that fight it.
# - mIoU is read from one confusion matrix over all images; 255 is never scored; background is one class among the others.
# - Every draw has a seed; every fault has a line.

# %% [markdown]
# ## References
#
# - M. Everingham, L. Van Gool, C. Williams, J. Winn, A. Zisserman. *The PASCAL Visual Object Classes (VOC) Challenge.* IJCV 2010.
# - A. Bearman, O. Russakovsky, V. Ferrari, L. Fei-Fei. *What's the Point: Semantic Segmentation with Point Supervision.* ECCV 2016
#   ([arXiv:1506.02106](https://arxiv.org/abs/1506.02106)). The times in the first figure.
# - B. Hariharan, P. Arbeláez, L. Bourdev, S. Maji, J. Malik. *Semantic Contours from Inverse Detectors* (SBD). ICCV 2011.
# - Next: [01 CAM](01_cam.ipynb), where a classifier shows where it looks.
