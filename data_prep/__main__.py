"""`python -m data_prep`: makes toy scenes and super-pixels, and checks folders of images, from the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from wsss_lib.errors import WsssError

CHECK = """List all faults of a folder in VOC layout, one line each (file: problem -> remedy),
and what its splits hold. Every image and mask is read in full.
Exit code: 0 without faults, 1 with, 2 where the check cannot be done."""
SUPERPIXELS = """Cut every image of a folder in VOC layout into super-pixels (SLIC), for methods that hide
parts of images: FOLDER/ID.png, 16 bits. A map that is there is kept, unless its image or
the settings have changed, or it is damaged."""
LAYOUT = """what a folder holds:
  JPEGImages/ID.jpg                       images (or ID.png)
  ImageSets/Segmentation/train.txt        ids of a split, one a line; also val.txt, ...
  labels.csv                              columns image_id,classes: which classes are in each image,
                                          separated by spaces (or VOC's Annotations/ID.xml)
  classes.txt                             one class name a line (not needed for VOC's classes)
  SegmentationClass/ID.png                true masks, only for scoring (not needed)
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line; each sub-command stores the function that does it as `run`.

    Returns
    -------
    argparse.ArgumentParser
        Knows `toy`, `check` and `superpixels`.

    Examples
    --------
    >>> parser().parse_args(["toy", "--out", "data/toy", "--size", "48"]).size
    48
    """
    from data_prep.toy import ToyScenes
    from wsss_lib.data.superpixels import SuperpixelSettings

    defaults = {field.name: field.default for field in fields(ToyScenes)}
    top = argparse.ArgumentParser(prog="python -m data_prep", description="Make and check data for the kit.")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    toy = commands.add_parser(
        "toy",
        help="draw toy scenes",
        description="Draw toy scenes with their labels and masks, as a folder in VOC layout. "
        "The same settings give the same files.",
    )
    toy.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="a new folder, or one with these scenes",
    )
    for name, kind, text in (
        ("n_train", int, "scenes in the split train"),
        ("n_val", int, "scenes in the split val"),
        ("size", int, "height and width of a scene in pixels"),
        ("context_bias", float, "0 to 1: how often an object stands on its own context"),
        ("pair_bias", float, "0 to 1: how often two objects come together"),
        ("part_contrast", float, "0 to 1: how telling an object's small part is"),
        ("seed", int, "0 or more; another seed draws other scenes"),
    ):
        metavar = "N" if kind is int else "X"
        flag, text = f"--{name.replace('_', '-')}", f"{text} (default: {defaults[name]})"
        toy.add_argument(flag, type=kind, default=defaults[name], metavar=metavar, help=text)
    toy.set_defaults(run=_toy)

    check = commands.add_parser(
        "check",
        help="find everything that is wrong with a folder of images",
        description=CHECK,
        epilog=LAYOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("root", type=Path, metavar="ROOT", help="holds JPEGImages, or VOCdevkit/VOC2012, or VOC2012")
    check.set_defaults(run=_check)

    cut = commands.add_parser(
        "superpixels",
        help="cut images into super-pixels",
        description=SUPERPIXELS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cut.add_argument("root", type=Path, metavar="ROOT", help="a folder of images, as for check")
    cut.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="receives a map an image")
    cut.add_argument("--split", default="", metavar="NAME", help="only this split's images (default: all splits)")
    defaults = SuperpixelSettings()
    for name, kind, metavar, text, default in (
        ("segments", int, "N", "about how many super-pixels an image gets", defaults.n_segments),
        ("compactness", float, "X", "higher: squarer regions", defaults.compactness),
        ("processes", int, "N", "worker processes", os.cpu_count() or 1),
    ):
        shown = "one a processor" if name == "processes" else default
        cut.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=f"{text} (default: {shown})")
    cut.set_defaults(run=_superpixels)
    return top


def _toy(options: argparse.Namespace) -> int:
    from data_prep import toy

    dials = {field.name: getattr(options, field.name) for field in fields(toy.ToyScenes)}
    out = toy.generate(options.out, toy.ToyScenes(**dials), progress=sys.stderr.isatty())
    print(f"{out}: {options.n_train} training and {options.n_val} validation scenes")
    return 0


def _check(options: argparse.Namespace) -> int:
    from wsss_lib.data.check import survey

    splits, faults = survey(options.root, progress=sys.stderr.isatty())
    for fault in faults:
        print(fault)
    for name, counts in splits.items():
        classes = ", ".join(f"{label} {n}" for label, n in counts.classes.most_common())
        print(f"{name}: {counts.images} images, {counts.masks} with a mask; {classes or 'no classes'}")
    print(f"{len(faults)} fault{'s' if len(faults) > 1 else ''}" if faults else "no faults")
    return 1 if faults else 0


def _superpixels(options: argparse.Namespace) -> int:
    from wsss_lib.data.faults import raise_first
    from wsss_lib.data.layout import Layout
    from wsss_lib.data.readers import read_ids
    from wsss_lib.data.superpixels import SuperpixelSettings, make_superpixels

    settings, layout = SuperpixelSettings(options.segments, options.compactness), Layout(options.root)
    ids: dict[str, None] = {}
    for split in [options.split] if options.split else layout.splits:
        found, faults = read_ids(layout.split_path(split))
        raise_first(faults)
        ids |= dict.fromkeys(found)
    jobs = [(image_id, layout.image_path(image_id)) for image_id in ids]
    written = make_superpixels(jobs, options.out, settings, options.processes)
    print(f"{options.out}: super-pixels of {len(ids)} images, {written} made now")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what goes wrong by the user's doing is one line on stderr.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the command line by default.

    Returns
    -------
    int
        Exit code: 0 all is well, 1 faults were found, 2 it could not be done.

    Examples
    --------
    >>> main(["check", "no/such/folder"])
    2
    """
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except BrokenPipeError:
        # The reader has gone (`| head`): nothing more to say, not even when Python closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (WsssError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
