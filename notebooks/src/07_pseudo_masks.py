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
# # 07 · Pseudo masks: let the image finish what the seed began
#
# A seed knows roughly *where* an object is, and nothing of its outline. The image knows outlines, and nothing of
# objects. A dense conditional random field (CRF) brings the two together.
#
# | | |
# |---|---|
# | **Time** | under a minute on two CPU cores (profile `demo`), once the maps of notebook 01 are there |
# | **Needs** | nothing but this kit; no GPU, no downloads |
# | **Paper** | Krähenbühl and Koltun, *Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials*, NIPS 2011 ([arXiv:1210.5644](https://arxiv.org/abs/1210.5644)) |
# | **Before** | [01 CAM](01_cam.ipynb) |
#
# Afterwards you will be able to
#
# 1. write down the energy of a dense CRF and run its mean-field updates in ten lines of NumPy;
# 2. give the background a score, though no map of its own exists, and mark the pixels that are *sure*;
# 3. say when a CRF makes masks better and when it makes them **worse**, and measure both.

# %% [markdown]
# ## Parameters
#
# As in every notebook. New is `method`: whose activation maps are refined. All methods of this course write the same
# files, so this notebook works for each of them.

# %% tags=["parameters"]
import os

profile = os.environ.get("WSSS_PROFILE", "demo")  # smoke | demo | laptop | paper
dataset = ""  # name of the data set; empty: the profile's own
data_root = ""  # folder in VOC layout; empty: toy scenes, drawn on the spot
runs_root = ""  # where results go; empty: runs/ of the project
seed = 0  # of every random draw
overrides = {}  # departures from the profile, {"cam.epochs": 3}
method = "cam"  # whose activation maps are refined

# %% [markdown]
# ## Set-up

# %% tags=["nbval-ignore-output"]
import inspect
import time
from dataclasses import asdict, replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image

from data_prep.ready import ready
from wsss_lib import localize, results, stages, viz, widgets
from wsss_lib.data.masks import read_mask
from wsss_lib.data.transforms import normalize
from wsss_lib.metrics import ConfusionMatrix
from wsss_lib.refine.dense_crf import PRESETS, MaskSettings, background_score, dense_crf, la_ha_mask, pseudo_mask
from wsss_lib.runs import Run
from wsss_lib.settings import load

settings = load(profile, overrides)
folder = ready(settings, dataset, data_root)
run = Run(settings, folder, method=method, seed=seed, root=runs_root)
print(f"torch {torch.__version__}, device {stages.pick_device(settings.machine.device)}, profile {profile}, seed {seed}")

# %% [markdown]
# Pseudo masks are made for the training images and scored on the split that papers score them on. No network is
# trained in this notebook.

# %%
train_ids, seed_ids = run.ids("train"), run.ids("seed")
print(f"{len(train_ids)} images get pseudo masks, {len(seed_ids)} are scored, {folder.n_classes} classes")

# %% [markdown]
# We need two pictures to talk about: an *easy* one, whose object has quite another colour than its surroundings, and a
# *hard* one, whose object hides. The next cell finds both among the first images, by the distance between the mean
# colours inside and outside the true mask. True masks serve to choose, look and measure here; they make no pseudo mask.


# %%
def contrast(image_id):
    picture, truth = folder.image(image_id).float(), folder.mask(image_id)
    inside, outside = (truth > 0) & (truth < 255), truth == 0
    distance = (picture[:, inside].mean(1) - picture[:, outside].mean(1)).norm()
    return float(distance.nan_to_num())


alone = [i for i in seed_ids if folder.label(i).sum() == 1] or list(seed_ids)
easy, hard = max(alone[:40], key=contrast), min(alone[:40], key=contrast)
for name, image_id in {"easy": easy, "hard": hard}.items():
    print(f"{name}: {', '.join(folder.class_names(image_id))}, colour distance {contrast(image_id):.0f} of 255")

# %% [markdown]
# ## The idea in one figure
#
# **Pixels that look alike and lie close should bear the same label.** Every pixel asks every other pixel for its opinion,
# and listens more to those that are close *and* of a similar colour. How much one pixel listens to another is a number, a
# kernel. Below you see it for two pixels, one on the object and one just beside it, at the widths that this profile uses.


# %%
def listens_to(picture, pixel, s_place, s_colour):
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    place = (rows - pixel[0]) ** 2 + (columns - pixel[1]) ** 2
    colour = ((picture - picture[pixel]) ** 2).sum(-1)
    return np.exp(-place / (2 * s_place**2)), np.exp(-place / (2 * s_place**2) - colour / (2 * s_colour**2))


def nearest(where, point):
    places = np.argwhere(where)
    return tuple(places[((places - point) ** 2).sum(1).argmin()])


# %%
crf = stages.crf_settings(settings.dense_crf)
picture, truth = folder.image(easy).permute(1, 2, 0).numpy(), folder.mask(easy).numpy()
centre = np.argwhere((truth > 0) & (truth < 255)).mean(0)
pixels = {"on the object": nearest((truth > 0) & (truth < 255), centre), "beside it": nearest(truth == 0, centre)}

rows = [[picture, *listens_to(picture.astype(float), p, crf.bilateral_sxy, crf.bilateral_srgb)] for p in pixels.values()]
figure = viz.grid(rows, ["the pixel", "close", "close and alike"], list(pixels), size=1.9)
for axis, (row, column) in zip(figure.axes[::3], pixels.values(), strict=True):
    axis.plot(column, row, "o", markersize=9, markerfacecolor="none", markeredgecolor="black", markeredgewidth=3)
    axis.plot(column, row, "o", markersize=9, markerfacecolor="none", markeredgecolor="white", markeredgewidth=1)
viz.show(figure, "To whom does a pixel (ring) listen? By place alone it listens across the outline. With colour, it stays on its own side.")

# %% [markdown]
# Nobody told the CRF what an object is. The outline in the right column comes from the colours of this one image. A seed
# needs only to start in the right place, and the opinion then spreads as far as the colour goes.

# %% [markdown]
# ## The energy
#
# A labelling $x$ gives each pixel $i$ one of $L$ labels: background, or a class that is present. Its energy says how bad it is:
#
# $$E(x) \;=\; \sum_i \underbrace{-\log p_i(x_i)}_{\text{unary}} \;+\; \sum_{i<j} \underbrace{[x_i \ne x_j]}_{\text{Potts}}
#   \Big( w_1 \, k_1(i,j) + w_2 \, k_2(i,j) \Big)$$
#
# - The **unary** term asks each pixel alone. $p_i$ is what the activation map says. To contradict it costs $-\log p$.
# - The **pairwise** term asks each pair. Two pixels with the *same* label pay nothing. Two with *different* labels pay, and
#   they pay more the closer and the more alike they are. This rule, "any difference costs the same", is the Potts model.
#
# There are two kernels, with places $s_i$ in pixels and colours $c_i$ in grey levels from 0 to 255:
#
# $$k_1 = \exp\Big(\!-\frac{\lVert s_i - s_j\rVert^2}{2\,\theta_\gamma^2}\Big) \quad\text{(smoothness)} \qquad
#   k_2 = \exp\Big(\!-\frac{\lVert s_i - s_j\rVert^2}{2\,\theta_\alpha^2} - \frac{\lVert c_i - c_j\rVert^2}{2\,\theta_\beta^2}\Big)
#   \quad\text{(appearance)}$$
#
# $k_1$ is narrow and removes specks. $k_2$ is wide and finds outlines. *Dense* means that **every** pair of pixels has an
# edge, not only neighbours: a leg can learn from a head.

# %% [markdown]
# Six numbers, then. Published pipelines disagree about them, and what works for images of 500 pixels is too wide for 64:
# widths are in pixels. The last line is this profile's choice; it was fixed before this run, and it is the same for all images.

# %%
symbols = {
    "iterations": "iterations", "gaussian_sxy": "θγ (px)", "gaussian_compat": "w1",
    "bilateral_sxy": "θα (px)", "bilateral_srgb": "θβ", "bilateral_compat": "w2",
}  # fmt: skip
table = pd.DataFrame({**{name: asdict(preset) for name, preset in PRESETS.items()}, "this profile": asdict(crf)}).T
table[list(symbols)].rename(columns=symbols).astype(float)

# %% [markdown]
# ## The unary: a score for the background
#
# The activation map gives each *present class* a score in $[0,1]$. The background has no map. Its score must come from the
# **absence** of all others. With the strongest class's activation $m = \max_c M_c$, Ahn and Kwak (PSA, 2018) take
#
# $$s_{\text{background}} = (1 - m)^{\alpha}$$
#
# What does the exponent do? Where the background's curve crosses the diagonal, background and class are equally strong.

# %%
activation = np.linspace(0, 1, 501)
figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
axis.plot(activation, activation, color="black", linestyle="--", label="the class: $m$")
for colour, alpha in zip(viz.COLORS, (1, 4, 16, 32), strict=False):
    score = background_score(activation[None], alpha)
    crossing = activation[(activation >= score).argmax()]
    axis.plot(activation, score, color=colour, label=rf"background, $\alpha={alpha}$")
    axis.plot(crossing, crossing, "o", color=colour)
    print(f"alpha {alpha:2d}: the class wins from activation {crossing:.2f} on")
axis.set(xlabel="strongest activation $m$", ylabel="score")
axis.legend(frameon=False, fontsize=8)
viz.show(figure, "The background's score for four exponents. The higher the exponent, the sooner the class (dashed) wins.")

# %% [markdown]
# So **without a CRF, $\alpha$ is the background threshold of notebook 01 in disguise**: $\alpha=4$ says the same as
# $\vartheta=0.28$. With a CRF it says more, because now it matters also *by how much* a pixel is background. Far from every
# object $m \approx 0$, the background scores 1 and the class almost 0: a firm opinion, which is passed on to the neighbours.
#
# Low $\alpha$ is generous to the background, high $\alpha$ to the foreground. PSA calls the two `la` and `ha`. We shall need both.

# %% [markdown]
# ## The smallest implementation
#
# We now run a dense CRF by brute force: all pairs of pixels, one matrix. That is only possible for a small image, so we
# shrink ours until its longest side has 32 pixels.


# %%
def shrink(image_id, side=32):
    picture = Image.fromarray(folder.image(image_id).permute(1, 2, 0).numpy())
    factor = side / max(picture.size)
    size = tuple(max(1, round(length * factor)) for length in picture.size)
    truth = Image.fromarray(folder.mask(image_id).numpy())
    return np.asarray(picture.resize(size, Image.Resampling.BOX)), np.asarray(truth.resize(size, Image.Resampling.NEAREST))


small, small_truth = shrink(easy)
height, width = small.shape[:2]
print("small image", small.shape, "pixels", height * width, "pairs of pixels", f"{(height * width) ** 2:,}")

# %% [markdown]
# **Step 1, a map.** To see the CRF alone at work, we take no network. Our map is a round blob in the middle of the object,
# highest at 0.9: a caricature of a CAM, which is right about the place and knows no outline.


# %%
def blob(truth):
    rows, columns = np.nonzero((truth > 0) & (truth < 255))
    y, x = np.mgrid[: truth.shape[0], : truth.shape[1]]
    spread = 0.3 * np.sqrt(len(rows))
    distance = (y - rows.mean()) ** 2 + (x - columns.mean()) ** 2
    return 0.9 * np.exp(-distance / (2 * spread**2))


small_map = blob(small_truth)
print("map", small_map.shape, "highest", small_map.max().round(1))

# %% [markdown]
# **Step 2, the unary.** Background and class side by side, divided by their sum: one probability for each label and pixel.
# The logarithm of zero is minus infinity, and nobody should be that sure, so small probabilities are raised to $10^{-5}$.

# %%
scores = np.stack([(1 - small_map) ** 4, small_map])
probability = scores / scores.sum(0)
unary = -np.log(np.maximum(probability, 1e-5)).reshape(2, -1)
print("probability", probability.shape, "unary energy", unary.shape)

# %% [markdown]
# **Step 3, the kernels.** Each pixel becomes a row of features: its place divided by a width, and for $k_2$ also its colour
# divided by a width. A kernel is then one Gaussian of the distance between rows, for all pairs at once.
#
# One detail is not in the equations: the released code divides each kernel by the square roots of its row sums
# ($D^{-1/2} K D^{-1/2}$). Otherwise pixels in large, even regions would hear a far louder crowd than pixels of small ones,
# and the weights $w$ would mean another thing at every image size.


# %%
def kernel(features):
    distance = ((features[:, None] - features[None]) ** 2).sum(-1)
    k = np.exp(-distance / 2)
    scale = 1 / np.sqrt(k.sum(1))
    return scale[:, None] * k * scale


def all_pairs(image, crf):
    place = np.stack(np.mgrid[: image.shape[0], : image.shape[1]], -1).reshape(-1, 2).astype(float)
    colour = image.reshape(-1, 3).astype(float)
    look_alike = np.hstack([place / crf.bilateral_sxy, colour / crf.bilateral_srgb])
    return crf.gaussian_compat * kernel(place / crf.gaussian_sxy) + crf.bilateral_compat * kernel(look_alike)


# %% [markdown]
# The image shrank, so the widths shrink too. The weights and the width in colour stay as PSA published them.

# %%
small_crf = replace(PRESETS["psa"], gaussian_sxy=1.5, bilateral_sxy=10)
pairs = all_pairs(small, small_crf)
np.testing.assert_allclose(pairs, pairs.T)
print("pairs", pairs.shape, "symmetric: i listens to j as j to i")

# %% [markdown]
# **Step 4, mean field.** The best labelling cannot be found by trying: already $32 \times 32$ pixels with two labels have
# $2^{1024}$ of them. Mean field looks for something easier, a probability $Q_i(l)$ for each pixel *by itself*, such that the
# product of all is as close as possible (in Kullback-Leibler divergence) to the true distribution $\propto e^{-E(x)}$. Setting
# the derivative to zero gives one equation a pixel:
#
# $$Q_i(l) \;\propto\; \exp\Big(\log p_i(l) \;+\; \sum_m w_m \sum_j k_m(i,j)\, Q_j(l)\Big)$$
#
# Read it aloud: *my opinion is what my own map says, plus what the others think, each counted as much as I listen to them.*
# The penalty for different labels has become a bonus for equal ones. The two differ by a constant that is the same for all
# labels, and normalising removes it. The equation has $Q$ on both sides, so one starts at $Q = p$ and repeats. An iteration
# is two lines: a matrix product, and a softmax over labels. (As in the released code, a pixel hears itself too.)


# %%
def mean_field(unary, pairs, iterations):
    q = np.exp(-unary) / np.exp(-unary).sum(0)
    history = [q]
    for _ in range(iterations):
        opinion = -unary + q @ pairs
        q = np.exp(opinion - opinion.max(0))
        q = q / q.sum(0)
        history.append(q)
    return history


history = mean_field(unary, pairs, small_crf.iterations)
print("iterations", len(history) - 1, "Q", history[-1].shape, "sums to 1:", np.allclose(history[-1].sum(0), 1))

# %% [markdown]
# **Step 5, look at it.** The upper row is the easy image, the lower one the hard image, with the same kind of blob. Watch the
# outline appear within a few iterations, and watch what happens where colour does not tell object and surroundings apart.

# %%
shown = (0, 1, 2, 5, 10)
rows, exact, problems = [], {}, {}
for name, image_id in {"easy": easy, "hard": hard}.items():
    image, true_mask = shrink(image_id)
    map_ = blob(true_mask)
    p = np.stack([(1 - map_) ** 4, map_])
    p = p / p.sum(0)
    u, k = -np.log(np.maximum(p, 1e-5)).reshape(2, -1), all_pairs(image, small_crf)
    exact[name], problems[name] = mean_field(u, k, small_crf.iterations), (image, p, u, k)
    rows.append([image, *[exact[name][t][1].reshape(map_.shape) for t in shown], (true_mask > 0).astype(float)])
figure = viz.grid(rows, ["image", *[f"iteration {t}" for t in shown], "true mask"], list(exact), size=1.25)
viz.show(figure, "Mean-field iterations: the probability of the class, from 0 (dark) to 1 (bright). The last column is the true mask.")

# %% [markdown]
# In the toy scenes the easy object grows to nearly its full shape. Look closely, though: a part of *another* colour, such as
# the bright telling part, may drop out, since the CRF sees only colour and place. The hard object fares worse. It looks
# like its surroundings, the surroundings are many and sure, and they outvote it.
#
# **Step 6, does the energy fall?** Take the labelling that $Q$ prefers after each iteration and put it into $E(x)$.


# %%
def energy(labels, unary, pairs):
    different = labels[:, None] != labels[None]
    return unary[labels, np.arange(len(labels))].sum() + (pairs * different).sum() / 2


figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
for colour, (name, states) in zip(viz.COLORS, exact.items(), strict=False):
    values = [energy(q.argmax(0), *problems[name][2:]) for q in states]
    axis.plot(values, "o-", color=colour, label=name)
axis.set(xlabel="iteration", ylabel="energy $E(x)$", ylim=(0, None))
axis.legend(frameon=False)
viz.show(figure, "The energy of the preferred labelling falls and then stays. Of the failure on the hard image it knows nothing.")

# %% [markdown]
# All pixels update at once, so nothing *guarantees* that the energy falls at each step; in practice it nearly always does.
# The second lesson of this figure is the more important one. **The energy of the hard image falls just as nicely.** A low
# energy means a labelling that suits colours and seed. It does not mean a right one.

# %% [markdown]
# ## The library does the same
#
# How far would brute force carry? The matrix has a row and a column for each pixel.

# %%
for name, n in {"the small image": height * width, "this data set's image": truth.size, "a VOC image": 375 * 500}.items():
    print(f"{name}: {n:,} pixels, a matrix of {8 * n**2 / 1e9:,.2f} GB")

# %% [markdown]
# So a trick is needed, and it made the paper famous. The message $\sum_j k(i,j)\,Q_j$ is a *Gaussian blur*, in two dimensions
# for $k_1$, in five for $k_2$ (two of place, three of colour). Blurring may be approximated: put the values on a coarse lattice in
# that space, blur there, and read them back. With the *permutohedral lattice* the time grows with the number of pixels
# and not with its square. The library `pydensecrf` does this, and our `dense_crf` hands it the same five things:

# %%
print(inspect.getsource(dense_crf).split('"""')[2].strip())

# %% [markdown]
# Approximately equal, then. We ask that the two choose the same label at 97 pixels of 100 or more, on both images.

# %%
agreement = {}
for name, (image, p, _, _) in problems.items():
    by_lattice = dense_crf(image, p.astype(np.float32), small_crf)
    by_hand = exact[name][-1].reshape(p.shape)
    agreement[name] = by_lattice, by_hand, (by_lattice.argmax(0) == by_hand.argmax(0)).mean()
    assert agreement[name][2] >= 0.97
print("brute force and pydensecrf choose the same label at 97 % of the pixels, or more")

# %% tags=["nbval-ignore-output"]
for name, (by_lattice, by_hand, share) in agreement.items():
    print(f"{name}: equal labels {100 * share:.1f} %, mean difference of Q {np.abs(by_lattice - by_hand).mean():.4f}")
start = time.perf_counter()
mean_field(*problems["easy"][2:], small_crf.iterations)
middle = time.perf_counter()
dense_crf(*problems["easy"][:2], small_crf)
print(f"brute force, its matrix given: {1e3 * (middle - start):.0f} ms; lattice: {1e3 * (time.perf_counter() - middle):.0f} ms")

# %%
rows = [[problems[n][0], hand[1], lattice[1], np.abs(lattice - hand)[1]] for n, (lattice, hand, _) in agreement.items()]
figure = viz.grid(rows, ["image", "brute force", "pydensecrf", "difference"], list(agreement), size=1.5)
viz.show(figure, "The exact sums and the lattice side by side. They differ at few pixels, on outlines, where both were undecided.")

# %% [markdown]
# ## From activation maps to pseudo masks
#
# Now the real maps. The stage `cams` of [notebook 01](01_cam.ipynb) is loaded; if it is missing, it is computed first.

# %% tags=["nbval-ignore-output"]
cams_stage = stages.make_cams(run)
cam_dir = cams_stage.folder("cams")
print(f"maps of {cams_stage.metrics['images']} images")

# %% [markdown]
# `look` gathers what we need of one image: its pixels, the maps of the classes that are present, and the true mask.


# %%
def look(image_id):
    cam = localize.load_cam(cam_dir / f"{image_id}.npz", n_classes=folder.n_classes).numpy()
    present = np.flatnonzero(folder.label(image_id))
    return folder.image(image_id).permute(1, 2, 0).numpy(), cam[present], present, folder.mask(image_id).numpy()


# %% [markdown]
# The recipe for one image is what we did by hand: score the background, stack, refine, take the strongest. The library's
# `pseudo_mask` does it in one call, pixel for pixel the same.

# %%
alpha = settings.dense_crf.alpha
picture, maps, present, truth = look(easy)
stack = np.stack([(1 - maps.max(0)) ** alpha, *maps])
strongest = dense_crf(picture, stack, crf).argmax(0)
labels_present = np.array([0, *(present + 1)])
ours = labels_present[strongest]
np.testing.assert_array_equal(ours, pseudo_mask(picture, maps, present, MaskSettings("power", alpha=alpha, crf=crf)))
print("labels in the CRF:", ["background", *(folder.classes[k] for k in present)], "of", folder.n_classes + 1)

# %% [markdown]
# ### Only the labels present
#
# Of all $K+1$ labels only two or three entered. The image-level label says which classes are in the image, and whoever knows
# that should use it. There are two reasons.
#
# **No invented classes.** Each map is divided by its own maximum, so the map of an *absent* class has a peak of 1 somewhere
# too. Let us pretend that we do not know the label, and keep all maps.


# %% tags=["nbval-ignore-output"]
def with_all_classes(image_id):
    image = normalize(folder.image(image_id))[None]
    with torch.no_grad():
        cam = localize.multi_scale_cam(model, image, scales=settings.localize.scales, flip=True, stride=1)
    maps = localize.normalize_cam(cam, torch.ones(1, folder.n_classes))[0].numpy()
    return pseudo_mask(folder.image(image_id).permute(1, 2, 0).numpy(), maps, np.arange(folder.n_classes), plain)


model, plain = stages.load_classifier(run).cpu(), MaskSettings("power", alpha=alpha, crf=crf)
rows = []
for image_id in alone[:4]:
    picture, maps, present, truth = look(image_id)
    masks = with_all_classes(image_id), pseudo_mask(picture, maps, present, plain), truth
    rows.append([picture, *(viz.overlay_mask(picture, mask) for mask in masks)])
figure = viz.legend(viz.grid(rows, ["image", "all classes", "classes present", "true mask"], size=1.3), folder.classes, 4)
viz.show(figure, "Without the image-level label every class claims its piece of the image. With it, only what is there can appear.")

# %% [markdown]
# **Speed.** Each label is blurred separately, so the time grows with their number. Measured on a few images of this data
# set, once with the labels present and once with all, the absent ones at the lowest score:

# %% tags=["nbval-ignore-output"]
seconds = {"labels present": 0.0, "all labels": 0.0}
for image_id in seed_ids[:5]:
    picture, maps, present, _ = look(image_id)
    few = np.stack([background_score(maps, alpha), *maps])
    every = np.full((folder.n_classes + 1, *few.shape[1:]), 1e-5, np.float32)
    every[[0, *(present + 1)]] = few
    for name, stack in zip(seconds, (few, every), strict=True):
        start = time.perf_counter()
        dense_crf(picture, stack, crf)
        seconds[name] += (time.perf_counter() - start) / 5
for name, value in seconds.items():
    print(f"{name}: {1e3 * value:.1f} ms an image")
print(f"ratio {seconds['all labels'] / seconds['labels present']:.1f} with {folder.n_classes + 1} labels in all")

# %% [markdown]
# ### All training images
#
# The stage `pseudo_masks` does this for every training image, over several processes, since each image is a job of its own. A
# finished stage is loaded. The masks are PNG files with the VOC palette: values are class indices, colours are for us.

# %% tags=["nbval-ignore-output"]
mask_stage = stages.make_pseudo_masks(run)
mask_dir = mask_stage.folder("masks")
print(f"{mask_stage.metrics['images']} pseudo masks in {mask_stage.metrics['seconds']:.0f} s")

# %% [markdown]
# ## Look: successes beside failures
#
# For each image we compare the seed at the fixed threshold with the pseudo mask: intersection over union (IoU) of the
# foreground with the true mask, before and after. Then we sort by the **difference**, to see where the CRF helped most and
# where it did most harm. To keep this short, at most 400 images take part.


# %%
def foreground_iou(mask, truth):
    known = truth < 255
    hit = (mask == truth) & (truth > 0) & known
    either = ((mask > 0) | (truth > 0)) & known
    return hit.sum() / max(either.sum(), 1)


def before_and_after(image_id):
    _, maps, present, truth = look(image_id)
    cam = np.zeros((folder.n_classes, *truth.shape), np.float32)
    cam[present] = maps
    seed_mask = np.asarray(localize.seed(torch.from_numpy(cam), settings.localize.threshold))
    return seed_mask, read_mask(mask_dir / f"{image_id}.png"), truth


# %% tags=["nbval-ignore-output"]
scored = []
for image_id in seed_ids[:400]:
    seed_mask, mask, truth = before_and_after(image_id)
    scored.append({"id": image_id, "before": foreground_iou(seed_mask, truth), "after": foreground_iou(mask, truth)})
scored = pd.DataFrame(scored)
scored["gain"] = 100 * (scored["after"] - scored["before"])
scored = scored.sort_values("gain", ascending=False).reset_index(drop=True)
better, worse = (scored["gain"] > 1).mean(), (scored["gain"] < -1).mean()
print(f"better by more than one point: {better:.0%} of {len(scored)} images, worse: {worse:.0%}")


# %% tags=["nbval-ignore-output"]
def row_of(image_id):
    picture, maps, _, _ = look(image_id)
    masks = before_and_after(image_id)
    return [picture, viz.overlay_cam(picture, maps.max(0)), *(viz.overlay_mask(picture, mask) for mask in masks)]


chosen = pd.concat([scored.head(3), scored.tail(3)])
names = [f"{gain:+.0f}" for gain in chosen["gain"]]
figure = viz.grid([row_of(i) for i in chosen["id"]], ["image", "CAM", "seed", "pseudo mask", "true mask"], names, size=1.2)
viz.show(figure, "Above where the CRF gained most, below where it lost most; on the left the change of IoU in points.")

# %% [markdown]
# The upper rows are what one hopes for: a vague seed, and the image draws the line. The lower rows are the price. A CRF has no
# idea of its own about objects, so it can only **amplify** what the seed says. Two ways lead to failure:
#
# - the seed lies (partly) on the context, and the CRF carries the label over all of that context;
# - the object looks like its surroundings, or is covered only in a small part, and the surroundings outvote it.

# %% tags=["nbval-ignore-output"]
figure, axis = plt.subplots(figsize=(3.6, 3.6), layout="constrained")
axis.plot([0, 100], [0, 100], color="grey", linestyle=":")
axis.scatter(100 * scored["before"], 100 * scored["after"], s=8, alpha=0.5, color=viz.COLORS[0])
axis.set(xlabel="IoU of the seed (%)", ylabel="IoU of the pseudo mask (%)", xlim=(0, 100), ylim=(0, 100), aspect="equal")
viz.show(figure, "Each dot is an image; above the dotted line it became better. Good seeds gain, bad seeds often lose what they had.")

# %% [markdown]
# Is it really the contrast in colour that decides? We cut the images into four groups of equal size, from the least contrast
# between object and surroundings to the most, and average the gain in each.

# %% tags=["nbval-ignore-output"]
scored["contrast"] = [contrast(i) for i in scored["id"]]
quarter = scored["contrast"].rank(pct=True, method="first").mul(4).apply(np.ceil).astype(int)
by_contrast = scored.groupby(quarter)["gain"].mean()
labels = {1: "least contrast", 2: "second quarter", 3: "third quarter", 4: "most contrast"}
figure = viz.bars({labels[q]: gain for q, gain in by_contrast.items()}, "mean change of IoU by the CRF (points)")
viz.show(figure, "What the CRF adds, by how much the object's colour differs from that of its surroundings.")

# %% [markdown]
# ## Turn the dials
#
# Choose an image, the exponent $\alpha$, and the width in colour $\theta_\beta$ (`bilateral_srgb`). Small $\theta_\beta$: only nearly
# equal colours talk to each other. Large $\theta_\beta$: everything talks, and outlines vanish. (Without a running kernel you see
# the picture at the start.)


# %%
def draw(image, alpha, bilateral_srgb):
    image_id = seed_ids[image]
    picture, maps, present, truth = look(image_id)
    options = MaskSettings("power", alpha=alpha, crf=None)
    masks = [
        pseudo_mask(picture, maps, present, options),
        pseudo_mask(picture, maps, present, replace(options, crf=replace(crf, bilateral_srgb=bilateral_srgb))),
        truth,
    ]
    pictures = [picture, viz.overlay_cam(picture, maps.max(0)), *(viz.overlay_mask(picture, mask) for mask in masks)]
    return viz.grid([pictures], ["image", "CAM", "without CRF", "with CRF", "true mask"], size=1.5)


explorer = widgets.explore(
    draw,
    "The same maps without and with the CRF. Find an image that no setting mends, and one that any setting mends.",
    image=(0, min(len(seed_ids), 48) - 1, 1, 1),
    alpha=(1.0, 32.0, 1.0, 4.0),
    bilateral_srgb=(2.0, 60.0, 1.0, 13.0),
)

# %% [markdown]
# The same as a strip, for readers without a kernel: one image, four exponents, three widths in colour.

# %% tags=["nbval-ignore-output"]
alphas, widths = (1, 4, 16, 32), (4, 13, 40)
strip_id = scored["id"][len(scored) // 4]
picture, maps, present, truth = look(strip_id)
rows = []
for width_in_colour in widths:
    options = [MaskSettings("power", alpha=a, crf=replace(crf, bilateral_srgb=width_in_colour)) for a in alphas]
    masks = [pseudo_mask(picture, maps, present, option) for option in options]
    rows.append([*(viz.overlay_mask(picture, mask) for mask in masks), viz.overlay_mask(picture, truth)])
titles = [*(rf"$\alpha={a}$" for a in alphas), "true mask"]
figure = viz.grid(rows, titles, [rf"$\theta_\beta={w}$" for w in widths], size=1.25)
viz.show(figure, "From left to right the foreground gets more generous; from top to bottom ever more different colours talk to each other.")

# %% [markdown]
# ## Which $\alpha$? And what does the CRF add?
#
# The pseudo masks of the stage use one $\alpha$ for all images, fixed in the settings. On some of the images we may try others
# *with* the true masks, to learn how much depends on it. This curve is a look behind the curtain: whoever has no pixel masks
# cannot draw it, and the stage does not use it.

# %% tags=["nbval-ignore-output"]
some = seed_ids[: int(np.clip(2e6 / truth.size, 8, 100))]
counted = stages.scored_classes(run)
exponents = (1, 2, 4, 8, 16, 32)
curves = {"without CRF": [], "with CRF": []}
for exponent in exponents:
    for name, one_crf in zip(curves, (None, crf), strict=True):
        matrix = ConfusionMatrix(folder.n_classes + 1)
        for image_id in some:
            picture, maps, present, truth = look(image_id)
            matrix.update(truth, pseudo_mask(picture, maps, present, MaskSettings("power", alpha=exponent, crf=one_crf)))
        curves[name].append(100 * matrix.miou(counted))

# %% tags=["nbval-ignore-output"]
figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
for colour, marker, (name, values) in zip(viz.COLORS, "so", curves.items(), strict=False):
    axis.plot(exponents, values, marker + "-", color=colour, label=name)
axis.axvline(alpha, color="grey", linestyle=":", label="this profile")
axis.set(xscale="log", xlabel=r"exponent $\alpha$", ylabel="mIoU (%)")
axis.set_xticks(exponents, [str(e) for e in exponents])
axis.minorticks_off()
axis.legend(frameon=False, fontsize=8)
viz.show(figure, "mIoU over the exponent on some of the images, with and without CRF. Chosen with pixel truth it would be the top of a curve.")

# %% [markdown]
# ## Sure pixels: la and ha
#
# Must every pixel get a label? A later network that learns from these masks can skip a pixel (value 255, *ignore*). So let us keep
# only what both generosities agree on:
#
# - **la** (low $\alpha$) is generous to the background. What is *foreground* even under `la` is sure foreground.
# - **ha** (high $\alpha$) is generous to the foreground. What is *background* even under `ha` is sure background.
# - Everything between is 255.
#
# PSA takes $\alpha = 4$ and $32$. On masks, the rule is two comparisons, and the library's `la_ha_mask` does the same.

# %%
la, ha = MaskSettings("power", alpha=4, crf=crf), MaskSettings("power", alpha=32, crf=crf)
picture, maps, present, truth = look(easy)
low, high = pseudo_mask(picture, maps, present, la), pseudo_mask(picture, maps, present, ha)
sure = np.where(high == 0, 0, np.where(low > 0, low, 255))
np.testing.assert_array_equal(sure, la_ha_mask(low, high))
print("our rule and la_ha_mask agree")

# %% tags=["nbval-ignore-output"]
rows = []
for image_id in [*alone[:3], hard]:
    picture, maps, present, truth = look(image_id)
    low, high = (pseudo_mask(picture, maps, present, options) for options in (la, ha))
    masks = low, high, la_ha_mask(low, high), truth
    rows.append([picture, *(viz.overlay_mask(picture, mask) for mask in masks)])
figure = viz.grid(rows, ["image", "la: $\\alpha=4$", "ha: $\\alpha=32$", "sure pixels", "true mask"], size=1.25)
viz.show(figure, "Low and high exponent, and what is sure under both. White pixels are left undecided (255).")

# %% [markdown]
# Does it pay? We count how many pixels keep a label, and how many of those labels are right. The comparison is not for free:
# what is left out is mostly outlines, and there a network learns outlines.

# %% tags=["nbval-ignore-output"]
kept, right, total = dict.fromkeys(("la", "ha", "sure"), 0), dict.fromkeys(("la", "ha", "sure"), 0), 0
for image_id in some:
    picture, maps, present, truth = look(image_id)
    low, high = (pseudo_mask(picture, maps, present, options) for options in (la, ha))
    known, total = truth < 255, total + (truth < 255).sum()
    for name, mask in {"la": low, "ha": high, "sure": la_ha_mask(low, high)}.items():
        kept[name] += ((mask < 255) & known).sum()
        right[name] += ((mask == truth) & known).sum()
share = {name: {"labelled (%)": 100 * kept[name] / total, "of these right (%)": 100 * right[name] / kept[name]} for name in kept}
pd.DataFrame(share).T.round(1)

# %% [markdown]
# ## Measure
#
# Seeds and pseudo masks are scored alike: on the same images, over the same classes, from one confusion matrix over all
# images. Each line says how its free number was chosen, because that is part of a result.

# %% tags=["nbval-ignore-output"]
seed_score, mask_score = cams_stage.metrics["seed"], mask_stage.metrics["mask"]
lines = {
    "seed, fixed threshold": (seed_score["fixed"], f"threshold {settings.localize.threshold:g}, without pixel truth"),
    "seed, best threshold": (seed_score["best"], f"threshold {seed_score['best']['threshold']:.2f}, WITH pixel truth"),
    "pseudo mask": (mask_score, f"exponent {alpha:g}, fixed in the settings"),
}
print(f"{len(seed_ids)} images; classes in the mean:", ", ".join(mask_score["miou_classes"]))
columns = {n: {"mIoU (%)": 100 * s["miou"], "pixel accuracy (%)": 100 * s["pixel_accuracy"], "chosen": how} for n, (s, how) in lines.items()}
pd.DataFrame(columns).T.infer_objects().round(1)

# %% [markdown]
# The honest step is from the first line to the third: both could be had without a single pixel mask. The second line is what a
# threshold alone could reach at best.
#
# Does every class gain? `before_after_bars` draws two bars a name.


# %%
def before_after_bars(before, after, unit):
    names = [n for n in before if before[n] is not None and after.get(n) is not None]
    figure, axis = plt.subplots(figsize=(5, 0.4 * len(names) + 1), layout="constrained")
    place = np.arange(len(names))
    for shift, values, label, colour in ((-0.2, before, "seed", viz.COLORS[7]), (0.2, after, "pseudo mask", viz.COLORS[0])):
        drawn = axis.barh(place + shift, [100 * values[n] for n in names], 0.38, label=label, color=colour)
        axis.bar_label(drawn, fmt="%.0f", padding=3, fontsize=7)
    axis.set_yticks(place, names)
    axis.set(xlabel=unit, ylim=(len(names) - 0.4, -0.6))
    axis.margins(x=0.1)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


# %% tags=["nbval-ignore-output"]
figure = before_after_bars(seed_score["fixed"]["iou"], mask_score["iou"], "IoU (%)")
viz.show(figure, "Intersection over union of each class, seed at the fixed threshold and pseudo mask.")

# %% [markdown]
# And the two groups of notebook 01: images whose object stands on its usual context (**agrees**), and the others
# (**disagrees**). The CRF sharpens masks. It was not made to undo a bias, so look whether the gap closes or stays.

# %% tags=["nbval-ignore-output"]
if mask_score.get("groups") and seed_score.get("groups"):
    figure = before_after_bars(seed_score["groups"], mask_score["groups"], "mIoU (%)")
    viz.show(figure, "Images that agree with the context bias and images that do not, before and after the CRF.")
else:
    print("These images do not say on which context their objects stand; toy scenes do.")

# %% [markdown]
# ### Paper · here
#
# What papers print for the pseudo masks of their *baselines* on the training images of VOC 2012, and what this run measured on
# its own data, in separate columns. Two cautions. The data sets differ unless yours is VOC 2012. And the papers' pseudo
# masks come from a **random walk** with learnt affinities (PSA, IRN), a stronger refinement than a CRF alone.

# %% tags=["nbval-ignore-output"]
paper = results.paper(stage="pseudo_mask", split="train", dataset="voc12", metric="mIoU", kind="main", method="baseline")
table = paper[["paper", "source", "host", "backbone", "value"]].rename(columns={"value": "paper: pseudo-mask mIoU (%)"})
table = table.assign(**{f"here: pseudo-mask mIoU on {folder.name} (%)": ""}).reset_index(drop=True)
table.loc[len(table)] = ["this run", profile, method, settings.backbone.name, "", f"{100 * mask_score['miou']:.1f}"]
table

# %% [markdown]
# ## Exercises
#
# 1. **Only smoothness.** Set `overrides = {"dense_crf.bilateral_compat": 0.0}`. What can the CRF still do, and which of the
#    failures above disappear together with the successes?
# 2. **Too wide.** Try `{"dense_crf.bilateral_sxy": 80.0}` on the toy scenes, the width that is right for photographs. Predict
#    first which objects suffer: small or large ones?
# 3. **Hard seeds.** IRN gives the CRF not the scores but the *argmax*, trusted at 0.7 (`MaskSettings(hard=True)`). Find an image
#    in which this rescues an object that the soft scores lose, and explain why.
# 4. **Asynchronous updates.** In `mean_field`, update one half of the pixels and then the other. Does the energy still fall at
#    each step? Does the final labelling change?
#
# *What to expect of exercise 1:* outlines get rounder, specks vanish, no label travels far.

# %% [markdown]
# ## Questions
#
# <details><summary><b>1.</b> Why does a dense CRF find outlines that a CRF over neighbouring pixels misses?</summary>
# With neighbours only, labels must creep from pixel to pixel, and every cut costs by its length, so thin parts are cut off. With
# an edge between all pairs, a leg is connected directly with a head of the same colour.
# </details>
#
# <details><summary><b>2.</b> The energy has fallen, and the mask is worse. Is there a mistake in the code?</summary>
# No. The energy rewards labellings that suit the seed and the colours. If the seed is on the wrong side of an outline, the
# labelling with the least energy is wrong, and better minimisation makes it more wrong.
# </details>
#
# <details><summary><b>3.</b> Why may absent classes be left out here, but not when a trained network segments a new image?</summary>
# Training images come with their image-level labels; that is the supervision. A new image comes with nothing. Using true
# labels at test time would be a leak, and some published numbers contain it.
# </details>

# %% [markdown]
# ## Take-aways
#
# - A dense CRF trades the opinion of a map against agreement with all pixels that are close and alike. Mean field makes that
#   a repeated blur, and the lattice makes the blur fast.
# - Background gets its score from the absence of classes. Its exponent is a threshold in disguise, and part of the result.
# - Only labels that are present enter: faster, and nothing can be invented.
# - The CRF **amplifies**. Right seeds become masks, wrong seeds become larger mistakes; it knows colours, not objects.
# - `la` and `ha` trade the number of labelled pixels against their purity.

# %% [markdown]
# ## References
#
# - P. Krähenbühl, V. Koltun. *Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials.* NIPS 2011.
# - A. Adams, J. Baek, M. A. Davis. *Fast High-Dimensional Filtering Using the Permutohedral Lattice.* Eurographics 2010.
# - J. Ahn, S. Kwak. *Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
#   Segmentation* (PSA). CVPR 2018. The background exponent, `la` and `ha`.
# - J. Ahn, S. Cho, S. Kwak. *Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations* (IRN). CVPR 2019.
# - Next: [08 Segmentation](08_segmentation.ipynb), where a network learns from these masks, and needs no labels any more.
