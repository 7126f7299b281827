"""The tables of the methods and of refinements: what each ingredient brings, at equal steps or cost, three seeds a row.

One command a table; interrupted, it continues where it stopped.

    python results/ablations.py cda_table1
    python results/ablations.py all --data-root DATA_ROOT
"""

import argparse
import itertools

import pandas as pd
from deft import activations, scores_by_context
from refinements import refined
from ws_fcn import both_ways, shorter_way, single_stage, single_stage_and_seeds

from data_prep.ready import ready
from wsss_lib import results, stages
from wsss_lib.nn.context import DILATIONS
from wsss_lib.project import project_root
from wsss_lib.runs import Run
from wsss_lib.settings import load

# Two budgets: as many steps (a pair counts as one image), and as many images through the network (twice the steps).
SAME_STEPS = {"cda.augmentation": "none", "cda.pairwise": False}
SAME_COST = {**SAME_STEPS, "cda.epochs": 2 * load("demo").cda.epochs}
BASELINES = {"baseline": ("cda", SAME_STEPS), "baseline, twice the steps": ("cda", SAME_COST)}
TURNED, SMOOTH = {"cda.rotation": 90.0}, {"cda.smooth": True}
CDA = ("cda", {})
# CPN goes on from CAM and sees each image three times: so CAM goes on as often (same cost), or for as many steps.
CAM_COST = ("cda", {**SAME_STEPS, "cda.epochs": 3 * load("demo").cpn.epochs})
CAM_STEPS = ("cda", {**SAME_STEPS, "cda.epochs": load("demo").cpn.epochs})
CPN, PLAIN_MEAN, PCM_ONLY = ("cpn", {}), {"cpn.share": 1.0}, {"cpn.prcm": False}
NO_RVMIN = ("cpn", {"cpn.w_rvmin": 0.0})
HALVES = ("cpn", {**PCM_ONLY, "cpn.w_tcp": 0.0, "cpn.w_cpcr": 0.0, "cpn.w_rvmin": 0.0})
SEAM_STAR = ("seam", {"seam.prcm": True})
TEST_SCALES = {"0.5": [0.5], "1.0": [1.0], "1.5": [1.5], "2.0": [2.0], "all": load("demo").localize.scales}
WS_FCN = ("ws_fcn", {})
DEFT, FAST = ("deft", {}), ("deft", {"deft.attention_factor": 10.0})
# DEFT trains once, from the start; so do these: as many steps as CAM and DEFT, each image augmented or not, no pairs.
SCRATCH = {"cda.init": "backbone", "cda.epochs": load("demo").deft.epochs}
ALONE = {**SCRATCH, "cda.pairwise": False}
# Dilations of the strips, or of ASPP: on 16 cells a side the largest kernel then has 7 cells, all, or one.
REACHES = {
    "near": {},
    "wide": {"ws_fcn.dilations": [1, 2, 3, 4]},
    "published": {"ws_fcn.dilations": list(DILATIONS)},
}
SSSS = {"ws_fcn.context": "aspp", "ws_fcn.fusion": "gci"}

# A background that walks along, and four times the steps of profile laptop.
PSA_WALK = {f"affinity_net_walk.{k}": load("paper").affinity_net_walk[k] for k in ("t", "background", "alpha", "theta")}
# What makes masks of one and the same CAMs.
REFINEMENTS = {
    "seed": ("cam", {"refine.how": "none"}),
    "dense CRF": ("cam", {}),
    "PAMR": ("cam", {"refine.how": "pamr"}),
    "AffinityNet": ("cam", {"refine.how": "affinity_net"}),
    "IRNet": ("cam", {"refine.how": "irnet"}),
}

# table: {row: (method, what departs from the profile)}
TABLES = {
    "cda_table1": {
        **BASELINES,
        "rotation": ("cda", {"cda.augmentation": "rotation"}),
        "translation": ("cda", {"cda.augmentation": "translation"}),
        "mixup 0.3": ("cda", {"cda.augmentation": "mixup", "cda.alpha": 0.3}),
        "mixup 0.5": ("cda", {"cda.augmentation": "mixup"}),
        "mixup 0.8": ("cda", {"cda.augmentation": "mixup", "cda.alpha": 0.8}),
        "manifold mixup": ("cda", {"cda.augmentation": "manifold_mixup"}),
        "cutout": ("cda", {"cda.augmentation": "cutout"}),
        "cutmix": ("cda", {"cda.augmentation": "cutmix"}),
        "paste, rescaled": CDA,
    },
    "cda_table2": {
        "baseline": BASELINES["baseline"],
        "rescale": CDA,
        "rescale + rotation": ("cda", TURNED),
        "rescale + gaussian": ("cda", SMOOTH),
        "rescale + rotation + gaussian": ("cda", {**TURNED, **SMOOTH}),
    },
    "cda_table3": {
        "baseline": BASELINES["baseline"],
        "pairwise": CDA,
        "augmented only": ("cda", {"cda.pairwise": False}),
    },
    "cda_table5": {
        "baseline": BASELINES["baseline"],
        **{
            f"{n} {'any' if same else 'new'}": ("cda", {"cda.n_objects": n, "cda.same_class": same})
            for same, n in itertools.product((False, True), (1, 2, 3))
        },
    },
    "cda_masks": {
        "baseline": BASELINES["baseline"],
        "raw CAM": ("cda", {"instances.source": "seeds"}),
        "dense CRF": CDA,
        "true masks (upper bound)": ("cda", {"instances.source": "true_masks"}),
    },
    "cda_bias": {
        f"{name} at {bias:g}": ("cda", {"toy.context_bias": bias, **overrides})
        for bias in (0.0, 0.6, 0.9)
        for name, overrides in (
            ("baseline", SAME_STEPS),
            ("CDA", {}),
            ("true masks (upper bound)", {"instances.source": "true_masks"}),
        )
    },
    "csd_components": {
        "baseline": ("csd", {"csd.lambda_fg": 0.0, "csd.lambda_bg": 0.0}),
        "copy-paste": ("csd", {"csd.resampling": False}),
        "copy-paste + resampling": ("csd", {}),
    },
    "csd_lambdas": {
        f"{fg:g} {bg:g}": ("csd", {"csd.lambda_fg": fg, "csd.lambda_bg": bg})
        for fg, bg in itertools.product((0.0, 0.001, 0.01, 0.1), (0.0, 0.001, 0.01, 0.1, 1.0))
    },
    "cpn_table1": {
        f"{name} {scale}": (method, {**overrides, "localize.scales": scales})
        for name, (method, overrides) in (("CAM", CAM_COST), ("SEAM", ("seam", {})), ("SEAM*", SEAM_STAR), ("CPN", CPN))
        for scale, scales in TEST_SCALES.items()
    },
    "cpn_table2": {
        "CAM, same steps": CAM_STEPS,
        "CAM, same cost": CAM_COST,
        "SEAM": ("seam", {}),
        "halves, classified": HALVES,
        "tcp + PCM": ("cpn", {**PCM_ONLY, "cpn.w_cpcr": 0.0}),
        "tcp + cpcr + PCM": ("cpn", {**PCM_ONLY, **PLAIN_MEAN}),
        "cpcr times 5": ("cpn", {**PCM_ONLY, **PLAIN_MEAN, "cpn.w_cpcr": 5.0}),
        "with OHEM": ("cpn", PCM_ONLY),
        "with OHEM + PRCM": CPN,
        "without L_rvmin": NO_RVMIN,
    },
    "cpn_table4": {f"p_h {p_h:g}": ("cpn", {"cpn.p_h": p_h}) for p_h in (0.1, 0.2, 0.3, 0.4, 0.5)},
    "cpn_patches": {
        **{f"grid {a} {b}": ("cpn", {"cpn.sides": [a, b]}) for a, b in ((2, 4), (8, 16), (32, 64))},
        **{f"superpixel {n}": ("cpn", {"cpn.patches": "superpixel", "cpn.n_segments": n}) for n in (4, 64, 1024)},
    },
    "cpn_readings": {
        "default": CPN,
        "soft-max over cells": ("cpn", {"cpn.softmax_axis": "space"}),
        "background not weighted": ("cpn", {"cpn.background": "whole"}),
        "target of the code": ("cpn", {"cpn.background": "code"}),
        "39 % hidden": ("cpn", {"cpn.p_h": 0.39}),
    },
    "cpn_bias": {
        f"{name} at {bias:g}": (method, {**overrides, "toy.context_bias": bias})
        for bias in (0.0, 0.6, 0.9)
        for name, (method, overrides) in (
            ("CAM, same cost", CAM_COST),
            ("CAM, same steps", CAM_STEPS),
            ("halves, classified", HALVES),
            ("SEAM", ("seam", {})),
            ("CPN", CPN),
        )
    },
    "deft_table1": {
        "CAM": ("cam", {}),
        "CAM, twice the steps": ("cam", {"cam.epochs": 2 * load("demo").cam.epochs}),
        "mixup": ("cda", {**ALONE, "cda.augmentation": "mixup", "cda.alpha": 0.8}),
        "manifold mixup": ("cda", {**ALONE, "cda.augmentation": "manifold_mixup"}),
        "cutout": ("cda", {**ALONE, "cda.augmentation": "cutout"}),
        "cutmix": ("cda", {**ALONE, "cda.augmentation": "cutmix"}),
        "CDA, pairs": ("cda", SCRATCH),
        "DEFT": DEFT,
    },
    "deft_table4": {
        "CAM": ("cam", {}),
        "attention alone": ("deft", {"deft.lambda_dis": 0.0, "deft.swap": "none"}),
        "disentangling": ("deft", {"deft.swap": "none"}),
        "new backgrounds": ("deft", {"deft.swap": "background"}),
        "both ways": DEFT,
        "both ways, from the first step": ("deft", {"deft.start": 0.0}),
        "both ways, equation 7": ("deft", {"deft.map": "max"}),
        "both ways, attention 100 times as fast": FAST,
    },
    "deft_maps": {f"M {n}": ("deft", {"deft.attention_maps": n}) for n in (1, 8, 64, 256)},
    "deft_bias": {
        f"{name} at {bias:g}": (method, {"toy.context_bias": bias})
        for bias in (0.0, 0.6, 0.9)
        for name, method in (("CAM", "cam"), ("DEFT", "deft"))
    },
    "deft_activations": {"CAM": ("cam", {}), "CutMix": ("cda", {**ALONE, "cda.augmentation": "cutmix"}), "DEFT": DEFT},
    "deft_table3": {"CAM": ("cam", {}), "DEFT": DEFT},
    "deft_photographs": {"CAM": ("cam", {}), "DEFT": DEFT, "DEFT, attention 100 times as fast": FAST},
    "copy_paste_photographs": {
        "CAM": ("cam", {}),
        "CAM, twice the steps": ("cam", {"cam.epochs": 2 * load("laptop").cam.epochs}),
        "CutMix": ("cda", {"cda.augmentation": "cutmix"}),
        "CDA": ("cda", {}),
        "CSD": ("csd", {}),
    },
    "ws_fcn_table1": {
        "SSSS": ("ws_fcn", SSSS),
        "+ MCLM": ("ws_fcn", {**SSSS, "ws_fcn.context": "mclm"}),
        "+ FCA": ("ws_fcn", {**SSSS, "ws_fcn.context": "fca"}),
        "+ SF2": ("ws_fcn", {**SSSS, "ws_fcn.fusion": "sf2"}),
        "WS-FCN": WS_FCN,
    },
    "ws_fcn_table2": {
        **{
            name: ("ws_fcn", {**SSSS, "ws_fcn.context": context})
            for name, context in {
                "ASPP (SSSS)": "aspp",
                "non-local": "non_local",
                "large kernel": "large_kernel",
                "PPM": "ppm",
                "FCA": "fca",
                "FCA, equation 4 as printed": "fca_strict",
            }.items()
        },
        **{
            name: ("ws_fcn", {**SSSS, "ws_fcn.fusion": fusion})
            for name, fusion in {
                "sum": "sum",
                "concatenation": "concatenation",
                "multiplication": "multiplication",
                "SF2": "sf2",
            }.items()
        },
    },
    "ws_fcn_table3": {
        f"{name}, {views}{' and flip' * flip}": (
            "ws_fcn",
            {**overrides, "single_stage.flip": flip, "single_stage.scales": scales},
        )
        for name, overrides in (("SSSS", SSSS), ("WS-FCN", {}))
        for views, scales in (("one scale", [1.0]), ("four scales", load("paper").single_stage.scales))
        for flip in (False, True)
    },
    "ws_fcn_reach": {
        f"{name}, {reach}": ("ws_fcn", {**overrides, **dilations})
        for name, overrides in (("SSSS", SSSS), ("WS-FCN", {}))
        for reach, dilations in REACHES.items()
    },
    "ws_fcn_ways": {
        "CAM, trained on": ("cda", SAME_COST),
        "CAM": ("cam", {}),
        "SSSS": ("ws_fcn", SSSS),
        "WS-FCN": WS_FCN,
    },
    "ws_fcn_photographs": {"CAM": ("cam", {}), "SSSS": ("ws_fcn", SSSS), "WS-FCN": WS_FCN},
    "refinements": REFINEMENTS,
    "refinements_photographs": {
        **REFINEMENTS,
        "AffinityNet, PSA's walk": ("cam", {"refine.how": "affinity_net", **PSA_WALK}),
        "IRNet, IRN's threshold": ("cam", {"refine.how": "irnet", "irnet_walk.theta": 0.25}),
    },
    "cpn_photographs": {
        "CAM": ("cam", {}),
        "CAM, twice the steps": ("cam", {"cam.epochs": 2 * load("laptop").cam.epochs}),
        "SEAM": ("seam", {}),
        "CPN": CPN,
        "CPN, without L_rvmin": NO_RVMIN,
    },
}
# profile laptop; the others are on toy scenes, profile demo
PHOTOGRAPHS = tuple(name for name in TABLES if name.endswith("_photographs"))
ONE_SEED = ("csd_lambdas", "cpn_patches")
# The lines of a run in a table, where they are not its scores.
MEASURES = {
    "deft_activations": activations,
    "deft_table3": scores_by_context,
    "ws_fcn_table1": single_stage_and_seeds,
    **{f"ws_fcn_{name}": single_stage for name in ("table2", "table3", "reach")},
    "ws_fcn_ways": both_ways,
    "ws_fcn_photographs": shorter_way,
    "refinements": refined,
    "refinements_photographs": refined,
}


def true_masks(run: Run):
    """An upper bound, not a method: these rows paste what true masks cut out. No profile can ask for it."""
    return stages.make_cams(run), lambda image_id: run.folder.mask(image_id).numpy()


def main() -> None:
    """Run what is missing of the tables that are asked for; write ``results/<table>.csv`` for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=[*TABLES, "all"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training and scenes alike")
    parser.add_argument("--data-root", default="", help="photographs in VOC layout, with masks to score against")
    parser.add_argument("--runs-root", default="", help="where the runs are kept (default: runs/ of the project)")
    options = parser.parse_args()
    asked = "" if options.seeds == [0, 1, 2] else f" --seeds {' '.join(map(str, options.seeds))}"
    tables = TABLES if "all" in options.tables else options.tables
    if real := [name for name in tables if name in PHOTOGRAPHS]:
        if not options.data_root:
            parser.error(f"{real[0]}: give --data-root, a folder of photographs in VOC layout")
        settings = load("laptop")
        photographs = Run(settings, ready(settings, data_root=options.data_root))
        if not photographs.folder.has_masks(photographs.ids("seed")):
            told = "no true masks in SegmentationClass/; a table is made of scores"
            parser.error(f"--data-root {options.data_root}: {told}")
    stages.MASK_SOURCES["true_masks"] = true_masks
    for name in tables:
        profile, root = ("laptop", options.data_root) if name in PHOTOGRAPHS else ("demo", "")
        seeds = options.seeds[:1] if name in ONE_SEED else options.seeds
        measure, lines = MEASURES.get(name, lambda run: [results.seed_scores(run)]), []
        for seed, (row, (method, overrides)) in itertools.product(seeds, TABLES[name].items()):
            scenes = {} if root else {"toy.seed": seed}
            settings = load(profile, {**overrides, **scenes})
            run = Run(settings, ready(settings, data_root=root), method, seed, root=options.runs_root)
            lines += [{"row": row, "seed": seed, **line} for line in measure(run)]
            print(name, lines[-1], flush=True)
        results.record(
            project_root() / "results" / f"{name}.csv",
            pd.DataFrame(lines),
            f"python results/ablations.py {name}{' --data-root DATA_ROOT' * bool(root)}{asked}",
            f"profile {profile}, {'photographs' if root else 'toy scenes'}, seeds {seeds}",
        )


if __name__ == "__main__":
    main()
